//! Health and reflection, as probes and tools ask for them.

use tokio_stream::StreamExt as _;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{PATIENCE, Sidecar, channel};

const SERVICE: &str = "cognito.signout.v1.SignOutService";

#[tokio::test]
async fn both_listeners_tell_the_health_and_the_admin_one_speaks_http_too() {
    let sidecar = Sidecar::before_nothing().start().await;
    for address in [sidecar.address().to_owned(), sidecar.admin().to_string()] {
        for service in ["", SERVICE] {
            sidecar.wait_for_health_at(&address, service, ServingStatus::Serving).await;
        }
        let unknown = HealthCheckRequest { service: "nonsense".to_owned() };
        let status = HealthClient::new(channel(&address)).check(unknown).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound);
    }
    assert_eq!(sidecar.get("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(sidecar.get("/readyz").await, (200, "ready\n".to_owned()));
    for nothing in ["/", "/env", "/config", "/debug"] {
        assert_eq!(sidecar.get(nothing).await.0, 404, "{nothing}");
    }
}

#[tokio::test]
async fn the_admin_listener_has_no_power() {
    let sidecar = Sidecar::before_nothing().start().await;
    let mut client = cognito_signout::pb::sign_out_service_client::SignOutServiceClient::new(channel(
        &sidecar.admin().to_string(),
    ));
    let request = crate::harness::request(crate::harness::POOL, "ada", PATIENCE);
    let status = client.admin_user_global_sign_out(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

#[tokio::test]
async fn reflection_lists_the_service_and_has_the_details_of_errors_in_both_versions() {
    let sidecar = Sidecar::before_nothing().start().await;

    macro_rules! ask {
        ($version:ident, $request:expr) => {{
            use $version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some($request(
                    MessageRequest::ListServices,
                    MessageRequest::FileContainingSymbol,
                )),
            };
            let mut client = ServerReflectionClient::new(sidecar.channel());
            let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
            match answers.into_inner().next().await.unwrap().unwrap().message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
                }
                MessageResponse::FileDescriptorResponse(files) => files
                    .file_descriptor_proto
                    .iter()
                    .map(|file| String::from_utf8_lossy(file).into_owned())
                    .collect(),
                other => panic!("{other:?}"),
            }
        }};
    }
    macro_rules! list {
        () => {
            |list: fn(String) -> _, _| list(String::new())
        };
    }
    macro_rules! find {
        ($symbol:expr) => {
            |_, find: fn(String) -> _| find($symbol.to_owned())
        };
    }
    for services in [ask!(v1, list!()), ask!(v1alpha, list!())] {
        for service in [SERVICE, "grpc.health.v1.Health"] {
            assert!(services.iter().any(|name| name == service), "{services:?}");
        }
    }
    for symbol in ["google.rpc.ErrorInfo", "google.rpc.RetryInfo", SERVICE] {
        let last = symbol.rsplit_once('.').unwrap().1;
        for files in [ask!(v1, find!(symbol)), ask!(v1alpha, find!(symbol))] {
            assert!(files.iter().any(|file| file.contains(last)), "{symbol}");
        }
    }
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    let sidecar = Sidecar::before_nothing().arg("--reflection", "false").start().await;
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: None };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(sidecar.channel());
    let status = client.server_reflection_info(tokio_stream::once(request)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}
