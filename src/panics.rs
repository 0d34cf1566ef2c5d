//! A panic takes one call along, never the process.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, PanicHookInfo},
};

use futures_util::FutureExt as _;
use tracing::error;

/// A future panicked. What it said is in the log, and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a panic; the log has a line with its place")]
pub struct Panicked;

/// The future's output, unless it panics.
///
/// What the future shares with others must bear an end in the middle: atomics and tokio's own types do.
///
/// Not an `async fn`, which would be twice as large as the future.
pub fn catch<T>(future: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
    AssertUnwindSafe(future).catch_unwind().map(|outcome| outcome.map_err(|_told_by_the_hook| Panicked))
}

/// From now on a panic is a line of the log like any other, and not a text of its own on stderr.
pub fn report_to_log() {
    std::panic::set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        let place = panic.location().map(ToString::to_string);
        error!(
            panic = words(panic.payload()),
            place,
            thread = std::thread::current().name(),
            "a bug: a panic"
        );
    }));
}

/// What the panic says, if that is a literal of the code. What was formatted may hold a value, and a value may be a
/// username: the place has to do.
fn words(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("[withheld: it may hold a caller's data]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_as_an_error_and_everything_else_as_it_is() {
        assert_eq!(catch(async { 1 }).await, Ok(1));
        assert_eq!(catch(async { panic!("seen by nobody") }).await, Err::<(), _>(Panicked));
    }

    #[test]
    fn only_a_literal_is_repeated() {
        assert_eq!(words(&"the sky fell"), "the sky fell");
        let formatted: String = format!("no such user: {}", "ada");
        assert!(!words(&formatted).contains("ada"));
    }
}
