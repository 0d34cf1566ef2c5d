//! Logs.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{LogArgs, LogFormat};

/// These print requests, answers and keys below info.
const NEVER_BELOW_INFO: [&str; 18] = [
    "aws_credential_types",
    "aws_runtime",
    "aws_sdk_cognitoidentityprovider",
    "aws_sdk_sso",
    "aws_sdk_ssooidc",
    "aws_sdk_sts",
    "aws_sigv4",
    "aws_smithy",
    "aws_smithy_http_client",
    "aws_smithy_runtime",
    "aws_smithy_runtime_api",
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "opentelemetry-otlp",
    "opentelemetry_sdk",
    "rustls",
];

/// Starts the logs, on stderr: text on a terminal, JSON elsewhere, unless told otherwise.
pub fn start(args: &LogArgs) {
    let LogArgs { log_format, log_level } = *args;
    let format =
        log_format.unwrap_or(if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let layer = match format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter(log_level.into()))).init();
}

fn filter(level: LevelFilter) -> Targets {
    let capped = level.min(LevelFilter::INFO);
    Targets::new()
        .with_default(level)
        .with_targets(NEVER_BELOW_INFO.map(|target| (target, capped)))
        // Its warnings print the raw answers of credential endpoints; what matters of them we tell ourselves.
        .with_target("aws_config", level.min(LevelFilter::ERROR))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_prints_secrets_stays_at_info_at_every_level() {
        let everything = filter(LevelFilter::TRACE);
        assert!(everything.would_enable("cognito_signout::service", &Level::TRACE));
        for target in ["aws_smithy_runtime::client::orchestrator", "hyper::proto", "h2::codec", "rustls::x"] {
            assert!(everything.would_enable(target, &Level::INFO), "{target}");
            assert!(!everything.would_enable(target, &Level::DEBUG), "{target}");
        }
        assert!(!everything.would_enable("aws_config::imds::client", &Level::WARN));
        assert!(!filter(LevelFilter::ERROR).would_enable("hyper::proto", &Level::INFO));
    }
}
