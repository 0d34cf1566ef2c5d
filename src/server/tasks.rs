//! The tasks that run as long as the process.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::RunError;
use crate::panics;

/// Tasks that run as long as the process: an end of any is an error, never half a sidecar.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<Result<(), RunError>>);

impl Tasks {
    /// A task that never ends.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            Err(match panics::catch(task).await {
                Ok(()) => RunError::TaskEnded(name),
                Err(panics::Panicked) => RunError::TaskFailed(name),
            })
        });
    }

    /// A task that ends by itself.
    pub(super) fn spawn_ending(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.0.spawn(async move { panics::catch(task).await.map_err(|_| RunError::TaskFailed(name)) });
    }

    /// A task that may end once `closing` is cancelled, and is dropped then.
    pub(super) fn spawn_closable(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        closing: &CancellationToken,
    ) {
        let closed = closing.clone();
        let task = async move { _ = closed.run_until_cancelled(task).await };
        self.spawn_finishing(name, task, closing);
    }

    /// A task that may end by itself once `closing` is cancelled.
    pub(super) fn spawn_finishing(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        closing: &CancellationToken,
    ) {
        let closing = closing.clone();
        self.0.spawn(async move {
            match panics::catch(task).await {
                Ok(()) if closing.is_cancelled() => Ok(()),
                Ok(()) => Err(RunError::TaskEnded(name)),
                Err(panics::Panicked) => Err(RunError::TaskFailed(name)),
            }
        });
    }

    /// Waits for an end that should not be, for ever if there is none.
    pub(super) async fn unexpected_end(&mut self) -> RunError {
        loop {
            match self.0.join_next().await {
                Some(Ok(Err(error))) => return error,
                // Caught above, or aborted, which nobody does.
                Some(Err(_)) => return RunError::TaskFailed("a task"),
                Some(Ok(Ok(()))) => {}
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_told_by_its_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("one that goes on", pending());
        tasks.spawn("the reloader", ready(()));
        assert_eq!(tasks.unexpected_end().await.to_string(), "the reloader ended unexpectedly");

        let mut tasks = Tasks::default();
        tasks.spawn("one that goes on", pending());
        tasks.spawn("the reloader", async { panic!("seen by nobody") });
        assert_eq!(tasks.unexpected_end().await.to_string(), "the reloader failed: a bug");
    }

    #[tokio::test]
    async fn a_listener_may_end_when_it_is_closed_and_at_no_other_time() {
        let closing = CancellationToken::new();
        let mut tasks = Tasks::default();
        tasks.spawn_closable("a listener", pending(), &closing);
        tasks.spawn_closable("another listener", ready(()), &closing);
        assert_eq!(tasks.unexpected_end().await.to_string(), "another listener ended unexpectedly");

        closing.cancel();
        tasks.spawn("the admin server", ready(()));
        assert_eq!(tasks.unexpected_end().await.to_string(), "the admin server ended unexpectedly");
    }
}
