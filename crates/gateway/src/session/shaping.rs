//! Token buckets: of a session, of an account's sessions, of a domain's. Over one of them reading
//! pauses, and TCP tells the client; nothing is refused.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tokens are counted in thousandths, so that short intervals are not lost.
const SCALE: u64 = 1000;

/// What one session may send of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In the long run.
    pub(crate) per_second: u32,
    /// At once, after a pause.
    pub(crate) burst: u32,
}

/// A bucket may go below zero: what a stanza takes is known when it is there.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    milli_tokens: i64,
    filled_at: Instant,
}

/// Stanzas and bytes of one session, or of several together.
#[derive(Debug)]
pub(crate) struct Shaping {
    stanzas: Bucket,
    bytes: Bucket,
}

/// Buckets that several sessions take from. They may go below zero by a stanza of each.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Shaping>>);

impl Shared {
    /// Full buckets, for whoever gets a clone.
    pub(crate) fn new(stanzas: Rate, bytes: Rate, now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Shaping::new(stanzas, bytes, now))))
    }

    /// See [`Shaping::closed_until`].
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.0.lock().closed_until(now)
    }

    /// See [`Shaping::took`].
    pub(crate) fn took(&self, bytes: usize) {
        self.0.lock().took(bytes);
    }

    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            milli_tokens: scaled(rate.burst.into()),
            filled_at: now,
        }
    }

    /// When there is something to take again; `None` when there is now.
    fn closed_until(&mut self, now: Instant) -> Option<Instant> {
        let rate = u64::from(self.rate.per_second.max(1));
        let micros = u64::try_from(now.saturating_duration_since(self.filled_at).as_micros())
            .unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(rate) / 1000;
        if gained > 0 {
            let gained = i64::try_from(gained).unwrap_or(i64::MAX);
            let room = scaled(self.rate.burst.max(1).into());
            self.milli_tokens = self.milli_tokens.saturating_add(gained).min(room);
            self.filled_at = now;
        }
        let missing = u64::try_from(1 - self.milli_tokens)
            .ok()
            .filter(|missing| *missing > 0)?;
        Some(now + Duration::from_micros((missing * 1000).div_ceil(rate)))
    }

    fn take(&mut self, tokens: u64) {
        self.milli_tokens = self.milli_tokens.saturating_sub(scaled(tokens));
    }
}

impl Shaping {
    /// Full buckets.
    pub(crate) fn new(stanzas: Rate, bytes: Rate, now: Instant) -> Self {
        Self {
            stanzas: Bucket::new(stanzas, now),
            bytes: Bucket::new(bytes, now),
        }
    }

    /// When reading may go on; `None` when it may now.
    pub(crate) fn closed_until(&mut self, now: Instant) -> Option<Instant> {
        self.stanzas
            .closed_until(now)
            .max(self.bytes.closed_until(now))
    }

    /// A stanza of so many bytes was read.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.stanzas.take(1);
        self.bytes.take(bytes as u64);
    }
}

fn scaled(tokens: u64) -> i64 {
    i64::try_from(tokens.saturating_mul(SCALE)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let start = Instant::now();
        let plenty = Rate {
            per_second: 1000,
            burst: 1_000_000,
        };
        let mut shaping = Shaping::new(
            Rate {
                per_second: 10,
                burst: 3,
            },
            plenty,
            start,
        );
        for _ in 0..3 {
            assert_eq!(shaping.closed_until(start), None);
            shaping.took(1);
        }
        let next = shaping.closed_until(start);
        assert!(next.is_some_and(|at| at > start && at < start + Duration::from_millis(2)));
        // one stanza goes below zero and is paid for
        let later = start + Duration::from_millis(1);
        assert_eq!(shaping.closed_until(later), None);
        shaping.took(1);
        assert!(
            shaping
                .closed_until(later)
                .is_some_and(|at| at > later + Duration::from_millis(95))
        );
        // ten seconds of silence fill no more than the burst
        let mut taken = 0;
        while shaping
            .closed_until(later + Duration::from_secs(10))
            .is_none()
        {
            shaping.took(1);
            taken += 1;
        }
        assert_eq!(taken, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_stanza_is_paid_for() {
        let now = Instant::now();
        let plenty = Rate {
            per_second: 1000,
            burst: 1000,
        };
        let mut shaping = Shaping::new(
            plenty,
            Rate {
                per_second: 1000,
                burst: 100,
            },
            now,
        );
        assert_eq!(shaping.closed_until(now), None);
        shaping.took(2100);
        let until = shaping.closed_until(now);
        assert!(until.is_some_and(|at| at >= now + Duration::from_secs(2)));
    }
}
