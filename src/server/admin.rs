//! `/livez`, `/readyz`, `/metrics` and gRPC health for probes, on one port and in plain text. Nothing secret or powerful
//! is here.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

use super::{
    connections::{Connections, Protocols},
    intake::Rules,
    listen::{Accepted, Io},
};
use crate::{
    config::ConnectionArgs,
    metrics::{Format, Metrics},
};

/// What peers of this listener may do: probes come and go, and need little.
pub(super) fn limits(api: &ConnectionArgs) -> ConnectionArgs {
    ConnectionArgs { max_connections: 256, max_streams: 64, ..api.clone() }
}

/// Serves for as long as the process lives, draining included. `ready` is the health of the process.
pub(super) async fn serve(
    accepted: mpsc::Receiver<Accepted<Io>>,
    connections: Connections,
    metrics: Arc<Metrics>,
    health: HealthServer<HealthService>,
    ready: watch::Receiver<bool>,
) {
    let mut routes = Routes::new(health);
    let readyz = move || {
        let answer = if *ready.borrow() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        };
        async move { answer }
    };
    let metrics = move |headers: HeaderMap| {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::accepted_by(accept);
        let answer = ([(CONTENT_TYPE, format.content_type())], metrics.encode(format));
        async move { answer }
    };
    let router = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = router
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(unknown);
    let server = connections.server(Protocols::Http1AndHttp2);
    // Nothing closes it but the end of the process. A sign-out is asked for here by mistake only.
    let never = CancellationToken::new();
    let rules = Rules::new(64, Duration::from_secs(1), never.clone(), None);
    connections.serve(accepted, server, routes.prepare(), rules, never).await;
}

/// What is not there, in the words of whoever asks.
async fn unknown(headers: HeaderMap) -> Response {
    let is_grpc =
        headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        let status =
            Status::unimplemented("only grpc.health.v1 is served here; sign-outs are on the API listener");
        return status.into_http();
    }
    (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics here, and grpc.health.v1\n")
        .into_response()
}
