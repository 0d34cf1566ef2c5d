//! What an answer of AWS, or of whatever stands in its place, means. In this order: error code, HTTP status, body.

use std::time::{Duration, SystemTime};

use aws_runtime::retries::classifiers::THROTTLING_ERRORS;
use serde_json::{Map, Value};

use crate::sign_out::Cause;

/// An answer, from the moment its headers are there.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) http_status: u16,
    pub(super) error_code: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) date: Option<SystemTime>,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Body,
}

/// What the body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// It has not come to its end.
    Incomplete,
    /// Empty, or a JSON object: what Cognito answers.
    Plausible,
    /// Anything else.
    Foreign,
}

/// The body, and the error code in it.
pub(super) fn read_body(bytes: &[u8]) -> (Body, Option<String>) {
    if bytes.is_empty() || bytes == b"{}" {
        return (Body::Plausible, None);
    }
    match serde_json::from_slice::<Map<String, Value>>(bytes) {
        Ok(object) => (Body::Plausible, object.get("__type").and_then(Value::as_str).map(sanitize_code)),
        Err(_) => (Body::Foreign, None),
    }
}

/// `namespace#Code:uri` to `Code`.
pub(super) fn sanitize_code(raw: &str) -> String {
    // The address first: it may hold a `#` of its own.
    let code = raw.split_once(':').map_or(raw, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code).trim().to_owned()
}

/// What went wrong; `None` if nothing did.
pub(super) fn classify(answer: &Answer, now: SystemTime) -> Option<Cause> {
    if let Some(cause) = answer.error_code.as_deref().and_then(|code| by_code(code, answer.date, now)) {
        return Some(cause);
    }
    let cause = match (answer.http_status, answer.body) {
        (429, _) => Cause::TooManyRequests,
        (408 | 500 | 502 | 503 | 504, _) => Cause::CognitoUnavailable,
        (_, Body::Incomplete) => Cause::CognitoUnreachable,
        // Nothing else is a success: a captive portal's 200 is not a sign-out, nor is an error code in a 200.
        (200, Body::Plausible) if answer.error_code.is_none() => return None,
        _ => Cause::UnexpectedResponse,
    };
    Some(cause)
}

fn by_code(code: &str, date: Option<SystemTime>, now: SystemTime) -> Option<Cause> {
    let cause = match code {
        "InvalidParameterException" => Cause::InvalidParameter,
        "UserNotFoundException" => Cause::UserNotFound,
        "ResourceNotFoundException" => Cause::UserPoolNotFound,
        "NotAuthorizedException" => Cause::NotAuthorized,
        "OperationNotEnabledException" => Cause::OperationNotEnabled,
        "InternalErrorException" => Cause::CognitoInternalError,
        "ForbiddenException" => Cause::BlockedByWebAcl,
        _ if THROTTLING_ERRORS.contains(&code) => Cause::TooManyRequests,
        // AWS's common errors come with and without the suffix.
        _ => match code.strip_suffix("Exception").unwrap_or(code) {
            "ServiceUnavailable" | "InternalFailure" | "RequestTimeout" => Cause::CognitoUnavailable,
            "AccessDenied" => Cause::SidecarAccessDenied,
            "InvalidSignature" if is_skewed(date, now) => Cause::SidecarClockSkewed,
            "UnrecognizedClient"
            | "InvalidSignature"
            | "IncompleteSignature"
            | "MissingAuthenticationToken"
            | "InvalidClientTokenId"
            | "SignatureDoesNotMatch" => Cause::SidecarCredentialsInvalid,
            "RequestExpired" | "RequestTimeTooSkewed" | "AuthFailure" => Cause::SidecarClockSkewed,
            "ExpiredToken" => Cause::SidecarCredentialsExpired,
            _ => return None,
        },
    };
    Some(cause)
}

/// Whether AWS's clock and ours differ by so much that it would not accept a good signature.
fn is_skewed(date: Option<SystemTime>, now: SystemTime) -> bool {
    const TOLERATED: Duration = Duration::from_secs(4 * 60);
    date.is_some_and(|date| {
        let off = now.duration_since(date).unwrap_or_else(|early| early.duration());
        off > TOLERATED
    })
}

/// Whether the answer rules out that the user was signed out: AWS refused, or throttled, the request.
pub(super) fn is_refusal(answer: &Answer, cause: &Cause) -> bool {
    // A proxy's 4xx does not tell what happened behind it; AWS's own bears a code or a request id.
    let is_aws = answer.error_code.is_some() || answer.request_id.is_some();
    *cause == Cause::TooManyRequests || (is_aws && (400..500).contains(&answer.http_status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(http_status: u16, error_code: Option<&str>, body: Body) -> Answer {
        Answer {
            http_status,
            error_code: error_code.map(str::to_owned),
            request_id: None,
            date: None,
            retry_after: None,
            body,
        }
    }

    fn cause(http_status: u16, error_code: Option<&str>, body: Body) -> Option<Cause> {
        classify(&answer(http_status, error_code, body), SystemTime::now())
    }

    #[test]
    fn only_a_plausible_200_is_a_success() {
        assert_eq!(cause(200, None, Body::Plausible), None);
        assert_eq!(cause(200, None, Body::Foreign), Some(Cause::UnexpectedResponse));
        assert_eq!(cause(200, None, Body::Incomplete), Some(Cause::CognitoUnreachable));
        assert_eq!(cause(200, Some("Odd"), Body::Plausible), Some(Cause::UnexpectedResponse));
        assert_eq!(cause(200, Some("UserNotFoundException"), Body::Plausible), Some(Cause::UserNotFound));
        for status in [201, 202, 204, 206, 302, 400, 404] {
            assert_eq!(cause(status, None, Body::Plausible), Some(Cause::UnexpectedResponse), "{status}");
        }
    }

    #[test]
    fn the_code_counts_before_the_status_and_the_status_before_the_body() {
        assert_eq!(cause(500, Some("UserNotFoundException"), Body::Foreign), Some(Cause::UserNotFound));
        assert_eq!(cause(503, Some("Odd"), Body::Plausible), Some(Cause::CognitoUnavailable));
        assert_eq!(cause(503, None, Body::Incomplete), Some(Cause::CognitoUnavailable));
        assert_eq!(cause(429, None, Body::Foreign), Some(Cause::TooManyRequests));
    }

    #[test]
    fn a_bad_signature_is_the_clocks_fault_when_the_clocks_differ() {
        let now = SystemTime::now();
        let at = |date| {
            classify(&Answer { date, ..answer(400, Some("InvalidSignatureException"), Body::Plausible) }, now)
        };
        assert_eq!(at(Some(now - Duration::from_secs(239))), Some(Cause::SidecarCredentialsInvalid));
        assert_eq!(at(Some(now - Duration::from_secs(300))), Some(Cause::SidecarClockSkewed));
        assert_eq!(at(Some(now + Duration::from_secs(300))), Some(Cause::SidecarClockSkewed));
        assert_eq!(at(None), Some(Cause::SidecarCredentialsInvalid));
    }

    #[test]
    fn bodies() {
        assert_eq!(read_body(b""), (Body::Plausible, None));
        assert_eq!(read_body(b"{}"), (Body::Plausible, None));
        assert_eq!(read_body(b" { \"a\": 1 } "), (Body::Plausible, None));
        assert_eq!(
            read_body(br#"{"__type":"com.amazonaws#UserNotFoundException"}"#),
            (Body::Plausible, Some("UserNotFoundException".to_owned()))
        );
        for foreign in [&b"<html>"[..], b"[]", b"null", b"{} {}", b"{", b"\xff"] {
            assert_eq!(read_body(foreign), (Body::Foreign, None));
        }
    }

    #[test]
    fn codes_lose_their_namespace_and_their_address() {
        for raw in [
            "UserNotFoundException",
            "A#UserNotFoundException",
            "UserNotFoundException:",
            "UserNotFoundException:http://x/#y",
        ] {
            assert_eq!(sanitize_code(raw), "UserNotFoundException", "{raw}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_aws_itself() {
        let refused = |status, code, cause| is_refusal(&answer(status, code, Body::Plausible), &cause);
        assert!(refused(400, Some("UserNotFoundException"), Cause::UserNotFound));
        assert!(refused(503, Some("SlowDown"), Cause::TooManyRequests));
        assert!(refused(429, None, Cause::TooManyRequests));
        assert!(!refused(403, None, Cause::UnexpectedResponse));
        assert!(!refused(500, Some("InternalErrorException"), Cause::CognitoInternalError));
    }
}
