//! No attempt starts after the deadline, nor after the caller has gone: a late sign-out kills the session that the user
//! has just begun.

use std::time::{Duration, Instant};

use cognito_signout::pb::{AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse};
use tonic::Code;
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::{
    harness::{PATIENCE, POOL, PatientChannel, Sidecar, container_credentials, metadata, reason, request},
    scripted::{Gate, Reply, Request, Scripted},
};

fn usernames(upstream: &Scripted) -> Vec<String> {
    upstream.requests().iter().map(Request::username).collect()
}

#[tokio::test]
async fn credentials_that_arrive_after_the_deadline_start_no_attempt() {
    let gate = Gate::closed();
    let held = gate.clone();
    let provider =
        Scripted::start(move |n, _| container_credentials(n, Duration::from_secs(3600)).after(&held)).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream)
        .arg("--credentials-timeout", "60s")
        .start()
        .await;

    let client = sidecar.patient_client().await;
    let late: Vec<_> = (0..50)
        .map(|n| {
            let mut client = client.clone();
            // Deadlines one after the other, so that some end just when the credentials come.
            let request = request(POOL, &format!("late-{n}"), Duration::from_millis(100 + 5 * n));
            tokio::spawn(async move { client.admin_user_global_sign_out(request).await })
        })
        .collect();
    let mut unanswered = 0;
    for (n, call) in late.into_iter().enumerate() {
        if n == 40 {
            gate.open();
        }
        if let Err(status) = call.await.unwrap() {
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
            );
            unanswered += 1;
            if n < 40 {
                assert_eq!(
                    (metadata(&status, "outcome"), metadata(&status, "fault")),
                    ("not_sent".into(), "sidecar".into())
                );
            }
        }
    }
    assert!(unanswered >= 40);

    sidecar.sign_out(POOL, "in-time").await.unwrap();
    let seen = usernames(&upstream);
    for n in 0..40 {
        assert!(!seen.contains(&format!("late-{n}")), "a call whose deadline had passed was sent");
    }
    assert_eq!(seen.last().unwrap(), "in-time");
}

#[tokio::test]
async fn a_caller_that_has_gone_while_credentials_load_starts_no_attempt() {
    let gate = Gate::closed();
    let held = gate.clone();
    let provider =
        Scripted::start(move |n, _| container_credentials(n, Duration::from_secs(3600)).after(&held)).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream)
        .arg("--credentials-timeout", "60s")
        .start()
        .await;

    let gone = sidecar.spawn_sign_out(POOL, "gone");
    let stays = sidecar.spawn_sign_out(POOL, "stays");
    provider.wait_for_requests(1).await;
    gone.abort();
    let line = sidecar.log.wait_for_message("the caller went away").await;
    assert_eq!(line["outcome"], "not_sent");

    gate.open();
    stays.await.unwrap().unwrap();
    assert_eq!(usernames(&upstream), ["stays"]);
}

#[tokio::test]
async fn a_caller_that_has_gone_during_a_backoff_starts_no_further_attempt() {
    let upstream = Scripted::start(|_, request| {
        let throttled = Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded");
        if request.username() == "gone" { throttled.header("x-amz-retry-after", "300") } else { throttled }
    })
    .await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-attempts", 2).start().await;

    let gone = sidecar.spawn_sign_out(POOL, "gone");
    upstream.wait_for_requests(1).await;
    gone.abort();
    sidecar.log.wait_for_message("the caller went away").await;

    // A clock that the sidecar keeps itself: calls that back off as long, one begun after the other.
    let clock = Instant::now();
    while clock.elapsed() < Duration::from_millis(400) {
        sidecar.sign_out(POOL, "clock").await.unwrap_err();
    }
    assert_eq!(usernames(&upstream).iter().filter(|name| *name == "gone").count(), 1);
}

#[tokio::test]
async fn a_backoff_that_would_outlast_the_deadline_ends_the_call_at_once_with_the_last_failure() {
    let upstream = Scripted::start(|_, _| {
        Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded").header("x-amz-retry-after", "5000")
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;

    let status = sidecar.sign_out_within(POOL, "ada", Duration::from_secs(4)).await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_MANY_REQUESTS"));
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(5)));
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "5000");
    assert_eq!(metadata(&status, "outcome"), "refused");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn what_aws_asks_to_wait_is_waited_within_the_deadline() {
    let upstream = Scripted::start(|n, _| match n {
        0 => Reply::aws_error(400, "TooManyRequestsException", "Rate exceeded")
            .header("x-amz-retry-after", "250"),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    let requests = upstream.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_call_without_a_deadline_gets_the_sidecars() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--call-timeout", "400ms").start().await;

    let mut request = request(POOL, "ada", Duration::from_secs(1));
    request.metadata_mut().remove("grpc-timeout");
    let status = sidecar.patient_client().await.admin_user_global_sign_out(request).await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    upstream.wait_for_gone(1).await;
}

#[tokio::test]
async fn tiny_deadlines_are_deadlines_too() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let sidecar = Sidecar::before(&upstream).await;
    for millis in [1, 2, 5, 10, 20, 50] {
        let mut request = request(POOL, "ada", Duration::from_secs(1));
        request.metadata_mut().insert("grpc-timeout", format!("{millis}m").parse().unwrap());
        let mut client = sidecar.patient_client().await;
        let call = client.admin_user_global_sign_out(request);
        let status = tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{millis} ms: {status:?}");
    }
}

#[tokio::test]
async fn a_message_that_never_comes_is_a_deadline_too() {
    let upstream = Scripted::start(|_, _| unreachable!("there is no request")).await;
    let sidecar = Sidecar::before(&upstream).await;

    // As a client-streaming call, which may keep its message to itself.
    let mut client = tonic::client::Grpc::new(PatientChannel::connect(sidecar.address()).await);
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let path = "/cognito.signout.v1.SignOutService/AdminUserGlobalSignOut".parse().unwrap();
    let codec = ProstCodec::<AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse>::default();
    client.ready().await.unwrap();
    let status = client.client_streaming(request, path, codec).await.unwrap_err();

    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(metadata(&status, "outcome"), "not_sent");
}
