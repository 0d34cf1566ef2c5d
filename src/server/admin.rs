//! `/livez`, `/readyz` and gRPC health for probes, on one port and in plain text. Nothing secret or powerful is here.

use std::io;

use axum::{http::StatusCode, routing::get};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    service::Routes,
    transport::{Error, Server},
};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

use super::listen::Io;

/// Serves for as long as the process lives, draining included. `ready` is the health of the process.
pub(super) async fn serve(
    connections: ReceiverStream<io::Result<Io>>,
    health: HealthServer<HealthService>,
    ready: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut routes = Routes::new(health);
    let readyz = move || {
        let answer = if *ready.borrow() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        };
        async move { answer }
    };
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router.route("/livez", get(async || "alive\n")).route("/readyz", get(readyz));
    Server::builder().accept_http1(true).add_routes(routes).serve_with_incoming(connections).await
}
