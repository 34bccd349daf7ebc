//! What became of recent idempotency keys, and the highest count of each stream-management id, so
//! that a repeat is one record and a lost lane can be settled. Bounded; refuses to guess about
//! what it has forgotten beyond saying that it was in the log.

use std::collections::VecDeque;

use chancery_api::archive::Outcome;
use chancery_evidence::IdempotencyKey;
use hashbrown::HashMap;

/// Keys whose answers are remembered; the oldest is forgotten first.
pub(crate) const KEYS_LIMIT: usize = 100_000;
/// Stream-management ids whose highest count is remembered; the oldest is forgotten first.
pub(crate) const STREAMS_LIMIT: usize = 200_000;

/// The answer that an item got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) outcome: Outcome,
    pub(crate) number: u64,
    pub(crate) archive_id: Box<str>,
}

#[derive(Debug, Default)]
struct Mark {
    highest: u64,
    /// The highest count whose answer was forgotten.
    forgotten: u64,
    /// The highest count that the client was told.
    told: u64,
    /// Nothing above this count is taken any more.
    closed: Option<u64>,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Its answer.
    Answered(Answered),
    /// It was in the log, and its answer is forgotten.
    Forgotten,
    /// It comes after the end of its stream.
    Late,
    /// Never seen.
    New,
}

/// The memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    answers: HashMap<IdempotencyKey, Answered>,
    order: VecDeque<IdempotencyKey>,
    marks: HashMap<[u8; 16], Mark>,
    streams: VecDeque<[u8; 16]>,
}

impl Memory {
    /// Remembers the answer to `key`.
    pub(crate) fn remember(&mut self, key: IdempotencyKey, answered: Answered) {
        if self.answers.insert(key, answered).is_none() {
            self.order.push_back(key);
        }
        self.mark(&key);
        if self.order.len() > KEYS_LIMIT
            && let Some(old) = self.order.pop_front()
        {
            self.answers.remove(&old);
            if let Some(mark) = self.marks.get_mut(&old.stream) {
                mark.forgotten = mark.forgotten.max(old.count);
            }
        }
    }

    /// `key` is in the log, whatever its answer will be.
    pub(crate) fn mark(&mut self, key: &IdempotencyKey) {
        let mark = self.entry(key.stream);
        mark.highest = mark.highest.max(key.count);
    }

    /// The client was told that so many are handled; not all of them are in the log.
    pub(crate) fn told(&mut self, stream: [u8; 16], count: u64) {
        let mark = self.entry(stream);
        mark.told = mark.told.max(count);
    }

    fn entry(&mut self, stream: [u8; 16]) -> &mut Mark {
        if !self.marks.contains_key(&stream) {
            self.streams.push_back(stream);
        }
        if self.streams.len() > STREAMS_LIMIT
            && let Some(old) = self.streams.pop_front()
        {
            self.marks.remove(&old);
        }
        self.marks.entry(stream).or_default()
    }

    /// What is known of `key`.
    pub(crate) fn look(&self, key: &IdempotencyKey) -> Known {
        if let Some(answered) = self.answers.get(key) {
            return Known::Answered(answered.clone());
        }
        match self.marks.get(&key.stream) {
            Some(mark) if key.count <= mark.forgotten => Known::Forgotten,
            Some(mark) if mark.closed.is_some_and(|at| key.count > at) => Known::Late,
            _ => Known::New,
        }
    }

    /// The highest count that is in the log of a stream-management id, or was told; nothing above it
    /// is taken from now on. Whoever asks says again what is above it, under another id.
    pub(crate) fn close(&mut self, stream: &[u8; 16]) -> Option<u64> {
        let mark = self.marks.get_mut(stream)?;
        Some(*mark.closed.get_or_insert(mark.highest.max(mark.told)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stream: u8, count: u64) -> IdempotencyKey {
        IdempotencyKey {
            stream: [stream; 16],
            count,
        }
    }

    fn answered(number: u64) -> Answered {
        Answered {
            outcome: Outcome::Committed,
            number,
            archive_id: "id".into(),
        }
    }

    #[test]
    fn a_repeat_is_known_and_a_gap_is_new() {
        let mut memory = Memory::default();
        memory.remember(key(1, 5), answered(50));
        assert_eq!(memory.look(&key(1, 5)), Known::Answered(answered(50)));
        // Never taken, although a later one was: it may come again.
        assert_eq!(memory.look(&key(1, 4)), Known::New);
        assert_eq!(memory.look(&key(2, 5)), Known::New);
        assert_eq!(memory.close(&[2; 16]), None);
        memory.told([1; 16], 4);
        memory.told([3; 16], 2);
        assert_eq!(memory.close(&[3; 16]), Some(2));
        assert_eq!(memory.close(&[1; 16]), Some(5));
        assert_eq!(memory.look(&key(1, 6)), Known::Late);
        memory.told([1; 16], 7);
        assert_eq!(memory.close(&[1; 16]), Some(5), "as it was told first");
    }

    #[test]
    fn what_was_forgotten_is_still_known_to_be_in_the_log() {
        let mut memory = Memory::default();
        for count in 1..=KEYS_LIMIT as u64 + 10 {
            memory.remember(key(1, count), answered(count));
        }
        assert_eq!(memory.answers.len(), KEYS_LIMIT);
        assert_eq!(memory.look(&key(1, 10)), Known::Forgotten);
        assert_eq!(memory.look(&key(1, 11)), Known::Answered(answered(11)));
    }
}
