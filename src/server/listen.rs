//! Listening sockets, and what is accepted from them.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use super::{
    tls::Acceptor,
    uds::{self, Permission, UnixSocket},
};
use crate::{config::ListenAddress, policy::Peer};

/// So many peers may be in their TLS handshakes at one time at one listener; the next have to wait.
pub(super) const MOST_HANDSHAKES: usize = 1024;

/// A bound socket.
pub(super) struct Listener {
    address: ListenAddress,
    socket: Socket,
}

enum Socket {
    Tcp { listener: TcpListener, loopback: bool },
    Unix(UnixSocket),
}

impl Listener {
    pub(super) async fn bind(address: &ListenAddress, permission: &Permission) -> io::Result<Self> {
        let (socket, address) = match address {
            ListenAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                let loopback = address.ip().to_canonical().is_loopback();
                (Socket::Tcp { listener, loopback }, ListenAddress::Tcp(address))
            }
            ListenAddress::Unix(path) => (Socket::Unix(uds::bind(path, permission).await?), address.clone()),
        };
        Ok(Self { address, socket })
    }

    pub(super) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Hands over what is accepted, for as long as somebody takes it, and counts what cannot be; what comes by TCP as TLS
    /// if there is `tls`.
    pub(super) async fn accept(
        self,
        accepted: mpsc::Sender<Accepted<Io>>,
        refused: Counter,
        tls: Option<Acceptor>,
    ) {
        // Out of file descriptors, most likely: those in use have to be given back first.
        const PAUSE: Duration = Duration::from_millis(100);

        // Each in a task of its own, so that a slow peer holds nobody up; dropped, and so ended, with the listener.
        let mut handshakes = JoinSet::new();
        let failures = Failures::default();
        loop {
            while handshakes.try_join_next().is_some() {}
            if handshakes.len() >= MOST_HANDSHAKES {
                handshakes.join_next().await;
            }
            let next = match &self.socket {
                Socket::Tcp { listener, loopback } => listener.accept().await.and_then(|(stream, from)| {
                    // Answers are small: waiting to fill a segment would only add to the latency.
                    stream.set_nodelay(true)?;
                    let Some(tls) = tls.clone() else {
                        let peer = Peer::Plain { loopback: *loopback };
                        return Ok(Some(Accepted { io: Io::Tcp(stream), peer }));
                    };
                    let (accepted, failures) = (accepted.clone(), failures.clone());
                    handshakes.spawn(async move {
                        match tls.accept(stream).await {
                            Ok((stream, peer)) => {
                                // Nobody takes it any more if the server is stopping.
                                let io = Io::Tls(Box::new(stream));
                                let _ = accepted.send(Accepted { io, peer }).await;
                            }
                            Err(error) => {
                                tls.refused.inc();
                                failures.tell(from, &error);
                            }
                        }
                    });
                    Ok(None)
                }),
                Socket::Unix(socket) => socket.listener.accept().await.and_then(|(stream, _)| {
                    let uid = stream.peer_cred()?.uid();
                    Ok(Some(Accepted { io: Io::Unix(stream), peer: Peer::Unix { uid } }))
                }),
            };
            match next {
                Ok(Some(connection)) => {
                    if accepted.send(connection).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    refused.inc();
                    warn!(address = %self.address, %error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Handshakes that failed. Anybody can cause them, so the log has one a second at most.
#[derive(Clone, Default)]
struct Failures(Arc<Mutex<(Option<Instant>, u64)>>);

impl Failures {
    fn tell(&self, from: SocketAddr, error: &io::Error) {
        const PAUSE: Duration = Duration::from_secs(1);

        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, untold) = &mut *failures;
        if told.is_none_or(|told| told.elapsed() >= PAUSE) {
            info!(peer = %from, %error, others_untold = *untold, "a TLS handshake failed");
            *failures = (Some(Instant::now()), 0);
        } else {
            *untold += 1;
        }
    }
}

/// A connection that was accepted, and who is at its other end.
pub(super) struct Accepted<I> {
    pub(super) io: I,
    pub(super) peer: Peer,
}

/// A connection of any kind.
pub(super) enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
