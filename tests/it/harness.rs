//! The real binary as a child process, reached as its callers reach it.

use std::{
    fmt::Display,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    thread,
    time::{Duration, SystemTime},
};

use cognito_signout::pb::{
    AdminUserGlobalSignOutRequest, AdminUserGlobalSignOutResponse,
    sign_out_service_client::SignOutServiceClient,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::scripted::{Reply, Scripted};

/// Longer than anything takes that goes well, so that what goes wrong does not hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A pool of the region that the scripted endpoint is asked for.
pub(crate) const POOL: &str = "eu-central-1_EXAMPLE02";

/// Another binary than the one that cargo builds beside the tests, for a bench.
pub(crate) static OTHER_BINARY: OnceLock<PathBuf> = OnceLock::new();

/// The binary, in an environment that holds nothing but what a test gives it.
pub(crate) fn binary() -> Command {
    let ours = Path::new(env!("CARGO_BIN_EXE_cognito-signout"));
    let mut command = Command::new(OTHER_BINARY.get().map_or(ours, PathBuf::as_path));
    command
        .env_clear()
        // No profile of whoever runs the tests, and no metadata service of the machine they run on.
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null());
    command
}

/// Runs a command that ends by itself.
pub(crate) fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    binary().args(args).envs(env.iter().copied()).output().unwrap()
}

/// What a command printed, for assertions.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// How a sidecar is started.
pub(crate) struct Starter {
    command: Command,
    listens: bool,
}

impl Starter {
    pub(crate) fn arg(mut self, flag: &str, value: impl Display) -> Self {
        self.command.arg(format!("{flag}={value}"));
        self.listens |= flag == "--listen";
        self
    }

    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.command.arg(flag);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.command.env(name, value.as_ref());
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// With a limit of file descriptors, and one that it may raise that to.
    pub(crate) fn descriptors(mut self, soft: u32, hard: u32) -> Self {
        let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).arg(self.command.get_program()).args(self.command.get_args()).env_clear();
        shell.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = shell;
        self
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn start(mut self) -> Sidecar {
        if !self.listens {
            self.command.arg("--listen=127.0.0.1:0");
        }
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let log = Log::of(child.stderr.take().unwrap());
        let stdout = Log::of(child.stdout.take().unwrap());
        let mut sidecar = Sidecar { child, log, stdout, addresses: Vec::new(), admin: None };
        let serving = sidecar.log.wait_for(|line| line["message"] == "serving probes").await;
        sidecar.admin = serving["address"].as_str().unwrap().parse().ok();
        sidecar.addresses = sidecar
            .log
            .lines()
            .iter()
            .filter(|line| line["message"] == "serving gRPC")
            .map(|line| line["address"].as_str().unwrap().to_owned())
            .collect();
        sidecar
    }
}

/// A running sidecar; killed when dropped.
pub(crate) struct Sidecar {
    child: Child,
    pub(crate) log: Log,
    pub(crate) stdout: Log,
    addresses: Vec<String>,
    admin: Option<SocketAddr>,
}

impl Sidecar {
    /// Not started yet; with AWS keys in its environment, and no upstream.
    pub(crate) fn starter() -> Starter {
        let mut command = binary();
        command
            .arg("serve")
            .env("COGNITO_SIGNOUT_ADMIN_LISTEN", "127.0.0.1:0")
            .env("COGNITO_SIGNOUT_LOG_FORMAT", "json")
            .env("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTESTTEST")
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        Starter { command, listens: false }
    }

    /// Not started yet; Cognito is what `upstream` plays.
    pub(crate) fn at(upstream: &str) -> Starter {
        Self::starter().env("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", upstream)
    }

    /// Not started yet; whatever would be asked of Cognito finds nobody.
    pub(crate) fn before_nothing() -> Starter {
        Self::at("http://127.0.0.1:9")
    }

    /// Not started yet; the credentials come from one endpoint, as on ECS and EKS, and Cognito is the other.
    pub(crate) fn with_credentials_from(provider: &Scripted, upstream: &Scripted) -> Starter {
        Self::at(&upstream.url())
            .without_env("AWS_ACCESS_KEY_ID")
            .without_env("AWS_SECRET_ACCESS_KEY")
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/credentials", provider.url()))
    }

    /// Started with the defaults before a scripted endpoint.
    pub(crate) async fn before(upstream: &Scripted) -> Self {
        Self::at(&upstream.url()).start().await
    }

    /// The first address that it serves gRPC at, as `HOST:PORT` or `unix:/PATH`.
    pub(crate) fn address(&self) -> &str {
        &self.addresses[0]
    }

    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    pub(crate) fn channel(&self) -> Channel {
        channel(self.address())
    }

    pub(crate) async fn patient_client(&self) -> SignOutServiceClient<PatientChannel> {
        SignOutServiceClient::new(PatientChannel::connect(self.address()).await)
    }

    pub(crate) fn client(&self) -> SignOutServiceClient<Channel> {
        SignOutServiceClient::new(self.channel())
    }

    /// One call with a deadline that only the sidecar obeys, and that is no part of what is tested.
    pub(crate) async fn sign_out(
        &self,
        user_pool_id: &str,
        username: &str,
    ) -> Result<AdminUserGlobalSignOutResponse, Status> {
        self.sign_out_within(user_pool_id, username, PATIENCE).await
    }

    pub(crate) async fn sign_out_within(
        &self,
        user_pool_id: &str,
        username: &str,
        deadline: Duration,
    ) -> Result<AdminUserGlobalSignOutResponse, Status> {
        let request = request(user_pool_id, username, deadline);
        match self.address().starts_with("unix:") {
            true => Ok(self.client().admin_user_global_sign_out(request).await?.into_inner()),
            false => Ok(self.patient_client().await.admin_user_global_sign_out(request).await?.into_inner()),
        }
    }

    /// A call that goes on while the test does.
    pub(crate) fn spawn_sign_out(
        &self,
        user_pool_id: &str,
        username: &str,
    ) -> JoinHandle<Result<AdminUserGlobalSignOutResponse, Status>> {
        let mut client = self.client();
        let request = request(user_pool_id, username, PATIENCE);
        tokio::spawn(async move { Ok(client.admin_user_global_sign_out(request).await?.into_inner()) })
    }

    /// What a probe of the API listener is told now.
    pub(crate) async fn health(&self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(self.channel()).check(request).await.unwrap().into_inner().status()
    }

    pub(crate) async fn wait_for_health(&self, service: &str, wanted: ServingStatus) {
        self.wait_for_health_at(self.address(), service, wanted).await;
    }

    /// Watches until the health is as wanted.
    pub(crate) async fn wait_for_health_at(&self, address: &str, service: &str, wanted: ServingStatus) {
        let watch = async {
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut watch = HealthClient::new(channel(address)).watch(request).await.unwrap().into_inner();
            while let Some(health) = watch.message().await.unwrap() {
                if health.status() == wanted {
                    return;
                }
            }
            panic!("the watch ended before {service:?} was {wanted:?}");
        };
        timeout(PATIENCE, watch).await.unwrap_or_else(|_| panic!("{service:?} was never {wanted:?}"));
    }

    /// GET of the admin listener over HTTP/1.1: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How much memory it takes up.
    pub(crate) fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<f64>().unwrap() / 1024.0
    }

    /// Sends a signal such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(mut self) -> (ExitStatus, Log) {
        let log = self.log.clone();
        let wait = tokio::task::spawn_blocking(move || self.child.wait().unwrap());
        (timeout(PATIENCE, wait).await.expect("the sidecar did not end").unwrap(), log)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn channel(address: &str) -> Channel {
    let uri = if address.starts_with("unix:") { address.to_owned() } else { format!("http://{address}") };
    Endpoint::from_shared(uri).unwrap().connect_lazy()
}

/// A connection whose client obeys no deadline: what it is told comes from the sidecar. (tonic's own channel would give
/// up by itself.)
#[derive(Clone)]
pub(crate) struct PatientChannel(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl PatientChannel {
    pub(crate) async fn connect(address: &str) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for PatientChannel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path_and_query().unwrap().as_str();
        *request.uri_mut() = format!("http://localhost{path}").parse().unwrap();
        Box::pin(self.0.send_request(request))
    }
}

pub(crate) fn request(
    user_pool_id: &str,
    username: &str,
    deadline: Duration,
) -> Request<AdminUserGlobalSignOutRequest> {
    let mut request = Request::new(AdminUserGlobalSignOutRequest {
        user_pool_id: user_pool_id.to_owned(),
        username: username.to_owned(),
    });
    request.set_timeout(deadline);
    request
}

/// What the container endpoint answers: the n-th credentials, each with a key id of its own, that live so long.
pub(crate) fn container_credentials(n: usize, lives: Duration) -> Reply {
    let expiration = humantime::format_rfc3339_seconds(SystemTime::now() + lives).to_string();
    Reply::json(serde_json::json!({
        "AccessKeyId": key_id(n),
        "SecretAccessKey": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY00",
        "Token": format!("session-token-{n}"),
        "Expiration": expiration,
        "AccountId": "123456789012",
    }))
}

/// The key id of the n-th credentials that [`container_credentials`] gives.
pub(crate) fn key_id(n: usize) -> String {
    format!("ASIATESTTESTTEST{n:04}")
}

/// What a process has printed so far, a line each: JSON where it is JSON, else a string.
#[derive(Clone)]
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<Value>>>,
    grown: watch::Receiver<bool>,
}

impl Log {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, grown) = watch::channel(false);
        let ours = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                ours.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
                sender.send_replace(false);
            }
            // `true`: no more will come.
            sender.send_replace(true);
        });
        Self { lines, grown }
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// All that was printed, as one text to search.
    pub(crate) fn text(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// The first line that is as wanted, waiting for it.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut grown = self.grown.clone();
        let find = async {
            loop {
                let complete = *grown.borrow_and_update();
                if let Some(line) = self.lines().into_iter().find(|line| wanted(line)) {
                    return line;
                }
                assert!(!complete, "the process ended without the line; it printed:\n{}", self.text());
                let _ = grown.changed().await;
            }
        };
        match timeout(PATIENCE, find).await {
            Ok(line) => line,
            Err(_) => panic!("no such line came; there are:\n{}", self.text()),
        }
    }

    /// The line that a call has left.
    pub(crate) async fn wait_for_message(&self, message: &str) -> Value {
        self.wait_for(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message))).await
    }
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A value of ErrorInfo's metadata; empty if there is none.
pub(crate) fn metadata(status: &Status, key: &str) -> String {
    let info = status.get_details_error_info();
    info.and_then(|info| info.metadata.get(key).cloned()).unwrap_or_default()
}

/// A directory that is removed with the value, and the path of a file in it.
pub(crate) fn path_in(dir: &tempfile::TempDir, name: &str) -> String {
    let path: &Path = dir.path();
    path.join(name).to_str().unwrap().to_owned()
}
