//! What the sidecar shows of itself: metrics.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use crate::{
    bulk::{item, open},
    certs::Authority,
    harness::{PATIENCE, POOL, Sidecar, reason, request},
    scripted::{Reply, Scripted},
};

/// A username that must be found nowhere.
pub(crate) const CANARY: &str = "canary-3f9a71@example.com";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

/// What a scrape gave: the content type and the text.
async fn get(admin: SocketAddr, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let head = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (kind.to_owned(), body.to_owned())
}

/// The samples of one scrape.
#[derive(Debug)]
pub(crate) struct Scrape(String);

impl Scrape {
    pub(crate) async fn of(sidecar: &Sidecar) -> Self {
        Self(get(sidecar.admin(), "text/plain").await.1)
    }

    /// The first scrape that is as wanted.
    pub(crate) async fn until(sidecar: &Sidecar, wanted: impl Fn(&Self) -> bool) -> Self {
        Self::until_at(sidecar.admin(), wanted).await
    }

    /// The same of the admin listener at that address.
    pub(crate) async fn until_at(admin: SocketAddr, wanted: impl Fn(&Self) -> bool) -> Self {
        let begun = Instant::now();
        loop {
            let scrape = Self(get(admin, "text/plain").await.1);
            if wanted(&scrape) {
                return scrape;
            }
            assert!(begun.elapsed() < PATIENCE, "never as wanted: {}", scrape.0);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The sum of the samples of that name that have all these labels, written as `name="value"`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name, labels).sum()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples(name, &[]).next().is_some()
    }

    fn samples(&self, name: &str, labels: &[&str]) -> impl Iterator<Item = f64> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (is, has) = series.split_once('{').unwrap_or((series, ""));
            let all = labels.iter().all(|label| has.contains(label));
            (is == format!("cognito_signout_{name}") && all).then(|| value.parse().unwrap())
        })
    }
}

#[tokio::test]
async fn every_metric_of_a_call_moves_as_it_should() {
    let upstream = Scripted::start(|n, request| match (n, request.username().as_str()) {
        (_, "nobody") => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
        (2, _) => Reply::aws_error(500, "InternalErrorException", "later"),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let before = Scrape::of(&sidecar).await;
    assert_eq!(before.sum("calls_total", &[]), 0.0);
    assert_eq!(before.sum("calls_shed_total", &["reason=\"OVERLOADED\""]), 0.0);
    assert!(before.has("calls_shed_total"), "there is something to alert on from the start");
    let full: Vec<_> = before.samples("connections_refused_total", &["reason=\"limit\""]).collect();
    assert_eq!(full, [0.0, 0.0], "of both listeners");

    sidecar.sign_out(POOL, CANARY).await.unwrap();
    sidecar.sign_out(POOL, "nobody").await.unwrap_err();
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    sidecar.sign_out("nonsense", CANARY).await.unwrap_err();

    let scrape = Scrape::of(&sidecar).await;
    let unary = "method=\"AdminUserGlobalSignOut\"";
    assert_eq!(scrape.sum("calls_total", &[unary, "code=\"OK\"", "reason=\"\"", "fault=\"\""]), 2.0);
    let not_found = ["code=\"NOT_FOUND\"", "reason=\"USER_NOT_FOUND\"", "fault=\"caller\""];
    assert_eq!(scrape.sum("calls_total", &not_found), 1.0);
    assert_eq!(scrape.sum("calls_total", &["reason=\"INVALID_REQUEST\""]), 1.0);
    assert_eq!(scrape.sum("call_duration_seconds_count", &[unary]), 4.0);
    assert_eq!(scrape.sum("call_duration_seconds_bucket", &[unary, "le=\"+Inf\""]), 4.0);
    assert_eq!(scrape.sum("calls_in_flight", &[]), 0.0);

    let region = "region=\"eu-central-1\"";
    assert_eq!(scrape.sum("attempts_total", &[region, "reason=\"\""]), 2.0);
    assert_eq!(scrape.sum("attempts_total", &[region, "reason=\"USER_NOT_FOUND\""]), 1.0);
    let internal = ["reason=\"COGNITO_INTERNAL_ERROR\"", "fault=\"aws\""];
    assert_eq!(scrape.sum("attempts_total", &internal), 1.0);
    assert_eq!(scrape.sum("attempt_duration_seconds_count", &[region]), 4.0);
    assert_eq!(scrape.sum("retries_total", &[]), 1.0);
    assert_eq!(scrape.sum("queue_wait_seconds_count", &[]), 4.0);
    assert_eq!(scrape.sum("attempts_in_flight", &[]), 0.0);
    assert_eq!(scrape.sum("attempts_in_flight_limit", &[]), 256.0);

    assert!(!scrape.has("pool_calls_total"), "pools are told apart only if asked for");
    assert!(!scrape.0.contains(POOL));
    assert!(!scrape.0.contains("canary"), "a username is in the metrics");
    assert!(!sidecar.log.text().contains("canary"), "a username is in the log");
}

#[tokio::test]
async fn calls_that_are_abandoned_or_too_slow_are_counted() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::before(&upstream).await;

    let mut client = sidecar.client();
    let call = tokio::spawn(async move {
        client.admin_user_global_sign_out(request(POOL, CANARY, Duration::from_secs(60))).await
    });
    upstream.wait_for_requests(1).await;
    let during = Scrape::of(&sidecar).await;
    assert_eq!(during.sum("calls_in_flight", &[]), 1.0);
    assert_eq!(during.sum("attempts_in_flight", &[]), 1.0);
    call.abort();
    let after = Scrape::until(&sidecar, |scrape| scrape.sum("calls_in_flight", &[]) == 0.0).await;
    assert_eq!(after.sum("calls_total", &["code=\"CANCELLED\"", "reason=\"\"", "fault=\"caller\""]), 1.0);
    assert_eq!(after.sum("attempts_total", &["reason=\"CANCELLED\""]), 1.0);
    assert_eq!(after.sum("attempts_in_flight", &[]), 0.0);

    let status = sidecar.sign_out_within(POOL, CANARY, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let scrape = Scrape::of(&sidecar).await;
    let late = ["code=\"DEADLINE_EXCEEDED\"", "reason=\"DEADLINE_EXCEEDED\"", "fault=\"aws\""];
    assert_eq!(scrape.sum("calls_total", &late), 1.0);
    assert_eq!(scrape.sum("calls_total", &["code=\"CANCELLED\""]), 1.0);
}

#[tokio::test]
async fn what_waits_and_what_is_shed_is_seen() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--max-in-flight", 1)
        .arg("--max-waiting", 1)
        .arg("--log-level", "debug")
        .start()
        .await;
    let call = || {
        let mut client = sidecar.client();
        tokio::spawn(async move { client.admin_user_global_sign_out(request(POOL, CANARY, PATIENCE)).await })
    };
    let first = call();
    upstream.wait_for_requests(1).await;
    let second = call();
    let scrape = Scrape::until(&sidecar, |scrape| scrape.sum("queue_waiting", &[]) == 1.0).await;
    assert_eq!(scrape.sum("attempts_in_flight", &[]), 1.0);
    assert_eq!(scrape.sum("queue_waiting_limit", &[]), 1.0);

    // Another user: one who waits already would be joined.
    assert_eq!(sidecar.sign_out(POOL, "somebody-else").await.unwrap_err().code(), Code::ResourceExhausted);
    let scrape = Scrape::of(&sidecar).await;
    assert_eq!(scrape.sum("calls_shed_total", &["reason=\"OVERLOADED\""]), 1.0);
    // The first has its turn; what was refused has waited for nothing, which counts as a wait too.
    assert_eq!(scrape.sum("queue_wait_seconds_count", &[]), 2.0);

    second.abort();
    let ended = sidecar.log.wait_for_message("the caller went away").await;
    let waited = sidecar.log.wait_for_message("waits for its turn").await;
    assert_eq!(waited["span"]["request_id"], ended["request_id"], "lines of a call belong together");
    Scrape::until(&sidecar, |scrape| scrape.sum("queue_waiting", &[]) == 0.0).await;
    first.abort();
}

#[tokio::test]
async fn the_quota_and_the_pace_of_each_region_are_seen() {
    const SLOW: &str = "us-east-1_EXAMPLE";

    let upstream = Scripted::start(|_, request| match request.username().as_str() {
        "throttled" => Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded"),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--quota-rps", "100,us-east-1=0.01")
        .arg("--quota-share", "50%")
        .arg("--max-attempts", 1)
        .start()
        .await;
    let region = ["region=\"eu-central-1\""];
    assert!(!Scrape::of(&sidecar).await.has("quota_limit_per_second"), "nothing was asked of any region");

    sidecar.sign_out(POOL, CANARY).await.unwrap();
    let before = Scrape::of(&sidecar).await;
    assert_eq!(before.sum("quota_limit_per_second", &region), 50.0, "our share of it");
    let pace = before.sum("quota_pace_per_second", &region);
    assert!((5.0..50.0).contains(&pace), "a cold start is a tenth of it, and more with use: {pace}");
    assert_eq!(before.samples("quota_throttled_total", &region).collect::<Vec<_>>(), [0.0]);

    sidecar.sign_out(POOL, "throttled").await.unwrap_err();
    let after = Scrape::of(&sidecar).await;
    assert_eq!(after.sum("quota_throttled_total", &region), 1.0);
    assert!(after.sum("quota_pace_per_second", &region) < pace, "it falls with throttling");
    assert_eq!(after.sum("quota_limit_per_second", &region), 50.0, "and the limit stays");

    // A region that lets one through, and the next after minutes: so what comes waits for the pace.
    sidecar.sign_out(SLOW, CANARY).await.unwrap();
    let mut client = sidecar.client();
    let urgent = tokio::spawn(async move {
        client.admin_user_global_sign_out(request(SLOW, "urgent", Duration::from_secs(3600))).await
    });
    let (sender, stream) = open(&sidecar).await;
    sender.send(item(1, SLOW, "one-of-many")).await.unwrap();
    sender.send(item(2, SLOW, "another")).await.unwrap();
    let slow = |class| ["region=\"us-east-1\"", class];
    let (interactive, bulk) = (slow("class=\"interactive\""), slow("class=\"bulk\""));
    let scrape = Scrape::until(&sidecar, |scrape| {
        scrape.sum("quota_waiting", &interactive) == 1.0 && scrape.sum("quota_waiting", &bulk) == 2.0
    })
    .await;
    assert_eq!(scrape.sum("queue_waiting", &[]), 3.0, "they are among all that wait");
    assert_eq!(scrape.sum("quota_waiting", &region), 0.0);
    let status = sidecar.sign_out_within(SLOW, "late", Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXHAUSTED");
    let scrape = Scrape::of(&sidecar).await;
    assert_eq!(scrape.sum("calls_shed_total", &["reason=\"QUOTA_EXHAUSTED\""]), 1.0);

    urgent.abort();
    drop((sender, stream));
    Scrape::until(&sidecar, |scrape| scrape.sum("quota_waiting", &[]) == 0.0).await;
}

#[tokio::test]
async fn what_may_be_read_anew_has_its_counters_from_the_start() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = Authority::new("ours").server().write_to(dir.path(), "server");
    let (policy, audit_key) = (dir.path().join("policy.toml"), dir.path().join("audit.key"));
    let write = |path: &Path, text: &str| {
        // As careful writers do it: nobody sees half of it.
        fs::write(dir.path().join("new"), text).unwrap();
        fs::rename(dir.path().join("new"), path).unwrap();
    };
    const CALLER: &str = "[[callers]]\nname = \"a\"\nuid = [4711]\npools = [\"*\"]\n";
    write(&policy, CALLER);
    write(&audit_key, "0123456789abcdef0123456789abcdef");
    let bare = Sidecar::before(&upstream).await;
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--tls-cert", certificate.display())
        .arg("--tls-key", key.display())
        .arg("--policy", policy.display())
        .arg("--reload-interval", "20ms")
        .arg("--audit", "stdout")
        .arg("--audit-key-file", audit_key.display())
        .start()
        .await;

    let scrape = Scrape::of(&sidecar).await;
    for what in ["what=\"tls\"", "what=\"policy\"", "what=\"audit_key\""] {
        for result in ["result=\"success\"", "result=\"failure\""] {
            let series: Vec<_> = scrape.samples("reloads_total", &[what, result]).collect();
            assert_eq!(series, [0.0], "{what} {result}");
        }
    }
    assert!(!Scrape::of(&bare).await.has("reloads_total"), "what is not there is not read anew");

    let of_policy = |scrape: &Scrape, result| scrape.sum("reloads_total", &["what=\"policy\"", result]);
    write(&policy, "not a policy");
    Scrape::until(&sidecar, |scrape| of_policy(scrape, "result=\"failure\"") == 1.0).await;
    write(&policy, &CALLER.replace("4711", "4712"));
    let scrape = Scrape::until(&sidecar, |scrape| of_policy(scrape, "result=\"success\"") == 1.0).await;
    assert_eq!(scrape.sum("reloads_total", &[]), 2.0);
    let renewed = Authority::new("ours").server();
    // The key first: a pair that does not match is not taken, and not yet a failure.
    write(&key, &renewed.key);
    write(&certificate, &renewed.certificate);
    let tls = ["what=\"tls\"", "result=\"success\""];
    Scrape::until(&sidecar, |scrape| scrape.sum("reloads_total", &tls) == 1.0).await;
}

#[tokio::test]
async fn credentials_connections_and_the_process_are_seen() {
    let endpoint = Scripted::start(|n, _| match n {
        0 => Reply::http(500, "down"),
        _ => Reply::json(serde_json::json!({
            "AccessKeyId": "AKIDTESTTESTTESTTEST", "SecretAccessKey": "secret", "Token": "token",
            "Expiration": "2099-01-01T00:00:00Z",
        })),
    })
    .await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", endpoint.url())
        .start()
        .await;
    sidecar.sign_out(POOL, CANARY).await.ok();
    let scrape = Scrape::until(&sidecar, |scrape| scrape.sum("credentials_usable", &[]) == 1.0).await;
    assert_eq!(scrape.sum("credentials_expiry_timestamp_seconds", &[]), 4_070_908_800.0);
    assert!(scrape.sum("credentials_loaded_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(scrape.sum("credentials_loads_total", &["result=\"success\""]), 1.0);

    let client = sidecar.client();
    let mut kept = client.clone();
    kept.admin_user_global_sign_out(request(POOL, CANARY, PATIENCE)).await.unwrap();
    let api = ["listener=\"api\""];
    let scrape = Scrape::until(&sidecar, |scrape| scrape.sum("connections_open", &api) == 1.0).await;
    assert_eq!(scrape.sum("connections_open", &["listener=\"admin\""]), 1.0, "this scrape itself");
    assert!(scrape.sum("connections_accepted_total", &api) >= 2.0);
    drop((client, kept));
    Scrape::until(&sidecar, |scrape| scrape.sum("connections_open", &api) == 0.0).await;

    assert!(scrape.0.contains(&format!("build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"))));
    for figure in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"]
    {
        let line = scrape.0.lines().find(|line| line.starts_with(&format!("process_{figure} ")));
        let value: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(value >= 0.0, "{line:?}");
    }
    assert_eq!(scrape.sum("stopping", &[]), 0.0);
}

#[tokio::test]
async fn an_attempt_for_which_nothing_is_sent_is_none() {
    let credentials = Scripted::start(|_, _| Reply::http(500, "down")).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&credentials, &upstream).start().await;

    let status = sidecar.sign_out(POOL, CANARY).await.unwrap_err();

    assert_eq!(reason(&status), "SIDECAR_CREDENTIALS_UNAVAILABLE");
    let scrape = Scrape::of(&sidecar).await;
    assert_eq!(scrape.sum("calls_total", &["reason=\"SIDECAR_CREDENTIALS_UNAVAILABLE\""]), 1.0);
    assert!(scrape.sum("queue_wait_seconds_count", &[]) >= 1.0, "it had its turn");
    for nought in ["attempts_total", "attempt_duration_seconds_count", "retries_total", "attempts_in_flight"]
    {
        assert_eq!(scrape.sum(nought, &[]), 0.0, "{nought}");
    }
}

#[tokio::test]
async fn pools_are_told_apart_if_asked_for() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).flag("--metrics-pool-ids").start().await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    for n in 0..300 {
        sidecar.sign_out(&format!("eu-central-1_made{n}"), CANARY).await.unwrap();
    }
    let scrape = Scrape::of(&sidecar).await;
    let pool = format!("user_pool_id=\"{POOL}\"");
    assert_eq!(scrape.sum("pool_calls_total", &[&pool, "code=\"OK\""]), 1.0);
    assert_eq!(scrape.sum("pool_calls_total", &["user_pool_id=\"other\""]), 45.0, "256 are told apart");
    assert_eq!(scrape.samples("pool_calls_total", &[]).count(), 257);
}

#[tokio::test]
async fn prometheus_and_its_own_checker_are_content() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let starter = Sidecar::at(&upstream.url()).flag("--metrics-pool-ids").arg("--quota-rps", 25);
    let sidecar = starter.arg("--audit", "stdout").start().await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    sidecar.sign_out("nonsense", CANARY).await.unwrap_err();

    let (kind, openmetrics) = get(sidecar.admin(), OPENMETRICS).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(openmetrics.ends_with("# EOF\n"));
    assert!(openmetrics.contains("# UNIT cognito_signout_call_duration_seconds seconds\n"));
    let (kind, text) = get(sidecar.admin(), "*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(text.contains("# TYPE cognito_signout_calls_total counter\n"));
    assert!(!text.contains("# EOF"));

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) => {
            eprintln!("LEFT OUT: promtool cannot be run ({error}); Debian has it in the package prometheus");
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}
