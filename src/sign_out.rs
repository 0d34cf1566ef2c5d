//! The vocabulary: whom to sign out, what came of it, and why not. Knows neither gRPC nor AWS.

mod call;
mod failure;
mod user;

use std::{error::Error, future::Future, sync::Arc, time::SystemTime};

pub use self::{
    call::{Call, Class, Outcome},
    failure::{AwsAnswer, Cause, Fault, SignOutError},
    user::{FieldViolation, NotARegion, Region, User, UserPoolId, Username},
};

/// An error of any kind, kept for the log.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Signs users out. Cognito itself is one, and so is everything that is wrapped around it: retries, limits, pacing.
pub trait SignOut: Send + Sync + 'static {
    /// Ends every session of the call's user.
    ///
    /// Dropping the future ends the exchange with Cognito, which may have acted all the same: see
    /// [`Call::outcome`].
    fn sign_out(&self, call: &Call) -> impl Future<Output = Result<SignedOut, SignOutError>> + Send;
}

impl<S: SignOut> SignOut for Arc<S> {
    fn sign_out(&self, call: &Call) -> impl Future<Output = Result<SignedOut, SignOutError>> + Send {
        self.as_ref().sign_out(call)
    }
}

/// Cognito has confirmed that a user is signed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOut {
    /// The request id that AWS gave.
    pub aws_request_id: Option<String>,
    /// Cognito's own clock, from the Date header of its answer; whole seconds.
    pub at: Option<SystemTime>,
    /// The region that was asked.
    pub region: Region,
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn call() -> Call {
        Call::new(User::parse("eu-central-1_EXAMPLE02", "ada").unwrap(), Instant::now())
    }

    #[test]
    fn the_outcome_is_known_only_as_far_as_every_attempt_was_refused() {
        let call = call();
        assert_eq!(call.outcome(), Outcome::NotSent);
        call.note_sent();
        assert_eq!(call.outcome(), Outcome::Unknown);
        call.note_refused();
        assert_eq!(call.outcome(), Outcome::Refused);
        call.note_sent();
        assert_eq!(call.outcome(), Outcome::Unknown, "a refused attempt says nothing about the next");
    }

    #[test]
    fn a_clone_of_a_call_shares_its_progress() {
        let call = call();
        call.clone().note_sent();
        assert_eq!(call.attempts(), 1);
    }

    #[test]
    fn pool_ids() {
        let longest = format!("us-east-1_{}", "a".repeat(45));
        for good in ["us-east-1_A", "eu-central-1_EXAMPLE02", "a_b", "under_score_X1", longest.as_str()] {
            assert!(UserPoolId::parse(good).is_ok(), "{good}");
        }
        let too_long = format!("{longest}a");
        for bad in [
            "",
            "_",
            "us-east-1",
            "us-east-1_",
            "_abc",
            "us east-1_a",
            "us-east-1_a-b",
            "us-east-1_a\n",
            "é_a",
            " us-east-1_a",
            too_long.as_str(),
        ] {
            let violation = UserPoolId::parse(bad).unwrap_err();
            assert_eq!(violation.field, "user_pool_id", "{bad:?}");
        }
    }

    #[test]
    fn a_region_is_read_off_a_pool_id_only_where_the_prefix_looks_like_one() {
        let region = |id: &str| UserPoolId::parse(id).unwrap().region().map(|region| region.to_string());
        assert_eq!(region("eu-central-1_EXAMPLE02").as_deref(), Some("eu-central-1"));
        assert_eq!(region("us-gov-west-1_A").as_deref(), Some("us-gov-west-1"));
        assert_eq!(region("us-iso-east-12_A").as_deref(), Some("us-iso-east-12"));
        for none in [
            "local_pool1",
            "us-1_A",
            "u-east-1_A",
            "us-east-_A",
            "us-east-1a_A",
            "US-EAST-1_A",
            "us_east-1_A",
            "us--1_A",
        ] {
            assert_eq!(region(none), None, "{none}");
        }
    }

    #[test]
    fn usernames() {
        let longest = "\u{1F600}".repeat(128);
        for good in [
            "a",
            "Ada",
            "ada@example.com",
            "+4912345",
            "ａｄａ",
            "e\u{301}",
            "\u{1F600}",
            "\"'\\{}",
            "𝒶",
            longest.as_str(),
        ] {
            assert!(Username::parse(good).is_ok(), "{good:?}");
        }
        let too_long = "a".repeat(129);
        for bad in
            ["", " ", "a b", "ada ", "a\0", "a\u{200D}b", "a\u{FEFF}", "\n", "\u{E000}", too_long.as_str()]
        {
            let violation = Username::parse(bad).unwrap_err();
            assert_eq!(violation.field, "username", "{bad:?}");
            assert!(bad.trim().is_empty() || !violation.description.contains(bad), "{bad:?} is repeated");
        }
    }

    #[test]
    fn a_username_is_never_shown() {
        let user = User::parse("eu-central-1_EXAMPLE02", "ada").unwrap();
        assert!(!format!("{user:?}").contains("ada"));
    }

    #[test]
    fn every_wrong_field_is_told_at_once() {
        let violations = User::parse("", "").unwrap_err();
        assert_eq!(violations.iter().map(|v| v.field).collect::<Vec<_>>(), ["user_pool_id", "username"]);
    }
}
