//! What is left of a call: one log line, one event in the audit log, one span, and what metrics tell.
//!
//! One guard does it all, also for a call that its caller abandons: then the future is dropped, and the guard with it.
//! The username is in nothing that it leaves.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::trace::SpanContext;
use tokio::time::{Instant, timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::metadata::MetadataMap;
use tracing::{Instrument as _, debug_span, error, info, warn};

use crate::{
    audit::{Audit, Event},
    metrics::{End, Metrics},
    sign_out::{Call, Cause, Fault, Outcome, SignOutError, SignedOut},
    status,
    traces::{self, CallSpan, Traces},
};

/// How a sign-out was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By itself.
    Unary,
    /// As an item of a stream.
    Bulk,
}

impl Method {
    /// The name of the gRPC method.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unary => "AdminUserGlobalSignOut",
            Self::Bulk => "BulkAdminUserGlobalSignOut",
        }
    }
}

/// A sign-out was asked for.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// How.
    pub method: Method,
    /// When.
    pub at: Instant,
    /// As a part of which trace.
    pub parent: Option<Box<SpanContext>>,
}

impl Arrival {
    /// It was asked for then, by a call with such metadata.
    pub fn of(method: Method, at: Instant, metadata: &MetadataMap) -> Self {
        Self { method, at, parent: traces::parent(metadata).map(Box::new) }
    }
}

/// Where records go.
pub struct Recorder {
    metrics: Arc<Metrics>,
    audit: Option<Arc<Audit>>,
    traces: Option<Arc<Traces>>,
    open: TaskTracker,
    cut_off: CancellationToken,
}

impl Recorder {
    /// Records go to the log, into `metrics`, and to `audit` and `traces` if there are any.
    pub fn new(metrics: Arc<Metrics>, audit: Option<Arc<Audit>>, traces: Option<Arc<Traces>>) -> Arc<Self> {
        Arc::new(Self { metrics, audit, traces, open: TaskTracker::new(), cut_off: CancellationToken::new() })
    }

    /// The process ends: calls that are still under way are cut off, so that their end is recorded, and the audit log is
    /// written to its end and the last spans exported, if they are taken by the deadline or soon after.
    pub async fn finish(&self, deadline: Instant) {
        /// What is cut off ends at once, but for the audit log.
        const SHORTEST: Duration = Duration::from_millis(200);

        let deadline = deadline.max(Instant::now() + SHORTEST);
        self.cut_off.cancel();
        self.open.close();
        if timeout_at(deadline, self.open.wait()).await.is_err() {
            warn!(calls = self.open.len(), "calls have left no record");
        }
        if let Some(audit) = &self.audit {
            audit.close(deadline).await;
        }
        if let Some(traces) = &self.traces {
            traces.finish(deadline).await;
        }
    }

    /// Begins the record of a sign-out. On the heap, for it is handed on from one to the next.
    pub fn begin(self: &Arc<Self>, arrival: Arrival) -> Box<Record> {
        let Arrival { method, at, parent } = arrival;
        self.metrics.call_begun(method.as_str());
        let span =
            self.traces.as_ref().map(|traces| Box::new(traces.call(method.as_str(), parent.as_deref())));
        // Without traces of our own, the caller's can still be followed through our log.
        let trace = span.as_deref().map(CallSpan::context).or(parent.as_deref());
        Box::new(Record {
            recorder: self.clone(),
            method,
            arrived: at,
            request_id: format!("{:016x}", fastrand::u64(..)),
            trace_id: trace.map(|trace| trace.trace_id().to_string()),
            span,
            caller: None,
            call: None,
            ended: false,
            _open: self.open.token(),
        })
    }
}

/// The record of one sign-out. Dropped before it was told an end, it tells that the caller went away.
pub struct Record {
    recorder: Arc<Recorder>,
    method: Method,
    arrived: Instant,
    request_id: String,
    trace_id: Option<String>,
    span: Option<Box<CallSpan>>,
    caller: Option<Arc<str>>,
    call: Option<Call>,
    ended: bool,
    _open: TaskTrackerToken,
}

impl Record {
    /// It is known who asks.
    pub fn called_by(&mut self, caller: impl Into<Arc<str>>) {
        self.caller = Some(caller.into());
    }

    /// Fails if there has to be a record of whatever is done, and none can be written now.
    pub fn can_be_kept(&self) -> Result<(), SignOutError> {
        match &self.recorder.audit {
            Some(audit) if audit.refuses() => {
                Err(SignOutError::new(Cause::AuditUnavailable).retry_after(Duration::from_secs(1)))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the process ends, which no call outlasts.
    pub fn cut_off(&self) -> impl Future<Output = ()> {
        self.recorder.cut_off.cancelled()
    }

    /// The same work, of which every line in the log carries the same ids as our own. That is told where details are; as
    /// long as they are not wanted, no call that waits holds a span for them.
    pub fn log_within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        work.instrument(debug_span!("call", request_id = self.request_id, trace_id = self.trace_id))
    }

    /// The request has become a call: from now on what is recorded names its pool and its attempts, and what is done for it
    /// belongs to its span.
    pub fn becomes(&mut self, call: Call) -> Call {
        let call = call.within(self.span.as_ref().map(|span| Arc::new(span.context().clone())));
        self.call = Some(call.clone());
        call
    }

    /// It has ended, and the caller is told next. Where an audit record is demanded, this waits until it is written, or
    /// that has failed; until `deadline` at the longest.
    pub async fn end(mut self: Box<Self>, answer: &Result<SignedOut, SignOutError>, deadline: Instant) {
        let (end, outcome) = self.tell(answer);
        // What cannot be written is not tried: nothing was done, and the refusal is in the log and in the metrics.
        if matches!(answer, Err(SignOutError { cause: Cause::AuditUnavailable, .. })) {
            return;
        }
        let result = answer.as_ref();
        let (region, aws_request_id, aws_error_code) = match result {
            Ok(signed_out) => (Some(&signed_out.region), &signed_out.aws_request_id, &None),
            Err(error) => (error.aws.region.as_ref(), &error.aws.request_id, &error.aws.error_code),
        };
        if let Some(audit) = &self.recorder.audit {
            let event = Event {
                outcome,
                aws_request_id: aws_request_id.as_deref(),
                aws_error_code: aws_error_code.as_deref(),
                region: region.map(|region| region.as_str()),
                ..self.event(end)
            };
            audit.record(&event, deadline).await;
        }
    }

    /// It was refused before its message had come, which would have said whom to sign out. There is nobody to audit, and
    /// whoever floods the sidecar must not fill the audit log.
    pub fn end_unasked(mut self, error: SignOutError) {
        self.tell(&Err(error));
    }

    /// Tells all but the audit log how it has ended.
    fn tell(&mut self, answer: &Result<SignedOut, SignOutError>) -> (End, &'static str) {
        self.ended = true;
        let outcome = self.outcome();
        let (end, outcome) = match answer {
            Ok(_) => (End::OK, "signed_out"),
            Err(error) => (end_of(error, outcome), outcome.as_str()),
        };
        self.log(answer, end, outcome);
        self.count(end);
        self.end_span(end, outcome);
        (end, outcome)
    }

    /// The event of the audit log, as far as it is known here.
    fn event(&self, end: End) -> Event<'_> {
        Event {
            time: SystemTime::now(),
            request_id: &self.request_id,
            method: self.method.as_str(),
            caller: self.caller.as_deref(),
            user_pool_id: self.user_pool_id(),
            username: self.call.as_ref().map(|call| &call.user.name),
            outcome: self.outcome().as_str(),
            code: end.code,
            reason: end.reason,
            fault: end.fault,
            aws_request_id: None,
            aws_error_code: None,
            region: None,
            attempts: self.attempts(),
            duration: self.arrived.elapsed(),
            trace_id: self.trace_id.as_deref(),
        }
    }

    fn end_span(&mut self, end: End, outcome: &'static str) {
        let attempts = self.attempts();
        let Self { span, request_id, call, .. } = self;
        if let Some(span) = span {
            let pool = call.as_ref().map(|call| call.user.pool.as_str());
            span.end(end, outcome, attempts, request_id, pool);
        }
    }

    fn count(&self, end: End) {
        let pool = self.call.as_ref().map(|call| &call.user.pool);
        self.recorder.metrics.call_ended(self.method.as_str(), pool, end, self.arrived.elapsed());
    }

    fn log(&self, answer: &Result<SignedOut, SignOutError>, end: End, outcome: &'static str) {
        let request_id = &self.request_id;
        let trace_id = &self.trace_id;
        let method = self.method.as_str();
        let caller = self.caller.as_deref();
        let user_pool_id = self.user_pool_id();
        let attempts = self.attempts();
        let duration_ms = self.duration_ms();
        let error = match answer {
            Ok(signed_out) => {
                info!(
                    request_id,
                    trace_id,
                    method,
                    caller,
                    user_pool_id,
                    region = signed_out.region.as_str(),
                    aws_request_id = signed_out.aws_request_id,
                    signed_out_at = signed_out.at.map(seconds_since_epoch),
                    attempts,
                    duration_ms,
                    "signed out"
                );
                return;
            }
            Err(error) => error,
        };
        let End { code, reason, fault } = end;
        let causes = error.source.as_ref().map(tracing::field::display);
        let told = told(error);
        // A level is a constant of its line: the caller's own faults are nobody's alarm.
        macro_rules! log {
            ($level:ident) => {
                $level!(
                    request_id,
                    trace_id,
                    method,
                    caller,
                    user_pool_id,
                    region = error.aws.region.as_ref().map(|region| region.as_str()),
                    code,
                    reason,
                    fault,
                    outcome,
                    aws_request_id = error.aws.request_id,
                    aws_error_code = error.aws.error_code,
                    http_status = error.aws.http_status,
                    attempts,
                    duration_ms,
                    causes,
                    "not signed out: {told}"
                )
            };
        }
        match (error.fault(self.outcome()), &error.cause) {
            (_, Cause::SidecarInternalError) => log!(error),
            (Fault::Caller, _) => log!(info),
            (Fault::Sidecar | Fault::Aws, _) => log!(warn),
        }
    }

    fn user_pool_id(&self) -> Option<&str> {
        self.call.as_ref().map(|call| call.user.pool.as_str())
    }

    fn attempts(&self) -> u32 {
        self.call.as_ref().map_or(0, Call::attempts)
    }

    /// What a failure says about the user's sessions.
    fn outcome(&self) -> Outcome {
        self.call.as_ref().map_or(Outcome::NotSent, Call::outcome)
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let end = End::abandoned();
        let what = if end == End::CANCELLED {
            "the caller went away"
        } else {
            "not signed out: a bug in the sidecar"
        };
        let outcome = self.outcome().as_str();
        info!(
            request_id = self.request_id,
            trace_id = self.trace_id,
            method = self.method.as_str(),
            caller = self.caller.as_deref(),
            user_pool_id = self.user_pool_id(),
            code = end.code,
            outcome,
            attempts = self.attempts(),
            duration_ms = self.duration_ms(),
            "{what}"
        );
        self.count(end);
        self.end_span(end, outcome);
        // There is nobody to answer, so nothing to wait for.
        if let Some(audit) = &self.recorder.audit {
            drop(audit.record(&self.event(end), self.arrived));
        }
    }
}

/// The failure in words for the log: for a malformed request, what is wrong with it, which never repeats a value.
fn told(error: &SignOutError) -> String {
    match &error.cause {
        Cause::InvalidRequest(violations) => {
            let fields: Vec<_> =
                violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
            format!("{error}: {}", fields.join("; "))
        }
        _ => error.to_string(),
    }
}

/// How a failure is called wherever it is recorded.
pub fn end_of(error: &SignOutError, outcome: Outcome) -> End {
    let (code, reason) = status::code_and_reason(&error.cause);
    End { code: status::code_name(code), reason, fault: error.fault(outcome).as_str() }
}

fn seconds_since_epoch(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
