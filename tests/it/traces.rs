//! Traces: what a collector gets, and that nothing is made where none is asked for.

use std::{fs, net::SocketAddr, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};

use crate::{
    certs::{Authority, Identity, write_pem},
    harness::{PATIENCE, POOL, Sidecar, path_in, request},
    observe::{CANARY, Scrape},
    scripted::{Reply, Scripted, request_id},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An OTLP collector that keeps what it gets.
struct Collector {
    address: SocketAddr,
    got: watch::Receiver<Vec<ExportTraceServiceRequest>>,
}

struct Keep(watch::Sender<Vec<ExportTraceServiceRequest>>);

#[tonic::async_trait]
impl TraceService for Keep {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send_modify(|got| got.push(request.into_inner()));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, got) = watch::channel(Vec::new());
        let server = Server::builder().add_service(TraceServiceServer::new(Keep(sender)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, got }
    }

    async fn start_tls(identity: &Identity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, got) = watch::channel(Vec::new());
        let identity = tonic::transport::Identity::from_pem(&identity.certificate, &identity.key);
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(TraceServiceServer::new(Keep(sender)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, got }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn spans(&self) -> Vec<Span> {
        spans(&self.got.borrow())
    }

    /// Waits for so many spans.
    async fn wait_for(&self, count: usize) -> Vec<Span> {
        let mut got = self.got.clone();
        let enough = timeout(PATIENCE, got.wait_for(|got| spans(got).len() >= count)).await;
        assert!(enough.is_ok(), "{count} spans never came: {:?}", self.spans());
        self.spans()
    }

    fn resource(&self, key: &str) -> String {
        let got = self.got.borrow();
        attribute(&got[0].resource_spans[0].resource.as_ref().unwrap().attributes, key)
    }
}

fn spans(got: &[ExportTraceServiceRequest]) -> Vec<Span> {
    let resources = got.iter().flat_map(|request| &request.resource_spans);
    resources.flat_map(|spans| &spans.scope_spans).flat_map(|spans| spans.spans.clone()).collect()
}

/// The value as text; empty if there is none.
fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traced(username: &str) -> Request<cognito_signout::pb::AdminUserGlobalSignOutRequest> {
    let mut request = request(POOL, username, PATIENCE);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    request
}

/// The names of the threads of a process.
fn threads(sidecar: &Sidecar) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", sidecar.pid())).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect()
}

#[tokio::test]
async fn a_call_its_waits_and_its_attempts_are_spans_of_the_callers_trace() {
    let upstream = Scripted::start(|n, _| match n {
        0 => Reply::aws_error(500, "InternalErrorException", "later"),
        _ => Reply::ok(),
    })
    .await;
    let collector = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let audit = path_in(&dir, "audit.log");
    let sidecar = Sidecar::at(&upstream.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .arg("--audit", &audit)
        .arg("--audit-on-failure", "closed")
        .start()
        .await;
    sidecar.client().admin_user_global_sign_out(traced(CANARY)).await.unwrap();

    let spans = collector.wait_for(5).await;
    assert_eq!(spans.len(), 5, "{spans:?}");
    assert!(threads(&sidecar).contains("OpenTelemetry"), "{}", threads(&sidecar));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let call = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(hex(&call.parent_span_id), PARENT);
    assert_eq!(call.name, "cognito.signout.v1.SignOutService/AdminUserGlobalSignOut");
    assert_eq!(attribute(&call.attributes, "rpc.system.name"), "grpc");
    assert_eq!(attribute(&call.attributes, "rpc.method"), call.name);
    assert_eq!(attribute(&call.attributes, "rpc.response.status_code"), "OK");
    assert_eq!(attribute(&call.attributes, "cognito_signout.outcome"), "signed_out");
    assert_eq!(attribute(&call.attributes, "cognito_signout.attempts"), "2");

    let children: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == call.span_id).collect();
    assert_eq!(children.len(), 4);
    assert_eq!(children.iter().filter(|span| span.name == "wait for a turn").count(), 2);
    let mut attempts: Vec<&&Span> = children.iter().filter(|span| span.kind() == SpanKind::Client).collect();
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    let of = |n: usize, key: &str| attribute(&attempts[n].attributes, key);
    assert_eq!(attempts[0].name, "CognitoIdentityProvider.AdminUserGlobalSignOut");
    assert_eq!((of(0, "rpc.system.name"), of(0, "cloud.region")), ("aws-api".into(), "eu-central-1".into()));
    assert_eq!(of(0, "error.type"), "COGNITO_INTERNAL_ERROR");
    assert_eq!(of(0, "http.response.status_code"), "500");
    assert_eq!((of(1, "error.type"), of(1, "aws.request_id")), (String::new(), request_id(1)));

    assert_eq!(collector.resource("service.name"), "cognito-signout");
    assert_eq!(collector.resource("service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(collector.resource("deployment.environment.name"), "test");

    let line = sidecar.log.wait_for_message("signed out").await;
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["request_id"], attribute(&call.attributes, "cognito_signout.request_id"));
    assert!(fs::read_to_string(&audit).unwrap().contains(&format!("\"trace_id\":\"{TRACE}\"")));
    assert!(!format!("{:?}", collector.got.borrow()).contains("canary"), "a username is in the traces");
    Scrape::until(&sidecar, |scrape| scrape.sum("spans_total", &["result=\"exported\""]) == 5.0).await;
}

#[tokio::test]
async fn the_last_spans_are_exported_on_the_way_out() {
    let upstream = Scripted::start(|_, _| Reply::never()).await;
    let collector = Collector::start().await;
    let sidecar = Sidecar::at(&upstream.url())
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url())
        .env("OTEL_SERVICE_NAME", "another-name")
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
        .start()
        .await;
    let mut client = sidecar.client();
    let call =
        tokio::spawn(async move { client.admin_user_global_sign_out(request(POOL, CANARY, PATIENCE)).await });
    upstream.wait_for_requests(1).await;
    call.abort();
    let line = sidecar.log.wait_for_message("the caller went away").await;
    assert_eq!(line["trace_id"].as_str().unwrap().len(), 32, "a trace of our own");
    assert_eq!(collector.spans(), []);

    sidecar.signal("TERM");
    assert!(sidecar.ended().await.0.success());

    let spans = collector.wait_for(3).await;
    let call = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(attribute(&call.attributes, "rpc.response.status_code"), "CANCELLED");
    assert_eq!(attribute(&call.attributes, "cognito_signout.outcome"), "unknown");
    assert_eq!(hex(&call.trace_id), line["trace_id"].as_str().unwrap());
    assert_eq!(collector.resource("service.name"), "another-name");
}

#[tokio::test]
async fn without_the_variables_there_is_no_exporter_and_the_callers_trace_is_still_logged() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let collector = Collector::start().await;
    for variables in
        [vec![], vec![("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_SDK_DISABLED", "true".into())]]
    {
        let starter =
            variables.iter().fold(Sidecar::at(&upstream.url()), |it, (name, value)| it.env(name, value));
        let sidecar = starter.start().await;
        sidecar.client().admin_user_global_sign_out(traced(CANARY)).await.unwrap();
        let line = sidecar.log.wait_for_message("signed out").await;
        assert_eq!(line["trace_id"], TRACE);
        sidecar.sign_out(POOL, CANARY).await.unwrap();
        sidecar.log.wait_for(|line| line["message"] == "signed out" && line["trace_id"].is_null()).await;
        assert!(!threads(&sidecar).contains("OpenTelemetry"), "{}", threads(&sidecar));
        assert!(!Scrape::of(&sidecar).await.has("spans_total"));
        sidecar.signal("TERM");
        sidecar.ended().await;
    }
    assert_eq!(collector.spans(), []);
}

#[tokio::test]
async fn the_sampler_is_obeyed_and_trouble_with_the_collector_is_not_the_callers() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let collector = Collector::start().await;
    let sidecar = Sidecar::at(&upstream.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_TRACES_SAMPLER", "always_off")
        .start()
        .await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.0.success());
    assert_eq!(collector.spans(), []);

    // Nobody listens there.
    let sidecar = Sidecar::at(&upstream.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .start()
        .await;
    sidecar.sign_out_within(POOL, CANARY, Duration::from_secs(10)).await.unwrap();
    Scrape::until(&sidecar, |scrape| scrape.sum("spans_total", &["result=\"failed\""]) == 3.0).await;

    let sidecar = Sidecar::at(&upstream.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .start()
        .await;
    sidecar.log.wait_for_message("traces are not exported: of the protocols of OTLP, grpc and").await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
}

/// A collector of OTLP over HTTP/1.1, which answers as it is told.
async fn collector_by_http(answer: fn(usize) -> Reply) -> Scripted {
    Scripted::start(move |n, _| answer(n)).await
}

fn taken(_: usize) -> Reply {
    Reply::http(200, "").header("content-type", "application/x-protobuf")
}

/// The spans that such a collector got, in requests as they have to be.
fn spans_by_http(collector: &Scripted, path: &str) -> Vec<Span> {
    let requests = collector.requests();
    let got: Vec<_> = requests
        .iter()
        .map(|request| {
            assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", path));
            assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
            assert_eq!(request.header("host"), Some(&*collector.addr().to_string()));
            ExportTraceServiceRequest::decode(&*request.body).unwrap()
        })
        .collect();
    spans(&got)
}

/// Waits for so many spans to be counted as exported or failed.
async fn counted(sidecar: &Sidecar, result: &str, count: f64) {
    let result = format!("result=\"{result}\"");
    Scrape::until(sidecar, |scrape| scrape.sum("spans_total", &[&result]) == count).await;
}

#[tokio::test]
async fn traces_go_over_http_where_that_is_asked_for_with_the_headers_that_were_given() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let collector = collector_by_http(taken).await;
    let starter = || {
        Sidecar::at(&upstream.url())
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
    };
    let sidecar = starter()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop,authorization=Bearer%20abc")
        .start()
        .await;
    sidecar.client().admin_user_global_sign_out(traced(CANARY)).await.unwrap();
    counted(&sidecar, "exported", 3.0).await;

    let spans = spans_by_http(&collector, "/v1/traces");
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let call = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(hex(&call.parent_span_id), PARENT);
    let requests = collector.requests();
    assert_eq!(requests[0].header("x-tenant"), Some("shop"));
    assert_eq!(requests[0].header("authorization"), Some("Bearer abc"));
    assert!(!requests.iter().any(|request| String::from_utf8_lossy(&request.body).contains("canary")));

    // The endpoint of traces alone is taken as it is; and the last spans leave on the way out.
    let collector = collector_by_http(taken).await;
    let sidecar = starter()
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/custom/path", collector.url()))
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
        .start()
        .await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    assert!(collector.requests().is_empty());
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.0.success());
    assert_eq!(spans_by_http(&collector, "/custom/path").len(), 3);
}

#[tokio::test]
async fn trouble_with_a_collector_of_http_is_counted_and_tried_again_where_that_helps() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let starter = |collector: &Scripted| {
        Sidecar::at(&upstream.url())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "2000")
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
    };
    let refuses = collector_by_http(|_| Reply::http(400, "no")).await;
    let sidecar = starter(&refuses).start().await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    counted(&sidecar, "failed", 3.0).await;

    let hesitates = collector_by_http(|n| if n == 0 { Reply::http(503, "later") } else { taken(n) }).await;
    let sidecar = starter(&hesitates).env("OTEL_EXPORTER_OTLP_TIMEOUT", "20000").start().await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    counted(&sidecar, "exported", 3.0).await;
    assert!(hesitates.requests().len() >= 2);

    // One that never answers holds up neither calls nor the end.
    let hangs = collector_by_http(|_| Reply::never()).await;
    let sidecar = starter(&hangs).arg("--drain-timeout", "1s").start().await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    hangs.wait_for_requests(1).await;
    sidecar.sign_out(POOL, CANARY).await.unwrap();
    counted(&sidecar, "failed", 3.0).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.0.success());
}

#[tokio::test]
async fn a_collector_proves_who_it_is_by_an_authority_that_was_given_or_that_the_system_trusts() {
    let upstream = Scripted::start(|_, _| Reply::ok()).await;
    let ours = Authority::new("ours");
    let dir = tempfile::tempdir().unwrap();
    let ca = write_pem(dir.path(), "ca", &ours.pem()).to_str().unwrap().to_owned();
    let collector = Scripted::start_tls(ours.server().server_config(), |n, _| taken(n)).await;
    let by_grpc = Collector::start_tls(&ours.server()).await;
    let starter = |protocol: &str| {
        let url = if protocol == "grpc" { by_grpc.url() } else { collector.url() };
        Sidecar::at(&upstream.url())
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                url.replace("http://", "https://").replace("127.0.0.1", "localhost"),
            )
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
    };
    for protocol in ["grpc", "http/protobuf"] {
        for trusted in ["OTEL_EXPORTER_OTLP_CERTIFICATE", "SSL_CERT_FILE"] {
            let sidecar = starter(protocol).env(trusted, &ca).start().await;
            sidecar.sign_out(POOL, CANARY).await.unwrap();
            counted(&sidecar, "exported", 3.0).await;
        }
        // What is given goes before what the system trusts. How many requests the spans came in is the timer's affair.
        let came = collector.requests().len();
        let theirs = write_pem(dir.path(), "theirs", &Authority::new("theirs").pem());
        let sidecar = starter(protocol)
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", theirs.to_str().unwrap())
            .env("SSL_CERT_FILE", &ca)
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
            .start()
            .await;
        sidecar.sign_out(POOL, CANARY).await.unwrap();
        counted(&sidecar, "failed", 3.0).await;
        assert_eq!(collector.requests().len(), came, "from one that does not trust it");

        let sidecar = starter(protocol).env("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent").start().await;
        let line = sidecar.log.wait_for_message("traces are not exported").await;
        assert!(line["error"].as_str().unwrap().contains("OTEL_EXPORTER_OTLP_CERTIFICATE: /nonexistent"));
    }
    assert!(collector.requests().len() >= 2, "from those that trust it");
}
