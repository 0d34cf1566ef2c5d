//! The embedded Cognito: a small HTTP server on loopback that speaks Cognito's protocol (AWS JSON 1.1), so
//! that the sidecar can be tried, demonstrated and tested without an AWS account.
//!
//! It knows `AdminUserGlobalSignOut`, `InitiateAuth` and `GetUser`, and answers as Cognito does: the same
//! codes, messages and headers, and tokens that are dead after a sign-out. Some usernames stand for a failure
//! ([`SPECIAL_USERNAMES`]). It is a fake: a signature must be there and is not verified, passwords are public,
//! and tokens are signed in a way that only this process understands. Hence loopback, and nothing else.
//!
//! `seed` is what exists from the start, `directory` who is signed in, `input` what a request's body must be,
//! `api` the operations; this file is HTTP: how requests come in and answers go out, or do not.

mod api;
mod directory;
mod input;
mod seed;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::seed::{POOLS, SPECIAL_PASSWORD, SPECIAL_USERNAMES, SeededPool, SeededUser, USERS};
use self::{
    api::{AMZ_JSON, Fault, Outcome, Reply},
    directory::Directory,
};

/// More than any request to these operations needs.
const BODY_LIMIT: usize = 128 * 1024;
/// How long a peer may take over its headers, and again over its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long `never` lasts. Peers give up sooner, which ends it; except that the departure of one that has
/// already sent another request goes unnoticed.
const NEVER: Duration = Duration::from_hours(1);

const HINT: &str = "\
This is the embedded Cognito of cognito-signout: a fake for local work, not Amazon Cognito.
It speaks the AWS JSON 1.1 protocol. Point an AWS SDK at this address (endpoint_url, --endpoint-url,
AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER) with any credentials. It knows AdminUserGlobalSignOut,
InitiateAuth (USER_PASSWORD_AUTH, REFRESH_TOKEN_AUTH) and GetUser.
";
const UNAVAILABLE: &str = "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this \
                           request.\n</body></html>\n";

/// The embedded Cognito, bound and not yet serving. See the documentation of this module.
#[derive(Debug)]
pub struct Emulator {
    listener: TcpListener,
    addr: SocketAddr,
    directory: Arc<Directory>,
}

impl Emulator {
    /// Binds a loopback address; port 0 takes a free one.
    ///
    /// Any other address is an error of the kind [`io::ErrorKind::InvalidInput`], because what answers here
    /// has public passwords and believes every signature.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        if !addr.ip().to_canonical().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{addr} is not a loopback address, and the embedded Cognito, a fake, listens on no other"
                ),
            ));
        }
        let listener = TcpListener::bind(addr).await?;
        Ok(Self { addr: listener.local_addr()?, listener, directory: Arc::default() })
    }

    /// The address that is bound, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to give to an SDK as its endpoint, such as `http://127.0.0.1:4566`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Serves until `stop` resolves, and then closes all connections at once, answered or not.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection to the embedded Cognito ended unexpectedly");
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, Arc::clone(&self.directory)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the embedded Cognito cannot accept a connection");
                        // Out of file descriptors, mostly: without a pause the loop would spin until one is free.
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
        connections.shutdown().await;
    }
}

async fn serve_connection(stream: TcpStream, directory: Arc<Directory>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY for a connection to the embedded Cognito");
    }
    let service = service_fn(|request| respond(&directory, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the embedded Cognito broke off");
    }
}

/// Closes the connection, which is what hyper does when a service or a body fails.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose, without a whole answer")]
struct HangUp;

async fn respond(directory: &Directory, request: Request<Incoming>) -> Result<Response<Payload>, HangUp> {
    let (head, body) = request.into_parts();
    match (head.uri.path(), &head.method) {
        ("/", &Method::POST) => {}
        ("/", &Method::GET | &Method::HEAD) => return Ok(plain(StatusCode::OK, HINT)),
        ("/", _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, HINT);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            return Ok(response);
        }
        _ => return Ok(plain(StatusCode::NOT_FOUND, HINT)),
    }
    let outcome = match timeout(READ_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => api::handle(directory, &head.headers, &body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Outcome::Answer(Reply::Fault(Fault::too_large(BODY_LIMIT)))
        }
        Ok(Err(_)) | Err(_) => Outcome::HangUp,
    };
    // Not the outcome itself: it holds tokens.
    let fault = match &outcome {
        Outcome::Answer(Reply::Fault(fault)) => Some(fault.code),
        _ => None,
    };
    tracing::debug!(operation = api::operation(&head.headers), fault, "a call to the embedded Cognito");
    match outcome {
        Outcome::Answer(reply) => Ok(render(&reply)),
        Outcome::AnswerAfter(delay, reply) => {
            sleep(delay).await;
            Ok(render(&reply))
        }
        Outcome::AnswerInPart(reply) => Ok(cut_short(render(&reply))),
        Outcome::NoAnswer => {
            sleep(NEVER).await;
            Err(HangUp)
        }
        Outcome::HangUp => Err(HangUp),
    }
}

/// A reply with the headers of AWS; the `Date` comes from hyper.
fn render(reply: &Reply) -> Response<Payload> {
    let (status, content_type, body) = match reply {
        Reply::Success(body) => (StatusCode::OK, AMZ_JSON, body.to_string()),
        Reply::Fault(fault) => (fault.status(), AMZ_JSON, fault.body().to_string()),
        Reply::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "text/html", UNAVAILABLE.to_owned()),
    };
    let mut response = with_type(status, content_type, body);
    if let Reply::Fault(fault) = reply {
        if fault.status() == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read, so no other request can be.
            insert(&mut response, "connection", "close");
        }
        // The colon is what is left of a form in which the type's namespace follows.
        insert(&mut response, "x-amzn-errortype", &format!("{}:", fault.code));
        if let Some(message) = &fault.message {
            insert(&mut response, "x-amzn-errormessage", message);
        }
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Payload> {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Payload> {
    let mut response = Response::new(Payload::whole(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    insert(&mut response, "x-amzn-requestid", &directory::new_uuid());
    response
}

/// Sets a header, with `?` for what is not printable ASCII: a message may repeat what the peer has sent.
fn insert(response: &mut Response<Payload>, name: &'static str, value: &str) {
    let printable = value.replace(|c: char| !matches!(c, ' '..='~'), "?");
    if let Ok(value) = HeaderValue::try_from(printable) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

/// The same response, whose headers promise more than its body will hold.
fn cut_short(response: Response<Payload>) -> Response<Payload> {
    let mut response = response.map(Payload::cut_short);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("64"));
    response
}

/// A body in one piece, or one that breaks off after its first byte.
#[derive(Debug)]
struct Payload {
    rest: Option<Bytes>,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    FlushThenBreak,
    Break,
}

impl Payload {
    fn whole(bytes: Bytes) -> Self {
        Self { rest: Some(bytes), end: End::Whole }
    }

    fn cut_short(mut self) -> Self {
        if let Some(bytes) = &mut self.rest {
            bytes.truncate(1);
        }
        self.end = End::FlushThenBreak;
        self
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = HangUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HangUp>>> {
        if let Some(bytes) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match self.end {
            End::Whole => Poll::Ready(None),
            // hyper flushes when a body has nothing to give; failing right away would lose what went before.
            End::FlushThenBreak => {
                self.end = End::Break;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            End::Break => Poll::Ready(Some(Err(HangUp))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.end == End::Whole
    }

    fn size_hint(&self) -> SizeHint {
        match self.end {
            End::Whole => SizeHint::with_exact(self.rest.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            End::FlushThenBreak | End::Break => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
        task::JoinHandle,
        time::Instant,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// An emulator at work, until it is stopped or dropped.
    struct Running {
        addr: SocketAddr,
        stop: oneshot::Sender<()>,
        served: JoinHandle<()>,
    }

    impl Running {
        async fn start() -> Self {
            let emulator = Emulator::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let (stop, stopped) = oneshot::channel();
            Self {
                addr: emulator.local_addr(),
                stop,
                served: tokio::spawn(emulator.serve(async {
                    stopped.await.ok();
                })),
            }
        }

        /// Sends bytes and returns all that comes back before the connection closes.
        async fn exchange(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.addr).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A reset after the answer is as good as an end.
            timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().ok();
            String::from_utf8(answer).unwrap()
        }

        async fn sign_out(&self, username: &str) -> String {
            self.exchange(&sign_out_request(username)).await
        }
    }

    fn post(target: &str, headers: &str, body: &str) -> String {
        format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {AMZ_JSON}\r\n\
             X-Amz-Target: AWSCognitoIdentityProviderService.{target}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn sign_out_request(username: &str) -> String {
        let pool = &POOLS[0];
        let credential = format!("AKID/20260101/{}/cognito-idp/aws4_request", pool.region);
        post(
            "AdminUserGlobalSignOut",
            &format!(
                "Authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0\r\n"
            ),
            &format!(r#"{{"UserPoolId":"{}","Username":"{username}"}}"#, pool.id),
        )
    }

    /// The status line and the headers, one a line and in lower case, and the body.
    fn parts(answer: &str) -> (String, &str) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase().replace("\r\n", "\n"), body)
    }

    #[tokio::test]
    async fn only_loopback_is_bound() {
        for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            let error = Emulator::bind(addr.parse().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{addr}");
            assert!(error.to_string().contains("loopback"), "{error}");
        }
        let emulator = Emulator::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        assert_eq!(emulator.url(), format!("http://127.0.0.1:{}", emulator.local_addr().port()));
    }

    #[tokio::test]
    async fn a_success_has_the_headers_of_aws() {
        let answer = Running::start().await.sign_out("ada").await;
        let (head, body) = parts(&answer);
        assert!(head.starts_with("http/1.1 200 ok\n"), "{head}");
        for header in ["\ndate: ", "\nx-amzn-requestid: ", "\ncontent-type: application/x-amz-json-1.1"] {
            assert!(head.contains(header), "{header} is not in {head}");
        }
        assert!(!head.contains("x-amzn-error"), "{head}");
        assert_eq!(body, "{}");
    }

    #[tokio::test]
    async fn a_fault_is_in_the_headers_and_in_the_body() {
        let answer = Running::start().await.sign_out("nobody").await;
        let (head, body) = parts(&answer);
        assert!(head.starts_with("http/1.1 400 bad request\n"), "{head}");
        for header in [
            "\ndate: ",
            "\nx-amzn-requestid: ",
            "\nx-amzn-errortype: usernotfoundexception:\n",
            "\nx-amzn-errormessage: user does not exist.\n",
        ] {
            assert!(head.contains(header), "{header} is not in {head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["__type"], "UserNotFoundException");
        assert_eq!(body["message"], "User does not exist.");
    }

    #[tokio::test]
    async fn statuses_that_are_not_400() {
        let running = Running::start().await;
        for (username, status) in [("internal-error", "500"), ("forbidden", "403"), ("unavailable", "503")] {
            let answer = running.sign_out(username).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{username}: {answer}");
        }
        let answer = running.sign_out("unavailable").await;
        assert!(!answer.contains("x-amzn-errortype") && answer.contains("<html>"), "{answer}");
    }

    #[tokio::test]
    async fn a_message_that_no_header_can_hold_is_made_to_fit() {
        let body = r#"{"UserPoolId":"ü\n","Username":"ada"}"#;
        let request =
            sign_out_request("").split("\r\n").find(|line| line.starts_with("Auth")).unwrap().to_owned();
        let request = post("AdminUserGlobalSignOut", &format!("{request}\r\n"), body);
        let answer = Running::start().await.exchange(&request).await;
        let (head, body) = parts(&answer);
        assert!(head.contains("value '??' at 'userpoolid'"), "{head}");
        assert!(body.contains(r"Value 'ü\n' at 'userPoolId'"), "{body}");
    }

    #[tokio::test]
    async fn throttling_takes_turns() {
        let running = Running::start().await;
        for status in ["400", "200", "400", "200"] {
            let answer = running.sign_out("throttled-once").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }

    #[tokio::test]
    async fn drop_answers_nothing_and_half_breaks_off() {
        let running = Running::start().await;
        assert_eq!(running.sign_out("drop").await, "");
        let answer = running.sign_out("half").await;
        let (head, body) = parts(&answer);
        assert!(head.starts_with("http/1.1 200 ok\n") && head.contains("\ncontent-length: 64"), "{head}");
        assert_eq!(body, "{");
    }

    #[tokio::test]
    async fn slow_is_as_slow_as_it_says() {
        let running = Running::start().await;
        let begun = Instant::now();
        let answer = running.sign_out("slow-150ms").await;
        assert!(begun.elapsed() >= Duration::from_millis(150));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn a_task_ends_with_its_peer() {
        for username in ["never", "slow-60000ms"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let directory = Arc::<Directory>::default();
            let user = directory::User::find(&POOLS[0], username).unwrap();
            let session = directory.sign_in(user, POOLS[0].client_id, 0);
            let token = directory.issue(&session, directory::TokenUse::Access, 0);
            let verify = || directory.verify(&token, directory::TokenUse::Access, 0);
            let task = tokio::spawn(serve_connection(stream, Arc::clone(&directory)));

            peer.write_all(sign_out_request(username).as_bytes()).await.unwrap();
            // The sign-out takes effect while the peer waits.
            timeout(SOON, async {
                while verify().is_ok() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
            assert!(!task.is_finished());
            drop(peer);
            timeout(SOON, task).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_anybody() {
        let running = Running::start().await;
        let mut waiting = TcpStream::connect(running.addr).await.unwrap();
        waiting.write_all(sign_out_request("never").as_bytes()).await.unwrap();
        let mut idle = TcpStream::connect(running.addr).await.unwrap();
        // An answer to a later peer says that the earlier ones have been accepted.
        running.sign_out("ada").await;

        running.stop.send(()).unwrap();
        timeout(SOON, running.served).await.unwrap().unwrap();
        for stream in [&mut waiting, &mut idle] {
            let mut rest = Vec::new();
            timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().ok();
            assert!(rest.is_empty());
        }
        assert!(TcpStream::connect(running.addr).await.is_err());
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_answered_and_survived() {
        let running = Running::start().await;
        let get = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let hint = running.exchange(get).await;
        assert!(hint.starts_with("HTTP/1.1 200 ") && hint.contains("fake"), "{hint}");

        let large = post("GetUser", "", &"x".repeat(BODY_LIMIT + 1));
        let form = post("GetUser", "", "{}").replace(AMZ_JSON, "text/plain");
        for (request, status) in [
            (get.replace("/ ", "/other "), "404"),
            (get.replace("GET", "DELETE"), "405"),
            (large, "413"),
            (post("ListUsers", "", "{}"), "400"),
            (form, "400"),
            ("\u{1}\u{2} nonsense\r\n\r\n".to_owned(), "400"),
        ] {
            let answer = running.exchange(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
        assert!(running.sign_out("ada").await.starts_with("HTTP/1.1 200 "));
    }
}
