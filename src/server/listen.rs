//! Listening sockets, and what is accepted from them.

use std::{
    io,
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::sleep,
};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::config::ListenAddress;

/// A bound socket.
pub(super) struct Listener {
    address: ListenAddress,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file when dropped")] SocketFile),
}

/// The file of a unix socket, removed on the way out.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good; nothing else can be done about it here.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(super) async fn bind(address: &ListenAddress) -> io::Result<Self> {
        let socket = match address {
            ListenAddress::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await?),
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                Socket::Unix(UnixListener::bind(path)?, SocketFile(path.clone()))
            }
        };
        let address = match &socket {
            Socket::Tcp(listener) => ListenAddress::Tcp(listener.local_addr()?),
            Socket::Unix(..) => address.clone(),
        };
        Ok(Self { address, socket })
    }

    pub(super) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Hands over what is accepted, for as long as somebody takes it; counts what cannot be.
    pub(super) async fn accept(self, accepted: mpsc::Sender<io::Result<Io>>, refused: Counter) {
        // Out of file descriptors, most likely: those in use have to be given back first.
        const PAUSE: Duration = Duration::from_millis(100);

        loop {
            let io = match &self.socket {
                Socket::Tcp(listener) => listener.accept().await.and_then(|(stream, _)| {
                    // Answers are small: waiting to fill a segment would only add to the latency.
                    stream.set_nodelay(true)?;
                    Ok(Io::Tcp(stream))
                }),
                Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Io::Unix(stream)),
            };
            match io {
                Ok(io) => {
                    if accepted.send(Ok(io)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    refused.inc();
                    warn!(address = %self.address, %error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Removes the socket of a process that is dead. One that somebody still answers, or that is no socket, stays.
async fn remove_stale(path: &PathBuf) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            // Bound and alive, or not ours to judge: binding tells.
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// A connection of either kind.
pub(super) enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
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
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
