//! A stop under load: calls come at a rate that nobody's answers slow down, before, during and after SIGTERM.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use cognito_signout::pb::sign_out_service_client::SignOutServiceClient;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tonic::{Status, transport::Channel};

use crate::{
    harness::{POOL, Sidecar, metadata, reason, request},
    scripted::{Reply, Scripted},
};

/// From the first call to SIGTERM, and from there to the last.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(3);
/// How long Cognito takes: so that some calls are there whenever the signal comes.
const COGNITO: Duration = Duration::from_millis(50);
/// Connections to each sidecar.
const CONNECTIONS: usize = 8;
/// Of a caller that has another sidecar to turn to.
const ATTEMPTS: usize = 3;

/// One sidecar, each call made once. Returns how many were lost.
pub(crate) async fn one(rate: u32) -> usize {
    let stage = Stage::start().await;
    let sidecar = stage.sidecar().await;
    stage.load("drain_one", rate, vec![sidecar]).await
}

/// Two sidecars, of which one is stopped; callers turn to the other where one is unavailable. Returns how many errors they
/// saw, and how many answers were lost.
pub(crate) async fn one_of_two(rate: u32) -> usize {
    let stage = Stage::start().await;
    let sidecars = vec![stage.sidecar().await, stage.sidecar().await];
    stage.load("drain_two", rate, sidecars).await
}

/// How one attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Ok,
    /// SHUTTING_DOWN, and nothing was sent: by the sidecar.
    ShuttingDown,
    /// By the client: there was no connection, or it ended, or GOAWAY said that the call was not taken. Every gRPC library
    /// calls that UNAVAILABLE, tonic by several names.
    NoConnection,
    /// The same, but the user was signed out: the sidecar took the call, and its caller was never told.
    AnswerLost,
    /// Anything else.
    Error,
}

impl End {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Ok, "answered_ok"),
        (Self::ShuttingDown, "shutting_down_not_sent"),
        (Self::NoConnection, "no_connection"),
        (Self::AnswerLost, "answers_lost"),
        (Self::Error, "errors"),
    ];

    fn of(result: Result<(), Status>, name: &str, stage: &Stage) -> Self {
        let Err(status) = result else { return Self::Ok };
        let sent = stage.signed_out.lock().unwrap().contains(name);
        let end = match (reason(&status).as_str(), sent) {
            ("SHUTTING_DOWN", false) if metadata(&status, "outcome") == "not_sent" => Self::ShuttingDown,
            ("", false) if is_of_client(&status) => Self::NoConnection,
            ("", true) if is_of_client(&status) => Self::AnswerLost,
            _ => Self::Error,
        };
        if matches!(end, Self::AnswerLost | Self::Error) {
            println!("# LOST: {name}: {status}");
        }
        end
    }
}

/// What the sidecar answers has no source.
fn is_of_client(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.message() == "operation was canceled"
}

/// A Cognito that notes who was signed out.
#[derive(Clone)]
struct Stage {
    upstream: Arc<Scripted>,
    signed_out: Arc<Mutex<HashSet<String>>>,
}

impl Stage {
    async fn start() -> Self {
        let signed_out = Arc::new(Mutex::new(HashSet::new()));
        let seen = signed_out.clone();
        let upstream = Scripted::start(move |_, request| {
            seen.lock().unwrap().insert(request.username());
            Reply::ok().delayed(COGNITO)
        })
        .await;
        Self { upstream: Arc::new(upstream), signed_out }
    }

    async fn sidecar(&self) -> Sidecar {
        Sidecar::at(&self.upstream.url()).arg("--drain-delay", "500ms").start().await
    }

    /// Calls at the rate, the first of the sidecars being stopped in the middle. How many went wrong.
    async fn load(&self, name: &str, rate: u32, sidecars: Vec<Sidecar>) -> usize {
        let channels = |sidecar: &Sidecar| (0..CONNECTIONS).map(|_| sidecar.channel()).collect();
        let channels: Arc<Vec<Vec<Channel>>> = Arc::new(sidecars.iter().map(channels).collect());
        let mut calls = JoinSet::new();
        let begun = Instant::now();
        let mut ticks = interval(Duration::from_secs(1) / rate);
        // A tick that comes late is made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let signal = begun + BEFORE;
        // The others stay until the end.
        let mut sidecars = sidecars.into_iter();
        let mut leaving = sidecars.next();
        let mut stopping = None;
        let mut n = 0;
        while begun.elapsed() < BEFORE + AFTER {
            tokio::select! {
                biased;
                () = sleep_until(signal), if leaving.is_some() => {
                    if let Some(leaving) = leaving.take() {
                        leaving.signal("TERM");
                        stopping = Some(tokio::spawn(leaving.ended()));
                    }
                }
                _ = ticks.tick() => {
                    calls.spawn(self.clone().call(channels.clone(), n));
                    n += 1;
                }
            }
        }
        let offered = n as f64 / begun.elapsed().as_secs_f64();
        let ended = calls.join_all().await;
        let (status, _) = stopping.unwrap().await.unwrap();
        let answered_before = ended.iter().filter(|(at, _)| *at < signal).count() as f64;
        println!("{name}_calls={n}");
        println!("{name}_calls_per_second={offered:.0}");
        println!("{name}_answered_per_second_before={:.0}", answered_before / BEFORE.as_secs_f64());
        println!("{name}_exit_status={}", status.code().unwrap_or(-1));
        let attempts: Vec<_> = ended.iter().flat_map(|(_, attempts)| attempts).collect();
        for (end, told) in End::ALL {
            println!("{name}_{told}={}", attempts.iter().filter(|attempt| ***attempt == end).count());
        }
        // The last attempt is what a caller sees; with nobody to turn to, it sees that the sidecar stops.
        let alone = channels.len() == 1;
        let unserved =
            ended.iter().filter(|(_, attempts)| !alone && attempts.last() != Some(&End::Ok)).count();
        if !alone {
            println!("{name}_callers_that_saw_an_error={unserved}");
        }
        let lost = attempts.iter().filter(|end| matches!(end, End::AnswerLost | End::Error)).count();
        unserved + lost + usize::from(status.code() != Some(0))
    }

    /// Makes the n-th call: when it ended, and how its attempts did.
    async fn call(self, channels: Arc<Vec<Vec<Channel>>>, n: usize) -> (Instant, Vec<End>) {
        let name = format!("user{n}");
        let mut attempts = Vec::new();
        for attempt in 0..if channels.len() == 1 { 1 } else { ATTEMPTS } {
            let channel = channels[(n + attempt) % channels.len()][n / channels.len() % CONNECTIONS].clone();
            let request = request(POOL, &name, Duration::from_secs(20));
            let result =
                SignOutServiceClient::new(channel).admin_user_global_sign_out(request).await.map(drop);
            let end = End::of(result, &name, &self);
            attempts.push(end);
            if !matches!(end, End::ShuttingDown | End::NoConnection | End::AnswerLost) {
                break;
            }
        }
        (Instant::now(), attempts)
    }
}
