//! The flags of `serve`.

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
#[cfg(feature = "demo")]
use clap::Parser;

use super::access::{AccessArgs, SocketMode};
use super::connections::ConnectionArgs;
use super::value::{
    AuditOnFailure, AuditSink, ListenAddress, LogFormat, LogLevel, PoolRegion, QuotaRps, duration, positive,
    share,
};

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
    pub access: AccessArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub time: TimeArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub limits: LimitArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub connections: ConnectionArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub aws: AwsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub observe: ObserveArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub audit: AuditArgs,
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
    /// Where to serve /livez, /readyz, /metrics and gRPC health, in plain text: ADDRESS:PORT
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9464"
    )]
    pub admin_listen: SocketAddr,
    /// Permissions of a unix socket; by default the user and the group of the sidecar may connect
    #[arg(long, env = "COGNITO_SIGNOUT_SOCKET_MODE", value_name = "OCTAL", default_value = "0660")]
    pub socket_mode: SocketMode,
    /// Group of a unix socket, by number or by its name in /etc/group
    #[arg(long, env = "COGNITO_SIGNOUT_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Serve at a --listen address that is not loopback without TLS, or without knowing who calls
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
    /// Calls a second that Cognito allows the account: a number, or REGION=NUMBER; repeatable. Unless set, only bulk is
    /// paced, at 15 a second
    #[arg(long, env = "COGNITO_SIGNOUT_QUOTA_RPS", value_name = "N", value_delimiter = ',')]
    pub quota_rps: Vec<QuotaRps>,
    /// Part of the quota that this process may use, such as 0.5 or 50%; the rest is kept for the account's other users
    /// of it, replicas included
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_QUOTA_SHARE",
        value_name = "PART",
        default_value = "1",
        value_parser = share
    )]
    pub quota_share: f64,
    /// Threads that serve calls. One serves thousands of calls a second, and each call costs least with it
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_WORKER_THREADS",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub worker_threads: u16,
}

impl LimitArgs {
    /// Two numbers for one region: nobody can know which is meant.
    fn validate(&self) -> Result<(), String> {
        for (index, one) in self.quota_rps.iter().enumerate() {
            if let Some(other) = self.quota_rps[..index].iter().find(|other| other.region == one.region) {
                return Err(format!("--quota-rps says {} and {} for the same; say one", other.rps, one.rps));
            }
        }
        Ok(())
    }

    /// How many sign-outs there may be, each a call of its own: at Cognito, in the queue, and as many again that wait
    /// between two attempts or are still arriving.
    pub fn max_calls(&self) -> usize {
        let Self { max_in_flight, max_waiting, .. } = *self;
        2 * (max_in_flight as usize + max_waiting as usize)
    }
}

/// How AWS is reached, where that is ours to say.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "AWS")]
pub struct AwsArgs {
    /// Region of the pools whose id is, or begins as, PATTERN (exact or ending in one *), instead of the one that the id
    /// names: for replicas and local pools; repeatable
    #[arg(long, env = "COGNITO_SIGNOUT_POOL_REGION", value_name = "PATTERN=REGION", value_delimiter = ',')]
    pub pool_region: Vec<PoolRegion>,
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

/// What can be seen from outside, beyond the logs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Metrics")]
pub struct ObserveArgs {
    /// Tell calls apart by user pool in the metrics: one series for each pool and kind of end
    #[arg(long, env = "COGNITO_SIGNOUT_METRICS_POOL_IDS")]
    pub metrics_pool_ids: bool,
}

/// What is recorded of each sign-out asked for.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Audit")]
pub struct AuditArgs {
    /// Where the audit log goes, one JSON object a line for each sign-out asked for: stdout, a FILE, or off
    #[arg(long, env = "COGNITO_SIGNOUT_AUDIT", value_name = "SINK", default_value = "off")]
    pub audit: AuditSink,
    /// File with the key, 32 bytes or more, that usernames in the audit log are hashed with; read anew when it changes.
    /// Without it the audit log does not tell users
    #[arg(long, env = "COGNITO_SIGNOUT_AUDIT_KEY_FILE", value_name = "FILE")]
    pub audit_key_file: Option<PathBuf>,
    /// While the audit log cannot be written: sign users out all the same (open), or refuse new calls (closed)
    #[arg(long, env = "COGNITO_SIGNOUT_AUDIT_ON_FAILURE", value_name = "HOW", default_value = "open")]
    pub audit_on_failure: AuditOnFailure,
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
        let Self { listen: _, access, time, limits, connections: _, aws: _, observe: _, audit: _, log: _ } =
            self;
        access.validate()?;
        limits.validate()?;
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

fn is_set(name: &str) -> bool {
    read(name).is_some()
}

/// What a variable holds; empty is as good as unset.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub(super) fn read(name: &str) -> Option<String> {
    env::var_os(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}
