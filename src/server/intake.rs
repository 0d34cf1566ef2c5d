//! What every request passes before a service sees it: it is counted, its message has to come in time and in bounds, and
//! a panic of whatever serves it ends it alone.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, future::Either};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, Service},
    metadata::MetadataMap,
};
use tracing::{error, info};

use super::connection::{Arriving, Connection, UnderWay};
use crate::{
    deadline, panics,
    policy::Peer,
    record::{Arrival, Method, Recorder},
    sign_out::{BoxError, Cause, SignOutError},
    status,
};

/// Messages of calls that have not arrived in full may take so much, all together.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;
/// Bulk streams at one time; each holds back up to one message.
const MAX_BULK_STREAMS: usize = 1024;
/// Streams of reflection, which answers at length and only to people.
const MAX_REFLECTION_STREAMS: usize = 64;
/// Everything else: checks and watches of health, and methods that do not exist.
const MAX_OTHERS: usize = 4096;

/// How much of everything there may be in the whole process.
pub(super) struct Rules {
    call_timeout: Duration,
    closing: CancellationToken,
    recorder: Option<Arc<Recorder>>,
    calls: Arc<Semaphore>,
    bulk_streams: Arc<Semaphore>,
    reflection: Arc<Semaphore>,
    others: Arc<Semaphore>,
    held: AtomicUsize,
}

impl Rules {
    /// `calls` is how many single sign-outs there may be in all, whatever they are doing. Once `closing` is cancelled, a
    /// call whose message has not arrived is told that the sidecar is shutting down. Sign-outs that are refused leave a
    /// record with `recorder`; `None` where they are not served at all.
    pub(super) fn new(
        calls: usize,
        call_timeout: Duration,
        closing: CancellationToken,
        recorder: Option<Arc<Recorder>>,
    ) -> Arc<Self> {
        let at_most = |n: usize| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            call_timeout,
            closing,
            recorder,
            calls: at_most(calls),
            bulk_streams: at_most(MAX_BULK_STREAMS),
            reflection: at_most(MAX_REFLECTION_STREAMS),
            others: at_most(MAX_OTHERS),
            held: AtomicUsize::new(0),
        })
    }

    /// What a request with such headers may turn out not to have asked for; `None` if it is not about a sign-out.
    fn unasked(&self, kind: Kind, headers: &HeaderMap) -> Option<Unasked> {
        let method = match kind {
            Kind::Call => Method::Unary,
            Kind::Bulk => Method::Bulk,
            Kind::Reflection | Kind::Other => return None,
        };
        let (recorder, arrived) = (self.recorder.clone()?, Instant::now());
        // As most callers are not traced, this holds nothing for most.
        let mut trace = HeaderMap::new();
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = headers.get(name) {
                trace.insert(name, value.clone());
            }
        }
        let deadline = deadline::brought_by(headers, arrived);
        Some(Unasked { recorder, method, arrived, deadline, trace })
    }

    fn of(&self, kind: Kind) -> Arc<Semaphore> {
        match kind {
            Kind::Call => &self.calls,
            Kind::Bulk => &self.bulk_streams,
            Kind::Reflection => &self.reflection,
            Kind::Other => &self.others,
        }
        .clone()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call,
    Bulk,
    Reflection,
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        match path {
            "/cognito.signout.v1.SignOutService/AdminUserGlobalSignOut" => Self::Call,
            "/cognito.signout.v1.SignOutService/BulkAdminUserGlobalSignOut" => Self::Bulk,
            _ if path.starts_with("/grpc.reflection.") => Self::Reflection,
            _ => Self::Other,
        }
    }
}

/// The services, as one connection sees them.
pub(super) struct Intake<S> {
    services: S,
    peer: Arc<Peer>,
    connection: Arc<Connection>,
    rules: Arc<Rules>,
}

impl<S> Intake<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + 'static,
{
    pub(super) fn new(services: S, peer: Peer, connection: Arc<Connection>, rules: Arc<Rules>) -> Self {
        Self { services, peer: Arc::new(peer), connection, rules }
    }

    /// Begins to serve a request whose headers have come.
    ///
    /// Combinators and no `async` blocks, each of which would hold what it waits for twice: thousands may wait.
    pub(super) fn take<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + use<S, B>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let kind = Kind::of(request.uri().path());
        let mut under_way = self.connection.begin(matches!(kind, Kind::Call | Kind::Bulk));
        let unasked = self.rules.unasked(kind, request.headers());
        let Ok(permit) = self.rules.of(kind).try_acquire_owned() else {
            let status = refuse(unasked, overloaded());
            under_way.worked();
            return Either::Left(ready(Ok(answer(status.into_http(), under_way, None))));
        };

        let due = match kind {
            // Its own deadline is kept elsewhere; and with a day's patience nobody needs a day to send a few bytes.
            Kind::Call => Some(Instant::now() + self.rules.call_timeout),
            Kind::Bulk | Kind::Reflection | Kind::Other => None,
        };
        let rules = self.rules.clone();
        let arriving = (kind == Kind::Call).then(|| self.connection.arriving());
        // A stream asks item by item.
        let unasked = unasked.filter(|_| kind == Kind::Call);
        let mut request = request.map(|body| {
            Body::new(Message { body, kind, due, patience: None, held: 0, arriving, unasked, rules })
        });
        request.extensions_mut().insert(self.peer.clone());
        // tonic's services are ready at any time.
        let mut services = self.services.clone();
        let cut_off = deadline::note(&mut request);
        let served = deadline::keep(services.call(request), cut_off);
        Either::Right(panics::catch(served).map(move |served| {
            let response = match served {
                Ok(Ok(response)) => response,
                Err(panics::Panicked) => {
                    error!("a call was ended by a panic");
                    status::of_bug().into_http()
                }
            };
            // A failure has its status in the headers, a success in the trailers.
            if kind == Kind::Call && !response.headers().contains_key(Status::GRPC_STATUS) {
                under_way.succeeded();
            }
            if kind != Kind::Bulk {
                under_way.worked();
            }
            Ok(answer(response, under_way, Some(permit)))
        }))
    }
}

fn overloaded() -> SignOutError {
    SignOutError::new(Cause::Overloaded).retry_after(Duration::from_secs(1))
}

/// The status of a request that goes no further than this.
fn refuse(unasked: Option<Unasked>, error: SignOutError) -> Status {
    let status = status::of_refusal(&error);
    match unasked {
        Some(unasked) => unasked.refused(error),
        None => {
            let (code, reason) = status::code_and_reason(&error.cause);
            info!(code = status::code_name(code), reason, "refused: {}", status.message());
        }
    }
    status
}

/// A sign-out of which only the headers have come: whom it is about is in its message.
struct Unasked {
    recorder: Arc<Recorder>,
    method: Method,
    arrived: Instant,
    /// That the caller brought.
    deadline: Option<Instant>,
    /// Of the headers, those that say which trace it belongs to.
    trace: HeaderMap,
}

impl Unasked {
    fn refused(self, error: SignOutError) {
        let Self { recorder, method, arrived, deadline: _, trace } = self;
        let arrival = Arrival::of(method, arrived, &MetadataMap::from_headers(trace));
        recorder.begin(arrival).end_unasked(error);
    }

    /// Whether its own deadline has passed, which is answered by [`deadline::keep`].
    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// A request's message on its way in.
struct Message<B> {
    body: B,
    kind: Kind,
    due: Option<Instant>,
    /// Made when there is something to wait for, which for most messages there is not.
    patience: Option<Patience>,
    held: usize,
    arriving: Option<Arriving>,
    /// Until all of it is here.
    unasked: Option<Unasked>,
    rules: Arc<Rules>,
}

struct Patience {
    due: Option<Pin<Box<Sleep>>>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<B> Message<B> {
    /// Why no more is waited for.
    fn impatience(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        // An item of a bulk stream is answered by itself, and may come at any time.
        if self.kind == Kind::Bulk {
            return Poll::Pending;
        }
        let Self { due, patience, unasked, rules, .. } = self;
        let patience = patience.get_or_insert_with(|| Patience {
            due: due.map(|due| Box::pin(sleep_until(due))),
            closing: Box::pin(rules.closing.clone().cancelled_owned()),
        });
        if patience.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(refuse(unasked.take(), SignOutError::shutting_down()));
        }
        match &mut patience.due {
            Some(due) => due
                .as_mut()
                .poll(cx)
                .map(|()| refuse(unasked.take(), SignOutError::new(Cause::DeadlineExceeded))),
            None => Poll::Pending,
        }
    }

    /// Takes note of what has arrived; what a service makes of a whole message is its own affair.
    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        // A stream of messages holds one at a time, and the number of such streams is bounded.
        if matches!(self.kind, Kind::Bulk | Kind::Reflection) {
            return Ok(());
        }
        self.held += bytes;
        if self.rules.held.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_HELD_BYTES {
            return Err(refuse(self.unasked.take(), overloaded()));
        }
        Ok(())
    }

    fn release(&mut self) {
        self.arriving = None;
        self.rules.held.fetch_sub(std::mem::take(&mut self.held), Ordering::Relaxed);
    }
}

impl<B> HttpBody for Message<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() && this.held > 0 {
                    // The message is whole, and nobody looks for its end after them.
                    this.unasked = None;
                    this.release();
                }
                let held = this.hold(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(held.map(|()| frame)))
            }
            Poll::Ready(end) => {
                // A stream that its caller has reset ends like this as well.
                if end.is_none() && this.held > 0 {
                    this.unasked = None;
                }
                this.release();
                Poll::Ready(end.map(|end| end.map_err(|error| Status::from_error(error.into()))))
            }
            Poll::Pending => this.impatience(cx).map(|status| Some(Err(status))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Message<B> {
    fn drop(&mut self) {
        if let Some(unasked) = self.unasked.take().filter(Unasked::is_late) {
            unasked.refused(SignOutError::new(Cause::DeadlineExceeded));
        }
        self.release();
    }
}

fn answer(
    response: Response<Body>,
    under_way: UnderWay,
    permit: Option<OwnedSemaphorePermit>,
) -> Response<Answer> {
    response.map(|body| Answer { body, _under_way: under_way, _permit: permit })
}

/// An answer on its way out: the request is under way until it has been taken.
pub(super) struct Answer {
    body: Body,
    _under_way: UnderWay,
    _permit: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
