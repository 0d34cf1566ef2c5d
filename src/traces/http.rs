//! The HTTP client of the export: one request a connection, by HTTP/1.1.
//!
//! Spans leave every few seconds, so a connection that is kept would be idle nearly always; and a client with a pool would
//! be a second one beside the AWS SDK's. The SDK's own cannot be used: it is made for requests of AWS.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{
    HeaderValue, Request, Response, Uri,
    header::{CONNECTION, HOST},
    uri::Scheme,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName},
};

/// A collector answers with a few bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Sends requests from whatever thread asks; the work is done by tasks of the runtime that it was made in.
pub(super) struct HttpClient {
    runtime: Handle,
    timeout: Duration,
    tls: Tls,
}

/// How a collector proves who it is; made with the first request that needs it.
#[derive(Clone, Default)]
struct Tls {
    trusted: Option<Arc<RootCertStore>>,
    connector: Arc<OnceLock<TlsConnector>>,
}

/// A connection, encrypted or not: what is done over it is compiled once.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl HttpClient {
    /// `trusted` is who vouches for the collector, by default whom the system trusts; no request takes longer than `timeout`.
    pub(super) fn new(trusted: Option<RootCertStore>, timeout: Duration) -> Self {
        let tls = Tls { trusted: trusted.map(Arc::new), ..Tls::default() };
        Self { runtime: Handle::current(), timeout, tls }
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

#[tonic::async_trait]
impl opentelemetry_http::HttpClient for HttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (exchange, longest) = (exchange(request, self.tls.clone()), self.timeout);
        // The timer too has to be made in there: who asks is a thread of its own.
        self.runtime.spawn(async move { timeout(longest, exchange).await }).await??
    }
}

async fn exchange(request: Request<Bytes>, tls: Tls) -> Result<Response<Bytes>, HttpError> {
    let uri = request.uri().clone();
    let io = connect(&uri, &tls).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;

    let mut request = request.map(Full::new);
    // As a server expects it: the path in the first line, the host in a header.
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    request.headers_mut().insert(HOST, HeaderValue::from_str(&host_and_port(&uri))?);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // It ends when all has been read, or read and write are over: the answer is there, or will never be.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}

async fn connect(uri: &Uri, tls: &Tls) -> Result<Box<dyn Io>, HttpError> {
    let encrypted = uri.scheme() == Some(&Scheme::HTTPS);
    let host = uri.host().ok_or("the endpoint names no host")?;
    // An address of IPv6 is in brackets there, and only there.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await?;
    if !encrypted {
        return Ok(Box::new(tcp));
    }
    let name = ServerName::try_from(host.to_owned())?;
    Ok(Box::new(tls.connector()?.connect(name, tcp).await?))
}

fn host_and_port(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

impl Tls {
    fn connector(&self) -> Result<&TlsConnector, HttpError> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector);
        }
        let trusted = self.trusted.clone().unwrap_or_else(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        });
        // Named here: a default of the process would depend on who else has set it.
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        Ok(self.connector.get_or_init(|| TlsConnector::from(Arc::new(config))))
    }
}
