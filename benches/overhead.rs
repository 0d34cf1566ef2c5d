//! What the sidecar costs, beside what the same work costs by the bare AWS SDK: real processes on loopback.
//!
//! ```text
//! cargo build --release --no-default-features --locked
//! cp target/release/cognito-signout target/sidecar
//! cargo bench --locked --bench overhead -- --sidecar target/sidecar
//! ```
//!
//! The sidecar is the released binary, copied away because cargo puts what it builds beside the benches in its place:
//! one with the features of the tests, which nobody deploys. Everything else is this program in another role, in a process
//! of its own: a fake Cognito, and a service that calls the SDK itself. Figures are printed as `name=value`, one a line;
//! remarks begin with `#`. See docs/performance.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench prints, waits for processes to settle, and stops at the first surprise"
)]

#[path = "overhead/bare.rs"]
mod bare;
#[path = "overhead/cognito.rs"]
mod cognito;
#[path = "overhead/drive.rs"]
mod drive;
#[path = "overhead/figures.rs"]
mod figures;
#[path = "overhead/growth.rs"]
mod growth;
#[path = "overhead/plot.rs"]
mod plot;
#[path = "overhead/process.rs"]
mod process;
#[path = "overhead/stats.rs"]
mod stats;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "overhead",
    about = "What a sign-out through the sidecar costs",
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is measured, and of what.
#[derive(Args)]
struct Options {
    /// The sidecar, a copy of what this builds: cargo build --release --no-default-features --locked
    #[arg(long, value_name = "PATH", required = true)]
    sidecar: Option<PathBuf>,
    /// Rounds that count; one more comes before them
    #[arg(long, value_name = "N", default_value_t = 15)]
    rounds: usize,
    /// Fresh processes for each figure of a start
    #[arg(long, value_name = "N", default_value_t = 9)]
    starts: usize,
    /// URL of a signing proxy that is driven in the same rounds; it must forward to --upstream
    #[arg(long, value_name = "URL", requires = "peer_pid", requires = "upstream")]
    peer: Option<http::Uri>,
    /// Process of that proxy, whose CPU is counted
    #[arg(long, value_name = "PID", requires = "peer")]
    peer_pid: Option<u32>,
    /// Host header that the proxy is sent
    #[arg(long, value_name = "HOST", default_value = "cognito-idp.eu-central-1.amazonaws.com")]
    peer_host: String,
    /// Where the fake Cognito of the rounds listens, on loopback; a free port if not given
    #[arg(long, value_name = "ADDRESS")]
    upstream: Option<std::net::SocketAddr>,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',', default_values = ["rounds", "starts", "burst", "growth"])]
    only: Vec<Part>,
    /// Where to draw how the cost grows
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// More flags for the sidecar, such as --worker-threads=2
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    sidecar_flag: Vec<String>,
    /// Given by cargo; says nothing
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU and latency beside the bare SDK.
    Rounds,
    /// A fresh process: memory, first answer, first call over TLS.
    Starts,
    /// 10,000 calls at once.
    Burst,
    /// Calls in flight, pools, regions, connections.
    Growth,
}

/// What this program is when it has started itself.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// The fake Cognito
    #[command(hide = true)]
    Cognito(cognito::CognitoArgs),
    /// A service that calls the SDK itself
    #[command(hide = true)]
    Bare,
}

/// Longer than anything here takes that goes well.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let Cli { options, role } = Cli::parse();
    match role {
        Some(Role::Cognito(args)) => cognito::run(args),
        Some(Role::Bare) => bare::run(),
        None => figures::run(&options),
    }
}
