//! The way out: what was accepted is answered, and nothing else holds the process.

use std::{
    collections::HashSet,
    process::ExitStatus,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cognito_signout::pb::sign_out_service_client::SignOutServiceClient;
use tokio::{net::TcpStream, task::JoinSet, time::sleep};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::{
    harness::{Log, POOL, Sidecar, metadata, path_in, reason, request},
    limits::raw_call,
    observe::Scrape,
    raw::{ACK, END_HEADERS, Raw, SIGN_OUT, call_headers, frame, kind},
    scripted::{Gate, Reply, Scripted},
};

/// Far longer than any stop here should take.
const LONG: &str = "25s";

async fn stops(sidecar: Sidecar) -> (ExitStatus, Log) {
    let (status, log) = sidecar.ended().await;
    assert_eq!(status.code(), Some(0), "{}", log.text());
    (status, log)
}

/// It ended because all was done, and not because the time was up.
async fn stops_by_itself(sidecar: Sidecar) {
    let (_, log) = stops(sidecar).await;
    log.wait_for_message("stopped: everything is answered").await;
}

async fn refuses_connections(sidecar: &Sidecar) {
    sidecar.log.wait_for_message("stopping: taking no more work").await;
    while TcpStream::connect(sidecar.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

async fn calls_under_way_are_answered(signal: &str) {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start().await;
    let calls: Vec<_> = (0..10).map(|n| sidecar.spawn_sign_out(POOL, &format!("user{n}"))).collect();
    upstream.wait_for_requests(10).await;

    sidecar.signal(signal);
    refuses_connections(&sidecar).await;
    gate.open();

    for call in calls {
        call.await.unwrap().unwrap();
    }
    stops_by_itself(sidecar).await;
}

#[tokio::test]
async fn calls_that_are_at_cognito_are_answered_after_sigterm() {
    calls_under_way_are_answered("TERM").await;
}

#[tokio::test]
async fn calls_that_are_at_cognito_are_answered_after_sigint() {
    calls_under_way_are_answered("INT").await;
}

#[tokio::test]
async fn peers_that_ask_for_nothing_do_not_hold_the_exit() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start().await;
    let _silent = Raw::connect(sidecar.address()).await;
    let _greeted = Raw::greeted(sidecar.address()).await;
    let mut half = Raw::greeted(sidecar.address()).await;
    half.send(&frame(kind::HEADERS, END_HEADERS, 1, &call_headers(SIGN_OUT))).await.unwrap();
    let mut idle = sidecar.client();
    idle.admin_user_global_sign_out(request(POOL, "ada", Duration::from_secs(10))).await.unwrap();

    sidecar.signal("TERM");

    stops_by_itself(sidecar).await;
}

/// A peer that is busy may have more to write before it comes to read. Were the socket closed then, the write would fail,
/// and with it every call on the connection whose answer it has not read yet.
#[tokio::test]
async fn a_peer_that_still_writes_when_all_is_answered_gets_its_answers() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start().await;
    let mut raw = Raw::greeted(sidecar.address()).await;
    raw.send(&raw_call(1, "ada")).await.unwrap();
    upstream.wait_for_requests(1).await;

    sidecar.signal("TERM");
    // It asks whether all that is under way has come, and ends the connection when it knows.
    let question = raw.wait_for_frame(kind::PING).await;
    raw.send(&frame(kind::PING, ACK, 0, &question)).await.unwrap();
    gate.open();
    let begun = Instant::now();
    for _ in 0..10 {
        sleep(Duration::from_millis(20)).await;
        let written = raw.send(&frame(kind::PING, 0, 0, &[7; 8])).await;
        // After a second it may be: and this machine may be a slow one.
        assert!(written.is_ok() || begun.elapsed() > Duration::from_millis(900), "{written:?}");
    }
    raw.wait_for_frame(kind::HEADERS).await;
    drop(raw);
    stops_by_itself(sidecar).await;
}

#[tokio::test]
async fn watches_and_idle_streams_are_ended() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start().await;
    let ask = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(sidecar.channel()).watch(ask).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asks = tokio_stream::StreamExt::chain(tokio_stream::once(list), tokio_stream::pending());
    let mut reflection = ServerReflectionClient::new(sidecar.channel());
    let mut reflection = reflection.server_reflection_info(asks).await.unwrap().into_inner();
    reflection.message().await.unwrap().unwrap();

    sidecar.signal("TERM");

    let mut last = ServingStatus::Unknown;
    while let Ok(Some(told)) = watch.message().await {
        last = told.status();
    }
    assert_eq!(last, ServingStatus::NotServing);
    while let Ok(Some(_)) = reflection.message().await {}
    stops_by_itself(sidecar).await;
}

#[tokio::test]
async fn what_waits_is_told_and_what_backs_off_too_while_what_is_at_cognito_is_finished() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, request| match request.username().as_str() {
        "throttled" => Reply::aws_error(400, "TooManyRequestsException", "slow down")
            .header("x-amz-retry-after", "20000"),
        _ => Reply::ok().after(&held),
    })
    .await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--max-in-flight", 1)
        .arg("--log-level", "debug")
        .arg("--drain-timeout", LONG)
        .start()
        .await;
    let backs_off = sidecar.spawn_sign_out(POOL, "throttled");
    upstream.wait_for_requests(1).await;
    let at_cognito = sidecar.spawn_sign_out(POOL, "first");
    upstream.wait_for_requests(2).await;
    // Who is at Cognito may have had to wait too, for the one that backs off.
    let waited = || {
        let lines = sidecar.log.lines();
        lines.iter().filter(|line| line["message"] == "waits for its turn").count()
    };
    let before = waited();
    let waits = sidecar.spawn_sign_out(POOL, "second");
    while waited() == before {
        tokio::task::yield_now().await;
    }

    sidecar.signal("TERM");

    for (call, outcome) in [(waits, "not_sent"), (backs_off, "refused")] {
        let status = call.await.unwrap().unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unavailable, "SHUTTING_DOWN"),
            "{status:?}"
        );
        assert_eq!(metadata(&status, "outcome"), outcome);
    }
    gate.open();
    at_cognito.await.unwrap().unwrap();
    assert_eq!(upstream.requests().len(), 2);
    stops_by_itself(sidecar).await;
}

#[tokio::test]
async fn a_call_whose_message_has_not_come_is_told_and_counted() {
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start().await;
    // What keeps the process there, to be asked.
    let at_cognito = sidecar.spawn_sign_out(POOL, "ada");
    upstream.wait_for_requests(1).await;
    let mut raw = Raw::greeted(sidecar.address()).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &call_headers(SIGN_OUT))).await.unwrap();
    raw.send(&frame(kind::PING, 0, 0, &[7; 8])).await.unwrap();
    raw.wait_for_frame(kind::PING).await;

    sidecar.signal("TERM");

    raw.wait_for_frame(kind::HEADERS).await;
    let scrape = Scrape::until(&sidecar, |scrape| scrape.sum("calls_total", &[]) >= 1.0).await;
    let told = ["code=\"UNAVAILABLE\"", "reason=\"SHUTTING_DOWN\"", "fault=\"sidecar\""];
    assert_eq!(scrape.sum("calls_total", &told), 1.0);
    assert_eq!(scrape.sum("calls_shed_total", &["reason=\"SHUTTING_DOWN\""]), 1.0);
    gate.open();
    at_cognito.await.unwrap().unwrap();
    stops_by_itself(sidecar).await;
}

#[tokio::test]
async fn during_the_delay_everything_is_served_as_before_but_not_ready_and_a_second_signal_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_in(&dir, "api.sock");
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--listen", "127.0.0.1:0")
        .arg("--listen", format!("unix:{path}"))
        .arg("--drain-delay", "20s")
        .arg("--drain-timeout", LONG)
        .start()
        .await;
    assert_eq!(sidecar.addresses().len(), 2);
    let begun = Instant::now();

    sidecar.signal("TERM");
    sidecar.log.wait_for_message("stopping: not ready any more").await;

    // The channels are new: connections are taken as before.
    sidecar.sign_out(POOL, "ada").await.unwrap();
    let health = HealthClient::new(sidecar.channel()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status(), ServingStatus::NotServing);

    sidecar.signal("TERM");
    let address = sidecar.address().to_owned();
    let (_, log) = stops(sidecar).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{}", log.text());
    assert!(!std::path::Path::new(&path).exists(), "the socket file is gone");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_drain_deadline_cuts_what_is_left() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--attempt-timeout", "60s")
        .arg("--drain-timeout", "300ms")
        .start()
        .await;
    let call = sidecar.spawn_sign_out(POOL, "ada");
    upstream.wait_for_requests(1).await;

    sidecar.signal("TERM");

    let (_, log) = stops(sidecar).await;
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(reason(&status), "SHUTTING_DOWN");
    assert_eq!(metadata(&status, "outcome"), "unknown", "it may have happened all the same");
    log.wait_for_message("stopped by --drain-timeout").await;
}

/// UNAVAILABLE; or what tonic's client calls CANCELLED: its connection closed before the request was written to it.
fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable
        || (status.code() == Code::Cancelled && status.message() == "operation was canceled")
}

/// Callers that call without a pause until they are told to end; each calls one of several replicas, and the next one
/// after an UNAVAILABLE, up to `attempts` times for one sign-out.
struct Callers {
    done: Arc<AtomicBool>,
    tasks: JoinSet<Vec<(String, Result<(), Status>)>>,
    answered: Arc<AtomicUsize>,
}

impl Callers {
    fn start(callers: usize, channels: &[Channel], attempts: usize) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (done, answered, channels) = (done.clone(), answered.clone(), channels.to_vec());
            tasks.spawn(async move {
                let mut results = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let name = format!("caller{caller}-{}", results.len());
                    let mut result = Ok(());
                    for attempt in 0..attempts {
                        let channel = channels[(caller + attempt) % channels.len()].clone();
                        let call = request(POOL, &name, Duration::from_secs(20));
                        result = SignOutServiceClient::new(channel)
                            .admin_user_global_sign_out(call)
                            .await
                            .map(drop);
                        if !matches!(&result, Err(status) if is_unavailable(status)) {
                            break;
                        }
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                    let failed = result.is_err();
                    results.push((name, result));
                    if failed {
                        // A replica that is gone refuses at once: so do not spin.
                        sleep(Duration::from_millis(5)).await;
                    }
                }
                results
            });
        }
        Self { done, tasks, answered }
    }

    /// Waits for so many more answers.
    async fn go_on(&self, answers: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + answers;
        while self.answered.load(Ordering::Relaxed) < enough {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) -> Vec<(String, Result<(), Status>)> {
        self.done.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

#[tokio::test]
async fn under_load_no_call_that_was_accepted_goes_unanswered() {
    let signed_out = Arc::new(Mutex::new(HashSet::new()));
    let seen = signed_out.clone();
    let upstream = Scripted::start(move |_, request| {
        seen.lock().unwrap().insert(request.username());
        Reply::ok().delayed(Duration::from_millis(10))
    })
    .await;
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--drain-delay", "200ms").arg("--drain-timeout", LONG).start().await;
    let channels: Vec<_> = (0..4).map(|_| sidecar.channel()).collect();
    let callers = Callers::start(32, &channels, 1);
    callers.go_on(300).await;

    sidecar.signal("TERM");
    callers.go_on(300).await;
    stops_by_itself(sidecar).await;
    callers.go_on(32).await;

    let results = callers.end().await;
    let sent = signed_out.lock().unwrap();
    let mut told = 0;
    for (name, result) in results {
        match result {
            Ok(()) => assert!(sent.contains(&name)),
            // Ours says so by its reason; the client's own UNAVAILABLE has none, and is for what was never accepted.
            Err(status) => {
                assert!(is_unavailable(&status), "{name}: {status:?}");
                assert!(!sent.contains(&name), "{name} was sent, and its caller does not know: {status:?}");
                assert!(["", "SHUTTING_DOWN"].contains(&reason(&status).as_str()), "{status:?}");
                told += 1;
            }
        }
    }
    assert!(told > 0, "the callers went on after the end");
}

#[tokio::test]
async fn with_two_replicas_a_caller_that_retries_unavailable_sees_no_error() {
    let upstream = Scripted::start(|_, _| Reply::ok().delayed(Duration::from_millis(10))).await;
    let start = || Sidecar::at(&upstream.url()).arg("--drain-timeout", LONG).start();
    let (leaving, staying) = (start().await, start().await);
    let callers = Callers::start(32, &[leaving.channel(), staying.channel()], 4);
    callers.go_on(300).await;

    leaving.signal("TERM");
    callers.go_on(300).await;
    stops_by_itself(leaving).await;
    callers.go_on(300).await;

    for (name, result) in callers.end().await {
        result.unwrap_or_else(|status| panic!("{name}: {status:?}"));
    }
}
