//! Never more at Cognito at one time than allowed: what is beyond waits in a fair, bounded queue.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::sign_out::{Cause, SignOutError};

/// The limit and its queue, to be closed on the way out.
#[derive(Debug)]
pub struct Gate {
    permits: Semaphore,
    /// One place: of all that wait in the gate's own queue, only the first stands at the permits. So whoever is first in a
    /// queue elsewhere, which is held to a pace, waits for one of them and not for all.
    head: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
    closing: CancellationToken,
}

impl Gate {
    /// At most `max_in_flight` attempts at one time, and at most `max_waiting` that wait.
    pub fn new(max_in_flight: usize, max_waiting: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS)),
            head: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            max_waiting,
            closing: CancellationToken::new(),
        })
    }

    /// From now on nothing more is sent: what waits, and what comes, is told that the sidecar is shutting down.
    pub fn close(&self) {
        self.permits.close();
        self.head.close();
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

    /// How many wait, those aside whose wait is bounded elsewhere.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits to be let through, first come, first served. At once an error if too many wait.
    pub(super) async fn enter(&self) -> Result<Permit<'_>, SignOutError> {
        // Whoever waits comes first, even if nobody stands at the permits in this moment.
        if self.waiting() == 0 {
            match self.permits.try_acquire() {
                Ok(permit) => return Ok(permit),
                Err(TryAcquireError::Closed) => return Err(SignOutError::shutting_down()),
                Err(TryAcquireError::NoPermits) => {}
            }
        }
        let Some(_place) = Place::take(self) else {
            // A full queue empties at the speed of Cognito; no better figure is known here.
            return Err(SignOutError::new(Cause::Overloaded).retry_after(Duration::from_secs(1)));
        };
        debug!("waits for its turn");
        let _head = self.head.acquire().await.map_err(|_closed| SignOutError::shutting_down())?;
        self.permits.acquire().await.map_err(|_closed| SignOutError::shutting_down())
    }

    /// The same for who is first in a queue that is bounded by itself.
    pub(super) async fn enter_first(&self) -> Result<Permit<'_>, SignOutError> {
        match self.permits.try_acquire() {
            Ok(permit) => Ok(permit),
            Err(_closed_or_none) => {
                debug!("waits for its turn");
                self.permits.acquire().await.map_err(|_closed| SignOutError::shutting_down())
            }
        }
    }
}

/// To be let through, for as long as it is held.
pub(super) type Permit<'a> = SemaphorePermit<'a>;

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
    use super::*;

    async fn until(gate: &Gate, waiting: usize) {
        while gate.waiting() != waiting {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_beyond_waits_what_is_beyond_that_is_refused_and_closing_frees_the_queue() {
        let gate = Gate::new(1, 1);
        let enter = || {
            let gate = gate.clone();
            tokio::spawn(async move { gate.enter().await.map(SemaphorePermit::forget) })
        };
        let first = gate.enter().await.unwrap();
        let second = enter();
        until(&gate, 1).await;

        let third = gate.enter().await.unwrap_err();
        assert_eq!(third.cause, Cause::Overloaded);
        assert!(third.retry_after.is_some());

        // The first goes away: the second takes its place, for good, and the queue is free again.
        drop(first);
        second.await.unwrap().unwrap();
        assert_eq!(gate.waiting(), 0);

        let fourth = enter();
        until(&gate, 1).await;
        gate.close();
        assert_eq!(fourth.await.unwrap().unwrap_err().cause, Cause::ShuttingDown);
        assert_eq!(gate.enter().await.unwrap_err().cause, Cause::ShuttingDown);
        assert_eq!(gate.enter_first().await.unwrap_err().cause, Cause::ShuttingDown);
    }

    #[tokio::test]
    async fn who_is_first_elsewhere_takes_up_no_place_in_the_queue() {
        let gate = Gate::new(1, 0);
        let held = gate.enter().await.unwrap();
        let ours = gate.clone();
        let first = tokio::spawn(async move { ours.enter_first().await.map(drop) });
        tokio::task::yield_now().await;
        assert_eq!(gate.enter().await.unwrap_err().cause, Cause::Overloaded);
        drop(held);
        first.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_is_first_elsewhere_waits_for_one_of_the_queue_and_not_for_all() {
        let gate = Gate::new(1, 10);
        let held = gate.enter().await.unwrap();
        let (order, mut entered) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for name in ["first", "second", "third"] {
            let (theirs, order) = (gate.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _permit = theirs.enter().await.unwrap();
                order.send(name).unwrap();
            }));
            until(&gate, tasks.len()).await;
        }
        // So that the first of them stands at the permits.
        tokio::task::yield_now().await;
        let elsewhere = async {
            let _permit = gate.enter_first().await.unwrap();
            order.send("elsewhere").unwrap();
        };
        let release = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        tokio::join!(elsewhere, release);

        for expected in ["first", "elsewhere", "second", "third"] {
            assert_eq!(entered.recv().await, Some(expected));
        }
    }
}
