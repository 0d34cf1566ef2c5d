//! Many users through `cognito-signout bulk` and the sidecar, as real processes on loopback.
//!
//! ```text
//! cargo build --release --no-default-features --locked
//! cp target/release/cognito-signout target/sidecar    # cargo bench writes over it
//! cargo bench --bench bulk -- --sidecar target/sidecar                  a million users
//! cargo bench --bench bulk -- --sidecar target/sidecar --only budget    10,000 at 25 a second
//! ```
//!
//! `stream`: before an endpoint that answers every call at once, what memory both processes need at a tenth of the way (of
//! fewer than 300,000 users: after 30,000, or half of them) and at most. `budget`: before one that enforces a rate as
//! Cognito does, how much of it is used, how much is throttled, and what somebody notices who asks in between;
//! `--rate 250` does it in a tenth of the time.
//!
//! Prints `name=value`, one a line; remarks begin with `#`. The exit status is 1 if somebody is not in the results, if
//! memory grows with the number of users, or if the budget is not kept to, or not used. Without `--sidecar`, or the
//! variable SIDECAR_BIN, it is the binary that cargo builds beside the bench, with the features of the tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench prints, is told its binary by the environment, and stops at the first surprise"
)]

#[path = "bulk/endpoint.rs"]
mod endpoint;
#[allow(dead_code, reason = "the other bench uses the rest")]
#[path = "overhead/process.rs"]
mod process;
#[allow(dead_code, reason = "the other bench uses the rest")]
#[path = "overhead/stats.rs"]
mod stats;

use std::{
    env, fs,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use cognito_signout::pb::{AdminUserGlobalSignOutRequest, sign_out_service_client::SignOutServiceClient};
use tonic::transport::Endpoint;

use endpoint::Upstream;
use process::{Machine, Sidecar};

#[derive(Parser)]
#[command(name = "bulk", about = "Many users at once")]
struct Options {
    /// How many users; a million for the stream, 10,000 for the budget
    users: Option<usize>,
    /// The sidecar
    #[arg(long, value_name = "PATH", default_value_os_t = default_binary())]
    sidecar: PathBuf,
    #[arg(long, value_name = "PART", default_value = "stream")]
    only: Part,
    /// Calls a second that the endpoint allows, and that the sidecar is told
    #[arg(long, value_name = "N", default_value_t = 25.0)]
    rate: f64,
    /// Given by cargo; says nothing
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The stream alone, as fast as it goes.
    Stream,
    /// The stream before a quota.
    Budget,
}

fn default_binary() -> PathBuf {
    env::var_os("SIDECAR_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_cognito-signout").into()).into()
}

/// Longer than anything here takes that goes well.
const PATIENCE: Duration = Duration::from_secs(60);
/// By so much may the most memory exceed what it was at a tenth of the way.
const CONSTANT: f64 = 1.5;
/// No tenth of a short way: until then connections to Cognito are still being added, up to --max-in-flight.
const WARM: usize = 30_000;
/// How long a call takes that nobody else disturbs is learnt from so many.
const ALONE: usize = 50;

fn main() -> ExitCode {
    let options = Options::parse();
    println!("# {}", Machine::describe());
    println!("# load average before: {}", Machine::load());
    println!("# {}", options.sidecar.display());
    let complaints = match options.only {
        Part::Stream => stream(&options, options.users.unwrap_or(1_000_000)),
        Part::Budget => budget(&options, options.users.unwrap_or(10_000)),
    };
    println!("# load average after: {}", Machine::load());
    for complaint in &complaints {
        println!("# FAILED: {complaint}");
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// As fast as it goes. Returns what is wrong with the figures.
fn stream(options: &Options, users: usize) -> Vec<String> {
    let upstream = Upstream::start();
    let tenth = (users / 10).max(WARM.min(users / 2));
    let run = Run::start(options, users, 1e6, &upstream);
    let begun = Instant::now();
    let (mut early, mut most) = (None, Memory::default());
    let mut client = run.client();
    while client.try_wait().unwrap().is_none() {
        let now = Memory { sidecar: peak_kib(run.sidecar.process.pid()), client: peak_kib(client.id()) };
        // A process that has just ended tells nothing.
        most = Memory { sidecar: most.sidecar.max(now.sidecar), client: most.client.max(now.client) };
        if early.is_none() && upstream.answered() >= tenth {
            early = Some(most);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed().as_secs_f64();
    let signed_out = run.signed_out();
    let early = early.unwrap_or_default();
    println!("stream_users={users}");
    println!("stream_signed_out={signed_out}");
    println!("stream_seconds={took:.1}");
    println!("stream_users_per_second={:.0}", users as f64 / took);
    println!("stream_sidecar_kib_at_a_tenth={}", early.sidecar);
    println!("stream_sidecar_kib_most={}", most.sidecar);
    println!("stream_client_kib_at_a_tenth={}", early.client);
    println!("stream_client_kib_most={}", most.client);

    let mut complaints = run.complaints(signed_out, client);
    for (what, early, most) in
        [("sidecar", early.sidecar, most.sidecar), ("client", early.client, most.client)]
    {
        if early == 0 || most as f64 > CONSTANT * early as f64 {
            complaints
                .push(format!("the memory of the {what} grows: {early} KiB at a tenth, {most} KiB at most"));
        }
    }
    complaints
}

/// The most resident memory, in KiB.
#[derive(Clone, Copy, Default)]
struct Memory {
    sidecar: u64,
    client: u64,
}

fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// At the rate that the endpoint enforces. Returns what is wrong with the figures.
fn budget(options: &Options, users: usize) -> Vec<String> {
    /// The ramp is over by then.
    const SETTLED: Duration = Duration::from_secs(20);

    let rate = options.rate;
    let upstream = Upstream::enforcing(rate);
    let run = Run::start(options, users, rate, &upstream);
    // A call that somebody waits for: alone, without a pause that would be the pace's, then in between.
    let bystander = Bystander::at(&run.sidecar.addresses[0]);
    let alone: Vec<_> = (0..ALONE)
        .map(|n| {
            thread::sleep(Duration::from_secs_f64(20.0 / rate));
            bystander.asks(&format!("alone{n}"))
        })
        .collect();

    let begun = Instant::now();
    let mut client = run.client();
    let done = Arc::new(AtomicBool::new(false));
    let asking = {
        let done = done.clone();
        thread::spawn(move || {
            let mut took = Vec::new();
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_secs_f64(44.4 / rate));
                took.push((Instant::now(), bystander.asks(&format!("in-between{}", took.len()))));
            }
            took
        })
    };
    while client.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    let ended = Instant::now();
    done.store(true, Ordering::Relaxed);
    let (from, to) = (begun + SETTLED, ended - Duration::from_secs(1));
    let in_between = asking.join().unwrap().into_iter().filter(|(at, _)| *at > from).map(|(_, took)| took);
    let (alone, in_between) = (Asked::of(alone), Asked::of(in_between.collect()));
    let (served, throttled) = upstream.between(from, to);
    let (all_served, all_throttled) = upstream.between(begun, ended);
    let used = served / (to - from).as_secs_f64() / rate;
    let share = throttled / (served + throttled);
    let signed_out = run.signed_out();
    println!("budget_rate={rate}");
    println!("budget_users={users}");
    println!("budget_signed_out={signed_out}");
    println!("budget_seconds={:.1}", (ended - begun).as_secs_f64());
    println!("budget_used={used:.4}");
    println!("budget_throttled={share:.4}");
    println!("budget_throttled_from_the_start={:.4}", all_throttled / (all_served + all_throttled));
    alone.print("alone");
    in_between.print("in_between");

    let mut complaints = run.complaints(signed_out, client);
    if used < 0.9 {
        complaints.push(format!("of the budget {used} was used"));
    }
    if share >= 0.01 {
        complaints.push(format!("{share} of the attempts were throttled"));
    }
    if alone.failed + in_between.failed > 0 {
        complaints.push("calls in between failed".to_owned());
    }
    if in_between.at(0.5) > alone.at(0.5) + 20.0 {
        complaints.push("calls in between have to wait".to_owned());
    }
    complaints
}

/// One caller, over one connection.
struct Bystander {
    runtime: tokio::runtime::Runtime,
    client: SignOutServiceClient<tonic::transport::Channel>,
}

impl Bystander {
    fn at(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, client: SignOutServiceClient::new(channel) }
    }

    /// How long it took; `None` if it failed.
    fn asks(&self, username: &str) -> Option<Duration> {
        let mut request = tonic::Request::new(AdminUserGlobalSignOutRequest {
            user_pool_id: POOL.to_owned(),
            username: username.to_owned(),
        });
        request.set_timeout(Duration::from_secs(10));
        let (begun, mut client) = (Instant::now(), self.client.clone());
        let answer = self.runtime.block_on(client.admin_user_global_sign_out(request));
        answer.ok().map(|_| begun.elapsed())
    }
}

struct Asked {
    /// Milliseconds, sorted.
    took: Vec<f64>,
    failed: usize,
}

impl Asked {
    fn of(asked: Vec<Option<Duration>>) -> Self {
        let mut took: Vec<_> = asked.iter().flatten().map(|took| took.as_secs_f64() * 1000.0).collect();
        took.sort_by(f64::total_cmp);
        Self { failed: asked.len() - took.len(), took }
    }

    fn at(&self, share: f64) -> f64 {
        self.took[((self.took.len() - 1) as f64 * share) as usize]
    }

    fn print(&self, name: &str) {
        println!("budget_calls_{name}={}", self.took.len() + self.failed);
        println!("budget_calls_{name}_failed={}", self.failed);
        println!("budget_calls_{name}_p50_ms={:.2}", self.at(0.5));
        println!("budget_calls_{name}_p99_ms={:.2}", self.at(0.99));
        println!("budget_calls_{name}_max_ms={:.2}", self.at(1.0));
    }
}

const POOL: &str = "eu-central-1_EXAMPLE02";

/// A sidecar that runs, and users for it.
struct Run {
    binary: PathBuf,
    sidecar: Sidecar,
    users: usize,
    dir: tempfile::TempDir,
}

impl Run {
    fn start(options: &Options, users: usize, quota: f64, upstream: &Upstream) -> Self {
        let binary = options.sidecar.clone();
        let dir = tempfile::tempdir().unwrap();
        let mut file = BufWriter::new(File::create(dir.path().join("users.txt")).unwrap());
        for n in 0..users {
            writeln!(file, "user{n:09}@example.com").unwrap();
        }
        file.into_inner().unwrap();
        let flags = ["--listen=127.0.0.1:0".to_owned(), format!("--quota-rps={quota}")];
        let env = [("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream.url())];
        let sidecar = Sidecar::start(&binary, &flags, &env);
        Self { binary, sidecar, users, dir }
    }

    fn results(&self) -> PathBuf {
        self.dir.path().join("results.jsonl")
    }

    fn client(&self) -> Child {
        let in_dir = |name: &str| -> PathBuf { Path::new(self.dir.path()).join(name) };
        let told = File::create(in_dir("told.txt")).unwrap();
        Command::new(&self.binary)
            .args(["bulk", "--user-pool-id", POOL, "--address", &self.sidecar.addresses[0], "--file"])
            .arg(in_dir("users.txt"))
            .arg("--results")
            .arg(self.results())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(told)
            .spawn()
            .unwrap()
    }

    /// How many different users are signed out according to the results.
    fn signed_out(&self) -> usize {
        let mut seen = vec![false; self.users];
        for line in BufReader::new(File::open(self.results()).unwrap()).lines() {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            if line["status"] == "signed_out" {
                let number = line["username"].as_str().unwrap().strip_prefix("user").unwrap();
                seen[number.split_once('@').unwrap().0.parse::<usize>().unwrap()] = true;
            }
        }
        seen.into_iter().filter(|seen| *seen).count()
    }

    /// What is wrong with a run that has ended.
    fn complaints(&self, signed_out: usize, mut client: Child) -> Vec<String> {
        let status = client.wait().unwrap();
        let mut complaints = Vec::new();
        if !status.success() {
            let told = fs::read_to_string(self.dir.path().join("told.txt")).unwrap_or_default();
            complaints
                .push(format!("the client ended with {status}: {}", told.trim_end().replace('\n', "; ")));
        }
        if signed_out != self.users {
            complaints.push(format!("{} users are not in the results", self.users - signed_out));
        }
        complaints
    }
}
