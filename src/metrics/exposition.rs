//! Metrics as text, in the two dialects that are asked for.

use std::fmt::{self, Write as _};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    registry::Registry,
};

/// A dialect. The names and values of the samples are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What Prometheus asks for.
    OpenMetrics,
    /// What everything else reads, `promtool check metrics` among it: metadata goes by the name of the sample.
    Prometheus,
}

impl Format {
    /// The dialect for an `Accept` header.
    pub fn accepted_by(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn encode(ours: &Registry, process: &Registry, format: Format) -> String {
    let mut text = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    let _ = encode_openmetrics(ours, process, &mut text);
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => to_prometheus(&text),
    }
}

fn encode_openmetrics(ours: &Registry, process: &Registry, text: &mut String) -> fmt::Result {
    encode_registry(text, ours)?;
    encode_registry(text, process)?;
    encode_eof(text)
}

/// Counters and infos are named there without their suffix, which the older format takes for other metrics; units and the
/// end mark it does not know.
fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            let _ = write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
