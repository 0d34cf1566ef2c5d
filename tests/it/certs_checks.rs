//! Is the private authority believed by those who trust it, and by nobody else?

use std::{fs, io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use crate::{
    certs::{Authority, Identity, provider, write_pem},
    scripted::{Reply, Request, Scripted},
    scripted_checks::Client,
};

fn answering(_: usize, _: &Request) -> Reply {
    Reply::ok()
}

async fn dial(
    endpoint: &Scripted,
    name: &'static str,
    trust: &Authority,
    identity: Option<&Identity>,
) -> io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trust.roots());
    let config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            config.with_client_auth_cert(vec![identity.certificate_der()], identity.key_der()).unwrap()
        }
    };
    let tcp = TcpStream::connect(endpoint.addr()).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), tcp).await
}

#[tokio::test]
async fn a_server_is_known_by_name_and_by_address() {
    let authority = Authority::new("ours");
    let endpoint = Scripted::start_tls(authority.server().server_config(), answering).await;
    assert!(endpoint.url().starts_with("https://localhost:"));

    for name in ["localhost", "127.0.0.1"] {
        let mut client = Client(dial(&endpoint, name, &authority, None).await.unwrap());
        assert_eq!(client.ask("{}").await.status, 200);
        assert_eq!(client.ask("{}").await.status, 200);
    }
    assert_eq!(endpoint.connections(), 2);
}

#[tokio::test]
async fn a_stranger_an_impostor_and_an_expired_server_are_not_believed() {
    let authority = Authority::new("ours");
    let same_name = Authority::new("ours");
    let good = Scripted::start_tls(authority.server().server_config(), answering).await;
    let other = Scripted::start_tls(authority.server_for(&["example.org"]).server_config(), answering).await;
    let expired = Scripted::start_tls(authority.expired_server().server_config(), answering).await;

    for (endpoint, trust, why) in [
        (&good, &same_name, "Signature"),
        (&other, &authority, "NotValidForName"),
        (&expired, &authority, "Expired"),
    ] {
        let error = dial(endpoint, "localhost", trust, None).await.unwrap_err();
        assert!(format!("{error:?}").contains(why), "{error:?}");
    }
    assert!(good.requests().is_empty());
}

#[tokio::test]
async fn a_reset_under_tls_is_a_reset_of_the_socket() {
    let authority = Authority::new("ours");
    let endpoint = Scripted::start_tls(authority.server().server_config(), |_, _| Reply::reset()).await;
    let mut client = Client(dial(&endpoint, "localhost", &authority, None).await.unwrap());

    client.send("{}").await;

    assert_eq!(client.rest().await, Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn leaving_is_noticed_under_tls() {
    let authority = Authority::new("ours");
    let endpoint = Scripted::start_tls(authority.server().server_config(), |_, _| Reply::never()).await;
    let mut client = Client(dial(&endpoint, "localhost", &authority, None).await.unwrap());
    client.send("{}").await;
    endpoint.wait_for_requests(1).await;

    drop(client);

    endpoint.wait_for_gone(1).await;
}

#[tokio::test]
async fn clients_are_known_by_their_certificates() {
    let authority = Authority::new("ours");
    let config = authority.server().server_config_requiring(&authority);
    let endpoint = Scripted::start_tls(config, answering).await;
    let workload = authority.client_spiffe("spiffe://example.org/ns/shop/sa/web");
    let named = authority.client_dns("web.example.org");

    for identity in [&workload, &named] {
        let mut client = Client(dial(&endpoint, "localhost", &authority, Some(identity)).await.unwrap());
        assert_eq!(client.ask("{}").await.status, 200);
    }
    let has = |identity: &Identity, name: &str| {
        identity.certificate_der().windows(name.len()).any(|window| window == name.as_bytes())
    };
    assert!(has(&workload, "spiffe://example.org/ns/shop/sa/web"));
    assert!(has(&named, "web.example.org"));

    // In TLS 1.3 the client learns of a refusal only when it reads.
    let foreign = Authority::new("theirs").client_dns("web.example.org");
    for identity in [None, Some(&foreign)] {
        let mut client = Client(dial(&endpoint, "localhost", &authority, identity).await.unwrap());
        client.rest().await.unwrap_err();
    }
    assert_eq!(endpoint.requests().len(), 2);
}

#[test]
fn what_is_written_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let identity = authority.server();

    let (certificate, key) = identity.write_to(dir.path(), "server");
    let root = write_pem(dir.path(), "ca.crt", &authority.pem());

    assert_eq!(certificate, dir.path().join("server.crt"));
    assert_eq!(CertificateDer::from_pem_file(certificate).unwrap(), identity.certificate_der());
    assert_eq!(PrivateKeyDer::from_pem_file(key).unwrap(), identity.key_der());
    assert_eq!(fs::read_to_string(root).unwrap(), authority.pem());
}
