//! The one mapping from a failure to a gRPC status with google.rpc details. The only place that knows gRPC codes.

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::sign_out::{Call, Cause, Outcome, SignOutError, UserPoolId};

/// `ErrorInfo.domain` of every failure.
pub const DOMAIN: &str = "cognito.signout.v1";

/// The trailer that gRPC's own retries obey, in milliseconds; they do not read `RetryInfo`.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The gRPC code and the reason of a cause. A reason never changes its meaning.
pub fn code_and_reason(cause: &Cause) -> (Code, &'static str) {
    match cause {
        Cause::InvalidRequest(_) => (Code::InvalidArgument, "INVALID_REQUEST"),
        Cause::InvalidParameter => (Code::InvalidArgument, "INVALID_PARAMETER"),
        Cause::UserNotFound => (Code::NotFound, "USER_NOT_FOUND"),
        Cause::UserPoolNotFound => (Code::NotFound, "USER_POOL_NOT_FOUND"),
        Cause::NotAuthorized => (Code::PermissionDenied, "NOT_AUTHORIZED"),
        Cause::OperationNotEnabled => (Code::FailedPrecondition, "OPERATION_NOT_ENABLED"),
        Cause::TooManyRequests => (Code::ResourceExhausted, "TOO_MANY_REQUESTS"),
        Cause::CognitoInternalError => (Code::Internal, "COGNITO_INTERNAL_ERROR"),
        Cause::CognitoUnavailable => (Code::Unavailable, "COGNITO_UNAVAILABLE"),
        Cause::CognitoUnreachable => (Code::Unavailable, "COGNITO_UNREACHABLE"),
        Cause::SidecarAccessDenied => (Code::PermissionDenied, "SIDECAR_ACCESS_DENIED"),
        Cause::BlockedByWebAcl => (Code::PermissionDenied, "BLOCKED_BY_WEB_ACL"),
        // UNAUTHENTICATED is kept for the caller's own identity: clients answer it by refreshing their tokens.
        Cause::SidecarCredentialsInvalid => (Code::FailedPrecondition, "SIDECAR_CREDENTIALS_INVALID"),
        Cause::SidecarClockSkewed => (Code::FailedPrecondition, "SIDECAR_CLOCK_SKEWED"),
        Cause::SidecarCredentialsExpired => (Code::Unavailable, "SIDECAR_CREDENTIALS_EXPIRED"),
        Cause::SidecarCredentialsMissing => (Code::FailedPrecondition, "SIDECAR_CREDENTIALS_MISSING"),
        Cause::SidecarCredentialsUnavailable => (Code::Unavailable, "SIDECAR_CREDENTIALS_UNAVAILABLE"),
        Cause::SidecarMisconfigured => (Code::FailedPrecondition, "SIDECAR_MISCONFIGURED"),
        Cause::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Cause::UnexpectedResponse => (Code::Internal, "UNEXPECTED_RESPONSE"),
        Cause::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
        Cause::QuotaExhausted => (Code::ResourceExhausted, "QUOTA_EXHAUSTED"),
        Cause::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
        Cause::AuditUnavailable => (Code::Unavailable, "AUDIT_UNAVAILABLE"),
        Cause::CallerUnauthenticated(_) => (Code::Unauthenticated, "CALLER_UNAUTHENTICATED"),
        Cause::CallerNotAllowed => (Code::PermissionDenied, "CALLER_NOT_ALLOWED"),
        Cause::SidecarInternalError => (Code::Internal, "SIDECAR_INTERNAL_ERROR"),
    }
}

/// Code, reason, whose fault and whether to try again, of every failure: what documents can be checked against.
pub fn table() -> impl Iterator<Item = (Code, &'static str, String, bool)> {
    Cause::all().map(|cause| {
        let (code, reason) = code_and_reason(&cause);
        let (sent, unsent) = (cause.fault(Outcome::Unknown).as_str(), cause.fault(Outcome::NotSent).as_str());
        let fault = if sent == unsent { sent.to_owned() } else { format!("{sent} or {unsent}") };
        (code, reason, fault, cause.is_retryable())
    })
}

/// The name of a code as gRPC's documents write it, such as `NOT_FOUND`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The status of a call that was made.
pub fn of_call(error: &SignOutError, call: &Call) -> Status {
    status(error, Some(&call.user.pool), call.outcome())
}

/// The status of a request that was refused before it became a call: nothing was sent.
pub fn of_refusal(error: &SignOutError) -> Status {
    status(error, None, Outcome::NotSent)
}

/// The status of a call of which nothing more is known, because a panic ended it.
pub fn of_bug() -> Status {
    status(&SignOutError::new(Cause::SidecarInternalError), None, Outcome::Unknown)
}

fn status(error: &SignOutError, pool: Option<&UserPoolId>, outcome: Outcome) -> Status {
    let (code, reason) = code_and_reason(&error.cause);
    let pool = pool.map(UserPoolId::as_str);
    let region = error.aws.region.as_ref().map(|region| region.as_str());

    let mut metadata = HashMap::from([
        ("fault".to_owned(), error.fault(outcome).as_str().to_owned()),
        ("retryable".to_owned(), error.cause.is_retryable().to_string()),
        ("outcome".to_owned(), outcome.as_str().to_owned()),
    ]);
    let known =
        [("aws_error_code", error.aws.error_code.as_deref()), ("region", region), ("user_pool_id", pool)];
    metadata.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))));

    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata);
    if let Some(id) = &error.aws.request_id {
        details.set_request_info(id, "");
    }
    if let Some(delay) = error.retry_after {
        details.set_retry_info(Some(delay));
    }
    add_details_of(&error.cause, pool.unwrap_or_default(), region.unwrap_or_default(), &mut details);

    let mut trailers = MetadataMap::new();
    if let Some(delay) = error.retry_after {
        trailers.insert(PUSHBACK, MetadataValue::from(pushback_ms(delay)));
    }
    Status::with_error_details_and_metadata(code, message(error, pool), details, trailers)
}

/// Whole milliseconds, rounded up: a client that waits must not come too early. gRPC reads a 32-bit integer.
fn pushback_ms(delay: Duration) -> i32 {
    i32::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// The details that a cause has beyond ErrorInfo, RequestInfo and RetryInfo.
fn add_details_of(cause: &Cause, pool: &str, region: &str, details: &mut ErrorDetails) {
    match cause {
        Cause::InvalidRequest(violations) => {
            for violation in violations {
                details.add_bad_request_violation(violation.field, &violation.description);
            }
        }
        // The name stays empty: no status holds a username.
        Cause::UserNotFound => {
            details.set_resource_info("cognito.user", "", "", "the pool has no such user");
        }
        Cause::UserPoolNotFound => {
            details.set_resource_info("cognito.user_pool", pool, "", format!("not found in region {region}"));
        }
        Cause::OperationNotEnabled => {
            details.add_precondition_failure_violation(
                "OPERATION_NOT_ENABLED",
                pool,
                format!("region {region} does not take this operation for the pool; set --pool-region to one that does"),
            );
        }
        Cause::TooManyRequests => {
            details.add_quota_failure_violation(
                format!("region:{region}"),
                "the AWS account's request rate for this category of Cognito operations in the region",
            );
        }
        Cause::QuotaExhausted => {
            details.add_quota_failure_violation(
                format!("region:{region}"),
                "the sidecar's own budget (--quota-rps, --quota-share) of calls to Cognito in the region",
            );
        }
        Cause::InvalidParameter
        | Cause::NotAuthorized
        | Cause::CognitoInternalError
        | Cause::CognitoUnavailable
        | Cause::CognitoUnreachable
        | Cause::SidecarAccessDenied
        | Cause::BlockedByWebAcl
        | Cause::SidecarCredentialsInvalid
        | Cause::SidecarClockSkewed
        | Cause::SidecarCredentialsExpired
        | Cause::SidecarCredentialsMissing
        | Cause::SidecarCredentialsUnavailable
        | Cause::SidecarMisconfigured
        | Cause::DeadlineExceeded
        | Cause::UnexpectedResponse
        | Cause::Overloaded
        | Cause::ShuttingDown
        | Cause::AuditUnavailable
        | Cause::CallerUnauthenticated(_)
        | Cause::CallerNotAllowed
        | Cause::SidecarInternalError => {}
    }
}

/// What a person reads at night: what happened and what to do. AWS's own words only where they cannot betray anything.
fn message(error: &SignOutError, pool: Option<&str>) -> String {
    let pool = pool.unwrap_or("that pool");
    let region = match &error.aws.region {
        Some(region) => format!("region {region}"),
        None => "its region".to_owned(),
    };
    let aws_says = error.aws.message.as_ref().map(|words| format!(" (Cognito: {words})")).unwrap_or_default();
    match &error.cause {
        Cause::InvalidRequest(violations) => {
            let fields: Vec<String> = violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
            format!("the request is not valid: {}", fields.join("; "))
        }
        Cause::InvalidParameter => format!("Cognito refused a parameter of the call for pool {pool}{aws_says}"),
        Cause::UserNotFound => format!("pool {pool} has no such user{aws_says}"),
        Cause::UserPoolNotFound => {
            let prefix = UserPoolId::parse(pool).ok().and_then(|pool| pool.region());
            let hint = match (prefix, &error.aws.region) {
                (Some(prefix), Some(asked)) if prefix != *asked => {
                    format!("; its id names region {prefix}: is --pool-region right?")
                }
                _ => "; is the id right, and is the pool in the sidecar's AWS account?".to_owned(),
            };
            format!("there is no pool {pool} in {region}, which was asked{hint}{aws_says}")
        }
        Cause::NotAuthorized => format!("Cognito refused to sign this user of pool {pool} out{aws_says}"),
        Cause::OperationNotEnabled => format!(
            "{region} does not take AdminUserGlobalSignOut for pool {pool}, as a replica does not; have the sidecar's \
             operator set --pool-region to the region that does"
        ),
        Cause::TooManyRequests => {
            format!("AWS throttles this account's calls to Cognito in {region}; try again after the delay in RetryInfo")
        }
        Cause::CognitoInternalError => format!("Cognito in {region} failed internally; try again"),
        Cause::CognitoUnavailable => format!("Cognito in {region} is unavailable; try again"),
        Cause::CognitoUnreachable => format!(
            "no complete answer came from Cognito in {region}: the network, DNS, a proxy or TLS stands in the way, or \
             it was too slow; try again"
        ),
        Cause::SidecarAccessDenied => {
            format!("the sidecar's AWS role may not call cognito-idp:AdminUserGlobalSignOut on pool {pool}")
        }
        Cause::BlockedByWebAcl => format!("an AWS WAF web ACL on pool {pool} refused the sidecar's call"),
        Cause::SidecarCredentialsInvalid => {
            "AWS does not accept the sidecar's credentials; its operator must replace them".to_owned()
        }
        Cause::SidecarClockSkewed => {
            "the sidecar's clock differs too much from AWS's; its operator must set it right".to_owned()
        }
        Cause::SidecarCredentialsExpired => {
            "the sidecar's AWS credentials have expired and are being loaded anew; try again".to_owned()
        }
        Cause::SidecarCredentialsMissing => {
            "the sidecar has no AWS credentials: none are configured in its environment, profile, web identity, \
             container or instance; `cognito-signout check` tells more"
                .to_owned()
        }
        Cause::SidecarCredentialsUnavailable => {
            "the sidecar's AWS credentials could not be loaded: their provider failed or was too slow; try again"
                .to_owned()
        }
        Cause::SidecarMisconfigured => {
            "the sidecar's AWS configuration is wrong, such as its endpoint; its log tells more".to_owned()
        }
        Cause::DeadlineExceeded => "the deadline passed before Cognito confirmed; `outcome` tells whether the user \
                                    may be signed out all the same"
            .to_owned(),
        Cause::UnexpectedResponse => format!(
            "what answered in place of Cognito in {region} is not Cognito, such as a proxy; do not take the user as \
             signed out"
        ),
        Cause::Overloaded => "too many calls are waiting in the sidecar; try again after the delay in RetryInfo".to_owned(),
        Cause::QuotaExhausted => format!(
            "the sidecar's budget of calls to Cognito in {region} is spent until after the deadline; try again after \
             the delay in RetryInfo"
        ),
        Cause::ShuttingDown => "the sidecar is shutting down; try again elsewhere or later".to_owned(),
        Cause::AuditUnavailable => "the sidecar must record every sign-out and cannot write its audit log; its operator \
                                    must see to it, try again later"
            .to_owned(),
        Cause::CallerUnauthenticated(why) => format!("the sidecar does not know who is calling: {why}"),
        Cause::CallerNotAllowed => format!("this caller may not sign users out of pool {pool}"),
        Cause::SidecarInternalError => "the sidecar has a bug; its log tells more".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::sign_out::{AwsAnswer, User};

    fn call() -> Call {
        Call::new(User::parse("eu-central-1_EXAMPLE02", "ada").unwrap(), Instant::now())
    }

    fn metadata(status: &Status) -> HashMap<String, String> {
        status.get_details_error_info().unwrap().metadata
    }

    #[test]
    fn a_delay_is_told_twice_for_people_and_for_grpc() {
        let error = SignOutError::new(Cause::TooManyRequests).retry_after(Duration::from_micros(1_500_400));
        let status = of_call(&error, &call());
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(Duration::from_micros(1_500_400))
        );
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "1501");
        assert!(status.get_details_quota_failure().is_some());
    }

    #[test]
    fn an_enormous_delay_fits_what_grpc_reads() {
        assert_eq!(pushback_ms(Duration::MAX), i32::MAX);
    }

    #[test]
    fn a_missing_pool_names_the_region_that_was_asked_and_hints_when_the_id_names_another() {
        let error = SignOutError {
            aws: Box::new(AwsAnswer { region: Some("us-west-2".parse().unwrap()), ..AwsAnswer::default() }),
            ..SignOutError::new(Cause::UserPoolNotFound)
        };
        let status = of_call(&error, &call());
        assert!(status.message().contains("us-west-2"), "{}", status.message());
        assert!(status.message().contains("eu-central-1: is --pool-region right?"), "{}", status.message());
        assert_eq!(metadata(&status)["region"], "us-west-2");
        assert_eq!(status.get_details_resource_info().unwrap().resource_name, "eu-central-1_EXAMPLE02");
    }

    #[test]
    fn whose_fault_a_deadline_is_depends_on_whether_anything_was_sent() {
        let call = call();
        let error = SignOutError::new(Cause::DeadlineExceeded);
        assert_eq!(metadata(&of_call(&error, &call))["fault"], "sidecar");
        call.note_sent();
        let after = metadata(&of_call(&error, &call));
        assert_eq!((after["fault"].as_str(), after["outcome"].as_str()), ("aws", "unknown"));
    }
}
