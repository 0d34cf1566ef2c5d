//! The load: callers of the sidecar over gRPC, and of a signing proxy over HTTP.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use cognito_signout::pb::{AdminUserGlobalSignOutRequest, sign_out_service_client::SignOutServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::PATIENCE;

/// The pool of most calls.
pub(crate) const POOL: &str = "eu-central-1_EXAMPLE02";

/// How long a number of calls took, as those who made them saw it.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) wall: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Times {
    pub(crate) fn of(begun: Instant, by_worker: Vec<Vec<Duration>>) -> Self {
        let wall = begun.elapsed();
        let mut taken = by_worker.concat();
        taken.sort();
        let quantile = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize];
        Self { wall, p50: quantile(0.5), p99: quantile(0.99) }
    }
}

/// The calls of one of so many workers.
pub(crate) fn share(calls: usize, workers: usize, worker: usize) -> Range<usize> {
    calls * worker / workers..calls * (worker + 1) / workers
}

/// Callers of a sidecar: connections that are open, and the pools that they have users in.
pub(crate) struct Callers {
    channels: Arc<[Channel]>,
    pools: Arc<[String]>,
}

impl Callers {
    /// Opens so many connections to `HOST:PORT` or `unix:/PATH`.
    pub(crate) async fn connect(address: &str, connections: usize) -> Self {
        let uri = if address.starts_with("unix:") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri).unwrap();
        let mut channels = Vec::new();
        for _ in 0..connections {
            channels.push(endpoint.connect().await.expect("the sidecar listens"));
        }
        Self { channels: channels.into(), pools: [POOL.to_owned()].into() }
    }

    pub(crate) fn with_pools(self, pools: Vec<String>) -> Self {
        Self { pools: pools.into(), ..self }
    }

    /// Signs users out, so many of them, so many at a time. All must succeed: what is lost would cost nothing.
    pub(crate) async fn run(&self, calls: usize, in_flight: usize) -> Times {
        let begun = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..in_flight {
            let (channels, pools) = (self.channels.clone(), self.pools.clone());
            workers.spawn(async move {
                let mut taken = Vec::new();
                for n in share(calls, in_flight, worker) {
                    let channel = channels[n % channels.len()].clone();
                    let mut request = Request::new(AdminUserGlobalSignOutRequest {
                        user_pool_id: pools[n % pools.len()].clone(),
                        username: format!("user-{n}"),
                    });
                    request.set_timeout(PATIENCE);
                    let begun = Instant::now();
                    SignOutServiceClient::new(channel)
                        .admin_user_global_sign_out(request)
                        .await
                        .expect("the fake Cognito signs out everybody");
                    taken.push(begun.elapsed());
                }
                taken
            });
        }
        Times::of(begun, workers.join_all().await)
    }
}

/// Callers of a proxy that signs what it forwards: each keeps one connection.
pub(crate) struct ProxyCallers {
    address: String,
    host: String,
}

impl ProxyCallers {
    pub(crate) fn of(proxy: &http::Uri, host: &str) -> Self {
        let authority = proxy.authority().expect("a URL such as http://127.0.0.1:8080");
        Self { address: authority.to_string(), host: host.to_owned() }
    }

    pub(crate) async fn run(&self, calls: usize, in_flight: usize) -> Times {
        let mut streams = Vec::new();
        for _ in 0..in_flight {
            let stream = TcpStream::connect(&self.address).await.expect("the proxy listens");
            stream.set_nodelay(true).unwrap();
            streams.push(stream);
        }
        let begun = Instant::now();
        let mut workers = JoinSet::new();
        for (worker, mut stream) in streams.into_iter().enumerate() {
            let host = self.host.clone();
            workers.spawn(async move {
                let mut taken = Vec::new();
                for n in share(calls, in_flight, worker) {
                    let begun = Instant::now();
                    post(&mut stream, &host, n).await;
                    taken.push(begun.elapsed());
                }
                taken
            });
        }
        Times::of(begun, workers.join_all().await)
    }
}

async fn post(stream: &mut TcpStream, host: &str, n: usize) {
    let body = format!(r#"{{"UserPoolId":"{POOL}","Username":"user-{n}"}}"#);
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-amz-json-1.1\r\nx-amz-target: \
         AWSCognitoIdentityProviderService.AdminUserGlobalSignOut\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // The answer ends with the whole body of the fake Cognito's, however the proxy frames it.
    let mut answer = Vec::with_capacity(1024);
    loop {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the proxy hung up");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        if answer.ends_with(b"\r\n\r\n{}") || answer.ends_with(b"2\r\n{}\r\n0\r\n\r\n") {
            return;
        }
    }
}
