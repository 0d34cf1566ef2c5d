//! What the emulator starts with: its pools and users, and the usernames that stand for a behaviour.

use std::time::Duration;

/// A user pool that exists from the start, and its one app client (without a secret, with
/// `USER_PASSWORD_AUTH` enabled).
#[derive(Debug, PartialEq, Eq)]
pub struct SeededPool {
    /// The user pool id, such as `us-east-1_EXAMPLE01`.
    pub id: &'static str,
    /// The id of the pool's app client, for `InitiateAuth`.
    pub client_id: &'static str,
    /// The region the pool lives in: requests signed for another do not find it.
    pub region: &'static str,
}

/// The seeded pools, in two regions, so that choosing the region matters.
pub const POOLS: [SeededPool; 2] = [
    SeededPool { id: "us-east-1_EXAMPLE01", client_id: "4useast1exampleclient00001", region: "us-east-1" },
    SeededPool {
        id: "eu-central-1_EXAMPLE02",
        client_id: "4eucentral1exampleclient02",
        region: "eu-central-1",
    },
];

/// A user that exists in every seeded pool.
#[derive(Debug, PartialEq, Eq)]
pub struct SeededUser {
    /// The username, case-sensitive.
    pub username: &'static str,
    /// The password for `USER_PASSWORD_AUTH`.
    pub password: &'static str,
    /// The verified e-mail address, which works as an alias of the username.
    pub email: &'static str,
}

/// The seeded users.
pub const USERS: &[SeededUser] = &[
    SeededUser { username: "ada", password: "Analytical-1843", email: "ada@example.com" },
    SeededUser { username: "grace", password: "Nanosecond-1906", email: "grace@example.com" },
    SeededUser { username: "linus", password: "Penguin-1991", email: "linus@example.com" },
    SeededUser { username: "zoë🦀", password: "Ferris-2015", email: "zoe@example.com" },
];

/// The usernames that stand for a behaviour of `AdminUserGlobalSignOut`, and what each shows. They work in
/// every seeded pool, and all but `user-not-found` can sign in with [`SPECIAL_PASSWORD`].
pub const SPECIAL_USERNAMES: &[(&str, &str)] = &[
    ("too-many-requests", "TooManyRequestsException, every time"),
    ("internal-error", "InternalErrorException, HTTP 500"),
    ("not-authorized", "NotAuthorizedException"),
    ("invalid-parameter", "InvalidParameterException, though the request is well formed"),
    ("operation-not-enabled", "OperationNotEnabledException, as in a replica region"),
    ("resource-not-found", "ResourceNotFoundException, as if the pool were gone"),
    ("user-not-found", "UserNotFoundException, as any name that nobody has"),
    ("access-denied", "AccessDeniedException: the caller's IAM policy does not allow the call"),
    ("forbidden", "ForbiddenException, HTTP 403: a web ACL blocks the call"),
    ("expired-token", "ExpiredTokenException: the caller's own credentials have expired"),
    ("unrecognized-client", "UnrecognizedClientException: the caller's credentials are unknown"),
    ("invalid-signature", "InvalidSignatureException: the signature does not match"),
    ("unavailable", "HTTP 503 with a page of HTML and no error code"),
    ("throttled-once", "TooManyRequestsException and success, taking turns"),
    ("slow", "signed out at once, answered after 2 seconds"),
    ("slow-<N>ms", "signed out at once, answered after N milliseconds, 0 to 60000"),
    ("never", "signed out at once, never answered"),
    ("drop", "signed out at once, the connection closed without an answer"),
    ("half", "signed out at once, the connection closed in the middle of the answer"),
];

/// The password of every special username.
pub const SPECIAL_PASSWORD: &str = "Special-2024";

/// What `AdminUserGlobalSignOut` does for a special username.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// A fault whose message does not depend on the request.
    Fault(&'static str, &'static str),
    ResourceNotFound,
    AccessDenied,
    Unavailable,
    ThrottledOnce,
    Slow(Duration),
    Never,
    Drop,
    Half,
}

impl Special {
    pub(super) fn of(username: &str) -> Option<Self> {
        Some(match username {
            "too-many-requests" => Self::Fault("TooManyRequestsException", "Rate exceeded"),
            "internal-error" => Self::Fault("InternalErrorException", "Internal error"),
            "not-authorized" => {
                Self::Fault("NotAuthorizedException", "Not authorized to sign out this user.")
            }
            "invalid-parameter" => Self::Fault("InvalidParameterException", "Invalid parameter."),
            "operation-not-enabled" => Self::Fault(
                "OperationNotEnabledException",
                "The operation is not available in the current region.",
            ),
            "forbidden" => Self::Fault("ForbiddenException", "Request not allowed due to WAF block."),
            "expired-token" => {
                Self::Fault("ExpiredTokenException", "The security token included in the request is expired")
            }
            "unrecognized-client" => Self::Fault(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            ),
            "invalid-signature" => Self::Fault(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. Check your AWS \
                 Secret Access Key and signing method. Consult the service documentation for details.",
            ),
            "resource-not-found" => Self::ResourceNotFound,
            "access-denied" => Self::AccessDenied,
            "unavailable" => Self::Unavailable,
            "throttled-once" => Self::ThrottledOnce,
            "slow" => Self::Slow(Duration::from_secs(2)),
            "never" => Self::Never,
            "drop" => Self::Drop,
            "half" => Self::Half,
            other => Self::Slow(slow_for(other)?),
        })
    }
}

/// The `N` of `slow-<N>ms`. Five digits at the most, so that the usernames in use stay countable.
fn slow_for(username: &str) -> Option<Duration> {
    let digits = username.strip_prefix("slow-")?.strip_suffix("ms")?;
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let millis = digits.parse().ok().filter(|millis| *millis <= 60_000)?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_username_of_the_list_has_its_behaviour() {
        for (name, _) in SPECIAL_USERNAMES {
            let name = name.replace("<N>", "250");
            // Nobody is called so, and that is all there is to it.
            let expected = name != "user-not-found";
            assert_eq!(Special::of(&name).is_some(), expected, "{name}");
        }
    }

    #[test]
    fn slowness_is_bounded_and_takes_plain_digits_only() {
        let slow = |millis| Some(Special::Slow(Duration::from_millis(millis)));
        assert_eq!(Special::of("slow-0ms"), slow(0));
        assert_eq!(Special::of("slow-60000ms"), slow(60_000));
        for name in ["slow-60001ms", "slow-ms", "slow-+5ms", "slow--5ms", "slow-000001ms", "slow-5s"] {
            assert_eq!(Special::of(name), None, "{name}");
        }
    }

    #[test]
    fn ids_have_the_shape_of_cognitos() {
        for pool in POOLS {
            assert!(pool.id.starts_with(&format!("{}_", pool.region)));
            assert_eq!(pool.client_id.len(), 26);
            assert!(pool.client_id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        }
    }
}
