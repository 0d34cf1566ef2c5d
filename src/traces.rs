//! Traces: the caller's W3C trace context, spans for a call and its parts, and their export by OTLP.
//!
//! Spans are made by hand where a call is recorded anyway. Where no export is asked for, there are neither spans nor an
//! exporter; the caller's trace id is read all the same, for the log and the audit log.

mod export;
mod http;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span, SpanData},
};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tracing::{info, warn};

use self::export::{ExportError, exporter};
use crate::{
    config::{Otlp, TracesAsked},
    metrics::{End, Kind, Metrics},
};

/// How long the last spans may take on the way out, even if the time for the drain is over.
const SHORTEST_FLUSH: Duration = Duration::from_secs(1);

/// What makes spans and exports them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// What the caller's metadata says of the trace that the call belongs to.
pub fn parent(metadata: &MetadataMap) -> Option<SpanContext> {
    struct Carrier<'a>(&'a MetadataMap);

    impl Extractor for Carrier<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            Vec::new()
        }
    }

    // Most callers are not traced; so much is looked at for them.
    metadata.get("traceparent")?;
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(metadata));
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

impl Traces {
    /// Starts the export that the `OTEL_*` variables ask for; `None` if they ask for none. Traces are a help, not a
    /// condition: what is wrong with them is told, and the sidecar serves without.
    pub fn start(asked: TracesAsked, metrics: &Metrics) -> Option<Arc<Self>> {
        let otlp = match asked {
            TracesAsked::No => return None,
            TracesAsked::ByOtlp(otlp) => otlp,
            TracesAsked::ByOther { protocol } => {
                warn!(
                    protocol,
                    "traces are not exported: of the protocols of OTLP, grpc and http/protobuf are built in; set \
                     OTEL_EXPORTER_OTLP_PROTOCOL to one of them, and the collector's port for it, mostly 4317 and 4318"
                );
                return None;
            }
        };
        let protocol = otlp.protocol.as_str();
        match Self::build(otlp, metrics) {
            Ok(traces) => {
                info!(protocol, "traces are exported by OTLP");
                Some(Arc::new(traces))
            }
            Err(error) => {
                warn!(%error, "traces are not exported");
                None
            }
        }
    }

    fn build(otlp: Otlp, metrics: &Metrics) -> Result<Self, ExportError> {
        let exporter = Counted { exporter: exporter(otlp)?, spans: Arc::default() };
        exporter.spans.register(metrics);
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
        let tracer = provider.tracer("cognito-signout");
        Ok(Self { provider, tracer })
    }

    /// Begins the span of a call that has arrived now.
    pub fn call(&self, method: &'static str, parent: Option<&SpanContext>) -> CallSpan {
        let method = format!("cognito.signout.v1.SignOutService/{method}");
        let attributes =
            [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method.clone())];
        let builder =
            self.tracer.span_builder(method).with_kind(SpanKind::Server).with_attributes(attributes);
        CallSpan(builder.start_with_context(&self.tracer, &below(parent)))
    }

    /// Begins the span of an attempt's wait for its turn.
    pub fn wait(&self, call: &SpanContext) -> Span {
        self.tracer.span_builder("wait for a turn").start_with_context(&self.tracer, &below(Some(call)))
    }

    /// Begins the span of one attempt at Cognito.
    pub fn attempt(&self, call: &SpanContext, number: u32) -> AttemptSpan {
        let attributes = [
            KeyValue::new("rpc.system.name", "aws-api"),
            KeyValue::new("rpc.method", "CognitoIdentityProvider/AdminUserGlobalSignOut"),
            KeyValue::new("cognito_signout.attempt", i64::from(number)),
        ];
        let builder = self
            .tracer
            .span_builder("CognitoIdentityProvider.AdminUserGlobalSignOut")
            .with_kind(SpanKind::Client)
            .with_attributes(attributes);
        AttemptSpan(builder.start_with_context(&self.tracer, &below(Some(call))))
    }

    /// Exports what is left, by the deadline or soon after.
    pub async fn finish(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now()).max(SHORTEST_FLUSH);
        let provider = self.provider.clone();
        // It waits for its thread, which waits for us.
        let flush = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(left));
        if let Ok(Err(error)) = flush.await {
            warn!(%error, "the last spans could not be exported");
        }
    }
}

fn below(parent: Option<&SpanContext>) -> Context {
    let root = Context::new();
    match parent {
        Some(parent) => root.with_remote_span_context(parent.clone()),
        None => root,
    }
}

/// What the environment says of this service; where it gives no name, ours.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let name = told.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    let mut resource = Resource::builder();
    if name.is_empty() || name.starts_with("unknown_service") {
        resource = resource.with_service_name("cognito-signout");
    }
    if told.get(&"service.version".into()).is_none() {
        resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    resource.build()
}

/// The span of a call.
pub struct CallSpan(Span);

impl CallSpan {
    /// What the parts of the call are told to belong to.
    pub fn context(&self) -> &SpanContext {
        self.0.span_context()
    }

    /// Ends it.
    pub fn end(
        &mut self,
        end: End,
        outcome: &'static str,
        attempts: u32,
        request_id: &str,
        user_pool_id: Option<&str>,
    ) {
        if !self.0.is_recording() {
            return;
        }
        self.0.set_attribute(KeyValue::new("rpc.response.status_code", end.code));
        self.0.set_attribute(KeyValue::new("cognito_signout.outcome", outcome));
        self.0.set_attribute(KeyValue::new("cognito_signout.attempts", i64::from(attempts)));
        self.0.set_attribute(KeyValue::new("cognito_signout.request_id", request_id.to_owned()));
        if let Some(pool) = user_pool_id {
            self.0.set_attribute(KeyValue::new("cognito_signout.user_pool_id", pool.to_owned()));
        }
        if end != End::OK {
            self.0.set_attribute(KeyValue::new("error.type", word(end)));
            self.0.set_attribute(KeyValue::new("cognito_signout.fault", end.fault));
            // The codes that OpenTelemetry's conventions take for errors of a gRPC server.
            if matches!(
                end.code,
                "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
            ) {
                self.0.set_status(Status::error(end.reason));
            }
        }
        self.0.end();
    }
}

/// The span of one attempt at Cognito.
pub struct AttemptSpan(Span);

impl AttemptSpan {
    /// Ends it.
    pub fn end(&mut self, end: End, region: &str, aws_request_id: Option<&str>, http_status: Option<u16>) {
        if !self.0.is_recording() {
            return;
        }
        self.0.set_attribute(KeyValue::new("cloud.region", region.to_owned()));
        if let Some(id) = aws_request_id {
            self.0.set_attribute(KeyValue::new("aws.request_id", id.to_owned()));
        }
        if let Some(status) = http_status {
            self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if end != End::OK {
            self.0.set_attribute(KeyValue::new("error.type", word(end)));
            self.0.set_status(Status::error(word(end)));
        }
        self.0.end();
    }
}

/// The most telling word for a failure.
fn word(end: End) -> &'static str {
    if end.reason.is_empty() { end.code } else { end.reason }
}

/// An exporter that counts.
struct Counted {
    exporter: SpanExporter,
    spans: Arc<Spans>,
}

#[derive(Debug, Default)]
struct Spans {
    exported: AtomicU64,
    failed: AtomicU64,
}

impl Spans {
    fn register(self: &Arc<Self>, metrics: &Metrics) {
        let spans = self.clone();
        metrics.watch(Kind::Counter, "spans", "Spans handed to the OTLP exporter", None, move |samples| {
            samples.labelled([("result", "exported")], spans.exported.load(Ordering::Relaxed) as f64)?;
            samples.labelled([("result", "failed")], spans.failed.load(Ordering::Relaxed) as f64)
        });
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let count = batch.len() as u64;
        let exported = self.exporter.export(batch);
        async move {
            let result = exported.await;
            let counter = if result.is_ok() { &self.spans.exported } else { &self.spans.failed };
            counter.fetch_add(count, Ordering::Relaxed);
            result
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_taken_if_it_is_well_formed() {
        let of = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("traceparent", value.parse().unwrap());
            parent(&metadata).map(|parent| parent.trace_id().to_string())
        };
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(), Some(trace));
        for malformed in ["", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "canary"] {
            assert_eq!(of(malformed), None, "{malformed}");
        }
        assert_eq!(parent(&MetadataMap::new()), None);
    }
}
