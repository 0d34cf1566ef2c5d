//! Never more than it can bear: calls at Cognito, calls that wait, connections, and what each of them may hold.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use cognito_signout::pb::{
    AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse,
    sign_out_service_client::SignOutServiceClient,
};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::{Bytes, Service as _},
    metadata::MetadataValue,
};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};
use tonic_types::StatusExt as _;

use crate::{
    attacks,
    harness::{PATIENCE, POOL, PatientChannel, Sidecar, metadata, reason, request},
    observe::Scrape,
    raw::{END_HEADERS, Raw, SIGN_OUT, call_headers, frame, kind},
    scripted::{Gate, Reply, Scripted},
};

#[tokio::test]
async fn a_burst_is_served_whole_over_a_bounded_number_of_connections() {
    const IN_FLIGHT: usize = 32;
    const CALLS: usize = 2000;

    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-in-flight", IN_FLIGHT).start().await;
    let channels: Vec<_> = (0..3).map(|_| sidecar.channel()).collect();
    let mut calls = JoinSet::new();
    for n in 0..CALLS {
        let mut client = SignOutServiceClient::new(channels[n % channels.len()].clone());
        calls.spawn(async move {
            let call = request(POOL, &format!("user{n}"), Duration::from_secs(100));
            client.admin_user_global_sign_out(call).await
        });
    }

    for answer in calls.join_all().await {
        answer.unwrap();
    }
    assert_eq!(upstream.requests().len(), CALLS);
    // Not a call, but a connection may be one too many: a call that waits for a connection takes one that another gives
    // back in the meantime, and the client then keeps both.
    assert!(upstream.connections() <= 2 * IN_FLIGHT, "{} connections to Cognito", upstream.connections());
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_our_fault_and_nothing_was_sent() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--max-in-flight", 1).arg("--attempt-timeout", "60s").start().await;
    let _first = sidecar.spawn_sign_out(POOL, "first");
    upstream.wait_for_requests(1).await;

    let status = sidecar.sign_out_within(POOL, "second", Duration::from_millis(300)).await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(
        (metadata(&status, "outcome").as_str(), metadata(&status, "fault").as_str()),
        ("not_sent", "sidecar")
    );
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--max-in-flight", 1)
        .arg("--max-waiting", 1)
        .arg("--log-level", "debug")
        .start()
        .await;
    let first = sidecar.spawn_sign_out(POOL, "first");
    upstream.wait_for_requests(1).await;
    let second = sidecar.spawn_sign_out(POOL, "second");
    sidecar.log.wait_for_message("waits for its turn").await;

    let status = sidecar.sign_out(POOL, "third").await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert_eq!(metadata(&status, "outcome"), "not_sent");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    gate.open();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_waits_is_served_in_the_order_of_arrival() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--max-in-flight", 1).arg("--log-level", "debug").start().await;
    let mut calls = vec![sidecar.spawn_sign_out(POOL, "user0")];
    upstream.wait_for_requests(1).await;
    for n in 1..6 {
        calls.push(sidecar.spawn_sign_out(POOL, &format!("user{n}")));
        let waiting = || {
            let lines = sidecar.log.lines();
            lines.iter().filter(|line| line["message"] == "waits for its turn").count()
        };
        while waiting() < n {
            tokio::task::yield_now().await;
        }
    }

    gate.open();

    for call in calls {
        call.await.unwrap().unwrap();
    }
    let names: Vec<_> = upstream.requests().iter().map(|request| request.username()).collect();
    assert_eq!(names, ["user0", "user1", "user2", "user3", "user4", "user5"]);
}

#[tokio::test]
async fn idle_connections_beyond_the_limit_make_room_and_a_call_under_way_does_not() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, request| match request.username().as_str() {
        "slow" => Reply::ok().after(&held),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-connections", 8).start().await;
    let slow = sidecar.spawn_sign_out(POOL, "slow");
    upstream.wait_for_requests(1).await;

    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(Raw::connect(sidecar.address()).await);
    }
    // Each over a connection of its own.
    for n in 0..20 {
        sidecar.sign_out(POOL, &format!("honest{n}")).await.unwrap();
    }

    // Of those that came first nothing is left; nor is there ever more than the limit.
    for raw in &mut idle[..40] {
        raw.wait_for_end().await;
    }
    let line = sidecar.log.wait_for_message("--max-connections").await;
    assert_eq!(line["limit"], 8);
    gate.open();
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http_2_in_time_is_cut() {
    let sidecar = Sidecar::before_nothing().arg("--handshake-timeout", "200ms").start().await;
    let mut silent = Raw::connect(sidecar.address()).await;
    let mut slow = Raw::connect(sidecar.address()).await;
    slow.send(b"PRI * HT").await.unwrap();
    let mut prober = Raw::connect(&sidecar.admin().to_string()).await;

    for peer in [&mut silent, &mut slow, &mut prober] {
        peer.wait_for_end().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_idle_or_old_is_asked_to_go_and_then_cut() {
    for flag in ["--idle-timeout", "--max-connection-age"] {
        let sidecar = Sidecar::before_nothing().arg(flag, "300ms").start().await;
        let mut raw = Raw::greeted(sidecar.address()).await;

        raw.wait_for_frame(kind::GOAWAY).await;

        raw.wait_for_end().await;
    }
}

#[tokio::test]
async fn age_costs_a_caller_no_call_that_was_accepted() {
    let upstream = Scripted::start(|_, _| Reply::ok().delayed(Duration::from_millis(20))).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-connection-age", "100ms").start().await;
    let mut client = sidecar.client();
    let begun = Instant::now();
    let (mut answered, mut unsent) = (0, Vec::new());
    while begun.elapsed() < Duration::from_secs(1) {
        let username = format!("user-{}", answered + unsent.len());
        match client.admin_user_global_sign_out(request(POOL, &username, Duration::from_secs(10))).await {
            Ok(_) => answered += 1,
            // tonic's client finds its connection closed before it has sent anything, and leaves the retry to its caller.
            Err(status) if status.message() == "operation was canceled" => unsent.push(username),
            Err(status) => panic!("{status:?}"),
        }
    }
    let seen: Vec<_> = upstream.requests().iter().map(|request| request.username()).collect();
    assert!(
        unsent.iter().all(|username| !seen.contains(username)),
        "a call that was accepted went unanswered"
    );
    assert_eq!(seen.len(), answered);
    assert!(upstream.requests().len() > 10 * unsent.len(), "most calls notice nothing");
}

#[tokio::test]
async fn a_peer_that_gives_no_sign_of_life_is_cut() {
    let sidecar = Sidecar::before_nothing()
        .arg("--keepalive-interval", "200ms")
        .arg("--keepalive-timeout", "200ms")
        .start()
        .await;
    let mut raw = Raw::greeted(sidecar.address()).await;
    raw.wait_for_frame(kind::PING).await;
    raw.wait_for_end().await;
}

#[tokio::test]
async fn too_large_headers_and_messages_are_refused_and_the_next_call_is_served() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.client();

    let mut huge = request(POOL, "ada", Duration::from_secs(10));
    huge.metadata_mut().insert("x-padding", MetadataValue::try_from("x".repeat(20_000)).unwrap());
    client.admin_user_global_sign_out(huge).await.unwrap_err();

    let huge = request(POOL, &"x".repeat(1024 * 1024), Duration::from_secs(10));
    let status = client.admin_user_global_sign_out(huge).await.unwrap_err();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&status.code()), "{status:?}");

    // What only a far too long field makes large is told what is wrong with it.
    let long = request(POOL, &"x".repeat(10_000), Duration::from_secs(10));
    let status = client.admin_user_global_sign_out(long).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_REQUEST");

    client.admin_user_global_sign_out(request(POOL, "ada", Duration::from_secs(10))).await.unwrap();
    assert_eq!(upstream.requests().len(), 1);
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A call whose message never comes.
async fn half_a_call(sidecar: &Sidecar, timeout: Option<Duration>) -> Status {
    // By a client that leaves its deadline to the sidecar.
    let mut grpc = tonic::client::Grpc::new(PatientChannel::connect(sidecar.address()).await);
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::pending::<AdminUserGlobalSignOutRequest>());
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let codec = tonic_prost::ProstCodec::<_, AdminUserGlobalSignOutResponse>::default();
    let path = http::uri::PathAndQuery::from_static(crate::raw::SIGN_OUT);
    grpc.client_streaming(request, path, codec).await.unwrap_err()
}

#[tokio::test]
async fn a_message_that_does_not_come_is_not_waited_for_whatever_the_callers_patience() {
    let sidecar = Sidecar::before_nothing().arg("--call-timeout", "500ms").start().await;
    let long = Some(Duration::from_secs(3600));

    let (none, long) = tokio::join!(half_a_call(&sidecar, None), half_a_call(&sidecar, long));

    for status in [none, long] {
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED", "{status:?}");
        assert_eq!(metadata(&status, "outcome"), "not_sent");
        assert_eq!(metadata(&status, "fault"), "sidecar");
    }
}

/// The one series of refused calls that there is, and that there is no audit event for it: nobody was asked for.
async fn assert_counted(sidecar: &Sidecar, labels: &[&str], times: f64) -> Scrape {
    let scrape = Scrape::until(sidecar, |scrape| scrape.sum("calls_total", labels) >= times).await;
    let unary = [labels, &["method=\"AdminUserGlobalSignOut\"", "fault=\"sidecar\""]].concat();
    assert_eq!(scrape.sum("calls_total", &unary), times);
    assert_eq!(scrape.sum("calls_in_flight", &[]), 0.0);
    let line = sidecar.log.wait_for_message("not signed out").await;
    assert_eq!(line["method"], "AdminUserGlobalSignOut");
    assert_eq!(line["outcome"], "not_sent");
    assert_eq!(line["request_id"].as_str().unwrap().len(), 16);
    scrape
}

#[tokio::test]
async fn calls_whose_message_does_not_come_are_counted_and_leave_no_audit_event() {
    let starter = Sidecar::before_nothing().arg("--call-timeout", "500ms").arg("--audit", "stdout");
    let sidecar = starter.start().await;
    let (none, long) = (None, Some(Duration::from_secs(3600)));
    // Here the caller's own deadline comes first.
    let own = Some(Duration::from_millis(100));

    tokio::join!(half_a_call(&sidecar, none), half_a_call(&sidecar, long), half_a_call(&sidecar, own));

    let late = ["code=\"DEADLINE_EXCEEDED\"", "reason=\"DEADLINE_EXCEEDED\""];
    let scrape = assert_counted(&sidecar, &late, 3.0).await;
    assert_eq!(scrape.sum("calls_total", &[]), 3.0);
    let lines = sidecar.log.lines();
    let traced = lines.iter().filter(|line| line["trace_id"] == TRACE && line["request_id"].is_string());
    assert_eq!(traced.count(), 3);

    // Events come in the order of the calls, so this one would come after theirs.
    sidecar.sign_out("nonsense", "ada").await.unwrap_err();
    sidecar.stdout.wait_for(|event| event["reason"] == "INVALID_REQUEST").await;
    assert_eq!(sidecar.stdout.lines().len(), 1, "{}", sidecar.stdout.text());
}

#[tokio::test]
async fn a_call_that_is_refused_at_the_door_is_counted_and_leaves_no_audit_event() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    // Two calls at one time, whatever they are doing.
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--max-in-flight", 1)
        .arg("--max-waiting", 0)
        .arg("--call-timeout", "1h")
        .arg("--audit", "stdout")
        .start()
        .await;
    // Two whose message does not come; the answer to a ping says that they have arrived.
    let mut raw = Raw::greeted(sidecar.address()).await;
    for stream in [1, 3] {
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &call_headers(SIGN_OUT))).await.unwrap();
    }
    raw.send(&frame(kind::PING, 0, 0, &[7; 8])).await.unwrap();
    raw.wait_for_frame(kind::PING).await;

    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();

    assert_eq!(reason(&status), "OVERLOADED");
    assert!(upstream.requests().is_empty(), "it is not the queue that is full");
    let scrape =
        assert_counted(&sidecar, &["code=\"RESOURCE_EXHAUSTED\"", "reason=\"OVERLOADED\""], 1.0).await;
    assert_eq!(scrape.sum("calls_shed_total", &["reason=\"OVERLOADED\""]), 1.0);
    drop(raw);
    let served = async { while sidecar.sign_out(POOL, "ada").await.is_err() {} };
    timeout(PATIENCE, served).await.expect("there is room again");
    let event = sidecar.stdout.wait_for(|event| event["schema"].is_string()).await;
    assert_eq!(event["outcome"], "signed_out", "the first event");
}

/// Asks by a whole call on a stream.
pub(crate) fn raw_call(stream: u32, username: &str) -> Vec<u8> {
    let request =
        AdminUserGlobalSignOutRequest { user_pool_id: POOL.to_owned(), username: username.to_owned() };
    attacks::call(stream, &attacks::message(&request.encode_to_vec()))
}

#[tokio::test]
async fn a_client_keeps_back_what_is_beyond_max_streams_and_one_that_does_not_is_refused() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream =
        Scripted::start(move |n, _| if n == 0 { Reply::ok() } else { Reply::ok().after(&held) }).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-streams", 2).start().await;
    let mut client = sidecar.client();
    // After an answer the client knows the server's settings.
    client.admin_user_global_sign_out(request(POOL, "first", PATIENCE)).await.unwrap();
    let mut calls = JoinSet::new();
    for n in 0..5 {
        let mut client = client.clone();
        let call = request(POOL, &format!("user{n}"), PATIENCE);
        calls.spawn(async move { client.admin_user_global_sign_out(call).await });
    }
    upstream.wait_for_requests(3).await;

    let mut raw = Raw::connect(sidecar.address()).await;
    raw.greet().await.unwrap();
    let settings = raw.wait_for_frame(kind::SETTINGS).await;
    let most_streams = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("a limit is told");
    assert_eq!(most_streams[2..], 2_u32.to_be_bytes());
    for (stream, username) in [(1, "raw1"), (3, "raw3"), (5, "raw5")] {
        raw.send(&raw_call(stream, username)).await.unwrap();
    }
    // REFUSED_STREAM: nothing was done for it, so it may be asked again.
    assert_eq!(raw.wait_for_frame(kind::RST_STREAM).await, 7_u32.to_be_bytes());
    upstream.wait_for_requests(5).await;
    // One that the client had not kept back would have come before those of the other connection.
    assert_eq!(upstream.requests().len(), 5);

    gate.open();
    for answer in calls.join_all().await {
        answer.unwrap();
    }
    for _ in 0..2 {
        raw.wait_for_frame(kind::HEADERS).await;
    }
    let mut names: Vec<_> = upstream.requests().iter().map(|request| request.username()).collect();
    names.sort();
    assert_eq!(names, ["first", "raw1", "raw3", "user0", "user1", "user2", "user3", "user4"]);
}

/// The beginning of a body whose end never comes.
struct Unfinished(Option<Bytes>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

#[tokio::test]
async fn messages_that_have_not_arrived_in_full_take_16_mib_and_no_more() {
    const CALLS: usize = 300;
    const EACH: usize = 60_000;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--call-timeout", "120s").start().await;
    let before = sidecar.resident_mib();
    let mut part = attacks::message(&[b'x'; EACH]);
    part[1..5].copy_from_slice(&65_000_u32.to_be_bytes());
    // So many more than 16 MiB hold.
    let beyond = CALLS - 16 * 1024 * 1024 / part.len();

    // Twice: what was held is given back when its peer goes away.
    for round in ["first", "second"] {
        let (answer, mut answers) = mpsc::unbounded_channel();
        let connection = PatientChannel::connect(sidecar.address()).await;
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let (mut connection, answer) = (connection.clone(), answer.clone());
            let request = http::Request::post(crate::raw::SIGN_OUT)
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::new(Unfinished(Some(part.clone().into()))))
                .unwrap();
            calls.spawn(async move {
                let response = connection.call(request).await.unwrap();
                answer.send(Status::from_header_map(response.headers()).unwrap()).unwrap();
            });
        }
        for _ in 0..beyond {
            let status = timeout(PATIENCE, answers.recv()).await.expect("more is held than allowed").unwrap();
            assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
            assert_eq!(metadata(&status, "outcome"), "not_sent");
        }
        // What was refused has made room for who asks for little.
        sidecar.sign_out(POOL, round).await.unwrap();
        let more = answers.len();
        assert!(more < beyond, "{more} more were refused than there was no room for");
        let grown = sidecar.resident_mib() - before;
        println!("{round}: refused={} grown={grown:.1} MiB", beyond + more);
        assert!(grown < 64.0, "{grown} MiB");
    }
}

#[tokio::test]
async fn no_more_streams_than_1024_of_bulk_and_64_of_reflection() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::before(&upstream).await;
    let refused = |status: Status| {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    };

    let client = sidecar.client();
    let mut opening = JoinSet::new();
    for _ in 0..1024 {
        let mut client = client.clone();
        opening.spawn(async move {
            // A stream goes on until both its halves are gone.
            let (sender, requests) = mpsc::channel(1);
            let answers = client.bulk_admin_user_global_sign_out(ReceiverStream::new(requests)).await;
            (sender, answers.unwrap())
        });
    }
    let mut streams = opening.join_all().await;
    // Over a connection of its own, for this one has no more streams to give.
    let mut other = sidecar.client();
    refused(other.bulk_admin_user_global_sign_out(tokio_stream::pending()).await.unwrap_err());
    // Single calls have their own room, and whoever leaves makes some.
    sidecar.sign_out(POOL, "ada").await.unwrap();
    streams.pop();
    let again = async {
        while other.bulk_admin_user_global_sign_out(tokio_stream::pending()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("a stream that has ended makes no room");

    let mut reflection = ServerReflectionClient::new(sidecar.channel());
    let asks = tokio_stream::pending::<ServerReflectionRequest>;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(reflection.server_reflection_info(asks()).await.unwrap());
    }
    refused(reflection.server_reflection_info(asks()).await.unwrap_err());
}

#[tokio::test]
async fn more_file_descriptors_are_asked_for_where_there_are_too_few() {
    let allowed = |sidecar: &Sidecar| {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.pid())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap().to_owned();
        line.split_whitespace().take(2).map(|limit| limit.parse().unwrap()).collect::<Vec<u32>>()
    };
    // --max-connections, twice --max-in-flight, and 400.
    let sidecar = Sidecar::before_nothing().descriptors(512, 4096).start().await;
    sidecar.log.wait_for_message("more file descriptors are allowed now").await;
    assert_eq!(allowed(&sidecar), [1024 + 2 * 256 + 400, 4096]);

    let sidecar = Sidecar::before_nothing().descriptors(512, 700).arg("--max-in-flight", 10).start().await;
    let line = sidecar.log.wait_for_message("too few file descriptors").await;
    assert_eq!(
        (&line["level"], &line["needed"], &line["allowed"]),
        (&"WARN".into(), &1444.into(), &700.into())
    );
    assert_eq!(allowed(&sidecar), [700, 700]);

    // Where there are enough nothing is changed, and nothing is said.
    let sidecar = Sidecar::before_nothing().descriptors(2000, 4096).start().await;
    assert_eq!(sidecar.health("").await, tonic_health::pb::health_check_response::ServingStatus::Serving);
    assert_eq!(allowed(&sidecar), [2000, 4096]);
    assert!(!sidecar.log.text().contains("file descriptors"));
}
