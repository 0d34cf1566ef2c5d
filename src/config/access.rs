//! The flags of `serve` that say who may reach it, and for what.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use super::value::positive;
use crate::pattern::Pattern;

/// Who may reach the sidecar, and for what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Serve TLS at every TCP address of --listen, with this certificate and its chain, in PEM
    #[arg(long, env = "COGNITO_SIGNOUT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, in PEM
    #[arg(long, env = "COGNITO_SIGNOUT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Know clients by certificates of these authorities, in PEM; without one a client can ask for health, and for the
    /// rest needs a token of the policy
    #[arg(long, env = "COGNITO_SIGNOUT_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Who may sign out users of which pools, in TOML; what it does not allow is refused
    #[arg(long, env = "COGNITO_SIGNOUT_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Serve only the pools whose id is, or begins as, PATTERN (exact or ending in one *); repeatable
    #[arg(long, env = "COGNITO_SIGNOUT_ALLOW_POOL", value_name = "PATTERN", value_delimiter = ',')]
    pub allow_pool: Vec<Pattern>,
    /// How often certificates and the policy are looked at for changes
    #[arg(
        long,
        env = "COGNITO_SIGNOUT_RELOAD_INTERVAL",
        value_name = "TIME",
        default_value = "10s",
        value_parser = positive
    )]
    pub reload_interval: Duration,
}

impl AccessArgs {
    /// Flags that need others.
    pub(super) fn validate(&self) -> Result<(), String> {
        match self {
            Self { tls_cert: Some(_), tls_key: None, .. } => Err("--tls-cert needs --tls-key".to_owned()),
            Self { tls_cert: None, tls_key: Some(_), .. } => Err("--tls-key needs --tls-cert".to_owned()),
            Self { tls_cert: None, tls_client_ca: Some(_), .. } => {
                Err("--tls-client-ca needs --tls-cert and --tls-key".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// The permission bits of a file, as chmod writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(bits) if bits <= 0o777 && !text.starts_with('+') => Ok(Self(bits)),
            _ => Err("write it as chmod does, such as 0660".to_owned()),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}
