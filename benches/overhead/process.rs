//! Child processes, and what the kernel tells of them and of the machine.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{PATIENCE, stats::millis};

/// A process of ours; it ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// This program in another role, which tells what it has to tell on stdout.
    pub(crate) fn role(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(args).env_clear().envs(env.iter().copied());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        Self { stdin: child.stdin.take(), child, lines }
    }

    /// The next line that it prints.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the process tells in time")
    }

    /// Asks by one line, and returns the answer: one line of `name=value` separated by blanks.
    pub(crate) fn ask(&mut self, question: &str) -> Answer {
        let stdin = self.stdin.as_mut().expect("it has a stdin");
        writeln!(stdin, "{question}").unwrap();
        Answer(self.line())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process answered.
pub(crate) struct Answer(String);

impl Answer {
    pub(crate) fn get(&self, name: &str) -> f64 {
        let value = self.0.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {:?}", self.0))
    }
}

/// A sidecar as its operator would start it, but for its ports.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    /// `HOST:PORT`, or `unix:/PATH`, in the order of the flags.
    pub(crate) addresses: Vec<String>,
}

impl Sidecar {
    /// Starts it and waits until it serves. Its log goes where a container's goes: into a pipe that somebody reads.
    pub(crate) fn start(binary: &Path, flags: &[String], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .args(flags)
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "AKIDBENCHBENCHBENCH0")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("COGNITO_SIGNOUT_ADMIN_LISTEN", "127.0.0.1:0")
            .env("COGNITO_SIGNOUT_LOG_FORMAT", "json")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let lines = read_lines(child.stderr.take().unwrap());
        let process = Process { child, stdin: None, lines };
        let mut addresses = Vec::new();
        loop {
            let line = process.line();
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it says: {line}"));
            match line["message"].as_str() {
                Some("serving gRPC") => addresses.push(line["address"].as_str().unwrap().to_owned()),
                Some("serving probes") => break,
                _ => {}
            }
        }
        Self { process, addresses }
    }

    /// Waits until it has nothing more to do: it has used next to no CPU for a while.
    pub(crate) fn settle(&self) {
        const WHILE: Duration = Duration::from_millis(200);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let before = self.process.cpu();
            thread::sleep(WHILE);
            if self.process.cpu().saturating_sub(before) < Duration::from_micros(500) {
                return;
            }
        }
        panic!("the sidecar does not come to rest");
    }

    /// Resident memory now, in millions of bytes.
    pub(crate) fn rss_mb(&self) -> f64 {
        memory_mb(self.process.pid(), "VmRSS:")
    }

    /// The most resident memory that it has had.
    pub(crate) fn peak_rss_mb(&self) -> f64 {
        memory_mb(self.process.pid(), "VmHWM:")
    }
}

/// Reads to the end, whether anybody listens or not: a full pipe would hold up who writes.
fn read_lines(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            let _ = sender.try_send(line);
        }
    });
    receiver
}

/// CPU time that a process has used: in nanoseconds, summed over its threads, where the kernel tells so; else in
/// hundredths of a second.
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let by_thread = || {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let told = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            sum += told.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(sum))
    };
    by_thread().unwrap_or_else(|| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold blanks; utime and stime are the 12th and 13th after it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    })
}

fn memory_mb(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024.0 / 1e6
}

/// What the whole machine has done since it started, in hundredths of a second.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    busy: u64,
    stolen: u64,
    all: u64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let fields: Vec<u64> = stat
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, stolen] = fields[..] else { panic!("{stat}") };
        let busy = user + nice + system + irq + softirq;
        Self { busy, stolen, all: busy + idle + iowait + stolen }
    }

    /// The shares of the machine's time since `before` that others used, of which `ours` was spent by us, and that the
    /// hypervisor took.
    pub(crate) fn shares_since(before: Self, ours: Duration) -> (f64, f64) {
        let now = Self::now();
        let all = (now.all - before.all) as f64;
        let busy = (now.busy - before.busy) as f64;
        let others = (busy - millis(ours) / 10.0).max(0.0);
        (others / all, (now.stolen - before.stolen) as f64 / all)
    }

    /// In one line: processor, cores, kernel.
    pub(crate) fn describe() -> String {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let model = model.map_or("unknown processor", |(_, model)| model);
        format!("{model}, {cores} cores, Linux {}", read("/proc/sys/kernel/osrelease").trim())
    }

    pub(crate) fn load() -> String {
        let told = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        told.split(' ').next().unwrap_or_default().to_owned()
    }
}
