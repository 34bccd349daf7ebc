//! A token bucket per session. Over it reading pauses, and TCP tells the client; nothing is refused.

use std::time::Duration;

use tokio::time::Instant;

/// Tokens are counted in thousandths, so that short intervals are not lost.
const SCALE: u64 = 1000;

/// What one session may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Stanzas a second in the long run.
    pub(crate) stanzas_per_second: u32,
    /// Stanzas at once.
    pub(crate) burst: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    milli_tokens: u64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, milli_tokens: u64::from(rate.burst) * SCALE, filled_at: now }
    }

    /// Takes a token, or says when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let rate = u64::from(self.rate.stanzas_per_second.max(1));
        let micros = u64::try_from(now.saturating_duration_since(self.filled_at).as_micros())
            .unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(rate) / 1000;
        if gained > 0 {
            let room = u64::from(self.rate.burst.max(1)) * SCALE;
            self.milli_tokens = self.milli_tokens.saturating_add(gained).min(room);
            self.filled_at = now;
        }
        if self.milli_tokens >= SCALE {
            self.milli_tokens -= SCALE;
            return Ok(());
        }
        let missing = SCALE - self.milli_tokens;
        Err(now + Duration::from_micros((missing * 1000).div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { stanzas_per_second: 10, burst: 3 }, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let next = start + Duration::from_millis(100);
        assert_eq!(bucket.take(start), Err(next));
        assert_eq!(bucket.take(next), Ok(()));
        // ten seconds of silence fill no more than the burst
        let later = next + Duration::from_secs(10);
        let taken = (0..10).filter(|_| bucket.take(later).is_ok()).count();
        assert_eq!(taken, 3);
    }
}
