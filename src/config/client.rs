//! The flags of the commands that are clients.

use std::time::Duration;

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
