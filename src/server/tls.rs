//! TLS: certificates, the handshake, and what a client's certificate says.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::metrics::counter::Counter;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, ServerConnection,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{NoServerSessionStorage, WebPkiClientVerifier},
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};
use webpki::EndEntityCert;

use crate::{
    policy::{CertificateNames, Peer},
    reload::Files,
};

/// Longest that a handshake may take: for a slow network it is plenty, and for a peer that says nothing it is the end.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the certificates are.
#[derive(Debug, Clone)]
pub(super) struct TlsFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// A whole configuration, or what is wrong with the files.
    pub(super) fn load(&self, files: &mut Files) -> Result<ServerConfig, String> {
        // All are read before any is judged: what has changed must be seen, whatever is wrong.
        let certificate = files.read(&self.certificate);
        let key = files.read(&self.key);
        let client_ca = self.client_ca.as_ref().map(|path| (path, files.read(path)));

        let chain = certificates(&certificate?)
            .map_err(|error| format!("--tls-cert {}: {error}", self.certificate.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&key?)
            .map_err(|error| format!("--tls-key {}: no private key in PEM: {error}", self.key.display()))?;

        // Named here: a default of the process would depend on who else has set it.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some((path, contents)) => {
                let wrong = |error: String| format!("--tls-client-ca {}: {error}", path.display());
                let mut roots = RootCertStore::empty();
                for certificate in certificates(&contents?).map_err(wrong)? {
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                // A client may come without: health needs no identity, and everything else asks for one, call by call.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| wrong(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            format!(
                "--tls-cert {} and --tls-key {} do not go together: {error}",
                self.certificate.display(),
                self.key.display()
            )
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep the client's identity without its certificate being verified again: after it
        // has expired, for instance. Connections last, so little is lost.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// At least one, and all of them sound.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| format!("not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("no certificate in PEM".to_owned());
    }
    for certificate in &certificates {
        EndEntityCert::try_from(certificate)
            .map_err(|error| format!("a certificate is malformed: {error}"))?;
    }
    Ok(certificates)
}

/// Makes TLS of TCP, each time with the certificates of that moment.
#[derive(Clone)]
pub(super) struct Acceptor {
    pub(super) config: watch::Receiver<Arc<ServerConfig>>,
    /// Counts handshakes that failed.
    pub(super) refused: Counter,
}

impl Acceptor {
    /// The handshake, and who is at the other end.
    pub(super) async fn accept(&self, tcp: TcpStream) -> io::Result<(TlsStream<TcpStream>, Peer)> {
        let config = self.config.borrow().clone();
        let handshake = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp));
        let stream = handshake.await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))?;
        let peer = Peer::Tls(names(stream.get_ref().1)?);
        Ok((stream, peer))
    }
}

/// The names in the client's certificate, which rustls has verified before.
fn names(session: &ServerConnection) -> io::Result<Option<CertificateNames>> {
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let certificate =
        EndEntityCert::try_from(certificate).map_err(|error| io::Error::other(format!("{error}")))?;
    let mut uris = certificate.valid_uri_names();
    // SPIFFE has it that a certificate with another URI beside the ID is none of its own.
    let spiffe = match (uris.next(), uris.next()) {
        (Some(only), None) if only.starts_with("spiffe://") => Some(only.to_owned()),
        _ => None,
    };
    let dns = certificate.valid_dns_names().filter(|name| !name.contains('*')).map(str::to_ascii_lowercase);
    Ok(Some(CertificateNames { spiffe, dns: dns.collect() }))
}
