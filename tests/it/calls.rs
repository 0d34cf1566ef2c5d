//! One call: what goes in, what comes out, and what Cognito sees of it.

use std::time::{Duration, SystemTime};

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    harness::{PATIENCE, POOL, Sidecar, metadata, reason, request},
    scripted::{Reply, Scripted, http_date, request_id},
};

#[tokio::test]
async fn a_success_carries_the_request_id_and_cognitos_own_time() {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let upstream = Scripted::start(move |_, _| Reply::ok().header("date", &http_date(then))).await;
    let sidecar = Sidecar::before(&upstream).await;

    let answer = sidecar.sign_out(POOL, "ada@example.com").await.unwrap();

    assert_eq!(answer.aws_request_id, request_id(0));
    assert_eq!(answer.signed_out_at.unwrap().seconds, 1_700_000_000);
    let request = &upstream.requests()[0];
    assert_eq!(
        request.header("x-amz-target"),
        Some("AWSCognitoIdentityProviderService.AdminUserGlobalSignOut")
    );
    assert_eq!((request.user_pool_id().as_str(), request.username().as_str()), (POOL, "ada@example.com"));
    assert_eq!(request.region().as_deref(), Some("eu-central-1"));
    assert!(request.header("x-amz-user-agent").unwrap().contains("app/cognito-signout"));
}

#[tokio::test]
async fn an_answer_without_a_date_leaves_the_time_unset() {
    let upstream = Scripted::start(|_, _| Reply::ok().without_header("date")).await;
    let sidecar = Sidecar::before(&upstream).await;
    assert_eq!(sidecar.sign_out(POOL, "ada").await.unwrap().signed_out_at, None);
}

#[tokio::test]
async fn what_is_malformed_never_reaches_cognito_and_every_field_is_told() {
    let upstream = Scripted::start(|_, _| unreachable!("refused first")).await;
    let sidecar = Sidecar::before(&upstream).await;

    let status = sidecar.sign_out("nonsense", "").await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["user_pool_id", "username"]);
    assert_eq!(metadata(&status, "outcome"), "not_sent");
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn the_callers_deadline_ends_the_call_and_the_upstream_exchange() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::before(&upstream).await;

    let status = sidecar.sign_out_within(POOL, "ada", Duration::from_millis(800)).await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(metadata(&status, "outcome"), "unknown");
    assert_eq!(metadata(&status, "fault"), "aws");
    upstream.wait_for_gone(1).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_upstream_exchange() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::before(&upstream).await;

    let mut client = sidecar.client();
    let call = tokio::spawn(async move {
        client.admin_user_global_sign_out(crate::harness::request(POOL, "ada", Duration::from_secs(60))).await
    });
    upstream.wait_for_requests(1).await;
    call.abort();

    upstream.wait_for_gone(1).await;
    let line = sidecar.log.wait_for_message("the caller went away").await;
    assert_eq!((line["code"].as_str(), line["outcome"].as_str()), (Some("CANCELLED"), Some("unknown")));
}

#[tokio::test]
async fn a_message_that_is_compressed_is_refused_with_what_would_be_understood() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::before(&upstream).await;
    let sign_out = async |encoding: &str| {
        let mut request = request(POOL, "ada", PATIENCE);
        request.metadata_mut().insert("grpc-encoding", encoding.parse().unwrap());
        sidecar.client().admin_user_global_sign_out(request).await
    };

    let status = sign_out("gzip").await.unwrap_err();

    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    assert_eq!(upstream.requests().len(), 0);
    sign_out("identity").await.unwrap();
}
