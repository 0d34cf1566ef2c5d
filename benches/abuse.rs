//! What an honest caller notices of abuse beside it, and what the abuse costs the sidecar in memory; the same of ten
//! thousand calls at once; and what callers notice of a stop under load (`drain`). Names given as arguments select.
//!
//! ```text
//! cargo build --release --no-default-features --locked
//! cp target/release/cognito-signout target/sidecar    # cargo bench writes over it
//! cargo bench --bench abuse -- --sidecar target/sidecar drain
//! ```
//!
//! For each abuse a sidecar of its own with its defaults, before an endpoint that answers at once; the honest caller
//! makes one call after another, over one connection. Prints `name=value`, one a line: how many calls, how many of them
//! failed, their median and 99th percentile in milliseconds, and the most memory that the sidecar took up, in MiB.
//!
//! Without `--sidecar`, or the variable SIDECAR_BIN, it is the binary that cargo builds beside the bench. The exit status
//! is 1 if a stop loses a call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement prints, is told its binary by the environment, and stops at the first surprise"
)]

use std::{
    env,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use attacks::Attack;
use clap::Parser;
use cognito_signout::pb::sign_out_service_client::SignOutServiceClient;
use harness::{POOL, Sidecar, request};
use scripted::{Reply, Scripted};
use tokio::task::JoinSet;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/attacks.rs"]
mod attacks;
#[path = "abuse/drain.rs"]
mod drain;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/harness.rs"]
mod harness;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/raw.rs"]
mod raw;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/scripted.rs"]
mod scripted;

const TIME: Duration = Duration::from_secs(8);

#[derive(Parser)]
#[command(name = "abuse", about = "What callers notice of abuse, of a burst, and of a stop")]
struct Options {
    /// Only these measurements
    names: Vec<String>,
    /// The sidecar
    #[arg(long, value_name = "PATH")]
    sidecar: Option<PathBuf>,
    /// Calls a second, before, during and after the stop
    #[arg(long, value_name = "N", default_value_t = 1200)]
    rate: u32,
    /// Given by cargo; says nothing
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { names, sidecar, rate, bench: _ } = Options::parse();
    if let Some(sidecar) = sidecar.or_else(|| env::var_os("SIDECAR_BIN").map(PathBuf::from)) {
        harness::OTHER_BINARY.set(sidecar).unwrap();
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut lost = 0;
    if is_wanted("drain") {
        lost += drain::one(rate).await;
        lost += drain::one_of_two(rate).await;
    }
    if is_wanted("burst_10000") {
        burst("burst_10000").await;
    }
    if is_wanted("waiting_10000") {
        waiting("waiting_10000").await;
    }
    if is_wanted("nothing") {
        measure("nothing", None).await;
    }
    for (name, attack, connections) in [
        ("idle_connections_10000", Attack::IdleConnections, 10_000),
        ("rapid_reset_8", Attack::RapidReset, 8),
        ("never_reads_8", Attack::NeverReads, 8),
        ("one_byte_a_second_1000", Attack::OneByteASecond, 1000),
        ("garbage_8", Attack::Garbage, 8),
        ("huge_header_64", Attack::HugeHeader, 64),
        ("huge_message_64", Attack::HugeMessage, 64),
        ("slow_preface_1000", Attack::SlowPreface, 1000),
        ("ping_flood_8", Attack::PingFlood, 8),
    ] {
        if is_wanted(name) {
            measure(name, Some((attack, connections))).await;
        }
    }
    if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// 10,000 calls at once over 10 connections.
fn ten_thousand_calls(sidecar: &Sidecar) -> JoinSet<bool> {
    let channels: Vec<_> = (0..10).map(|_| sidecar.channel()).collect();
    let mut calls = JoinSet::new();
    for n in 0..10_000 {
        let mut client = SignOutServiceClient::new(channels[n % channels.len()].clone());
        let call = request(POOL, &format!("user{n}"), Duration::from_secs(120));
        calls.spawn(async move { client.admin_user_global_sign_out(call).await.is_ok() });
    }
    calls
}

/// All of them are served, if slowly.
async fn burst(name: &str) {
    let upstream = Scripted::start(|_, _| Reply::ok().delayed(Duration::from_millis(20))).await;
    let sidecar = Sidecar::before(&upstream).await;
    let begun = Instant::now();
    let mut calls = ten_thousand_calls(&sidecar);
    let (mut failed, mut most) = (0, 0.0_f64);
    while let Some(served) = calls.join_next().await {
        failed += usize::from(!served.unwrap());
        most = most.max(sidecar.resident_mib());
    }
    println!("{name}_failed={failed}");
    println!("{name}_s={:.1}", begun.elapsed().as_secs_f64());
    println!("{name}_connections_to_cognito={}", upstream.connections());
    println!("{name}_rss_mib={most:.0}");
}

/// All of them wait in the queue.
async fn waiting(name: &str) {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--max-in-flight", 1)
        .arg("--attempt-timeout", "120s")
        .arg("--log-level", "debug")
        .start()
        .await;
    let before = sidecar.resident_mib();
    let _calls = ten_thousand_calls(&sidecar);
    let waiting = || {
        let lines = sidecar.log.lines();
        lines.iter().filter(|line| line["message"] == "waits for its turn").count()
    };
    while waiting() < 9999 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let each = (sidecar.resident_mib() - before) * 1024.0 / 10_000.0;
    println!("{name}_rss_mib={:.0}", sidecar.resident_mib());
    println!("{name}_kib_each={each:.1}");
}

async fn measure(name: &str, attack: Option<(Attack, usize)>) {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.client();
    client.admin_user_global_sign_out(request(POOL, "ada", Duration::from_secs(10))).await.unwrap();

    let peers = match attack {
        Some((attack, connections)) => Some(attack.launch(sidecar.address(), connections).await),
        None => None,
    };
    let (mut took, mut failed, mut most) = (Vec::new(), 0, 0.0_f64);
    let begun = Instant::now();
    while begun.elapsed() < TIME {
        let asked = Instant::now();
        if client.admin_user_global_sign_out(request(POOL, "ada", Duration::from_secs(10))).await.is_err() {
            failed += 1;
        }
        took.push(asked.elapsed().as_secs_f64() * 1000.0);
        most = most.max(sidecar.resident_mib());
        // An honest caller has other things to do in between.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(peers);

    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("{name}_calls={}", took.len());
    println!("{name}_failed={failed}");
    println!("{name}_p50_ms={:.2}", at(0.5));
    println!("{name}_p99_ms={:.2}", at(0.99));
    println!("{name}_rss_mib={most:.0}");
}
