//! The same work without a sidecar: a service that has linked the SDK, with default settings on a default runtime.

use std::{
    io::{self, BufRead as _},
    time::{Duration, Instant},
};

use aws_config::BehaviorVersion;
use aws_sdk_cognitoidentityprovider::Client;
use tokio::task::JoinSet;

use crate::{
    drive::{POOL, Times, share},
    process::Process,
};

/// A running one.
pub(crate) struct Bare(pub(crate) Process);

impl Bare {
    pub(crate) fn start(upstream: &str) -> Self {
        let env = [
            ("HOME", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDBENCHBENCHBENCH0"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream),
        ];
        Self(Process::role(&["bare"], &env))
    }

    /// Signs users out, so many of them, so many at a time.
    pub(crate) fn run(&mut self, calls: usize, in_flight: usize) -> Times {
        let answer = self.0.ask(&format!("{calls} {in_flight}"));
        Times {
            wall: Duration::from_secs_f64(answer.get("wall_s")),
            p50: Duration::from_secs_f64(answer.get("p50_s")),
            p99: Duration::from_secs_f64(answer.get("p99_s")),
        }
    }
}

/// Does as it is told by the lines of stdin, until it ends.
pub(crate) fn run() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime
        .block_on(async { Client::new(&aws_config::defaults(BehaviorVersion::latest()).load().await) });
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let (calls, in_flight) = line.split_once(' ').unwrap();
        let (calls, in_flight) = (calls.parse().unwrap(), in_flight.parse().unwrap());
        let Times { wall, p50, p99 } = runtime.block_on(sign_out(&client, calls, in_flight));
        let seconds = |time: Duration| time.as_secs_f64();
        println!("wall_s={} p50_s={} p99_s={}", seconds(wall), seconds(p50), seconds(p99));
    }
}

async fn sign_out(client: &Client, calls: usize, in_flight: usize) -> Times {
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..in_flight {
        let client = client.clone();
        workers.spawn(async move {
            let mut taken = Vec::new();
            for n in share(calls, in_flight, worker) {
                let begun = Instant::now();
                client
                    .admin_user_global_sign_out()
                    .user_pool_id(POOL)
                    .username(format!("user-{n}"))
                    .send()
                    .await
                    .expect("the fake Cognito signs out everybody");
                taken.push(begun.elapsed());
            }
            taken
        });
    }
    Times::of(begun, workers.join_all().await)
}
