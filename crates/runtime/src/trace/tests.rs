//! Spans without an exporter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn tracer(ratio: f64) -> (Tracer, Spans, Clock, Metrics) {
    let (clock, metrics) = (Clock::manual(1_000), Metrics::new());
    let (tracer, spans) = Tracer::channel(ratio, clock.clone(), Ids::seeded(7), &metrics);
    (tracer, spans, clock, metrics)
}

#[test]
fn a_header_is_read_as_it_was_written() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let context = TraceContext::parse(text).unwrap();
    assert_eq!(context.traceparent(), text);
    for bad in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ] {
        assert_eq!(TraceContext::parse(bad), None, "{bad}");
    }
}

#[test]
fn off_is_nothing() {
    assert_eq!(size_of::<Span>(), size_of::<usize>());
    let tracer = Tracer::off();
    let mut root = tracer.root("a");
    root.set("k", "v");
    let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert!(!root.is_on() && root.context().is_none() && !tracer.served("c", header).is_on());
    assert_eq!(root.traceparent().capacity(), 0);
}

#[test]
fn a_trace_hangs_together_across_two_processes() {
    let (gateway, mut near, clock, _) = tracer(1.0);
    let (policy, mut far, ..) = tracer(0.0);
    let mut root = gateway.root("gateway.stanza");
    root.set("kind", "message");
    let called = gateway.calls("policy.decide", root.context());
    let served = policy.served("policy.verdict", &called.traceparent());
    assert!(
        served.is_on(),
        "what is followed is decided once, at the head"
    );
    drop(served);
    clock.advance(Duration::from_millis(3));
    drop(called);
    drop(root);
    let (called, root) = (near.ready().unwrap(), near.ready().unwrap());
    let served = far.ready().unwrap();
    assert_eq!((root.parent, root.name), (None, "gateway.stanza"));
    assert_eq!(root.attributes, [("kind", Value::Word("message"))]);
    assert_eq!(called.parent, Some(root.context.span_id));
    assert_eq!(served.parent, Some(called.context.span_id));
    assert_eq!(served.context.trace_id, root.context.trace_id);
    assert_eq!((called.side, served.side), (Side::Called, Side::Served));
    assert!(served.parent_is_remote && !called.parent_is_remote);
    assert_eq!(called.start_unix_us, 1_000_000);
    assert_eq!(called.took, Duration::from_millis(3));
}

#[test]
fn the_ratio_is_the_share_that_is_followed() {
    for (ratio, from, to) in [(0.0, 0, 0), (0.1, 150, 250), (1.0, 2_000, 2_000)] {
        let (tracer, _spans, ..) = tracer(ratio);
        let followed = (0..2_000).filter(|_| tracer.root("r").is_on()).count();
        assert!((from..=to).contains(&followed), "{ratio}: {followed}");
    }
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (tracer, mut spans, _, metrics) = tracer(1.0);
    for _ in 0..QUEUE_SPANS + 3 {
        drop(tracer.root("r"));
    }
    let text = metrics.render();
    assert!(
        text.contains("chancery_trace_spans_dropped_total 3"),
        "{text}"
    );
    let kept = std::iter::from_fn(|| spans.ready()).count();
    assert_eq!(kept, QUEUE_SPANS);
}

#[test]
fn attributes_are_bounded() {
    let (tracer, mut spans, ..) = tracer(1.0);
    let mut root = tracer.root("r");
    for n in 0..20_u64 {
        root.set("n", n);
    }
    drop(root);
    assert_eq!(spans.ready().unwrap().attributes.len(), ATTRIBUTES);
}
