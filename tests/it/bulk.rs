//! The stream of many, and the budget that it shares with calls that somebody waits for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cognito_signout::pb::{
    AdminUserGlobalSignOutRequest, BulkAdminUserGlobalSignOutRequest, BulkAdminUserGlobalSignOutResponse,
    bulk_admin_user_global_sign_out_response::Outcome, sign_out_service_client::SignOutServiceClient,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    harness::{PATIENCE, POOL, Sidecar, metadata, reason},
    scripted::{Gate, Reply, Scripted},
};

/// An endpoint that enforces a rate as Cognito does: a bucket of `burst`. Counts what it throttled.
pub(crate) async fn enforcing(rate: f64, burst: f64) -> (Scripted, Arc<AtomicUsize>) {
    let throttled = Arc::new(AtomicUsize::new(0));
    let bucket = Mutex::new((burst, Instant::now()));
    let count = throttled.clone();
    let upstream = Scripted::start(move |_, _| {
        let mut bucket = bucket.lock().unwrap();
        let now = Instant::now();
        bucket.0 = (bucket.0 + (now - bucket.1).as_secs_f64() * rate).min(burst);
        bucket.1 = now;
        if bucket.0 < 1.0 {
            count.fetch_add(1, Ordering::Relaxed);
            return Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded");
        }
        bucket.0 -= 1.0;
        Reply::ok()
    })
    .await;
    (upstream, throttled)
}

pub(crate) fn item(sequence: u64, pool: &str, username: &str) -> BulkAdminUserGlobalSignOutRequest {
    BulkAdminUserGlobalSignOutRequest {
        sequence,
        request: Some(AdminUserGlobalSignOutRequest {
            user_pool_id: pool.to_owned(),
            username: username.to_owned(),
        }),
    }
}

pub(crate) async fn open(
    sidecar: &Sidecar,
) -> (mpsc::Sender<BulkAdminUserGlobalSignOutRequest>, Streaming<BulkAdminUserGlobalSignOutResponse>) {
    let (sender, receiver) = mpsc::channel(16);
    let stream =
        sidecar.client().bulk_admin_user_global_sign_out(ReceiverStream::new(receiver)).await.unwrap();
    (sender, stream.into_inner())
}

async fn next(stream: &mut Streaming<BulkAdminUserGlobalSignOutResponse>) -> (u64, Outcome) {
    let result = timeout(PATIENCE, stream.message()).await.expect("no result").unwrap().expect("the end");
    (result.sequence, result.outcome.unwrap())
}

/// The error of an item as the unary call would have had it.
fn status(outcome: Outcome) -> tonic::Status {
    use prost::Message as _;
    match outcome {
        Outcome::Error(error) => {
            let code = Code::from_i32(error.code);
            tonic::Status::with_details(code, error.message.clone(), error.encode_to_vec().into())
        }
        Outcome::Response(response) => panic!("{response:?}"),
    }
}

#[tokio::test]
async fn each_item_has_the_answer_that_the_unary_call_would_give() {
    let upstream = Scripted::start(|_, request| match request.username().as_str() {
        "nobody" => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let unary = sidecar.sign_out(POOL, "nobody").await.unwrap_err();

    let (sender, mut stream) = open(&sidecar).await;
    let malformed = BulkAdminUserGlobalSignOutRequest { sequence: 4, request: None };
    for request in [
        item(7, POOL, "ada"),
        item(7, "us-west-2_Other", "ada"),
        item(u64::MAX, POOL, "nobody"),
        item(3, "nonsense", ""),
        malformed,
    ] {
        sender.send(request).await.unwrap();
    }
    drop(sender);
    let mut outcomes: HashMap<u64, Vec<Outcome>> = HashMap::new();
    for _ in 0..5 {
        let (sequence, outcome) = next(&mut stream).await;
        outcomes.entry(sequence).or_default().push(outcome);
    }
    assert!(stream.message().await.unwrap().is_none(), "the stream itself is well");

    assert!(outcomes.remove(&7).unwrap().iter().all(|outcome| matches!(outcome, Outcome::Response(_))));
    let mut status_of = |sequence| status(outcomes.remove(&sequence).unwrap().remove(0));
    let nobody = status_of(u64::MAX);
    assert_eq!((nobody.code(), nobody.message()), (unary.code(), unary.message()));
    let info = |status: &tonic::Status| status.get_details_error_info().unwrap();
    assert_eq!(info(&nobody).reason, info(&unary).reason);
    assert_eq!(info(&nobody).metadata, info(&unary).metadata);
    assert_eq!(nobody.get_details_resource_info().unwrap().resource_type, "cognito.user");
    let violations = |status: tonic::Status| {
        let fields = status.get_details_bad_request().unwrap().field_violations;
        fields.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    assert_eq!(violations(status_of(3)), ["user_pool_id", "username"]);
    assert_eq!(violations(status_of(4)), ["request"]);
}

#[tokio::test]
async fn results_come_as_they_are_ready_and_a_caller_that_leaves_ends_what_is_under_way() {
    let upstream = Scripted::start(|_, request| match request.username().as_str() {
        "slow" => Reply::never(),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let (sender, mut stream) = open(&sidecar).await;
    sender.send(item(1, POOL, "slow")).await.unwrap();
    sender.send(item(2, POOL, "quick")).await.unwrap();
    assert_eq!(next(&mut stream).await.0, 2);

    upstream.wait_for_requests(2).await;
    drop((sender, stream));
    upstream.wait_for_gone(1).await;
}

#[tokio::test]
async fn on_sigterm_what_was_sent_is_finished_and_what_was_not_says_so_and_the_stream_ends_well() {
    let gate = Gate::closed();
    let upstream = {
        let gate = gate.clone();
        Scripted::start(move |_, _| Reply::ok().after(&gate)).await
    };
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-in-flight", 1).start().await;
    let (sender, mut stream) = open(&sidecar).await;
    for n in 0..10 {
        sender.send(item(n, POOL, &format!("user{n}"))).await.unwrap();
    }
    upstream.wait_for_requests(1).await;
    sidecar.signal("TERM");

    let mut sequences = Vec::new();
    for _ in 0..9 {
        let (sequence, outcome) = next(&mut stream).await;
        let status = status(outcome);
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
        assert_eq!(metadata(&status, "outcome"), "not_sent");
        sequences.push(sequence);
    }
    gate.open();
    let (sequence, outcome) = next(&mut stream).await;
    assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
    sequences.push(sequence);
    sequences.sort_unstable();
    assert_eq!(sequences, (0..10).collect::<Vec<_>>());
    assert!(stream.message().await.unwrap().is_none());
    assert_eq!(upstream.requests().len(), 1);
    drop((sender, stream));
    assert!(sidecar.ended().await.0.success());
}

#[tokio::test]
async fn the_streams_own_deadline_bounds_its_items() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::before(&upstream).await;
    let (sender, receiver) = mpsc::channel(16);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.set_timeout(Duration::from_millis(800));
    let mut stream = sidecar.client().bulk_admin_user_global_sign_out(request).await.unwrap().into_inner();
    sender.send(item(1, POOL, "ada")).await.unwrap();

    let (_, outcome) = next(&mut stream).await;
    let status = status(outcome);
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert_eq!(metadata(&status, "outcome"), "unknown");
    assert_eq!(reason(&stream.message().await.unwrap_err()), "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_call_that_the_budget_cannot_serve_in_time_is_told_so_at_once() {
    let (upstream, _) = enforcing(1000.0, 1000.0).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--quota-rps", 0.1).start().await;
    sidecar.sign_out(POOL, "ada").await.unwrap();

    let asked = Instant::now();
    let status = sidecar.sign_out_within(POOL, "bob", Duration::from_secs(5)).await.unwrap_err();

    assert!(asked.elapsed() < Duration::from_secs(2));
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUOTA_EXHAUSTED"));
    assert_eq!(
        (metadata(&status, "fault").as_str(), metadata(&status, "outcome").as_str()),
        ("sidecar", "not_sent")
    );
    assert!(status.get_details_quota_failure().is_some());
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait > Duration::from_secs(5), "{wait:?}");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_held_back_in_bounded_memory_and_goes_on_when_it_reads() {
    const USERS: u64 = 30_000;
    let sidecar = Sidecar::before_nothing().start().await;
    let before = sidecar.resident_mib();
    let channel = Endpoint::from_shared(format!("http://{}", sidecar.address()))
        .unwrap()
        .initial_stream_window_size(65_535)
        .connect_lazy();
    let (sender, receiver) = mpsc::channel(16);
    let mut client = SignOutServiceClient::new(channel);
    let stream = client.bulk_admin_user_global_sign_out(ReceiverStream::new(receiver));
    let mut stream = stream.await.unwrap().into_inner();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let send = tokio::spawn(async move {
        for n in 0..USERS {
            // Answered by what is wrong with it, which asks nothing of Cognito and makes a long answer.
            sender.send(item(n, "nonsense", "ada")).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });

    let figures = async || (sent.load(Ordering::Relaxed), calls_answered(&sidecar).await);
    let mut last = (0, 0);
    // It stands still when nothing has moved for a while.
    let (sent_then, answered_then) = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        match figures().await {
            now if now == last => break now,
            now => last = now,
        }
    };
    let grown = sidecar.resident_mib() - before;
    println!("sent={sent_then} answered={answered_then} grown={grown:.1} MiB");
    assert!(sent_then < USERS / 2 && answered_then < USERS / 2, "sent {sent_then}, answered {answered_then}");
    assert!(grown < 30.0, "{grown} MiB");

    let mut seen = vec![false; usize::try_from(USERS).unwrap()];
    for _ in 0..USERS {
        let (sequence, _) = next(&mut stream).await;
        seen[usize::try_from(sequence).unwrap()] = true;
    }
    send.await.unwrap();
    assert!(stream.message().await.unwrap().is_none());
    assert!(seen.into_iter().all(|seen| seen));
    let grown = sidecar.resident_mib() - before;
    assert!(grown < 30.0, "{grown} MiB");
}

/// How many sign-outs the sidecar has answered, whatever came of them.
async fn calls_answered(sidecar: &Sidecar) -> u64 {
    let (_, metrics) = sidecar.get("/metrics").await;
    let lines = metrics.lines().filter(|line| line.starts_with("cognito_signout_calls_total{"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

/// As many as pass in a minute at Cognito's default of 25 a second, four times as fast, by the real process. budget.rs has
/// 10,000 at 25 a second in simulated time, `cargo bench --bench bulk -- --only budget` in real time.
#[tokio::test]
async fn many_are_signed_out_within_the_budget_and_a_call_in_the_middle_does_not_notice() {
    const USERS: u64 = 1_500;
    const RATE: f64 = 100.0;
    let (upstream, throttled) = enforcing(RATE, RATE).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--quota-rps", RATE).start().await;
    let (sender, mut stream) = open(&sidecar).await;
    let begun = Instant::now();
    let send = tokio::spawn(async move {
        for n in 0..USERS {
            sender.send(item(n, POOL, &format!("user{n}"))).await.unwrap();
        }
    });
    let mut seen = vec![false; usize::try_from(USERS).unwrap()];
    let mut settled = None;
    let mut unary = Vec::new();
    for n in 0..USERS {
        let (sequence, outcome) = next(&mut stream).await;
        assert!(matches!(outcome, Outcome::Response(_)), "{sequence}: {outcome:?}");
        assert!(!std::mem::replace(&mut seen[usize::try_from(sequence).unwrap()], true), "{sequence} twice");
        // The ramp is over by then.
        if n == USERS / 2 {
            settled = Some((Instant::now(), throttled.load(Ordering::Relaxed)));
        }
        if n % 200 == 100 {
            let asked = Instant::now();
            sidecar.sign_out(POOL, &format!("in-the-middle{n}")).await.unwrap();
            unary.push(asked.elapsed());
        }
    }
    send.await.unwrap();
    assert!(stream.message().await.unwrap().is_none());

    let (since, before) = settled.unwrap();
    let used = (USERS / 2) as f64 / since.elapsed().as_secs_f64() / RATE;
    let late = (throttled.load(Ordering::Relaxed) - before) as f64 / (USERS / 2) as f64;
    unary.sort();
    println!(
        "took={:?} used={used:.3} throttled={late:.4} unary_median={:?}",
        begun.elapsed(),
        unary[unary.len() / 2]
    );
    assert!(late < 0.01, "throttled after the pace settled: {late}");
    // How much is used is printed, not asserted: on a busy machine it is the machine that is measured. budget.rs asserts it.
    assert!(unary[unary.len() / 2] < Duration::from_millis(200), "{unary:?}");
}
