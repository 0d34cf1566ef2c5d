//! Who may do what: the policy, over the connections that need no certificate.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use cognito_signout::pb::{AdminUserGlobalSignOutResponse, sign_out_service_client::SignOutServiceClient};
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{
    harness::{PATIENCE, POOL, Sidecar, Starter, channel, metadata, reason, request, run, text},
    observe::Scrape,
    scripted::{Reply, Scripted},
};

const OTHER: &str = "us-east-1_EXAMPLE01";

/// A policy file that can be changed.
struct Policy {
    dir: TempDir,
}

impl Policy {
    fn new(text: &str) -> Self {
        let policy = Self { dir: tempdir().unwrap() };
        policy.write("policy.toml", text);
        policy
    }

    fn write(&self, name: &str, text: &str) {
        // As careful writers do it: nobody sees half of it.
        fs::write(self.dir.path().join("new"), text).unwrap();
        fs::rename(self.dir.path().join("new"), self.dir.path().join(name)).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    fn starter(&self, upstream: &Scripted) -> Starter {
        let starter = Sidecar::at(&upstream.url()).arg("--policy", self.path().display());
        starter.arg("--reload-interval", "20ms")
    }
}

fn caller(name: &str, known: &str, pools: &str) -> String {
    format!("[[callers]]\nname = \"{name}\"\n{known}\npools = {pools}\n")
}

async fn sign_out(
    channel: Channel,
    token: Option<&str>,
    pool: &str,
) -> Result<AdminUserGlobalSignOutResponse, Status> {
    let mut request = request(pool, "ada", PATIENCE);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let answer = SignOutServiceClient::new(channel).admin_user_global_sign_out(request).await;
    answer.map(tonic::Response::into_inner)
}

fn assert_refused(answer: Result<AdminUserGlobalSignOutResponse, Status>, code: Code, told: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (code, told), "{status:?}");
    assert_eq!(metadata(&status, "fault"), "caller");
    assert_eq!(metadata(&status, "retryable"), "false");
    assert_eq!(metadata(&status, "outcome"), "not_sent");
}

fn assert_unauthenticated(answer: Result<AdminUserGlobalSignOutResponse, Status>) {
    assert_refused(answer, Code::Unauthenticated, "CALLER_UNAUTHENTICATED");
}

fn assert_not_allowed(answer: Result<AdminUserGlobalSignOutResponse, Status>) {
    assert_refused(answer, Code::PermissionDenied, "CALLER_NOT_ALLOWED");
}

async fn cognito() -> Scripted {
    Scripted::start(|_, _| Reply::ok()).await
}

#[tokio::test]
async fn a_token_opens_the_pools_of_its_caller_and_no_others() {
    let upstream = cognito().await;
    let policy = Policy::new(&caller("support", "token_files = [\"support.token\"]", "[\"eu-central-1_*\"]"));
    policy.write("support.token", "one-token-0123456789\n");
    // Policies are read at the start.
    let sidecar = policy.starter(&upstream).arg("--audit", "stdout").start().await;

    sign_out(sidecar.channel(), Some("one-token-0123456789"), POOL).await.unwrap();
    let line = sidecar.log.wait_for_message("signed out").await;
    assert_eq!(line["caller"], "support");
    let event = sidecar.stdout.wait_for(|event| event["outcome"] == "signed_out").await;
    assert_eq!(event["caller"], "support");

    let refused = sign_out(sidecar.channel(), Some("one-token-0123456789"), OTHER).await;
    assert_eq!(metadata(refused.as_ref().unwrap_err(), "user_pool_id"), OTHER);
    assert_not_allowed(refused);
    let line = sidecar.log.wait_for_message("not signed out").await;
    assert_eq!((line["caller"].as_str(), line["user_pool_id"].as_str()), (Some("support"), Some(OTHER)));
    let event = sidecar.stdout.wait_for(|event| event["reason"] == "CALLER_NOT_ALLOWED").await;
    assert_eq!((event["caller"].as_str(), event["outcome"].as_str()), (Some("support"), Some("not_sent")));
    assert_eq!(event["user_pool_id"], OTHER, "who tried what is told of those who may not, too");

    for token in [None, Some("another-token-0123456789"), Some("one-token-012345678")] {
        assert_unauthenticated(sign_out(sidecar.channel(), token, POOL).await);
    }
    assert_eq!(upstream.requests().len(), 1, "what is refused never reaches Cognito");
    assert!(!sidecar.log.text().contains("one-token"), "no token is logged");

    let event = sidecar.stdout.wait_for(|event| event["reason"] == "CALLER_UNAUTHENTICATED").await;
    assert_eq!((&event["caller"], &event["user_pool_id"]), (&Value::Null, &Value::Null));
    let scrape = Scrape::of(&sidecar).await;
    let unknown = ["code=\"UNAUTHENTICATED\"", "reason=\"CALLER_UNAUTHENTICATED\"", "fault=\"caller\""];
    assert_eq!(scrape.sum("calls_total", &unknown), 3.0);
    assert_eq!(scrape.sum("calls_total", &["reason=\"CALLER_NOT_ALLOWED\"", "fault=\"caller\""]), 1.0);
    assert!(!sidecar.stdout.text().contains("one-token"), "no token is in the audit log");
}

#[tokio::test]
async fn who_is_calling_is_asked_before_the_fields_and_the_pool_after_them() {
    let upstream = cognito().await;
    let known = "token_files = [\"t\"]";
    let policy = Policy::new(&caller("a", known, "[\"eu-central-1_*\"]"));
    policy.write("t", "0123456789abcdef");
    let sidecar = policy.starter(&upstream).start().await;

    assert_unauthenticated(sign_out(sidecar.channel(), None, "nonsense").await);
    let malformed = sign_out(sidecar.channel(), Some("0123456789abcdef"), "nonsense").await;
    assert_refused(malformed, Code::InvalidArgument, "INVALID_REQUEST");
    assert_not_allowed(sign_out(sidecar.channel(), Some("0123456789abcdef"), OTHER).await);
}

#[tokio::test]
async fn on_a_unix_socket_a_caller_is_known_by_its_user() {
    let upstream = cognito().await;
    let policy = Policy::new("");
    let uid = fs::metadata(policy.dir.path()).unwrap().uid();
    policy.write("policy.toml", &caller("neighbour", &format!("uid = [{uid}]"), "[\"*\"]"));
    let socket = policy.dir.path().join("api.sock");
    let listen = format!("unix:{},127.0.0.1:0", socket.display());
    let sidecar = policy.starter(&upstream).arg("--listen", listen).arg("--audit", "stdout").start().await;

    sign_out(sidecar.channel(), None, POOL).await.unwrap();
    assert_eq!(sidecar.log.wait_for_message("signed out").await["caller"], "neighbour");
    let event = sidecar.stdout.wait_for(|event| event["outcome"] == "signed_out").await;
    assert_eq!(event["caller"], "neighbour");
    assert_unauthenticated(sign_out(channel(&sidecar.addresses()[1]), None, POOL).await);

    policy.write("policy.toml", &caller("another", &format!("uid = [{}]", uid + 1), "[\"*\"]"));
    sidecar.log.wait_for_message("the policy loaded anew").await;
    assert_unauthenticated(sign_out(sidecar.channel(), None, POOL).await);
}

#[tokio::test]
async fn a_token_in_plain_text_on_a_network_address_is_never_accepted() {
    let upstream = cognito().await;
    let policy = Policy::new(&caller("a", "token_files = [\"t\"]", "[\"*\"]"));
    policy.write("t", "0123456789abcdef");
    let starter = policy.starter(&upstream).arg("--listen", "0.0.0.0:0,127.0.0.1:0");
    let sidecar = starter.flag("--insecure-listen").start().await;

    let open = sidecar.address().replace("0.0.0.0", "127.0.0.1");
    let refused = sign_out(channel(&open), Some("0123456789abcdef"), POOL).await;
    assert!(refused.as_ref().unwrap_err().message().contains("only over TLS"));
    assert_unauthenticated(refused);
    sign_out(channel(&sidecar.addresses()[1]), Some("0123456789abcdef"), POOL).await.unwrap();
}

#[tokio::test]
async fn tokens_are_rotated_without_a_call_refused() {
    let upstream = cognito().await;
    let policy = Policy::new(&caller("a", "token_files = [\"t\"]", "[\"*\"]"));
    policy.write("t", "the-old-token-0123\n");
    let sidecar = policy.starter(&upstream).start().await;
    // One connection throughout.
    let channel = sidecar.channel();

    sign_out(channel.clone(), Some("the-old-token-0123"), POOL).await.unwrap();
    assert_unauthenticated(sign_out(channel.clone(), Some("the-new-token-0123"), POOL).await);

    policy.write("t", "the-old-token-0123\nthe-new-token-0123\n");
    sidecar.log.wait_for(|line| line["reloads"] == 1).await;
    sign_out(channel.clone(), Some("the-old-token-0123"), POOL).await.unwrap();
    sign_out(channel.clone(), Some("the-new-token-0123"), POOL).await.unwrap();

    policy.write("t", "the-new-token-0123\n");
    sidecar.log.wait_for(|line| line["reloads"] == 2).await;
    assert_unauthenticated(sign_out(channel.clone(), Some("the-old-token-0123"), POOL).await);
    sign_out(channel, Some("the-new-token-0123"), POOL).await.unwrap();
}

#[tokio::test]
async fn a_policy_is_reloaded_and_a_broken_one_is_not() {
    let upstream = cognito().await;
    let known = "token_files = [\"t\"]";
    let policy = Policy::new(&caller("a", known, "[\"eu-central-1_*\"]"));
    policy.write("t", "0123456789abcdef");
    let sidecar = policy.starter(&upstream).start().await;
    let call = |pool| sign_out(sidecar.channel(), Some("0123456789abcdef"), pool);
    assert_not_allowed(call(OTHER).await);

    policy.write("policy.toml", &caller("a", known, "[\"us-east-1_*\"]"));
    sidecar.log.wait_for(|line| line["reloads"] == 1).await;
    call(OTHER).await.unwrap();
    assert_not_allowed(call(POOL).await);

    policy.write("policy.toml", &caller("a", known, "[\"*\"]\npool = 1"));
    let warning = sidecar.log.wait_for_message("the policy not loaded anew").await;
    assert_eq!(warning["level"], "WARN");
    let error = warning["error"].as_str().unwrap();
    assert!(error.contains("policy.toml:5:1: unknown field `pool`"), "{error}");
    call(OTHER).await.unwrap();
    assert_not_allowed(call(POOL).await);

    // An empty file would shut everybody out; it is taken for an accident.
    policy.write("policy.toml", "");
    sidecar.log.wait_for(|line| line["failures"] == 2).await;
    call(OTHER).await.unwrap();

    policy.write("policy.toml", &caller("a", known, "[\"*\"]"));
    sidecar.log.wait_for(|line| line["reloads"] == 2).await;
    call(POOL).await.unwrap();
}

#[test]
fn a_policy_that_does_not_parse_ends_the_start_with_its_line_and_column() {
    let policy = Policy::new(&caller("a", "uid = [1]", "[\"*\"]\ncolour = \"red\""));
    for (text, told) in [
        (caller("a", "uid = [1]", "[\"*\"]\ncolour = \"red\""), "policy.toml:5:1: unknown field `colour`"),
        ("[[callers]]\nname = \n".to_owned(), "policy.toml:2:"),
        (caller("a", "token_files = [\"gone\"]", "[\"*\"]"), "policy.toml:3:16: "),
    ] {
        policy.write("policy.toml", &text);
        let output =
            run(&["serve", "--listen=127.0.0.1:0", "--policy", policy.path().to_str().unwrap()], &[]);
        let line = crate::harness::text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
        assert!(line.contains(told), "{line}");
    }
    let output = run(&["serve", "--policy=/nonexistent.toml"], &[]);
    assert!(text(&output.stderr).contains("--policy /nonexistent.toml cannot be read"));
}

#[tokio::test]
async fn without_a_policy_the_allowed_pools_are_the_only_ones() {
    let upstream = cognito().await;
    let starter = Sidecar::at(&upstream.url()).arg("--allow-pool", "eu-central-1_*,us-east-1_Only");
    let sidecar = starter.arg("--allow-pool", "us-east-1_EXAMPLE02").start().await;
    for pool in [POOL, "us-east-1_Only", "us-east-1_EXAMPLE02"] {
        sidecar.sign_out(pool, "ada").await.unwrap();
    }
    for pool in [OTHER, "us-east-1_Only2"] {
        assert_not_allowed(sidecar.sign_out(pool, "ada").await);
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn under_a_policy_health_needs_no_identity_and_reflection_does() {
    use tonic_reflection::pb::{v1, v1alpha};

    let upstream = cognito().await;
    let policy = Policy::new(&caller("a", "token_files = [\"t\"]", "[]"));
    policy.write("t", "0123456789abcdef");
    let sidecar = policy.starter(&upstream).start().await;
    assert_eq!(sidecar.health("").await, ServingStatus::Serving);

    macro_rules! ask {
        ($version:ident, $token:expr) => {{
            let message = $version::server_reflection_request::MessageRequest::ListServices(String::new());
            let ask =
                $version::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let mut request = tonic::Request::new(tokio_stream::once(ask));
            if let Some(token) = $token {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            let channel = sidecar.channel();
            let mut client = $version::server_reflection_client::ServerReflectionClient::new(channel);
            client.server_reflection_info(request).await.map(|_| ())
        }};
    }
    ask!(v1, Some("0123456789abcdef")).unwrap();
    ask!(v1alpha, Some("0123456789abcdef")).unwrap();
    for status in [ask!(v1, None::<&str>), ask!(v1alpha, Some("wrong"))].map(Result::unwrap_err) {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unauthenticated, "CALLER_UNAUTHENTICATED")
        );
    }
}

#[tokio::test]
async fn our_clients_show_a_token_but_never_in_plain_text_to_a_network() {
    let upstream = cognito().await;
    let policy = Policy::new(&caller("a", "token_files = [\"t\"]", "[\"*\"]"));
    policy.write("t", "0123456789abcdef\n");
    let sidecar = policy.starter(&upstream).start().await;
    let token = policy.dir.path().join("t").to_str().unwrap().to_owned();
    let sign_out = |args: &[&str]| {
        let args = [&["sign-out", "--user-pool-id", POOL, "--username", "ada"], args].concat();
        let output = run(&args, &[]);
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };

    let (code, told) = sign_out(&["--address", sidecar.address(), "--token-file", &token]);
    assert!(code == 0 && told.starts_with("signed out"), "{told}");
    let (code, told) = sign_out(&["--address", sidecar.address()]);
    assert!(code == 64 + 16 && told.contains("CALLER_UNAUTHENTICATED"), "{told}");
    let output =
        run(&["health", "--address", sidecar.address()], &[("COGNITO_SIGNOUT_CLIENT_TOKEN_FILE", &token)]);
    assert!(output.status.success());

    policy.write("empty", "\n");
    let empty = policy.dir.path().join("empty").to_str().unwrap().to_owned();
    for (args, part) in [
        (&["--address", "192.0.2.1:50051", "--token-file", &token][..], "not sent in plain text"),
        (&["--token-file", "/nonexistent"], "--token-file /nonexistent cannot be read"),
        (&["--token-file", &empty], "no token"),
        (&["--tls-ca", &token], "no certificate in PEM"),
        (&["--tls-ca", "/nonexistent"], "cannot be read"),
        (&["--tls-cert", &token], "--tls-key"),
        (&["--tls-key", &token], "--tls-cert"),
        (&["--address", "unix:/a", "--tls-ca", &token], "no TLS on a unix socket"),
        (&["--address", "a b"], "neither HOST:PORT"),
    ] {
        let (code, told) = sign_out(args);
        assert!(code == 2 && told.contains(part) && told.lines().count() == 1, "{args:?}: {code} {told}");
    }
}

#[tokio::test]
async fn the_policies_in_the_documents_are_taken() {
    let documents = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
    let text = fs::read_to_string(documents).unwrap();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let upstream = cognito().await;
        let policy = Policy::new(example);
        policy.write("support-desk.token", "0123456789abcdef0123456789abcdef\n");
        let sidecar = policy.starter(&upstream).start().await;
        let token = Some("0123456789abcdef0123456789abcdef");
        sign_out(sidecar.channel(), token, OTHER).await.unwrap();
        assert_eq!(sidecar.log.wait_for_message("signed out").await["caller"], "support-desk");
    }
}

#[tokio::test]
async fn a_hang_up_asks_to_look_at_the_files_and_ends_nothing() {
    let upstream = cognito().await;
    let known = "token_files = [\"t\"]";
    let policy = Policy::new(&caller("a", known, "[\"eu-central-1_*\"]"));
    policy.write("t", "0123456789abcdef");
    policy.write("audit.key", "0123456789abcdef0123456789abcdef");
    let sidecar = Sidecar::at(&upstream.url())
        .arg("--policy", policy.path().display())
        .arg("--reload-interval", "1h")
        .arg("--audit", "stdout")
        .arg("--audit-key-file", policy.dir.path().join("audit.key").display())
        .start()
        .await;
    let token = Some("0123456789abcdef");
    assert_not_allowed(sign_out(sidecar.channel(), token, OTHER).await);

    policy.write("policy.toml", &caller("a", known, "[\"*\"]"));
    policy.write("audit.key", "abcdef0123456789abcdef0123456789");
    sidecar.signal("HUP");
    sidecar.log.wait_for_message("the policy loaded anew").await;
    sign_out(sidecar.channel(), token, OTHER).await.unwrap();
    sidecar.log.wait_for_message("audit: usernames are hashed with another key").await;

    // Whoever asks is done with writing: what is wrong then is told at once.
    policy.write("policy.toml", "not a policy");
    sidecar.signal("HUP");
    sidecar.log.wait_for_message("the policy not loaded anew").await;
    sign_out(sidecar.channel(), token, OTHER).await.unwrap();
}
