//! Ten sidecars that do not know each other before one Cognito that allows 25 a second, in simulated time.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{Gate, Paced, Pacer, Quotas};
use crate::sign_out::{Call, Cause, SignOut, SignOutError, SignedOut, User, UserPoolId};

const LIMIT: f64 = 25.0;
const SECONDS: u64 = 600;

/// Cognito as far as its quota goes: a bucket of one second's calls. What it counts, it counts by the second.
struct Cognito {
    begun: Instant,
    bucket: Mutex<(f64, Instant)>,
    served: Vec<AtomicUsize>,
    throttled: Vec<AtomicUsize>,
}

impl Cognito {
    fn new() -> Arc<Self> {
        let counts = || (0..=SECONDS).map(|_| AtomicUsize::new(0)).collect();
        let now = Instant::now();
        Arc::new(Self { begun: now, bucket: Mutex::new((LIMIT, now)), served: counts(), throttled: counts() })
    }

    fn admits(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap();
        let now = Instant::now();
        bucket.0 = (bucket.0 + (now - bucket.1).as_secs_f64() * LIMIT).min(LIMIT);
        bucket.1 = now;
        let admits = bucket.0 >= 1.0;
        if admits {
            bucket.0 -= 1.0;
        }
        admits
    }

    fn sum(counts: &[AtomicUsize], from: u64, to: u64) -> f64 {
        let counts = &counts[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
        counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>() as f64
    }

    /// Which part of the budget was used, and which part of the calls throttled.
    fn figures(&self, from: u64, to: u64) -> (f64, f64) {
        let (served, throttled) = (Self::sum(&self.served, from, to), Self::sum(&self.throttled, from, to));
        (served / ((to - from) as f64 * LIMIT), throttled / (served + throttled).max(1.0))
    }
}

impl SignOut for Cognito {
    async fn sign_out(&self, call: &Call) -> Result<SignedOut, SignOutError> {
        // There and back in 20 to 80 ms.
        sleep(Duration::from_millis(fastrand::u64(10..40))).await;
        call.note_sent();
        let second = usize::try_from(self.begun.elapsed().as_secs().min(SECONDS)).unwrap();
        let admits = self.admits();
        let counts = if admits { &self.served } else { &self.throttled };
        counts[second].fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(fastrand::u64(10..40))).await;
        if admits {
            Ok(SignedOut { aws_request_id: None, at: None, region: "eu-central-1".parse().unwrap() })
        } else {
            Err(SignOutError::new(Cause::TooManyRequests))
        }
    }
}

/// A sidecar that has bulk to do from one second to another, told that all of the quota is its own.
async fn replica(cognito: Arc<Cognito>, from: u64, to: u64) {
    let begun = Instant::now();
    sleep_until(begun + Duration::from_secs(from)).await;
    let end = begun + Duration::from_secs(to);
    let quotas = Quotas { elsewhere: Some(LIMIT), regions: HashMap::new(), share: 1.0 };
    let paced = Arc::new(Paced::new(cognito, Pacer::new(quotas, Gate::new(256, 1000)), UserPoolId::region));
    let mut calls = JoinSet::new();
    let user = User::parse("eu-central-1_EXAMPLE02", "ada").unwrap();
    while Instant::now() < end {
        while calls.len() < 30 {
            let (paced, call) = (
                paced.clone(),
                Call::bulk(user.clone(), end + Duration::from_secs(600), Duration::from_secs(10)),
            );
            calls.spawn(async move { _ = paced.sign_out(&call).await });
        }
        tokio::select! {
            _ = calls.join_next() => {}
            () = sleep_until(end) => {}
        }
    }
}

async fn fleet(replicas: impl IntoIterator<Item = (u64, u64)>) -> Arc<Cognito> {
    let cognito = Cognito::new();
    let mut all = JoinSet::new();
    for (from, to) in replicas {
        all.spawn(replica(cognito.clone(), from, to));
    }
    all.join_all().await;
    cognito
}

#[tokio::test(start_paused = true)]
async fn ten_replicas_stay_near_the_limit_without_collapse() {
    fastrand::seed(1);
    // Ten from the start; after 400 s nine of them have nothing left to do.
    let cognito = fleet((0..10).map(|n| (0, if n == 0 { SECONDS } else { 400 }))).await;
    let figures: Vec<_> = [(0, 10), (10, 60), (60, 400), (400, 460), (460, SECONDS)]
        .map(|(from, to)| {
            let (used, throttled) = cognito.figures(from, to);
            println!("seconds {from}..{to}: used={used:.3} throttled={throttled:.3}");
            (used, throttled)
        })
        .to_vec();
    assert!(figures[0].1 < 0.5, "the start: {:?}", figures[0]);
    assert!(figures[2].0 > 0.9 && figures[2].1 < 0.05, "the ten: {:?}", figures[2]);
    assert!(figures[4].0 > 0.9 && figures[4].1 < 0.01, "the one that is left: {:?}", figures[4]);
    let worst = (20..400).step_by(5).map(|s| cognito.figures(s, s + 5).0).fold(1.0, f64::min);
    println!("worst 5 s: used={worst:.3}");
    assert!(worst > 0.7, "no collapse: {worst}");

    plot(&cognito);
}

#[tokio::test(start_paused = true)]
async fn one_replica_uses_its_budget_and_is_hardly_throttled() {
    fastrand::seed(2);
    let cognito = fleet([(0, SECONDS)]).await;
    let (used, throttled) = cognito.figures(10, SECONDS);
    println!("used={used:.3} throttled={throttled:.4}");
    assert!(used > 0.95 && throttled < 0.01, "{used} {throttled}");
}

/// With `UPDATE_DOCS=1` in the environment, writes the plot that docs/bulk.md shows.
fn plot(cognito: &Cognito) {
    #[expect(
        clippy::disallowed_methods,
        reason = "asked for by whoever runs the tests, not a setting of the product"
    )]
    if std::env::var_os("UPDATE_DOCS").is_none() {
        return;
    }
    let line = |value: &dyn Fn(f64, f64) -> f64| {
        let mut recent = VecDeque::new();
        let mut points = String::new();
        for second in 0..SECONDS {
            recent.push_back(cognito.figures(second, second + 1));
            if recent.len() > 5 {
                recent.pop_front();
            }
            let mean = recent.iter().map(|(used, throttled)| value(*used, *throttled)).sum::<f64>()
                / recent.len() as f64;
            let (x, y) = (60.0 + second as f64 * 1.2, 260.0 - 200.0 * mean.min(1.1));
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        points
    };
    let (used, throttled) = (line(&|used, _| used), line(&|_, throttled| throttled));
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 310\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"800\" height=\"310\" fill=\"white\"/>\n\
         <text x=\"60\" y=\"20\">Ten replicas before one limit of 25 a second, each told that it has all of it; \
         nine end at 400 s. Means of 5 s.</text>\n",
    );
    for percent in [0, 25, 50, 75, 100] {
        let y = 260 - 2 * percent;
        let _ = writeln!(
            svg,
            "<path d=\"M60 {y}H780\" stroke=\"#ddd\"/><text x=\"52\" y=\"{}\" text-anchor=\"end\">{percent} %</text>",
            y + 4
        );
    }
    for second in (0..=SECONDS).step_by(100) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"278\" text-anchor=\"middle\">{second} s</text>",
            60.0 + second as f64 * 1.2
        );
    }
    for (points, colour, name, x) in
        [(used, "#1f77b4", "budget used", 60), (throttled, "#d62728", "calls throttled", 200)]
    {
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n\
             <text x=\"{x}\" y=\"300\" fill=\"{colour}\">{name}</text>",
            points.trim_end()
        );
    }
    svg.push_str("</svg>\n");
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bulk-ten-replicas.svg"), svg).unwrap();
}
