//! The commands `demo` and `emulate`: an embedded Cognito, and the whole story told before it. Real sockets, the real
//! SDK, the sidecar as it is; nothing in it knows that this Cognito is a fake.

pub mod emulator;
mod story;

use std::{
    error::Error,
    io::{self, IsTerminal as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use tokio::task::JoinHandle;

use self::emulator::{Emulator, POOLS, SPECIAL_PASSWORD, SPECIAL_USERNAMES, USERS};
use crate::{
    cognito::AwsSource,
    config::{DemoArgs, EmulateArgs, ListenAddress, LogArgs, LogLevel, ServeArgs},
    server::{RunError, Sidecar},
    shutdown::Stop,
    telemetry,
};

/// `emulate`: serves until a signal.
pub async fn emulate(args: EmulateArgs) -> Result<ExitCode, Box<dyn Error>> {
    let EmulateArgs { listen } = args;
    let stop = Stop::on_signals()?;
    let emulator = bind_emulator(listen).await?;
    let mut out = io::stdout().lock();
    writeln!(out, "An embedded Cognito, for local work only, at {}", emulator.url())?;
    writeln!(out)?;
    for pool in &POOLS {
        writeln!(out, "  pool {:<24} client id {}", pool.id, pool.client_id)?;
    }
    writeln!(out)?;
    for user in USERS {
        writeln!(out, "  user {:<24} password {}", user.username, user.password)?;
    }
    writeln!(out, "\nUsernames that stand for what AWS may do (password {SPECIAL_PASSWORD}):\n")?;
    for (name, shows) in SPECIAL_USERNAMES {
        writeln!(out, "  {name:<24} {shows}")?;
    }
    writeln!(out, "\nThe sidecar before it, in another terminal:\n")?;
    writeln!(
        out,
        "  AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER={} \\\n  AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local \
         cognito-signout serve\n",
        emulator.url()
    )?;
    writeln!(out, "Ctrl-C ends it.")?;
    drop(out);
    emulator.serve(async move { stop.asked().await }).await;
    Ok(ExitCode::SUCCESS)
}

/// `demo`: the embedded Cognito, the sidecar before it, the story, and then both until a signal.
pub async fn run(args: DemoArgs) -> Result<ExitCode, Box<dyn Error>> {
    let DemoArgs { once, listen, admin_listen } = args;
    let stop = Stop::on_signals()?;
    let emulator = bind_emulator((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let aws = aws_config_for(&emulator);
    let serve_args = ServeArgs::with_listeners(&listen, admin_listen)?;
    let sidecar = Sidecar::bind(serve_args, AwsSource::given(aws.clone())).await?;

    let cognito = emulator.url();
    let address = sidecar.addresses().pop().unwrap_or(listen);
    let admin = sidecar.admin_address().unwrap_or(admin_listen);
    let emulator = tokio::spawn(emulator.serve(std::future::pending()));
    let sidecar = tokio::spawn(sidecar.run(stop.clone()));

    let style = Style::of_stdout();
    let mut out = io::stdout();
    writeln!(
        out,
        "{}\n",
        style.bold("cognito-signout: sign a user out everywhere in Amazon Cognito, asked over gRPC")
    )?;
    writeln!(out, "  an embedded Cognito   {cognito:<28} a fake, on this machine only")?;
    writeln!(out, "  the sidecar           {:<28} gRPC, health, reflection", address.to_string())?;
    writeln!(
        out,
        "  probes                {:<28} /livez, /readyz, gRPC health\n",
        format!("http://{admin}")
    )?;

    let went_as_told = tokio::select! {
        result = story::tell(&aws, &address, style) => result?,
        () = stop.asked() => return end(stop, sidecar, emulator, false).await,
    };
    if once {
        stop.ask();
        return end(stop, sidecar, emulator, !went_as_told).await;
    }
    writeln!(out, "{}", commands(&address, admin, style))?;
    // Only now: the story should not be read between log lines.
    telemetry::start(&LogArgs { log_format: None, log_level: LogLevel::Info });
    stop.asked().await;
    end(stop, sidecar, emulator, false).await
}

/// Ends both, the sidecar first; `failed` if the story did not go as told.
async fn end(
    _stop: Stop,
    sidecar: JoinHandle<Result<(), RunError>>,
    emulator: JoinHandle<()>,
    failed: bool,
) -> Result<ExitCode, Box<dyn Error>> {
    sidecar.await??;
    emulator.abort();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn bind_emulator(address: SocketAddr) -> Result<Emulator, String> {
    Emulator::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address}: {error}; is it running already? Choose another by --listen")
        }
        _ => format!("cannot listen on {address}: {error}"),
    })
}

/// What `AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER` and keys in the environment would say.
fn aws_config_for(emulator: &Emulator) -> SdkConfig {
    let keys = Credentials::new("local", "local", None, None, "demo");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(emulator.url())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .build()
}

/// Commands to paste.
fn commands(address: &ListenAddress, admin: SocketAddr, style: Style) -> String {
    let pool = POOLS[1].id;
    let user = USERS[0].username;
    let (grpcurl, ours) = match address {
        ListenAddress::Tcp(address) => {
            (format!("grpcurl -plaintext {{}}{address}"), format!("--address {address}"))
        }
        ListenAddress::Unix(path) => (
            format!("grpcurl -plaintext -unix {{}}{}", path.display()),
            format!("--address unix:{}", path.display()),
        ),
    };
    let grpcurl = |flags: &str, rest: &str| format!("  {} {rest}\n", grpcurl.replace("{}", flags));
    let call = |username: &str| {
        grpcurl(
            &format!("-d '{{\"user_pool_id\": \"{pool}\", \"username\": \"{username}\"}}' "),
            "cognito.signout.v1.SignOutService/AdminUserGlobalSignOut",
        )
    };
    [
        style.bold("Try it; Ctrl-C ends it"),
        "\n\n".to_owned(),
        grpcurl("", "describe cognito.signout.v1.SignOutService"),
        call(user),
        call("too-many-requests"),
        grpcurl("", "grpc.health.v1.Health/Check"),
        format!("  curl http://{admin}/readyz\n"),
        format!("  cognito-signout sign-out {ours} --user-pool-id {pool} --username nobody\n"),
    ]
    .concat()
}

/// Colours on a terminal, none elsewhere.
#[derive(Clone, Copy)]
struct Style {
    colours: bool,
}

impl Style {
    fn of_stdout() -> Self {
        Self { colours: io::stdout().is_terminal() }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
