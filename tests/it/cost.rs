//! What a call costs, in figures that no neighbour on the machine changes; and what is done before the first one comes.

use std::{net::SocketAddr, thread, time::Duration};

use allocation_counter::AllocationInfo;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use clap::Parser as _;
use cognito_signout::{
    cognito::AwsSource,
    config::{Cli, Command},
    pb::sign_out_service_client::SignOutServiceClient,
    server::Sidecar,
    shutdown::Stop,
};
use tokio::runtime;
use tonic::transport::Channel;

use crate::{
    harness::{self, POOL, channel, request},
    observe::Scrape,
    scripted::{Gate, Reply, Scripted},
};

/// What a call may cost the whole sidecar: gRPC, our own code, the SDK, HTTP. Somewhat more than what it costs today, so
/// that an update of a dependency passes and a needless copy of each request does not. Where a new feature is worth more,
/// raise them in the commit that adds it; docs/performance.md tells how they were found.
const MOST_ALLOCATIONS: u64 = 460;
const MOST_BYTES: u64 = 70_000;
const MOST_BYTES_WAITING: u64 = 4_800;

#[tokio::test]
async fn a_call_costs_no_more_allocations_than_it_is_known_to() {
    let cognito = Scripted::start(|_, _| Reply::ok()).await;
    let (few, many) = (50, 250);
    let calls = async |client: Client, n| {
        for n in 0..n {
            sign_out(client.clone(), n).await;
        }
    };
    let cost_of_few = allocated(&cognito, &[], async |client, _| calls(client, few).await).await;
    let cost_of_many = allocated(&cognito, &[], async |client, _| calls(client, many).await).await;

    // What is left after the subtraction is of the calls, not of the start or of the connections.
    let calls = many - few;
    let allocations = (cost_of_many.count_total - cost_of_few.count_total) / calls;
    let bytes = (cost_of_many.bytes_total - cost_of_few.bytes_total) / calls;
    println!("allocations_per_call={allocations}\nallocated_bytes_per_call={bytes}");
    assert!(allocations <= MOST_ALLOCATIONS, "a call makes {allocations} allocations");
    assert!(bytes <= MOST_BYTES, "a call allocates {bytes} bytes");
    // A bound that has become far too wide holds nothing.
    assert!(allocations * 2 > MOST_ALLOCATIONS && bytes * 2 > MOST_BYTES, "{allocations}, {bytes}");
}

#[tokio::test]
async fn a_call_that_waits_holds_no_more_than_it_is_known_to() {
    let peak_with = async |calls: u64| {
        let gate = Gate::closed();
        let cognito = {
            let gate = gate.clone();
            Scripted::start(move |_, _| Reply::ok().after(&gate)).await
        };
        let load = async |client: Client, admin| {
            let mut under_way = Vec::new();
            for n in 0..calls {
                under_way.push(tokio::spawn(sign_out(client.clone(), n)));
                // One after another: what h2 keeps for frames depends on how many come at once. One is at Cognito.
                let seen = |scrape: &Scrape| {
                    let of = |name| scrape.sum(name, &[]) as u64;
                    (of("queue_waiting"), of("attempts_in_flight")) == (n, 1)
                };
                Scrape::until_at(admin, seen).await;
            }
            gate.open();
            for call in under_way {
                call.await.unwrap();
            }
        };
        allocated(&cognito, &["--max-in-flight=1", "--max-streams=200"], load).await.bytes_max
    };
    let (few, many) = (20, 180);
    let bytes = (peak_with(many).await - peak_with(few).await) / (many - few);
    println!("bytes_of_a_call_that_waits={bytes}");
    assert!(bytes <= MOST_BYTES_WAITING, "a call that waits holds {bytes} bytes");
    assert!(bytes * 2 > MOST_BYTES_WAITING, "{bytes}");
}

type Client = SignOutServiceClient<Channel>;

async fn sign_out(mut client: Client, n: u64) {
    let request = request(POOL, &format!("user-{n:03}"), harness::PATIENCE);
    client.admin_user_global_sign_out(request).await.unwrap();
}

/// What a sidecar allocates from its start to its end, with that load between, which is given a client and the address of
/// the admin listener.
async fn allocated(
    cognito: &Scripted,
    flags: &[&str],
    load: impl AsyncFnOnce(Client, SocketAddr),
) -> AllocationInfo {
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(cognito.url())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
            "key", "secret", None, None, "test",
        )))
        .build();
    let args = ["cognito-signout", "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
    let Command::Serve(args) = Cli::try_parse_from([&args, flags].concat()).unwrap().command else {
        unreachable!()
    };
    let stop = Stop::default();
    let stopped = stop.clone();
    let (addresses, bound) = tokio::sync::oneshot::channel();

    // Allocations are counted by thread, and here one thread is all of the sidecar.
    let sidecar = thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        allocation_counter::measure(|| {
            runtime.block_on(async {
                let sidecar = Sidecar::bind(*args, AwsSource::given(config)).await.unwrap();
                addresses.send((sidecar.addresses(), sidecar.admin_address())).unwrap();
                sidecar.run(stopped).await.unwrap();
            });
        })
    });
    let (addresses, admin) = bound.await.unwrap();
    load(SignOutServiceClient::new(channel(&addresses[0].to_string())), admin.unwrap()).await;
    stop.ask();
    tokio::task::spawn_blocking(move || sidecar.join().unwrap()).await.unwrap()
}

#[tokio::test]
async fn whatever_is_done_before_the_first_call_reaches_nobody() {
    let cognito = Scripted::start(|_, _| Reply::ok()).await;
    let sidecar = harness::Sidecar::at(&cognito.url()).arg("--log-level", "debug").start().await;
    sidecar.log.wait_for_message("warmed up").await;
    assert_eq!((cognito.connections(), cognito.requests().len()), (0, 0));

    sidecar.sign_out(POOL, "ada").await.unwrap();
    let users: Vec<_> = cognito.requests().iter().map(|request| request.username()).collect();
    assert_eq!(users, ["ada"]);
}

#[tokio::test]
async fn calls_are_served_by_one_thread_or_by_several() {
    let cognito = Scripted::start(|_, _| Reply::ok()).await;
    for threads in [1, 2] {
        let sidecar = harness::Sidecar::at(&cognito.url()).arg("--worker-threads", threads).start().await;
        sidecar.sign_out_within(POOL, "ada", Duration::from_secs(10)).await.unwrap();
        let named = std::fs::read_dir(format!("/proc/{}/task", sidecar.pid())).unwrap().filter(|task| {
            let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap();
            name.starts_with("tokio-rt-worker")
        });
        // Workers are not told from the threads for what blocks, of which entropy is gathered by one.
        assert!(if threads == 1 { named.count() <= 1 } else { named.count() >= 2 });
    }
}
