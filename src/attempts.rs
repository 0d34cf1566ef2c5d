//! Attempts and their waiting, seen: one [`SignOut`] goes around what makes an attempt wait, the other around the attempt.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    metrics::{End, Metrics},
    record::end_of,
    sign_out::{AwsAnswer, Call, SignOut, SignOutError, SignedOut},
    traces::{AttemptSpan, Traces},
};

/// Goes around whatever makes an attempt wait for its turn.
pub struct Queued<S> {
    inner: S,
    metrics: Arc<Metrics>,
    traces: Option<Arc<Traces>>,
}

impl<S: SignOut> Queued<S> {
    /// Sees how long `inner` makes attempts wait, until [`Attempted`] below it is reached.
    pub fn new(inner: S, metrics: Arc<Metrics>, traces: Option<Arc<Traces>>) -> Self {
        Self { inner, metrics, traces }
    }
}

impl<S: SignOut> SignOut for Queued<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        let span = self.traces.as_ref().zip(call.span.as_deref()).map(|(traces, span)| traces.wait(span));
        call.note_waiting(span);
        self.metrics.wait_begun();
        let _waiting = Waiting { call, metrics: &self.metrics };
        self.inner.sign_out(call).await
    }
}

/// Ends a wait that has come to nothing: refused, or abandoned.
struct Waiting<'a> {
    call: &'a Call,
    metrics: &'a Metrics,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        end_wait(self.call, self.metrics);
    }
}

/// A span ends with its value.
fn end_wait(call: &Call, metrics: &Metrics) {
    if let Some((since, _span)) = call.note_turn() {
        metrics.wait_ended(since.elapsed());
    }
}

/// Goes around one attempt.
pub struct Attempted<S> {
    inner: S,
    metrics: Arc<Metrics>,
    traces: Option<Arc<Traces>>,
}

impl<S: SignOut> Attempted<S> {
    /// Sees the attempts that `inner` makes.
    pub fn new(inner: S, metrics: Arc<Metrics>, traces: Option<Arc<Traces>>) -> Self {
        Self { inner, metrics, traces }
    }
}

impl<S: SignOut> SignOut for Attempted<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        end_wait(call, &self.metrics);
        let attempt = Attempt::begin(call, &self.metrics, self.traces.as_deref());
        let result = self.inner.sign_out(call).await;
        attempt.end(&result);
        result
    }
}

/// The record of one attempt. Dropped before it was told an end, it tells that we gave it up.
struct Attempt<'a> {
    call: &'a Call,
    metrics: &'a Metrics,
    span: Option<AttemptSpan>,
    begun: Instant,
    /// How many requests had been sent for the call before.
    before: u32,
    ended: bool,
}

impl<'a> Attempt<'a> {
    fn begin(call: &'a Call, metrics: &'a Metrics, traces: Option<&Traces>) -> Self {
        let before = call.attempts();
        metrics.attempt_begun();
        let span = traces.zip(call.span.as_deref()).map(|(traces, span)| traces.attempt(span, before + 1));
        Self { call, metrics, span, begun: Instant::now(), before, ended: false }
    }

    fn end(mut self, result: &Result<SignedOut, SignOutError>) {
        self.ended = true;
        match result {
            Ok(signed_out) => {
                let id = signed_out.aws_request_id.as_deref();
                self.record(signed_out.region.as_str(), End::OK, id, Some(200));
            }
            Err(error) => {
                let AwsAnswer { region, request_id, http_status, .. } = &*error.aws;
                let region = region.as_ref().map_or("", |region| region.as_str());
                let end = end_of(error, self.call.outcome());
                self.record(region, end, request_id.as_deref(), *http_status);
            }
        }
    }

    fn record(&mut self, region: &str, end: End, aws_request_id: Option<&str>, http_status: Option<u16>) {
        if self.call.attempts() > self.before {
            self.metrics.attempt_ended(region, end, self.begun.elapsed(), self.before > 0);
        } else {
            self.metrics.attempt_not_made();
        }
        if let Some(span) = &mut self.span {
            span.end(end, region, aws_request_id, http_status);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Which region would have been asked is known below; the pool's own is as good as always the same.
            let region = self.call.user.pool.region();
            self.record(region.as_ref().map_or("", |region| region.as_str()), End::abandoned(), None, None);
        }
    }
}
