//! gRPC in and out: message to vocabulary, call, answer.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::Either};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    bulk,
    deadline::Due,
    panics,
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse, BulkAdminUserGlobalSignOutRequest,
        BulkAdminUserGlobalSignOutResponse, sign_out_service_server::SignOutService,
    },
    policy::{Access, Caller, Peer, Presented},
    record::{Arrival, Method, Record, Recorder},
    sign_out::{Call, Cause, FieldViolation, SignOut, SignOutError, SignedOut, User},
    status,
};

/// What is told of every answer, whatever it is: the health of the service follows it.
pub trait Observer: Send + Sync + 'static {
    /// A call was answered: `None` if the user is signed out, else why not.
    fn answered(&self, failure: Option<&Cause>);
}

/// The gRPC service.
pub struct Service<S, O> {
    desk: Arc<Desk<S, O>>,
    draining: CancellationToken,
}

impl<S: SignOut, O: Observer> Service<S, O> {
    /// Every call, and every item of a stream, goes over the same desk. Streams end when `draining` is cancelled.
    pub fn new(desk: Desk<S, O>, draining: CancellationToken) -> Self {
        Self { desk: Arc::new(desk), draining }
    }
}

type Answer = Result<AdminUserGlobalSignOutResponse, Status>;

/// What has become of a request.
enum Checked {
    Call { call: Call, allowed: bool, record: Box<Record> },
    Refused { error: SignOutError, record: Box<Record> },
}

/// Serves one sign-out, whether it came by itself or in a stream: checks, calls, records, answers.
pub struct Desk<S, O> {
    sign_out: S,
    observer: O,
    access: Access,
    recorder: Arc<Recorder>,
    call_timeout: Duration,
}

impl<S: SignOut, O: Observer> Desk<S, O> {
    /// A desk before `sign_out`. `call_timeout` is the deadline of a call that brings none.
    pub fn new(
        sign_out: S,
        observer: O,
        access: Access,
        recorder: Arc<Recorder>,
        call_timeout: Duration,
    ) -> Self {
        Self { sign_out, observer, access, recorder, call_timeout }
    }

    /// Whether a request becomes a call. Checked in this order: who is calling, are the fields well formed, may this caller
    /// touch that pool. `call` makes the call.
    fn check(
        &self,
        arrival: Arrival,
        presented: &Presented,
        message: Option<AdminUserGlobalSignOutRequest>,
        call: impl FnOnce(User) -> Call,
    ) -> Checked {
        let mut record = self.recorder.begin(arrival);
        match self.user(&mut record, presented, message) {
            Ok((caller, user)) => {
                let call = record.becomes(call(user));
                Checked::Call { allowed: self.access.allows(&caller, &call.user.pool), call, record }
            }
            Err(error) => Checked::Refused { error, record },
        }
    }

    /// Who calls, and whom they want to sign out.
    fn user(
        &self,
        record: &mut Record,
        presented: &Presented,
        message: Option<AdminUserGlobalSignOutRequest>,
    ) -> Result<(Caller, User), SignOutError> {
        let caller = self.access.identify(presented)?;
        if let Some(name) = caller.name() {
            record.called_by(name);
        }
        record.can_be_kept()?;
        let Some(message) = message else {
            let description = "is missing; it says whom to sign out".to_owned();
            return Err(vec![FieldViolation { field: "request", description }].into());
        };
        Ok((caller, User::parse(&message.user_pool_id, &message.username)?))
    }

    /// The answer to one request, which has to be given by `deadline`; the call's own may come sooner.
    fn serve(&self, checked: Checked, deadline: Instant) -> impl Future<Output = Answer> {
        match checked {
            Checked::Call { call, allowed, record } => Either::Left(self.answer(call, allowed, record)),
            Checked::Refused { error, record } => {
                Either::Right(Box::pin(self.refuse(error, record, deadline)).map(Err))
            }
        }
    }

    /// The answer to a request that has become a call.
    ///
    /// Thousands may wait here at one time: what is awaited afterwards is boxed, so that no call holds room for it
    /// meanwhile.
    async fn answer(&self, call: Call, allowed: bool, record: Box<Record>) -> Answer {
        let answer = if allowed {
            tokio::select! {
                biased;
                answer = record.log_within(panics::catch(self.sign_out.sign_out(&call))) => match answer {
                    Ok(answer) => answer,
                    Err(panicked) => Err(SignOutError::because(Cause::SidecarInternalError, panicked)),
                },
                () = call.expired() => Err(SignOutError::new(Cause::DeadlineExceeded)),
                () = record.cut_off() => Err(SignOutError::shutting_down()),
            }
        } else {
            Err(SignOutError::new(Cause::CallerNotAllowed))
        };
        Box::pin(record.end(&answer, call.deadline())).await;
        self.observer.answered(answer.as_ref().err().map(|error| &error.cause));
        match answer {
            Ok(signed_out) => Ok(signed_out.into()),
            Err(error) => Err(status::of_call(&error, &call)),
        }
    }

    /// The answer to a request that does not become a call.
    async fn refuse(&self, error: SignOutError, record: Box<Record>, deadline: Instant) -> Status {
        self.observer.answered(Some(&error.cause));
        let status = status::of_refusal(&error);
        record.end(&Err(error), deadline).await;
        status
    }
}

#[tonic::async_trait]
impl<S: SignOut, O: Observer> SignOutService for Service<S, O> {
    // By hand, for an `async fn` would hold the request for as long as the call waits.
    fn admin_user_global_sign_out<'s, 'f>(
        &'s self,
        request: Request<AdminUserGlobalSignOutRequest>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<AdminUserGlobalSignOutResponse>, Status>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        let Due { arrived, deadline } = Due::of(&request, self.desk.call_timeout);
        let arrival = Arrival::of(Method::Unary, arrived, request.metadata());
        let presented = presented(&request);
        let message = Some(request.into_inner());
        let checked = self.desk.check(arrival, &presented, message, |user| Call::new(user, deadline));
        Box::pin(self.desk.serve(checked, deadline).map(|answer| answer.map(Response::new)))
    }

    type BulkAdminUserGlobalSignOutStream =
        Pin<Box<dyn Stream<Item = Result<BulkAdminUserGlobalSignOutResponse, Status>> + Send>>;

    async fn bulk_admin_user_global_sign_out(
        &self,
        request: Request<Streaming<BulkAdminUserGlobalSignOutRequest>>,
    ) -> Result<Response<Self::BulkAdminUserGlobalSignOutStream>, Status> {
        let desk = self.desk.clone();
        let call_timeout = desk.call_timeout;
        // A stream without a deadline goes on for as long as it takes.
        let Due { arrived, deadline: limit } = Due::of(&request, Duration::MAX);
        let metadata = request.metadata().clone();
        let presented = Arc::new(presented(&request));
        // Nobody unknown holds a stream open. Each item asks again: a token may expire while it flows.
        if let Err(why) = desk.access.identify(&presented) {
            let record = desk.recorder.begin(Arrival::of(Method::Bulk, arrived, &metadata));
            return Err(desk.refuse(why.into(), record, limit).await);
        }
        let serve = move |message: Option<AdminUserGlobalSignOutRequest>| {
            let (desk, presented) = (desk.clone(), presented.clone());
            let arrival = Arrival::of(Method::Bulk, Instant::now(), &metadata);
            async move {
                let call = |user| Call::bulk(user, limit, call_timeout);
                let checked = desk.check(arrival, &presented, message, call);
                desk.serve(checked, limit).await
            }
        };
        let results = bulk::results(request.into_inner(), serve, limit, self.draining.clone());
        Ok(Response::new(Box::pin(results)))
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

/// What a call shows of who makes it. Shows nothing, and so never more than there is, if its connection told nothing.
pub fn presented<T>(request: &Request<T>) -> Presented {
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let mut authorization = request.metadata().get_all("authorization").iter();
    // Of two headers nobody knows which one counts.
    let authorization = match (authorization.next(), authorization.next()) {
        (Some(only), None) => Some(only.as_bytes()),
        _ => None,
    };
    Presented::new(peer.unwrap_or_else(|| Arc::new(Peer::Plain { loopback: false })), authorization)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics for one user, and signs all others out.
    struct Fragile;

    impl SignOut for Fragile {
        async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
            call.note_sent();
            assert!(call.user.name.reveal() != "mallory", "never heard of {}", call.user.name.reveal());
            Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
        }
    }

    struct Counter(Arc<std::sync::Mutex<Vec<Option<Cause>>>>);

    impl Observer for Counter {
        fn answered(&self, failure: Option<&Cause>) {
            self.0.lock().unwrap().push(failure.cloned());
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_call_and_tells_nothing_of_what_it_said() {
        use tonic_types::StatusExt as _;

        use crate::pb::{
            sign_out_service_client::SignOutServiceClient, sign_out_service_server::SignOutServiceServer,
        };

        let answered = Arc::default();
        let recorder = Recorder::new(crate::metrics::Metrics::new(false), None, None);
        let desk = Desk::new(
            Fragile,
            Counter(Arc::clone(&answered)),
            Access { policy: None, certificates: false, allow_pools: Vec::new() },
            recorder,
            Duration::from_secs(10),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(SignOutServiceServer::new(Service::new(desk, CancellationToken::new())))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
        );
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        let mut client = SignOutServiceClient::new(endpoint.connect().await.unwrap());
        let mut sign_out = async |username: &str| {
            client
                .admin_user_global_sign_out(AdminUserGlobalSignOutRequest {
                    user_pool_id: "eu-central-1_EXAMPLE02".to_owned(),
                    username: username.to_owned(),
                })
                .await
        };

        let status = sign_out("mallory").await.unwrap_err();

        let info = status.get_details_error_info().unwrap();
        assert_eq!((status.code(), info.reason.as_str()), (tonic::Code::Internal, "SIDECAR_INTERNAL_ERROR"));
        assert_eq!((&*info.metadata["outcome"], &*info.metadata["fault"]), ("unknown", "sidecar"));
        assert!(!format!("{status:?}").contains("mallory"));
        sign_out("ada").await.unwrap();
        assert_eq!(*answered.lock().unwrap(), [Some(Cause::SidecarInternalError), None]);
    }
}
