//! What is left of a call: one log line, one event in the audit log, and what metrics tell.
//!
//! One guard does it all, also for a call that its caller abandons: then the future is dropped, and the guard with it.
//! The username is in nothing that it leaves.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{error, info, warn};

use crate::{
    audit::{Audit, Event},
    metrics::{End, Metrics},
    sign_out::{Call, Cause, Fault, Outcome, SignOutError, SignedOut},
    status,
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

/// Where records go.
pub struct Recorder {
    metrics: Arc<Metrics>,
    audit: Option<Arc<Audit>>,
    open: TaskTracker,
    cut_off: CancellationToken,
}

impl Recorder {
    /// Records go to the log, into `metrics`, and into `audit` if there is one.
    pub fn new(metrics: Arc<Metrics>, audit: Option<Arc<Audit>>) -> Arc<Self> {
        Arc::new(Self { metrics, audit, open: TaskTracker::new(), cut_off: CancellationToken::new() })
    }

    /// The process ends: calls that are still under way are cut off, so that their end is recorded, and the audit log is
    /// written to its end, if its sink takes it by the deadline or soon after.
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
    }

    /// Begins the record of a sign-out that was asked for then.
    pub fn begin(self: &Arc<Self>, method: Method, arrived: Instant) -> Record {
        self.metrics.call_begun(method.as_str());
        Record {
            recorder: self.clone(),
            method,
            arrived,
            _open: self.open.token(),
            request_id: format!("{:016x}", fastrand::u64(..)),
            caller: None,
            call: None,
            ended: false,
        }
    }
}

/// The record of one sign-out. Dropped before it was told an end, it tells that the caller went away.
pub struct Record {
    recorder: Arc<Recorder>,
    method: Method,
    arrived: Instant,
    _open: TaskTrackerToken,
    request_id: String,
    caller: Option<Arc<str>>,
    call: Option<Call>,
    ended: bool,
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

    /// Waits for what comes of the call; SHUTTING_DOWN if the process ends first.
    pub async fn until_cut_off(
        &self,
        answer: impl Future<Output = Result<SignedOut, SignOutError>>,
    ) -> Result<SignedOut, SignOutError> {
        let answer = self.recorder.cut_off.run_until_cancelled(answer).await;
        answer.unwrap_or_else(|| {
            Err(SignOutError::new(Cause::ShuttingDown).retry_after(Duration::from_millis(100)))
        })
    }

    /// The request has become a call: from now on what is recorded names its pool and its attempts.
    pub fn becomes(&mut self, call: &Call) {
        self.call = Some(call.clone());
    }

    /// It has ended, and the caller is told next. Where an audit record is demanded, this waits until it is written, or
    /// that has failed; until `deadline` at the longest.
    pub async fn end(mut self, answer: &Result<SignedOut, SignOutError>, deadline: Instant) {
        self.ended = true;
        let outcome = self.outcome();
        let end = match answer {
            Ok(_) => End::OK,
            Err(error) => end_of(error, outcome),
        };
        self.log(answer, end, outcome);
        self.count(end);
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
                outcome: if result.is_ok() { "signed_out" } else { outcome.as_str() },
                aws_request_id: aws_request_id.as_deref(),
                aws_error_code: aws_error_code.as_deref(),
                region: region.map(|region| region.as_str()),
                ..self.event(end)
            };
            audit.record(&event, deadline).await;
        }
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
            trace_id: None,
        }
    }

    fn count(&self, end: End) {
        let pool = self.call.as_ref().map(|call| &call.user.pool);
        self.recorder.metrics.call_ended(self.method.as_str(), pool, end, self.arrived.elapsed());
    }

    fn log(&self, answer: &Result<SignedOut, SignOutError>, end: End, outcome: Outcome) {
        let request_id = &self.request_id;
        let method = self.method.as_str();
        let caller = self.caller.as_deref();
        let user_pool_id = self.user_pool_id();
        let attempts = self.attempts();
        let duration_ms = self.duration_ms();
        let error = match answer {
            Ok(signed_out) => {
                info!(
                    request_id,
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
        // A level is a constant of its line: the caller's own faults are nobody's alarm.
        macro_rules! log {
            ($level:ident) => {
                $level!(
                    request_id,
                    method,
                    caller,
                    user_pool_id,
                    region = error.aws.region.as_ref().map(|region| region.as_str()),
                    code,
                    reason,
                    fault,
                    outcome = outcome.as_str(),
                    aws_request_id = error.aws.request_id,
                    aws_error_code = error.aws.error_code,
                    http_status = error.aws.http_status,
                    attempts,
                    duration_ms,
                    causes,
                    "not signed out: {error}"
                )
            };
        }
        match (error.fault(outcome), &error.cause) {
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
        info!(
            request_id = self.request_id,
            method = self.method.as_str(),
            caller = self.caller.as_deref(),
            user_pool_id = self.user_pool_id(),
            code = End::CANCELLED.code,
            outcome = self.outcome().as_str(),
            attempts = self.attempts(),
            duration_ms = self.duration_ms(),
            "the caller went away"
        );
        self.count(End::CANCELLED);
        // There is nobody to answer, so nothing to wait for.
        if let Some(audit) = &self.recorder.audit {
            drop(audit.record(&self.event(End::CANCELLED), self.arrived));
        }
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
