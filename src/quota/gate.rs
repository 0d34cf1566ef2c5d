//! Never more at Cognito at one time than allowed: what is beyond waits in a fair, bounded queue.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::sign_out::{Call, Cause, SignOut, SignOutError, SignedOut};

/// The limit and its queue, to be closed on the way out.
#[derive(Debug)]
pub struct Gate {
    permits: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
    closing: CancellationToken,
}

impl Gate {
    /// At most `max_in_flight` attempts at one time, and at most `max_waiting` that wait.
    pub fn new(max_in_flight: usize, max_waiting: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS)),
            waiting: AtomicUsize::new(0),
            max_waiting,
            closing: CancellationToken::new(),
        })
    }

    /// From now on nothing more is sent: what waits, and what comes, is told that the sidecar is shutting down.
    pub fn close(&self) {
        self.permits.close();
        self.closing.cancel();
    }

    /// Cancelled when the gate is closed.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// How many may wait.
    pub(super) fn max_waiting(&self) -> usize {
        self.max_waiting
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Lets through what the gate allows.
pub struct Bounded<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S: SignOut> Bounded<S> {
    /// `inner` behind `gate`.
    pub fn new(inner: S, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }
}

impl<S: SignOut> SignOut for Bounded<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        let _permit = match self.gate.permits.try_acquire() {
            Ok(permit) => permit,
            Err(tokio::sync::TryAcquireError::Closed) => return Err(SignOutError::shutting_down()),
            Err(tokio::sync::TryAcquireError::NoPermits) => {
                let Some(_place) = Place::take(&self.gate) else {
                    // A full queue empties at the speed of Cognito; no better figure is known here.
                    return Err(SignOutError::new(Cause::Overloaded).retry_after(Duration::from_secs(1)));
                };
                debug!("waits for its turn");
                self.gate.permits.acquire().await.map_err(|_closed| SignOutError::shutting_down())?
            }
        };
        // On the heap, and not before there is a permit: what waits is small, what is at work is large.
        Box::pin(self.inner.sign_out(call)).await
    }
}

/// A place in the queue, given back however the waiting ends.
struct Place<'a>(&'a Gate);

impl<'a> Place<'a> {
    fn take(gate: &'a Gate) -> Option<Self> {
        gate.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < gate.max_waiting).then_some(waiting + 1)
            })
            .ok()
            .map(|_| Self(gate))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, time::Instant};

    use super::*;
    use crate::sign_out::User;

    /// Tells that it was reached, then never answers.
    struct Stuck(mpsc::UnboundedSender<()>);

    impl SignOut for Stuck {
        async fn sign_out(&self, _: &Call) -> Result<SignedOut, SignOutError> {
            self.0.send(()).unwrap();
            std::future::pending().await
        }
    }

    fn call() -> Call {
        Call::new(User::parse("eu-central-1_EXAMPLE02", "ada").unwrap(), Instant::now())
    }

    async fn until(gate: &Gate, waiting: usize) {
        while gate.waiting() != waiting {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_beyond_waits_what_is_beyond_that_is_refused_and_closing_frees_the_queue() {
        let (reached, mut arrivals) = mpsc::unbounded_channel();
        let gate = Gate::new(1, 1);
        let bounded = Arc::new(Bounded::new(Stuck(reached), gate.clone()));

        let sign_out = || {
            let bounded = bounded.clone();
            tokio::spawn(async move { bounded.sign_out(&call()).await })
        };
        let first = sign_out();
        arrivals.recv().await.unwrap();
        let second = sign_out();
        until(&gate, 1).await;

        let third = bounded.sign_out(&call()).await.unwrap_err();
        assert_eq!(third.cause, Cause::Overloaded);
        assert!(third.retry_after.is_some());

        // The first goes away: the second takes its place, and the queue is free again.
        first.abort();
        arrivals.recv().await.unwrap();
        assert_eq!(gate.waiting(), 0);

        let fourth = sign_out();
        until(&gate, 1).await;
        gate.close();
        assert_eq!(fourth.await.unwrap().unwrap_err().cause, Cause::ShuttingDown);
        assert_eq!(bounded.sign_out(&call()).await.unwrap_err().cause, Cause::ShuttingDown);
        second.abort();
    }
}
