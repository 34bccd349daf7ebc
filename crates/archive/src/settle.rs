//! Settling: what became of keys that were submitted on a lane that is lost. Owns the fence by
//! incarnation and the wait for what is still under way; an answer given here is final.

use chancery_api::archive::{AppendAnswer, Key, Outcome};
use chancery_evidence::IdempotencyKey;

use crate::item::stream_id;
use crate::memory::Known;
use crate::shard::{Effect, Shard};

/// Gateways whose incarnation is known; a further one may not append.
pub(crate) const LANES_LIMIT: usize = 4_096;

/// Who else waits for a key that is under way.
pub(crate) struct KeyWait<T> {
    /// The same item, submitted again.
    pub(crate) repeats: Vec<(T, u64)>,
    pub(crate) settles: Vec<u64>,
    /// In the log, and only its answer is open.
    pub(crate) committed: bool,
}

impl<T> Default for KeyWait<T> {
    fn default() -> Self {
        Self {
            repeats: Vec::new(),
            settles: Vec::new(),
            committed: false,
        }
    }
}

/// A question that waits for keys under way.
pub(crate) struct SettleWait<T> {
    token: T,
    keys: Vec<Option<IdempotencyKey>>,
    missing: usize,
}

impl<T> Shard<T> {
    /// Whether a lane of this incarnation may append; a higher one fences the lower.
    pub(crate) fn admits(&mut self, gateway: &str, incarnation: u64) -> bool {
        let full = self.lanes.len() >= LANES_LIMIT;
        match self.lanes.get_mut(gateway) {
            Some(known) if incarnation < *known => false,
            Some(known) => {
                *known = incarnation;
                true
            }
            None if full => false,
            None => {
                self.lanes.insert(gateway.to_owned(), incarnation);
                true
            }
        }
    }

    /// Answers for every key, once none of them is under way.
    pub(crate) fn settle(&mut self, gateway: &str, incarnation: u64, keys: &[Key], token: T) {
        // Fences first: what an older lane submits from now on is not taken.
        self.admits(gateway, incarnation);
        let keys: Vec<Option<IdempotencyKey>> = keys
            .iter()
            .map(|key| {
                (key.sm_id.len() == 16).then(|| IdempotencyKey {
                    stream: stream_id(&key.sm_id),
                    count: key.count,
                })
            })
            .collect();
        let id = self.next_settle;
        self.next_settle += 1;
        let mut missing = 0;
        for key in keys.iter().flatten() {
            if let Some(wait) = self.keys.get_mut(key) {
                wait.settles.push(id);
                missing += 1;
            }
        }
        let wait = SettleWait {
            token,
            keys,
            missing,
        };
        if missing == 0 {
            self.finish(wait);
        } else {
            self.settles.insert(id, wait);
        }
    }

    /// A key is no longer under way.
    pub(crate) fn resolve(
        &mut self,
        key: &IdempotencyKey,
        outcome: Outcome,
        number: u64,
        archive_id: &str,
    ) {
        let Some(wait) = self.keys.remove(key) else {
            return;
        };
        for (token, seq) in wait.repeats {
            self.answer(token, seq, outcome, number, archive_id);
        }
        for id in wait.settles {
            let Some(settle) = self.settles.get_mut(&id) else {
                continue;
            };
            settle.missing -= 1;
            if settle.missing == 0
                && let Some(settle) = self.settles.remove(&id)
            {
                self.finish(settle);
            }
        }
    }

    fn finish(&mut self, wait: SettleWait<T>) {
        let answer = |key: &Option<IdempotencyKey>| match key
            .as_ref()
            .map_or(Known::New, |key| self.memory.look(key))
        {
            Known::Answered(known) => AppendAnswer {
                seq: 0,
                outcome: known.outcome.into(),
                number: known.number,
                archive_id: known.archive_id.into(),
            },
            Known::Forgotten => AppendAnswer {
                outcome: Outcome::Committed.into(),
                ..AppendAnswer::default()
            },
            Known::Late | Known::New => AppendAnswer {
                outcome: Outcome::Never.into(),
                ..AppendAnswer::default()
            },
        };
        let answers = wait.keys.iter().map(answer).collect();
        self.effects.push(Effect::Settled(wait.token, answers));
    }
}
