//! Attempts within the deadline: a [`SignOut`] around a [`SignOut`].
//!
//! Why not the SDK's own loop: it starts a backoff that it cannot finish and then reports the timeout instead of what
//! went wrong, and it would hold a permit, and be charged to the budget once, for all its attempts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::sign_out::{Call, Cause, SignOut, SignOutError, SignedOut};

/// Attempts a sign-out up to a number of times, never past the call's deadline.
pub struct Retrying<S> {
    inner: S,
    max_attempts: u32,
    closing: CancellationToken,
}

impl<S: SignOut> Retrying<S> {
    /// At most `max_attempts` attempts, the first included. Once `closing` is cancelled nothing waits for another: it
    /// is made at once, and whoever is asked says that the sidecar is shutting down.
    pub fn new(inner: S, max_attempts: u32, closing: CancellationToken) -> Self {
        Self { inner, max_attempts, closing }
    }
}

impl<S: SignOut> SignOut for Retrying<S> {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        let mut attempt = 1;
        let mut last: Option<SignOutError> = None;
        loop {
            let error = match self.inner.sign_out(call).await {
                Ok(signed_out) => return Ok(signed_out),
                Err(error) => error,
            };
            // The wait for the next attempt would outlast the deadline: what ended the last one is the answer.
            if error.cause == Cause::QuotaExhausted
                && let Some(last) = last
            {
                return Err(SignOutError { retry_after: error.retry_after.max(last.retry_after), ..last });
            }
            let Some(delay) = delay_after(&error, attempt, fastrand::f64()) else {
                return Err(error);
            };
            // The caller is told the same delay: it should not come back sooner than we would.
            let error = error.retry_after(delay);
            if attempt >= self.max_attempts || !is_worth_another_attempt(&error.cause) {
                return Err(error);
            }
            // A backoff that would outlast the deadline ends the call now, with what went wrong.
            if Instant::now() + delay >= call.deadline() {
                return Err(error);
            }
            // On the heap: most calls come here never.
            if Box::pin(self.closing.run_until_cancelled(sleep(delay))).await.is_none() {
                return Err(shutting_down_after(error));
            }
            attempt += 1;
            last = Some(error);
        }
    }
}

/// No other attempt is made here; what is known of the last one stays known.
fn shutting_down_after(error: SignOutError) -> SignOutError {
    let aws = error.aws.clone();
    SignOutError { aws, source: Some(error.into()), ..SignOutError::shutting_down() }
}

/// Whether we try again ourselves. Our own limits are not Cognito's failures: the caller decides.
fn is_worth_another_attempt(cause: &Cause) -> bool {
    cause.is_retryable()
        && !matches!(
            cause,
            Cause::DeadlineExceeded | Cause::Overloaded | Cause::QuotaExhausted | Cause::ShuttingDown
        )
}

/// How long to wait after the given attempt (counted from 1); `None` if waiting is of no use.
///
/// What AWS or our own limits asked for is obeyed. Otherwise exponential with full jitter: `chance` is uniform in 0..1.
fn delay_after(error: &SignOutError, attempt: u32, chance: f64) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(20);
    const SHORTEST: Duration = Duration::from_millis(1);

    if !error.cause.is_retryable() || error.cause == Cause::DeadlineExceeded {
        return None;
    }
    if let Some(asked) = error.retry_after {
        return Some(asked);
    }
    // Throttling says that the account is over its rate, which a few milliseconds do not change.
    let base = match error.cause {
        Cause::TooManyRequests => Duration::from_secs(1),
        _ => Duration::from_millis(50),
    };
    let ceiling = base.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX)).min(LONGEST);
    Some(ceiling.mul_f64(chance).max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sign_out::User;

    /// Fails as it is told, then succeeds; notes when it was asked.
    struct Scripted {
        failures: Mutex<Vec<SignOutError>>,
        asked: Mutex<Vec<Instant>>,
    }

    impl Scripted {
        fn failing(mut failures: Vec<SignOutError>) -> Self {
            failures.reverse();
            Self { failures: Mutex::new(failures), asked: Mutex::default() }
        }
    }

    impl SignOut for Scripted {
        async fn sign_out(&self, _: &Call) -> Result<SignedOut, SignOutError> {
            self.asked.lock().unwrap().push(Instant::now());
            match self.failures.lock().unwrap().pop() {
                Some(error) => Err(error),
                None => {
                    Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
                }
            }
        }
    }

    fn call(within: Duration) -> Call {
        Call::new(User::parse("eu-central-1_EXAMPLE02", "ada").unwrap(), Instant::now() + within)
    }

    fn throttled() -> SignOutError {
        SignOutError::new(Cause::TooManyRequests)
    }

    async fn run(
        failures: Vec<SignOutError>,
        within: Duration,
    ) -> (Result<SignedOut, SignOutError>, Vec<Instant>) {
        let retrying = Retrying::new(Scripted::failing(failures), 3, CancellationToken::new());
        let result = retrying.sign_out(&call(within)).await;
        (result, retrying.inner.asked.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn three_attempts_and_no_more() {
        let (result, asked) = run(vec![throttled(), throttled(), throttled()], Duration::from_secs(60)).await;
        let error = result.unwrap_err();
        assert_eq!(error.cause, Cause::TooManyRequests);
        assert!(error.retry_after.is_some());
        assert_eq!(asked.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_success_is_a_success() {
        let (result, asked) = run(vec![throttled(), throttled()], Duration::from_secs(60)).await;
        assert!(result.is_ok());
        assert_eq!(asked.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_succeed_is_not_tried_again() {
        let (result, asked) =
            run(vec![SignOutError::new(Cause::UserNotFound)], Duration::from_secs(60)).await;
        let error = result.unwrap_err();
        assert_eq!((error.cause, error.retry_after), (Cause::UserNotFound, None));
        assert_eq!(asked.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_that_aws_asks_for_is_obeyed() {
        let asks = || throttled().retry_after(Duration::from_secs(5));
        let (result, asked) = run(vec![asks()], Duration::from_secs(60)).await;
        assert!(result.is_ok());
        assert!(asked[1] - asked[0] >= Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_backoff_that_would_outlast_the_deadline_ends_the_call_at_once() {
        let begun = Instant::now();
        let asks = throttled().retry_after(Duration::from_secs(5));
        let (result, asked) = run(vec![asks], Duration::from_secs(5)).await;
        let error = result.unwrap_err();
        assert_eq!(error.cause, Cause::TooManyRequests);
        assert_eq!(error.retry_after, Some(Duration::from_secs(5)));
        assert_eq!(asked.len(), 1);
        assert_eq!(Instant::now(), begun, "nothing was waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backoff_ends_when_the_sidecar_shuts_down() {
        let closing = CancellationToken::new();
        let asks = throttled().retry_after(Duration::from_secs(5));
        let retrying = Arc::new(Retrying::new(Scripted::failing(vec![asks]), 3, closing.clone()));
        let (ours, begun) = (retrying.clone(), Instant::now());
        let backing_off = tokio::spawn(async move { ours.sign_out(&call(Duration::from_secs(60))).await });
        while retrying.inner.asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        closing.cancel();

        let error = backing_off.await.unwrap().unwrap_err();
        assert_eq!((error.cause, Instant::now()), (Cause::ShuttingDown, begun));
        assert_eq!(retrying.inner.asked.lock().unwrap().len(), 1);
    }

    #[test]
    fn backoffs_double_from_their_base_and_are_jittered_fully() {
        let of =
            |cause: Cause, attempt, chance| delay_after(&SignOutError::new(cause), attempt, chance).unwrap();
        assert_eq!(of(Cause::TooManyRequests, 1, 1.0), Duration::from_secs(1));
        assert_eq!(of(Cause::TooManyRequests, 2, 0.5), Duration::from_secs(1));
        assert_eq!(of(Cause::CognitoUnreachable, 1, 1.0), Duration::from_millis(50));
        assert_eq!(of(Cause::CognitoUnreachable, 3, 1.0), Duration::from_millis(200));
        assert_eq!(of(Cause::CognitoUnreachable, 1, 0.0), Duration::from_millis(1));
        assert_eq!(of(Cause::TooManyRequests, 40, 1.0), Duration::from_secs(20));
    }
}
