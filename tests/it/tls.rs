//! TLS: who is believed, and certificates that change while it serves.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cognito_signout::pb::{AdminUserGlobalSignOutResponse, sign_out_service_client::SignOutServiceClient};
use tempfile::{TempDir, tempdir};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, ProtocolVersion, SupportedProtocolVersion,
        pki_types::{CertificateDer, ServerName},
        version::{TLS12, TLS13},
    },
};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    certs::{Authority, Identity, provider, write_pem},
    harness::{PATIENCE, POOL, Sidecar, Starter, reason, request, run, text},
    scripted::{Reply, Scripted},
};

/// Certificates as Kubernetes mounts them: `tls.crt` is a link into `..data`, and that a link to a directory that is
/// replaced as a whole.
struct Mounted {
    dir: TempDir,
    versions: std::cell::Cell<u32>,
}

impl Mounted {
    fn new(server: &Identity, clients: &Authority) -> Self {
        let mounted = Self { dir: tempdir().unwrap(), versions: std::cell::Cell::new(0) };
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), mounted.dir.path().join(name)).unwrap();
        }
        mounted.swap(&server.certificate, &server.key, &clients.pem());
        mounted
    }

    fn swap(&self, certificate: &str, key: &str, ca: &str) {
        self.versions.set(self.versions.get() + 1);
        let version = format!("..version{}", self.versions.get());
        let directory = self.dir.path().join(&version);
        fs::create_dir(&directory).unwrap();
        for (name, contents) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", ca)] {
            fs::write(directory.join(name), contents).unwrap();
        }
        symlink(&version, self.dir.path().join("..new")).unwrap();
        fs::rename(self.dir.path().join("..new"), self.dir.path().join("..data")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn starter(&self, upstream: &Scripted) -> Starter {
        Sidecar::at(&upstream.url())
            .arg("--tls-cert", self.path("tls.crt").display())
            .arg("--tls-key", self.path("tls.key").display())
            .arg("--tls-client-ca", self.path("ca.crt").display())
            .arg("--reload-interval", "20ms")
    }
}

async fn cognito() -> Scripted {
    Scripted::start(|_, _| Reply::ok()).await
}

fn connect(address: &str, trust: &Authority, identity: Option<&Identity>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trust.pem()));
    if let Some(identity) = identity {
        tls = tls.identity(tonic::transport::Identity::from_pem(&identity.certificate, &identity.key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect_lazy()
}

async fn sign_out(channel: &Channel, pool: &str) -> Result<AdminUserGlobalSignOutResponse, Status> {
    let mut client = SignOutServiceClient::new(channel.clone());
    client.admin_user_global_sign_out(request(pool, "ada", PATIENCE)).await.map(tonic::Response::into_inner)
}

/// A handshake by hand.
async fn handshake(
    address: &str,
    trust: &Authority,
    version: &'static SupportedProtocolVersion,
    alpn: &[u8],
    identity: Option<&Identity>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(trust.roots());
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            config.with_client_auth_cert(vec![identity.certificate_der()], identity.key_der()).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

/// The certificate that is shown to whoever comes now.
async fn shown(address: &str, trust: &Authority) -> CertificateDer<'static> {
    let stream = handshake(address, trust, &TLS13, b"h2", None).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn workloads_are_known_by_spiffe_id_and_dns_name() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let mounted = Mounted::new(&ours.server(), &ours);
    let policy = mounted.path("policy.toml");
    fs::write(
        &policy,
        r#"
        [[callers]]
        name = "web"
        spiffe = ["spiffe://example.org/ns/shop/sa/web"]
        pools = ["eu-central-1_*"]

        [[callers]]
        name = "jobs"
        spiffe = ["spiffe://example.org/ns/jobs/*"]
        dns = ["worker-*"]
        pools = ["*"]
        "#,
    )
    .unwrap();
    let sidecar = mounted.starter(&upstream).arg("--policy", policy.display()).start().await;
    let call = async |identity: Option<&Identity>, pool: &str| {
        sign_out(&connect(sidecar.address(), &ours, identity), pool).await.map_err(|status| reason(&status))
    };
    let web = ours.client_spiffe("spiffe://example.org/ns/shop/sa/web");

    call(Some(&web), POOL).await.unwrap();
    assert_eq!(sidecar.log.wait_for_message("signed out").await["caller"], "web");
    assert_eq!(call(Some(&web), "us-east-1_A").await.unwrap_err(), "CALLER_NOT_ALLOWED");
    for identity in [
        ours.client_spiffe("spiffe://example.org/ns/jobs/sa/night"),
        ours.client_dns("worker-7.example.org"),
        ours.client_dns("WORKER-8.example.org"),
    ] {
        call(Some(&identity), "us-east-1_A").await.unwrap();
    }
    for identity in [
        ours.client_spiffe("spiffe://example.org/ns/shop/sa/web/more"),
        ours.client_spiffe("https://example.org/ns/jobs/x"),
        // Two URIs: which of them would it be?
        ours.client_uris(&["spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/jobs/x"]),
        ours.client_dns("web.example.org"),
    ] {
        assert_eq!(call(Some(&identity), POOL).await.unwrap_err(), "CALLER_UNAUTHENTICATED");
    }
    assert_eq!(call(None, POOL).await.unwrap_err(), "CALLER_UNAUTHENTICATED");
    // Health needs no identity, so a client without a certificate comes that far.
    let ask = HealthCheckRequest { service: String::new() };
    HealthClient::new(connect(sidecar.address(), &ours, None)).check(ask).await.unwrap();

    // Those whom the authority does not vouch for do not.
    let theirs = Authority::new("theirs").client_spiffe("spiffe://example.org/ns/shop/sa/web");
    for (identity, why) in
        [(theirs, "UnknownCA"), (ours.expired_client_dns("worker-7"), "CertificateExpired")]
    {
        sign_out(&connect(sidecar.address(), &ours, Some(&identity)), POOL).await.unwrap_err();
        // In TLS 1.2 a client is told in the handshake.
        let error = handshake(sidecar.address(), &ours, &TLS12, b"h2", Some(&identity)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    sidecar.log.wait_for_message("a TLS handshake failed").await;
    assert_eq!(upstream.requests().len(), 4);
}

#[tokio::test]
async fn without_a_policy_every_certificate_of_the_authority_will_do_and_none_will_not() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let mounted = Mounted::new(&ours.server(), &ours);
    let sidecar = mounted.starter(&upstream).start().await;
    let web = ours.client_spiffe("spiffe://example.org/web");

    sign_out(&connect(sidecar.address(), &ours, Some(&web)), POOL).await.unwrap();
    assert_eq!(sidecar.log.wait_for_message("signed out").await["caller"], "spiffe://example.org/web");
    let status = sign_out(&connect(sidecar.address(), &ours, None), POOL).await.unwrap_err();
    assert_eq!(reason(&status), "CALLER_UNAUTHENTICATED");
    assert!(status.message().contains("without a client certificate"), "{status:?}");
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_with_http_2_and_nothing_else() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let mounted = Mounted::new(&ours.server(), &ours);
    let sidecar = mounted.starter(&upstream).start().await;
    for (version, name) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let stream = handshake(sidecar.address(), &ours, version, b"h2", None).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(name));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        handshake(sidecar.address(), &ours, version, b"http/1.1", None).await.unwrap_err();
    }
    // Plain text gets nothing.
    sidecar.sign_out(POOL, "ada").await.unwrap_err();
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn peers_that_say_nothing_in_their_handshakes_hold_nobody_up() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let mounted = Mounted::new(&ours.server(), &ours);
    let sidecar = mounted.starter(&upstream).start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(sidecar.address()).await.unwrap());
    }

    let web = ours.client_dns("web");
    sign_out(&connect(sidecar.address(), &ours, Some(&web)), POOL).await.unwrap();

    // And they are not waited for for ever.
    let read = timeout(PATIENCE, silent[0].read_u8()).await.expect("it was never cut off");
    read.unwrap_err();
}

#[tokio::test]
async fn certificates_are_rotated_under_load_with_no_failed_call() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let (first, second) = (ours.server(), ours.server());
    let mounted = Mounted::new(&first, &ours);
    let sidecar = mounted.starter(&upstream).start().await;
    let web = ours.client_dns("web");
    assert_eq!(shown(sidecar.address(), &ours).await, first.certificate_der());

    // Callers that keep their connection, and callers that make one for every call.
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..6)
        .map(|n| {
            let kept = connect(sidecar.address(), &ours, Some(&web));
            let (address, stop, done) = (sidecar.address().to_owned(), stop.clone(), done.clone());
            let (ca, web) = (ours.pem(), web.clone());
            tokio::spawn(async move {
                let fresh = || {
                    let identity = tonic::transport::Identity::from_pem(&web.certificate, &web.key);
                    let tls =
                        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).identity(identity);
                    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
                    endpoint.tls_config(tls).unwrap().connect_lazy()
                };
                while !stop.load(Ordering::Relaxed) {
                    let channel = if n % 2 == 0 { kept.clone() } else { fresh() };
                    sign_out(&channel, POOL).await.expect("no call fails");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let under_way = async |more: u64| {
        let target = done.load(Ordering::Relaxed) + more;
        while done.load(Ordering::Relaxed) < target {
            assert!(callers.iter().all(|caller| !caller.is_finished()), "a call failed");
            tokio::task::yield_now().await;
        }
    };

    timeout(PATIENCE, under_way(50)).await.unwrap();
    mounted.swap(&second.certificate, &second.key, &ours.pem());
    sidecar.log.wait_for_message("certificates loaded anew").await;
    assert_eq!(shown(sidecar.address(), &ours).await, second.certificate_der());
    timeout(PATIENCE, under_way(50)).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn a_broken_certificate_keeps_the_old_one_in_use() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let (first, second) = (ours.server(), ours.server());
    let mounted = Mounted::new(&first, &ours);
    let sidecar = mounted.starter(&upstream).start().await;

    for (n, (certificate, key, ca, why)) in [
        ("garbage", second.key.as_str(), ours.pem(), "no certificate in PEM"),
        (second.certificate.as_str(), "garbage", ours.pem(), "no private key in PEM"),
        (second.certificate.as_str(), first.key.as_str(), ours.pem(), "do not go together"),
        (second.certificate.as_str(), second.key.as_str(), String::new(), "--tls-client-ca"),
    ]
    .into_iter()
    .enumerate()
    {
        mounted.swap(certificate, key, &ca);
        let warning = sidecar.log.wait_for(|line| line["failures"] == n + 1).await;
        assert_eq!(warning["level"], "WARN");
        assert!(warning["error"].as_str().unwrap().contains(why), "{warning}");
        assert_eq!(shown(sidecar.address(), &ours).await, first.certificate_der());
    }

    mounted.swap(&second.certificate, &second.key, &ours.pem());
    sidecar.log.wait_for_message("certificates loaded anew").await;
    assert_eq!(shown(sidecar.address(), &ours).await, second.certificate_der());
}

#[tokio::test]
async fn another_authority_for_clients_counts_from_the_next_connection_on() {
    let upstream = cognito().await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server = old.server();
    let mounted = Mounted::new(&server, &old);
    let sidecar = mounted.starter(&upstream).start().await;
    let (by_old, by_new) = (old.client_dns("web"), new.client_dns("web"));
    let kept = connect(sidecar.address(), &old, Some(&by_old));
    sign_out(&kept, POOL).await.unwrap();
    sign_out(&connect(sidecar.address(), &old, Some(&by_new)), POOL).await.unwrap_err();

    mounted.swap(&server.certificate, &server.key, &new.pem());
    sidecar.log.wait_for_message("certificates loaded anew").await;

    sign_out(&kept, POOL).await.unwrap();
    sign_out(&connect(sidecar.address(), &old, Some(&by_new)), POOL).await.unwrap();
    sign_out(&connect(sidecar.address(), &old, Some(&by_old)), POOL).await.unwrap_err();
}

#[test]
fn what_is_wrong_with_the_files_ends_the_start_in_one_line() {
    let dir = tempdir().unwrap();
    let ours = Authority::new("ours");
    let (certificate, key) = ours.server().write_to(dir.path(), "one");
    let (_, other_key) = ours.server().write_to(dir.path(), "two");
    let garbage = write_pem(dir.path(), "garbage", "garbage");
    let gone = Path::new("/nonexistent");
    for (certificate, key, ca, told) in [
        (&*certificate, &*other_key, None, "do not go together"),
        (&garbage, &key, None, "no certificate in PEM"),
        (&certificate, &garbage, None, "no private key in PEM"),
        (&certificate, gone, None, "/nonexistent cannot be read"),
        (&certificate, &key, Some(&*garbage), "--tls-client-ca"),
    ] {
        let mut args = vec!["serve".to_owned(), "--listen=127.0.0.1:0".to_owned()];
        args.push(format!("--tls-cert={}", certificate.display()));
        args.push(format!("--tls-key={}", key.display()));
        args.extend(ca.map(|ca| format!("--tls-client-ca={}", ca.display())));
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
        assert!(line.contains(told), "{line}");
    }
}

#[tokio::test]
async fn our_clients_speak_tls_with_a_certificate_or_a_token() {
    let upstream = cognito().await;
    let ours = Authority::new("ours");
    let mounted = Mounted::new(&ours.server_for(&["sidecar.example.org"]), &ours);
    let token = write_pem(mounted.dir.path(), "token", "0123456789abcdef\n");
    let policy = write_pem(
        mounted.dir.path(),
        "policy.toml",
        "[[callers]]\nname = \"a\"\ndns = [\"web\"]\ntoken_files = [\"token\"]\npools = [\"*\"]",
    );
    let sidecar = mounted.starter(&upstream).arg("--policy", policy.display()).start().await;
    let (certificate, key) = ours.client_dns("web").write_to(mounted.dir.path(), "client");
    let (ca, token) = (mounted.path("ca.crt"), token.to_str().unwrap());
    let ca = ca.to_str().unwrap();
    let client = |args: &[&str], more: &[&str]| {
        let tls = ["--address", sidecar.address(), "--tls-ca", ca];
        let output = run(&[args, &tls[..], more].concat(), &[]);
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    let sign_out = ["sign-out", "--user-pool-id", POOL, "--username", "ada"];
    let named = "--tls-server-name=sidecar.example.org";

    assert_eq!(client(&["health"], &[named]).0, 0);
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let (code, told) = client(&sign_out, &[named, "--tls-cert", certificate, "--tls-key", key]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = client(&sign_out, &[named, "--token-file", token]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = client(&sign_out, &[named]);
    assert!(code == 64 + 16 && told.contains("CALLER_UNAUTHENTICATED"), "{told}");
    let (code, told) = client(&sign_out, &["--timeout=3s"]);
    assert!(code == 64 + 14, "the name in the certificate is another: {told}");
    assert_eq!(upstream.requests().len(), 2);
}
