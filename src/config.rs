//! Every flag and environment variable, typed. Nothing else reads the environment, but the AWS SDK and OpenTelemetry's
//! their own variables.

mod access;
mod client;
mod connections;
mod serve;
mod traces;
mod value;

#[cfg(feature = "demo")]
use std::net::SocketAddr;

#[cfg(feature = "demo")]
use clap::Args;
use clap::{Parser, Subcommand};

pub use self::{
    access::{AccessArgs, SocketMode},
    client::{BulkArgs, CheckArgs, ClientArgs, HealthArgs, InputFormat, Output, SignOutArgs},
    connections::ConnectionArgs,
    serve::{AuditArgs, AwsArgs, LimitArgs, ListenArgs, LogArgs, ObserveArgs, ServeArgs, TimeArgs},
    traces::{Otlp, OtlpProtocol, TracesAsked},
    value::{AuditOnFailure, AuditSink, ListenAddress, LogFormat, LogLevel, PoolRegion, QuotaRps},
};

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
    Serve(Box<ServeArgs>),
    /// The whole story on this machine alone, with an embedded Cognito; then serves until Ctrl-C
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Only the embedded Cognito, for local work with any AWS SDK
    #[cfg(feature = "demo")]
    Emulate(EmulateArgs),
    /// Signs one user out, as a client of the sidecar
    SignOut(SignOutArgs),
    /// Preflight: credentials, region, network, clock, permission and pool, with nobody signed out
    Check(CheckArgs),
    /// Signs many users out, as a client of the sidecar; a run that was ended goes on with --resume
    Bulk(BulkArgs),
    /// Asks the sidecar for its health: exit status 0 if it serves, 1 if not
    Health(HealthArgs),
}

impl Command {
    /// How many threads do what is asked; one where nobody has said otherwise.
    pub fn worker_threads(&self) -> usize {
        match self {
            Self::Serve(args) => args.limits.worker_threads.into(),
            _ => 1,
        }
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::*;

    fn serve(args: &[&str]) -> Result<ServeArgs, String> {
        let args = [&["cognito-signout", "serve"], args].concat();
        match Cli::try_parse_from(args).map_err(|error| error.to_string())?.command {
            Command::Serve(args) => args.validate().map(|()| *args),
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
        let serve = cli.find_subcommand("serve").unwrap();
        for command in cli.get_subcommands() {
            let prefix = match command.get_name() {
                "serve" => "COGNITO_SIGNOUT_",
                "demo" => "COGNITO_SIGNOUT_DEMO_",
                "emulate" => "COGNITO_SIGNOUT_EMULATE_",
                _ => "COGNITO_SIGNOUT_CLIENT_",
            };
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                let flag = arg.get_long().unwrap();
                // `check` looks at AWS as `serve` does, so it is told how by the same variables.
                let of_serve = serve.get_arguments().any(|of_serve| of_serve.get_long() == Some(flag));
                let prefix =
                    if command.get_name() == "check" && of_serve { "COGNITO_SIGNOUT_" } else { prefix };
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
        assert_eq!(args.aws.attempt_timeout, Duration::from_secs(3));
        assert_eq!(args.aws.connect_timeout, Duration::from_secs(2));
        assert_eq!(args.time.max_attempts, 3);
        assert_eq!(
            (args.time.drain_delay, args.time.drain_timeout),
            (Duration::ZERO, Duration::from_secs(20))
        );
        assert_eq!((args.limits.max_in_flight, args.limits.max_waiting), (256, 16384));
        assert_eq!(args.limits.worker_threads, 1);
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let args = serve(&["--listen", "127.0.0.1:1,unix:/a b", "--listen", "[::1]:2"]).unwrap();
        let listen: Vec<String> = args.listen.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["127.0.0.1:1", "unix:/a b", "[::1]:2"]);
    }

    #[test]
    fn a_quota_is_for_all_regions_or_for_one() {
        let none = serve(&[]).unwrap().limits;
        assert_eq!((none.quota_rps.len(), none.quota_share), (0, 1.0));
        let some = serve(&["--quota-rps", "25,eu-central-1=50", "--quota-share=50%"]).unwrap().limits;
        assert_eq!(some.quota_rps[0], QuotaRps { region: None, rps: 25.0 });
        assert_eq!(some.quota_rps[1], QuotaRps { region: "eu-central-1".parse().ok(), rps: 50.0 });
        assert_eq!(some.quota_share, 0.5);
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
            (&["--socket-mode", "rw"], "such as 0660"),
            (&["--socket-mode", "1777"], "such as 0660"),
            (&["--tls-cert", "a"], "--tls-cert needs --tls-key"),
            (&["--tls-key", "a"], "--tls-key needs --tls-cert"),
            (&["--tls-client-ca", "a"], "--tls-client-ca needs --tls-cert and --tls-key"),
            (&["--allow-pool", "a*b"], "ends in one *"),
            (&["--call-timeout", "10"], "500ms"),
            (&["--call-timeout", "0s"], "longer than nothing"),
            (&["--max-attempts", "0"], "1..=100"),
            (&["--pool-region", "us-east-1_A"], "PATTERN=REGION"),
            (&["--pool-region", "us*1=eu-west-1"], "ends in one *"),
            (&["--pool-region", "us-east-1_A=europe"], "does not look like an AWS region"),
            (&["--quota-rps", "0"], "such as 25"),
            (&["--quota-rps", "europe=5"], "does not look like an AWS region"),
            (&["--quota-rps", "5,25"], "--quota-rps says 5 and 25"),
            (&["--quota-share", "0"], "such as 0.5"),
            (&["--quota-share", "101%"], "such as 0.5"),
            (&["--drain-delay", "30s"], "--drain-timeout"),
            (&["--log-format", "xml"], "text, json"),
        ] {
            let error = serve(args).unwrap_err();
            assert!(error.contains(told), "{args:?}: {error}");
        }
    }
}
