//! `check`: what `serve` would meet, found out with nobody signed out.
//!
//! Everything behind the credentials is found out by one sign-out of a username that cannot exist: UserNotFoundException
//! is the good answer, and needs no permission beyond the one that `serve` needs.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tokio::time::Instant;

use super::print;
use crate::{
    cognito::{AwsSource, Cognito, Credentials, Origin},
    config::{AwsArgs, CheckArgs, Output},
    sign_out::{Call, Cause, SignOut as _, SignOutError, User},
    status,
};

/// AWS refuses signatures that are 5 minutes off; so much is left to react.
const TOLERATED_SKEW: Duration = Duration::from_secs(60);

/// One thing that was looked at.
struct Finding {
    check: &'static str,
    state: State,
    detail: String,
    advice: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Problem,
    /// What came before it failed.
    Unknown,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Problem => "problem",
            Self::Unknown => "unknown",
        }
    }
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, state: State::Ok, detail: detail.into(), advice: None }
    }

    fn problem(check: &'static str, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { check, state: State::Problem, detail: detail.into(), advice: Some(advice) }
    }

    fn unknown(check: &'static str) -> Self {
        Self { check, state: State::Unknown, detail: "not found out".to_owned(), advice: None }
    }
}

/// Looks, tells, and exits with 1 if anything is wrong.
pub async fn run(args: CheckArgs) -> ExitCode {
    let CheckArgs { user_pool_id, output, aws } = args;
    // Parsed as the sidecar would, with a name that nobody can have: long and random.
    let username = format!("cognito-signout-check-{:032x}", fastrand::u128(..));
    let user = match user_pool_id.as_deref().map(|pool| User::parse(pool, &username)).transpose() {
        Ok(user) => user,
        Err(violations) => {
            let told: Vec<&str> = violations.iter().map(|violation| violation.description.as_str()).collect();
            let _ = print::failure(format_args!("--user-pool-id {} (see --help)", told.join("; ")));
            return ExitCode::from(2);
        }
    };

    let findings = look(aws, user).await;
    let all_well = findings.iter().all(|finding| finding.state == State::Ok);
    match output {
        Output::Text => {
            for Finding { check, state, detail, advice } in &findings {
                print::answer(format_args!("{:<8} {check:<12} {detail}", state.as_str()));
                if let Some(advice) = advice {
                    print::answer(format_args!("{:<22}{advice}", "  ->"));
                }
            }
        }
        Output::Json => print::answer(json!({
            "ok": all_well,
            "findings": findings.iter().map(|finding| json!({
                "check": finding.check,
                "state": finding.state.as_str(),
                "detail": finding.detail,
                "advice": finding.advice,
            })).collect::<Vec<_>>(),
        })),
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn look(aws: AwsArgs, user: Option<User>) -> Vec<Finding> {
    let patience = aws.credentials_timeout + aws.attempt_timeout + aws.connect_timeout;
    let source = AwsSource::environment(AwsArgs::credentials_may_need_region());
    let (credentials, keeper) = Credentials::new(source.clone(), aws.credentials_timeout);
    let keeper = tokio::spawn(keeper);
    let mut findings = vec![match credentials.origin().await {
        Ok(origin) => Finding::ok("credentials", describe(&origin)),
        Err(error) => about_credentials(&error),
    }];
    if let Some(user) = user {
        let cognito = Cognito::new(source, aws, credentials);
        findings.push(match cognito.region_of(&user.pool) {
            Some(region) => Finding::ok("region", region.to_string()),
            None => Finding::problem(
                "region",
                format!("the id {} names none", user.pool),
                "set --pool-region PATTERN=REGION",
            ),
        });
        if findings.iter().all(|finding| finding.state == State::Ok) {
            let call = Call::new(user, Instant::now() + patience);
            let begun = Instant::now();
            let answer = cognito.sign_out(&call).await;
            let told = about_answer(answer.err(), begun.elapsed(), &mut findings[0]);
            findings.extend(told);
        } else {
            findings.extend(["endpoint", "clock", "permission", "pool"].map(Finding::unknown));
        }
    }
    keeper.abort();
    findings
}

fn describe(origin: &Origin) -> String {
    let account = origin.account.as_ref().map(|account| format!(", account {account}")).unwrap_or_default();
    let expiry = match origin.expires_in() {
        Some(left) => {
            format!(", expire in {}", humantime::format_duration(Duration::from_secs(left.as_secs())))
        }
        None => ", do not expire".to_owned(),
    };
    format!("from {}{account}{expiry}", origin.source)
}

fn about_credentials(error: &SignOutError) -> Finding {
    let causes = error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
    Finding::problem(
        "credentials",
        format!("{}{causes}", error.cause),
        match error.cause {
            Cause::SidecarCredentialsMissing => {
                "give it a role (IRSA, EKS Pod Identity, ECS, an instance profile), AWS_PROFILE, or keys in its \
                 environment"
            }
            Cause::SidecarMisconfigured => "mend the AWS profile or the AWS_ variables that are named",
            _ => "is what gives them reachable from here, and may this workload assume the role?",
        },
    )
}

/// What one answer tells of the endpoint, the clock, the permission and the pool; and of the credentials, if AWS does not
/// take them.
fn about_answer(error: Option<SignOutError>, took: Duration, credentials: &mut Finding) -> Vec<Finding> {
    let Some(error) = error else {
        return vec![Finding::problem(
            "endpoint",
            "a user who cannot exist was signed out: what answers is not Cognito",
            "is AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER set to something that says yes to everything?",
        )];
    };
    let (_, reason) = status::code_and_reason(&error.cause);
    let causes = error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
    let told = format!("{reason}{causes}");
    let answered = || Finding::ok("endpoint", format!("answered in {} ms", took.as_millis()));
    let clock = || about_clock(error.aws.date);
    let unknown = Finding::unknown;
    match error.cause {
        Cause::UserNotFound => vec![
            answered(),
            clock(),
            Finding::ok("permission", "cognito-idp:AdminUserGlobalSignOut is allowed on the pool"),
            Finding::ok("pool", "is there"),
        ],
        Cause::UserPoolNotFound => vec![
            answered(),
            clock(),
            Finding::ok("permission", "cognito-idp:AdminUserGlobalSignOut is allowed on the pool's ARN"),
            Finding::problem(
                "pool",
                told,
                "is the id right, and are pool and credentials of the same account and region?",
            ),
        ],
        Cause::OperationNotEnabled => vec![
            answered(),
            clock(),
            unknown("permission"),
            Finding::problem(
                "pool",
                told,
                "a replica region: set --pool-region to the one that takes the operation",
            ),
        ],
        Cause::SidecarAccessDenied | Cause::NotAuthorized => vec![
            answered(),
            clock(),
            Finding::problem(
                "permission",
                told,
                "allow cognito-idp:AdminUserGlobalSignOut on the pool's ARN to the role",
            ),
            unknown("pool"),
        ],
        Cause::BlockedByWebAcl => vec![
            answered(),
            clock(),
            Finding::problem(
                "permission",
                told,
                "the pool's AWS WAF web ACL must let the sidecar's address through",
            ),
            unknown("pool"),
        ],
        Cause::SidecarClockSkewed => vec![
            answered(),
            Finding::problem("clock", clock().detail, "set the clock right; AWS tolerates 5 minutes"),
            unknown("permission"),
            unknown("pool"),
        ],
        Cause::SidecarCredentialsInvalid | Cause::SidecarCredentialsExpired => {
            *credentials = Finding::problem(
                "credentials",
                format!("{}; but AWS does not take them: {told}", credentials.detail),
                "replace them; keys that begin with ASIA need their session token as well",
            );
            vec![answered(), clock(), unknown("permission"), unknown("pool")]
        }
        Cause::TooManyRequests => vec![
            answered(),
            clock(),
            Finding::problem(
                "permission",
                told,
                "the account is throttled just now: check again in a moment",
            ),
            unknown("pool"),
        ],
        _ => vec![
            Finding::problem(
                "endpoint",
                told,
                "look at DNS, egress rules, HTTPS_PROXY, SSL_CERT_FILE and AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER",
            ),
            unknown("clock"),
            unknown("permission"),
            unknown("pool"),
        ],
    }
}

fn about_clock(date: Option<SystemTime>) -> Finding {
    let Some(date) = date else { return Finding::unknown("clock") };
    let (off, direction) = match SystemTime::now().duration_since(date) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let detail = format!("{} s {direction} AWS's", off.as_secs());
    if off > TOLERATED_SKEW {
        Finding::problem("clock", detail, "set the clock right; AWS tolerates 5 minutes")
    } else {
        Finding::ok("clock", detail)
    }
}
