//! The story that the demo tells, over the wire, checking every step of it.

use std::{
    error::Error,
    io::{self, Write as _},
    time::Duration,
};

use aws_config::SdkConfig;
use aws_sdk_cognitoidentityprovider::{
    Client,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::{AuthFlowType, AuthenticationResultType},
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::{
    Style,
    emulator::{POOLS, SeededPool, USERS},
};
use crate::{
    config::ListenAddress,
    pb::{
        AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse,
        sign_out_service_client::SignOutServiceClient,
    },
    status,
};

const POOL: &SeededPool = &POOLS[1];

/// A failure that is shown: how it is brought about, what must come of it, and what it means to a caller.
struct Failure {
    what: &'static str,
    user_pool_id: &'static str,
    username: &'static str,
    deadline: Duration,
    code: Code,
    reason: &'static str,
    meaning: &'static str,
}

impl Failure {
    const fn new(
        what: &'static str,
        username: &'static str,
        code: Code,
        reason: &'static str,
        meaning: &'static str,
    ) -> Self {
        // Long enough for one backoff from 1 s or for none: the story should be quick.
        let deadline = Duration::from_millis(1500);
        Self { what, user_pool_id: POOL.id, username, deadline, code, reason, meaning }
    }

    const fn of_pool(self, user_pool_id: &'static str) -> Self {
        Self { user_pool_id, ..self }
    }

    const fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }
}

const FAILURES: [Failure; 12] = [
    Failure::new(
        "a name with a space",
        "ada lovelace",
        Code::InvalidArgument,
        "INVALID_REQUEST",
        "fix the request; AWS was not called",
    ),
    Failure::new(
        "Cognito refuses a value",
        "invalid-parameter",
        Code::InvalidArgument,
        "INVALID_PARAMETER",
        "fix the request",
    ),
    Failure::new(
        "nobody of that name",
        "nobody",
        Code::NotFound,
        "USER_NOT_FOUND",
        "check the name, and its case",
    ),
    Failure::new(
        "no such pool",
        "ada",
        Code::NotFound,
        "USER_POOL_NOT_FOUND",
        "check the pool's id and region",
    )
    .of_pool("eu-central-1_NoSuchPool"),
    Failure::new(
        "Cognito says no",
        "not-authorized",
        Code::PermissionDenied,
        "NOT_AUTHORIZED",
        "do not try again",
    ),
    Failure::new(
        "a replica region",
        "operation-not-enabled",
        Code::FailedPrecondition,
        "OPERATION_NOT_ENABLED",
        "the operator sets --pool-region",
    ),
    Failure::new(
        "the account is throttled",
        "too-many-requests",
        Code::ResourceExhausted,
        "TOO_MANY_REQUESTS",
        "try again after RetryInfo",
    ),
    Failure::new("Cognito fails", "internal-error", Code::Internal, "COGNITO_INTERNAL_ERROR", "try again"),
    Failure::new("Cognito is down", "unavailable", Code::Unavailable, "COGNITO_UNAVAILABLE", "try again"),
    Failure::new(
        "the connection drops",
        "drop",
        Code::Unavailable,
        "COGNITO_UNREACHABLE",
        "try again; perhaps signed out",
    ),
    Failure::new(
        "the role lacks IAM",
        "access-denied",
        Code::PermissionDenied,
        "SIDECAR_ACCESS_DENIED",
        "page the sidecar's operator",
    ),
    Failure::new(
        "slower than the caller",
        "slow",
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "read outcome; perhaps signed out",
    )
    .within(Duration::from_millis(500)),
];

/// Tells the story; whether every step went as told.
pub(super) async fn tell(
    aws: &SdkConfig,
    sidecar: &ListenAddress,
    style: Style,
) -> Result<bool, Box<dyn Error>> {
    let uri = match sidecar {
        ListenAddress::Tcp(address) => format!("http://{address}"),
        ListenAddress::Unix(path) => format!("unix:{}", path.display()),
    };
    let mut teller = Teller {
        cognito: Client::new(aws),
        sidecar: SignOutServiceClient::new(Endpoint::from_shared(uri)?.connect_lazy()),
        style,
        all_well: true,
    };
    teller.sign_out_ends_every_session().await?;
    teller.failures().await?;
    Ok(teller.all_well)
}

struct Teller {
    cognito: Client,
    sidecar: SignOutServiceClient<Channel>,
    style: Style,
    all_well: bool,
}

impl Teller {
    async fn sign_out_ends_every_session(&mut self) -> io::Result<()> {
        let user = &USERS[0];
        self.heading(&format!("The story of {}, a user of pool {}", user.username, POOL.id))?;

        let phone = self.sign_in().await;
        self.step("signs in on the phone", "access, ID and refresh tokens", phone.as_ref().map(|_| ()))?;
        let laptop = self.sign_in().await;
        self.step("signs in on the laptop", "another set of tokens", laptop.as_ref().map(|_| ()))?;
        let (Ok(phone), Ok(laptop)) = (phone, laptop) else { return Ok(()) };

        let refreshed = self.refresh(&phone).await;
        self.step("refreshes on the phone", "a new access token", refreshed)?;

        let before = std::time::Instant::now();
        let answer = self.sign_out(POOL.id, user.username, Duration::from_secs(5)).await;
        let took = before.elapsed();
        let told = match &answer {
            Ok(answer) => {
                let at = answer.signed_out_at.map(|at| format!(" at {at}")).unwrap_or_default();
                format!(
                    "OK in {:.1} ms{at}, AWS request id {}",
                    took.as_secs_f64() * 1e3,
                    answer.aws_request_id
                )
            }
            Err(_) => "OK".to_owned(),
        };
        let result = answer.map(|_| ()).map_err(|status| status.to_string());
        self.step("is signed out over gRPC", &told, result)?;

        for (what, session) in [("refreshes on the phone", &phone), ("refreshes on the laptop", &laptop)] {
            let refused = self.refresh(session).await;
            self.refused(what, refused, "Refresh Token has been revoked")?;
        }
        let refused = self.get_user(&phone).await;
        self.refused("uses the access token", refused, "Access Token has been revoked")?;

        let again = self.sign_in().await.map(|_| ());
        self.step("signs in again", "a fresh session works: the user is not disabled", again)?;
        writeln!(io::stdout())
    }

    async fn failures(&mut self) -> io::Result<()> {
        self.heading("What can go wrong, and what the caller is told")?;
        writeln!(
            io::stdout(),
            "    {}",
            self.style.dim(&format!(
                "{:<25} {:<20} {:<23} {:<8} {:<9} {}",
                "what happens", "code", "reason", "fault", "outcome", "what it means"
            ))
        )?;
        for failure in &FAILURES {
            let answer = self.sign_out(failure.user_pool_id, failure.username, failure.deadline).await;
            let status = answer.err().unwrap_or_else(|| Status::ok("signed out"));
            let info = status.get_details_error_info();
            let reason = info.as_ref().map(|info| info.reason.as_str()).unwrap_or_default();
            let metadata =
                |key: &str| info.as_ref().and_then(|info| info.metadata.get(key)).map_or("", String::as_str);
            let as_told = status.code() == failure.code && reason == failure.reason;
            self.line(
                as_told,
                &format!(
                    "{:<25} {:<20} {:<23} {:<8} {:<9} {}",
                    failure.what,
                    status::code_name(status.code()),
                    reason,
                    metadata("fault"),
                    metadata("outcome"),
                    failure.meaning
                ),
            )?;
            if !as_told {
                let told = status::code_name(failure.code);
                writeln!(io::stdout(), "      expected {told} {}: {}", failure.reason, status.message())?;
            }
        }
        writeln!(io::stdout())
    }

    async fn sign_out(
        &mut self,
        user_pool_id: &str,
        username: &str,
        deadline: Duration,
    ) -> Result<AdminUserGlobalSignOutResponse, Status> {
        let message = AdminUserGlobalSignOutRequest {
            user_pool_id: user_pool_id.to_owned(),
            username: username.to_owned(),
        };
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        Ok(self.sidecar.admin_user_global_sign_out(request).await?.into_inner())
    }

    async fn sign_in(&self) -> Result<AuthenticationResultType, String> {
        let user = &USERS[0];
        let answer = self
            .cognito
            .initiate_auth()
            .client_id(POOL.client_id)
            .auth_flow(AuthFlowType::UserPasswordAuth)
            .auth_parameters("USERNAME", user.username)
            .auth_parameters("PASSWORD", user.password)
            .send()
            .await
            .map_err(words)?;
        answer.authentication_result.ok_or_else(|| "no tokens".to_owned())
    }

    async fn refresh(&self, session: &AuthenticationResultType) -> Result<(), String> {
        self.cognito
            .initiate_auth()
            .client_id(POOL.client_id)
            .auth_flow(AuthFlowType::RefreshTokenAuth)
            .auth_parameters("REFRESH_TOKEN", session.refresh_token().unwrap_or_default())
            .send()
            .await
            .map(|_| ())
            .map_err(words)
    }

    async fn get_user(&self, session: &AuthenticationResultType) -> Result<(), String> {
        let token = session.access_token().unwrap_or_default();
        self.cognito.get_user().access_token(token).send().await.map(|_| ()).map_err(words)
    }

    fn heading(&self, text: &str) -> io::Result<()> {
        writeln!(io::stdout(), "{}\n", self.style.bold(text))
    }

    /// A step that must go well.
    fn step<E: std::fmt::Display>(
        &mut self,
        what: &str,
        told: &str,
        result: Result<(), E>,
    ) -> io::Result<()> {
        match result {
            Ok(()) => self.line(true, &format!("{what:<25} {told}")),
            Err(error) => self.line(false, &format!("{what:<25} failed: {error}")),
        }
    }

    /// A step that Cognito must refuse.
    fn refused(&mut self, what: &str, result: Result<(), String>, words: &str) -> io::Result<()> {
        match result {
            Err(error) => self.line(error.contains(words), &format!("{what:<25} refused: {error}")),
            Ok(()) => {
                self.line(false, &format!("{what:<25} worked, but must not: the session is still alive"))
            }
        }
    }

    fn line(&mut self, as_told: bool, text: &str) -> io::Result<()> {
        self.all_well &= as_told;
        let mark = if as_told { self.style.good("✓") } else { self.style.bad("✗") };
        writeln!(io::stdout(), "  {mark} {text}")
    }
}

/// What Cognito said, or else why it said nothing.
fn words<E: ProvideErrorMetadata + Error + Send + Sync + 'static>(error: SdkError<E>) -> String {
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => DisplayErrorContext(error).to_string(),
    }
}
