//! Whether OpenTelemetry's own variables ask for traces, and by what. What is not here its SDK reads by itself.

use std::{path::PathBuf, time::Duration};

use super::serve::read;

/// OpenTelemetry's default for one export.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the variables of OpenTelemetry ask for traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TracesAsked {
    /// They do not.
    No,
    /// By OTLP.
    ByOtlp(Otlp),
    /// By something that is not built in.
    ByOther {
        /// What.
        protocol: String,
    },
}

/// How traces are exported by OTLP. Endpoint and headers are the SDK's to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// Over what.
    pub protocol: OtlpProtocol,
    /// Whether the collector is reached by TLS.
    pub encrypted: bool,
    /// The only authorities that vouch for the collector, a file in PEM; without it those of the system.
    pub certificate: Option<PathBuf>,
    /// Longest that one request may take.
    pub timeout: Duration,
}

/// What carries OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    HttpProtobuf,
}

impl OtlpProtocol {
    /// As the variables call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        }
    }
}

impl TracesAsked {
    /// What the environment says.
    pub fn by_environment() -> Self {
        Self::by(read)
    }

    fn by(read: impl Fn(&str) -> Option<String>) -> Self {
        let disabled = read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let asked = match read("OTEL_TRACES_EXPORTER").as_deref() {
            Some("otlp") => true,
            Some(_) => false,
            None => ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
                .iter()
                .any(|name| read(name).is_some()),
        };
        if disabled || !asked {
            return Self::No;
        }
        // What is said of traces goes before what is said of everything.
        let option = |name: &str| {
            read(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| read(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let protocol = match option("PROTOCOL").as_deref() {
            None | Some("grpc") => OtlpProtocol::Grpc,
            Some("http/protobuf") => OtlpProtocol::HttpProtobuf,
            Some(other) => return Self::ByOther { protocol: other.to_owned() },
        };
        Self::ByOtlp(Otlp {
            protocol,
            // An endpoint without a scheme is one of TLS, and the default is one without.
            encrypted: option("ENDPOINT").is_some_and(|endpoint| {
                endpoint.split_once("://").is_none_or(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
            }),
            certificate: option("CERTIFICATE").map(PathBuf::from),
            timeout: option("TIMEOUT")
                .and_then(|millis| millis.parse().ok())
                .map_or(TIMEOUT, Duration::from_millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(variables: &[(&str, &str)]) -> TracesAsked {
        TracesAsked::by(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    const GRPC: Otlp =
        Otlp { protocol: OtlpProtocol::Grpc, encrypted: false, certificate: None, timeout: TIMEOUT };

    #[test]
    fn traces_are_asked_for_by_the_standard_variables() {
        let by_grpc = TracesAsked::ByOtlp(GRPC);
        assert_eq!(asked(&[]), TracesAsked::No);
        assert_eq!(asked(&[ENDPOINT]), by_grpc);
        assert_eq!(asked(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x:1")]), by_grpc);
        assert_eq!(asked(&[("OTEL_TRACES_EXPORTER", "otlp")]), by_grpc);
        assert_eq!(asked(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), TracesAsked::No);
        assert_eq!(asked(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]), TracesAsked::No);
        let json = asked(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        assert_eq!(json, TracesAsked::ByOther { protocol: "http/json".to_owned() });
    }

    #[test]
    fn what_is_said_of_traces_goes_before_what_is_said_of_everything() {
        let general = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/a"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ];
        let by_http = Otlp {
            protocol: OtlpProtocol::HttpProtobuf,
            encrypted: false,
            certificate: Some("/a".into()),
            timeout: Duration::from_millis(1500),
        };
        assert_eq!(asked(&general), TracesAsked::ByOtlp(by_http));
        let special = [
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/b"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "no number"),
        ];
        let by_grpc = Otlp { certificate: Some("/b".into()), ..GRPC };
        assert_eq!(asked(&[&general[..], &special[..]].concat()), TracesAsked::ByOtlp(by_grpc));
    }

    #[test]
    fn the_endpoint_tells_whether_it_is_one_of_tls() {
        for (endpoint, encrypted) in [
            ("http://collector:4317", false),
            ("https://collector:4317", true),
            ("HTTPS://collector", true),
            ("collector:4317", true),
            ("unix:///run/collector.sock", false),
        ] {
            let asked = asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
            assert_eq!(asked, TracesAsked::ByOtlp(Otlp { encrypted, ..GRPC }), "{endpoint}");
        }
    }
}
