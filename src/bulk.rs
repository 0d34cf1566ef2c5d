//! The bidirectional stream: requests in, each served as a call of its own, results out as they are ready.
//!
//! Flow control goes all the way. An item is read only when there is room for it in the window, and it keeps its room
//! until its result has been handed to gRPC, which asks for the next one only when the caller's window lets it: so a
//! caller that sends a million and reads slowly costs as much as one that sends [`WINDOW`].
//!
//! The stream is driven by whoever reads the results; the items are tasks, so that what was sent to Cognito goes on
//! however slowly results are read. Dropping the stream, which is what gRPC does when the caller goes away, drops
//! them all.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use futures_util::stream;
use prost::Message as _;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_types::pb::Status as RpcStatus;

use crate::{
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse, BulkAdminUserGlobalSignOutRequest,
        BulkAdminUserGlobalSignOutResponse, bulk_admin_user_global_sign_out_response::Outcome,
    },
    sign_out::{Cause, SignOutError},
    status,
};

/// Items of one stream that are read and not yet answered. As many as may be at Cognito at one time by default: more
/// would only wait here instead of at the caller.
const WINDOW: usize = 256;
/// A stop was asked for: what the caller had sent by then is still read and answered, unless nothing comes for so long...
const QUIET: Duration = Duration::from_millis(200);
/// ... or there is no end to it.
const LAST_READ: Duration = Duration::from_secs(2);

/// The results of a stream of requests, in the order in which they are ready.
///
/// `serve` answers one request; `limit` is when the stream must have been answered, and `draining` is cancelled when
/// nothing more is to be begun.
pub(crate) fn results<Q, F, A>(
    requests: Q,
    serve: F,
    limit: Instant,
    draining: CancellationToken,
) -> impl Stream<Item = Result<BulkAdminUserGlobalSignOutResponse, Status>> + Send
where
    Q: Stream<Item = Result<BulkAdminUserGlobalSignOutRequest, Status>> + Unpin + Send + 'static,
    F: Fn(Option<AdminUserGlobalSignOutRequest>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<AdminUserGlobalSignOutResponse, Status>> + Send + 'static,
{
    let items = Items {
        requests: Some(requests),
        serve: Arc::new(serve),
        limit,
        draining,
        read_until: None,
        under_way: JoinSet::new(),
        fault: None,
    };
    stream::unfold(items, |mut items| async move { items.next().await.map(|result| (result, items)) })
}

struct Items<Q, F> {
    /// `None` when no more is read.
    requests: Option<Q>,
    serve: Arc<F>,
    limit: Instant,
    draining: CancellationToken,
    /// Set when a stop was asked for.
    read_until: Option<Instant>,
    under_way: JoinSet<BulkAdminUserGlobalSignOutResponse>,
    /// What the stream ends with, once everything that was read is answered.
    fault: Option<Status>,
}

impl<Q, F, A> Items<Q, F>
where
    Q: Stream<Item = Result<BulkAdminUserGlobalSignOutRequest, Status>> + Unpin + Send + 'static,
    F: Fn(Option<AdminUserGlobalSignOutRequest>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<AdminUserGlobalSignOutResponse, Status>> + Send + 'static,
{
    async fn next(&mut self) -> Option<Result<BulkAdminUserGlobalSignOutResponse, Status>> {
        loop {
            let may_read = self.under_way.len() < WINDOW;
            if self.requests.is_none() && self.under_way.is_empty() {
                return self.fault.take().map(Err);
            }
            let quiet = self.read_until.map(|end| end.min(Instant::now() + QUIET));
            tokio::select! {
                // Results first: they make room.
                biased;
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok(result) => return Some(Ok(result)),
                    // Nothing aborts them while we live, so it is a panic: one for gRPC to end the stream with.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => resume_unwind(panic),
                        Err(_) => return Some(Err(bug())),
                    },
                },
                () = sleep_until(self.limit), if self.requests.is_some() => {
                    self.requests = None;
                    self.fault = Some(status::of_refusal(&SignOutError::new(Cause::DeadlineExceeded)));
                }
                () = self.draining.cancelled(), if self.read_until.is_none() && self.requests.is_some() => {
                    self.read_until = Some(Instant::now() + LAST_READ);
                }
                read = read(self.requests.as_mut(), quiet), if may_read && self.requests.is_some() => match read {
                    Some(Ok(request)) => self.begin(request),
                    Some(Err(fault)) => {
                        self.requests = None;
                        self.fault = Some(fault);
                    }
                    None => self.requests = None,
                },
            }
        }
    }

    fn begin(&mut self, request: BulkAdminUserGlobalSignOutRequest) {
        let BulkAdminUserGlobalSignOutRequest { sequence, request } = request;
        let answer = (self.serve)(request);
        self.under_way.spawn(async move {
            let outcome = match answer.await {
                Ok(response) => Outcome::Response(response),
                Err(status) => Outcome::Error(in_stream(&status)),
            };
            BulkAdminUserGlobalSignOutResponse { sequence, outcome: Some(outcome) }
        });
    }
}

/// The next request; `None` when there are no more, or none comes in time.
async fn read<Q: Stream + Unpin>(requests: Option<&mut Q>, until: Option<Instant>) -> Option<Q::Item> {
    let next = requests?.next();
    match until {
        Some(until) => timeout_at(until, next).await.ok().flatten(),
        None => next.await,
    }
}

/// A status as a message: the very same, details included.
fn in_stream(status: &Status) -> RpcStatus {
    RpcStatus::decode(status.details())
        .ok()
        .filter(|rpc| rpc.code == i32::from(status.code()))
        .unwrap_or_else(|| RpcStatus {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: Vec::new(),
        })
}

fn bug() -> Status {
    status::of_refusal(&SignOutError::new(Cause::SidecarInternalError))
}
