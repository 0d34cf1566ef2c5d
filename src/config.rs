//! Every flag and environment variable, typed. Nothing else reads the environment, but the AWS SDK its own variables.

use std::{env, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::{pattern::Pattern, sign_out::Region};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "cognito-signout",
    version,
    about = "Signs a user out everywhere in Amazon Cognito, asked over gRPC by a service in any language",
    after_help = "Try it without an AWS account: cognito-signout demo",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The sidecar: serves gRPC, calls Cognito
    Serve(ServeArgs),
    /// The whole story on this machine alone, with an embedded Cognito; then serves until Ctrl-C
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Only the embedded Cognito, for local work with any AWS SDK
    #[cfg(feature = "demo")]
    Emulate(EmulateArgs),
    /// Signs one user out, as a client of the sidecar
    SignOut(SignOutArgs),
    /// Asks the sidecar for its health: exit status 0 if it serves, 1 if not
    Health(HealthArgs),
}

/// `serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "AWS is configured as for every AWS SDK: AWS_PROFILE, AWS_ACCESS_KEY_ID, web identity, \
                        container and instance credentials, AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER, \
                        AWS_USE_FIPS_ENDPOINT, HTTPS_PROXY and the like. The region comes from the pool id."
)]
pub struct ServeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub listen: ListenArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub time: TimeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub limits: LimitArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub aws: AwsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub log: LogArgs,
}

/// Where the sidecar listens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listening")]
pub struct ListenArgs {
    /// Where to serve gRPC: ADDRESS:PORT or unix:/PATH; repeatable. Port 0 takes a free one and logs it
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051",
        value_delimiter = ','
    )]
    pub listen: Vec<ListenAddress>,
    /// Where to serve /livez, /readyz and gRPC health for probes, in plain text: ADDRESS:PORT
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9464"
    )]
    pub admin_listen: SocketAddr,
    /// Serve anybody who reaches a --listen address that is not loopback
    #[arg(long, env = "COGNITO_SIGNOUT_INSECURE_LISTEN")]
    pub insecure_listen: bool,
    /// Serve gRPC reflection, which tells tools such as grpcurl what can be called
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_REFLECTION",
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub reflection: bool,
}

/// How long things may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Time")]
pub struct TimeArgs {
    /// Deadline of a call that brings none
    #[arg(long, env = "COGNITO_SIGNOUT_CALL_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = positive)]
    pub call_timeout: Duration,
    /// Longest that one attempt at Cognito may take
    #[arg(long, env = "COGNITO_SIGNOUT_ATTEMPT_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = positive)]
    pub attempt_timeout: Duration,
    /// Longest that a connection to Cognito may take to be made
    #[arg(long, env = "COGNITO_SIGNOUT_CONNECT_TIMEOUT", value_name = "TIME", default_value = "2s", value_parser = positive)]
    pub connect_timeout: Duration,
    /// Longest that loading the AWS credentials may take
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_CREDENTIALS_TIMEOUT",
        value_name = "TIME",
        default_value = "5s",
        value_parser = positive
    )]
    pub credentials_timeout: Duration,
    /// Attempts at Cognito for one call, the first included
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_MAX_ATTEMPTS",
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    pub max_attempts: u32,
    /// After a stop is asked for, serve as before for this long, so that load balancers notice
    #[arg(long, env = "COGNITO_SIGNOUT_DRAIN_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub drain_delay: Duration,
    /// After a stop is asked for, end at the latest after this long, --drain-delay included
    #[arg(long, env = "COGNITO_SIGNOUT_DRAIN_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,
}

/// How much is allowed at one time.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Attempts at Cognito at one time; what is beyond waits
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_MAX_IN_FLIGHT",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub max_in_flight: u32,
    /// Calls that wait at one time; what is beyond is refused at once
    #[arg(long, env = "COGNITO_SIGNOUT_MAX_WAITING", value_name = "N", default_value_t = 16384)]
    pub max_waiting: u32,
}

/// How AWS is reached, where that is ours to say.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "AWS")]
pub struct AwsArgs {
    /// Region of the pools whose id is, or begins as, PATTERN (exact or ending in one *), instead of the one that the id
    /// names: for replicas and local pools; repeatable
    #[arg(long, env = "COGNITO_SIGNOUT_POOL_REGION", value_name = "PATTERN=REGION", value_delimiter = ',')]
    pub pool_region: Vec<PoolRegion>,
}

impl AwsArgs {
    /// Whether AWS credentials may have to be fetched from a service that is called in a region (STS, SSO). Keys in the
    /// environment and container endpoints need none, and looking for one there would only cost time.
    pub fn credentials_may_need_region() -> bool {
        ["AWS_ACCESS_KEY_ID", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]
            .iter()
            .all(|name| !is_set(name))
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Format of the logs on stderr; text on a terminal, else json
    #[arg(long, env = "COGNITO_SIGNOUT_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Least important level that is logged
    #[arg(long, env = "COGNITO_SIGNOUT_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

/// `demo`.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the story, with exit status 0 if every step went as told
    #[arg(long, env = "COGNITO_SIGNOUT_DEMO_ONCE")]
    pub once: bool,
    /// Where the demo's sidecar serves gRPC; port 0 takes a free one
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_DEMO_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051"
    )]
    pub listen: ListenAddress,
    /// Where the demo's sidecar serves probes; port 0 takes a free one
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_DEMO_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9464"
    )]
    pub admin_listen: SocketAddr,
}

/// `emulate`.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub struct EmulateArgs {
    /// Where the embedded Cognito listens; loopback only
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_EMULATE_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:4566"
    )]
    pub listen: SocketAddr,
}

/// How a client reaches the sidecar.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Reaching the sidecar")]
pub struct ClientArgs {
    /// The sidecar: HOST:PORT or unix:/PATH
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_CLIENT_ADDRESS",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051"
    )]
    pub address: String,
    /// Deadline of the call
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = positive)]
    pub timeout: Duration,
}

/// `sign-out`.
#[derive(Debug, Args)]
pub struct SignOutArgs {
    /// Id of the user pool, such as eu-central-1_EXAMPLE02
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_USER_POOL_ID", value_name = "ID")]
    pub user_pool_id: String,
    /// User name, alias or sub, exactly as Cognito has it
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_USERNAME", value_name = "NAME")]
    pub username: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub client: ClientArgs,
}

/// `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Service to ask for; the process as a whole if it is empty, cognito.signout.v1.SignOutService for whether
    /// sign-outs can work
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_SERVICE", value_name = "NAME", default_value = "")]
    pub service: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub client: ClientArgs,
}

impl ServeArgs {
    /// What the environment and the defaults say, but for where to listen.
    #[cfg(feature = "demo")]
    pub fn with_listeners(listen: &ListenAddress, admin_listen: SocketAddr) -> Result<Self, clap::Error> {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            serve: ServeArgs,
        }
        let (listen, admin_listen) = (listen.to_string(), admin_listen.to_string());
        let args = ["cognito-signout", "--listen", &listen, "--admin-listen", &admin_listen];
        Only::try_parse_from(args).map(|only| only.serve)
    }

    /// What no single flag can tell: combinations that cannot work, or that would be dangerous.
    pub fn validate(&self) -> Result<(), String> {
        let Self { listen, time, limits: _, aws: _, log: _ } = self;
        for address in &listen.listen {
            if let ListenAddress::Tcp(address) = address
                && !address.ip().is_loopback()
                && !listen.insecure_listen
            {
                return Err(format!(
                    "--listen {address} would let everybody who reaches it sign users out; listen on 127.0.0.1 or \
                     unix:/PATH, or say --insecure-listen if something else guards it"
                ));
            }
        }
        if time.drain_delay > time.drain_timeout {
            return Err(format!(
                "--drain-delay {} is within --drain-timeout {}, so it cannot be longer; raise the latter",
                humantime::format_duration(time.drain_delay),
                humantime::format_duration(time.drain_timeout)
            ));
        }
        Ok(())
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path, such as unix:/run/cognito-signout/api.sock".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "write an IP address and a port, such as 127.0.0.1:50051, or unix:/PATH".to_owned()
            }),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `PATTERN=REGION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRegion {
    /// Which pools.
    pub pattern: Pattern,
    /// Where they are called.
    pub region: Region,
}

impl FromStr for PoolRegion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, region) =
            text.split_once('=').ok_or("write PATTERN=REGION, such as us-east-1_EXAMPLE01=eu-west-1")?;
        Ok(Self {
            pattern: pattern.parse().map_err(|error| format!("{error}"))?,
            region: region.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

/// Format of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Least important level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|_| "write a number and a unit, such as 500ms, 3s or 1m".to_owned())
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing, such as 500ms or 3s".to_owned()),
        duration => Ok(duration),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn serve(args: &[&str]) -> Result<ServeArgs, String> {
        let args = [&["cognito-signout", "serve"], args].concat();
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Serve(args) => args.validate().map(|()| args),
            _ => unreachable!(),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            let prefix = match command.get_name() {
                "serve" => "COGNITO_SIGNOUT_",
                "demo" => "COGNITO_SIGNOUT_DEMO_",
                "emulate" => "COGNITO_SIGNOUT_EMULATE_",
                _ => "COGNITO_SIGNOUT_CLIENT_",
            };
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                let flag = arg.get_long().unwrap();
                let name = format!("{prefix}{}", flag.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().unwrap(), name.as_str());
                // Kubernetes injects these for a Service of our name.
                assert!(flag != "port" && (!flag.starts_with("service-")), "{flag}");
            }
        }
    }

    #[test]
    fn the_defaults() {
        let args = serve(&[]).unwrap();
        assert_eq!(args.listen.listen, [ListenAddress::Tcp("127.0.0.1:50051".parse().unwrap())]);
        assert_eq!(args.listen.admin_listen, "127.0.0.1:9464".parse().unwrap());
        assert!(args.listen.reflection);
        assert_eq!(args.time.call_timeout, Duration::from_secs(10));
        assert_eq!(args.time.attempt_timeout, Duration::from_secs(3));
        assert_eq!(args.time.connect_timeout, Duration::from_secs(2));
        assert_eq!(args.time.max_attempts, 3);
        assert_eq!(
            (args.time.drain_delay, args.time.drain_timeout),
            (Duration::ZERO, Duration::from_secs(20))
        );
        assert_eq!((args.limits.max_in_flight, args.limits.max_waiting), (256, 16384));
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let args = serve(&["--listen", "127.0.0.1:1,unix:/a b", "--listen", "[::1]:2"]).unwrap();
        let listen: Vec<String> = args.listen.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["127.0.0.1:1", "unix:/a b", "[::1]:2"]);
    }

    #[test]
    fn reflection_can_be_switched_off() {
        assert!(!serve(&["--reflection=false"]).unwrap().listen.reflection);
        assert!(serve(&["--reflection"]).unwrap().listen.reflection);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (args, told) in [
            (&["--listen", "localhost"][..], "127.0.0.1:50051"),
            (&["--listen", "unix:"], "unix:/"),
            (&["--listen", "0.0.0.0:1"], "--insecure-listen"),
            (&["--call-timeout", "10"], "500ms"),
            (&["--call-timeout", "0s"], "longer than nothing"),
            (&["--max-attempts", "0"], "1..=100"),
            (&["--pool-region", "us-east-1_A"], "PATTERN=REGION"),
            (&["--pool-region", "us*1=eu-west-1"], "ends in one *"),
            (&["--pool-region", "us-east-1_A=europe"], "does not look like an AWS region"),
            (&["--drain-delay", "30s"], "--drain-timeout"),
            (&["--log-format", "xml"], "text, json"),
        ] {
            let error = serve(args).unwrap_err();
            assert!(error.contains(told), "{args:?}: {error}");
        }
        assert!(serve(&["--listen", "0.0.0.0:1", "--insecure-listen"]).is_ok());
    }
}
