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
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
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

    /// See [`Shaping::took`].
    pub(crate) fn took(&self, bytes: usize, now: Instant) -> Option<Instant> {
        self.0.lock().took(bytes, now)
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

    /// Takes so many. When there is something to take again; `None` when there is now.
    fn take(&mut self, tokens: u64, now: Instant) -> Option<Instant> {
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
        self.milli_tokens = self.milli_tokens.saturating_sub(scaled(tokens));
        let missing = u64::try_from(1 - self.milli_tokens)
            .ok()
            .filter(|missing| *missing > 0)?;
        Some(now + Duration::from_micros((missing * 1000).div_ceil(rate)))
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

    /// A stanza of so many bytes was read. When reading may go on; `None` when it may now.
    pub(crate) fn took(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let stanzas = self.stanzas.take(1, now);
        stanzas.max(self.bytes.take(bytes as u64, now))
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
        assert_eq!(shaping.took(1, start), None);
        assert_eq!(shaping.took(1, start), None);
        let next = shaping.took(1, start);
        assert!(next.is_some_and(|at| at > start && at < start + Duration::from_millis(2)));
        // one stanza goes below zero and is paid for
        let later = start + Duration::from_millis(1);
        let next = shaping.took(1, later);
        assert!(next.is_some_and(|at| at > later + Duration::from_millis(95)));
        // ten seconds of silence fill no more than the burst
        let mut taken = 1; // the last, which closes
        while shaping.took(1, later + Duration::from_secs(10)).is_none() {
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
        let until = shaping.took(2100, now);
        assert!(until.is_some_and(|at| at >= now + Duration::from_secs(2)));
    }
}
