//! When a call must have been answered, and that it is answered by then with DEADLINE_EXCEEDED.
//!
//! tonic reads `grpc-timeout` too, but answers CANCELLED when it passes. So our clock starts where tonic's does, before
//! anything is awaited, and ends earlier.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{body::Body, codegen::Service};

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
    /// What [`Deadlines`] noted, or else from now on. `call_timeout` is for a call that brings no deadline.
    pub fn of<T>(request: &tonic::Request<T>, call_timeout: Duration) -> Self {
        let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
        let timeout = timeout_in(request.metadata().as_ref()).unwrap_or(call_timeout);
        Self { arrived, deadline: arrived + in_time(timeout) }
    }
}

/// When the headers of a request came.
#[derive(Clone, Copy)]
struct Arrived(Instant);

/// Around everything that is served: notes when a request came, and answers DEADLINE_EXCEEDED if its own deadline passes
/// before whatever is inside has answered, say because the request's message never came.
#[derive(Debug, Clone)]
pub struct Deadlines<S>(pub S);

impl<S> Service<Request<Body>> for Deadlines<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    /// Called when tonic starts its own clock; the future may be polled much later.
    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let arrived = Instant::now();
        let timeout = timeout_in(request.headers());
        request.extensions_mut().insert(Arrived(arrived));
        let answer = self.0.call(request);
        let Some(timeout) = timeout else { return Box::pin(answer) };
        // Between the deadline that the service inside keeps by itself, and tonic's.
        let in_time = in_time(timeout);
        let due = arrived + in_time + timeout.saturating_sub(in_time).min(Duration::from_millis(100)) / 2;
        Box::pin(async move {
            timeout_at(due, answer).await.unwrap_or_else(|_elapsed| {
                Ok(status::of_refusal(&SignOutError::new(Cause::DeadlineExceeded)).into_http())
            })
        })
    }
}

/// The deadline of a call with such headers that arrived then, if it brings one.
pub fn brought_by(headers: &HeaderMap, arrived: Instant) -> Option<Instant> {
    timeout_in(headers).map(|timeout| arrived + in_time(timeout))
}

/// After how long an answer is due: a little before the timeout.
fn in_time(timeout: Duration) -> Duration {
    // Our timer and gRPC's own have a resolution of 1 ms, and ours must fire first.
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
