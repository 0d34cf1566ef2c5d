//! The commands that are clients of a sidecar, and `check`, which stands where a sidecar will.

pub mod bulk;
pub mod check;
pub mod health;
pub mod print;
pub mod sign_out;

use std::{fs, net::IpAddr, path::Path};

use http::Uri;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::{InterceptedService, Interceptor},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::config::ClientArgs;

/// A connection that shows the caller's token with every call, if there is one.
type Connection = InterceptedService<Channel, Token>;

/// A connection to the sidecar; made when it is first used, so that a failure to make it is a status like any other. An
/// error is wrong usage, in one line.
fn channel(args: &ClientArgs) -> Result<Connection, String> {
    let ClientArgs { address, timeout, tls_ca, tls_cert, tls_key, tls_server_name, token_file } = args;
    let unix = address.starts_with("unix:");
    if unix && tls_ca.is_some() {
        return Err("there is no TLS on a unix socket; leave --tls-ca out".to_owned());
    }
    let uri = match tls_ca {
        _ if unix => address.clone(),
        None => format!("http://{address}"),
        Some(_) => format!("https://{address}"),
    };
    let not_an_address = |error: &dyn std::fmt::Display| {
        format!("--address {address} is neither HOST:PORT nor unix:/PATH: {error}")
    };
    let token = match token_file {
        None => None,
        Some(_) if tls_ca.is_none() && !unix && !is_loopback(&uri) => {
            return Err(format!(
                "--token-file: a token is not sent in plain text to {address}, which is not loopback; set --tls-ca"
            ));
        }
        Some(path) => Some(read_token(path)?),
    };
    let mut endpoint =
        Endpoint::from_shared(uri).map_err(|error| not_an_address(&error))?.connect_timeout(*timeout);
    if let Some(ca) = tls_ca {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read_certificates("--tls-ca", ca)?))
            .timeout(*timeout);
        if let (Some(certificate), Some(key)) = (tls_cert, tls_key) {
            tls = tls.identity(Identity::from_pem(
                read_certificates("--tls-cert", certificate)?,
                read_key("--tls-key", key)?,
            ));
        }
        if let Some(name) = tls_server_name {
            tls = tls.domain_name(name);
        }
        endpoint = endpoint.tls_config(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("TLS cannot be set up: {}", cause.unwrap_or_else(|| error.to_string()))
        })?;
    }
    Ok(InterceptedService::new(endpoint.connect_lazy(), Token(token)))
}

/// Whether what is sent there stays on this machine.
fn is_loopback(uri: &str) -> bool {
    let uri = uri.parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{flag} {} cannot be read: {error}", path.display()))
}

/// tonic would pass over what is no certificate, and leave the handshake to fail.
fn read_certificates(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(flag, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        _ => Err(format!("{flag} {}: no certificate in PEM", path.display())),
    }
}

fn read_key(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(flag, path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => Err(format!("{flag} {}: no private key in PEM", path.display())),
    }
}

/// The header that shows a token.
fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let contents = read("--token-file", path)?;
    let first = String::from_utf8_lossy(&contents).lines().next().map(|line| line.trim().to_owned());
    let header =
        first.filter(|token| !token.is_empty()).and_then(|token| format!("Bearer {token}").parse().ok());
    let mut header: MetadataValue<Ascii> =
        header.ok_or_else(|| format!("--token-file {}: its first line is no token", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Adds the token to every call.
#[derive(Clone)]
struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// A request with its deadline, which the sidecar obeys.
fn request<T>(message: T, args: &ClientArgs) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(args.timeout);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_this_machine() {
        for uri in ["http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:1", "http://localhost:1"] {
            assert!(is_loopback(uri), "{uri}");
        }
        for uri in [
            "http://0.0.0.0:1",
            "http://10.0.0.1:1",
            "http://localhost.example.org:1",
            "http://[::]:1",
            "x y",
        ] {
            assert!(!is_loopback(uri), "{uri}");
        }
    }
}
