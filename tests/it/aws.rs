//! How AWS is reached: regions, proxies, private CAs, other endpoints.

use crate::{
    certs::{Authority, write_pem},
    harness::{POOL, Sidecar, container_credentials, key_id, metadata, path_in, reason},
    proxy::Proxy,
    scripted::{Reply, Scripted},
};
use std::time::Duration;

#[tokio::test]
async fn the_region_is_the_pools_own_unless_it_is_overridden() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url())
        .env("COGNITO_SIGNOUT_POOL_REGION", "us-east-1_Replica=eu-west-1,local_*=ap-south-1")
        .env("AWS_REGION", "sa-east-1")
        .start()
        .await;

    for pool in ["eu-central-1_EXAMPLE02", "us-east-1_Replica", "us-east-1_Other", "local_pool"] {
        sidecar.sign_out(pool, "ada").await.unwrap();
    }

    let regions: Vec<_> = upstream.requests().iter().map(|request| request.region().unwrap()).collect();
    assert_eq!(regions, ["eu-central-1", "eu-west-1", "us-east-1", "ap-south-1"]);
}

#[tokio::test]
async fn the_region_that_was_asked_is_told_and_a_hint_when_the_id_names_another() {
    let upstream = Scripted::start(|_, _| {
        Reply::aws_error(400, "ResourceNotFoundException", "User pool does not exist.")
    })
    .await;
    let sidecar =
        Sidecar::at(&upstream.url()).arg("--pool-region", format!("{POOL}=us-west-2")).start().await;

    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();

    assert_eq!(reason(&status), "USER_POOL_NOT_FOUND");
    assert_eq!(metadata(&status, "region"), "us-west-2");
    assert_eq!(metadata(&status, "aws_error_code"), "ResourceNotFoundException");
    assert!(status.message().contains("us-west-2"), "{}", status.message());
    assert!(status.message().contains("eu-central-1: is --pool-region right?"), "{}", status.message());
}

#[tokio::test]
async fn two_regions_share_one_load_of_credentials() {
    let provider = Scripted::start(|n, _| container_credentials(n, Duration::from_secs(3600))).await;
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::with_credentials_from(&provider, &upstream).start().await;

    for pool in ["eu-central-1_A", "us-east-1_B", "eu-central-1_C"] {
        sidecar.sign_out(pool, "ada").await.unwrap();
    }

    assert_eq!(provider.requests().len(), 1);
    for request in upstream.requests() {
        assert_eq!(request.access_key_id(), Some(key_id(0)));
    }
}

/// A proxy that leads to a Cognito of ours under AWS's own name, and the CA to trust for it.
async fn aws_behind_a_proxy(names: &[&str]) -> (Scripted, Proxy, Authority) {
    let authority = Authority::new("a private CA");
    let cognito = Scripted::start_tls(authority.server_for(names).server_config(), |_, _| Reply::ok()).await;
    let proxy = Proxy::tunnelling_to(cognito.addr()).await;
    (cognito, proxy, authority)
}

#[tokio::test]
async fn https_proxy_is_used_and_the_endpoint_is_the_regions_own() {
    let (cognito, proxy, authority) = aws_behind_a_proxy(&["cognito-idp.eu-central-1.amazonaws.com"]).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = write_pem(dir.path(), "ca.pem", &authority.pem());
    let sidecar = Sidecar::starter()
        .env("HTTPS_PROXY", proxy.url())
        .env("SSL_CERT_FILE", ca.to_str().unwrap())
        .start()
        .await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    assert_eq!(proxy.connects(), ["cognito-idp.eu-central-1.amazonaws.com:443"]);
    assert_eq!(cognito.requests()[0].header("host"), Some("cognito-idp.eu-central-1.amazonaws.com"));
}

#[tokio::test]
async fn fips_endpoints_are_used_when_aws_says_so() {
    let (_cognito, proxy, authority) =
        aws_behind_a_proxy(&["cognito-idp-fips.us-east-1.amazonaws.com"]).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = write_pem(dir.path(), "ca.pem", &authority.pem());
    let sidecar = Sidecar::starter()
        .env("HTTPS_PROXY", proxy.url())
        .env("SSL_CERT_FILE", ca.to_str().unwrap())
        .env("AWS_USE_FIPS_ENDPOINT", "true")
        .start()
        .await;

    sidecar.sign_out("us-east-1_EXAMPLE01", "ada").await.unwrap();

    assert_eq!(proxy.connects(), ["cognito-idp-fips.us-east-1.amazonaws.com:443"]);
}

#[tokio::test]
async fn no_proxy_and_an_endpoint_of_ones_own_are_obeyed() {
    let authority = Authority::new("a private CA");
    let cognito = Scripted::start_tls(authority.server().server_config(), |_, _| Reply::ok()).await;
    let proxy = Proxy::refusing(403).await;
    let dir = tempfile::tempdir().unwrap();
    let ca = write_pem(dir.path(), "ca.pem", &authority.pem());
    let sidecar = Sidecar::at(&cognito.url())
        .env("HTTPS_PROXY", proxy.url())
        .env("NO_PROXY", "localhost")
        .env("SSL_CERT_FILE", ca.to_str().unwrap())
        .start()
        .await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    assert_eq!(proxy.connects(), Vec::<String>::new());
    assert_eq!(cognito.requests().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_the_networks_fault() {
    let proxy = Proxy::refusing(407).await;
    let sidecar = Sidecar::starter().env("HTTPS_PROXY", proxy.url()).start().await;

    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();

    assert_eq!(reason(&status), "COGNITO_UNREACHABLE");
    assert_eq!(metadata(&status, "fault"), "aws");
    assert_eq!(proxy.connects().len(), 3);
}

#[tokio::test]
async fn an_untrusted_certificate_is_told_in_the_log() {
    let authority = Authority::new("a private CA");
    let cognito =
        Scripted::start_tls(authority.server().server_config(), |_, _| unreachable!("not trusted")).await;
    let sidecar = Sidecar::at(&cognito.url()).start().await;

    let status = sidecar.sign_out(POOL, "ada").await.unwrap_err();

    assert_eq!(reason(&status), "COGNITO_UNREACHABLE");
    let line = sidecar.log.wait_for_message("not signed out").await;
    assert!(line["causes"].as_str().unwrap().contains("certificate"), "{line}");
}

#[tokio::test]
async fn a_connection_that_died_while_idle_costs_one_attempt_and_no_call() {
    // The second request finds its connection closed under it.
    let upstream = Scripted::start(|n, _| if n == 1 { Reply::close() } else { Reply::ok() }).await;
    let sidecar = Sidecar::before(&upstream).await;

    sidecar.sign_out(POOL, "ada").await.unwrap();
    sidecar.sign_out(POOL, "grace").await.unwrap();

    let connections: Vec<_> = upstream.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 0, 1]);
}

#[tokio::test]
async fn a_profile_is_read_as_aws_users_expect() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = path_in(&dir, "credentials");
    std::fs::write(
        &file,
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = x\n\
         [work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = x\n",
    )
    .unwrap();
    let sidecar = Sidecar::at(&upstream.url())
        .without_env("AWS_ACCESS_KEY_ID")
        .without_env("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", &file)
        .env("AWS_PROFILE", "work")
        .start()
        .await;

    sidecar.sign_out(POOL, "ada").await.unwrap();

    assert_eq!(upstream.requests()[0].access_key_id().as_deref(), Some("AKIAWORK"));
}

#[tokio::test]
async fn what_happens_to_the_connection_after_a_whole_answer_changes_nothing() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let upstream = Scripted::start(move |n, _| match n {
        0 => Reply::reset_after(whole),
        1 => Reply::ok().then_close(),
        _ => Reply::ok(),
    })
    .await;
    let sidecar = Sidecar::before(&upstream).await;

    for username in ["ada", "grace", "linus"] {
        sidecar.sign_out(POOL, username).await.unwrap();
    }

    assert_eq!(upstream.requests().len(), 3);
}
