//! The audit log: one JSON object a line for each sign-out asked for. `docs/audit.md` tells its schema, which is stable.
//!
//! A thread of its own writes, in the order in which calls ended, because a sink may block. Whoever demands the record
//! (`--audit-on-failure closed`) waits for it before the caller is answered, and takes no new call while it fails.

mod key;
mod sink;
mod writer;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use self::{
    key::Keys,
    sink::Sink,
    writer::{Counters, Writer},
};
use crate::{
    config::{AuditArgs, AuditOnFailure, AuditSink},
    metrics::Metrics,
    sign_out::Username,
};

/// The name of the schema; it changes with every change that a reader could stumble over.
pub const SCHEMA: &str = "cognito.signout.audit.v1";

/// A key that was replaced is noticed after this.
const KEY_POLL: Duration = Duration::from_secs(5);
/// For a call whose deadline has come already: a healthy sink needs far less, and gRPC's own clock is not far behind.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// For the end of the process.
const SHORTEST_CLOSE: Duration = Duration::from_millis(200);

/// Why the audit log cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The sink.
    #[error("--audit {sink} cannot be written: {source}")]
    Sink {
        /// Which.
        sink: String,
        /// Why not.
        source: io::Error,
    },
    /// The key.
    #[error("--audit-key-file {path}: {source}")]
    Key {
        /// Where it was to be.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// An open audit log.
pub struct Audit {
    writer: Writer,
    keys: Option<Keys>,
    closed_on_failure: bool,
}

/// What is recorded of one sign-out.
pub struct Event<'a> {
    /// When it ended.
    pub time: SystemTime,
    /// The id in the log lines of the call.
    pub request_id: &'a str,
    /// The name of the gRPC method.
    pub method: &'static str,
    /// Who asked, if callers are told apart.
    pub caller: Option<&'a str>,
    /// The pool, if the request was well formed.
    pub user_pool_id: Option<&'a str>,
    /// The user, likewise; only a keyed hash is written.
    pub username: Option<&'a Username>,
    /// `signed_out`, `not_sent`, `refused` or `unknown`.
    pub outcome: &'static str,
    /// The name of the gRPC code.
    pub code: &'static str,
    /// ErrorInfo's reason; empty if there is none.
    pub reason: &'static str,
    /// Who has to act; empty if nobody has.
    pub fault: &'static str,
    /// AWS's request id.
    pub aws_request_id: Option<&'a str>,
    /// AWS's error code.
    pub aws_error_code: Option<&'a str>,
    /// The region that was asked.
    pub region: Option<&'a str>,
    /// Requests handed to the HTTP client.
    pub attempts: u32,
    /// From arrival to end.
    pub duration: Duration,
    /// The W3C trace id.
    pub trace_id: Option<&'a str>,
}

impl Audit {
    /// Opens the sink and reads the key; `None` if no audit log is asked for.
    pub fn open(args: &AuditArgs) -> Result<Option<Self>, AuditError> {
        let AuditArgs { audit, audit_key_file, audit_on_failure } = args;
        let sink = match audit {
            AuditSink::Off => return Ok(None),
            AuditSink::Stdout => Sink::stdout(),
            AuditSink::File(path) => Sink::file(path.clone()),
        };
        let sink = sink.map_err(|source| AuditError::Sink { sink: audit.to_string(), source })?;
        let keys = audit_key_file.as_ref().map(|path| {
            Keys::read(path.clone()).map_err(|source| AuditError::Key { path: path.clone(), source })
        });
        let closed_on_failure = *audit_on_failure == AuditOnFailure::Closed;
        let writer = Writer::start(sink, closed_on_failure)
            .map_err(|source| AuditError::Sink { sink: audit.to_string(), source })?;
        Ok(Some(Self { writer, keys: keys.transpose()?, closed_on_failure }))
    }

    /// Whether users are told by a keyed hash, and by which key.
    pub fn key_id(&self) -> Option<String> {
        self.keys.as_ref().map(|keys| keys.current().id.clone())
    }

    /// Tells `metrics` of what is written and what is not.
    pub fn count_in(&self, metrics: &Metrics) {
        Counters::register(self.writer.counters(), metrics);
    }

    /// Whether a new call has to be refused: its record is demanded, and the last one could not be written.
    pub fn refuses(&self) -> bool {
        self.closed_on_failure && self.writer.is_failing()
    }

    /// Hands an event to the writer, after all that were handed before. What is returned waits until it is written or that
    /// has failed, if a record is demanded; dropped, it changes nothing about the event.
    pub fn record(&self, event: &Event<'_>, deadline: Instant) -> impl Future<Output = ()> + Send + use<'_> {
        let written = self.writer.push(self.line(event), self.closed_on_failure);
        async move {
            let Some(written) = written else { return };
            // What takes longer than the call may take is as good as failed.
            if timeout_at(deadline.max(Instant::now() + SHORTEST_WAIT), written).await.is_err() {
                self.writer.stalled();
            }
        }
    }

    /// Notices a key that is replaced, for as long as it is polled, and at once when `look` changes; without a key, waits
    /// for ever.
    pub fn keep_key(
        self: Arc<Self>,
        mut look: watch::Receiver<()>,
        metrics: &Metrics,
    ) -> impl Future<Output = ()> + Send + use<> {
        let told = self.keys.is_some().then(|| metrics.reloads("audit_key"));
        async move {
            let (Some(keys), Some(told)) = (&self.keys, told) else { return std::future::pending().await };
            loop {
                tokio::select! {
                    () = sleep(KEY_POLL) => {}
                    Ok(()) = look.changed() => {}
                }
                if let Some(well) = keys.refresh() {
                    told(well);
                }
            }
        }
    }

    /// Waits until everything is written, but no longer than that; what is not written by then is lost.
    pub async fn close(&self, deadline: Instant) {
        self.writer.close(deadline.max(Instant::now() + SHORTEST_CLOSE)).await;
    }

    fn line(&self, event: &Event<'_>) -> String {
        let key = self.keys.as_ref().map(Keys::current);
        let key = event.username.and_then(|username| key.map(|key| (username, key)));
        let text = |text: &str| Value::from(text);
        let word = |word: &'static str| if word.is_empty() { Value::Null } else { word.into() };
        let duration_ms = u64::try_from(event.duration.as_millis()).unwrap_or(u64::MAX);
        let fields: [(&str, Value); 18] = [
            ("schema", text(SCHEMA)),
            ("time", humantime::format_rfc3339_micros(event.time).to_string().into()),
            ("request_id", text(event.request_id)),
            ("method", text(event.method)),
            ("caller", event.caller.into()),
            ("user_pool_id", event.user_pool_id.into()),
            ("username_hmac", key.as_ref().map(|(name, key)| key.hash(name.reveal())).into()),
            ("username_hmac_key_id", key.as_ref().map(|(_, key)| key.id.clone()).into()),
            ("outcome", text(event.outcome)),
            ("code", text(event.code)),
            ("reason", word(event.reason)),
            ("fault", word(event.fault)),
            ("aws_request_id", event.aws_request_id.into()),
            ("aws_error_code", event.aws_error_code.into()),
            ("region", event.region.into()),
            ("attempts", event.attempts.into()),
            ("duration_ms", duration_ms.into()),
            ("trace_id", event.trace_id.into()),
        ];
        // Not by a map, which would sort the fields: people read these lines too.
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}\n", fields.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json_with_every_field() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
        let audit = Audit::open(&AuditArgs {
            audit: AuditSink::File(dir.path().join("log")),
            audit_key_file: Some(key),
            audit_on_failure: AuditOnFailure::Open,
        });
        let username = Username::parse("ada").unwrap();
        let line = audit.unwrap().unwrap().line(&Event {
            time: SystemTime::UNIX_EPOCH,
            request_id: "00",
            method: "AdminUserGlobalSignOut",
            caller: Some("a \"quoted\"\ncaller"),
            user_pool_id: None,
            username: Some(&username),
            outcome: "signed_out",
            code: "OK",
            reason: "",
            fault: "",
            aws_request_id: None,
            aws_error_code: None,
            region: None,
            attempts: 1,
            duration: Duration::from_millis(7),
            trace_id: None,
        });
        assert_eq!(line.matches('\n').count(), 1);
        assert!(
            line.starts_with(r#"{"schema":"cognito.signout.audit.v1","time":"1970-01-01T00:00:00.000000Z","#)
        );
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event.as_object().unwrap().len(), 18);
        assert_eq!(event["caller"], "a \"quoted\"\ncaller");
        // printf %s ada | openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef0123456789abcdef
        assert_eq!(
            event["username_hmac"],
            "7f06173e229c19dd526caed61c2cfefab7bb446c0f3474a2ad5da4309f9ec318"
        );
        assert_eq!(event["reason"], Value::Null);
    }
}
