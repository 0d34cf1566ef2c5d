//! gRPC in and out: message to vocabulary, call, answer.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    deadline::Due,
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse, BulkAdminUserGlobalSignOutRequest,
        BulkAdminUserGlobalSignOutResponse, sign_out_service_server::SignOutService,
    },
    record::{Arrival, Method, Record, Recorder},
    sign_out::{Call, Cause, SignOut, SignOutError, SignedOut, User},
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
    recorder: Arc<Recorder>,
    call_timeout: Duration,
}

impl<S: SignOut, O: Observer> Desk<S, O> {
    /// A desk before `sign_out`. `call_timeout` is the deadline of a call that brings none.
    pub fn new(sign_out: S, observer: O, recorder: Arc<Recorder>, call_timeout: Duration) -> Self {
        Self { sign_out, observer, recorder, call_timeout }
    }

    /// The answer to one request, which has to be given by `deadline`.
    async fn serve(
        &self,
        arrival: Arrival,
        message: AdminUserGlobalSignOutRequest,
        deadline: Instant,
    ) -> Result<AdminUserGlobalSignOutResponse, Status> {
        let mut record = self.recorder.begin(arrival);
        if let Err(error) = record.can_be_kept() {
            return Err(self.refuse(record, error, deadline).await);
        }
        let user = match User::parse(&message.user_pool_id, &message.username) {
            Ok(user) => user,
            Err(violations) => return Err(self.refuse(record, violations.into(), deadline).await),
        };

        let call = record.becomes(Call::new(user, deadline));
        let answer = record.until_cut_off(async {
            let answer = timeout_at(call.deadline, self.sign_out.sign_out(&call)).await;
            answer.unwrap_or_else(|_elapsed| Err(SignOutError::new(Cause::DeadlineExceeded)))
        });
        let answer = answer.await;
        record.end(&answer, deadline).await;
        self.observer.answered(answer.as_ref().err().map(|error| &error.cause));
        match answer {
            Ok(signed_out) => Ok(signed_out.into()),
            Err(error) => Err(status::of_call(&error, &call)),
        }
    }

    /// The answer to a request that does not become a call.
    async fn refuse(&self, record: Record, error: SignOutError, deadline: Instant) -> Status {
        self.observer.answered(Some(&error.cause));
        let status = status::of_refusal(&error);
        record.end(&Err(error), deadline).await;
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
        let arrival = Arrival::of(Method::Unary, arrived, request.metadata());
        self.0.serve(arrival, request.into_inner(), deadline).await.map(Response::new)
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
