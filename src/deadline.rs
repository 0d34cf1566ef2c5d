//! When a call must have been answered, and that it is answered by then with DEADLINE_EXCEEDED.
//!
//! tonic's own server would answer CANCELLED when `grpc-timeout` passes; ours is built without that.

use std::time::Duration;

use futures_util::{FutureExt as _, future::Either};
use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;

use crate::{
    sign_out::{Cause, SignOutError},
    status,
};

/// When a call came, and when it must have been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// When its headers came.
    pub arrived: Instant,
    /// A little before the caller stops listening: one whose own clock runs out learns nothing.
    pub deadline: Instant,
}

impl Due {
    /// What [`note`] noted, or else from now on. `call_timeout` is for a call that brings no deadline.
    pub fn of<T>(request: &tonic::Request<T>, call_timeout: Duration) -> Self {
        let Noted { arrived, timeout } = request
            .extensions()
            .get::<Noted>()
            .copied()
            .unwrap_or_else(|| Noted::now(request.metadata().as_ref()));
        Self { arrived, deadline: arrived + in_time(timeout.unwrap_or(call_timeout)) }
    }
}

/// When the headers of a request came, and what they say of its time.
#[derive(Clone, Copy)]
struct Noted {
    arrived: Instant,
    timeout: Option<Duration>,
}

impl Noted {
    fn now(headers: &HeaderMap) -> Self {
        Self { arrived: Instant::now(), timeout: timeout_in(headers) }
    }
}

/// Notes that the headers of a request have come just now, for [`Due`]. Tells when whatever serves it has to be cut off:
/// a little after the deadline that it keeps by itself, and before the caller's own.
pub fn note(request: &mut Request<Body>) -> Option<Instant> {
    let noted @ Noted { arrived, timeout } = Noted::now(request.headers());
    request.extensions_mut().insert(noted);
    let timeout = timeout?;
    let in_time = in_time(timeout);
    Some(arrived + in_time + timeout.saturating_sub(in_time).min(Duration::from_millis(100)) / 2)
}

/// The answer to a request, DEADLINE_EXCEEDED if there is none when it has to be cut off: its message never came, say.
///
/// Not an `async fn`, which would be twice as large as what it waits for.
pub fn keep<F, E>(answer: F, cut_off: Option<Instant>) -> impl Future<Output = Result<Response<Body>, E>>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    let Some(cut_off) = cut_off else { return Either::Left(answer) };
    let late = || status::of_refusal(&SignOutError::new(Cause::DeadlineExceeded)).into_http();
    Either::Right(timeout_at(cut_off, answer).map(move |answer| answer.unwrap_or_else(|_elapsed| Ok(late()))))
}

/// The deadline of a call with such headers that arrived then, if it brings one.
pub fn brought_by(headers: &HeaderMap, arrived: Instant) -> Option<Instant> {
    timeout_in(headers).map(|timeout| arrived + in_time(timeout))
}

/// After how long an answer is due: a little before the timeout.
fn in_time(timeout: Duration) -> Duration {
    // A timer has a resolution of 1 ms.
    const SHORTEST_MARGIN: Duration = Duration::from_millis(1);
    const LONGEST_MARGIN: Duration = Duration::from_millis(100);
    /// The clock cannot hold every timeout that gRPC can write; nobody waits so long.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

    let margin = (timeout / 20).clamp(SHORTEST_MARGIN, LONGEST_MARGIN);
    timeout.saturating_sub(margin).min(LONGEST)
}

fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()))
}

/// `grpc-timeout` as gRPC's protocol has it: at most eight digits and a unit. `None` for what is malformed, which gRPC's
/// servers ignore.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_timeout(b"2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse_timeout(b"3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse_timeout(b"99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse_timeout(b"5u"), Some(Duration::from_micros(5)));
        assert_eq!(parse_timeout(b"6n"), Some(Duration::from_nanos(6)));
        for malformed in [&b""[..], b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b" 1S", b"+1S"] {
            assert_eq!(parse_timeout(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn the_answer_is_due_a_little_before_the_deadline() {
        let due = |timeout| in_time(Duration::from_millis(timeout)).as_millis();
        assert_eq!(due(1000), 950);
        assert_eq!(due(60_000), 59_900);
        assert_eq!(due(4), 3);
        assert_eq!(due(1), 0);
        assert_eq!(due(0), 0);
        assert!(in_time(Duration::from_secs(99_999_999 * 3600)) > Duration::from_secs(3600));
    }

    #[test]
    fn without_a_timeout_that_can_be_read_the_call_gets_the_sidecars() {
        let due = |timeout: Option<&str>| {
            let mut request = tonic::Request::new(());
            if let Some(timeout) = timeout {
                request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
            }
            let Due { arrived, deadline } = Due::of(&request, Duration::from_secs(10));
            deadline - arrived
        };
        assert_eq!(due(Some("1S")), Duration::from_millis(950));
        assert_eq!(due(None), Duration::from_millis(9_900));
        assert_eq!(due(Some("garbage")), Duration::from_millis(9_900));
    }
}
