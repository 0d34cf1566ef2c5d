//! Signs users out of Amazon Cognito, everywhere, through the sidecar. One file to copy into a service.

use std::{
    fmt, fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use tonic::{
    Code, Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// What is generated from the proto.
pub mod pb {
    tonic::include_proto!("cognito.signout.v1");
}
use pb::{
    AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse,
    sign_out_service_client::SignOutServiceClient,
};

const MAX_ATTEMPTS: u32 = 3;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Another attempt may help.
    Retry,
    /// The caller has to know.
    Raise,
    /// Somebody has to act, and the caller has to know.
    Alert,
}

/// Why a user was not signed out, or perhaps not: the outcome `unknown` means that it may have happened.
#[derive(Debug)]
pub struct SignOutFailed {
    pub code: Code,
    /// Empty if it was the gRPC library that failed.
    pub reason: String,
    pub message: String,
    pub fault: String,
    pub retryable: bool,
    pub outcome: String,
    pub aws_error_code: String,
    pub request_id: String,
    pub retry_after: Option<Duration>,
    pub fields: Vec<String>,
}

impl SignOutFailed {
    /// What to do about it.
    pub fn does(&self) -> Advice {
        match (self.code, self.fault.as_str()) {
            // Nobody waits any more; a new call is a new decision.
            (Code::DeadlineExceeded | Code::Cancelled, _) => Advice::Raise,
            _ if self.retryable => Advice::Retry,
            (_, "sidecar" | "aws") => Advice::Alert,
            _ => Advice::Raise,
        }
    }
}

impl fmt::Display for SignOutFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for SignOutFailed {}

impl From<Status> for SignOutFailed {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let metadata = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned();
        Self {
            // tonic reports a deadline that it has counted itself as CANCELLED.
            code: match status.code() {
                Code::Cancelled if status.message() == "Timeout expired" => Code::DeadlineExceeded,
                code => code,
            },
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            fault: metadata("fault").unwrap_or_default(),
            // Without details, only UNAVAILABLE says that another attempt may help.
            retryable: metadata("retryable")
                .map_or(status.code() == Code::Unavailable, |retryable| retryable == "true"),
            outcome: metadata("outcome").unwrap_or_else(|| "unknown".to_owned()),
            aws_error_code: metadata("aws_error_code").unwrap_or_default(),
            request_id: details.request_info().map(|info| info.request_id.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            fields: details
                .bad_request()
                .map(|bad| bad.field_violations.iter().map(|violation| violation.field.clone()).collect())
                .unwrap_or_default(),
        }
    }
}

/// How to reach the sidecar.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// HOST:PORT or unix:/PATH.
    pub address: String,
    /// The files of the CA, the certificate and its key, for mTLS.
    pub tls: Option<[PathBuf; 3]>,
    /// Read anew for every call, and sent over TLS only.
    pub token_file: Option<PathBuf>,
}

/// One for each process, cloned at will: clones share the connection.
#[derive(Debug, Clone)]
pub struct SignOutClient {
    channel: Channel,
    token_file: Option<PathBuf>,
}

impl SignOutClient {
    /// Connects with the first call, and again whenever it has to.
    pub fn new(reach: Reach) -> io::Result<Self> {
        let Reach { address, tls, token_file } = reach;
        if token_file.is_some() && tls.is_none() {
            return Err(io::Error::other("a token is not sent without TLS"));
        }
        let uri = match &tls {
            _ if address.starts_with("unix:") => address,
            Some(_) => format!("https://{address}"),
            None => format!("http://{address}"),
        };
        let mut endpoint = Endpoint::from_shared(uri).map_err(io::Error::other)?;
        if let Some([ca, cert, key]) = tls {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(fs::read(ca)?))
                .identity(Identity::from_pem(fs::read(cert)?, fs::read(key)?));
            endpoint = endpoint.tls_config(tls).map_err(io::Error::other)?;
        }
        Ok(Self { channel: endpoint.connect_lazy(), token_file })
    }

    /// Tries again as the sidecar advises, within the timeout. `traceparent` is W3C trace context.
    pub async fn sign_out(
        &self,
        user_pool_id: &str,
        username: &str,
        timeout: Duration,
        traceparent: Option<&str>,
    ) -> Result<AdminUserGlobalSignOutResponse, SignOutFailed> {
        let deadline = Instant::now() + timeout;
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let failed = match self.attempt(user_pool_id, username, left, traceparent).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            if failed.does() == Advice::Alert {
                tracing::error!(error = %failed, fault = failed.fault, request_id = failed.request_id, "sign-outs do not work");
            }
            let wait =
                failed.retry_after.unwrap_or_else(|| Duration::from_millis(fastrand::u64(..100 << attempt)));
            if failed.does() != Advice::Retry || attempt == MAX_ATTEMPTS || Instant::now() + wait >= deadline
            {
                return Err(failed);
            }
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Tries once; dropping the future cancels the call.
    pub async fn attempt(
        &self,
        user_pool_id: &str,
        username: &str,
        timeout: Duration,
        traceparent: Option<&str>,
    ) -> Result<AdminUserGlobalSignOutResponse, SignOutFailed> {
        let (user_pool_id, username) = (user_pool_id.to_owned(), username.to_owned());
        let mut request = Request::new(AdminUserGlobalSignOutRequest { user_pool_id, username });
        request.set_timeout(timeout);
        let unusable = |_| Status::internal("a header is not ASCII");
        if let Some(traceparent) = traceparent {
            request.metadata_mut().insert("traceparent", traceparent.parse().map_err(unusable)?);
        }
        if let Some(file) = &self.token_file {
            let token =
                fs::read_to_string(file).map_err(|error| Status::unauthenticated(error.to_string()))?;
            let value = format!("Bearer {}", token.trim()).parse().map_err(unusable)?;
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = SignOutServiceClient::new(self.channel.clone());
        // The sidecar answers just before the deadline; this is for one that does not answer at all.
        let answer = tokio::time::timeout(timeout, client.admin_user_global_sign_out(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        Ok(answer?.into_inner())
    }

    /// SERVING, NOT_SERVING and so on, as they change.
    pub async fn watch_health(&self, service: &str) -> Result<Streaming<HealthCheckResponse>, Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        Ok(HealthClient::new(self.channel.clone()).watch(request).await?.into_inner())
    }
}
