//! Carries finished spans to a collector: OTLP over gRPC, in batches, from one task. What the
//! collector does not take in time is dropped and counted: traces are never worth a retry that
//! outlives its batch. Decides nothing about what is followed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use chancery_runtime::Tasks;
use chancery_runtime::trace::{QUEUE_SPANS, Recorded, Side, Spans, Value};

use crate::config::Trace;
use crate::error::Failure;

/// Spans of one call.
const BATCH_SPANS: usize = 512;
/// Spans are gathered for so long.
const GATHER: Duration = Duration::from_millis(200);
/// The collector takes a batch by then.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// The same when the process ends.
const LAST_EXPORT_LIMIT: Duration = Duration::from_secs(1);

/// Starts the exporter of the process `instance`, which is known as `service`. Whether the collector
/// is there is not asked: a process serves without.
pub fn start(
    trace: &Trace,
    service: &str,
    instance: &str,
    spans: Spans,
    tasks: &Tasks,
) -> Result<(), Failure> {
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&trace.endpoint)
        .with_timeout(EXPORT_LIMIT)
        .build()
        .map_err(|error| Failure::new(format!("[trace] endpoint: {error}")))?;
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.namespace", "chancery"),
            KeyValue::new("service.name", service.to_owned()),
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    exporter.set_resource(&resource);
    let worker = Worker {
        exporter,
        spans,
        scope: InstrumentationScope::builder("chancery").build(),
        away: false,
    };
    tasks.spawn("trace export", worker.run(tasks.clone()));
    Ok(())
}

struct Worker {
    exporter: SpanExporter,
    spans: Spans,
    scope: InstrumentationScope,
    /// The last batch was not taken: said once, not for every batch.
    away: bool,
}

impl Worker {
    async fn run(mut self, tasks: Tasks) {
        let mut batch = Vec::with_capacity(BATCH_SPANS);
        while !tasks.cancelled_now() {
            tokio::select! {
                () = tasks.cancelled() => break,
                taken = self.spans.next(&mut batch, BATCH_SPANS) => {
                    if taken == 0 {
                        return;
                    }
                }
            }
            if batch.len() < BATCH_SPANS {
                tokio::select! {
                    () = tasks.cancelled() => {}
                    () = tokio::time::sleep(GATHER) => {}
                }
                self.gather(&mut batch);
            }
            // The process does not wait for a collector that is away.
            tokio::select! {
                () = self.export(&mut batch, EXPORT_LIMIT) => {}
                () = tasks.cancelled() => {}
            }
        }
        // What is left, once: nothing comes after it that could be worth a wait.
        for _ in 0..QUEUE_SPANS.div_ceil(BATCH_SPANS) {
            self.gather(&mut batch);
            if batch.is_empty() || self.away {
                break;
            }
            self.export(&mut batch, LAST_EXPORT_LIMIT).await;
        }
    }

    fn gather(&mut self, batch: &mut Vec<Recorded>) {
        while batch.len() < BATCH_SPANS
            && let Some(span) = self.spans.ready()
        {
            batch.push(span);
        }
    }

    async fn export(&mut self, batch: &mut Vec<Recorded>, limit: Duration) {
        let count = batch.len();
        let data = batch.drain(..).map(|span| data(span, &self.scope));
        let sent = self.exporter.export(data.collect());
        let reason = match tokio::time::timeout(limit, sent).await {
            Ok(Ok(())) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!("the trace collector takes spans again");
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        self.spans.lost(count);
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(
                reason,
                "the trace collector takes no spans, they are dropped"
            );
        }
    }
}

fn data(span: Recorded, scope: &InstrumentationScope) -> SpanData {
    let context = SpanContext::new(
        TraceId::from_bytes(span.context.trace_id),
        SpanId::from_bytes(span.context.span_id),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    let start_time = UNIX_EPOCH + Duration::from_micros(span.start_unix_us.unsigned_abs());
    let attributes = span.attributes.into_iter().map(|(key, value)| match value {
        Value::Word(word) => KeyValue::new(key, word),
        Value::Number(number) => KeyValue::new(key, number),
    });
    SpanData {
        span_context: context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.side {
            Side::Served => SpanKind::Server,
            Side::Called => SpanKind::Client,
        },
        name: span.name.into(),
        start_time,
        end_time: end(start_time, span.took),
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}

fn end(start: SystemTime, took: Duration) -> SystemTime {
    start.checked_add(took).unwrap_or(start)
}
