//! Randomness, handed to whoever needs it: ids, tokens, nonces, salts, keys. It owns the only
//! reads of the system's generator; it refuses to give any id a meaning.

use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use parking_lot::Mutex;

/// A source of random bytes. Cloning shares the source.
#[derive(Clone, Debug)]
pub struct Ids(Arc<Source>);

#[derive(Debug)]
enum Source {
    System(SystemRandom),
    Seeded(Mutex<u64>),
}

impl Ids {
    /// The system's cryptographic generator.
    #[allow(clippy::disallowed_methods)] // the one place that opens the system's generator
    pub fn real() -> Self {
        Self(Arc::new(Source::System(SystemRandom::new())))
    }

    /// A sequence that a test can replay. Predictable: never for a server.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Source::Seeded(Mutex::new(seed))))
    }

    /// Fills `out`. A system that has no randomness left can neither seal nor authenticate, so
    /// the process ends rather than going on with known bytes.
    pub fn fill(&self, out: &mut [u8]) {
        match &*self.0 {
            Source::System(random) => {
                if random.fill(out).is_err() {
                    tracing::error!("the system's random generator failed, aborting");
                    std::process::abort();
                }
            }
            Source::Seeded(state) => {
                let mut state = state.lock();
                for chunk in out.chunks_mut(8) {
                    let word = split_mix(&mut state).to_le_bytes();
                    chunk.copy_from_slice(&word[..chunk.len()]);
                }
            }
        }
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// 128 random bits.
    pub fn id(&self) -> [u8; 16] {
        self.bytes()
    }

    /// 64 random bits, for shuffles, jitter and incarnations.
    pub fn number(&self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// 128 random bits as 32 lower case hex digits: a resource, a stream id, a stanza id.
    pub fn token(&self) -> String {
        hex::encode(self.id())
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::real()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and three mixing steps a word.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_another_seed_differs() {
        let (a, b, c) = (Ids::seeded(7), Ids::seeded(7), Ids::seeded(8));
        let first: [u8; 37] = a.bytes();
        assert_eq!(first, b.bytes::<37>());
        assert_ne!(first, c.bytes::<37>());
        assert_ne!(first, a.bytes::<37>(), "the sequence goes on");
    }

    #[test]
    fn tokens_are_32_hex_digits_and_do_not_repeat() {
        let ids = Ids::real();
        let seen: std::collections::HashSet<String> = (0..100_000).map(|_| ids.token()).collect();
        assert_eq!(seen.len(), 100_000);
        // D15: no place of them tells anything of the next one.
        for place in 0..32 {
            let digits: std::collections::HashSet<u8> =
                seen.iter().map(|token| token.as_bytes()[place]).collect();
            assert_eq!(digits.len(), 16, "digit {place}");
        }
        assert!(
            seen.iter()
                .all(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }
}
