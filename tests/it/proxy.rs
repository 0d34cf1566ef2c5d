//! An HTTP proxy that knows nothing but CONNECT, to see what the product asks of a corporate proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Method, StatusCode};
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
};

use super::scripted::{Loopback, read_head};

/// A running proxy. Dropping it cuts its tunnels and closes its port.
///
/// Any other method than CONNECT is a panic, which fails the test at the drop.
pub(crate) struct Proxy {
    connects: Arc<Mutex<Vec<String>>>,
    loopback: Loopback,
}

#[derive(Clone, Copy)]
enum Manners {
    TunnelTo(SocketAddr),
    Refuse(StatusCode),
}

impl Proxy {
    /// Tunnels to `target`, whatever authority it is asked for.
    pub(crate) async fn tunnelling_to(target: SocketAddr) -> Self {
        Self::start(Manners::TunnelTo(target)).await
    }

    /// Refuses every tunnel with this status: 403, say, or 407.
    pub(crate) async fn refusing(status: u16) -> Self {
        Self::start(Manners::Refuse(StatusCode::from_u16(status).expect("a status of three digits"))).await
    }

    async fn start(manners: Manners) -> Self {
        let connects = Arc::<Mutex<Vec<String>>>::default();
        let asked = Arc::clone(&connects);
        let loopback = Loopback::listen(move |client, _| serve(client, manners, Arc::clone(&asked))).await;
        Self { connects, loopback }
    }

    /// `http://127.0.0.1:port`, as `HTTPS_PROXY` wants it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.loopback.addr())
    }

    /// The authorities that it was asked to connect to, in order, refused ones too.
    pub(crate) fn connects(&self) -> Vec<String> {
        self.connects.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(mut client: TcpStream, manners: Manners, asked: Arc<Mutex<Vec<String>>>) {
    let mut unread = Vec::new();
    let Ok(head) = read_head(&mut client, &mut unread).await else {
        return;
    };
    assert_eq!(head.method, Method::CONNECT, "the proxy was asked for {}", head.path);
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(head.path);

    // From here on a failure is one of the two ends leaving, which is the other end's business.
    match manners {
        Manners::TunnelTo(target) => {
            let Ok(mut server) = TcpStream::connect(target).await else {
                client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await.ok();
                return;
            };
            if client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok()
                && server.write_all(&unread).await.is_ok()
            {
                copy_bidirectional(&mut client, &mut server).await.ok();
            }
        }
        Manners::Refuse(status) => {
            let challenge = match status {
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => "proxy-authenticate: Basic realm=\"proxy\"\r\n",
                _ => "",
            };
            let answer =
                format!("HTTP/1.1 {status}\r\n{challenge}content-length: 0\r\nconnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await.ok();
            client.shutdown().await.ok();
        }
    }
}
