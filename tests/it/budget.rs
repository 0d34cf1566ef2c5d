//! Ten thousand users at the quota that Cognito has by default, in simulated time: gRPC over a pipe, the stream, and the
//! whole chain; only Cognito and the clock are played. `benches/bulk.rs` does the same with real processes and a real clock.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use cognito_signout::{
    attempts::{Attempted, Queued},
    metrics::Metrics,
    pb::{
        bulk_admin_user_global_sign_out_response::Outcome, sign_out_service_client::SignOutServiceClient,
        sign_out_service_server::SignOutServiceServer,
    },
    policy::Access,
    quota::{Gate, Joining, Paced, Pacer, Quotas},
    record::Recorder,
    retry::Retrying,
    service::{Desk, Observer, Service},
    sign_out::{Call, Cause, SignOut, SignOutError, SignedOut, UserPoolId},
};
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, interval, sleep},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    bulk::item,
    harness::{POOL, PatientChannel, request},
};

/// What Cognito allows a second, and as many at once after a rest.
const LIMIT: f64 = 25.0;
const USERS: u64 = 10_000;
/// There and back, for a call that somebody waits for.
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// Cognito as far as its quota goes. Bulk is answered in 20 to 80 ms.
#[derive(Clone)]
struct Cognito(Arc<Mutex<Seen>>);

struct Seen {
    bucket: (f64, Instant),
    signed_out: HashSet<String>,
    /// When each attempt came, and whether it was throttled.
    attempts: Vec<(Instant, bool)>,
}

impl Cognito {
    fn new() -> Self {
        let bucket = (LIMIT, Instant::now());
        Self(Arc::new(Mutex::new(Seen { bucket, signed_out: HashSet::new(), attempts: Vec::new() })))
    }

    /// Whether the quota allows one more, which then signs the user out.
    fn admits(&self, username: &str) -> bool {
        let mut seen = self.0.lock().unwrap();
        let now = Instant::now();
        let tokens = (seen.bucket.0 + (now - seen.bucket.1).as_secs_f64() * LIMIT).min(LIMIT);
        let admits = tokens >= 1.0;
        seen.bucket = (tokens - f64::from(u8::from(admits)), now);
        seen.attempts.push((now, !admits));
        if admits {
            seen.signed_out.insert(username.to_owned());
        }
        admits
    }
}

impl SignOut for Cognito {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        let username = call.user.name.reveal();
        let (there, back) = match username.starts_with("urgent") {
            true => (ROUND_TRIP / 2, ROUND_TRIP / 2),
            false => {
                let half = || Duration::from_millis(fastrand::u64(10..40));
                (half(), half())
            }
        };
        call.note_sent();
        sleep(there).await;
        let admits = self.admits(username);
        sleep(back).await;
        if admits {
            Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
        } else {
            call.note_refused();
            Err(SignOutError::new(Cause::TooManyRequests))
        }
    }
}

struct Nobody;

impl Observer for Nobody {
    fn answered(&self, _: Option<&Cause>) {}
}

/// A sidecar that is told the quota, as the server puts it together, at the other end of a pipe.
async fn sidecar(cognito: Cognito) -> SignOutServiceClient<PatientChannel> {
    let (metrics, closing) = (Metrics::new(false), CancellationToken::new());
    let gate = Gate::new(256, 16_384);
    let quotas = Quotas { elsewhere: Some(LIMIT), regions: HashMap::new(), share: 1.0 };
    let attempted = Attempted::new(cognito, metrics.clone(), None);
    let paced = Paced::new(attempted, Pacer::new(quotas, gate.clone()), UserPoolId::region);
    let chain = Joining::new(Retrying::new(Queued::new(paced, metrics.clone(), None), 3, closing));
    let access = Access { policy: None, certificates: false, allow_pools: Vec::new() };
    let desk = Desk::new(chain, Nobody, access, Recorder::new(metrics, None, None), Duration::from_secs(10));
    let service = Service::new(desk, gate.closing().clone());

    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let incoming = tokio_stream::once(Ok::<DuplexStream, io::Error>(theirs)).chain(tokio_stream::pending());
    tokio::spawn(
        Server::builder().add_service(SignOutServiceServer::new(service)).serve_with_incoming(incoming),
    );
    SignOutServiceClient::new(PatientChannel::over(ours).await)
}

async fn how_long(client: &SignOutServiceClient<PatientChannel>, username: &str) -> Duration {
    let asked = Instant::now();
    let call = request(POOL, username, Duration::from_secs(10));
    client.clone().admin_user_global_sign_out(call).await.unwrap();
    asked.elapsed()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_users_at_25_a_second_and_whoever_asks_in_between_does_not_notice() {
    fastrand::seed(3);
    let cognito = Cognito::new();
    let client = sidecar(cognito.clone()).await;
    let alone = how_long(&client, "urgent-alone").await;
    assert!(alone >= ROUND_TRIP);

    let begun = Instant::now();
    let (sender, receiver) = mpsc::channel(16);
    let send = tokio::spawn(async move {
        for n in 0..USERS {
            sender.send(item(n, POOL, &format!("user{n}"))).await.unwrap();
        }
    });
    let (asking, done) = (client.clone(), CancellationToken::new());
    let ask = {
        let done = done.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            // Not in step with anything that goes on in bulk.
            let mut moments = interval(Duration::from_millis(1_777));
            while done.run_until_cancelled(moments.tick()).await.is_some() {
                took.push((Instant::now(), how_long(&asking, &format!("urgent{}", took.len())).await));
            }
            took
        })
    };
    let mut stream = client
        .clone()
        .bulk_admin_user_global_sign_out(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut answered = HashSet::new();
    while let Some(result) = stream.message().await.unwrap() {
        assert!(matches!(result.outcome, Some(Outcome::Response(_))), "{result:?}");
        assert!(answered.insert(result.sequence), "{} twice", result.sequence);
    }
    let took = begun.elapsed();
    done.cancel();
    send.await.unwrap();
    let in_between = ask.await.unwrap();

    // The ramp is over by then; and the last calls, when there are no more to send, are left out as well.
    let (from, to) = (begun + Duration::from_secs(20), begun + took - Duration::from_secs(1));
    let seen = cognito.0.lock().unwrap();
    let settled: Vec<_> = seen.attempts.iter().filter(|(at, _)| (from..to).contains(at)).collect();
    let throttled = settled.iter().filter(|(_, throttled)| *throttled).count() as f64;
    let used = (settled.len() as f64 - throttled) / ((to - from).as_secs_f64() * LIMIT);
    let slowest = |settled: bool| {
        let those = in_between.iter().filter(|(at, _)| (*at >= from) == settled);
        those.map(|(_, took)| *took).max().unwrap()
    };
    let (slowest_at_first, slowest) = (slowest(false), slowest(true));
    println!(
        "took={:.1}s attempts={} throttled={} used={used:.4} asked_in_between={} slowest={slowest:?} \
         slowest_in_20_s={slowest_at_first:?} alone={alone:?}",
        took.as_secs_f64(),
        seen.attempts.len(),
        throttled / settled.len() as f64,
        in_between.len(),
    );
    assert_eq!(answered.len() as u64, USERS);
    assert!((0..USERS).all(|n| seen.signed_out.contains(&format!("user{n}"))), "somebody is not signed out");
    assert!(throttled / (settled.len() as f64) < 0.01, "throttled after the pace settled: {throttled}");
    assert!(used >= 0.9, "budget used: {used}");
    assert!(in_between.len() > 200);
    assert!(slowest <= alone + Duration::from_millis(2), "{slowest:?}, and {alone:?} without bulk");
    // A cold start has one call's room in 400 ms, bulk or not.
    assert!(slowest_at_first <= alone + Duration::from_millis(400), "{slowest_at_first:?}");
}
