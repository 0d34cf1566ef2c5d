//! What the kernel knows of the process, by the names that every Prometheus client gives to it. Where there is no /proc,
//! there are no figures.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::registry::{Registry, Unit};

use super::watched::{Kind, collector};

/// The unit of times in /proc/self/stat is a hundredth of a second on every architecture that Linux still gains users on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    let mut gauge = |name, help, unit, read: fn() -> Option<f64>| {
        registry.register_collector(collector(Kind::Gauge, name, help, unit, move |samples| match read() {
            Some(value) => samples.one(value),
            None => Ok(()),
        }));
    };
    gauge("process_resident_memory", "Resident memory", Some(Unit::Bytes), || status("VmRSS:", 1024.0));
    gauge("process_virtual_memory", "Virtual memory", Some(Unit::Bytes), || status("VmSize:", 1024.0));
    gauge("process_threads", "Threads", None, || status("Threads:", 1.0));
    gauge("process_open_fds", "Open file descriptors", None, open_fds);
    gauge("process_max_fds", "File descriptors that may be open", None, max_fds);
    registry.register_collector(collector(
        Kind::Counter,
        "process_cpu",
        "User and system time",
        Some(Unit::Seconds),
        |samples| match cpu_seconds() {
            Some(seconds) => samples.one(seconds),
            None => Ok(()),
        },
    ));
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.register_collector(collector(
        Kind::Gauge,
        "process_start_time",
        "When the process started, since the epoch",
        Some(Unit::Seconds),
        move |samples| samples.one(started),
    ));
    registry
}

fn status(key: &str, unit: f64) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let value: f64 = value.split_whitespace().next()?.parse().ok()?;
    Some(value * unit)
}

fn open_fds() -> Option<f64> {
    // One of them is the directory that is being read.
    let fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    Some(fds as f64)
}

fn max_fds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    value.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, which may hold anything; utime and stime are the 12th and 13th after it.
    let (_, fields) = text.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    Some((ticks.next()?.ok()? + ticks.next()?.ok()?) / TICKS_PER_SECOND)
}
