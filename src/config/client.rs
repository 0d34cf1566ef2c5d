//! The flags of the commands that are clients.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{serve::AwsArgs, value::positive};

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
    /// Speak TLS, and take the sidecar for genuine if its certificate comes from these authorities, in PEM
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate to show to the sidecar, with its chain, in PEM
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TLS_CERT", value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, in PEM
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Name in the sidecar's certificate, where it is not the host of --address
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TLS_SERVER_NAME", value_name = "NAME", requires = "tls_ca")]
    pub tls_server_name: Option<String>,
    /// File with the token that tells who calls; its first line is sent, but never in plain text over a network
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
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

/// How the users of `bulk` are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// A username a line.
    Text,
    /// With a header; the columns are `username` and perhaps `user_pool_id`.
    Csv,
    /// A JSON object a line, with `username` and perhaps `user_pool_id`.
    Jsonl,
}

/// `bulk`.
#[derive(Debug, Args)]
pub struct BulkArgs {
    /// Users to sign out; - is standard input
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_FILE", value_name = "FILE")]
    pub file: PathBuf,
    /// How they are written; by the file's extension (.csv, .jsonl), else text, a username a line
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_FORMAT", value_name = "FORMAT")]
    pub format: Option<InputFormat>,
    /// Id of the user pool of users that name none in a column or field user_pool_id
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_USER_POOL_ID", value_name = "ID")]
    pub user_pool_id: Option<String>,
    /// Where results are written, a JSON object a line; FILE.results.jsonl unless told
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_RESULTS", value_name = "FILE")]
    pub results: Option<PathBuf>,
    /// Go on with an earlier run: who is signed out according to --results is left out
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_RESUME")]
    pub resume: bool,
    /// Read everything, say what would be done, sign nobody out
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_DRY_RUN")]
    pub dry_run: bool,
    /// How often a user is tried, the first time included
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_CLIENT_MAX_ATTEMPTS",
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_attempts: u32,
    /// Give up when no answer has come for this long, because the sidecar or Cognito cannot be reached
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_GIVE_UP_AFTER", value_name = "TIME", default_value = "5m", value_parser = positive)]
    pub give_up_after: Duration,
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

/// `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if nothing was found, 1 with a finding. It looks at AWS with the same settings as \
                        serve, so run it where serve runs."
)]
pub struct CheckArgs {
    /// Id of the user pool to try; without it, only the credentials are looked at
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_USER_POOL_ID", value_name = "ID")]
    pub user_pool_id: Option<String>,
    /// How to tell
    #[arg(long, env = "COGNITO_SIGNOUT_CLIENT_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Output,
    #[command(flatten)]
    #[expect(missing_docs, reason = "told by its type")]
    pub aws: AwsArgs,
}

/// How findings are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line each, for people.
    Text,
    /// One JSON object, for scripts.
    Json,
}
