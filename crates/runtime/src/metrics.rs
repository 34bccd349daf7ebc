//! The metrics of a process, as Prometheus reads them. A value that is handed on, not a global,
//! so that several nodes fit in one test process. It owns the registry and the figures of the
//! process itself; it refuses to know what any other metric means.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Metric, Registry};

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many label sets one family may have; further ones share the set `overflow`, so that input
/// used as a label cannot fill the memory.
pub const LABEL_SETS_LIMIT: usize = 1_000;

/// Buckets for times in seconds, 50 µs to 10 s.
pub const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Buckets for numbers of items in a batch.
pub const ITEMS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

type LabelSet = Vec<(&'static str, String)>;

/// The registry. Cloning shares it.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    /// What was registered, by name: whoever registers a name again gets the same metric.
    known: Mutex<HashMap<String, Box<dyn Any + Send>>>,
    /// How many label sets each family has.
    sets: Mutex<HashMap<String, Arc<AtomicUsize>>>,
    refresh: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Metrics {
    /// A registry with the figures of the process in it.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        Self(Arc::new(Inner {
            registry: Mutex::new(registry),
            known: Mutex::new(HashMap::new()),
            sets: Mutex::new(HashMap::new()),
            refresh: Mutex::new(Vec::new()),
        }))
    }

    /// A counter; its name without the suffix `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default)
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default)
    }

    /// A gauge that is read when the metrics are.
    pub fn gauge_fn(&self, name: &str, help: &str, read: impl Fn() -> i64 + Send + 'static) {
        let gauge = self.gauge(name, help);
        self.0.refresh.lock().push(Box::new(move || {
            gauge.set(read());
        }));
    }

    /// A counter kept elsewhere, read when the metrics are. It must not fall.
    pub fn counter_fn(&self, name: &str, help: &str, read: impl Fn() -> u64 + Send + 'static) {
        let counter = self.counter(name, help);
        self.0.refresh.lock().push(Box::new(move || {
            counter.inner().store(read(), Ordering::Relaxed);
        }));
    }

    /// A histogram with the given upper bounds.
    pub fn histogram(&self, name: &str, help: &str, buckets: &'static [f64]) -> Histogram {
        self.register(name, help, || Buckets(buckets).new_metric())
    }

    /// Counters that differ in the values of `labels`.
    pub fn counters(&self, name: &str, help: &str, labels: &'static [&'static str]) -> Counters {
        let family = self.register(name, help, Family::<LabelSet, Counter>::default);
        Labelled {
            family,
            labels,
            sets: self.sets(name),
        }
    }

    /// Gauges that differ in the values of `labels`.
    pub fn gauges(&self, name: &str, help: &str, labels: &'static [&'static str]) -> Gauges {
        let family = self.register(name, help, Family::<LabelSet, Gauge>::default);
        Labelled {
            family,
            labels,
            sets: self.sets(name),
        }
    }

    /// Histograms that differ in the values of `labels`.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
    ) -> Histograms {
        let family = self.register(name, help, || {
            Family::new_with_constructor(Buckets(buckets))
        });
        Labelled {
            family,
            labels,
            sets: self.sets(name),
        }
    }

    /// Everything, in the OpenMetrics text format ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        for refresh in self.0.refresh.lock().iter() {
            refresh();
        }
        let mut out = String::new();
        if encode(&mut out, &self.0.registry.lock()).is_err() {
            tracing::error!("metrics could not be encoded");
            out.clear();
            out.push_str("# EOF\n");
        }
        out
    }

    fn sets(&self, name: &str) -> Arc<AtomicUsize> {
        Arc::clone(self.0.sets.lock().entry(name.to_owned()).or_default())
    }

    fn register<M: Metric + Clone>(&self, name: &str, help: &str, make: impl FnOnce() -> M) -> M {
        let mut known = self.0.known.lock();
        if let Some(metric) = known.get(name) {
            if let Some(metric) = metric.downcast_ref::<M>() {
                return metric.clone();
            }
            tracing::error!(
                name,
                "a metric of another kind has this name, this one is not shown"
            );
            return make();
        }
        let metric = make();
        known.insert(name.to_owned(), Box::new(metric.clone()));
        self.0
            .registry
            .lock()
            .register(name, help.trim_end_matches('.'), metric.clone());
        metric
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({} registered)", self.0.known.lock().len())
    }
}

/// Metrics of one name that differ in the values of their labels. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Labelled<M, C = fn() -> M> {
    family: Family<LabelSet, M, C>,
    labels: &'static [&'static str],
    sets: Arc<AtomicUsize>,
}

/// Counters by label.
pub type Counters = Labelled<Counter>;
/// Gauges by label.
pub type Gauges = Labelled<Gauge>;
/// Histograms by label.
pub type Histograms = Labelled<Histogram, Buckets>;

impl<M: Clone, C: MetricConstructor<M>> Labelled<M, C> {
    /// The metric with these label values, in the order of the labels; a missing value is empty.
    /// Takes a lock and allocates: keep the result where it is used often.
    pub fn with(&self, values: &[&str]) -> M {
        let set = |value: &dyn Fn(usize) -> String| -> LabelSet {
            self.labels
                .iter()
                .enumerate()
                .map(|(n, label)| (*label, value(n)))
                .collect()
        };
        let labels = set(&|n| values.get(n).copied().unwrap_or_default().to_owned());
        if let Some(metric) = self.family.get(&labels) {
            return metric.clone();
        }
        if self.sets.fetch_add(1, Ordering::Relaxed) >= LABEL_SETS_LIMIT {
            self.sets.fetch_sub(1, Ordering::Relaxed);
            return self
                .family
                .get_or_create_owned(&set(&|_| "overflow".to_owned()));
        }
        self.family.get_or_create_owned(&labels)
    }
}

/// The upper bounds of a histogram.
#[derive(Clone, Copy, Debug)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The figures of the process, from `/proc/self`.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = ProcessFigures::read();
        let mut gauge = |name, help, value: i64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            figures.resident_bytes,
        )?;
        gauge(
            "process_open_fds",
            "Open file descriptors",
            figures.open_fds,
        )?;
        gauge("process_threads", "Threads", figures.threads)?;
        let cpu = ConstCounter::new(figures.cpu_seconds);
        let help = "User and system time of all threads";
        let metric =
            encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?;
        cpu.encode(metric)
    }
}

/// What `/proc/self` says of this process; zero where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    pub resident_bytes: i64,
    pub open_fds: i64,
    pub threads: i64,
    pub cpu_seconds: f64,
}

impl ProcessFigures {
    /// Reads them now.
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| -> i64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            // The directory itself was open while it was counted.
            open_fds: i64::try_from(open.saturating_sub(1)).unwrap_or_default(),
            threads: field("Threads:"),
            cpu_seconds: cpu_seconds(),
        }
    }
}

/// Fields 14 and 15 of proc(5) `stat`, counted after the command's closing parenthesis, in ticks
/// of which every Linux that we run on has 100 a second.
fn cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

// A counter kept elsewhere is stored through the atomic inside.
const _: fn(&Counter) -> &AtomicU64 = Counter::inner;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn metrics_are_rendered_with_labels() {
        let metrics = Metrics::new();
        metrics
            .counter("chancery_stanzas", "Stanzas read.")
            .inc_by(3);
        metrics.gauge("chancery_sessions", "Bound sessions").set(2);
        let verdicts = metrics.counters("chancery_verdicts", "Verdicts", &["verdict", "rule"]);
        verdicts.with(&["deny", "wall-1"]).inc();
        metrics
            .histogram("chancery_append_seconds", "Append", SECONDS)
            .observe(0.002);
        let lanes = metrics.histograms("chancery_batch_items", "Batch", &["lane"], ITEMS);
        lanes.with(&["decide"]).observe(5.0);
        metrics.gauge_fn("chancery_read", "Read late", || 42);
        metrics.counter_fn("chancery_elsewhere", "Kept elsewhere", || 17);
        let text = metrics.render();
        for line in [
            "# HELP chancery_stanzas Stanzas read.",
            "chancery_stanzas_total 3",
            "chancery_sessions 2",
            r#"chancery_verdicts_total{verdict="deny",rule="wall-1"} 1"#,
            r#"chancery_append_seconds_bucket{le="0.0025"} 1"#,
            r#"chancery_batch_items_bucket{le="8.0",lane="decide"} 1"#,
            "chancery_read 42",
            "chancery_elsewhere_total 17",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
    }

    #[test]
    fn a_name_registered_twice_is_one_metric() {
        let metrics = Metrics::new();
        metrics.counter("chancery_x", "X").inc();
        metrics.clone().counter("chancery_x", "X").inc();
        metrics.gauge("chancery_x", "X").set(9);
        let text = metrics.render();
        assert_eq!(text.matches("# TYPE chancery_x ").count(), 1);
        assert!(text.contains("chancery_x_total 2"), "{text}");
    }

    #[test]
    fn label_sets_are_bounded() {
        let metrics = Metrics::new();
        let family = metrics.counters("chancery_y", "Y", &["who"]);
        for n in 0..LABEL_SETS_LIMIT + 50 {
            family.with(&[&n.to_string()]).inc();
        }
        assert!(
            metrics
                .render()
                .contains(r#"chancery_y_total{who="overflow"} 50"#)
        );
        assert_eq!(family.with(&["3"]).get(), 1, "the first ones keep counting");
    }

    #[test]
    fn the_process_is_in_it() {
        let figures = ProcessFigures::read();
        assert!(figures.resident_bytes > 100_000 && figures.open_fds >= 3 && figures.threads >= 1);
        let text = Metrics::new().render();
        let cpu = text
            .lines()
            .find_map(|l| l.strip_prefix("process_cpu_seconds_total "))
            .unwrap();
        assert!(cpu.parse::<f64>().unwrap() >= 0.0);
        assert!(text.contains("\nprocess_resident_memory_bytes "));
    }
}
