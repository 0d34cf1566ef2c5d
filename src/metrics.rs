//! What is counted, and how it is told: an explicit registry, made once and handed to whoever counts.
//!
//! Labels are bounded, and none holds a username. Names and units follow OpenMetrics; `docs/observability.md` lists them.

mod exposition;
mod process;
mod watched;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

pub use self::{
    exposition::Format,
    watched::{Kind, Samples},
};
use crate::sign_out::UserPoolId;

/// Cognito answers in some tens of milliseconds; the edges at 3 s and 10 s are the default limits of an attempt and of a
/// call, so that what was cut off there stands apart from what was merely slow.
const SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0];
/// Most waits are none at all; what matters is when they begin to eat the deadline.
const WAIT_SECONDS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The reasons that say that the sidecar itself turned a call away.
const SHED: [&str; 4] = ["OVERLOADED", "QUOTA_EXHAUSTED", "SHUTTING_DOWN", "AUDIT_UNAVAILABLE"];
/// Names that callers choose are told apart up to so many, for a series that exists once is never forgotten.
const MOST_POOLS: usize = 256;
const MOST_REGIONS: usize = 64;
/// What stands for all names beyond.
const OTHER: &str = "other";

/// How a sign-out, or an attempt at one, has ended, in the words of status and log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The name of the gRPC code.
    pub code: &'static str,
    /// ErrorInfo's reason; empty if there is none.
    pub reason: &'static str,
    /// Who has to act; empty if nobody has.
    pub fault: &'static str,
}

impl End {
    /// As asked for.
    pub const OK: Self = Self { code: "OK", reason: "", fault: "" };
    /// The caller went away.
    pub const CANCELLED: Self = Self { code: "CANCELLED", reason: "", fault: "caller" };

    /// What it means that a call was dropped before its end: its caller went away, or a bug is unwinding.
    pub fn abandoned() -> Self {
        if std::thread::panicking() {
            Self { code: "INTERNAL", reason: "SIDECAR_INTERNAL_ERROR", fault: "sidecar" }
        } else {
            Self::CANCELLED
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    ours: Mutex<Registry>,
    process: Registry,
    calls: Family<Labels<4>, Counter>,
    call_seconds: Family<Labels<2>, Histogram>,
    calls_in_flight: Family<Labels<1>, Gauge>,
    shed: Family<Labels<1>, Counter>,
    pools: Option<(Bounded, Family<PoolLabels, Counter>)>,
    regions: Bounded,
    attempts: Family<AttemptLabels, Counter>,
    attempt_seconds: Family<RegionLabel, Histogram>,
    attempts_in_flight: Gauge,
    retries: Counter,
    waiting: Gauge,
    wait_seconds: Histogram,
    connections_open: Family<Labels<1>, Gauge>,
    connections_accepted: Family<Labels<1>, Counter>,
    connections_refused: Family<Labels<2>, Counter>,
    reloads: Family<Labels<2>, Counter>,
}

/// Labels whose values are constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels<const N: usize>([(&'static str, &'static str); N]);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    user_pool_id: Arc<str>,
    code: &'static str,
    reason: &'static str,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    region: Arc<str>,
    reason: &'static str,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: Arc<str>,
}

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        self.0.as_slice().encode(encoder)
    }
}

impl Metrics {
    /// All at nought. With `pool_ids`, calls are told apart by pool too.
    pub fn new(pool_ids: bool) -> Arc<Self> {
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            ours: Mutex::new(Registry::with_prefix("cognito_signout")),
            process: process::registry(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(seconds),
            calls_in_flight: Family::default(),
            shed: Family::default(),
            pools: pool_ids.then(|| (Bounded::to(MOST_POOLS), Family::default())),
            regions: Bounded::to(MOST_REGIONS),
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(seconds),
            attempts_in_flight: Gauge::default(),
            retries: Counter::default(),
            waiting: Gauge::default(),
            wait_seconds: Histogram::new(WAIT_SECONDS),
            connections_open: Family::default(),
            connections_accepted: Family::default(),
            connections_refused: Family::default(),
            reloads: Family::default(),
        };
        metrics.register();
        // A counter that appears with its first event has no increase to alert on.
        for reason in SHED {
            drop(metrics.shed.get_or_create(&Labels([("reason", reason)])));
        }
        Arc::new(metrics)
    }

    fn register(&self) {
        let ours = &mut *self.ours();
        let build: Info<[(&str, &str); 1]> = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "The program", build);
        ours.register("calls", "Sign-outs asked for, by how they ended", self.calls.clone());
        ours.register_with_unit(
            "call_duration",
            "A whole call, from its arrival to its answer",
            Unit::Seconds,
            self.call_seconds.clone(),
        );
        ours.register("calls_in_flight", "Calls taken and not yet answered", self.calls_in_flight.clone());
        ours.register("calls_shed", "Calls that the sidecar's own limits turned away", self.shed.clone());
        if let Some((_, calls)) = &self.pools {
            ours.register(
                "pool_calls",
                "Sign-outs asked for, by user pool and how they ended",
                calls.clone(),
            );
        }
        ours.register("attempts", "Requests sent to Cognito, by how they ended", self.attempts.clone());
        ours.register_with_unit(
            "attempt_duration",
            "One attempt at Cognito, without the wait for its turn",
            Unit::Seconds,
            self.attempt_seconds.clone(),
        );
        ours.register("attempts_in_flight", "Attempts at Cognito under way", self.attempts_in_flight.clone());
        ours.register("retries", "Requests beyond the first of a call", self.retries.clone());
        ours.register("queue_waiting", "Attempts that wait for their turn", self.waiting.clone());
        ours.register_with_unit(
            "queue_wait",
            "How long an attempt waited for its turn, whether it got it or gave up",
            Unit::Seconds,
            self.wait_seconds.clone(),
        );
        ours.register("connections_open", "Open connections", self.connections_open.clone());
        ours.register("connections_accepted", "Connections accepted", self.connections_accepted.clone());
        ours.register("connections_refused", "Connections not accepted", self.connections_refused.clone());
        ours.register("reloads", "Files read anew while running", self.reloads.clone());
    }

    /// Everything as text.
    pub fn encode(&self, format: Format) -> String {
        exposition::encode(&self.ours(), &self.process, format)
    }

    /// Tells what is known elsewhere, read at each scrape: see [`Samples`]. `name` has neither prefix nor unit nor suffix.
    pub fn watch(
        &self,
        kind: Kind,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        read: impl Fn(&mut Samples<'_, '_>) -> std::fmt::Result + Send + Sync + 'static,
    ) {
        self.ours().register_collector(watched::collector(kind, name, help, unit, read));
    }

    /// A gauge that never changes, such as a limit.
    pub fn constant(&self, name: &'static str, help: &'static str, value: f64) {
        self.watch(Kind::Gauge, name, help, None, move |samples| samples.one(value));
    }

    /// A call is taken.
    pub fn call_begun(&self, method: &'static str) {
        self.calls_in_flight.get_or_create(&Labels([("method", method)])).inc();
    }

    /// It has ended, in whatever way.
    pub fn call_ended(&self, method: &'static str, pool: Option<&UserPoolId>, end: End, took: Duration) {
        let End { code, reason, fault } = end;
        self.calls
            .get_or_create(&Labels([
                ("method", method),
                ("code", code),
                ("reason", reason),
                ("fault", fault),
            ]))
            .inc();
        self.call_seconds
            .get_or_create(&Labels([("method", method), ("code", code)]))
            .observe(took.as_secs_f64());
        if SHED.contains(&reason) {
            self.shed.get_or_create(&Labels([("reason", reason)])).inc();
        }
        if let (Some((known, calls)), Some(pool)) = (&self.pools, pool) {
            let user_pool_id = known.name(pool.as_str());
            calls.get_or_create(&PoolLabels { user_pool_id, code, reason, fault }).inc();
        }
        // Last, so that whoever sees it gone from here finds it there.
        self.calls_in_flight.get_or_create(&Labels([("method", method)])).dec();
    }

    /// An attempt asks for its turn.
    pub fn wait_begun(&self) {
        self.waiting.inc();
    }

    /// It got it, or gave up.
    pub fn wait_ended(&self, took: Duration) {
        self.waiting.dec();
        self.wait_seconds.observe(took.as_secs_f64());
    }

    /// An attempt is made.
    pub fn attempt_begun(&self) {
        self.attempts_in_flight.inc();
    }

    /// It has ended before a request was sent: there were no credentials, say, or no time left. So it was none.
    pub fn attempt_not_made(&self) {
        self.attempts_in_flight.dec();
    }

    /// It has ended, and a request was sent for it.
    pub fn attempt_ended(&self, region: &str, end: End, took: Duration, is_retry: bool) {
        if is_retry {
            self.retries.inc();
        }
        let region = self.regions.name(region);
        self.attempt_seconds
            .get_or_create(&RegionLabel { region: region.clone() })
            .observe(took.as_secs_f64());
        // The code says no more than the reason, but for what we gave up ourselves.
        let reason = if end == End::CANCELLED { end.code } else { end.reason };
        self.attempts.get_or_create(&AttemptLabels { region, reason, fault: end.fault }).inc();
        self.attempts_in_flight.dec();
    }

    /// A connection is accepted; it is open until the value is dropped.
    pub fn connection(&self, listener: &'static str) -> OpenConnection {
        let labels = Labels([("listener", listener)]);
        self.connections_accepted.get_or_create(&labels).inc();
        let open = self.connections_open.get_or_create(&labels).clone();
        open.inc();
        OpenConnection(open)
    }

    /// What counts the connections of a listener that are refused for a reason, such as `tls`.
    pub fn refused_connections(&self, listener: &'static str, reason: &'static str) -> Counter {
        self.connections_refused.get_or_create(&Labels([("listener", listener), ("reason", reason)])).clone()
    }

    /// Files are read anew from now on whenever they change; `what` is such as `tls`. What is returned is told of each
    /// time, whether it went well.
    pub fn reloads(&self, what: &'static str) -> impl Fn(bool) + Send + Sync + use<> {
        let of = |result| self.reloads.get_or_create(&Labels([("what", what), ("result", result)])).clone();
        // Both are there from now on: a counter that appears with its first event has no increase to alert on.
        let (success, failure) = (of("success"), of("failure"));
        move |well| {
            let counter = if well { &success } else { &failure };
            counter.inc();
        }
    }

    fn ours(&self) -> MutexGuard<'_, Registry> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection, until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Names that come from outside: the first so many are told apart.
#[derive(Debug)]
struct Bounded {
    known: Mutex<HashSet<Arc<str>>>,
    most: usize,
    other: Arc<str>,
}

impl Bounded {
    fn to(most: usize) -> Self {
        Self { known: Mutex::default(), most, other: OTHER.into() }
    }

    fn name(&self, name: &str) -> Arc<str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(name) {
            Some(name) => name.clone(),
            None if known.len() < self.most => {
                let name: Arc<str> = name.into();
                known.insert(name.clone());
                name
            }
            None => self.other.clone(),
        }
    }
}
