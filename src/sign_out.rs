//! The vocabulary: whom to sign out, what came of it, and why not. Knows neither gRPC nor AWS.

use std::{
    error::Error,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use opentelemetry::trace::SpanContext;
use opentelemetry_sdk::trace::Span;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory as _};

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

/// How urgent a call is. The more urgent is the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for the answer.
    Interactive,
    /// One of many, which take what the others leave.
    Bulk,
}

/// One sign-out asked for, until it is answered. A clone is the same call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whom to sign out.
    pub user: User,
    /// The span that what is done for the call belongs to; nothing where no traces are made.
    pub span: Option<SpanContext>,
    progress: Arc<Progress>,
}

/// What is known of a call by all that hold it.
#[derive(Debug)]
struct Progress {
    /// One lock for all of it: whether another call may still join is decided in the same moment as sending is.
    state: watch::Sender<State>,
    /// The progress of the call that is made for this one and others, once there is one.
    joined: OnceLock<Arc<Progress>>,
    /// Since when an attempt waits for its turn, if one does, and what ends with the wait.
    waiting: Mutex<Option<(Instant, Option<Span>)>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    terms: Terms,
    sent: u32,
    refused: u32,
    /// When the pace first let it through.
    released: Option<Instant>,
    /// When the pace will let it through, as far as can be told.
    expected: Option<Instant>,
}

/// Until when those who wait for a call do so. Both for a call that was joined.
#[derive(Debug, Clone, Copy, Default)]
struct Terms {
    interactive: Option<Instant>,
    bulk: Option<BulkTerms>,
}

#[derive(Debug, Clone, Copy)]
struct BulkTerms {
    /// When the whole stream must have been answered.
    limit: Instant,
    /// How long one call may take from when the pace lets it through.
    call_timeout: Duration,
}

impl Terms {
    fn class(&self) -> Class {
        if self.interactive.is_some() { Class::Interactive } else { Class::Bulk }
    }

    fn deadline(&self, released: Option<Instant>) -> Option<Instant> {
        let bulk = self.bulk.map(|bulk| match released {
            Some(at) => bulk.limit.min(at + bulk.call_timeout),
            None => bulk.limit,
        });
        self.interactive.max(bulk)
    }

    fn add(&mut self, other: Self) {
        self.interactive = self.interactive.max(other.interactive);
        self.bulk = match (self.bulk, other.bulk) {
            (Some(ours), Some(theirs)) => Some(BulkTerms {
                limit: ours.limit.max(theirs.limit),
                call_timeout: ours.call_timeout.max(theirs.call_timeout),
            }),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

impl Call {
    /// A call that somebody waits for until `deadline`, and of which nothing has been sent.
    pub fn new(user: User, deadline: Instant) -> Self {
        Self::on_terms(user, Terms { interactive: Some(deadline), bulk: None })
    }

    /// One call of many, which are to be done by `limit`. Its own time, `call_timeout`, begins when the pace lets it
    /// through: a long queue must not use it up.
    pub fn bulk(user: User, limit: Instant, call_timeout: Duration) -> Self {
        Self::on_terms(user, Terms { interactive: None, bulk: Some(BulkTerms { limit, call_timeout }) })
    }

    fn on_terms(user: User, terms: Terms) -> Self {
        let state = watch::Sender::new(State { terms, ..State::default() });
        let progress = Progress { state, joined: OnceLock::new(), waiting: Mutex::default() };
        Self { user, span: None, progress: Arc::new(progress) }
    }

    /// The same, as a part of a span.
    pub fn within(self, span: Option<SpanContext>) -> Self {
        Self { span, ..self }
    }

    /// A call that is made for this one, and for others that [join](Self::admit) it; its attempts are told as part of
    /// this one's span.
    pub fn joint(&self) -> Self {
        let joint =
            Self::on_terms(self.user.clone(), self.progress.state.borrow().terms).within(self.span.clone());
        self.follow(&joint);
        joint
    }

    /// Lets `other` join, unless a request was sent already: a token that was issued after it would survive. The two
    /// must be about the same user.
    ///
    /// Decided under the lock that [`note_sent`](Self::note_sent) takes, so that whatever is sent for a call is sent
    /// after it was admitted.
    pub fn admit(&self, other: &Self) -> bool {
        let terms = other.progress.state.borrow().terms;
        let admitted = self.progress.state.send_if_modified(|state| {
            let joinable = state.sent == 0;
            if joinable {
                state.terms.add(terms);
            }
            joinable
        });
        if admitted {
            other.follow(self);
        }
        admitted
    }

    /// Whether the two are the same call, not only alike.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }

    /// From now on what happens to `joint` happens to this call.
    fn follow(&self, joint: &Self) {
        if self.progress.joined.set(joint.progress.clone()).is_ok() {
            // Whoever waits for a change must look elsewhere.
            self.progress.state.send_modify(|_| {});
        }
    }

    /// What has happened to the call, or to the one that is made for it.
    fn state(&self) -> &watch::Sender<State> {
        &self.progress.joined.get().unwrap_or(&self.progress).state
    }

    /// When the answer must have been given. No attempt starts after it. It may come nearer when the pace lets the
    /// call through, and move away when another call joins.
    pub fn deadline(&self) -> Instant {
        let released = self.state().borrow().released;
        let terms = self.progress.state.borrow().terms;
        // One of the two is always there.
        terms.deadline(released).unwrap_or_else(Instant::now)
    }

    /// Waits until the deadline has passed.
    pub async fn expired(&self) {
        loop {
            let mut changes = self.state().subscribe();
            let deadline = self.deadline();
            if Instant::now() >= deadline {
                return;
            }
            if self.class() == Class::Interactive {
                // Nothing moves it nearer.
                sleep_until(deadline).await;
            } else {
                // Our own sender lives as long as we do, so this is never the error of a lost one.
                let _ = timeout_at(deadline, changes.changed()).await;
            }
        }
    }

    /// How urgent it is: as urgent as the most urgent that has joined.
    pub fn class(&self) -> Class {
        self.progress.state.borrow().terms.class()
    }

    /// Waits until it is urgent.
    pub async fn promoted(&self) {
        let mut changes = self.progress.state.subscribe();
        let _ = changes.wait_for(|state| state.terms.class() == Class::Interactive).await;
    }

    /// Notes when the pace will let the call through, as far as can be told.
    pub fn note_expected(&self, at: Instant) {
        self.progress.state.send_modify(|state| state.expected = Some(at));
    }

    /// Notes that the pace has let the call through.
    pub fn note_released(&self) {
        self.progress.state.send_modify(|state| {
            state.expected = None;
            state.released.get_or_insert_with(Instant::now);
        });
    }

    /// Waits until it is clear that the pace lets nothing through for this call before its deadline, although it may
    /// for others that wait for the same; tells when it will.
    pub async fn hopeless(&self) -> Instant {
        let deadline = self.progress.state.borrow().terms.deadline(None);
        let mut changes = self.state().subscribe();
        loop {
            let state = changes.borrow_and_update().clone();
            if state.sent == 0
                && let (Some(at), Some(deadline)) = (state.expected, deadline)
                && at > deadline
            {
                return at;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Notes that a request is handed to the HTTP client: from now on Cognito may act, and nobody may join.
    pub fn note_sent(&self) {
        self.progress.state.send_modify(|state| state.sent += 1);
    }

    /// Notes that AWS answered a request that was sent, and that the answer rules out that it acted.
    pub fn note_refused(&self) {
        self.progress.state.send_modify(|state| state.refused += 1);
    }

    /// How many requests were handed to the HTTP client.
    pub fn attempts(&self) -> u32 {
        self.state().borrow().sent
    }

    /// Notes that an attempt waits for its turn from now on, which may have a span.
    pub fn note_waiting(&self, span: Option<Span>) {
        *self.waiting() = Some((Instant::now(), span));
    }

    /// Since when the attempt has waited that now waits no longer; `None` if none did.
    pub fn note_turn(&self) -> Option<(Instant, Option<Span>)> {
        self.waiting().take()
    }

    fn waiting(&self) -> MutexGuard<'_, Option<(Instant, Option<Span>)>> {
        self.progress.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failure of this call says about the user's sessions.
    pub fn outcome(&self) -> Outcome {
        let state = self.state().borrow();
        match state.sent {
            0 => Outcome::NotSent,
            sent if sent == state.refused => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }
}

/// Whether a user whose sign-out failed may be signed out all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly nothing reached Cognito.
    NotSent,
    /// Every request that was sent was refused by AWS.
    Refused,
    /// At least one request was sent whose effect is not known.
    Unknown,
}

impl Outcome {
    /// The word that callers and logs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// A user in a user pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// The pool.
    pub pool: UserPoolId,
    /// The user name, an alias, or the `sub`.
    pub name: Username,
}

impl User {
    /// Parses both fields of a request; every field that is wrong is told, not only the first.
    pub fn parse(user_pool_id: &str, username: &str) -> Result<Self, Vec<FieldViolation>> {
        match (UserPoolId::parse(user_pool_id), Username::parse(username)) {
            (Ok(pool), Ok(name)) => Ok(Self { pool, name }),
            (pool, name) => Err([pool.err(), name.err()].into_iter().flatten().collect()),
        }
    }
}

/// A field of a request that is missing or malformed. Never repeats the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's name in the protobuf message.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub description: String,
}

/// The id of a user pool: 1-55 characters, `[A-Za-z0-9_-]+_[0-9a-zA-Z]+`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserPoolId(Arc<str>);

impl UserPoolId {
    const FIELD: &'static str = "user_pool_id";

    /// The id in `text`, or what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, FieldViolation> {
        let wrong = |description: &str| {
            Err(FieldViolation { field: Self::FIELD, description: description.to_owned() })
        };
        if text.is_empty() {
            return wrong("is missing; it is the id of a user pool, such as eu-central-1_EXAMPLE02");
        }
        if text.len() > 55 {
            return wrong("is too long: a user pool id has at most 55 characters");
        }
        let well_formed = text.rsplit_once('_').is_some_and(|(prefix, suffix)| {
            !prefix.is_empty()
                && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
                && !suffix.is_empty()
                && suffix.bytes().all(|b| b.is_ascii_alphanumeric())
        });
        if !well_formed {
            return wrong(
                "is not a user pool id: it is the region, an underscore, and letters and digits, such as \
                 eu-central-1_EXAMPLE02",
            );
        }
        Ok(Self(text.into()))
    }

    /// A pool in whose prefix there is no region, and for which none was configured.
    pub fn without_region() -> FieldViolation {
        FieldViolation {
            field: Self::FIELD,
            description:
                "does not begin with a region such as eu-central-1, and the sidecar was told none for it by \
                          --pool-region"
                    .to_owned(),
        }
    }

    /// The region that the id names, if its prefix looks like one.
    pub fn region(&self) -> Option<Region> {
        let (prefix, _) = self.0.rsplit_once('_')?;
        prefix.parse().ok()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserPoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user name, exactly as the caller gave it: 1-128 letters, marks, symbols, numbers and punctuation characters.
///
/// Personal data: it is shown by neither `Debug` nor `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Username(Arc<str>);

impl Username {
    const FIELD: &'static str = "username";

    /// The name in `text`, or what is wrong with it. Nothing is trimmed or folded: a pool may be case-sensitive, and
    /// another spelling may be another user.
    pub fn parse(text: &str) -> Result<Self, FieldViolation> {
        use GeneralCategoryGroup::{Letter, Mark, Number, Punctuation, Symbol};

        let wrong = |description: String| Err(FieldViolation { field: Self::FIELD, description });
        if text.is_empty() {
            return wrong("is missing; it is a user name, an alias of the user, or the sub".to_owned());
        }
        for (index, char) in text.chars().enumerate() {
            if index == 128 {
                return wrong("is too long: a user name has at most 128 characters".to_owned());
            }
            if !matches!(char.general_category_group(), Letter | Mark | Symbol | Number | Punctuation) {
                return wrong(format!(
                    "has a character that no user name has, at position {}: only letters, marks, symbols, numbers \
                     and punctuation are allowed, so neither spaces nor control characters",
                    index + 1
                ));
            }
        }
        Ok(Self(text.into()))
    }

    /// The name itself, for Cognito alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Username(_)")
    }
}

/// An AWS region. It becomes part of a host name, hence the strict alphabet: `[a-z]{2,}(-[a-z]+)+-[0-9]+`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Region(Arc<str>);

impl Region {
    /// The region's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Region {
    type Err = NotARegion;

    fn from_str(text: &str) -> Result<Self, NotARegion> {
        let lower = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
        let parts: Vec<&str> = text.split('-').collect();
        match parts.as_slice() {
            [first, middle @ .., last]
                if first.len() >= 2
                    && lower(first)
                    && !middle.is_empty()
                    && middle.iter().all(lower)
                    && !last.is_empty()
                    && last.bytes().all(|b| b.is_ascii_digit())
                    // A label of a host name has at most 63 characters.
                    && text.len() <= 63 =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(NotARegion(text.to_owned())),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that does not look like a region.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not look like an AWS region, such as eu-central-1")]
pub struct NotARegion(String);

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

#[cfg(test)]
mod tests {
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
