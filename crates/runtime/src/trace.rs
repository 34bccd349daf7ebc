//! Traces: which stanzas are followed, the spans of their way through the services, and the W3C
//! header that carries a trace from one process to the next. Off by default, and then a span is
//! nothing: no memory, no clock, no text. A span's attributes are fixed words and numbers, so that
//! nothing that a user wrote can get into one. Refuses to block: a queue that is full drops spans
//! and counts them. How spans leave the process is the affair of whoever takes them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::metrics::Counter;
use crate::{Clock, Ids, Metrics};

/// Spans that wait for the exporter; a further one is dropped and counted.
pub const QUEUE_SPANS: usize = 8_192;
/// Attributes of one span; further ones are left out.
pub const ATTRIBUTES: usize = 8;

/// A place in a trace: the trace and the span that others hang below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the trace, never zero.
    pub trace_id: [u8; 16],
    /// Of the span, never zero.
    pub span_id: [u8; 8],
}

impl TraceContext {
    /// The W3C header `traceparent`, with the flag that says that the trace is followed.
    pub fn traceparent(&self) -> String {
        let (mut trace, mut span) = ([0; 32], [0; 16]);
        let mut out = String::with_capacity(55);
        out.push_str("00-");
        out.push_str(hex_in(&self.trace_id, &mut trace));
        out.push('-');
        out.push_str(hex_in(&self.span_id, &mut span));
        out.push_str("-01");
        out
    }

    /// Reads a header; none for what is malformed, of another version, or not followed.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() || flags.len() != 2 {
            return None;
        }
        if u8::from_str_radix(flags, 16).ok()? & 1 == 0 {
            return None;
        }
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        hex::decode_to_slice(trace, &mut trace_id).ok()?;
        hex::decode_to_slice(span, &mut span_id).ok()?;
        let zero = trace_id == [0; 16] || span_id == [0; 8];
        (!zero).then_some(Self { trace_id, span_id })
    }
}

fn hex_in<'a>(bytes: &[u8], out: &'a mut [u8]) -> &'a str {
    match hex::encode_to_slice(bytes, out) {
        Ok(()) => std::str::from_utf8(out).unwrap_or_default(),
        Err(_) => "",
    }
}

/// What a span says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A word of the program.
    Word(&'static str),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Does what was asked from outside.
    Served,
    /// Asks another service and waits.
    Called,
}

/// A span that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub name: &'static str,
    pub side: Side,
    pub context: TraceContext,
    /// None for the first of a trace.
    pub parent: Option<[u8; 8]>,
    /// The parent is a span of another process.
    pub parent_is_remote: bool,
    pub start_unix_us: i64,
    pub took: Duration,
    pub attributes: Vec<(&'static str, Value)>,
}

/// The handle that spans come from. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    ids: Ids,
    /// A trace is followed whose id is not above it; none with a ratio of zero.
    threshold: Option<u64>,
    queue: mpsc::Sender<Recorded>,
    dropped: Counter,
}

impl Tracer {
    /// Follows nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// A tracer that follows the share `ratio` of all traces, and where its spans come out: for an
    /// exporter, or for a test.
    pub fn channel(ratio: f64, clock: Clock, ids: Ids, metrics: &Metrics) -> (Self, Spans) {
        let (queue, waiting) = mpsc::channel(QUEUE_SPANS);
        let dropped = metrics.counter(
            "chancery_trace_spans_dropped",
            "spans that the queue had no room for, or the collector did not take",
        );
        // Saturates: a ratio of 1 is every trace.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        #[allow(clippy::cast_precision_loss)]
        let threshold = (ratio > 0.0).then_some((ratio * u64::MAX as f64) as u64);
        let shared = Shared {
            clock,
            ids,
            threshold,
            queue,
            dropped: dropped.clone(),
        };
        (Self(Some(Arc::new(shared))), Spans { waiting, dropped })
    }

    /// Whether any trace is followed here.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The first span of a trace, for the share of traces that is followed.
    pub fn root(&self, name: &'static str) -> Span {
        let Some(shared) = &self.0 else {
            return Span(None);
        };
        let Some(threshold) = shared.threshold else {
            return Span(None);
        };
        let trace_id = shared.ids.id();
        let mut low = [0; 8];
        low.copy_from_slice(&trace_id[8..]);
        if u64::from_be_bytes(low) > threshold || trace_id == [0; 16] {
            return Span(None);
        }
        shared.open(name, Side::Served, trace_id, None, false)
    }

    /// A span of what `traceparent` asked for; nothing when it is empty or not followed.
    pub fn served(&self, name: &'static str, traceparent: &str) -> Span {
        let Some(shared) = &self.0 else {
            return Span(None);
        };
        if traceparent.is_empty() {
            return Span(None);
        }
        let Some(parent) = TraceContext::parse(traceparent) else {
            return Span(None);
        };
        let (trace_id, span_id) = (parent.trace_id, parent.span_id);
        shared.open(name, Side::Served, trace_id, Some(span_id), true)
    }
}

impl Tracer {
    /// A span of a question to another service, on behalf of a span that may be over by then.
    pub fn calls(&self, name: &'static str, parent: Option<TraceContext>) -> Span {
        let (Some(shared), Some(parent)) = (&self.0, parent) else {
            return Span(None);
        };
        let (trace_id, span_id) = (parent.trace_id, parent.span_id);
        shared.open(name, Side::Called, trace_id, Some(span_id), false)
    }
}

impl Shared {
    fn open(
        self: &Arc<Self>,
        name: &'static str,
        side: Side,
        trace_id: [u8; 16],
        parent: Option<[u8; 8]>,
        parent_is_remote: bool,
    ) -> Span {
        let mut span_id: [u8; 8] = self.ids.bytes();
        if span_id == [0; 8] {
            span_id[7] = 1;
        }
        let recorded = Recorded {
            name,
            side,
            context: TraceContext { trace_id, span_id },
            parent,
            parent_is_remote,
            start_unix_us: self.clock.now_unix_us(),
            took: Duration::ZERO,
            attributes: Vec::new(),
        };
        Span(Some(Box::new(Open {
            shared: Arc::clone(self),
            since: self.clock.monotonic(),
            recorded: Some(recorded),
        })))
    }
}

/// Where finished spans come out.
#[derive(Debug)]
pub struct Spans {
    waiting: mpsc::Receiver<Recorded>,
    dropped: Counter,
}

impl Spans {
    /// Waits for spans and adds up to `limit` of them; 0 when no more will come.
    pub async fn next(&mut self, batch: &mut Vec<Recorded>, limit: usize) -> usize {
        self.waiting.recv_many(batch, limit).await
    }

    /// A span that waits already.
    pub fn ready(&mut self) -> Option<Recorded> {
        self.waiting.try_recv().ok()
    }

    /// Counts spans that were taken and then lost.
    pub fn lost(&self, spans: usize) {
        self.dropped.inc_by(spans as u64);
    }
}

/// A span, from its start to its drop. One that is not followed is a null pointer.
#[derive(Debug, Default)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    since: Instant,
    /// Taken when it ends.
    recorded: Option<Recorded>,
}

impl Span {
    /// One that is not followed.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Whether it is followed.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Where it is, for what is asked on its behalf; none when it is not followed.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref()?.recorded.as_ref().map(|span| span.context)
    }

    /// The header for what is asked on behalf of this span; empty, without memory, when it is not
    /// followed.
    pub fn traceparent(&self) -> String {
        self.context()
            .map_or_else(String::new, |context| context.traceparent())
    }

    /// Says something.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let Some(recorded) = self.0.as_mut().and_then(|open| open.recorded.as_mut()) else {
            return;
        };
        if recorded.attributes.len() < ATTRIBUTES {
            recorded.attributes.push((key, value.into()));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(mut recorded) = self.recorded.take() else {
            return;
        };
        let now = self.shared.clock.monotonic();
        recorded.took = now.saturating_duration_since(self.since);
        if self.shared.queue.try_send(recorded).is_err() {
            self.shared.dropped.inc();
        }
    }
}

#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
