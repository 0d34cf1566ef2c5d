//! The audit log: an event for each sign-out asked for, and what happens when it cannot be written.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    harness::{POOL, Sidecar, metadata, path_in, reason, request, run, text},
    observe::{CANARY, Scrape},
    scripted::{Reply, Scripted, request_id},
};

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// printf %s canary-3f9a71@example.com | openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef0123456789abcdef
const CANARY_HASH: &str = "78db28b28f9cfdb16367247ce4b9735929adbce9ca4765199b5205152553a129";

/// A directory with a key, and the path of the key.
fn with_key() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let key = path_in(&dir, "key");
    fs::write(&key, KEY).unwrap();
    (dir, key)
}

fn events(path: impl AsRef<Path>) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(!text.contains("canary"), "a username is in the audit log");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_sign_out_asked_for_leaves_an_event_on_stdout() {
    let upstream = Scripted::start(|_, request| match request.username().as_str() {
        "nobody" => Reply::aws_error(400, "UserNotFoundException", "User does not exist."),
        "slow" => Reply::never(),
        _ => Reply::ok(),
    })
    .await;
    let (_dir, key) = with_key();
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--audit", "stdout").arg("--audit-key-file", key).start().await;

    sidecar.sign_out(POOL, CANARY).await.unwrap();
    let event = sidecar.stdout.wait_for(|event| event["outcome"] == "signed_out").await;
    assert_eq!(event["schema"], "cognito.signout.audit.v1");
    assert_eq!(event["method"], "AdminUserGlobalSignOut");
    assert_eq!(event["user_pool_id"], POOL);
    assert_eq!(event["username_hmac"], CANARY_HASH);
    assert_eq!(event["username_hmac_key_id"].as_str().unwrap().len(), 16);
    assert_eq!(
        (event["code"].as_str(), &event["reason"], &event["fault"]),
        (Some("OK"), &Value::Null, &Value::Null)
    );
    assert_eq!(event["aws_request_id"], request_id(0));
    assert_eq!(event["region"], "eu-central-1");
    assert_eq!(event["attempts"], 1);
    assert_eq!(event.as_object().unwrap().len(), 18);
    let line = sidecar.log.wait_for_message("signed out").await;
    assert_eq!(line["request_id"], event["request_id"], "log and audit can be told to belong together");

    sidecar.sign_out(POOL, "nobody").await.unwrap_err();
    let event = sidecar.stdout.wait_for(|event| event["reason"] == "USER_NOT_FOUND").await;
    assert_eq!((event["outcome"].as_str(), event["fault"].as_str()), (Some("refused"), Some("caller")));
    assert_eq!(event["aws_error_code"], "UserNotFoundException");

    sidecar.sign_out("nonsense", CANARY).await.unwrap_err();
    let event = sidecar.stdout.wait_for(|event| event["reason"] == "INVALID_REQUEST").await;
    assert_eq!((event["outcome"].as_str(), event["attempts"].as_u64()), (Some("not_sent"), Some(0)));
    assert_eq!((&event["user_pool_id"], &event["username_hmac"]), (&Value::Null, &Value::Null));

    let mut client = sidecar.client();
    let call = tokio::spawn(async move {
        client.admin_user_global_sign_out(request(POOL, "slow", Duration::from_secs(60))).await
    });
    upstream.wait_for_requests(3).await;
    call.abort();
    let event = sidecar.stdout.wait_for(|event| event["code"] == "CANCELLED").await;
    assert_eq!((event["outcome"].as_str(), event["fault"].as_str()), (Some("unknown"), Some("caller")));

    Scrape::until(&sidecar, |scrape| scrape.sum("audit_events_total", &["result=\"written\""]) == 4.0).await;
    assert!(!sidecar.stdout.text().contains("canary"), "a username is in the audit log");
    assert!(!sidecar.log.text().contains("canary"), "a username is in the log");
}

#[tokio::test]
async fn a_success_is_in_the_file_before_the_caller_hears_of_it_if_that_is_demanded() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let (dir, key) = with_key();
    let file = path_in(&dir, "audit.log");
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--audit", &file)
        .arg("--audit-key-file", &key)
        .arg("--audit-on-failure", "closed")
        .start()
        .await;
    for n in 1..20 {
        sidecar.sign_out(POOL, CANARY).await.unwrap();
        assert_eq!(events(&file).len(), n);
    }
    // As logrotate does it.
    fs::rename(&file, path_in(&dir, "audit.log.1")).unwrap();
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    assert_eq!(events(&file).len(), 1);

    let old = events(&file)[0]["username_hmac_key_id"].clone();
    fs::write(&key, KEY.to_uppercase()).unwrap();
    sidecar.log.wait_for_message("audit: usernames are hashed with another key").await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    let event = events(&file).pop().unwrap();
    assert_ne!(event["username_hmac_key_id"], old);
    assert_ne!(event["username_hmac"], CANARY_HASH);
    let scrape = Scrape::of(&sidecar).await;
    assert_eq!(scrape.sum("reloads_total", &["what=\"audit_key\"", "result=\"success\""]), 1.0);
}

#[tokio::test]
async fn closed_means_no_new_call_while_the_log_cannot_be_written_and_nothing_is_lost() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let log = path_in(&dir, "audit.log");
    symlink("/dev/full", &log).unwrap();
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--audit", &log).arg("--audit-on-failure", "closed").start().await;

    sidecar.sign_out(POOL, CANARY).await.expect("the user is signed out, and that is the truth");
    let status = sidecar.sign_out(POOL, CANARY).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "AUDIT_UNAVAILABLE"));
    assert_eq!(
        (metadata(&status, "fault").as_str(), metadata(&status, "outcome").as_str()),
        ("sidecar", "not_sent")
    );
    assert_eq!(metadata(&status, "retryable"), "true");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(upstream.requests().len(), 1, "nobody is signed out without a record");
    let scrape = Scrape::of(&sidecar).await;
    assert_eq!(scrape.sum("audit_failing", &[]), 1.0);
    assert_eq!(scrape.sum("audit_events_total", &["result=\"lost\""]), 0.0);
    assert!(scrape.sum("audit_write_failures_total", &[]) >= 1.0);
    assert_eq!(scrape.sum("calls_shed_total", &["reason=\"AUDIT_UNAVAILABLE\""]), 1.0);

    // There is room again: the event that could not be written is, and calls are taken.
    fs::remove_file(&log).unwrap();
    sidecar.log.wait_for_message("audit: the sink takes what is written again").await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    let outcomes: Vec<_> = events(&log).iter().map(|event| event["outcome"].clone()).collect();
    assert_eq!(outcomes, ["signed_out", "signed_out"]);
    assert_eq!(Scrape::of(&sidecar).await.sum("audit_failing", &[]), 0.0);
}

#[tokio::test]
async fn open_means_that_users_are_signed_out_and_a_metric_tells() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--audit", "/dev/full").start().await;
    for _ in 0..3 {
        sidecar.sign_out(POOL, CANARY).await.unwrap();
    }
    let scrape = Scrape::until(&sidecar, |scrape| scrape.sum("audit_failing", &[]) == 1.0).await;
    assert_eq!(scrape.sum("audit_events_total", &["result=\"written\""]), 0.0);
    sidecar.signal("TERM");
    let (status, log) = sidecar.ended().await;
    assert!(status.success());
    let line = log.wait_for_message("audit: events are lost").await;
    assert_eq!(line["events"], 3);
}

#[tokio::test]
async fn a_call_that_is_cut_off_by_the_end_leaves_its_event() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "audit.log");
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--audit", &file).arg("--drain-timeout", "100ms").start().await;
    let mut client = sidecar.client();
    let call = tokio::spawn(async move {
        client.admin_user_global_sign_out(request(POOL, "slow", Duration::from_secs(60))).await
    });
    upstream.wait_for_requests(1).await;
    sidecar.signal("TERM");
    sidecar.ended().await;
    let events = events(&file);
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["reason"], &events[0]["outcome"]), (&"SHUTTING_DOWN".into(), &"unknown".into()));
    call.await.unwrap().unwrap_err();
}

#[test]
fn an_audit_log_that_cannot_be_begun_is_told_before_anything_is_served() {
    let serve = |args: &[&str]| {
        let args = [&["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], args].concat();
        let output = run(&args, &[]);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    assert!(serve(&["--audit=/nonexistent/log"]).contains("--audit /nonexistent/log cannot be written"));
    let missing = serve(&["--audit=stdout", "--audit-key-file=/nonexistent"]);
    assert!(missing.contains("--audit-key-file /nonexistent"), "{missing}");
    let short = serve(&["--audit=stdout", "--audit-key-file=/etc/hostname"]);
    assert!(short.contains("openssl rand -hex 32"), "{short}");
}
