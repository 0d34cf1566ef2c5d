//! Where it listens: unix sockets, and addresses that the network can reach.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tempfile::{TempDir, tempdir};

use crate::{
    certs::{Authority, write_pem},
    harness::{POOL, Sidecar, Starter, channel, path_in, run, text},
    scripted::{Reply, Scripted},
};

fn at_socket(upstream: &Scripted, path: &str) -> Starter {
    Sidecar::at(&upstream.url()).arg("--listen", format!("unix:{path}"))
}

async fn cognito() -> Scripted {
    Scripted::start(|_, _| Reply::ok()).await
}

/// What `serve` says when it does not start.
fn refused(args: &[&str]) -> String {
    let args = [&["serve", "--admin-listen=127.0.0.1:0"], args].concat();
    let output = run(&args, &[]);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    let line = text(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Looks at a path without a pause until told to stop; what it saw there, as mode and group.
fn watch(path: PathBuf, stop: Arc<AtomicBool>) -> thread::JoinHandle<BTreeSet<(u32, u32)>> {
    thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok(metadata) = fs::symlink_metadata(&path) {
                seen.insert((metadata.mode() & 0o7777, metadata.gid()));
            }
        }
        seen
    })
}

#[tokio::test]
async fn a_socket_has_its_final_mode_and_group_from_the_first_moment() {
    let upstream = cognito().await;
    let dir = tempdir().unwrap();
    let path = path_in(&dir, "api.sock");
    // Only root may give a file to a group that it is not in.
    let own = fs::metadata(dir.path()).unwrap();
    let group = if own.uid() == 0 { 4711 } else { own.gid() };
    let stop = Arc::new(AtomicBool::new(false));
    let watched = watch(path.clone().into(), stop.clone());

    let starter = at_socket(&upstream, &path).arg("--socket-mode", "0606").arg("--socket-group", group);
    let sidecar = starter.start().await;
    sidecar.sign_out(POOL, "ada").await.unwrap();

    stop.store(true, Ordering::Relaxed);
    assert_eq!(watched.join().unwrap(), BTreeSet::from([(0o606, group)]));
    assert_eq!(names_in(&dir), ["api.sock"]);
}

#[tokio::test]
async fn a_socket_is_for_the_user_and_the_group_unless_told_otherwise() {
    let upstream = cognito().await;
    let dir = tempdir().unwrap();
    let path = path_in(&dir, "api.sock");
    let _sidecar = at_socket(&upstream, &path).start().await;
    assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o660);
}

#[tokio::test]
async fn the_file_of_a_dead_process_is_replaced_and_that_of_a_live_one_is_not() {
    let upstream = cognito().await;
    let dir = tempdir().unwrap();
    let path = path_in(&dir, "api.sock");
    let killed = at_socket(&upstream, &path).start().await;
    killed.signal("KILL");
    killed.ended().await;
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "it had no time to tidy up");

    let alive = at_socket(&upstream, &path).start().await;
    alive.sign_out(POOL, "ada").await.unwrap();

    let line = refused(&["--listen", &format!("unix:{path}")]);
    assert!(line.contains(&path) && line.contains("alive") && line.contains("--listen"), "{line}");
    alive.sign_out(POOL, "ada").await.unwrap();

    alive.signal("TERM");
    assert!(alive.ended().await.0.success());
    assert!(names_in(&dir).is_empty(), "it is removed on the way out");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempdir().unwrap();
    let path = path_in(&dir, "api.sock");
    fs::write(&path, "precious").unwrap();
    let line = refused(&["--listen", &format!("unix:{path}")]);
    assert!(line.contains("no socket"), "{line}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(names_in(&dir), ["api.sock"]);

    let line = refused(&["--listen", "unix:/nonexistent/api.sock"]);
    assert!(line.contains("/nonexistent/api.sock") && line.contains("No such file"), "{line}");
    let line = refused(&["--listen", &format!("unix:{path}2"), "--socket-group", "nobody-has-this"]);
    assert!(line.contains("nobody-has-this") && line.contains("--socket-group"), "{line}");
    assert_eq!(names_in(&dir), ["api.sock"]);
}

#[tokio::test]
async fn tcp_and_unix_sockets_are_served_at_once() {
    let upstream = cognito().await;
    let dir = tempdir().unwrap();
    let (one, two) = (path_in(&dir, "one.sock"), path_in(&dir, "two.sock"));
    let starter = Sidecar::at(&upstream.url()).arg("--listen", format!("127.0.0.1:0,unix:{one}"));
    let sidecar = starter.arg("--listen", format!("unix:{two}")).start().await;
    assert_eq!(sidecar.addresses().len(), 3);
    for address in sidecar.addresses() {
        let mut client =
            cognito_signout::pb::sign_out_service_client::SignOutServiceClient::new(channel(address));
        let request = crate::harness::request(POOL, "ada", crate::harness::PATIENCE);
        client.admin_user_global_sign_out(request).await.unwrap();
    }
}

/// A policy with one caller, known as told.
fn policy(dir: &Path, known: &str) -> String {
    let path = dir.join("policy.toml");
    fs::write(&path, format!("[[callers]]\nname = \"a\"\n{known}\npools = [\"*\"]\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_network_is_listened_to_only_with_tls_and_callers_that_identify_themselves() {
    let dir = tempdir().unwrap();
    let authority = Authority::new("ours");
    let (certificate, key) = authority.server().write_to(dir.path(), "server");
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let ca = write_pem(dir.path(), "ca.crt", &authority.pem());
    let by_uid = policy(dir.path(), "uid = [1]");

    let tls = ["--tls-cert", certificate, "--tls-key", key];
    let plain = "TLS (--tls-cert and --tls-key)";
    let anonymous = "--tls-client-ca, or --policy with tokens";
    for address in ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:50051", "[::ffff:192.0.2.1]:50051"] {
        let line = refused(&["--listen", address]);
        for told in [address, plain, anonymous, "127.0.0.1", "unix:/PATH", "--insecure-listen"] {
            assert!(line.contains(told), "{line}");
        }
    }
    let line = refused(&[&["--listen=127.0.0.1:0,0.0.0.0:50051"], &tls[..]].concat());
    assert!(!line.contains(plain) && line.contains(anonymous), "{line}");
    let line = refused(&[&["--listen=0.0.0.0:50051", "--policy", &by_uid], &tls[..]].concat());
    assert!(!line.contains(plain) && line.contains(anonymous), "{line}");
    let by_token = policy(dir.path(), &format!("token_sha256 = [\"{}\"]", "0".repeat(64)));
    let line = refused(&["--listen=0.0.0.0:50051", "--policy", &by_token]);
    assert!(line.contains(plain) && !line.contains(anonymous), "{line}");
    let line = refused(&["--listen=0.0.0.0:50051", "--tls-client-ca", ca.to_str().unwrap()]);
    assert!(line.contains("--tls-client-ca needs --tls-cert"), "{line}");
}

#[tokio::test]
async fn the_network_is_listened_to_with_all_that_or_against_better_advice() {
    let dir = tempdir().unwrap();
    let authority = Authority::new("ours");
    let (certificate, key) = authority.server().write_to(dir.path(), "server");
    let ca = write_pem(dir.path(), "ca.crt", &authority.pem());
    let by_token = policy(dir.path(), &format!("token_sha256 = [\"{}\"]", "0".repeat(64)));
    let secured = || {
        let starter = Sidecar::before_nothing().arg("--listen", "0.0.0.0:0");
        starter.arg("--tls-cert", certificate.display()).arg("--tls-key", key.display())
    };
    for starter in [secured().arg("--tls-client-ca", ca.display()), secured().arg("--policy", &by_token)] {
        let sidecar = starter.start().await;
        assert!(!sidecar.log.text().contains("WARN"), "{}", sidecar.log.text());
    }

    let insecure = || Sidecar::before_nothing().arg("--listen", "0.0.0.0:0").flag("--insecure-listen");
    for (starter, told) in [
        (insecure(), "everybody who reaches this address can sign users out"),
        (insecure().arg("--policy", &by_token), "without TLS"),
    ] {
        let sidecar = starter.start().await;
        let warning = sidecar.log.wait_for_message("--insecure-listen").await;
        assert_eq!(warning["level"], "WARN");
        assert!(warning["message"].as_str().unwrap().contains(told), "{warning}");
    }
}

fn names_in(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
