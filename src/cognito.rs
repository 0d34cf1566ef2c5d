//! The adapter: one attempt by the AWS SDK, and what came of it in our words. The only place that knows AWS.

mod classify;
mod clients;
mod credentials;
mod warm_up;

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_sdk_cognitoidentityprovider::{
    config::{ConfigBag, Intercept, RuntimeComponents},
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_runtime_api::client::interceptors::context::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextRef,
    BeforeTransmitInterceptorContextRef,
};
use aws_smithy_types::date_time::{DateTime, Format};
use tokio::time::Instant;

use self::{
    classify::{Answer, Body, classify, is_refusal},
    clients::{Clients, Regions, Timeouts},
};
pub use self::{
    clients::AwsSource,
    credentials::{Credentials, Figures as CredentialsFigures, Health as CredentialsHealth, Origin},
};
use crate::{
    config::AwsArgs,
    redact,
    sign_out::{
        AwsAnswer, BoxError, Call, Cause, Region, SignOut, SignOutError, SignedOut, User, UserPoolId,
    },
};

/// Whoever asks us to wait longer than this is not AWS, or does not mean it.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Cognito itself, by the AWS SDK. Each call of [`SignOut::sign_out`] is one attempt.
pub struct Cognito {
    clients: Arc<Clients>,
    regions: Regions,
    credentials: Credentials,
}

impl Cognito {
    /// Cognito as `source` and `args` tell to reach it, with `credentials` that are loaded in the background.
    pub fn new(source: Arc<AwsSource>, args: AwsArgs, credentials: Credentials) -> Self {
        // Credentials are waited for outside the attempt, and have a timeout of their own.
        let AwsArgs { pool_region, attempt_timeout, connect_timeout, credentials_timeout: _ } = args;
        let timeouts = Timeouts { connect: connect_timeout, attempt: attempt_timeout };
        let regions =
            Regions::new(pool_region.into_iter().map(|entry| (entry.pattern, entry.region)).collect());
        Self { clients: Arc::new(Clients::new(source, timeouts, credentials.clone())), regions, credentials }
    }

    /// The region that a pool is called in; `None` if neither its id nor the configuration tells.
    pub fn region_of(&self, pool: &UserPoolId) -> Option<Region> {
        self.regions.of(pool)
    }

    /// Does what the first call would otherwise wait for: entropy, credentials, endpoint rules, root certificates. Sends
    /// nothing but what loads the credentials; a failure is for the calls to meet.
    pub fn warm_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let (clients, credentials) = (self.clients.clone(), self.credentials.clone());
        async move {
            tokio::join!(warm_up::gather_entropy(), async {
                if credentials.get().await.is_ok() {
                    warm_up::walk(&clients.likeliest().await).await;
                }
            });
        }
    }

    async fn attempt(&self, call: &Call, region: &Region) -> Result<SignedOut, SignOutError> {
        // Waited for outside the attempt: a slow provider must not look like a slow Cognito.
        let used = self.credentials.get().await?;
        let client = self.clients.of(region).await;

        let exchange = Arc::new(Exchange::new(call.clone()));
        let result = client
            .admin_user_global_sign_out()
            .user_pool_id(call.user.pool.as_str())
            .username(call.user.name.reveal())
            .customize()
            .interceptor(Watch(exchange.clone()))
            .send()
            .await;

        let failure = match exchange.conclude(result, region) {
            Ok(signed_out) => return Ok(signed_out),
            Err(failure) => failure,
        };
        match failure.cause {
            // A cached token that has expired is not noticed by any cache: load anew, so that a next attempt can work.
            Cause::SidecarCredentialsExpired => {
                Err(SignOutError { cause: self.credentials.replace(&used).await, ..failure })
            }
            _ => Err(failure),
        }
    }
}

impl SignOut for Cognito {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        let Some(region) = self.regions.of(&call.user.pool) else {
            return Err(vec![UserPoolId::without_region()].into());
        };
        self.attempt(call, &region).await.map_err(|mut error| {
            error.aws.region = Some(region);
            error
        })
    }
}

/// What is seen of one attempt while the SDK makes it.
#[derive(Debug)]
struct Exchange {
    call: Call,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The deadline had passed when the request was ready: it was not sent.
    late: bool,
    /// The request was handed to the HTTP client.
    sent: bool,
    /// The answer, from the moment its headers are there.
    answer: Option<Answer>,
}

impl Exchange {
    fn new(call: Call) -> Self {
        Self { call, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of the attempt.
    fn conclude<T, E>(
        &self,
        result: Result<T, SdkError<E>>,
        region: &Region,
    ) -> Result<SignedOut, SignOutError>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let mut seen = self.seen();
        let answer = seen.answer.take();
        let username = self.call.user.name.reveal();

        let (metadata, timed_out) = match &result {
            Ok(_) => (None, false),
            Err(error) => (
                error.as_service_error().map(ProvideErrorMetadata::meta),
                matches!(error, SdkError::TimeoutError(_)),
            ),
        };
        // The code in the body counts for more than the header, which the SDK has read too.
        let code = metadata.and_then(|meta| meta.code().map(str::to_owned));
        let answer = answer.map(|answer| Answer { error_code: code.or(answer.error_code), ..answer });

        let identifier =
            |text: &Option<String>| text.clone().filter(|text| redact::is_identifier(text, username));
        let request_id = answer.as_ref().and_then(|answer| identifier(&answer.request_id));

        let cause = match &answer {
            Some(answer) if !timed_out => match classify(answer, SystemTime::now()) {
                None if result.is_ok() => {
                    return Ok(SignedOut {
                        aws_request_id: request_id,
                        at: answer.date,
                        region: region.clone(),
                    });
                }
                cause => cause.unwrap_or(Cause::UnexpectedResponse),
            },
            _ if seen.late => Cause::DeadlineExceeded,
            _ => match &result {
                Err(error) => cause_without_answer(error, seen.sent),
                // A success of which no answer was seen: the SDK has changed under us.
                Ok(_) => Cause::SidecarInternalError,
            },
        };
        if answer.as_ref().is_some_and(|answer| is_refusal(answer, &cause)) {
            self.call.note_refused();
        }

        let message = metadata
            .and_then(|meta| meta.message())
            .filter(|words| passes_on_aws_words(&cause) && redact::may_be_shown(words, username));
        Err(SignOutError {
            aws: Box::new(AwsAnswer {
                region: None,
                request_id,
                error_code: answer.as_ref().and_then(|answer| identifier(&answer.error_code)),
                http_status: answer.as_ref().map(|answer| answer.http_status),
                date: answer.as_ref().and_then(|answer| answer.date),
                message: message.map(str::to_owned),
            }),
            retry_after: answer.as_ref().and_then(|answer| answer.retry_after),
            source: result.err().map(|error| chain_for_log(&error, &self.call.user)),
            cause,
        })
    }
}

/// Only for modeled exceptions whose fault is the caller's: AWS's other words speak of our own roles and hosts.
fn passes_on_aws_words(cause: &Cause) -> bool {
    matches!(
        cause,
        Cause::InvalidParameter | Cause::UserNotFound | Cause::UserPoolNotFound | Cause::NotAuthorized
    )
}

/// Why no answer came.
fn cause_without_answer<E: Error + 'static>(error: &SdkError<E>, sent: bool) -> Cause
where
    SdkError<E>: Error,
{
    if let Some(cause) = credentials::cause_in_chain(error) {
        return cause;
    }
    match error {
        SdkError::ConstructionFailure(_) => Cause::SidecarMisconfigured,
        SdkError::DispatchFailure(failure) if failure.is_user() => Cause::SidecarMisconfigured,
        SdkError::TimeoutError(_) => Cause::CognitoUnreachable,
        // Whatever fails before the HTTP client has the request is of our making: the endpoint, or its signing.
        _ if !sent => Cause::SidecarMisconfigured,
        _ => Cause::CognitoUnreachable,
    }
}

/// The chain of causes by `Display`, which does not hold the raw response, and without what a log must not hold.
fn chain_for_log(error: &(dyn Error + 'static), user: &User) -> BoxError {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let told = source.to_string();
        // Many a wrapper repeats its source.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = source.source();
    }
    redact::for_log(&text, user.name.reveal()).into()
}

/// Watches one attempt from inside the SDK.
#[derive(Debug)]
struct Watch(Arc<Exchange>);

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "cognito-signout"
    }

    /// The last moment before the request is handed to the HTTP client.
    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // A timer that fires late must not let a late attempt start: it would end a session begun in the meantime.
        if Instant::now() >= self.0.call.deadline() {
            self.0.seen().late = true;
            return Err("the deadline had passed before the request was sent".into());
        }
        self.0.seen().sent = true;
        self.0.call.note_sent();
        Ok(())
    }

    /// The headers of the answer are there, its body is not.
    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let header = |name| response.headers().get(name);
        self.0.seen().answer = Some(Answer {
            http_status: response.status().as_u16(),
            error_code: header("x-amzn-errortype").map(classify::sanitize_code),
            request_id: header("x-amzn-requestid").or_else(|| header("x-amz-request-id")).map(str::to_owned),
            date: header("date")
                .and_then(|text| DateTime::from_str(text, Format::HttpDate).ok())
                .and_then(|date| SystemTime::try_from(date).ok()),
            retry_after: header("x-amz-retry-after")
                .and_then(|text| text.parse().ok())
                .map(|millis| Duration::from_millis(millis).min(LONGEST_RETRY_AFTER)),
            body: Body::Incomplete,
        });
        Ok(())
    }

    /// The whole answer is there.
    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // `None`: the SDK could not read the body to its end.
        let Some(bytes) = context.response().body().bytes() else { return Ok(()) };
        if let Some(answer) = &mut self.0.seen().answer {
            let (body, code) = classify::read_body(bytes);
            answer.body = body;
            answer.error_code = answer.error_code.take().or(code);
        }
        Ok(())
    }
}
