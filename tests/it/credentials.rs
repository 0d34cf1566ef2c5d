//! The sidecar's own credentials: slow, failing, rotating, expiring, and what health says of it.

use std::time::Duration;

use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    harness::{POOL, Sidecar, container_credentials, key_id, metadata, path_in, reason},
    scripted::{Gate, Reply, Scripted},
};

const SERVICE: &str = "cognito.signout.v1.SignOutService";
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn they_are_loaded_at_start_and_logged_by_source_and_account_alone() {
    let provider = Scripted::start(|n, _| container_credentials(n, HOUR)).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar =
        Sidecar::with_credentials_from(&provider, &upstream).arg("--log-level", "trace").start().await;

    let line = sidecar.log.wait_for_message("AWS credentials loaded").await;

    assert_eq!(line["source"], "container endpoint");
    assert_eq!(line["account"], "123456789012");
    assert_eq!(upstream.requests().len(), 0, "without any call to AWS");
    sidecar.sign_out(POOL, "canary-username").await.unwrap();
    let log = sidecar.log.text();
    for secret in [&key_id(0), "wJalrXUtnFEMI", "session-token", "canary-username"] {
        assert!(!log.contains(secret), "{secret} is in the log, which has:\n{log}");
    }
}

#[tokio::test]
async fn keys_of_the_environment_are_told_as_such() {
    let sidecar = Sidecar::before_nothing().start().await;
    let line = sidecar.log.wait_for_message("AWS credentials loaded").await;
    assert_eq!(line["source"], "environment");
}

#[tokio::test]
async fn calls_wait_for_a_slow_provider_and_one_load_serves_them_all() {
    let gate = Gate::closed();
    let held = gate.clone();
    let provider = Scripted::start(move |n, _| container_credentials(n, HOUR).after(&held)).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream)
        .arg("--credentials-timeout", "60s")
        .start()
        .await;

    let calls: Vec<_> = (0..100).map(|n| sidecar.spawn_sign_out(POOL, &format!("user-{n}"))).collect();
    provider.wait_for_requests(1).await;
    gate.open();
    for call in calls {
        call.await.unwrap().unwrap();
    }

    assert_eq!(provider.requests().len(), 1);
    assert_eq!(upstream.requests().len(), 100);
}

#[tokio::test]
async fn a_burst_at_expiry_causes_one_refresh() {
    // The first credentials live for a second, and their refresh is held until all calls are there.
    let gate = Gate::closed();
    let held = gate.clone();
    let provider = Scripted::start(move |n, _| match n {
        0 => container_credentials(0, Duration::from_secs(2)),
        n => container_credentials(n, HOUR).after(&held),
    })
    .await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream)
        .arg("--credentials-timeout", "60s")
        .start()
        .await;
    sidecar.log.wait_for_message("AWS credentials loaded").await;
    // The refresh before the expiry.
    provider.wait_for_requests(2).await;
    // Past the expiry: nothing that is left can be used.
    tokio::time::sleep(Duration::from_millis(2100)).await;

    let calls: Vec<_> = (0..200).map(|n| sidecar.spawn_sign_out(POOL, &format!("user-{n}"))).collect();
    gate.open();
    for call in calls {
        call.await.unwrap().unwrap();
    }

    assert_eq!(provider.requests().len(), 2);
    assert!(upstream.requests().iter().all(|request| request.access_key_id() == Some(key_id(1))));
}

#[tokio::test]
async fn they_are_refreshed_before_they_expire_and_calls_use_the_new_ones() {
    let provider =
        Scripted::start(|n, _| container_credentials(n, if n == 0 { Duration::from_secs(3) } else { HOUR }))
            .await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream).start().await;
    sidecar.sign_out(POOL, "ada").await.unwrap();

    provider.wait_for_requests(2).await;
    sidecar.log.wait_for(|line| line["expires_in_s"].as_u64().is_some_and(|left| left > 10)).await;
    sidecar.sign_out(POOL, "ada").await.unwrap();

    let used: Vec<_> = upstream.requests().iter().map(|request| request.access_key_id().unwrap()).collect();
    assert_eq!(used, [key_id(0), key_id(1)]);
}

#[tokio::test]
async fn health_is_not_serving_until_they_are_loaded_and_recovers_by_itself() {
    let provider =
        Scripted::start(|n, _| if n < 4 { Reply::http(500, "") } else { container_credentials(n, HOUR) })
            .await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream).start().await;

    assert_eq!(sidecar.health("").await, ServingStatus::Serving, "AWS trouble never flips the process");
    assert_eq!(sidecar.health(SERVICE).await, ServingStatus::NotServing);
    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();
    assert_eq!(reason(&status), "SIDECAR_CREDENTIALS_UNAVAILABLE");

    // No call is needed for it.
    sidecar.wait_for_health(SERVICE, ServingStatus::Serving).await;
    sidecar.sign_out(POOL, "ada").await.unwrap();
}

#[tokio::test]
async fn three_refused_credentials_in_a_row_flip_the_service_until_the_provider_gives_others() {
    let gate = Gate::closed();
    let held = gate.clone();
    let provider = Scripted::start(move |n, _| match n {
        0 => container_credentials(0, Duration::from_secs(3)),
        n => container_credentials(n, HOUR).after(&held),
    })
    .await;
    let upstream = Scripted::start(|_, request| {
        if request.access_key_id() == Some(key_id(0)) {
            Reply::aws_error(
                400,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            )
        } else {
            Reply::ok()
        }
    })
    .await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream).start().await;
    sidecar.wait_for_health(SERVICE, ServingStatus::Serving).await;

    for _ in 0..3 {
        let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();
        assert_eq!(reason(&status), "SIDECAR_CREDENTIALS_INVALID");
    }
    sidecar.wait_for_health(SERVICE, ServingStatus::NotServing).await;
    assert_eq!(sidecar.health("").await, ServingStatus::Serving);

    gate.open();
    sidecar.wait_for_health(SERVICE, ServingStatus::Serving).await;
    sidecar.sign_out(POOL, "ada").await.unwrap();
}

#[tokio::test]
async fn a_missing_permission_says_nothing_about_the_credentials() {
    let upstream = Scripted::start(|_, _| {
        Reply::aws_error(400, "AccessDeniedException", "arn:aws:iam::123456789012:role/x")
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    sidecar.wait_for_health(SERVICE, ServingStatus::Serving).await;
    for _ in 0..5 {
        let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();
        assert_eq!(reason(&status), "SIDECAR_ACCESS_DENIED");
        assert!(status.message().contains("cognito-idp:AdminUserGlobalSignOut"), "{}", status.message());
        assert!(!status.message().contains("arn:"), "{}", status.message());
    }
    assert_eq!(sidecar.health(SERVICE).await, ServingStatus::Serving);
    // The operator needs it, and finds it in the log.
    let role = "arn:aws:iam::123456789012:role/x";
    sidecar.log.wait_for(|line| line["causes"].as_str().is_some_and(|causes| causes.contains(role))).await;
}

#[tokio::test]
async fn an_expired_token_is_replaced_within_the_call() {
    let provider = Scripted::start(|n, _| container_credentials(n, HOUR)).await;
    let upstream = Scripted::start(|_, request| {
        if request.access_key_id() == Some(key_id(0)) {
            Reply::aws_error(
                400,
                "ExpiredTokenException",
                "The security token included in the request is expired",
            )
        } else {
            Reply::ok()
        }
    })
    .await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream).start().await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    let used: Vec<_> = upstream.requests().iter().map(|request| request.access_key_id().unwrap()).collect();
    assert_eq!(used, [key_id(0), key_id(1)]);
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test]
async fn a_web_identity_is_exchanged_at_sts() {
    let sts = Scripted::start(|_, _| {
        let expiration = humantime::format_rfc3339_seconds(std::time::SystemTime::now() + HOUR);
        Reply::http(
            200,
            format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>\
                 <SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>\
                 <Expiration>{expiration}</Expiration></Credentials>\
                 <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/signer/x</Arn>\
                 <AssumedRoleId>AROATEST:x</AssumedRoleId></AssumedRoleUser>\
                 </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
                key_id(7)
            ),
        )
        .header("content-type", "text/xml")
    })
    .await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let token = path_in(&dir, "token");
    std::fs::write(&token, "the-projected-token").unwrap();
    let sidecar = Sidecar::at(&upstream.url())
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/signer")
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start()
        .await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    let line = sidecar.log.wait_for_message("AWS credentials loaded").await;
    assert_eq!(line["source"], "web identity (STS)");
    assert!(
        String::from_utf8_lossy(&sts.requests()[0].body).contains("WebIdentityToken=the-projected-token")
    );
    assert_eq!(upstream.requests()[0].access_key_id(), Some(key_id(7)));
    assert_eq!(sts.requests().len(), 1);
}

#[tokio::test]
async fn an_sts_that_refuses_is_the_providers_failure_not_cognitos() {
    let sts = Scripted::start(|_, _| {
        Reply::http(
            403,
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error>\
             <RequestId>x</RequestId></ErrorResponse>",
        )
        .header("content-type", "text/xml")
    })
    .await;
    let upstream = Scripted::start(|_, _| unreachable!("no credentials")).await;
    let dir = tempfile::tempdir().unwrap();
    let token = path_in(&dir, "token");
    std::fs::write(&token, "the-projected-token").unwrap();
    let sidecar = Sidecar::at(&upstream.url())
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/signer")
        .env("AWS_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start()
        .await;

    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();

    assert_eq!(reason(&status), "SIDECAR_CREDENTIALS_UNAVAILABLE");
    assert_eq!(metadata(&status, "fault"), "sidecar");
    let line = sidecar.log.wait_for_message("AWS credentials could not be loaded").await;
    assert!(line["error"].as_str().unwrap().contains("AccessDenied"), "{line}");
    assert!(!sidecar.log.text().contains("the-projected-token"));
}
