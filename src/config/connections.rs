//! The flags of `serve` about its callers' connections.

use std::time::Duration;

use clap::Args;

use super::value::{duration, positive};

/// What a caller's connection may do, and for how long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Callers' connections")]
pub struct ConnectionArgs {
    /// Connections at one time; to let a further one in, the one that has been of no use for longest is closed
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections: u32,
    /// Calls and streams on one connection at one time; a client keeps back what is beyond
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_MAX_STREAMS",
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub max_streams: u32,
    /// Size of a call's headers, all together
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_MAX_HEADER_BYTES",
        value_name = "BYTES",
        default_value_t = 16 * 1024,
        value_parser = clap::value_parser!(u32).range(1024..=1024 * 1024)
    )]
    pub max_header_bytes: u32,
    /// A peer that has not said by then that it speaks HTTP/2 is cut
    #[arg(long, env = "COGNITO_SIGNOUT_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = positive)]
    pub handshake_timeout: Duration,
    /// A peer that reads nothing of what is written to it for so long is cut
    #[arg(long, env = "COGNITO_SIGNOUT_WRITE_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = positive)]
    pub write_timeout: Duration,
    /// A connection on which nothing is under way for so long is asked to go; 0s lets it stay
    #[arg(long, env = "COGNITO_SIGNOUT_IDLE_TIMEOUT", value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub idle_timeout: Duration,
    /// A connection that is so old, give or take a tenth, is asked to go, so that clients spread anew; 0s lets it stay
    #[arg(long, env = "COGNITO_SIGNOUT_MAX_CONNECTION_AGE", value_name = "TIME", default_value = "30m", value_parser = duration)]
    pub max_connection_age: Duration,
    /// A peer from which nothing comes for so long is asked for a sign of life
    #[arg(long, env = "COGNITO_SIGNOUT_KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "60s", value_parser = positive)]
    pub keepalive_interval: Duration,
    /// A peer that does not give it within this time is cut
    #[arg(long, env = "COGNITO_SIGNOUT_KEEPALIVE_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = positive)]
    pub keepalive_timeout: Duration,
}
