//! An HTTP endpoint that plays AWS from a script, over real sockets.
//!
//! A script is a closure that is asked once per request what to do about it: answer well, throttle, stay silent,
//! hang up in the middle of a header. HTTP/1.1 is spoken by hand, because a test wants to choose the very bytes.
//!
//! The endpoint lives on a thread of its own. So it goes on while a test blocks, a paused clock does not touch it,
//! and when the value is dropped its port is closed. A script that panics fails the test, at the next wait or at
//! the drop; so does a client that sends something other than HTTP/1.1.

use std::{
    io,
    net::SocketAddr,
    panic::resume_unwind,
    pin::pin,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

/// How long a wait lasts before it is taken for a failure of the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// A head longer than this is not one of ours.
const LONGEST_HEAD: usize = 64 * 1024;

/// A running endpoint. Dropping it cuts its connections and closes its port.
pub(crate) struct Scripted {
    scheme: Scheme,
    seen: watch::Receiver<Seen>,
    loopback: Loopback,
}

#[derive(Clone, Copy)]
enum Scheme {
    Http,
    Https,
}

/// What the endpoint has witnessed. Only ever grows.
#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<Request>,
    gone: usize,
}

/// What happens to a connection before anything is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnAccept {
    /// Requests are read and answered.
    Serve,
    /// The client sees the end of the stream.
    CloseAtOnce,
    /// The client sees a reset, be it while it connects or when it first reads or writes.
    ResetAtOnce,
    /// Whatever the client sends is read and ignored until it leaves, which counts for
    /// [`Scripted::wait_for_gone`]. To a TLS client this is a handshake that never ends.
    Hold,
}

type Script = Arc<dyn Fn(usize, &Request) -> Reply + Send + Sync>;
type AcceptScript = Box<dyn Fn(usize) -> OnAccept + Send + Sync>;

impl Scripted {
    /// Listens on a free port of 127.0.0.1 in plain text.
    ///
    /// `script` is asked once per request, in order of arrival; requests are counted from 0 over all connections.
    pub(crate) async fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Box::new(|_| OnAccept::Serve), Arc::new(script)).await
    }

    /// The same over TLS. A handshake that fails is a connection without requests.
    pub(crate) async fn start_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(config), Box::new(|_| OnAccept::Serve), Arc::new(script)).await
    }

    /// Plain text, with a say in every connection, counted from 0, before its first request.
    pub(crate) async fn start_accepting(
        on_accept: impl Fn(usize) -> OnAccept + Send + Sync + 'static,
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(None, Box::new(on_accept), Arc::new(script)).await
    }

    async fn listen(tls: Option<Arc<ServerConfig>>, on_accept: AcceptScript, script: Script) -> Self {
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        let (sender, seen) = watch::channel(Seen::default());
        let stage = Arc::new(Stage { tls: tls.map(TlsAcceptor::from), script, seen: sender });
        let loopback = Loopback::listen(move |tcp, id| {
            let stage = Arc::clone(&stage);
            stage.seen.send_modify(|seen| seen.connections += 1);
            let manner = on_accept(id);
            async move { stage.serve(tcp, id, manner).await }
        })
        .await;
        Self { scheme, seen, loopback }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.loopback.addr()
    }

    /// `http://127.0.0.1:port`, or `https://localhost:port` for the sake of the certificate's name.
    pub(crate) fn url(&self) -> String {
        match self.scheme {
            Scheme::Http => format!("http://{}", self.addr()),
            Scheme::Https => format!("https://localhost:{}", self.addr().port()),
        }
    }

    /// The requests that have arrived complete, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.borrow().requests.clone()
    }

    /// How many connections were accepted, whatever became of them.
    pub(crate) fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    /// Waits until at least `n` requests have arrived, and returns all of them.
    pub(crate) async fn wait_for_requests(&self, n: usize) -> Vec<Request> {
        self.wait(&format!("{n} requests"), |seen| seen.requests.len() >= n).await;
        self.requests()
    }

    /// Waits until at least `n` connections were accepted.
    pub(crate) async fn wait_for_connections(&self, n: usize) {
        self.wait(&format!("{n} connections"), |seen| seen.connections >= n).await;
    }

    /// Waits until at least `n` exchanges have ended because the client closed before their reply was complete.
    ///
    /// A client that shuts down only its sending half counts as gone too.
    pub(crate) async fn wait_for_gone(&self, n: usize) {
        self.wait(&format!("{n} exchanges that the client gave up"), |seen| seen.gone >= n).await;
    }

    async fn wait(&self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let mut seen = self.seen.clone();
        let waiting = {
            // The patience is counted by the endpoint's clock: the test's own may be paused.
            let _clock = self.loopback.runtime.enter();
            timeout(PATIENCE, seen.wait_for(enough))
        };
        let trouble = match waiting.await {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => "until the endpoint broke (its own panic is printed above)".to_owned(),
            Err(_) => format!("for {PATIENCE:?}"),
        };
        panic!("waited for {what}, {trouble}; {}", self.seen.borrow().summary());
    }
}

impl Seen {
    fn summary(&self) -> String {
        let mut summary = format!(
            "seen so far: {} connections, {} exchanges given up by the client, {} requests",
            self.connections,
            self.gone,
            self.requests.len(),
        );
        for (n, request) in self.requests.iter().enumerate() {
            let target = request.header("x-amz-target").unwrap_or_default();
            summary += &format!(
                "\n  {n}: {} {} {target} (connection {})",
                request.method, request.path, request.connection,
            );
        }
        summary
    }
}

/// A request that has arrived complete.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The method of the request line.
    pub(crate) method: Method,
    /// The target of the request line, query included.
    pub(crate) path: String,
    /// All headers.
    pub(crate) headers: HeaderMap,
    /// The body, as long as `content-length` says.
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
    /// When its last byte was read.
    pub(crate) at: Instant,
}

impl Request {
    /// The body as JSON; panics if it is not.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// The first header of that name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `Username` in the body; panics if there is none.
    pub(crate) fn username(&self) -> String {
        self.text_field("Username")
    }

    /// `UserPoolId` in the body; panics if there is none.
    pub(crate) fn user_pool_id(&self) -> String {
        self.text_field("UserPoolId")
    }

    fn text_field(&self, name: &str) -> String {
        let json = self.json();
        json[name].as_str().unwrap_or_else(|| panic!("no {name} in {json}")).to_owned()
    }

    /// The region that the request was signed for.
    pub(crate) fn region(&self) -> Option<String> {
        self.credential_scope()?.nth(2).map(str::to_owned)
    }

    /// The access key that the request was signed with.
    pub(crate) fn access_key_id(&self) -> Option<String> {
        self.credential_scope()?.next().map(str::to_owned)
    }

    /// Key id, date, region, service, `aws4_request`; see "Authorization header" in the documentation of SigV4.
    fn credential_scope(&self) -> Option<impl Iterator<Item = &str>> {
        let signed = self.header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let scope = signed.split(',').find_map(|part| part.trim().strip_prefix("Credential="))?;
        Some(scope.split('/'))
    }
}

/// What to do about a request.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    gate: Option<Gate>,
    delay: Duration,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    Answer(Answer),
    Never,
    /// These bytes, none perhaps, and then a reset.
    BytesThenReset(Vec<u8>),
    /// These bytes, none perhaps, and then the end of the stream.
    BytesThenClose(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Answer {
    status: StatusCode,
    /// The last word on each header: a value instead of the usual one, or its absence.
    headers: Vec<(HeaderName, Option<HeaderValue>)>,
    body: Vec<u8>,
    /// Between one byte of the body and the next.
    pace: Option<Duration>,
    request_id: bool,
    close: bool,
}

impl Reply {
    /// The answer of an operation that has nothing to say: 200 and `{}`.
    pub(crate) fn ok() -> Self {
        Self::aws(200, b"{}".to_vec())
    }

    /// An error as services with JSON 1.1 give it: the code in `__type` and in `x-amzn-errortype`.
    pub(crate) fn aws_error(status: u16, code: &str, message: &str) -> Self {
        Self::aws(status, json!({ "__type": code, "message": message }).to_string().into())
            .header("x-amzn-errortype", code)
    }

    fn aws(status: u16, body: Vec<u8>) -> Self {
        let mut reply = Self::http(status, body).header("content-type", "application/x-amz-json-1.1");
        reply.answer().request_id = true;
        reply
    }

    /// Any answer. It has a `date` and a `content-length`, and nothing that only AWS would say.
    pub(crate) fn http(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Act::Answer(Answer {
            status: StatusCode::from_u16(status).expect("a status of three digits"),
            headers: Vec::new(),
            body: body.into(),
            pace: None,
            request_id: false,
            close: false,
        })
        .into()
    }

    /// 200 and a JSON document, as endpoints for credentials answer.
    pub(crate) fn json(value: serde_json::Value) -> Self {
        Self::http(200, value.to_string()).header("content-type", "application/json")
    }

    /// The head at once, then one byte of the body at a time.
    pub(crate) fn trickle(status: u16, body: impl Into<Vec<u8>>, every: Duration) -> Self {
        let mut reply = Self::http(status, body);
        reply.answer().pace = Some(every);
        reply
    }

    /// Holds the connection and says nothing until the client leaves.
    pub(crate) fn never() -> Self {
        Act::Never.into()
    }

    /// Ends the stream instead of an answer.
    pub(crate) fn close() -> Self {
        Self::raw("")
    }

    /// Resets the connection instead of an answer.
    pub(crate) fn reset() -> Self {
        Self::reset_after("")
    }

    /// Sends these bytes, then resets the connection.
    pub(crate) fn reset_after(bytes: impl Into<Vec<u8>>) -> Self {
        Act::BytesThenReset(bytes.into()).into()
    }

    /// An answer whose head promises 100 bytes and whose body ends after 10.
    pub(crate) fn cut_short() -> Self {
        Self::raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Status\":")
    }

    /// An answer that ends in the middle of a header.
    pub(crate) fn cut_in_headers() -> Self {
        Self::raw("HTTP/1.1 200 OK\r\ncontent-le")
    }

    /// These bytes, whatever they are, and then the end of the stream.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Act::BytesThenClose(bytes.into()).into()
    }

    /// Sets a header, in place of the one that the answer would have had. An answer left without a
    /// `content-length` ends with the stream, unless it has a `transfer-encoding`.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let value = value.parse().expect("a header's value");
        self.answer().headers.push((name.parse().expect("a header's name"), Some(value)));
        self
    }

    /// Leaves out a header that the answer would have had.
    pub(crate) fn without_header(mut self, name: &str) -> Self {
        self.answer().headers.push((name.parse().expect("a header's name"), None));
        self
    }

    /// Closes the connection after the answer, without a word about it in the answer: the client keeps a
    /// connection that is dead.
    ///
    /// The end of the stream follows the answer at once, and most clients notice it before they use the connection
    /// again. For one that dies under a request, reply to that request with [`Reply::close`] or [`Reply::reset`].
    pub(crate) fn then_close(mut self) -> Self {
        self.answer().close = true;
        self
    }

    /// Replies when the gate is open. A client that leaves in the meantime gets no reply.
    pub(crate) fn after(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Replies so much later, counted from the opening of its gate if it has one. A client that leaves in the
    /// meantime gets no reply.
    pub(crate) fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn answer(&mut self) -> &mut Answer {
        match &mut self.act {
            Act::Answer(answer) => answer,
            act => panic!("{act:?} is no answer: it has neither headers nor a connection to keep"),
        }
    }
}

impl From<Act> for Reply {
    fn from(act: Act) -> Self {
        Self { gate: None, delay: Duration::ZERO, act }
    }
}

impl Answer {
    /// The bytes up to the body, and whether the connection can serve another request after it.
    fn head(&self, n: usize) -> (Vec<u8>, bool) {
        let mut headers = HeaderMap::new();
        let mut usual = |name, value: String| headers.insert(name, value.parse().expect("a header's value"));
        usual(header::DATE, http_date(SystemTime::now()));
        usual(header::CONTENT_LENGTH, self.body.len().to_string());
        if self.request_id {
            usual(HeaderName::from_static("x-amzn-requestid"), request_id(n));
        }
        for (name, value) in &self.headers {
            match value {
                Some(value) => headers.insert(name, value.clone()),
                None => headers.remove(name),
            };
        }

        let reason = self.status.canonical_reason().unwrap_or("Unknown");
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        for (name, value) in &headers {
            head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend(b"\r\n");

        let framed =
            headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
        let says_close = headers
            .get(header::CONNECTION)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        (head, framed && !says_close && !self.close)
    }
}

/// The `x-amzn-requestid` of the answer to request `n`.
pub(crate) fn request_id(n: usize) -> String {
    format!("5c217ed0-0000-4000-8000-{n:012}")
}

/// A moment as the `date` header has it, for an endpoint whose clock is wrong.
pub(crate) fn http_date(moment: SystemTime) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));

    let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).expect("a moment after 1969").as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    loop {
        let length = LENGTHS[month] + u64::from(month == 1 && is_leap(year));
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!(
        "{}, {:02} {} {year} {:02}:{:02}:{:02} GMT",
        WEEKDAYS[(days % 7) as usize],
        day + 1,
        MONTHS[month],
        second / 3600,
        second / 60 % 60,
        second % 60,
    )
}

/// Holds replies back until it is opened, all of those that were given a clone of it. It does not close again.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A gate that is still closed.
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everything pass, now and later.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    /// Waits until the gate is open.
    pub(crate) async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.expect("we hold the sender");
    }
}

/// What all connections of one endpoint share.
struct Stage {
    tls: Option<TlsAcceptor>,
    script: Script,
    seen: watch::Sender<Seen>,
}

impl Stage {
    async fn serve(&self, tcp: TcpStream, id: usize, manner: OnAccept) {
        match manner {
            OnAccept::CloseAtOnce => {
                let mut connection = Connection::new(tcp, id);
                connection.socket.shutdown().await.ok();
                // A socket that is dropped with bytes still to be read resets the connection.
                connection.peer_left().await;
            }
            OnAccept::ResetAtOnce => reset(&tcp),
            OnAccept::Hold => {
                Connection::new(tcp, id).peer_left().await;
                self.count_gone();
            }
            OnAccept::Serve => match &self.tls {
                None => self.converse(Connection::new(tcp, id)).await,
                Some(tls) => {
                    if let Ok(socket) = tls.accept(tcp).await {
                        self.converse(Connection::new(socket, id)).await;
                    }
                }
            },
        }
    }

    async fn converse<S: Socket>(&self, mut connection: Connection<S>) {
        while let Some(request) = connection.next_request().await {
            let says_close =
                request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let mut n = 0;
            self.seen.send_modify(|seen| {
                n = seen.requests.len();
                seen.requests.push(request.clone());
            });
            let reply = (self.script)(n, &request);
            match connection.reply(reply, n).await {
                Ok(Next::Request) if !says_close => {}
                Ok(_) => return,
                Err(PeerLeft) => return self.count_gone(),
            }
        }
    }

    fn count_gone(&self) {
        self.seen.send_modify(|seen| seen.gone += 1);
    }
}

/// Makes the coming drop of the socket a reset instead of a close.
fn reset(tcp: &TcpStream) {
    tcp.set_zero_linger().expect("a socket takes options");
}

/// A byte stream whose TCP socket can be reached, to reset it.
trait Socket: AsyncRead + AsyncWrite + Unpin {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

struct Connection<S> {
    socket: S,
    id: usize,
    /// Read from the socket, not yet part of a request.
    unread: Vec<u8>,
}

/// The client closed, or reset, or was closed by force.
struct PeerLeft;

/// What the connection is good for after a reply.
enum Next {
    Request,
    End,
}

impl From<io::Error> for PeerLeft {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl<S: Socket> Connection<S> {
    fn new(socket: S, id: usize) -> Self {
        Self { socket, id, unread: Vec::new() }
    }

    /// `None` when the client leaves first, be it in the middle of a request.
    async fn next_request(&mut self) -> Option<Request> {
        let Head { method, path, headers } = read_head(&mut self.socket, &mut self.unread).await.ok()?;
        assert!(
            !headers.contains_key(header::TRANSFER_ENCODING),
            "a chunked request, which no script understands"
        );
        let length = headers.get(header::CONTENT_LENGTH).map_or(0, |value| {
            value.to_str().ok().and_then(|value| value.parse().ok()).expect("content-length is a number")
        });
        while self.unread.len() < length {
            read_some(&mut self.socket, &mut self.unread).await.ok()?;
        }
        let at = Instant::now();
        let body = self.unread.drain(..length).collect();
        Some(Request { method, path, headers, body, connection: self.id, at })
    }

    async fn reply(&mut self, reply: Reply, n: usize) -> Result<Next, PeerLeft> {
        let Reply { gate, delay, act } = reply;
        if let Some(gate) = gate {
            self.unless_left(gate.opened()).await?;
        }
        self.pause(delay).await?;
        match act {
            Act::Answer(answer) => self.send(answer, n).await,
            Act::BytesThenClose(bytes) => {
                self.socket.write_all(&bytes).await?;
                self.end().await
            }
            Act::BytesThenReset(bytes) => {
                self.socket.write_all(&bytes).await?;
                self.socket.flush().await?;
                reset(self.socket.tcp());
                Ok(Next::End)
            }
            Act::Never => {
                self.peer_left().await;
                Err(PeerLeft)
            }
        }
    }

    async fn send(&mut self, answer: Answer, n: usize) -> Result<Next, PeerLeft> {
        let (mut bytes, keep) = answer.head(n);
        match answer.pace {
            None => {
                bytes.extend(answer.body);
                self.socket.write_all(&bytes).await?;
            }
            Some(pace) => {
                self.socket.write_all(&bytes).await?;
                self.socket.flush().await?;
                for byte in answer.body {
                    self.pause(pace).await?;
                    self.socket.write_all(&[byte]).await?;
                    self.socket.flush().await?;
                }
            }
        }
        self.socket.flush().await?;
        if keep { Ok(Next::Request) } else { self.end().await }
    }

    /// Ends the stream after what was written. A client that is no longer there to see it has its whole reply.
    async fn end(&mut self) -> Result<Next, PeerLeft> {
        self.socket.shutdown().await.ok();
        Ok(Next::End)
    }

    async fn pause(&mut self, duration: Duration) -> Result<(), PeerLeft> {
        if duration.is_zero() { Ok(()) } else { self.unless_left(sleep(duration)).await }
    }

    async fn unless_left(&mut self, event: impl Future<Output = ()>) -> Result<(), PeerLeft> {
        let event = pin!(event);
        tokio::select! {
            biased;
            () = self.peer_left() => Err(PeerLeft),
            () = event => Ok(()),
        }
    }

    /// Returns when the client has closed. What it sends until then is kept for the next request.
    async fn peer_left(&mut self) {
        while read_some(&mut self.socket, &mut self.unread).await.is_ok() {}
    }
}

/// The request line and the headers of a request.
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

/// Reads one head, and leaves in `unread` whatever follows it. An error if the stream ends first; a panic if this
/// is no HTTP/1.1.
pub(crate) async fn read_head(
    socket: &mut (impl AsyncRead + Unpin),
    unread: &mut Vec<u8>,
) -> io::Result<Head> {
    let end = loop {
        if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        assert!(unread.len() <= LONGEST_HEAD, "no HTTP/1.1: {LONGEST_HEAD} bytes, and the head has no end");
        read_some(socket, unread).await?;
    };
    let head: Vec<u8> = unread.drain(..end + 4).collect();
    let head = String::from_utf8_lossy(&head[..end]);
    Ok(parse_head(&head).unwrap_or_else(|| panic!("no HTTP/1.1: {head:?}")))
}

fn parse_head(head: &str) -> Option<Head> {
    let mut lines = head.split("\r\n");
    let mut request_line = lines.next()?.split(' ');
    let method = request_line.next()?.parse().ok()?;
    let path = request_line.next()?.to_owned();
    if request_line.next()? != "HTTP/1.1" || request_line.next().is_some() {
        return None;
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        headers.append(name.parse::<HeaderName>().ok()?, value.trim().parse().ok()?);
    }
    Some(Head { method, path, headers })
}

/// Appends what has arrived. An error at the end of the stream. Loses nothing when dropped.
async fn read_some(socket: &mut (impl AsyncRead + Unpin), unread: &mut Vec<u8>) -> io::Result<()> {
    match socket.read_buf(unread).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// A listener on a free port of 127.0.0.1, with a thread and a runtime of its own. Dropping it ends all three and
/// cuts the connections; if one of them panicked, so does the drop.
pub(crate) struct Loopback {
    addr: SocketAddr,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Loopback {
    /// Runs a task of `serve` for each connection, numbered from 0.
    pub(crate) async fn listen<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let listener = listener.into_std().expect("a listener that nobody uses yet");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || runtime.block_on(accept(listener, stopped, serve)));
        Self { addr, runtime: handle, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

async fn accept<F>(
    listener: std::net::TcpListener,
    mut stopped: oneshot::Receiver<()>,
    serve: impl Fn(TcpStream, usize) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a listener that was just bound");
    let mut connections = JoinSet::new();
    let mut ids = 0..;
    loop {
        tokio::select! {
            // A panic of a connection comes first: it must not be lost because the test ends.
            biased;
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                resume_unwind(error.into_panic());
            },
            _ = &mut stopped => return,
            accepted = listener.accept() => {
                let (tcp, _) = accepted.expect("a loopback listener accepts");
                tcp.set_nodelay(true).expect("a fresh socket takes options");
                connections.spawn(serve(tcp, ids.next().expect("no end of numbers")));
            }
        }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}
