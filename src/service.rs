//! gRPC in and out: message to vocabulary, call, answer.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{error, info, warn};

use crate::{
    deadline::Due,
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse, BulkAdminUserGlobalSignOutRequest,
        BulkAdminUserGlobalSignOutResponse, sign_out_service_server::SignOutService,
    },
    sign_out::{Call, Cause, Fault, SignOut, SignOutError, SignedOut, User},
    status,
};

/// What is told of every answer, whatever it is: the health of the service follows it.
pub trait Observer: Send + Sync + 'static {
    /// A call was answered: `None` if the user is signed out, else why not.
    fn answered(&self, failure: Option<&Cause>);
}

/// The gRPC service.
pub struct Service<S, O>(Arc<Desk<S, O>>);

impl<S: SignOut, O: Observer> Service<S, O> {
    /// Every call, and every item of a stream, goes over the same desk.
    pub fn new(desk: Desk<S, O>) -> Self {
        Self(Arc::new(desk))
    }
}

/// Serves one sign-out, whether it came by itself or in a stream: checks, calls, records, answers.
pub struct Desk<S, O> {
    sign_out: S,
    observer: O,
    call_timeout: Duration,
}

impl<S: SignOut, O: Observer> Desk<S, O> {
    /// A desk before `sign_out`. `call_timeout` is the deadline of a call that brings none.
    pub fn new(sign_out: S, observer: O, call_timeout: Duration) -> Self {
        Self { sign_out, observer, call_timeout }
    }

    /// The answer to one request that arrived then and has to be answered by `deadline`.
    async fn serve(
        &self,
        message: AdminUserGlobalSignOutRequest,
        arrived: Instant,
        deadline: Instant,
    ) -> Result<AdminUserGlobalSignOutResponse, Status> {
        let user = match User::parse(&message.user_pool_id, &message.username) {
            Ok(user) => user,
            Err(violations) => return Err(self.refuse(&violations.into())),
        };

        let call = Call::new(user, deadline);
        let mut record = Record::begin(&call, arrived);
        let answer = timeout_at(call.deadline, self.sign_out.sign_out(&call)).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(SignOutError::new(Cause::DeadlineExceeded)));
        record.end(&answer);
        self.observer.answered(answer.as_ref().err().map(|error| &error.cause));
        match answer {
            Ok(signed_out) => Ok(signed_out.into()),
            Err(error) => Err(status::of_call(&error, &call)),
        }
    }

    /// The answer to a request that does not become a call.
    fn refuse(&self, error: &SignOutError) -> Status {
        self.observer.answered(Some(&error.cause));
        let status = status::of_refusal(error);
        let (code, reason) = status::code_and_reason(&error.cause);
        info!(code = status::code_name(code), reason, "refused: {}", status.message());
        status
    }
}

#[tonic::async_trait]
impl<S: SignOut, O: Observer> SignOutService for Service<S, O> {
    async fn admin_user_global_sign_out(
        &self,
        request: Request<AdminUserGlobalSignOutRequest>,
    ) -> Result<Response<AdminUserGlobalSignOutResponse>, Status> {
        let Due { arrived, deadline } = Due::of(&request, self.0.call_timeout);
        self.0.serve(request.into_inner(), arrived, deadline).await.map(Response::new)
    }

    type BulkAdminUserGlobalSignOutStream =
        Pin<Box<dyn Stream<Item = Result<BulkAdminUserGlobalSignOutResponse, Status>> + Send>>;

    async fn bulk_admin_user_global_sign_out(
        &self,
        _: Request<Streaming<BulkAdminUserGlobalSignOutRequest>>,
    ) -> Result<Response<Self::BulkAdminUserGlobalSignOutStream>, Status> {
        Err(Status::unimplemented(
            "BulkAdminUserGlobalSignOut is not served yet; call AdminUserGlobalSignOut for each user",
        ))
    }
}

impl From<SignedOut> for AdminUserGlobalSignOutResponse {
    fn from(signed_out: SignedOut) -> Self {
        Self {
            aws_request_id: signed_out.aws_request_id.unwrap_or_default(),
            signed_out_at: signed_out.at.map(prost_types::Timestamp::from),
        }
    }
}

/// Writes the one log line of a call, also of one that its caller abandons: then the future is dropped, and this with it.
/// The username is in none of them.
struct Record<'a> {
    call: &'a Call,
    arrived: Instant,
    ended: bool,
}

impl<'a> Record<'a> {
    fn begin(call: &'a Call, arrived: Instant) -> Self {
        Self { call, arrived, ended: false }
    }

    fn end(&mut self, answer: &Result<SignedOut, SignOutError>) {
        self.ended = true;
        let user_pool_id = self.call.user.pool.as_str();
        let attempts = self.call.attempts();
        let duration_ms = self.duration_ms();
        match answer {
            Ok(signed_out) => info!(
                user_pool_id,
                region = signed_out.region.as_str(),
                aws_request_id = signed_out.aws_request_id,
                signed_out_at = signed_out.at.map(seconds_since_epoch),
                attempts,
                duration_ms,
                "signed out"
            ),
            Err(error) => {
                let outcome = self.call.outcome();
                let fault = error.fault(outcome);
                let (code, reason) = status::code_and_reason(&error.cause);
                let causes = error.source.as_ref().map(tracing::field::display);
                // A level is a constant of its line: the caller's own faults are nobody's alarm.
                macro_rules! log {
                    ($level:ident) => {
                        $level!(
                            user_pool_id,
                            region = error.aws.region.as_ref().map(|region| region.as_str()),
                            code = status::code_name(code),
                            reason,
                            fault = fault.as_str(),
                            outcome = outcome.as_str(),
                            aws_request_id = error.aws.request_id,
                            aws_error_code = error.aws.error_code,
                            http_status = error.aws.http_status,
                            attempts,
                            duration_ms,
                            causes,
                            "not signed out: {error}"
                        )
                    };
                }
                match (fault, &error.cause) {
                    (_, Cause::SidecarInternalError) => log!(error),
                    (Fault::Caller, _) => log!(info),
                    (Fault::Sidecar | Fault::Aws, _) => log!(warn),
                }
            }
        }
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        info!(
            user_pool_id = self.call.user.pool.as_str(),
            code = status::code_name(tonic::Code::Cancelled),
            outcome = self.call.outcome().as_str(),
            attempts = self.call.attempts(),
            duration_ms = self.duration_ms(),
            "the caller went away"
        );
    }
}

fn seconds_since_epoch(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
