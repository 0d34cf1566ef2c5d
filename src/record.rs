//! What is left of a call: one log line, and the metrics that follow from it.
//!
//! One guard does it all, also for a call that its caller abandons: then the future is dropped, and the guard with it.
//! The username is in nothing that it leaves.

use std::{sync::Arc, time::SystemTime};

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::{
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
}

impl Recorder {
    /// Records go to the log and into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { metrics })
    }

    /// Begins the record of a sign-out that was asked for then.
    pub fn begin(self: &Arc<Self>, method: Method, arrived: Instant) -> Record {
        self.metrics.call_begun(method.as_str());
        Record {
            recorder: self.clone(),
            method,
            arrived,
            request_id: format!("{:016x}", fastrand::u64(..)),
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
    request_id: String,
    call: Option<Call>,
    ended: bool,
}

impl Record {
    /// The request has become a call: from now on what is recorded names its pool and its attempts.
    pub fn becomes(&mut self, call: &Call) {
        self.call = Some(call.clone());
    }

    /// It has ended; the caller is told next.
    pub fn end(mut self, answer: &Result<SignedOut, SignOutError>) {
        self.ended = true;
        let outcome = self.outcome();
        let end = match answer {
            Ok(_) => End::OK,
            Err(error) => end_of(error, outcome),
        };
        self.log(answer, end, outcome);
        self.count(end);
    }

    fn count(&self, end: End) {
        let pool = self.call.as_ref().map(|call| &call.user.pool);
        self.recorder.metrics.call_ended(self.method.as_str(), pool, end, self.arrived.elapsed());
    }

    fn log(&self, answer: &Result<SignedOut, SignOutError>, end: End, outcome: Outcome) {
        let request_id = &self.request_id;
        let method = self.method.as_str();
        let user_pool_id = self.user_pool_id();
        let attempts = self.attempts();
        let duration_ms = self.duration_ms();
        let error = match answer {
            Ok(signed_out) => {
                info!(
                    request_id,
                    method,
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
            user_pool_id = self.user_pool_id(),
            code = End::CANCELLED.code,
            outcome = self.outcome().as_str(),
            attempts = self.attempts(),
            duration_ms = self.duration_ms(),
            "the caller went away"
        );
        self.count(End::CANCELLED);
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
