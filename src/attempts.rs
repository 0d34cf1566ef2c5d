//! Attempts and their waiting, seen: one [`SignOut`] goes around what makes an attempt wait, the other around the attempt.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    metrics::{End, Metrics},
    record::end_of,
    sign_out::{Call, SignOut, SignOutError, SignedOut},
};

/// Goes around whatever makes an attempt wait for its turn.
pub struct Queued<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S: SignOut> Queued<S> {
    /// Sees how long `inner` makes attempts wait, until [`Attempted`] below it is reached.
    pub fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<S: SignOut> SignOut for Queued<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        call.note_waiting();
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

fn end_wait(call: &Call, metrics: &Metrics) {
    if let Some(since) = call.note_turn() {
        metrics.wait_ended(since.elapsed());
    }
}

/// Goes around one attempt.
pub struct Attempted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S: SignOut> Attempted<S> {
    /// Sees the attempts that `inner` makes.
    pub fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<S: SignOut> SignOut for Attempted<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        end_wait(call, &self.metrics);
        let attempt = Attempt::begin(call, &self.metrics);
        let result = self.inner.sign_out(call).await;
        attempt.end(&result);
        result
    }
}

/// The record of one attempt. Dropped before it was told an end, it tells that we gave it up.
struct Attempt<'a> {
    call: &'a Call,
    metrics: &'a Metrics,
    begun: Instant,
    ended: bool,
}

impl<'a> Attempt<'a> {
    fn begin(call: &'a Call, metrics: &'a Metrics) -> Self {
        metrics.attempt_begun(call.attempts() > 0);
        Self { call, metrics, begun: Instant::now(), ended: false }
    }

    fn end(mut self, result: &Result<SignedOut, SignOutError>) {
        self.ended = true;
        match result {
            Ok(signed_out) => self.count(signed_out.region.as_str(), End::OK),
            Err(error) => {
                let region = error.aws.region.as_ref().map_or("", |region| region.as_str());
                self.count(region, end_of(error, self.call.outcome()));
            }
        }
    }

    fn count(&self, region: &str, end: End) {
        self.metrics.attempt_ended(region, end, self.begun.elapsed());
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Which region would have been asked is known below; the pool's own is as good as always the same.
            let region = self.call.user.pool.region();
            self.count(region.as_ref().map_or("", |region| region.as_str()), End::CANCELLED);
        }
    }
}
