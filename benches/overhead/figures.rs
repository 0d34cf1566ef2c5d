//! What is measured, and how it is told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rcgen::{CertificateParams, KeyPair};
use tokio::runtime::Runtime;

use crate::{
    Options, Part,
    bare::Bare,
    cognito::Cognito,
    drive::{Callers, ProxyCallers, Times},
    growth, plot,
    process::{Machine, Sidecar, cpu_of},
    stats::{Sample, figure, figures, micros, millis, round},
};

/// Sign-outs in flight at one time in the rounds, and how many are made in each.
const ROUNDS: [(usize, usize); 3] = [(1, 400), (16, 2000), (64, 3000)];

pub(crate) fn run(options: &Options) {
    let binary = options.sidecar.clone().expect("clap demands it");
    let demo = Command::new(&binary).args(["demo", "--help"]).output();
    assert!(
        !demo.unwrap_or_else(|error| panic!("{}: {error}", binary.display())).status.success(),
        "{} knows the command `demo`, so it is not as it is released: \
         cargo build --release --no-default-features --locked, and copy it away, for cargo bench writes over it",
        binary.display()
    );
    println!("# {}", Machine::describe());
    println!("# load average before: {}", Machine::load());
    let bench = Bench::new(options, binary);

    figure("binary_mb", round(fs::metadata(&bench.binary).unwrap().len() as f64 / 1e6));
    if options.only.contains(&Part::Starts) {
        starts(&bench);
    }
    if options.only.contains(&Part::Burst) {
        burst(&bench);
    }
    if options.only.contains(&Part::Rounds) {
        rounds(&bench);
    }
    if options.only.contains(&Part::Growth) {
        let curves = growth::measure(&bench);
        if let Some(path) = &options.plot {
            fs::write(path, plot::svg(&curves)).unwrap();
        }
    }
    println!("# load average after: {}", Machine::load());
}

/// What all measurements share.
pub(crate) struct Bench<'a> {
    options: &'a Options,
    binary: PathBuf,
    /// Holds sockets and certificates.
    dir: tempfile::TempDir,
    /// One thread, so that a caller costs as little as it can.
    runtime: Runtime,
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options, binary: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { options, binary, dir: tempfile::tempdir().unwrap(), runtime }
    }

    /// A sidecar with the default settings at a free port and at a unix socket.
    pub(crate) fn sidecar(&self, upstream: &str) -> Sidecar {
        self.sidecar_with(upstream, &[])
    }

    fn sidecar_with(&self, upstream: &str, env: &[(&str, &str)]) -> Sidecar {
        let socket = self.dir.path().join("api.sock");
        // The one before was killed, and has left it.
        let _ = fs::remove_file(&socket);
        let mut flags =
            vec!["--listen=127.0.0.1:0".to_owned(), format!("--listen=unix:{}", socket.display())];
        flags.extend(self.options.sidecar_flag.iter().cloned());
        let endpoint = [("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream)];
        Sidecar::start(&self.binary, &flags, &[&endpoint, env].concat())
    }

    pub(crate) fn connect(&self, address: &str, connections: usize) -> Callers {
        self.runtime.block_on(Callers::connect(address, connections))
    }

    /// Drives a process, and tells what that cost it.
    pub(crate) fn drive(&self, pid: u32, calls: usize, load: impl Future<Output = Times>) -> Cost {
        Cost::of(pid, calls, || self.runtime.block_on(load))
    }
}

/// What a number of calls took, and what CPU time each took of the process that made or served them.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu_us: f64,
    pub(crate) times: Times,
}

impl Cost {
    fn of(pid: u32, calls: usize, load: impl FnOnce() -> Times) -> Self {
        let before = cpu_of(pid);
        let times = load();
        // What is running is charged when it stops, or at the next tick.
        thread::sleep(Duration::from_millis(10));
        Self { cpu_us: micros(cpu_of(pid) - before) / calls as f64, times }
    }
}

/// The sidecar and the bare SDK, in turn.
fn rounds(bench: &Bench<'_>) {
    let options = bench.options;
    let cognito = Cognito::start(options.upstream);
    let sidecar = bench.sidecar(&cognito.url);
    let mut bare = Bare::start(&cognito.url);
    let tcp = bench.connect(&sidecar.addresses[0], 1);
    let unix = bench.connect(&sidecar.addresses[1], 1);
    let peer = options.peer.as_ref().zip(options.peer_pid);
    let peer = peer.map(|(url, pid)| (ProxyCallers::of(url, &options.peer_host), pid));

    let mut table: Vec<Row> = ROUNDS.iter().map(|_| Row::default()).collect();
    let (added_tcp, added_unix) = (Added::default(), Added::default());
    let per_second = Sample::default();
    let mut watched = Watched::begin(bench, &[cognito.process.pid(), sidecar.process.pid(), bare.0.pid()]);
    for round in 0..=options.rounds {
        for (row, (in_flight, calls)) in table.iter_mut().zip(ROUNDS) {
            let mut by_sdk = None;
            let mut by_sidecar = None;
            // Each comes first as often as the other: what a neighbour does lasts a while.
            for turn in 0..2 {
                if (turn + round) % 2 == 0 {
                    let load = tcp.run(calls, in_flight);
                    by_sidecar = Some(bench.drive(sidecar.process.pid(), calls, load));
                } else {
                    let pid = bare.0.pid();
                    by_sdk = Some(Cost::of(pid, calls, || bare.run(calls, in_flight)));
                }
            }
            let (by_sidecar, by_sdk) = by_sidecar.zip(by_sdk).unwrap();
            let by_socket = (in_flight == 1)
                .then(|| bench.drive(sidecar.process.pid(), calls, unix.run(calls, in_flight)));
            let by_peer =
                peer.as_ref().map(|(callers, pid)| bench.drive(*pid, calls, callers.run(calls, in_flight)));
            if round == 0 {
                continue;
            }
            row.note(by_sidecar, by_sdk, by_peer);
            if let Some(by_socket) = by_socket {
                added_tcp.note(by_sidecar, by_sdk);
                added_unix.note(by_socket, by_sdk);
            }
            if in_flight == 64 {
                per_second.push(calls as f64 / by_sidecar.times.wall.as_secs_f64());
            }
        }
    }
    for (row, (in_flight, _)) in table.iter().zip(ROUNDS) {
        row.tell(in_flight);
    }
    added_tcp.tell("");
    added_unix.tell("_unix");
    figures("calls_per_s_c64", &per_second);
    figure("rss_after_rounds_mb", round(sidecar.rss_mb()));
    watched.tell(&table[2].ratio);
}

/// What is known of one number in flight.
#[derive(Default)]
struct Row {
    ratio: Sample,
    sidecar: Sample,
    bare: Sample,
    peer: Sample,
    ratio_to_peer: Sample,
}

impl Row {
    fn note(&self, by_sidecar: Cost, by_sdk: Cost, by_peer: Option<Cost>) {
        self.ratio.push(by_sidecar.cpu_us / by_sdk.cpu_us);
        self.sidecar.push(by_sidecar.cpu_us);
        self.bare.push(by_sdk.cpu_us);
        if let Some(by_peer) = by_peer {
            self.peer.push(by_peer.cpu_us);
            self.ratio_to_peer.push(by_sidecar.cpu_us / by_peer.cpu_us);
        }
    }

    fn tell(&self, in_flight: usize) {
        figures(&format!("cpu_ratio_c{in_flight}"), &self.ratio);
        figures(&format!("cpu_us_sidecar_c{in_flight}"), &self.sidecar);
        figures(&format!("cpu_us_bare_sdk_c{in_flight}"), &self.bare);
        if !self.peer.median().is_nan() {
            figures(&format!("cpu_us_peer_c{in_flight}"), &self.peer);
            figures(&format!("cpu_ratio_to_peer_c{in_flight}"), &self.ratio_to_peer);
        }
    }
}

/// How much longer a call takes through the sidecar, one at a time.
#[derive(Default)]
struct Added {
    p50: Sample,
    p99: Sample,
}

impl Added {
    fn note(&self, by_sidecar: Cost, by_sdk: Cost) {
        self.p50.push(micros(by_sidecar.times.p50) - micros(by_sdk.times.p50));
        self.p99.push(micros(by_sidecar.times.p99) - micros(by_sdk.times.p99));
    }

    fn tell(&self, suffix: &str) {
        figures(&format!("added_p50_us_c1{suffix}"), &self.p50);
        figures(&format!("added_p99_us_c1{suffix}"), &self.p99);
    }
}

/// Whether the machine was ours alone.
struct Watched {
    before: Machine,
    pids: Vec<u32>,
    cpu: Duration,
}

impl Watched {
    fn begin(bench: &Bench<'_>, pids: &[u32]) -> Self {
        let pids: Vec<u32> =
            pids.iter().copied().chain([std::process::id()]).chain(bench.options.peer_pid).collect();
        Self { before: Machine::now(), cpu: Self::cpu(&pids), pids }
    }

    fn cpu(pids: &[u32]) -> Duration {
        pids.iter().map(|pid| cpu_of(*pid)).sum()
    }

    fn tell(&mut self, ratio: &Sample) {
        let (others, stolen) = Machine::shares_since(self.before, Self::cpu(&self.pids) - self.cpu);
        let spread = ratio.spread();
        figure("machine_used_by_others_percent", round(others * 100.0));
        figure("machine_stolen_percent", round(stolen * 100.0));
        figure("spread_of_rounds_percent", round(spread * 100.0));
        let quiet = others < 0.1 && stolen < 0.02 && spread < 0.1;
        figure("quiet", quiet);
        if !quiet {
            println!(
                "# The machine was too noisy: believe the ratios with care, the times not at all, and run again \
                 when others use less than 10 % of it, the hypervisor takes less than 2 %, and the quartiles of \
                 cpu_ratio_c64 are less than 10 % of it apart."
            );
        }
    }
}

/// A fresh process: what it holds, and how long it lets its first callers wait.
fn starts(bench: &Bench<'_>) {
    let cognito = Cognito::start(None);
    let (start_to_first_ok, rss_idle) = (Sample::default(), Sample::default());
    let cpu_of_start = Sample::default();
    for _ in 0..bench.options.starts {
        let begun = Instant::now();
        let sidecar = bench.sidecar(&cognito.url);
        let callers = bench.connect(&sidecar.addresses[0], 1);
        bench.runtime.block_on(callers.run(1, 1));
        start_to_first_ok.push(millis(begun.elapsed()));

        let sidecar = bench.sidecar(&cognito.url);
        sidecar.settle();
        rss_idle.push(sidecar.rss_mb());
        cpu_of_start.push(millis(sidecar.process.cpu()));
    }
    figures("start_to_first_ok_ms", &start_to_first_ok);
    figures("start_cpu_ms", &cpu_of_start);
    figures("rss_idle_mb", &rss_idle);

    let (certificate, key, roots) = certificates(bench.dir.path());
    let cognito = Cognito::tls(&certificate, &key);
    let [first, second, difference, first_cpu, rss] = [(); 5].map(|()| Sample::default());
    for _ in 0..bench.options.starts {
        let sidecar = bench.sidecar_with(&cognito.url, &[("SSL_CERT_FILE", roots.to_str().unwrap())]);
        let callers = bench.connect(&sidecar.addresses[0], 1);
        sidecar.settle();
        let call = || bench.drive(sidecar.process.pid(), 1, callers.run(1, 1));
        let (one, two) = (call(), call());
        first.push(millis(one.times.p50));
        second.push(millis(two.times.p50));
        difference.push(millis(one.times.p50) - millis(two.times.p50));
        first_cpu.push(one.cpu_us / 1e3);
        rss.push(sidecar.rss_mb());
    }
    figures("first_call_ms", &first);
    figures("second_call_ms", &second);
    figures("first_minus_second_call_ms", &difference);
    figures("first_call_cpu_ms", &first_cpu);
    figures("rss_after_first_tls_call_mb", &rss);
}

/// A certificate for 127.0.0.1, its key, and the machine's own roots with it among them: parsing those costs time too.
fn certificates(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let write = |name: &str, pem: &str| {
        let path = dir.join(name);
        fs::write(&path, pem).unwrap();
        path
    };
    let machine = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
    let roots = machine.matches("BEGIN CERTIFICATE").count() + 1;
    figure("root_certificates", roots);
    (
        write("server.crt", &certificate),
        write("server.key", &key.serialize_pem()),
        write("roots.crt", &(machine + &certificate)),
    )
}

/// 10,000 calls at once before a Cognito that takes 200 ms.
fn burst(bench: &Bench<'_>) {
    const CALLS: usize = 10_000;
    let mut cognito = Cognito::slow(Duration::from_millis(200));
    let sidecar = bench.sidecar(&cognito.url);
    // A connection carries 200 calls at one time, so that all of them are the sidecar's to hold.
    let callers = bench.connect(&sidecar.addresses[0], CALLS / 100);
    sidecar.settle();
    figure("rss_100_connections_mb", round(sidecar.rss_mb()));
    let cost = bench.drive(sidecar.process.pid(), CALLS, callers.run(CALLS, CALLS));
    let (connections, requests) = cognito.counts();
    figure("rss_burst10k_mb", round(sidecar.peak_rss_mb()));
    sidecar.settle();
    figure("rss_after_burst10k_mb", round(sidecar.rss_mb()));
    figure("upstream_connections_burst10k", connections);
    figure("lost_burst10k", CALLS as f64 - requests);
    figure("wall_burst10k_s", round(cost.times.wall.as_secs_f64()));
    figure("cpu_us_burst10k", round(cost.cpu_us));
}
