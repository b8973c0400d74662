//! Traces for whoever collects them: OpenTelemetry spans of work items, tool runs and requests to the
//! control plane (protocol §11), sent over OTLP as protobuf.
//!
//! Off unless an endpoint is given. Runs in the control side: spans go into a bounded queue that a
//! thread of the SDK empties; what does not fit is dropped, and a collector that is slow, wrong or gone
//! delays nothing. Content is in no span unless the operator asks for it (OBS-4).

mod export;
mod request;
mod settings;

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderInjector;
use opentelemetry_otlp::{RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
};
use reqwest::header::HeaderMap;
use url::Url;

pub use settings::{TraceArgs, TraceSettings};

use crate::credential::hidden::HiddenVariables;
use crate::queue::{
    CallKind, CallOutcome, ContentBlock, HttpTransport, Ids, OpenSpan, Span, SpanEnd, ToolRun,
    Tracer,
};

const SERVICE: &str = "stockade-worker";
/// The toolset that builtin calls belong to.
const TOOLSET: &str = "agent_toolset_20260401";
/// Spans that wait; the rest is dropped.
const QUEUE_MAX: usize = 4096;
/// How long the last spans may take to leave.
const FLUSH_MAX: Duration = Duration::from_secs(5);
const PROVIDER: &str = "anthropic";

/// Traces of one worker.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// Bytes of content that one attribute may have; none without content.
    content_bytes_max: Option<usize>,
    propagates: bool,
}

/// Traces that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot send traces: {reason}")]
    Exporter {
        /// Why.
        reason: String,
    },
}

impl Traces {
    /// Starts the thread that sends spans. Call in a runtime, which carries its requests.
    ///
    /// # Errors
    /// No TLS, or nothing that could be an exporter.
    pub fn start(
        settings: &TraceSettings,
        hidden: &HiddenVariables,
        ca_file: Option<&Path>,
    ) -> Result<Traces, TraceError> {
        let failed = |reason: String| TraceError::Exporter { reason };
        let [transport] =
            HttpTransport::pools(ca_file).map_err(|error| failed(error.to_string()))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(export::Collector::new(Arc::new(transport), settings.timeout))
            .with_endpoint(settings.endpoint.as_str())
            .with_timeout(settings.timeout)
            .with_headers(settings::headers(hidden))
            // The thread has no clock of the runtime to wait with. Later spans try again.
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let batch = BatchConfigBuilder::default().with_max_queue_size(QUEUE_MAX).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
            resource = resource.with_service_name(SERVICE);
        }
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource.with_attribute(version).build())
            .build();
        Ok(Traces {
            tracer: provider.tracer(SERVICE),
            provider,
            content_bytes_max: settings.content_bytes_max,
            propagates: settings.propagates,
        })
    }

    /// Sends what is left, for a few seconds at most.
    pub async fn finish(self) {
        let done = tokio::task::spawn_blocking(move || {
            self.provider.shutdown_with_timeout(FLUSH_MAX).is_ok()
        });
        if !matches!(tokio::time::timeout(FLUSH_MAX, done).await, Ok(Ok(true))) {
            tracing::warn!(event = "traces.not_flushed", "the last traces were not sent");
        }
    }

    fn begin(
        &self,
        within: Option<&Span>,
        name: String,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
    ) -> Span {
        let parent = within.and_then(|span| span.as_any().downcast_ref::<Traced>());
        let parent = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent.context())
        });
        let span = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
        let context = Context::new().with_span(span.start_with_context(&self.tracer, &parent));
        let (content_bytes_max, propagates) = (self.content_bytes_max, self.propagates);
        Arc::new(Traced { context, content_bytes_max, propagates })
    }
}

/// A span of ours.
struct Traced {
    context: Context,
    content_bytes_max: Option<usize>,
    propagates: bool,
}

impl Traced {
    fn context(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.context.span().set_attribute(KeyValue::new(name, value));
    }
}

impl Tracer for Traces {
    fn work(&self, ids: &Ids) -> Span {
        let mut attributes = vec![
            KeyValue::new("gen_ai.provider.name", PROVIDER),
            KeyValue::new("anthropic.environment.id", ids.environment.clone()),
            KeyValue::new("anthropic.environment.work.id", ids.work.clone()),
        ];
        if !ids.session.is_empty() {
            attributes.push(KeyValue::new("anthropic.session.id", ids.session.clone()));
        }
        self.begin(None, "anthropic.environment.work".to_owned(), SpanKind::Internal, attributes)
    }

    fn tool(&self, within: Option<&Span>, ids: &Ids, run: &ToolRun<'_>) -> Span {
        let call = run.call;
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "execute_tool"),
            KeyValue::new("gen_ai.provider.name", PROVIDER),
            KeyValue::new("gen_ai.tool.name", call.name.clone()),
            KeyValue::new("gen_ai.tool.call.id", call.id.clone()),
            KeyValue::new("gen_ai.tool.type", "function"),
            KeyValue::new("anthropic.session.id", ids.session.clone()),
        ];
        // THR-2: a call without a thread is of the primary one.
        if let Some(conversation) = call.thread.as_deref().or(run.primary_thread) {
            attributes.push(KeyValue::new("gen_ai.conversation.id", conversation.to_owned()));
        }
        if let Some(thread) = &call.thread {
            attributes.push(KeyValue::new("anthropic.session.thread.id", thread.clone()));
        }
        let prefix = match call.kind {
            CallKind::Builtin => {
                attributes.push(KeyValue::new("anthropic.toolset.name", TOOLSET));
                if let Some(text) = of_toolset(&call.name) {
                    attributes.push(KeyValue::new("gen_ai.tool.description", text));
                }
                "anthropic.tool_use"
            }
            CallKind::Custom => {
                if let Some(text) = run.description {
                    attributes.push(KeyValue::new("gen_ai.tool.description", text.to_owned()));
                }
                "anthropic.custom_tool_use"
            }
        };
        if let Some(max) = self.content_bytes_max {
            let arguments = cut(call.input.get(), max).to_owned();
            attributes.push(KeyValue::new("gen_ai.tool.call.arguments", arguments));
        }
        let name = format!("{prefix} {}", call.name);
        self.begin(within, name, SpanKind::Internal, attributes)
    }

    fn request(&self, within: Option<&Span>, method: &str, path: &str, url: &Url) -> Span {
        let described = request::describe(method, path);
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()),
            KeyValue::new("url.scheme", url.scheme().to_owned()),
            KeyValue::new("url.path", url.path().to_owned()),
            KeyValue::new("url.full", url.as_str().to_owned()),
        ];
        if let Some(port) = url.port_or_known_default() {
            attributes.push(KeyValue::new("server.port", i64::from(port)));
        }
        if let Some(query) = url.query() {
            attributes.push(KeyValue::new("url.query", query.to_owned()));
        }
        if let Some(route) = described.route {
            attributes.push(KeyValue::new("http.route", route));
        }
        attributes.extend(described.ids.into_iter().map(|(name, id)| KeyValue::new(name, id)));
        self.begin(within, format!("anthropic.{}", described.name), SpanKind::Client, attributes)
    }
}

impl OpenSpan for Traced {
    fn inject(&self, headers: &mut HeaderMap) {
        if self.propagates {
            let mut into = HeaderInjector(headers);
            TraceContextPropagator::new().inject_context(&self.context, &mut into);
        }
    }

    fn answered(&self, status: u16, headers: &HeaderMap, resent: u32) {
        self.set("http.response.status_code", i64::from(status));
        if resent > 0 {
            self.set("http.request.resend_count", i64::from(resent));
        }
        for (header, name) in [
            ("request-id", "anthropic.request.id"),
            ("anthropic-organization-id", "anthropic.organization.id"),
            ("anthropic-workspace-id", "anthropic.workspace.id"),
        ] {
            if let Some(value) = headers.get(header).and_then(|value| value.to_str().ok()) {
                self.set(name, cut(value, 200).to_owned());
            }
        }
    }

    fn gave(&self, outcome: &CallOutcome) {
        let Some(max) = self.content_bytes_max else { return };
        self.set("anthropic.tool_result.content", texts(outcome, max));
    }

    fn end(&self, how: SpanEnd<'_>) {
        let span = self.context.span();
        match how {
            SpanEnd::Ok => span.set_status(Status::Ok),
            SpanEnd::Error(kind) => {
                span.set_attribute(KeyValue::new("error.type", kind.into_owned()));
                span.set_status(Status::error(""));
            }
            SpanEnd::Unset => {}
        }
        span.end();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What a tool of the toolset does, as it is done here. The control plane has words of its own for the
/// model, which a worker is not told.
fn of_toolset(name: &str) -> Option<&'static str> {
    Some(match name {
        "bash" => "Runs a command in the persistent shell of the session",
        "read" => "Reads a file of the session, or a range of its lines",
        "write" => "Writes a file of the session as a whole",
        "edit" => "Replaces text in a file of the session",
        "glob" => "Finds files of the session by a pattern of names",
        "grep" => "Searches files of the session by a regular expression",
        _ => return None,
    })
}

/// The texts of a result; of images and documents only that they are there.
fn texts(outcome: &CallOutcome, bytes_max: usize) -> String {
    let mut all = String::new();
    for block in &outcome.content {
        let text = match block {
            ContentBlock::Text(text) => text.as_str(),
            ContentBlock::Image { .. } => "[image]",
            ContentBlock::Document { .. } => "[document]",
            ContentBlock::Passed(_) => "[block]",
        };
        all.push_str(cut(text, bytes_max - all.len()));
    }
    all
}

/// At most so many bytes, in whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
