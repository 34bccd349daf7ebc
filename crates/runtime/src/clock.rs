//! The clock, handed to whoever needs the time: the wall clock for what is written down, a
//! monotonic one for deadlines and leases. It owns the only read of the wall clock in the
//! workspace; it refuses to schedule anything (`tokio::time` does that).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A source of time. Cloning shares the source.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    Real,
    Manual {
        wall_unix_ms: AtomicI64,
        origin: Instant,
        elapsed_ms: AtomicU64,
    },
}

impl Clock {
    /// The machine's clocks.
    pub fn real() -> Self {
        Self(Arc::new(Source::Real))
    }

    /// A clock that stands at `start_unix_ms` until a test moves it.
    pub fn manual(start_unix_ms: i64) -> Self {
        Self(Arc::new(Source::Manual {
            wall_unix_ms: AtomicI64::new(start_unix_ms),
            origin: Instant::now(),
            elapsed_ms: AtomicU64::new(0),
        }))
    }

    /// Milliseconds since the Unix epoch. It may step in either direction: order comes from
    /// sequence numbers, never from here.
    pub fn now_unix_ms(&self) -> i64 {
        match &*self.0 {
            Source::Real => real_unix_ms(),
            Source::Manual { wall_unix_ms, .. } => wall_unix_ms.load(Ordering::SeqCst),
        }
    }

    /// Microseconds since the Unix epoch, for the start of a span. It may step as well.
    pub fn now_unix_us(&self) -> i64 {
        match &*self.0 {
            Source::Real => real_unix_us(),
            Source::Manual { wall_unix_ms, .. } => wall_unix_ms.load(Ordering::SeqCst) * 1_000,
        }
    }

    /// A time that never goes back, for deadlines, leases and measurements.
    pub fn monotonic(&self) -> Instant {
        match &*self.0 {
            Source::Real => Instant::now(),
            Source::Manual {
                origin, elapsed_ms, ..
            } => *origin + Duration::from_millis(elapsed_ms.load(Ordering::SeqCst)),
        }
    }

    /// Moves both clocks of a manual clock forward, in whole milliseconds. The machine's clocks
    /// are not moved.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual {
            wall_unix_ms,
            elapsed_ms,
            ..
        } = &*self.0
        {
            let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            elapsed_ms.fetch_add(by_ms, Ordering::SeqCst);
            wall_unix_ms.fetch_add(i64::try_from(by_ms).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Steps the wall clock of a manual clock, as NTP or an operator would: time that passes is
    /// not affected.
    pub fn step_wall(&self, by_ms: i64) {
        if let Source::Manual { wall_unix_ms, .. } = &*self.0 {
            wall_unix_ms.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::real()
    }
}

fn real_unix_ms() -> i64 {
    real_unix_us().div_euclid(1_000)
}

#[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
fn real_unix_us() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(1_000);
        let twin = clock.clone();
        let before = twin.monotonic();
        assert_eq!(twin.now_unix_ms(), 1_000);
        clock.advance(Duration::from_millis(250));
        assert_eq!(twin.now_unix_ms(), 1_250);
        assert_eq!(twin.monotonic() - before, Duration::from_millis(250));
    }

    #[test]
    fn a_wall_step_does_not_touch_monotonic_time() {
        let clock = Clock::manual(10_000);
        let before = clock.monotonic();
        clock.step_wall(-7_000);
        assert_eq!(clock.now_unix_ms(), 3_000);
        assert_eq!(clock.monotonic(), before);
    }

    #[test]
    fn the_real_clock_is_later_than_this_code() {
        let clock = Clock::real();
        assert!(clock.now_unix_ms() > 1_700_000_000_000);
        clock.advance(Duration::from_secs(1_000_000_000));
        assert!(
            clock.now_unix_ms() < 2_700_000_000_000,
            "the real clock cannot be moved"
        );
        assert!(clock.monotonic() <= clock.monotonic());
    }
}
