//! The archive's figures for operators. Counted in the sequencer, shown here.

use chancery_runtime::Metrics;
use chancery_runtime::metrics::{Counter, Gauge, Histogram, ITEMS, SECONDS};

use crate::shard::Shard;

/// What the sequencer counts since it was asked last; the gauges are of now.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) records: u64,
    pub(crate) ephemerals: u64,
    pub(crate) delivered: u64,
    /// Sizes of the groups.
    pub(crate) groups: Vec<usize>,
    /// Open entries of the mailboxes in memory, as of the last sweep.
    pub(crate) open_entries: u64,
}

/// The metrics.
#[derive(Clone)]
pub(crate) struct ArchiveMetrics {
    records: Counter,
    ephemerals: Counter,
    delivered: Counter,
    group_items: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) full: Counter,
    queue_items: Gauge,
    followers: Gauge,
    lagging: Gauge,
    mailboxes: Gauge,
    open_entries: Gauge,
    head: Gauge,
}

impl ArchiveMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let m = metrics;
        Self {
            records: m.counter("chancery_archive_records", "records written to the log"),
            ephemerals: m.counter(
                "chancery_archive_ephemerals",
                "items that passed the sequencer and are never stored",
            ),
            delivered: m.counter(
                "chancery_archive_deliveries",
                "copies that were sent up to sessions",
            ),
            group_items: m.histogram(
                "chancery_archive_group_items",
                "records of one group commit",
                ITEMS,
            ),
            commit_seconds: m.histogram(
                "chancery_archive_commit_seconds",
                "time of one durable group commit",
                SECONDS,
            ),
            full: m.counter(
                "chancery_archive_disk_full",
                "group commits that found no space and were not written",
            ),
            queue_items: m.gauge(
                "chancery_archive_queue_items",
                "items that wait for a commit",
            ),
            followers: m.gauge("chancery_archive_followers", "attached sessions"),
            lagging: m.gauge("chancery_archive_lagging_followers", "sessions that lag"),
            mailboxes: m.gauge("chancery_archive_mailboxes", "mailboxes in memory"),
            open_entries: m.gauge(
                "chancery_archive_open_entries",
                "open entries of the mailboxes in memory",
            ),
            head: m.gauge("chancery_archive_head_records", "number of the last record"),
        }
    }

    /// Takes over what the sequencer has counted.
    pub(crate) fn show<T>(&self, shard: &mut Shard<T>) {
        let figures = &mut shard.figures;
        self.records.inc_by(std::mem::take(&mut figures.records));
        self.ephemerals
            .inc_by(std::mem::take(&mut figures.ephemerals));
        self.delivered
            .inc_by(std::mem::take(&mut figures.delivered));
        for items in figures.groups.drain(..) {
            self.group_items
                .observe(f64::from(u32::try_from(items).unwrap_or(u32::MAX)));
        }
        self.open_entries.set(figures.open_entries.cast_signed());
        let gauge = |gauge: &Gauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(0));
        gauge(&self.queue_items, shard.arrived.len());
        gauge(&self.followers, shard.followers.len());
        gauge(&self.lagging, shard.lagging.len());
        gauge(&self.mailboxes, shard.mailboxes.len());
        self.head.set(shard.head.cast_signed());
    }
}
