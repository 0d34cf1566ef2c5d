//! A fake Cognito that answers at once, or after a while: HTTP/1.1 by hand, so that it costs little beside what is
//! measured.

use std::{
    io::{self, BufRead as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_smithy_types::date_time::{DateTime, Format};
use clap::Args;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::{process::Process, stats::millis};

/// How this role is started.
#[derive(Args)]
pub(crate) struct CognitoArgs {
    /// Where it listens; loopback only
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Milliseconds until it answers
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Certificate and key, in PEM: it speaks TLS
    #[arg(long, num_args = 2)]
    tls: Vec<PathBuf>,
}

/// A running one.
pub(crate) struct Cognito {
    pub(crate) process: Process,
    /// `http://127.0.0.1:PORT`, or `https`.
    pub(crate) url: String,
}

impl Cognito {
    /// Answers at once, at a port of its choice or a given one.
    pub(crate) fn start(listen: Option<SocketAddr>) -> Self {
        let listen = listen.map_or("127.0.0.1:0".to_owned(), |address| address.to_string());
        Self::start_with("http", &["--listen", &listen])
    }

    pub(crate) fn slow(delay: Duration) -> Self {
        Self::start_with("http", &["--delay-ms", &millis(delay).to_string()])
    }

    pub(crate) fn tls(certificate: &Path, key: &Path) -> Self {
        Self::start_with("https", &["--tls", certificate.to_str().unwrap(), key.to_str().unwrap()])
    }

    fn start_with(scheme: &str, args: &[&str]) -> Self {
        let process = Process::role(&[&["cognito"], args].concat(), &[]);
        let url = format!("{scheme}://{}", process.line());
        Self { process, url }
    }

    /// Connections that were accepted, and requests that were answered, since it was started.
    pub(crate) fn counts(&mut self) -> (f64, f64) {
        let answer = self.process.ask("count");
        (answer.get("connections"), answer.get("requests"))
    }
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    requests: AtomicU64,
}

/// Serves until stdin ends.
pub(crate) fn run(args: CognitoArgs) {
    assert!(args.listen.ip().is_loopback(), "loopback only");
    let counts = Arc::new(Counts::default());
    let acceptor = match &args.tls[..] {
        [certificate, key] => Some(acceptor(certificate, key)),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = serve(args.listen, Duration::from_millis(args.delay_ms), acceptor, counts.clone());
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(_count) = line else { break };
            let connections = counts.connections.load(Ordering::Relaxed);
            println!("connections={connections} requests={}", counts.requests.load(Ordering::Relaxed));
        }
        // Whoever started this has ended, however it did.
        std::process::exit(0);
    });
    runtime.block_on(server);
}

fn acceptor(certificate: &Path, key: &Path) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listen: SocketAddr, delay: Duration, acceptor: Option<TlsAcceptor>, counts: Arc<Counts>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(listen).unwrap();
    let listener: TcpListener = socket.listen(16384).unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (acceptor, counts) = (acceptor.clone(), counts.clone());
        tokio::spawn(async move {
            // A connection that breaks is its client's business.
            let _ = match acceptor {
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => converse(stream, delay, &counts).await,
                    Err(error) => Err(error),
                },
                None => converse(stream, delay, &counts).await,
            };
        });
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    delay: Duration,
    counts: &Counts,
) -> io::Result<()> {
    let date = DateTime::from(SystemTime::now()).fmt(Format::HttpDate).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: 2\r\n\
         x-amzn-requestid: 00000000-0000-4000-8000-000000000000\r\n\r\n{{}}"
    );
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let length = loop {
            if let Some(length) = length_of_request(&buffer) {
                break length;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        buffer.drain(..length);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        counts.requests.fetch_add(1, Ordering::Relaxed);
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Of head and body together; `None` until it is all there.
fn length_of_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let body = bytes[..head]
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split_at_checked("content-length:".len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-length:"))
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok())
        .unwrap_or(0);
    (bytes.len() >= head + body).then_some(head + body)
}
