//! Abuse, and an honest caller beside it, who must not notice. How much it does notice, and what it costs in memory, is
//! measured by `benches/abuse.rs`.

use std::time::Duration;

use crate::{
    attacks::Attack,
    harness::{POOL, Sidecar, request},
    raw::Raw,
    scripted::{Reply, Scripted},
};

/// The honest caller's calls all succeed, over a new connection as well as over an old one.
async fn goes_unnoticed(attack: Attack, connections: usize) {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = Sidecar::at(&upstream.url()).arg("--max-connections", 64).start().await;
    let mut old = sidecar.client();
    old.admin_user_global_sign_out(request(POOL, "ada", Duration::from_secs(20))).await.unwrap();

    let peers = attack.launch(sidecar.address(), connections).await;
    for n in 0..5 {
        let name = format!("honest{n}");
        old.admin_user_global_sign_out(request(POOL, &name, Duration::from_secs(20))).await.unwrap();
        sidecar.sign_out(POOL, &name).await.unwrap();
    }

    assert!(sidecar.resident_mib() < 150.0, "{} MiB", sidecar.resident_mib());
    drop(peers);
    sidecar.sign_out(POOL, "after").await.unwrap();
}

#[tokio::test]
async fn idle_connections_many_times_the_limit() {
    goes_unnoticed(Attack::IdleConnections, 400).await;
}

#[tokio::test]
async fn rapid_resets() {
    goes_unnoticed(Attack::RapidReset, 2).await;
}

#[tokio::test]
async fn peers_that_never_read() {
    goes_unnoticed(Attack::NeverReads, 2).await;
}

#[tokio::test]
async fn one_byte_a_second() {
    goes_unnoticed(Attack::OneByteASecond, 100).await;
}

#[tokio::test]
async fn garbage() {
    goes_unnoticed(Attack::Garbage, 4).await;
}

#[tokio::test]
async fn huge_headers() {
    goes_unnoticed(Attack::HugeHeader, 16).await;
}

#[tokio::test]
async fn huge_messages() {
    goes_unnoticed(Attack::HugeMessage, 16).await;
}

#[tokio::test]
async fn slow_prefaces() {
    goes_unnoticed(Attack::SlowPreface, 200).await;
}

#[tokio::test]
async fn a_flood_of_pings() {
    goes_unnoticed(Attack::PingFlood, 4).await;
}

#[tokio::test]
async fn a_peer_that_never_reads_is_cut() {
    let sidecar = Sidecar::before_nothing().arg("--write-timeout", "300ms").start().await;
    let mut raw = Raw::connect(sidecar.address()).await;
    raw.greet().await.unwrap();
    let pings = crate::raw::frame(crate::raw::kind::PING, 0, 0, &[7; 8]).repeat(1000);

    let flood = async { while raw.send(&pings).await.is_ok() {} };

    tokio::time::timeout(crate::harness::PATIENCE, flood).await.expect("the server goes on with it");
}
