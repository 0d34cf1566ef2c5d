//! What carries spans to the collector.

use std::{fs, path::Path};

use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
    WithTonicConfig as _,
};
use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::http::HttpClient;
use crate::config::{Otlp, OtlpProtocol};

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    #[error(transparent)]
    Build(#[from] ExporterBuildError),
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE: {0}")]
    Certificate(String),
}

/// An exporter as it was asked for. Has to be made where tasks can be spawned.
pub(super) fn exporter(asked: Otlp) -> Result<SpanExporter, ExportError> {
    let Otlp { protocol, encrypted, certificate, timeout } = asked;
    let trusted = match &certificate {
        Some(path) => Some(read(path).map_err(ExportError::Certificate)?),
        None => None,
    };
    let exporter = match protocol {
        OtlpProtocol::Grpc => {
            let builder = SpanExporter::builder().with_tonic().with_timeout(timeout);
            // Without a word from us it would trust nobody.
            let tls = encrypted.then(|| match trusted {
                Some((pem, _)) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_enabled_roots(),
            });
            match tls {
                Some(tls) => builder.with_tls_config(tls).build()?,
                None => builder.build()?,
            }
        }
        OtlpProtocol::HttpProtobuf => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(HttpClient::new(trusted.map(|(_, roots)| roots), timeout))
            .with_timeout(timeout)
            .build()?,
    };
    Ok(exporter)
}

/// What is in a file of certificates, as it is and as it is understood.
fn read(path: &Path) -> Result<(Vec<u8>, RootCertStore), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let pem = fs::read(path).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"no certificate in PEM"));
    }
    Ok((pem, roots))
}
