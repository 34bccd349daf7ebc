//! Taking items: checks, repeats, and ephemeral items, which pass the same sequencer without being
//! stored. Refuses what has no verdict; what it takes, `group.rs` writes.

use std::sync::Arc;

use chancery_api::Kind;
use chancery_api::archive::{AppendItem, Outcome};
use chancery_evidence::Outcome as Recorded;

use crate::item::Item;
use crate::memory::Known;
use crate::settle::KeyWait;
use crate::shard::{Body, Effect, Pending, Shard};

/// Ephemeral items that wait for one item that is not yet committed.
const TRAILING_LIMIT: usize = 64;
/// Repeats of one item that wait for its answer; a further one is told to wait.
const REPEATS_LIMIT: usize = 64;

impl<T> Shard<T> {
    /// Takes a batch of one lane, in order; an item comes with whoever waits and the room it takes.
    pub(crate) fn append(
        &mut self,
        gateway: &str,
        incarnation: u64,
        items: Vec<(AppendItem, T, u32)>,
    ) {
        let fenced = !self.admits(gateway, incarnation);
        for (wire, token, units) in items {
            if fenced {
                // Nobody listens on a lane that a newer one has fenced.
                self.effects.push(Effect::Release(units));
                continue;
            }
            self.accept(wire, token, units);
        }
    }

    fn accept(&mut self, wire: AppendItem, token: T, units: u32) {
        let seq = wire.seq;
        let item = match Item::check(wire, self.settings.shard) {
            Ok(item) => Arc::new(item),
            Err(reason) => {
                tracing::debug!(reason, "refused an item");
                self.answer(token, seq, Outcome::Refused, 0, "");
                self.effects.push(Effect::Release(units));
                return;
            }
        };
        if item.wire.ephemeral {
            self.effects.push(Effect::Release(units));
            self.take_ephemeral(item, token);
            return;
        }
        if let Some(key) = item.key {
            match self.memory.look(&key) {
                Known::Answered(known) => {
                    self.answer(token, seq, known.outcome, known.number, &known.archive_id);
                    self.effects.push(Effect::Release(units));
                    return;
                }
                Known::Forgotten => {
                    self.answer(token, seq, Outcome::Committed, 0, "");
                    self.effects.push(Effect::Release(units));
                    return;
                }
                Known::Late => {
                    self.answer(token, seq, Outcome::Late, 0, "");
                    self.effects.push(Effect::Release(units));
                    return;
                }
                Known::New => {}
            }
            if let Some(wait) = self.keys.get_mut(&key) {
                if wait.repeats.len() < REPEATS_LIMIT {
                    wait.repeats.push((token, seq));
                } else {
                    self.answer(token, seq, Outcome::Wait, 0, "");
                }
                self.effects.push(Effect::Release(units));
                return;
            }
        }
        if item.allowed && self.is_unknown_yet(&item) {
            self.answer(token, seq, Outcome::Wait, 0, "");
            self.effects.push(Effect::Release(units));
            return;
        }
        if let Some(key) = item.key {
            self.keys.insert(key, KeyWait::default());
        }
        if item.makes_entries() {
            self.want(item.to_bare(), 1);
            if Self::has_sent_copy(&item) {
                self.want(item.sender_bare(), 1);
            }
        }
        let id = self.next_pending;
        self.pairs.insert(item.pair, id);
        let body = Body::Stanza {
            item,
            token,
            outcome: Recorded::Recorded,
            entry: None,
        };
        self.enqueue(units, body);
    }

    /// For a while after a start an IQ to a full JID that nobody has attached waits: whether
    /// there is somebody is not known.
    pub(crate) fn is_unknown_yet(&self, item: &Item) -> bool {
        self.window_until.is_some()
            && item.wire.kind() == Kind::Iq
            && item
                .to_resource()
                .is_some_and(|r| self.session_of(item.to_bare(), r).is_none())
    }

    /// An ephemeral item waits only for an uncommitted item of the same pair.
    fn take_ephemeral(&mut self, item: Arc<Item>, token: T) {
        let Some(id) = self.pairs.get(&item.pair).copied() else {
            self.route_ephemeral(item, token);
            return;
        };
        let full = match self.pending_mut(id) {
            Some(pending) if pending.trailing.len() < TRAILING_LIMIT => {
                pending.trailing.push((item, token));
                return;
            }
            Some(_) => true,
            None => false,
        };
        if full {
            let outcome = if item.is_iq_request() {
                Outcome::Wait
            } else {
                Outcome::Committed
            };
            self.answer(token, item.wire.seq, outcome, 0, "");
        } else {
            self.route_ephemeral(item, token);
        }
    }

    fn pending_mut(&mut self, id: u64) -> Option<&mut Pending<T>> {
        let groups = self.under_way.iter_mut().map(|group| &mut group.pending);
        for queue in groups.chain([&mut self.arrived]) {
            let Some(first) = queue.front().map(|pending| pending.id) else {
                continue;
            };
            let at = usize::try_from(id.checked_sub(first)?).ok()?;
            if at < queue.len() {
                return queue.get_mut(at);
            }
        }
        None
    }
}
