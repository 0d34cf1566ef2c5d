//! A private certificate authority, as a test needs one: made in memory, trusted by nobody else.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// An authority that issues certificates. Two of one name are still two: neither vouches for the other's.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The certificate alone; the authority's is [`Authority::pem`].
    pub(crate) certificate: String,
    /// The key, as PKCS#8.
    pub(crate) key: String,
}

impl Authority {
    /// A new authority.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, new_key()).expect("these parameters suit an authority"))
    }

    /// Its certificate: what those who shall trust it are given.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its certificate as a store of roots, for a client made by hand.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("an authority's certificate");
        roots
    }

    /// A server at `localhost` and 127.0.0.1.
    pub(crate) fn server(&self) -> Identity {
        self.server_for(&["localhost", "127.0.0.1"])
    }

    /// A server of other names or addresses.
    pub(crate) fn server_for(&self, names: &[&str]) -> Identity {
        self.issue(server_params(names))
    }

    /// A server at `localhost` and 127.0.0.1 whose certificate is no longer valid.
    pub(crate) fn expired_server(&self) -> Identity {
        let mut params = server_params(&["localhost", "127.0.0.1"]);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.issue(params)
    }

    /// A workload, by its SPIFFE ID (`spiffe://trust-domain/path`).
    pub(crate) fn client_spiffe(&self, id: &str) -> Identity {
        self.client(SanType::URI(id.try_into().expect("a URI is ASCII")))
    }

    /// A client, by a DNS name.
    pub(crate) fn client_dns(&self, name: &str) -> Identity {
        self.client(SanType::DnsName(name.try_into().expect("a DNS name is ASCII")))
    }

    /// A client, by a DNS name, whose certificate is no longer valid.
    pub(crate) fn expired_client_dns(&self, name: &str) -> Identity {
        let name = SanType::DnsName(name.try_into().expect("a DNS name is ASCII"));
        let mut params = client_params(vec![name]);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.issue(params)
    }

    /// A client, by several URIs, as no workload of SPIFFE has them.
    pub(crate) fn client_uris(&self, uris: &[&str]) -> Identity {
        let name = |uri: &&str| SanType::URI((*uri).try_into().expect("a URI is ASCII"));
        self.issue(client_params(uris.iter().map(name).collect()))
    }

    fn client(&self, name: SanType) -> Identity {
        self.issue(client_params(vec![name]))
    }

    fn issue(&self, mut params: CertificateParams) -> Identity {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = new_key();
        let certificate = params.signed_by(&key, &self.0).expect("these parameters suit a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params
}

fn client_params(names: Vec<SanType>) -> CertificateParams {
    let mut params = named("client");
    params.subject_alt_names = names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn server_params(names: &[&str]) -> CertificateParams {
    let mut params = named("server");
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().expect("a DNS name is ASCII")),
        })
        .collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

impl Identity {
    /// Writes `{name}.crt` and `{name}.key` into `dir`, over those of an earlier one; returns their paths in that
    /// order.
    pub(crate) fn write_to(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let certificate = write_pem(dir, &format!("{name}.crt"), &self.certificate);
        let key = write_pem(dir, &format!("{name}.key"), &self.key);
        (certificate, key)
    }

    /// The TLS of a server that presents this identity and asks nobody for theirs. Offers no ALPN.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for them")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate_der()], self.key_der())
            .expect("a key that fits its certificate");
        Arc::new(config)
    }

    /// The TLS of a server that turns away whoever has no certificate of `clients`.
    pub(crate) fn server_config_requiring(&self, clients: &Authority) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients.roots()), provider())
            .build()
            .expect("there is a root");
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for them")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate_der()], self.key_der())
            .expect("a key that fits its certificate");
        Arc::new(config)
    }

    /// The certificate, for a client or server made by hand.
    pub(crate) fn certificate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM of our own making")
    }

    /// The key, for a client or server made by hand.
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM of our own making")
    }
}

/// Writes one file, for instance an authority's [`Authority::pem`], and returns its path.
pub(crate) fn write_pem(dir: &Path, name: &str, pem: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, pem).expect("the directory can be written to");
    path
}

/// Named in every config: a process default would be one more thing that tests share.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
