//! Many users through `cognito-signout bulk`, the sidecar and an endpoint that answers every call: how long it takes, and
//! what memory both processes need at a tenth of the way and at most.
//!
//! `cargo bench --bench bulk` runs a million; `cargo bench --bench bulk -- 100000` that many.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise, and prints"
)]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn main() {
    let items: u64 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let served = Arc::new(AtomicU64::new(0));
    let upstream = endpoint(served.clone());
    let dir = tempfile::tempdir().unwrap();
    let (file, results) = (dir.path().join("users.txt"), dir.path().join("results.jsonl"));
    let mut users = BufWriter::new(File::create(&file).unwrap());
    for n in 0..items {
        writeln!(users, "user{n:09}@example.com").unwrap();
    }
    users.into_inner().unwrap();

    let binary = env!("CARGO_BIN_EXE_cognito-signout");
    let mut sidecar = Command::new(binary)
        .args(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--quota-rps=1000000"])
        .env("COGNITO_SIGNOUT_LOG_FORMAT", "json")
        .env("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTESTTEST")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(sidecar.stderr.take().unwrap()).lines();
    let address = log
        .by_ref()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok())
        .find(|line| line["message"] == "serving gRPC")
        .and_then(|line| line["address"].as_str().map(str::to_owned))
        .unwrap();
    // The log is read and forgotten, as a collector would.
    thread::spawn(move || log.for_each(drop));

    let begun = Instant::now();
    let mut client = Command::new(binary)
        .args(["bulk", "--user-pool-id=eu-central-1_EXAMPLE02", "--address", &address, "--file"])
        .arg(&file)
        .arg("--results")
        .arg(&results)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let memory = |pid: u32, field: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap_or(0)
    };
    let mut early = None;
    let mut most = (0, 0);
    let (tick, ticks) = std::sync::mpsc::channel::<()>();
    let ended = loop {
        if let Some(ended) = client.try_wait().unwrap() {
            break ended;
        }
        let now = (memory(sidecar.id(), "VmRSS"), memory(client.id(), "VmRSS"));
        most = (most.0.max(now.0), most.1.max(now.1));
        if early.is_none() && served.load(Ordering::Relaxed) >= items / 10 {
            early = Some(now);
        }
        _ = ticks.recv_timeout(Duration::from_millis(50));
    };
    drop(tick);
    let took = begun.elapsed().as_secs_f64();
    let (early, lines) =
        (early.unwrap_or_default(), BufReader::new(File::open(&results).unwrap()).lines().count());
    println!("items={items}");
    println!("exit_status={}", ended.code().unwrap_or(-1));
    println!("results={lines}");
    println!("seconds={took:.1}");
    println!("items_per_second={:.0}", items as f64 / took);
    println!("sidecar_rss_kib_at_a_tenth={}", early.0);
    println!("sidecar_rss_kib_most={}", most.0);
    println!("client_rss_kib_at_a_tenth={}", early.1);
    println!("client_rss_kib_most={}", most.1);
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
}

/// Answers every request with 200 and `{}`; a thread a connection.
fn endpoint(served: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let served = served.clone();
            thread::spawn(move || {
                connection.set_nodelay(true).ok();
                let mut writer = connection.try_clone().unwrap();
                let mut reader = BufReader::new(connection);
                loop {
                    let (mut length, mut line) = (0, String::new());
                    loop {
                        line.clear();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    if reader.read_exact(&mut vec![0; length]).is_err() {
                        return;
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\n\
                        x-amzn-requestid: 5c217ed0-0000-4000-8000-000000000000\r\ncontent-length: 2\r\n\r\n{}";
                    if writer.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}
