//! Does the scripted endpoint keep its promises? Asked over a bare socket, since the bytes are what matters.

use std::{
    any::Any,
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::scripted::{Gate, OnAccept, Reply, Request, Scripted, http_date, request_id};

/// A client of few words on one connection.
pub(crate) struct Client<S>(pub(crate) S);

#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Client<TcpStream> {
    async fn of(endpoint: &Scripted) -> Self {
        Self(TcpStream::connect(endpoint.addr()).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn ask(&mut self, body: &str) -> Answer {
        self.send(body).await;
        self.answer().await
    }

    pub(crate) async fn send(&mut self, body: &str) {
        let length = body.len();
        let request = format!("POST / HTTP/1.1\r\nHost: aws\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            headers.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        let mut body = Vec::new();
        match headers.get("content-length") {
            Some(length) => {
                body.resize(length.to_str().unwrap().parse().unwrap(), 0);
                self.0.read_exact(&mut body).await.unwrap();
            }
            None => {
                self.0.read_to_end(&mut body).await.unwrap();
            }
        }
        Answer { status, headers, body }
    }

    /// Everything up to the end of the stream, or the kind of error instead of an end.
    pub(crate) async fn rest(&mut self) -> Result<String, ErrorKind> {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).await.map_err(|error| error.kind())?;
        Ok(rest)
    }
}

/// What a panic said; a message without arguments is no `String`.
fn said(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap()
}

async fn replying(reply: Reply) -> Scripted {
    Scripted::start(move |_, _: &Request| reply.clone()).await
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let endpoint =
        Scripted::start(|n, request| Reply::http(200, format!("{n} {}", request.username()))).await;
    let mut first = Client::of(&endpoint).await;

    assert_eq!(first.ask(r#"{"Username":"ada"}"#).await.body, b"0 ada");
    assert_eq!(first.ask(r#"{"Username":"bob"}"#).await.body, b"1 bob");
    assert_eq!(endpoint.connections(), 1);

    let mut second = Client::of(&endpoint).await;
    assert_eq!(second.ask(r#"{"Username":"eve"}"#).await.body, b"2 eve");

    let requests = endpoint.wait_for_requests(3).await;
    assert_eq!(requests.iter().map(|request| request.connection).collect::<Vec<_>>(), [0, 0, 1]);
    assert!(requests.is_sorted_by_key(|request| request.at));
    assert_eq!(endpoint.connections(), 2);
}

#[tokio::test]
async fn requests_may_come_in_crumbs_and_in_heaps() {
    let endpoint = Scripted::start(|_, request| Reply::http(200, request.body.clone())).await;
    let mut client = Client::of(&endpoint).await;

    for byte in b"PUT /latest/api/token?x=1 HTTP/1.1\r\nX-Ttl:60\r\ncontent-length: 2\r\n\r\nhi" {
        client.0.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await.body, b"hi");

    client.0.write_all(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.body, b"");
    assert_eq!(client.answer().await.body, b"");

    let requests = endpoint.requests();
    assert_eq!(requests[0].method, "PUT");
    assert_eq!(requests[0].path, "/latest/api/token?x=1");
    assert_eq!(requests[0].header("x-ttl"), Some("60"));
    assert_eq!(requests[1].path, "/a");
    assert_eq!(requests[2].path, "/b");
}

#[tokio::test]
async fn a_request_in_the_pipe_is_no_sign_of_leaving() {
    let gate = Gate::closed();
    let endpoint = Scripted::start({
        let gate = gate.clone();
        move |n, _| {
            if n == 0 { Reply::ok().after(&gate) } else { Reply::http(200, "second") }
        }
    })
    .await;
    let mut client = Client::of(&endpoint).await;

    client.send("{}").await;
    endpoint.wait_for_requests(1).await;
    client.send("{}").await;
    gate.open();

    assert_eq!(client.answer().await.body, b"{}");
    assert_eq!(client.answer().await.body, b"second");
}

#[tokio::test]
async fn what_a_request_says_is_at_hand() {
    let endpoint = replying(Reply::ok()).await;
    let mut client = Client::of(&endpoint).await;
    let body = r#"{"UserPoolId":"eu-west-3_Abc","Username":"ada"}"#;
    let request = format!(
        "POST / HTTP/1.1\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential=AKIDEXAMPLE/20260102/eu-west-3/cognito-idp/aws4_request, SignedHeaders=host, Signature=00\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len(),
    );

    client.0.write_all(request.as_bytes()).await.unwrap();
    client.answer().await;
    client.ask("{}").await;

    let requests = endpoint.requests();
    assert_eq!(requests[0].region().as_deref(), Some("eu-west-3"));
    assert_eq!(requests[0].access_key_id().as_deref(), Some("AKIDEXAMPLE"));
    assert_eq!(requests[0].user_pool_id(), "eu-west-3_Abc");
    assert_eq!(requests[0].username(), "ada");
    assert_eq!(requests[1].region(), None);
    assert_eq!(requests[1].access_key_id(), None);
}

#[tokio::test]
async fn answers_look_like_those_of_aws() {
    let endpoint = Scripted::start(|n, _| match n {
        0 => Reply::ok(),
        1 => Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded"),
        2 => Reply::json(json!({ "Token": "t" })),
        3 => Reply::http(503, "<html>").header("retry-after", "7").without_header("date"),
        _ => Reply::ok().header("x-amzn-requestid", "mine").without_header("content-length"),
    })
    .await;
    let mut client = Client::of(&endpoint).await;

    let ok = client.ask("{}").await;
    assert_eq!((ok.status, ok.body.as_slice()), (200, b"{}".as_slice()));
    assert_eq!(ok.headers["x-amzn-requestid"], request_id(0));
    assert_eq!(ok.headers["content-type"], "application/x-amz-json-1.1");
    let now = SystemTime::now();
    assert!((0..60).any(|ago| ok.headers["date"] == http_date(now - Duration::from_secs(ago))));

    let throttled = client.ask("{}").await;
    assert_eq!(throttled.status, 400);
    assert_eq!(throttled.headers["x-amzn-errortype"], "TooManyRequestsException");
    assert_eq!(throttled.headers["x-amzn-requestid"], request_id(1));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&throttled.body).unwrap(),
        json!({ "__type": "TooManyRequestsException", "message": "Rate exceeded" }),
    );

    let credentials = client.ask("{}").await;
    assert_eq!(credentials.headers["content-type"], "application/json");
    assert!(!credentials.headers.contains_key("x-amzn-requestid"));

    let unavailable = client.ask("{}").await;
    assert_eq!(unavailable.status, 503);
    assert_eq!(unavailable.headers["retry-after"], "7");
    assert!(!unavailable.headers.contains_key("date"));

    let unframed = client.ask("{}").await;
    assert_eq!(unframed.headers["x-amzn-requestid"], "mine");
    assert_eq!(unframed.body, b"{}", "ended by the stream");
}

#[tokio::test]
async fn a_close_is_an_end_and_a_reset_is_a_reset() {
    let endpoint = Scripted::start(|n, _| if n == 0 { Reply::close() } else { Reply::reset() }).await;

    let mut closed = Client::of(&endpoint).await;
    closed.send("{}").await;
    assert_eq!(closed.rest().await, Ok(String::new()));

    let mut cut = Client::of(&endpoint).await;
    cut.send("{}").await;
    assert_eq!(cut.rest().await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_answer_can_end_anywhere() {
    let endpoint = Scripted::start(|n, _| match n {
        0 => Reply::cut_short(),
        1 => Reply::cut_in_headers(),
        _ => Reply::raw("SSH-2.0-nonsense\r\n"),
    })
    .await;

    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;
    let short = client.rest().await.unwrap();
    let (head, body) = short.split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with("content-length: 100"));
    assert_eq!(body.len(), 10);

    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;
    assert_eq!(client.rest().await.unwrap(), "HTTP/1.1 200 OK\r\ncontent-le");

    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;
    assert_eq!(client.rest().await.unwrap(), "SSH-2.0-nonsense\r\n");
}

#[tokio::test]
async fn a_connection_can_end_behind_a_good_answer() {
    let endpoint = replying(Reply::ok().then_close()).await;
    let mut client = Client::of(&endpoint).await;

    let answer = client.ask("{}").await;

    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("connection"), "the client is not warned");
    assert_eq!(client.rest().await, Ok(String::new()));
}

#[tokio::test]
async fn a_client_that_asks_for_a_close_gets_it() {
    let endpoint = replying(Reply::ok()).await;
    let mut client = Client::of(&endpoint).await;

    client.0.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();

    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.rest().await, Ok(String::new()));
}

#[tokio::test]
async fn whoever_leaves_an_unfinished_exchange_is_noticed() {
    let never = Gate::closed();
    let minute = Duration::from_secs(60);
    let endpoint = Scripted::start(move |n, _| match n {
        0 => Reply::never(),
        1 => Reply::ok().after(&never),
        2 => Reply::ok().delayed(minute),
        _ => Reply::trickle(200, "{}", minute),
    })
    .await;

    for n in 1..=4 {
        let mut client = Client::of(&endpoint).await;
        client.send("{}").await;
        endpoint.wait_for_requests(n).await;
        drop(client);
        endpoint.wait_for_gone(n).await;
    }
}

#[tokio::test]
async fn leaving_after_the_answer_or_before_the_request_is_no_unfinished_exchange() {
    let endpoint = Scripted::start(|n, _| if n == 0 { Reply::ok() } else { Reply::never() }).await;
    let mut content = Client::of(&endpoint).await;
    content.ask("{}").await;
    drop(content);
    let mut rude = Client::of(&endpoint).await;
    rude.0.write_all(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhal").await.unwrap();
    drop(rude);
    let mut patient = Client::of(&endpoint).await;
    patient.send("{}").await;
    endpoint.wait_for_requests(2).await;

    let one_too_many = tokio::time::timeout(Duration::from_millis(50), endpoint.wait_for_gone(1)).await;

    assert!(one_too_many.is_err());
}

#[tokio::test]
async fn a_gate_holds_all_replies_until_it_is_opened() {
    let gate = Gate::closed();
    let endpoint = replying(Reply::ok().after(&gate)).await;
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        let mut client = Client::of(&endpoint).await;
        clients.spawn(async move { client.ask("{}").await.status });
    }
    endpoint.wait_for_requests(3).await;
    let early = tokio::time::timeout(Duration::from_millis(20), clients.join_next()).await;
    assert!(early.is_err(), "nobody is answered yet");

    gate.open();

    gate.opened().await;
    assert_eq!(clients.join_all().await, [200, 200, 200]);
}

#[tokio::test]
async fn delays_and_trickles_take_their_time() {
    let pause = Duration::from_millis(20);
    let endpoint = Scripted::start(move |n, _| match n {
        0 => Reply::ok().delayed(pause),
        _ => Reply::trickle(200, "{  }", pause),
    })
    .await;
    let mut client = Client::of(&endpoint).await;

    assert_eq!(client.ask("{}").await.body, b"{}");
    let delayed = endpoint.requests()[0].at.elapsed();
    assert!(delayed >= pause);

    assert_eq!(client.ask("{}").await.body, b"{  }");
    let trickled = endpoint.requests()[1].at.elapsed();
    assert!(trickled >= 4 * pause);
}

#[tokio::test]
async fn a_connection_can_fail_before_its_request() {
    let endpoint = Scripted::start_accepting(
        |connection| match connection {
            0 => OnAccept::CloseAtOnce,
            1 => OnAccept::ResetAtOnce,
            2 => OnAccept::Hold,
            _ => OnAccept::Serve,
        },
        |_, _| Reply::ok(),
    )
    .await;

    let mut closed = Client::of(&endpoint).await;
    closed.send("{}").await;
    assert_eq!(closed.rest().await, Ok(String::new()));

    // The reset may be there before the client knows that it is connected.
    let cut = match TcpStream::connect(endpoint.addr()).await {
        Ok(tcp) => Client(tcp).rest().await,
        Err(error) => Err(error.kind()),
    };
    assert_eq!(cut, Err(ErrorKind::ConnectionReset));

    let mut held = Client::of(&endpoint).await;
    held.send("{}").await;
    drop(held);
    endpoint.wait_for_gone(1).await;

    let mut served = Client::of(&endpoint).await;
    assert_eq!(served.ask("{}").await.status, 200);
    endpoint.wait_for_connections(4).await;
    assert_eq!(endpoint.requests().len(), 1);
}

#[tokio::test]
async fn dropping_the_endpoint_cuts_its_connections_and_closes_its_port() {
    let endpoint = replying(Reply::never()).await;
    let addr = endpoint.addr();
    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;
    endpoint.wait_for_requests(1).await;

    drop(endpoint);

    assert_eq!(client.rest().await, Ok(String::new()));
    assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_script_that_panics_fails_the_test() {
    let endpoint = Scripted::start(|_, _| unreachable!("refused first")).await;
    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;
    assert_eq!(client.rest().await, Ok(String::new()));

    let endpoint = Arc::new(endpoint);
    let waiting = tokio::spawn({
        let endpoint = Arc::clone(&endpoint);
        async move { endpoint.wait_for_requests(2).await.len() }
    });
    let panic = waiting.await.unwrap_err().into_panic();
    let message = said(&*panic);
    assert!(message.contains("waited for 2 requests, until the endpoint broke"), "{message}");
    assert!(message.contains("0: POST / "), "{message}");

    let panic = catch_unwind(AssertUnwindSafe(|| drop(endpoint))).unwrap_err();
    assert!(said(&*panic).contains("refused first"));
}

#[tokio::test]
async fn something_other_than_http_fails_the_test() {
    let endpoint = replying(Reply::ok()).await;
    let mut client = Client::of(&endpoint).await;
    client.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.rest().await.ok();

    let panic = catch_unwind(AssertUnwindSafe(|| drop(endpoint))).unwrap_err();

    assert!(said(&*panic).contains("no HTTP/1.1: \"PRI * HTTP/2.0\""));
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_run_out_of_patience() {
    let endpoint = replying(Reply::ok().delayed(Duration::from_millis(20))).await;
    let mut client = Client::of(&endpoint).await;
    client.send("{}").await;

    let (requests, answer) = tokio::join!(endpoint.wait_for_requests(2), async {
        client.answer().await;
        client.ask("{}").await
    });

    assert_eq!((requests.len(), answer.status), (2, 200));
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
        (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
        (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
    ] {
        assert_eq!(http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), date);
    }
}
