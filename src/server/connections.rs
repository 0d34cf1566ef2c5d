//! The connections of callers: how many there are, how long each may stay, and how it ends.
//!
//! Each is served by hyper by itself, so that each can be asked to go (GOAWAY) by itself, and goes through a [`Guarded`]
//! socket, so that each can be cut whatever the peer does or leaves undone.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{Either, select};
use http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, codegen::Service};
use tracing::{debug, warn};

use super::{
    connection::{Connection, Guarded},
    intake::{Intake, Rules},
    listen::Accepted,
};
use crate::{
    config::ConnectionArgs,
    metrics::{Metrics, OpenConnection},
};

/// A peer that was asked to go has so long to do it, counted from the end of the last call on its connection or from the
/// asking, and twice as long at most. One that behaves needs one round trip; one that never asked for anything has no time.
const LEAVE: Duration = Duration::from_secs(1);

/// So much of a connection's unread data is held for it, over all its streams; hyper would hold 1 MiB for each stream.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const STREAM_WINDOW: u32 = 64 * 1024 - 1;

/// Streams that a peer has reset before they were looked at, and streams that were reset because the peer broke the
/// protocol: with more of either the connection is ended. This is what stops a rapid reset.
const MAX_RESET_BY_PEER: usize = 20;
const MAX_RESET_BY_US: usize = 128;

/// What may be spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocols {
    /// gRPC needs no other.
    Http2,
    /// For probes as well.
    Http1AndHttp2,
}

/// The connections of one server. Clones are the same.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    limits: ConnectionArgs,
    room: Arc<Semaphore>,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    metrics: Arc<Metrics>,
    listener: &'static str,
    /// Counts those for which there was no room.
    refused: Counter,
    made_room: Complaint,
    turned_away: Complaint,
}

impl Connections {
    /// `listener` is its name in the metrics.
    pub(super) fn new(limits: ConnectionArgs, metrics: Arc<Metrics>, listener: &'static str) -> Self {
        Self(Arc::new(Shared {
            room: Arc::new(Semaphore::new(limits.max_connections as usize)),
            limits,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            refused: metrics.refused_connections(listener, "limit"),
            metrics,
            listener,
            made_room: Complaint::default(),
            turned_away: Complaint::default(),
        }))
    }

    /// What serves one connection, with the limits that HTTP itself knows.
    pub(super) fn server(&self, protocols: Protocols) -> auto::Builder<TokioExecutor> {
        let ConnectionArgs { max_streams, max_header_bytes, keepalive_interval, keepalive_timeout, .. } =
            self.0.limits;
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_streams)
            .max_header_list_size(max_header_bytes)
            .keep_alive_interval(keepalive_interval)
            .keep_alive_timeout(keepalive_timeout)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_pending_accept_reset_streams(MAX_RESET_BY_PEER)
            .max_local_error_reset_streams(MAX_RESET_BY_US);
        // Without one, a request's headers might take for ever.
        server.http1().timer(TokioTimer::new());
        match protocols {
            Protocols::Http2 => server.http2_only(),
            Protocols::Http1AndHttp2 => server,
        }
    }

    /// Serves what is accepted until nothing more comes and the last connection has ended. Once `closing` is cancelled
    /// every connection is asked to go, and cut if it does not.
    pub(super) async fn serve<I, S>(
        self,
        mut accepted: mpsc::Receiver<Accepted<I>>,
        server: auto::Builder<TokioExecutor>,
        services: S,
        rules: Arc<Rules>,
        closing: CancellationToken,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let server = Arc::new(server);
        let tasks = TaskTracker::new();
        while let Some(Accepted { io, peer }) = accepted.recv().await {
            let Some(io) = self.admit(io).await else { continue };
            let connection = io.connection().clone();
            let intake = Intake::new(services.clone(), peer, connection.clone(), rules.clone());
            let (connections, closing, server) = (self.clone(), closing.clone(), server.clone());
            tasks.spawn(async move {
                let mut served = pin!(
                    server
                        .serve_connection(TokioIo::new(io), service_fn(move |request| intake.take(request)))
                );
                let time_to_go = pin!(connections.time_to_go(&connection, &closing));
                let ended = match select(served.as_mut(), time_to_go).await {
                    Either::Left((ended, _)) => ended,
                    Either::Right(((), _)) => {
                        served.as_mut().graceful_shutdown();
                        let cut = async {
                            // However long it was idle before: what it sends in this moment, it sends in good faith.
                            if connection.has_asked() {
                                sleep(LEAVE).await;
                            }
                            connection.idle_for(LEAVE).await;
                            connection.cut();
                        };
                        match select(served, pin!(cut)).await {
                            Either::Left((ended, _)) => ended,
                            Either::Right(((), served)) => served.await,
                        }
                    }
                };
                if let Err(error) = ended {
                    debug!(%error, "a connection could not be served to its end");
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Cuts every connection, whatever is under way.
    pub(super) fn cut(&self) {
        for connection in self.open().values() {
            connection.cut();
        }
    }

    /// Lets a connection in; if there is no room, in the place of another. `None` if every other is at work.
    async fn admit<I>(&self, io: I) -> Option<Guarded<I>> {
        let room = self.0.room.clone();
        let permit = match room.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_full) => {
                if self.make_room() {
                    let limit = self.0.limits.max_connections;
                    self.0.made_room.about(|times| {
                        warn!(
                            times,
                            limit,
                            "--max-connections: the least useful connections were closed to let others in"
                        );
                    });
                    // The one that was cut ends with the next turn of its task.
                    timeout(LEAVE, room.acquire_owned()).await.ok()?.ok()?
                } else {
                    let limit = self.0.limits.max_connections;
                    self.0.refused.inc();
                    self.0.turned_away.about(|times| {
                        warn!(
                            times,
                            limit,
                            "--max-connections: connections were closed at once: all others are at work"
                        );
                    });
                    return None;
                }
            }
        };
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new());
        self.open().insert(id, connection.clone());
        let open = self.0.metrics.connection(self.0.listener);
        let place = Place { id, connections: self.clone(), _permit: permit, _open: open };
        Some(Guarded::new(io, connection, self.0.limits.write_timeout, place))
    }

    /// Cuts the connection that is of least use. `false` if every one is at work.
    fn make_room(&self) -> bool {
        let mut open = self.open();
        let least = open
            .iter()
            .filter_map(|(id, connection)| Some((connection.usefulness()?, *id)))
            .min()
            .map(|(_, id)| id);
        let least = least.and_then(|id| open.remove(&id));
        least.inspect(|connection| connection.cut()).is_some()
    }

    /// Waits until a connection is to be asked to go. Cuts it if its peer does not even greet.
    async fn time_to_go(&self, connection: &Connection, closing: &CancellationToken) {
        let ConnectionArgs { handshake_timeout, idle_timeout, max_connection_age, .. } = self.0.limits;
        let silent = async {
            sleep(handshake_timeout).await;
            if !connection.has_begun() {
                connection.cut();
            }
            std::future::pending().await
        };
        tokio::select! {
            () = closing.cancelled() => {}
            () = aged(max_connection_age) => {}
            () = connection.idle_for(idle_timeout), if !idle_timeout.is_zero() => {}
            () = silent => {}
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Nobody panics with the lock held; and the map would be whole if somebody did.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for an age, give or take a tenth: connections that were made together must not all come back together.
async fn aged(age: Duration) {
    if age.is_zero() {
        return std::future::pending().await;
    }
    sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
}

/// A place among the connections, given back when the socket is.
pub(super) struct Place {
    id: u64,
    connections: Connections,
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
    }
}

/// Says at most once in a while what happens all the time: a flood of connections must not be one of log lines.
#[derive(Default)]
struct Complaint(Mutex<(u64, Option<Instant>)>);

impl Complaint {
    fn about(&self, complain: impl FnOnce(u64)) {
        const PAUSE: Duration = Duration::from_secs(10);

        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, last) = &mut *guard;
        *times += 1;
        if last.is_none_or(|last| last.elapsed() >= PAUSE) {
            *last = Some(Instant::now());
            complain(std::mem::take(times));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::policy::Peer;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        connections: ConnectionArgs,
    }

    fn connections(args: &[&str]) -> Connections {
        let args = ["test"].iter().chain(args);
        Connections::new(Only::parse_from(args).connections, Metrics::new(false), "api")
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_useful_connection_makes_room_and_one_at_work_never_does() {
        let connections = connections(&["--max-connections=5"]);
        let mut admitted = Vec::new();
        for _ in 0..5 {
            admitted.push(connections.admit(()).await.unwrap());
            sleep(Duration::from_secs(5)).await;
        }
        let of = |n: usize| admitted[n].connection().clone();
        // The oldest is at work, the next was refused, one holds a health watch, over one a user was signed out, and the
        // last never asked for anything.
        let _work = of(0).begin(true);
        drop(of(1).begin(true));
        let _watch = of(2).begin(false);
        of(3).begin(true).succeeded();

        let order = |connections: &Connections| {
            assert!(connections.make_room());
            (0..5).map(|n| of(n).is_cut()).collect::<Vec<_>>()
        };
        assert_eq!(order(&connections), [false, false, false, false, true]);
        assert_eq!(order(&connections), [false, true, false, false, true]);
        assert_eq!(order(&connections), [false, true, true, false, true]);
        assert_eq!(order(&connections), [false, true, true, true, true]);
        assert!(!connections.make_room(), "a connection at work is not closed for another");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_made_just_now_is_given_a_moment_to_ask() {
        let connections = connections(&["--max-connections=2"]);
        let old = connections.admit(()).await.unwrap();
        drop(old.connection().begin(true));
        sleep(Duration::from_secs(5)).await;
        let young = connections.admit(()).await.unwrap();

        assert!(connections.make_room());
        assert!(old.connection().is_cut() && !young.connection().is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_message_has_not_come_is_no_work() {
        let connections = connections(&["--max-connections=2"]);
        let proven = connections.admit(()).await.unwrap();
        proven.connection().begin(true).succeeded();
        let half = connections.admit(()).await.unwrap();
        let _half_a_call = (half.connection().begin(true), half.connection().arriving());
        sleep(Duration::from_secs(5)).await;

        assert!(connections.make_room());
        assert!(half.connection().is_cut() && !proven.connection().is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_nobody_is_let_in_until_another_is_gone() {
        let connections = connections(&["--max-connections=1"]);
        let first = connections.admit(()).await.unwrap();
        let work = first.connection().begin(true);
        assert!(connections.admit(()).await.is_none(), "all at work: the newcomer is turned away");
        drop(work);

        let connection = first.connection().clone();
        let ends = tokio::spawn(async move {
            while !connection.is_cut() {
                tokio::task::yield_now().await;
            }
            drop(first);
        });
        assert!(connections.admit(()).await.is_some());
        ends.await.unwrap();
        assert!(connections.open().is_empty(), "its place is given back with the socket");
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_connection_that_its_peer_has_closed() {
        let connections = connections(&[]);
        let (accepted, incoming) = mpsc::channel(1);
        let closing = CancellationToken::new();
        let rules = Rules::new(1, Duration::from_secs(1), closing.clone(), None);
        let server = connections.server(Protocols::Http2);
        let services = tonic::service::Routes::default();
        let served = connections.clone().serve(incoming, server, services, rules, closing);
        let (ours, io) = tokio::io::duplex(1024);
        assert!(accepted.send(Accepted { io, peer: Peer::Plain { loopback: true } }).await.is_ok());
        drop((ours, accepted));

        let ended = timeout(Duration::from_secs(10), served).await;

        assert!(ended.is_ok(), "its task goes on");
        assert!(connections.open().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_idle_has_a_second_to_go_like_any_other() {
        let connections = connections(&[]);
        let (accepted, incoming) = mpsc::channel(1);
        let closing = CancellationToken::new();
        let rules = Rules::new(1, Duration::from_secs(1), closing.clone(), None);
        let (server, services) = (connections.server(Protocols::Http2), tonic::service::Routes::default());
        tokio::spawn(connections.serve(incoming, server, services, rules, closing.clone()));
        let (mut peer, io) = tokio::io::duplex(64 * 1024);
        assert!(accepted.send(Accepted { io, peer: Peer::Plain { loopback: true } }).await.is_ok());
        // Greeting, empty SETTINGS, and a whole request: GET http://x/.
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        peer.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x84\x86\x41\x01x").await.unwrap();
        sleep(10 * LEAVE).await;

        closing.cancel();
        let told = Instant::now();
        let mut all = Vec::new();
        let _ = peer.read_to_end(&mut all).await;

        // It answered no ping, so nobody knows whether it has sent something in the meantime.
        assert!((LEAVE..3 * LEAVE).contains(&told.elapsed()), "{:?}", told.elapsed());
        let goaway = b"\0\0\x08\x07\0\0\0\0\0";
        assert!(all.windows(goaway.len()).any(|window| window == goaway), "{all:?}");
    }

    /// How long the end of a connection lasts whose peer does with its own end as it is told.
    async fn ending<F: Future<Output = ()>>(asked: bool, peer: impl FnOnce(DuplexStream) -> F) -> Duration {
        let connections = connections(&[]);
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let mut io = connections.admit(ours).await.unwrap();
        if asked {
            drop(io.connection().begin(true));
        }
        io.write_all(b"the last answer").await.unwrap();
        let begun = Instant::now();
        let end = async {
            io.shutdown().await.unwrap();
            drop(io);
            begun.elapsed()
        };
        let (took, ()) = tokio::join!(end, peer(theirs));
        took
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_still_writes_when_the_connection_ends_gets_its_answers() {
        const PAUSE: Duration = Duration::from_millis(500);
        let took = ending(true, async |mut peer| {
            for _ in 0..3 {
                peer.write_all(&[0; 40_000]).await.expect("the socket is closed under its hands");
                sleep(PAUSE / 3).await;
            }
            let mut answer = String::new();
            peer.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "the last answer");
        });
        // It ends with the peer's own end.
        assert!((PAUSE..LEAVE).contains(&took.await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_end_a_connection_that_has_ended_is_not_waited_for_long() {
        let silent = ending(true, async |peer| {
            sleep(2 * LEAVE).await;
            drop(peer);
        });
        assert!((LEAVE..2 * LEAVE).contains(&silent.await));
        let floods = ending(true, async |mut peer| while peer.write_all(&[0; 40_000]).await.is_ok() {});
        assert!(floods.await < LEAVE);
        let never_asked = ending(false, async |peer| {
            sleep(LEAVE).await;
            drop(peer);
        });
        assert_eq!(never_asked.await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_complaint_is_made_at_once_and_then_once_in_a_while_with_how_often() {
        let complaint = Complaint::default();
        let mut told = Vec::new();
        for _ in 0..5 {
            complaint.about(|times| told.push(times));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        complaint.about(|times| told.push(times));
        assert_eq!(told, [1, 5]);
    }
}
