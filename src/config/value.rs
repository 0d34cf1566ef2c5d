//! The types that flags are parsed into.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;

use crate::{pattern::Pattern, sign_out::Region};

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

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSink {
    /// Nowhere: there is none.
    Off,
    /// Standard output.
    Stdout,
    /// A file, which is appended to.
    File(PathBuf),
}

impl FromStr for AuditSink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("write stdout, off, or the path of a file".to_owned()),
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for AuditSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What follows when the audit log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditOnFailure {
    /// Users are signed out all the same; a metric tells.
    Open,
    /// New calls are refused until it can be written.
    Closed,
}

/// A number of calls a second, perhaps of one region: `25` or `eu-central-1=50`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaRps {
    /// The region that it is about; all that are not named otherwise if there is none.
    pub region: Option<Region>,
    /// Calls a second.
    pub rps: f64,
}

impl FromStr for QuotaRps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (region, number) = match text.split_once('=') {
            Some((region, number)) => (Some(region.parse().map_err(|error| format!("{error}"))?), number),
            None => (None, text),
        };
        match number.parse() {
            Ok(rps) if (0.01..=1_000_000.0).contains(&rps) => Ok(Self { region, rps }),
            _ => {
                Err("write a number of calls a second, such as 25, or REGION=NUMBER, such as eu-central-1=25"
                    .to_owned())
            }
        }
    }
}

/// A part of a whole: `0.5` or `50%`, over 0 and up to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    match parsed {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("write a part of a whole, over 0 and up to 1, such as 0.5 or 50%".to_owned()),
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

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|_| "write a number and a unit, such as 500ms, 3s or 1m".to_owned())
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing, such as 500ms or 3s".to_owned()),
        duration => Ok(duration),
    }
}
