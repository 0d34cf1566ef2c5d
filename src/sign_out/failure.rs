//! Why a user was not signed out, or not for certain.

use std::time::{Duration, SystemTime};

use super::{BoxError, FieldViolation, Outcome, Region};

/// Why a user was not signed out, or not for certain.
///
/// `Display` tells the cause alone; the chain below it is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct SignOutError {
    /// What happened, told apart where a caller would act differently.
    pub cause: Cause,
    /// What is known of AWS's answer.
    pub aws: Box<AwsAnswer>,
    /// When to try again: what AWS asked for, or what our own backoff would take.
    pub retry_after: Option<Duration>,
    /// What lies below, for the log. May hold what no caller should see.
    #[source]
    pub source: Option<BoxError>,
}

/// What is known of AWS's answer to a failed attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsAnswer {
    /// The region that was asked.
    pub region: Option<Region>,
    /// AWS's request id.
    pub request_id: Option<String>,
    /// AWS's error code, such as `UserNotFoundException`.
    pub error_code: Option<String>,
    /// The HTTP status.
    pub http_status: Option<u16>,
    /// AWS's own clock.
    pub date: Option<SystemTime>,
    /// AWS's own words. Not for callers, unless they were seen to hold nothing secret.
    pub message: Option<String>,
}

impl SignOutError {
    /// A failure of which no more is known than its cause.
    pub fn new(cause: Cause) -> Self {
        Self { cause, aws: Box::default(), retry_after: None, source: None }
    }

    /// The process is on its way out: elsewhere the call may succeed at once, here a successor needs a moment.
    pub fn shutting_down() -> Self {
        Self::new(Cause::ShuttingDown).retry_after(Duration::from_millis(100))
    }

    /// The same, with what lies below it.
    pub fn because(cause: Cause, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..Self::new(cause) }
    }

    /// The same, with when to try again.
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Who has to act.
    pub fn fault(&self, outcome: Outcome) -> Fault {
        self.cause.fault(outcome)
    }
}

impl From<Vec<FieldViolation>> for SignOutError {
    fn from(violations: Vec<FieldViolation>) -> Self {
        Self::new(Cause::InvalidRequest(violations))
    }
}

/// What went wrong, told apart only where a caller or an operator would act differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Fields are missing or malformed. Found before AWS was called.
    #[error("the request is not valid")]
    InvalidRequest(Vec<FieldViolation>),
    /// Cognito refused a value.
    #[error("Cognito refused a parameter")]
    InvalidParameter,
    /// The pool has no such user.
    #[error("no such user in the pool")]
    UserNotFound,
    /// The region that was asked has no such pool.
    #[error("no such user pool in the region that was asked")]
    UserPoolNotFound,
    /// Cognito's own refusal, not IAM's.
    #[error("Cognito says that this is not authorized")]
    NotAuthorized,
    /// A replica region that does not take the operation.
    #[error("the operation is not enabled in the region that was asked")]
    OperationNotEnabled,
    /// AWS throttles the account.
    #[error("AWS throttles the account")]
    TooManyRequests,
    /// Cognito's own InternalErrorException.
    #[error("Cognito failed internally")]
    CognitoInternalError,
    /// AWS, or something before it, says that it cannot serve now.
    #[error("Cognito is unavailable")]
    CognitoUnavailable,
    /// No complete answer came.
    #[error("Cognito could not be reached")]
    CognitoUnreachable,
    /// IAM refused the sidecar's role.
    #[error("the sidecar's AWS role may not sign users out of this pool")]
    SidecarAccessDenied,
    /// A web ACL on the pool refused.
    #[error("a web ACL on the user pool refused the sidecar")]
    BlockedByWebAcl,
    /// AWS does not accept the credentials.
    #[error("AWS does not accept the sidecar's credentials")]
    SidecarCredentialsInvalid,
    /// The sidecar's clock is too far from AWS's.
    #[error("the sidecar's clock is wrong")]
    SidecarClockSkewed,
    /// The credentials have expired; others may be had.
    #[error("the sidecar's AWS credentials have expired")]
    SidecarCredentialsExpired,
    /// Nothing on this machine gives credentials.
    #[error("the sidecar has no AWS credentials")]
    SidecarCredentialsMissing,
    /// What gives credentials failed or was too slow.
    #[error("the sidecar's AWS credentials could not be loaded")]
    SidecarCredentialsUnavailable,
    /// The AWS configuration cannot be used.
    #[error("the sidecar's AWS configuration is wrong")]
    SidecarMisconfigured,
    /// The deadline passed.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// A complete answer that Cognito would not give.
    #[error("something answered that is not Cognito")]
    UnexpectedResponse,
    /// Too many calls wait already.
    #[error("too many calls are waiting")]
    Overloaded,
    /// Our own budget cannot serve the call before its deadline.
    #[error("the sidecar's budget of calls to Cognito is spent")]
    QuotaExhausted,
    /// The process is on its way out.
    #[error("the sidecar is shutting down")]
    ShuttingDown,
    /// An audit record is demanded and cannot be written.
    #[error("the audit log cannot be written")]
    AuditUnavailable,
    /// Nobody that may call, as far as the call shows; with what it lacks.
    #[error("the caller is not known: {0}")]
    CallerUnauthenticated(&'static str),
    /// The caller, or any caller, may not touch that pool.
    #[error("the caller may not touch the user pool")]
    CallerNotAllowed,
    /// A bug.
    #[error("a bug in the sidecar")]
    SidecarInternalError,
}

/// Who has to act on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller: the request, or the user it names.
    Caller,
    /// The sidecar's operator.
    Sidecar,
    /// Cognito, or the network to it.
    Aws,
}

impl Fault {
    /// The word that callers, metrics and logs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Sidecar => "sidecar",
            Self::Aws => "aws",
        }
    }
}

impl Cause {
    /// Every cause, each once, so that what is written about them can be checked to be complete.
    pub fn all() -> impl Iterator<Item = Self> {
        // A new cause does not compile until it has its place in this chain.
        std::iter::successors(Some(Self::InvalidRequest(Vec::new())), |cause| match cause {
            Self::InvalidRequest(_) => Some(Self::InvalidParameter),
            Self::InvalidParameter => Some(Self::UserNotFound),
            Self::UserNotFound => Some(Self::UserPoolNotFound),
            Self::UserPoolNotFound => Some(Self::NotAuthorized),
            Self::NotAuthorized => Some(Self::OperationNotEnabled),
            Self::OperationNotEnabled => Some(Self::TooManyRequests),
            Self::TooManyRequests => Some(Self::CognitoInternalError),
            Self::CognitoInternalError => Some(Self::CognitoUnavailable),
            Self::CognitoUnavailable => Some(Self::CognitoUnreachable),
            Self::CognitoUnreachable => Some(Self::SidecarAccessDenied),
            Self::SidecarAccessDenied => Some(Self::BlockedByWebAcl),
            Self::BlockedByWebAcl => Some(Self::SidecarCredentialsInvalid),
            Self::SidecarCredentialsInvalid => Some(Self::SidecarClockSkewed),
            Self::SidecarClockSkewed => Some(Self::SidecarCredentialsExpired),
            Self::SidecarCredentialsExpired => Some(Self::SidecarCredentialsMissing),
            Self::SidecarCredentialsMissing => Some(Self::SidecarCredentialsUnavailable),
            Self::SidecarCredentialsUnavailable => Some(Self::SidecarMisconfigured),
            Self::SidecarMisconfigured => Some(Self::DeadlineExceeded),
            Self::DeadlineExceeded => Some(Self::UnexpectedResponse),
            Self::UnexpectedResponse => Some(Self::Overloaded),
            Self::Overloaded => Some(Self::QuotaExhausted),
            Self::QuotaExhausted => Some(Self::ShuttingDown),
            Self::ShuttingDown => Some(Self::AuditUnavailable),
            Self::AuditUnavailable => Some(Self::CallerUnauthenticated("")),
            Self::CallerUnauthenticated(_) => Some(Self::CallerNotAllowed),
            Self::CallerNotAllowed => Some(Self::SidecarInternalError),
            Self::SidecarInternalError => None,
        })
    }

    /// Who has to act.
    pub fn fault(&self, outcome: Outcome) -> Fault {
        match self {
            Self::InvalidRequest(_)
            | Self::InvalidParameter
            | Self::UserNotFound
            | Self::UserPoolNotFound
            | Self::NotAuthorized
            | Self::CallerUnauthenticated(_)
            | Self::CallerNotAllowed => Fault::Caller,
            Self::TooManyRequests
            | Self::CognitoInternalError
            | Self::CognitoUnavailable
            | Self::CognitoUnreachable
            | Self::UnexpectedResponse => Fault::Aws,
            // Time that passed in our own queue, or waiting for credentials, is not Cognito's.
            Self::DeadlineExceeded => match outcome {
                Outcome::NotSent => Fault::Sidecar,
                Outcome::Refused | Outcome::Unknown => Fault::Aws,
            },
            Self::OperationNotEnabled
            | Self::SidecarAccessDenied
            | Self::BlockedByWebAcl
            | Self::SidecarCredentialsInvalid
            | Self::SidecarClockSkewed
            | Self::SidecarCredentialsExpired
            | Self::SidecarCredentialsMissing
            | Self::SidecarCredentialsUnavailable
            | Self::SidecarMisconfigured
            | Self::Overloaded
            | Self::QuotaExhausted
            | Self::ShuttingDown
            | Self::AuditUnavailable
            | Self::SidecarInternalError => Fault::Sidecar,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TooManyRequests
            | Self::CognitoInternalError
            | Self::CognitoUnavailable
            | Self::CognitoUnreachable
            | Self::SidecarCredentialsExpired
            | Self::SidecarCredentialsUnavailable
            | Self::DeadlineExceeded
            | Self::Overloaded
            | Self::QuotaExhausted
            | Self::ShuttingDown
            | Self::AuditUnavailable => true,
            Self::InvalidRequest(_)
            | Self::InvalidParameter
            | Self::UserNotFound
            | Self::UserPoolNotFound
            | Self::NotAuthorized
            | Self::OperationNotEnabled
            | Self::SidecarAccessDenied
            | Self::BlockedByWebAcl
            | Self::SidecarCredentialsInvalid
            | Self::SidecarClockSkewed
            | Self::SidecarCredentialsMissing
            | Self::SidecarMisconfigured
            | Self::UnexpectedResponse
            | Self::CallerUnauthenticated(_)
            | Self::CallerNotAllowed
            | Self::SidecarInternalError => false,
        }
    }

    /// Whether it is the sidecar's own credentials that stand in the way of every call.
    pub fn is_about_credentials(&self) -> bool {
        matches!(
            self,
            Self::SidecarCredentialsInvalid
                | Self::SidecarCredentialsExpired
                | Self::SidecarCredentialsMissing
                | Self::SidecarCredentialsUnavailable
        )
    }
}
