//! One connection of a caller: what is known of it, and its socket, which can be cut at any time.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::connections::Place;

/// What every HTTP/2 connection begins with; no request of HTTP/1.1 is shorter by much.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A peer that was asked to go may still be writing: what it writes is taken for so long, and so much of it, which is
/// what it may have under way. Were the socket closed under its hands, its next write would fail, and with it the whole
/// connection, answers included that it has and has not read yet.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What is known of one connection.
pub(super) struct Connection {
    accepted: Instant,
    received: AtomicU64,
    requests: AtomicU64,
    under_way: AtomicUsize,
    at_work: AtomicUsize,
    arriving: AtomicUsize,
    proven: AtomicBool,
    /// Milliseconds from `accepted` to the beginning or end of the last request.
    last_use: AtomicU64,
    cut: AtomicBool,
    socket: AtomicWaker,
}

/// How much a connection is worth keeping; the least goes first, among equals the one that was used longest ago.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Usefulness(Kind, Instant);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It had time to ask for something, and never did.
    Unused,
    /// Nothing is under way, and no user was ever signed out over it.
    Idle,
    /// Only what may last for ever is under way: watches of health, answers that the peer does not read.
    Passive,
    /// It has not had the time to ask for anything.
    Young,
    /// Users were signed out over it: its peer is one that we are here for.
    Proven,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            accepted: Instant::now(),
            received: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            arriving: AtomicUsize::new(0),
            proven: AtomicBool::new(false),
            last_use: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            socket: AtomicWaker::new(),
        }
    }

    /// A request has arrived. `work` is what a sign-out does, as long as the sidecar does it.
    pub(super) fn begin(self: &Arc<Self>, work: bool) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        if work {
            self.at_work.fetch_add(1, Ordering::Relaxed);
        }
        self.used();
        UnderWay { connection: self.clone(), work }
    }

    /// A call has begun whose message has not come in full, until this is dropped.
    pub(super) fn arriving(self: &Arc<Self>) -> Arriving {
        self.arriving.fetch_add(1, Ordering::Relaxed);
        Arriving(self.clone())
    }

    /// Ends the connection without another word, whatever the peer does.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.socket.wake();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Whether the peer has said that it speaks HTTP.
    pub(super) fn has_begun(&self) -> bool {
        self.has_asked() || self.received.load(Ordering::Relaxed) >= PREFACE.len() as u64
    }

    /// Whether it has asked for anything.
    pub(super) fn has_asked(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Waits until nothing has been under way for so long.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            let idle = match self.under_way.load(Ordering::Relaxed) {
                0 => self.last_use().elapsed(),
                _ => Duration::ZERO,
            };
            match time.checked_sub(idle) {
                None | Some(Duration::ZERO) => return,
                Some(rest) => sleep(rest).await,
            }
        }
    }

    /// `None` if it is at work.
    pub(super) fn usefulness(&self) -> Option<Usefulness> {
        const YOUNG: Duration = Duration::from_secs(1);

        // A call whose message has not come is no work yet: whoever sends a byte a second would be safe for ever.
        if self.at_work.load(Ordering::Relaxed) > self.arriving.load(Ordering::Relaxed) {
            return None;
        }
        let kind = if self.proven.load(Ordering::Relaxed) {
            Kind::Proven
        } else if self.accepted.elapsed() < YOUNG {
            Kind::Young
        } else if self.under_way.load(Ordering::Relaxed) > 0 {
            Kind::Passive
        } else if self.has_asked() {
            Kind::Idle
        } else {
            Kind::Unused
        };
        Some(Usefulness(kind, self.last_use()))
    }

    fn last_use(&self) -> Instant {
        self.accepted + Duration::from_millis(self.last_use.load(Ordering::Relaxed))
    }

    fn used(&self) {
        let now = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_use.store(now, Ordering::Relaxed);
    }
}

/// A request that is under way until this is dropped.
pub(super) struct UnderWay {
    connection: Arc<Connection>,
    work: bool,
}

impl UnderWay {
    /// A user was signed out.
    pub(super) fn succeeded(&self) {
        self.connection.proven.store(true, Ordering::Relaxed);
    }

    /// The sidecar has done its part; what is left is for the peer to read.
    pub(super) fn worked(&mut self) {
        if std::mem::take(&mut self.work) {
            self.connection.at_work.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.worked();
        self.connection.used();
        self.connection.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call whose message is still on its way.
pub(super) struct Arriving(Arc<Connection>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that ends when its connection is cut, or when its peer reads nothing for too long.
pub(super) struct Guarded<I> {
    io: I,
    connection: Arc<Connection>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Lingering>,
    _place: Place,
}

/// Nothing more is written, and what still comes is thrown away.
struct Lingering {
    end: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<I> Guarded<I> {
    pub(super) fn new(io: I, connection: Arc<Connection>, write_timeout: Duration, place: Place) -> Self {
        Self { io, connection, write_timeout, stalled: None, lingering: None, _place: place }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn check(&self, cx: &mut Context<'_>) -> io::Result<()> {
        // In this order: a cut that comes in between wakes the task.
        self.connection.socket.register(cx.waker());
        if self.connection.is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// The outcome of writing, or an error if there has been none for too long.
    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> Guarded<I> {
    /// Waits until the peer has closed the connection too.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Lingering { end, bytes }) = &mut self.lingering else { return Poll::Ready(()) };
        let mut room = [0; 1024];
        while *bytes < LINGER_BYTES && end.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *bytes += buf.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        this.connection.received.fetch_add(bytes as u64, Ordering::Relaxed);
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        if flushed.is_pending() { this.written(cx, flushed) } else { flushed }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        if this.lingering.is_none() {
            let shut = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.written(cx, shut))?;
            // Whoever never asked has no answer to lose.
            if !this.connection.has_asked() {
                return Poll::Ready(Ok(()));
            }
            this.lingering = Some(Lingering { end: Box::pin(sleep(LINGER)), bytes: 0 });
        }
        this.linger(cx).map(Ok)
    }
}
