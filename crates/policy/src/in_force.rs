//! What is in force now: the decider, whether it may be used, and who has to hear of a new version.
//! Owns the lease on the directory's facts; it refuses to make versions.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use chancery_runtime::Clock;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::decider::Decider;

/// The decider in force, if any.
pub(crate) struct InForce {
    decider: ArcSwapOption<Decider>,
    /// Since when the directory is out of reach.
    lost_at: Mutex<Option<Instant>>,
    lease: Duration,
    clock: Clock,
    version: watch::Sender<u64>,
}

impl InForce {
    /// Nothing is in force.
    pub(crate) fn new(lease: Duration, clock: Clock) -> Self {
        let lost_at = Mutex::new(Some(clock.monotonic()));
        let (version, _) = watch::channel(0);
        Self {
            decider: ArcSwapOption::empty(),
            lost_at,
            lease,
            clock,
            version,
        }
    }

    /// What verdicts may be given from: nothing before the first snapshot, nor beyond the lease.
    pub(crate) fn get(&self) -> Option<Arc<Decider>> {
        if let Some(lost_at) = *self.lost_at.lock()
            && self.clock.monotonic().saturating_duration_since(lost_at) > self.lease
        {
            return None;
        }
        self.decider.load_full()
    }

    /// Whether there is anything, within the lease or not.
    pub(crate) fn get_any(&self) -> bool {
        self.decider.load().is_some()
    }

    /// Puts a decider in force and tells the watchers.
    pub(crate) fn put(&self, decider: Decider) {
        let version = decider.version();
        self.decider.store(Some(Arc::new(decider)));
        self.version.send_replace(version);
    }

    /// Nothing is in force any more: what should be could not be made durable.
    pub(crate) fn suspend(&self) {
        self.decider.store(None);
    }

    /// The directory was reached, or lost.
    pub(crate) fn directory_reachable(&self, reachable: bool) {
        let mut lost_at = self.lost_at.lock();
        *lost_at = match (reachable, *lost_at) {
            (true, _) => None,
            (false, None) => Some(self.clock.monotonic()),
            (false, since) => since,
        };
    }

    /// Announces versions.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
