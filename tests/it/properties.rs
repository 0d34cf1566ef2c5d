//! For all inputs: whatever upstream answers, and whatever a caller sends.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use cognito_signout::status;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use prost::Message as _;
use tonic::Code;

use crate::{
    harness::{POOL, Sidecar, reason, request},
    scripted::{Reply, Scripted},
};

const USERNAME: &str = "canary-username@example.com";
const KEY_ID: &str = "ASIACANARYCANARY1234";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYCANARYCANA";
const TOKEN: &str =
    "IQoJb3JpZ2luX2VjEJCANARYCANARYCANARYCANARYCANARYCANARYCANARYCANARYCANARYCANARYCANARYCANARY==";
const ARN: &str = "arn:aws:iam::123456789012:role/canary-role";
const CANARIES: [&str; 5] = [USERNAME, KEY_ID, SECRET, TOKEN, ARN];

fn runner(cases: u32) -> TestRunner {
    // A failure prints its input; nothing is kept in files.
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[derive(Debug, Clone)]
struct Upstream {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Words of AWS, or of whoever plants secrets in them.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("User does not exist.".to_owned()),
        "[ -~]{0,60}",
        (proptest::sample::select(CANARIES.to_vec()), "[ -~]{0,20}", "[ -~]{0,20}")
            .prop_map(|(canary, before, after)| format!("{before}{canary}{after}")),
        proptest::sample::select(CANARIES.to_vec()).prop_map(str::to_owned),
    ]
}

fn error_code() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "InvalidParameterException",
            "UserNotFoundException",
            "ResourceNotFoundException",
            "NotAuthorizedException",
            "OperationNotEnabledException",
            "TooManyRequestsException",
            "InternalErrorException",
            "ForbiddenException",
            "AccessDeniedException",
            "ExpiredToken",
            "UnrecognizedClientException",
            "InvalidSignatureException",
            "ServiceUnavailable",
        ])
        .prop_map(str::to_owned),
        "[A-Za-z#:/.]{0,40}",
        words(),
    ]
}

fn upstream() -> impl Strategy<Value = Upstream> {
    let status = prop_oneof![
        3 => proptest::sample::select(vec![200_u16, 400, 403, 429, 500, 503]),
        1 => 200_u16..600,
    ];
    let header = prop_oneof![
        error_code().prop_map(|code| ("x-amzn-errortype".to_owned(), code)),
        words().prop_map(|words| ("x-amzn-errormessage".to_owned(), words)),
        words().prop_map(|words| ("x-amzn-requestid".to_owned(), words)),
        words().prop_map(|words| ("date".to_owned(), words)),
        words().prop_map(|words| ("x-amz-retry-after".to_owned(), words)),
        Just(("x-amz-retry-after".to_owned(), u64::MAX.to_string())),
        (("x-[a-z]{1,12}"), words()),
    ];
    let body = prop_oneof![
        Just(b"{}".to_vec()),
        vec(any::<u8>(), 0..200),
        words().prop_map(String::into_bytes),
        (error_code(), words()).prop_map(|(code, words)| {
            serde_json::to_vec(&serde_json::json!({ "__type": code, "message": words })).unwrap()
        }),
        (error_code(), words()).prop_map(|(code, words)| {
            serde_json::to_vec(&serde_json::json!({ "code": code, "Message": { "deep": words } })).unwrap()
        }),
    ];
    (status, vec(header, 0..4), body).prop_map(|(status, headers, body)| Upstream { status, headers, body })
}

#[test]
fn whatever_upstream_answers_is_a_status_of_the_table_and_betrays_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let next: Arc<Mutex<Option<Upstream>>> = Arc::default();
    let scripted = next.clone();
    let (_endpoint, sidecar) = runtime.block_on(async {
        let endpoint = Scripted::start(move |_, _| {
            let Upstream { status, headers, body } = scripted.lock().unwrap().clone().unwrap();
            // A 204 and a 304 have no body; what is sent in its place would be the next answer.
            let body = if [204, 304].contains(&status) { Vec::new() } else { body };
            let reply = Reply::http(status, body).then_close();
            headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value.trim()))
        })
        .await;
        let sidecar = Sidecar::at(&endpoint.url())
            .arg("--max-attempts", 1)
            .arg("--log-level", "trace")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_SESSION_TOKEN", TOKEN)
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .start()
            .await;
        (endpoint, sidecar)
    });
    let reasons: BTreeSet<&str> = status::table().map(|(_, reason, _, _)| reason).collect();

    runner(400)
        .run(&upstream(), |upstream| {
            *next.lock().unwrap() = Some(upstream.clone());
            let Err(status) = runtime.block_on(sidecar.sign_out(POOL, USERNAME)) else {
                prop_assert_eq!(upstream.status, 200);
                return Ok(());
            };
            let details = tonic_types::pb::Status::decode(status.details()).unwrap();
            let mut kinds: Vec<&str> = details.details.iter().map(|any| any.type_url.as_str()).collect();
            let infos = kinds.iter().filter(|kind| kind.ends_with("google.rpc.ErrorInfo")).count();
            prop_assert_eq!(infos, 1, "{:?}", status);
            let count = kinds.len();
            kinds.sort_unstable();
            kinds.dedup();
            prop_assert_eq!(kinds.len(), count, "a kind of detail is there twice: {:?}", status);
            prop_assert!(reasons.contains(reason(&status).as_str()), "{:?}", status);

            let told = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
            for canary in CANARIES {
                prop_assert!(!told.contains(canary), "{} is in {}", canary, told);
            }
            Ok(())
        })
        .unwrap();

    // The operator's log may name roles, and nothing else of these.
    let log = sidecar.log.text();
    for canary in [USERNAME, KEY_ID, SECRET, TOKEN] {
        assert!(!log.contains(canary), "{canary} is in the log");
    }
    assert!(!log.contains("panicked"));
}

/// Strings of all kinds: what is a username, what nearly is, and what nobody would think of.
fn strings() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\\p{L}\\p{M}\\p{S}\\p{N}\\p{P}]{1,128}",
        "[\\p{L}\\p{M}\\p{S}\\p{N}\\p{P}]{120,140}",
        "[\u{1F600}-\u{1F64F}]{1,128}",
        Just("\u{1F600}".repeat(128)),
        Just("e\u{301}\"\\\u{0}".to_owned()),
        Just("\"quoted\\\"".to_owned()),
        "[a-z ]{1,20}",
    ]
}

fn pool_ids() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "(eu|us)-(central|east)-[1-9]_[0-9a-zA-Z]{1,20}",
        1 => "[A-Za-z0-9_-]{1,40}_[0-9a-zA-Z]{1,20}",
        1 => strings(),
    ]
}

#[test]
fn whatever_a_caller_sends_is_refused_or_reaches_cognito_as_it_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (endpoint, sidecar) = runtime.block_on(async {
        let endpoint = Scripted::start(|_, _| Reply::ok()).await;
        let sidecar = Sidecar::before(&endpoint).await;
        (endpoint, sidecar)
    });
    let client = runtime.block_on(async { sidecar.client() });

    let mut sent = 0;
    let sent_in_all = Mutex::new(&mut sent);
    runner(600)
        .run(&(pool_ids(), strings()), |(pool, username)| {
            let before = endpoint.requests().len();
            let mut client = client.clone();
            let call = client.admin_user_global_sign_out(request(&pool, &username, crate::harness::PATIENCE));
            match runtime.block_on(call) {
                Ok(_) => {
                    let requests = endpoint.requests();
                    prop_assert_eq!(requests.len(), before + 1);
                    let body = requests[before].json();
                    prop_assert_eq!(body["UserPoolId"].as_str(), Some(pool.as_str()));
                    prop_assert_eq!(body["Username"].as_str(), Some(username.as_str()));
                    **sent_in_all.lock().unwrap() += 1;
                }
                Err(status) => {
                    prop_assert_eq!(status.code(), Code::InvalidArgument, "{:?}", status);
                    prop_assert_eq!(reason(&status), "INVALID_REQUEST");
                    prop_assert_eq!(endpoint.requests().len(), before);
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(sent > 100, "hardly anything was valid: {sent}");
}
