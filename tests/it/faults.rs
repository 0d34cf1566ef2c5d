//! The error table, row by row, through the real SDK over a real socket: what was done upstream, and what the caller is
//! told. The matrix that this prints is kept in docs/fault-matrix.md, and is checked to be the one that is true.

use std::{fmt::Write as _, net::TcpListener, time::Duration};

use cognito_signout::status::{PUSHBACK, code_name};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    certs::Authority,
    harness::{POOL, Sidecar, Starter, metadata, reason},
    scripted::{Gate, OnAccept, Reply, Request, Scripted, http_date},
};

/// What the caller must be told.
#[derive(Clone, Copy)]
struct Told {
    code: Code,
    reason: &'static str,
    fault: &'static str,
    retryable: bool,
    outcome: &'static str,
    /// The details besides ErrorInfo and RequestInfo, in the order of their names.
    details: &'static [&'static str],
}

const fn told(code: Code, reason: &'static str, fault: &'static str, outcome: &'static str) -> Told {
    Told { code, reason, fault, retryable: false, outcome, details: &[] }
}

const fn retryable(code: Code, reason: &'static str, fault: &'static str, outcome: &'static str) -> Told {
    Told { code, reason, fault, retryable: true, outcome, details: &["RetryInfo"] }
}

impl Told {
    const fn with(self, details: &'static [&'static str]) -> Self {
        Self { details, ..self }
    }
}

const INVALID_REQUEST: Told =
    told(Code::InvalidArgument, "INVALID_REQUEST", "caller", "not_sent").with(&["BadRequest"]);
const INVALID_PARAMETER: Told = told(Code::InvalidArgument, "INVALID_PARAMETER", "caller", "refused");
const USER_NOT_FOUND: Told =
    told(Code::NotFound, "USER_NOT_FOUND", "caller", "refused").with(&["ResourceInfo"]);
const USER_POOL_NOT_FOUND: Told =
    told(Code::NotFound, "USER_POOL_NOT_FOUND", "caller", "refused").with(&["ResourceInfo"]);
const NOT_AUTHORIZED: Told = told(Code::PermissionDenied, "NOT_AUTHORIZED", "caller", "refused");
const OPERATION_NOT_ENABLED: Told =
    told(Code::FailedPrecondition, "OPERATION_NOT_ENABLED", "sidecar", "refused")
        .with(&["PreconditionFailure"]);
const TOO_MANY_REQUESTS: Told = retryable(Code::ResourceExhausted, "TOO_MANY_REQUESTS", "aws", "refused")
    .with(&["QuotaFailure", "RetryInfo"]);
const COGNITO_INTERNAL_ERROR: Told = retryable(Code::Internal, "COGNITO_INTERNAL_ERROR", "aws", "unknown");
const COGNITO_UNAVAILABLE: Told = retryable(Code::Unavailable, "COGNITO_UNAVAILABLE", "aws", "unknown");
/// AWS itself refused with a 4xx, although it may be tried again.
const UNAVAILABLE_BUT_REFUSED: Told = retryable(Code::Unavailable, "COGNITO_UNAVAILABLE", "aws", "refused");
const COGNITO_UNREACHABLE: Told = retryable(Code::Unavailable, "COGNITO_UNREACHABLE", "aws", "unknown");
const SIDECAR_ACCESS_DENIED: Told =
    told(Code::PermissionDenied, "SIDECAR_ACCESS_DENIED", "sidecar", "refused");
const BLOCKED_BY_WEB_ACL: Told = told(Code::PermissionDenied, "BLOCKED_BY_WEB_ACL", "sidecar", "refused");
const SIDECAR_CREDENTIALS_INVALID: Told =
    told(Code::FailedPrecondition, "SIDECAR_CREDENTIALS_INVALID", "sidecar", "refused");
const SIDECAR_CLOCK_SKEWED: Told =
    told(Code::FailedPrecondition, "SIDECAR_CLOCK_SKEWED", "sidecar", "refused");
const SIDECAR_CREDENTIALS_EXPIRED: Told =
    retryable(Code::Unavailable, "SIDECAR_CREDENTIALS_EXPIRED", "sidecar", "refused");
const SIDECAR_CREDENTIALS_MISSING: Told =
    told(Code::FailedPrecondition, "SIDECAR_CREDENTIALS_MISSING", "sidecar", "not_sent");
const SIDECAR_CREDENTIALS_UNAVAILABLE: Told =
    retryable(Code::Unavailable, "SIDECAR_CREDENTIALS_UNAVAILABLE", "sidecar", "not_sent");
const SIDECAR_MISCONFIGURED: Told =
    told(Code::FailedPrecondition, "SIDECAR_MISCONFIGURED", "sidecar", "not_sent");
const DEADLINE_EXCEEDED_AT_AWS: Told =
    Told { retryable: true, ..told(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "aws", "unknown") };
const DEADLINE_EXCEEDED_HERE: Told =
    Told { retryable: true, ..told(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "sidecar", "not_sent") };
const UNEXPECTED_RESPONSE: Told = told(Code::Internal, "UNEXPECTED_RESPONSE", "aws", "unknown");
/// AWS's own 4xx, with a code that nobody knows.
const UNEXPECTED_REFUSAL: Told = told(Code::Internal, "UNEXPECTED_RESPONSE", "aws", "refused");
const OVERLOADED: Told = retryable(Code::ResourceExhausted, "OVERLOADED", "sidecar", "not_sent");
const QUOTA_EXHAUSTED: Told = retryable(Code::ResourceExhausted, "QUOTA_EXHAUSTED", "sidecar", "not_sent")
    .with(&["QuotaFailure", "RetryInfo"]);
const AUDIT_UNAVAILABLE: Told = retryable(Code::Unavailable, "AUDIT_UNAVAILABLE", "sidecar", "not_sent");
const SHUTTING_DOWN: Told = retryable(Code::Unavailable, "SHUTTING_DOWN", "sidecar", "not_sent");
const CALLER_UNAUTHENTICATED: Told =
    told(Code::Unauthenticated, "CALLER_UNAUTHENTICATED", "caller", "not_sent");
const CALLER_NOT_ALLOWED: Told = told(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "caller", "not_sent");

/// A row of the matrix.
struct Row {
    cause: String,
    upstream: String,
    attempts: usize,
    told: Told,
}

/// Every answer that AWS, or something in its place, may give: the error code or the kind, what is done upstream, and
/// how often it is tried.
fn answers() -> Vec<(Row, Box<dyn Fn() -> Reply + Send + Sync>)> {
    let mut answers: Vec<(Row, Box<dyn Fn() -> Reply + Send + Sync>)> = Vec::new();
    let mut add = |cause: &str,
                   upstream: &str,
                   attempts,
                   told,
                   reply: Box<dyn Fn() -> Reply + Send + Sync>| {
        answers.push((Row { cause: cause.to_owned(), upstream: upstream.to_owned(), attempts, told }, reply));
    };
    for (code, status, attempts, told) in [
        ("InvalidParameterException", 400, 1, INVALID_PARAMETER),
        ("UserNotFoundException", 400, 1, USER_NOT_FOUND),
        ("ResourceNotFoundException", 400, 1, USER_POOL_NOT_FOUND),
        ("NotAuthorizedException", 400, 1, NOT_AUTHORIZED),
        ("OperationNotEnabledException", 400, 1, OPERATION_NOT_ENABLED),
        ("TooManyRequestsException", 400, 3, TOO_MANY_REQUESTS),
        ("LimitExceededException", 400, 3, TOO_MANY_REQUESTS),
        ("ThrottlingException", 400, 3, TOO_MANY_REQUESTS),
        ("SlowDown", 503, 3, TOO_MANY_REQUESTS),
        ("InternalErrorException", 500, 3, COGNITO_INTERNAL_ERROR),
        ("ServiceUnavailable", 503, 3, COGNITO_UNAVAILABLE),
        ("InternalFailure", 500, 3, COGNITO_UNAVAILABLE),
        ("RequestTimeoutException", 400, 3, UNAVAILABLE_BUT_REFUSED),
        ("AccessDeniedException", 400, 1, SIDECAR_ACCESS_DENIED),
        ("AccessDenied", 403, 1, SIDECAR_ACCESS_DENIED),
        ("ForbiddenException", 403, 1, BLOCKED_BY_WEB_ACL),
        ("UnrecognizedClientException", 400, 1, SIDECAR_CREDENTIALS_INVALID),
        ("InvalidSignatureException", 400, 1, SIDECAR_CREDENTIALS_INVALID),
        ("IncompleteSignatureException", 400, 1, SIDECAR_CREDENTIALS_INVALID),
        ("MissingAuthenticationTokenException", 400, 1, SIDECAR_CREDENTIALS_INVALID),
        ("InvalidClientTokenId", 403, 1, SIDECAR_CREDENTIALS_INVALID),
        ("SignatureDoesNotMatch", 403, 1, SIDECAR_CREDENTIALS_INVALID),
        ("RequestExpired", 400, 1, SIDECAR_CLOCK_SKEWED),
        ("RequestTimeTooSkewed", 403, 1, SIDECAR_CLOCK_SKEWED),
        ("AuthFailure", 401, 1, SIDECAR_CLOCK_SKEWED),
        // The keys are the environment's, so the provider can only give the same again.
        ("ExpiredTokenException", 400, 1, SIDECAR_CREDENTIALS_INVALID),
        ("NeverHeardOfException", 400, 1, UNEXPECTED_REFUSAL),
    ] {
        let upstream = format!("answers {status} with that code");
        add(code, &upstream, attempts, told, Box::new(move || Reply::aws_error(status, code, "as told")));
    }
    let skewed = || {
        Reply::aws_error(400, "InvalidSignatureException", "Signature expired")
            .header("date", &http_date(std::time::SystemTime::now() - Duration::from_secs(600)))
    };
    let dated = "answers 400 with that code and a Date ten minutes off";
    add("InvalidSignatureException, clocks apart", dated, 1, SIDECAR_CLOCK_SKEWED, Box::new(skewed));

    const HTML: &str = "<html><body>Sign in to the network</body></html>";
    for status in [500, 502, 503, 504] {
        let upstream = format!("answers {status} with HTML");
        let reply = move || Reply::http(status, HTML).header("content-type", "text/html");
        add("a server error without a code", &upstream, 3, COGNITO_UNAVAILABLE, Box::new(reply));
    }
    add("a 408", "answers 408, empty", 3, COGNITO_UNAVAILABLE, Box::new(|| Reply::http(408, "")));
    add(
        "a 429 without a code",
        "answers 429, empty",
        3,
        TOO_MANY_REQUESTS,
        Box::new(|| Reply::http(429, "")),
    );
    let portal = "a captive portal or a proxy";
    for (status, body) in
        [(200, HTML), (200, "[]"), (200, "null"), (201, "{}"), (204, ""), (403, HTML), (404, HTML)]
    {
        let body_is = if body.is_empty() {
            "empty"
        } else if body == HTML {
            "HTML"
        } else {
            body
        };
        let upstream = format!("answers {status}, {body_is}");
        add(portal, &upstream, 1, UNEXPECTED_RESPONSE, Box::new(move || Reply::http(status, body)));
    }
    let redirect = || Reply::http(302, "").header("location", "http://127.0.0.1:9/");
    add(portal, "answers 302", 1, UNEXPECTED_RESPONSE, Box::new(redirect));

    for (cause, upstream, reply) in [
        ("no answer", "closes the connection", Reply::close as fn() -> Reply),
        ("no answer", "resets the connection", Reply::reset),
        ("half an answer", "closes within the headers", Reply::cut_in_headers),
        ("half an answer", "closes within the body of a 200", Reply::cut_short),
        ("half an answer", "resets within the body of a 200", || {
            Reply::reset_after("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Status\":")
        }),
        ("nonsense", "answers something other than HTTP", || Reply::raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())),
    ] {
        add(cause, upstream, 3, COGNITO_UNREACHABLE, Box::new(reply));
    }
    answers
}

/// One sidecar and one endpoint for all answers: the username tells the endpoint which is wanted.
async fn walk_answers(matrix: &mut Vec<Row>) {
    let answers = answers();
    let (rows, replies): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    let wanted =
        |request: &Request| request.username().strip_prefix("case-").unwrap().parse::<usize>().unwrap();
    let upstream = Scripted::start(move |_, request| replies[wanted(request)]()).await;
    let sidecar = Sidecar::before(&upstream).await;

    let calls = rows.iter().enumerate().map(|(n, _)| {
        let sidecar = &sidecar;
        async move { sidecar.sign_out(POOL, &format!("case-{n}")).await }
    });
    let answers = futures_util::future::join_all(calls).await;

    let requests = upstream.requests();
    for (n, (row, answer)) in rows.into_iter().zip(answers).enumerate() {
        let attempts = requests.iter().filter(|request| wanted(request) == n).count();
        check(&row, answer.map(|_| ()), attempts);
        matrix.push(row);
    }
}

/// Checks every column of a row, and what holds for all.
fn check(row: &Row, answer: Result<(), Status>, attempts: usize) {
    let Row { cause, upstream, attempts: told_attempts, told } = row;
    let row = format!("{cause}, {upstream}");
    let status = answer.expect_err(&row);

    assert_eq!((status.code(), reason(&status).as_str()), (told.code, told.reason), "{row}: {status:?}");
    assert_eq!(metadata(&status, "fault"), told.fault, "{row}");
    assert_eq!(metadata(&status, "retryable"), told.retryable.to_string(), "{row}");
    assert_eq!(metadata(&status, "outcome"), told.outcome, "{row}");
    assert_eq!(attempts, *told_attempts, "{row}: attempts");

    let details = tonic_types::pb::Status::decode(status.details()).unwrap();
    assert_eq!(details.code, i32::from(told.code), "{row}");
    let mut kinds: Vec<&str> = details
        .details
        .iter()
        .map(|any| any.type_url.rsplit_once("google.rpc.").unwrap().1)
        .filter(|kind| *kind != "RequestInfo")
        .collect();
    kinds.sort_unstable();
    let mut expected = [&["ErrorInfo"], told.details].concat();
    expected.sort_unstable();
    assert_eq!(kinds, expected, "{row}");

    let delay = status.get_details_retry_info().map(|info| info.retry_delay.unwrap());
    let pushback =
        status.metadata().get(PUSHBACK).map(|value| value.to_str().unwrap().parse::<u128>().unwrap());
    assert_eq!(pushback, delay.map(|delay| delay.as_nanos().div_ceil(1_000_000)), "{row}");
    assert!(!status.message().contains("case-"), "{row}: the username is in the message");
    assert!(!status.message().is_empty(), "{row}");
}

/// One call, by a sidecar of its own.
struct Alone {
    cause: &'static str,
    upstream: &'static str,
    starter: Starter,
    user_pool_id: &'static str,
    username: &'static str,
    deadline: Duration,
    told: Told,
}

impl Alone {
    fn new(cause: &'static str, upstream: &'static str, starter: Starter, told: Told) -> Self {
        let deadline = Duration::from_secs(20);
        Self { cause, upstream, starter, user_pool_id: POOL, username: "ada", deadline, told }
    }

    /// Makes the call; `attempts` counts what the endpoint saw, and is what the row says.
    async fn walk(self, matrix: &mut Vec<Row>, attempts: impl Fn() -> usize) {
        let Self { cause, upstream, starter, user_pool_id, username, deadline, told } = self;
        let sidecar = starter.start().await;
        let answer = sidecar.sign_out_within(user_pool_id, username, deadline).await;
        let row = Row { cause: cause.to_owned(), upstream: upstream.to_owned(), attempts: attempts(), told };
        check(&row, answer.map(|_| ()), row.attempts);
        matrix.push(row);
    }
}

async fn walk_networks(matrix: &mut Vec<Row>) {
    let resetting =
        Scripted::start_accepting(|_| OnAccept::ResetAtOnce, |_, _| unreachable!("reset first")).await;
    let starter = Sidecar::at(&resetting.url());
    Alone::new("no answer", "resets before the request", starter, COGNITO_UNREACHABLE)
        .walk(matrix, || 0)
        .await;
    assert_eq!(resetting.connections(), 3);

    let unused = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let starter = Sidecar::at(&format!("http://{unused}"));
    Alone::new("refused", "nobody listens", starter, COGNITO_UNREACHABLE).walk(matrix, || 0).await;

    let starter = Sidecar::at("http://cognito-idp.invalid");
    Alone::new("DNS", "the name does not exist", starter, COGNITO_UNREACHABLE).walk(matrix, || 0).await;

    let stranger = Authority::new("a private CA");
    let tls =
        Scripted::start_tls(stranger.server().server_config(), |_, _| unreachable!("not trusted")).await;
    let starter = Sidecar::at(&tls.url());
    Alone::new("TLS", "a certificate of a CA that is not trusted", starter, COGNITO_UNREACHABLE)
        .walk(matrix, || tls.requests().len())
        .await;

    let hole = Scripted::start_accepting(|_| OnAccept::Hold, |_, _| unreachable!()).await;
    let starter = Sidecar::at(&format!("https://{}", hole.addr())).arg("--connect-timeout", "100ms");
    Alone::new("a black hole", "accepts, then says nothing", starter, COGNITO_UNREACHABLE)
        .walk(matrix, || hole.requests().len())
        .await;
    assert_eq!(hole.connections(), 3);

    let silent = Scripted::start(|_, _| Reply::never()).await;
    let starter = Sidecar::at(&silent.url()).arg("--attempt-timeout", "100ms");
    Alone::new("a timed-out attempt", "takes the request, then says nothing", starter, COGNITO_UNREACHABLE)
        .walk(matrix, || silent.requests().len())
        .await;
    assert_eq!(silent.requests().len(), 3);

    let slow = Scripted::start(|_, _| Reply::trickle(200, "{}        ", Duration::from_millis(80))).await;
    let starter = Sidecar::at(&slow.url()).arg("--attempt-timeout", "200ms");
    Alone::new("slow bytes", "a byte now and then", starter, COGNITO_UNREACHABLE)
        .walk(matrix, || slow.requests().len())
        .await;
    assert_eq!(slow.requests().len(), 3);
}

async fn walk_ourselves(matrix: &mut Vec<Row>) {
    let upstream = Scripted::start(|_, _| Reply::never()).await;

    let starter = Sidecar::before_nothing();
    let row = Alone::new("a malformed field", "nothing", starter, INVALID_REQUEST);
    Alone { username: "a b", ..row }.walk(matrix, || 0).await;

    let row = Alone::new("a pool without a region", "nothing", Sidecar::before_nothing(), INVALID_REQUEST);
    Alone { user_pool_id: "local_pool", ..row }.walk(matrix, || 0).await;

    let starter =
        Sidecar::before_nothing().without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY");
    Alone::new("no credentials anywhere", "nothing", starter, SIDECAR_CREDENTIALS_MISSING)
        .walk(matrix, || 0)
        .await;

    let broken = Scripted::start(|_, _| Reply::http(500, "")).await;
    let starter = Sidecar::with_credentials_from(&broken, &upstream);
    Alone::new("the credential provider fails", "nothing", starter, SIDECAR_CREDENTIALS_UNAVAILABLE)
        .walk(matrix, || upstream.requests().len())
        .await;

    let hanging = Scripted::start(|_, _| Reply::never()).await;
    let starter = Sidecar::with_credentials_from(&hanging, &upstream).arg("--credentials-timeout", "200ms");
    Alone::new("the credential provider hangs", "nothing", starter, SIDECAR_CREDENTIALS_UNAVAILABLE)
        .walk(matrix, || upstream.requests().len())
        .await;

    let starter = Sidecar::with_credentials_from(&hanging, &upstream).arg("--credentials-timeout", "60s");
    let row =
        Alone::new("the deadline, while credentials are loaded", "nothing", starter, DEADLINE_EXCEEDED_HERE);
    Alone { deadline: Duration::from_millis(400), ..row }.walk(matrix, || upstream.requests().len()).await;
    assert_eq!(upstream.requests().len(), 0);

    let starter = Sidecar::at(&upstream.url());
    let row = Alone::new(
        "the deadline, at Cognito",
        "takes the request, then says nothing",
        starter,
        DEADLINE_EXCEEDED_AT_AWS,
    );
    Alone { deadline: Duration::from_millis(400), ..row }.walk(matrix, || upstream.requests().len()).await;
    assert_eq!(upstream.requests().len(), 1);

    let starter = Sidecar::at("not a url");
    Alone::new("a bad endpoint", "nothing", starter, SIDECAR_MISCONFIGURED).walk(matrix, || 0).await;

    // AWS calls whatever it is given expired, and the provider gives others each time.
    let expired =
        Scripted::start(|_, _| Reply::aws_error(400, "ExpiredTokenException", "The token has expired")).await;
    let rotating =
        Scripted::start(|n, _| crate::harness::container_credentials(n, Duration::from_secs(3600))).await;
    let starter = Sidecar::with_credentials_from(&rotating, &expired);
    Alone::new(
        "ExpiredTokenException",
        "answers so whatever the provider gives",
        starter,
        SIDECAR_CREDENTIALS_EXPIRED,
    )
    .walk(matrix, || expired.requests().len())
    .await;
    assert_eq!(expired.requests().len(), 3);
    assert_eq!(rotating.requests().len(), 2, "loaded anew at most once in 10 s");

    walk_the_queue(matrix).await;

    let starter = Sidecar::starter().arg("--allow-pool", "us-*");
    Alone::new("the pool is not among those of `--allow-pool`", "nothing", starter, CALLER_NOT_ALLOWED)
        .walk(matrix, || 0)
        .await;
    let dir = tempfile::tempdir().unwrap();
    let policy = crate::harness::path_in(&dir, "policy.toml");
    std::fs::write(&policy, "[[callers]]\nname = \"a\"\nuid = [1]\npools = [\"*\"]").unwrap();
    let starter = Sidecar::starter().arg("--policy", policy);
    Alone::new("nobody whom the policy knows", "nothing", starter, CALLER_UNAUTHENTICATED)
        .walk(matrix, || 0)
        .await;

    // One call is in the budget, and whose event cannot be written is told the truth; the next call is refused.
    let starter = |flag: &str, value: &str| Sidecar::at("").arg(flag, value);
    let quota = starter("--quota-rps", "0.1");
    walk_second(matrix, "the local quota cannot serve the call in time", quota, QUOTA_EXHAUSTED).await;
    let audit = starter("--audit", "/dev/full").arg("--audit-on-failure", "closed");
    walk_second(matrix, "an audit record is demanded and cannot be written", audit, AUDIT_UNAVAILABLE).await;
}

/// A row that only the second call of a sidecar shows: the first is a success.
async fn walk_second(matrix: &mut Vec<Row>, cause: &str, starter: Starter, told: Told) {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = starter.env("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream.url()).start().await;
    sidecar.sign_out(POOL, "ada").await.unwrap();
    let answer = sidecar.sign_out_within(POOL, "grace", Duration::from_secs(3)).await;
    let row = Row { cause: cause.to_owned(), upstream: "nothing".to_owned(), attempts: 0, told };
    check(&row, answer.map(|_| ()), upstream.requests().len() - 1);
    matrix.push(row);
}

/// One call at Cognito, one that waits for it, one too many; then a stop.
async fn walk_the_queue(matrix: &mut Vec<Row>) {
    let row = |cause: &str, told| Row { cause: cause.into(), upstream: "nothing".into(), attempts: 0, told };
    let gate = Gate::closed();
    let held = gate.clone();
    let upstream = Scripted::start(move |_, _| Reply::ok().after(&held)).await;
    let starter = Sidecar::at(&upstream.url()).arg("--max-in-flight", 1).arg("--max-waiting", 1);
    let sidecar = starter.arg("--log-level", "debug").start().await;

    let at_cognito = sidecar.spawn_sign_out(POOL, "ada");
    upstream.wait_for_requests(1).await;
    let waiting = sidecar.spawn_sign_out(POOL, "grace");
    sidecar.log.wait_for_message("waits for its turn").await;

    let full = row("the queue is full", OVERLOADED);
    check(&full, sidecar.sign_out(POOL, "linus").await.map(|_| ()), 0);
    matrix.push(full);

    sidecar.signal("TERM");
    let draining = row("the sidecar is draining", SHUTTING_DOWN);
    check(&draining, waiting.await.unwrap().map(|_| ()), 0);
    matrix.push(draining);

    gate.open();
    at_cognito.await.unwrap().unwrap();
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn the_fault_matrix() {
    let mut matrix = Vec::new();
    walk_answers(&mut matrix).await;
    walk_networks(&mut matrix).await;
    walk_ourselves(&mut matrix).await;

    let table = render(&matrix);
    println!("{table}");
    crate::docs::assert_current("docs/fault-matrix.md", &table);

    // No reason of the code is left out.
    let walked: Vec<&str> = matrix.iter().map(|row| row.told.reason).collect();
    for reason in crate::docs::reasons_of_the_readme() {
        assert!(
            walked.contains(&reason.as_str()) || NOT_HERE.contains(&reason.as_str()),
            "{reason} is not in the matrix"
        );
    }
}

/// A bug has no input that brings it about: a unit test does, and its row is told by hand.
const NOT_HERE: [&str; 1] = ["SIDECAR_INTERNAL_ERROR"];

fn render(matrix: &[Row]) -> String {
    let mut table = String::from(
        "# The fault matrix\n\nWhat was done upstream, how many attempts were seen there, and what the caller was told. \
         Made by `cargo test the_fault_matrix`, which fails if it is not true.\n\n\
         | cause | upstream | attempts | code | reason | fault | retryable | outcome |\n|---|---|---|---|---|---|---|---|\n",
    );
    for Row { cause, upstream, attempts, told } in matrix {
        let Told { code, reason, fault, retryable, outcome, details: _ } = told;
        let code = code_name(*code);
        writeln!(
            table,
            "| {cause} | {upstream} | {attempts} | {code} | `{reason}` | {fault} | {retryable} | {outcome} |"
        )
        .unwrap();
    }
    table.push_str(
        "| a bug or a panic | whatever it was (`cargo test a_panic_ends_its_own_call`) | as many as were made | INTERNAL \
         | `SIDECAR_INTERNAL_ERROR` | sidecar | false | as far as it is known |\n",
    );
    table
}
