//! `check`: what it finds, with nobody signed out.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::{
    harness::{POOL, binary, container_credentials, text},
    scripted::{Reply, Scripted, http_date},
};

/// Runs `check` before an endpoint: exit status, findings by name, and what it printed.
async fn check(upstream: &Scripted, env: &[(&str, &str)], args: &[&str]) -> (i32, Value, String) {
    let mut command = binary();
    command
        .args(["check", "--output", "json"])
        .args(args)
        .env("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream.url())
        .envs(env.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(text(&output.stderr), "");
    let told = text(&output.stdout);
    (output.status.code().unwrap(), serde_json::from_str(&told).unwrap(), told)
}

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDCANARYCANARY"), ("AWS_SECRET_ACCESS_KEY", "canary-secret")];

fn state(report: &Value, check: &str) -> String {
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == check).unwrap();
    finding["state"].as_str().unwrap().to_owned()
}

fn states(report: &Value) -> [String; 6] {
    ["credentials", "region", "endpoint", "clock", "permission", "pool"].map(|check| state(report, check))
}

#[tokio::test]
async fn all_is_well_when_cognito_knows_no_such_user() {
    let upstream =
        Scripted::start(|_, _| Reply::aws_error(400, "UserNotFoundException", "User does not exist.")).await;
    let (status, report, told) = check(&upstream, &KEYS, &["--user-pool-id", POOL]).await;
    assert_eq!(status, 0, "{told}");
    assert_eq!(report["ok"], true);
    assert_eq!(states(&report), ["ok"; 6].map(str::to_owned));
    let requests = upstream.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].username().starts_with("cognito-signout-check-"));
    assert!(!told.contains("canary-secret") && !told.contains("AKIDCANARY"), "{told}");
}

#[tokio::test]
async fn each_failure_is_a_finding_with_advice() {
    for (code, wrong) in [
        ("AccessDeniedException", "permission"),
        ("ResourceNotFoundException", "pool"),
        ("OperationNotEnabledException", "pool"),
        ("ForbiddenException", "permission"),
        ("UnrecognizedClientException", "credentials"),
        ("RequestTimeTooSkewed", "clock"),
        ("ServiceUnavailable", "endpoint"),
        ("TooManyRequestsException", "permission"),
    ] {
        let upstream = Scripted::start(move |_, _| Reply::aws_error(400, code, "as told")).await;
        let (status, report, told) = check(&upstream, &KEYS, &["--user-pool-id", POOL]).await;
        assert_eq!((status, report["ok"].as_bool()), (1, Some(false)), "{code}: {told}");
        assert_eq!(state(&report, wrong), "problem", "{code}: {told}");
        let findings = report["findings"].as_array().unwrap();
        for finding in findings.iter().filter(|finding| finding["state"] == "problem") {
            assert!(finding["advice"].as_str().is_some_and(|advice| advice.len() > 20), "{code}: {told}");
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_found_before_aws_refuses_it() {
    let then = SystemTime::now() - Duration::from_secs(150);
    let upstream = Scripted::start(move |_, _| {
        Reply::aws_error(400, "UserNotFoundException", "User does not exist.")
            .header("date", &http_date(then))
    })
    .await;
    let (status, report, told) = check(&upstream, &KEYS, &["--user-pool-id", POOL]).await;
    assert_eq!(status, 1);
    assert_eq!(states(&report), ["ok", "ok", "ok", "problem", "ok", "ok"].map(str::to_owned), "{told}");
    assert!(told.contains("ahead of AWS"), "{told}");
}

#[tokio::test]
async fn something_that_says_yes_to_everybody_is_not_cognito() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let (status, report, told) = check(&upstream, &KEYS, &["--user-pool-id", POOL]).await;
    assert_eq!((status, state(&report, "endpoint").as_str()), (1, "problem"), "{told}");
}

#[tokio::test]
async fn without_credentials_nothing_else_is_found_out_and_nothing_is_asked() {
    let upstream = Scripted::start(|_, _| unreachable!("no credentials")).await;
    let (status, report, told) = check(&upstream, &[], &["--user-pool-id", POOL]).await;
    assert_eq!(status, 1);
    assert_eq!(
        states(&report),
        ["problem", "ok", "unknown", "unknown", "unknown", "unknown"].map(str::to_owned),
        "{told}"
    );
}

#[tokio::test]
async fn without_a_pool_the_credentials_are_told_by_source_and_account() {
    let provider = Scripted::start(|n, _| container_credentials(n, Duration::from_secs(3600))).await;
    let upstream = Scripted::start(|_, _| unreachable!("no pool")).await;
    let uri = format!("{}/credentials", provider.url());
    let (status, _, told) = check(&upstream, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)], &[]).await;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("container endpoint") && told.contains("123456789012"), "{told}");
}

#[tokio::test]
async fn a_pool_without_a_region_is_told_what_to_set() {
    let upstream = Scripted::start(|_, _| Reply::aws_error(400, "UserNotFoundException", "x")).await;
    let (status, report, told) = check(&upstream, &KEYS, &["--user-pool-id", "local_pool"]).await;
    assert_eq!((status, state(&report, "region").as_str()), (1, "problem"));
    assert!(told.contains("--pool-region"), "{told}");

    let variable = ("COGNITO_SIGNOUT_POOL_REGION", "local_*=eu-west-1");
    let (status, _, told) =
        check(&upstream, &[KEYS[0], KEYS[1], variable], &["--user-pool-id", "local_pool"]).await;
    assert_eq!(status, 0, "{told}");
    assert_eq!(upstream.requests()[0].region().as_deref(), Some("eu-west-1"));
}

#[tokio::test]
async fn nonsense_for_a_pool_is_wrong_usage() {
    let output = crate::harness::run(&["check", "--user-pool-id", "nonsense"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--user-pool-id"), "{}", text(&output.stderr));
}
