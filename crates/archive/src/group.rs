//! Group commit: merges what waits, decides which entries each record makes, and, when the group is
//! durable, opens the entries, has them delivered and answers. Nothing is delivered or answered
//! before; when a group was not written, everything is as it was.

use std::collections::VecDeque;
use std::sync::Arc;

use chancery_api::archive::Outcome;
use chancery_evidence::{Kind, Outcome as Recorded};

use crate::entry::Entry;
use crate::item::{Envelope, Item};
use crate::mailbox::Open;
use crate::memory::Answered;
use crate::preferences::Preferences;
use crate::shard::{
    Act, Body, Change, Deferred, Effect, Group, NotCommitted, Pending, Record, Shard, UnderWay,
};
use crate::tick::own_act;

/// Items of one group commit.
pub(crate) const GROUP_ITEMS: usize = 1_024;
/// Bytes of one group commit, above which no further item is added.
pub(crate) const GROUP_BYTES: usize = 1024 * 1024;
/// Answers that wait for the end of the start; a further one is given at once.
const DEFERRED_LIMIT: usize = 10_000;
/// Domains that have a heartbeat of their own.
const DOMAINS_LIMIT: usize = 1_024;

impl<T> Shard<T> {
    fn is_ready(&self, pending: &Pending<T>) -> bool {
        match &pending.body {
            Body::Stanza { item, .. } if item.makes_entries() => {
                self.is_loaded(item.to_bare())
                    && (!Self::has_sent_copy(item) || self.is_loaded(item.sender_bare()))
            }
            Body::Stanza { .. } => true,
            Body::Act { act, .. } => act.mailbox().is_none_or(|jid| self.is_loaded(jid)),
        }
    }

    /// Merges what waits into the next group, unless one is under way. Called after every step.
    pub(crate) fn pump(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let first = self.head + 1;
        let time_ms = self.now.wall_ms.max(self.last_time_ms);
        let mut group = Group {
            first,
            time_ms,
            mailboxes: Vec::new(),
            records: Vec::new(),
        };
        if self.arrived.is_empty() {
            return;
        }
        let counts = self.counts.clone();
        let mut pending = VecDeque::new();
        let mut bytes = 0;
        while let Some(front) = self.arrived.front() {
            let size = match &front.body {
                Body::Stanza { item, .. } => item.bytes(),
                Body::Act { act, .. } => act.sealed.len() + act.detail.len() + 512,
            };
            let fits = group.records.is_empty() || bytes + size <= GROUP_BYTES;
            if group.records.len() >= GROUP_ITEMS || !fits || !self.is_ready(front) {
                break;
            }
            bytes += size;
            let Some(mut next) = self.arrived.pop_front() else {
                break;
            };
            let record = self.place(&mut next, &mut group.mailboxes);
            group.records.push(record);
            pending.push_back(next);
        }
        if pending.is_empty() {
            return;
        }
        let made = group
            .mailboxes
            .iter()
            .map(|(_, jid)| Arc::clone(jid))
            .collect();
        self.under_way = Some(UnderWay {
            first,
            time_ms,
            made,
            counts,
            pending,
        });
        self.figures.groups.push(group.records.len());
        self.effects.push(Effect::Commit(group));
    }

    /// Decides which entries a record makes, and reserves their room.
    fn place(&mut self, pending: &mut Pending<T>, made: &mut Vec<(i64, Arc<str>)>) -> Record {
        let (item, outcome, entry) = match &mut pending.body {
            Body::Act { act, .. } => {
                if act.kind == Kind::Heartbeat {
                    let act = Arc::new(self.beat(&Arc::clone(act).domain));
                    return Record::Act { act, mailbox: None };
                }
                let mailbox = act.mailbox().and_then(|jid| self.make(jid, made));
                return Record::Act {
                    act: Arc::clone(act),
                    mailbox,
                };
            }
            Body::Stanza {
                item,
                outcome,
                entry,
                ..
            } => (Arc::clone(item), outcome, entry),
        };
        *outcome = if item.allowed {
            Recorded::Recorded
        } else {
            Recorded::Denied
        };
        let mut entries = [None, None];
        if item.makes_entries() {
            let received = self.received_entry(&item);
            if self.reserve(&item, received) {
                *outcome = Recorded::Logged;
                *entry = Some(received);
                let received = self.preferred(received, item.to_bare(), &item.wire.from);
                entries[0] = self.make(item.to_bare(), made).map(|id| (id, received));
                if Self::has_sent_copy(&item) {
                    let sent = item.sent_entry();
                    let sent = self.preferred(sent, item.sender_bare(), &item.wire.to);
                    entries[1] = self.make(item.sender_bare(), made).map(|id| (id, sent));
                }
            } else {
                *outcome = Recorded::Full;
            }
        }
        let outcome = *outcome;
        self.count(&item);
        Record::Stanza {
            item,
            outcome,
            entries,
        }
    }

    /// RFC 6121 §8.5.3.2.1: a `normal` message to a resource that is not there is returned, so it
    /// is not kept either, and is in no archive of whom it did not reach (XEP-0313 §6.1).
    fn received_entry(&self, item: &Item) -> Entry {
        let entry = item.received_entry();
        let returned = entry.has(Entry::OPEN)
            && item.wire.r#type != "chat"
            && self.window_until.is_none()
            && item
                .to_resource()
                .is_some_and(|r| self.session_of(item.to_bare(), r).is_none());
        if returned {
            entry.without_open().hidden()
        } else {
            entry
        }
    }

    /// XEP-0441: hidden where the mailbox's owner does not want it in the own archive.
    fn preferred(&self, entry: Entry, owner: &str, peer: &str) -> Entry {
        let preferences = self
            .mailboxes
            .get(owner)
            .and_then(|mailbox| mailbox.preferences.as_ref());
        if preferences.is_none_or(|preferences| preferences.keeps(peer)) {
            entry
        } else {
            entry.hidden()
        }
    }

    fn reserve(&mut self, item: &Item, entry: Entry) -> bool {
        if !entry.has(Entry::OPEN) {
            return true;
        }
        let settings = self.settings;
        let Some(mailbox) = self.mailboxes.get_mut(item.to_bare()) else {
            return false;
        };
        let bytes = entry.payload_bytes();
        if !mailbox.has_room(bytes, settings.mailbox_entries, settings.mailbox_bytes) {
            return false;
        }
        mailbox.reserved += 1;
        mailbox.reserved_bytes += u64::from(bytes);
        true
    }

    /// The mailbox's id; its row is made with the group when there is none.
    fn make(&mut self, bare: &str, made: &mut Vec<(i64, Arc<str>)>) -> Option<i64> {
        let (jid, _) = self.mailboxes.get_key_value(bare)?;
        let jid = Arc::clone(jid);
        let mailbox = self.mailboxes.get_mut(bare)?;
        if !mailbox.created {
            mailbox.created = true;
            made.push((mailbox.id, jid));
        }
        Some(mailbox.id)
    }

    /// The group under way was written, or not. `archive_ids` are parallel to its records.
    pub(crate) fn committed(&mut self, result: Result<Vec<String>, NotCommitted>) {
        let Some(group) = self.under_way.take() else {
            return;
        };
        match result {
            Ok(archive_ids) => {
                self.last_time_ms = group.time_ms;
                self.figures.records += group.pending.len() as u64;
                let numbered = (group.first..).zip(archive_ids);
                for ((number, archive_id), pending) in numbered.zip(group.pending) {
                    self.head = number;
                    self.settle_pending(pending, number, archive_id, group.time_ms);
                }
                self.announce_heads(false);
            }
            Err(NotCommitted) => {
                self.counts = group.counts;
                for jid in &group.made {
                    if let Some(mailbox) = self.mailboxes.get_mut(jid) {
                        mailbox.created = false;
                    }
                }
                for pending in group.pending {
                    self.abandon(pending);
                }
            }
        }
        self.answer_highest();
    }

    /// A record is durable: delivers it, and answers.
    fn settle_pending(&mut self, pending: Pending<T>, number: u64, archive_id: String, at_ms: i64) {
        self.effects.push(Effect::Release(pending.units));
        match pending.body {
            Body::Act { act, token } => {
                if let Some(jid) = act.mailbox() {
                    self.unpin(jid);
                }
                if act.kind == Kind::Heartbeat {
                    self.ticks.beaten(number);
                }
                match &act.change {
                    Some(Change::Drop(jid)) => self.dropped(jid, number),
                    Some(Change::Prefer(jid, preferences)) => self.prefer(jid, preferences),
                    None => {}
                }
                if let Some(token) = token {
                    self.effects.push(Effect::Acted(token, Some(number)));
                }
            }
            Body::Stanza {
                item,
                token,
                outcome,
                entry,
            } => {
                self.unpair(pending.id, &item);
                let envelope = Arc::new(Envelope {
                    item,
                    number,
                    archive_id,
                    stamp_ms: at_ms,
                });
                let reached = match outcome {
                    Recorded::Full => Some(Outcome::Full),
                    Recorded::Recorded | Recorded::Denied => Some(Outcome::Committed),
                    Recorded::Logged => self.log_entry(&envelope, entry),
                };
                self.unpin_item(&envelope.item);
                if let Some(key) = envelope.item.key {
                    self.memory.mark(&key);
                    if let Some(wait) = self.keys.get_mut(&key) {
                        wait.committed = true;
                    }
                }
                match reached {
                    Some(outcome) => self.conclude(token, &envelope, outcome),
                    None => self.deferred.push(Deferred { token, envelope }),
                }
            }
        }
        for (item, token) in pending.trailing {
            self.route_ephemeral(item, token);
        }
    }

    fn prefer(&mut self, jid: &str, preferences: &Preferences) {
        if !self.settings.preferences_locked
            && let Some(mailbox) = self.mailboxes.get_mut(jid)
        {
            mailbox.preferences = Some(preferences.clone());
        }
    }

    /// Opens the entry and hands it out. `None`: to be decided when the gateways are back.
    fn log_entry(&mut self, envelope: &Arc<Envelope>, entry: Option<Entry>) -> Option<Outcome> {
        let item = &envelope.item;
        let number = envelope.number;
        let open = entry.filter(|entry| entry.has(Entry::OPEN));
        if let Some(mailbox) = self.mailboxes.get_mut(item.to_bare()) {
            mailbox.last_entry = number;
            if let Some(open) = open {
                mailbox.reserved -= 1;
                mailbox.reserved_bytes -= u64::from(open.payload_bytes());
                let bytes = open.payload_bytes();
                mailbox.insert(
                    number,
                    Open {
                        bytes,
                        at_ms: envelope.stamp_ms,
                    },
                );
                mailbox.dirty = true;
            }
        }
        if Self::has_sent_copy(item)
            && let Some(mailbox) = self.mailboxes.get_mut(item.sender_bare())
        {
            mailbox.last_entry = number;
        }
        self.tail.push(Arc::clone(envelope));
        let outcome = self.route_entry(envelope);
        if outcome == Outcome::Committed {
            return Some(outcome);
        }
        let undecided = self.window_until.is_some() && self.deferred.len() < DEFERRED_LIMIT;
        if undecided {
            return None;
        }
        if let Some(mailbox) = self.mailboxes.get_mut(item.to_bare()) {
            mailbox.close(number);
        }
        Some(outcome)
    }

    /// Gives the answer of a recorded item, to whoever asked, asked again, or settles.
    pub(crate) fn conclude(&mut self, token: T, envelope: &Envelope, outcome: Outcome) {
        let (number, archive_id) = (envelope.number, &envelope.archive_id);
        if let Some(key) = envelope.item.key {
            let answered = Answered {
                outcome,
                number,
                archive_id: archive_id.as_str().into(),
            };
            self.memory.remember(key, answered);
            self.resolve(&key, outcome, number, archive_id);
        }
        self.answer(token, envelope.item.wire.seq, outcome, number, archive_id);
    }

    /// Nothing was written: everything is as before the item came.
    fn abandon(&mut self, pending: Pending<T>) {
        self.effects.push(Effect::Release(pending.units));
        match pending.body {
            Body::Act { act, token } => {
                if let Some(jid) = act.mailbox() {
                    self.unpin(jid);
                }
                if let Some(token) = token {
                    self.effects.push(Effect::Acted(token, None));
                }
            }
            Body::Stanza {
                item, token, entry, ..
            } => {
                self.unpair(pending.id, &item);
                if let Some(open) = entry.filter(|entry| entry.has(Entry::OPEN))
                    && let Some(mailbox) = self.mailboxes.get_mut(item.to_bare())
                {
                    mailbox.reserved -= 1;
                    mailbox.reserved_bytes -= u64::from(open.payload_bytes());
                }
                self.unpin_item(&item);
                if let Some(key) = item.key {
                    self.resolve(&key, Outcome::Wait, 0, "");
                }
                self.answer(token, item.wire.seq, Outcome::Wait, 0, "");
            }
        }
        for (item, token) in pending.trailing {
            self.route_ephemeral(item, token);
        }
    }

    pub(crate) fn unpair(&mut self, id: u64, item: &Item) {
        if self.pairs.get(&item.pair) == Some(&id) {
            self.pairs.remove(&item.pair);
        }
    }

    fn unpin_item(&mut self, item: &Item) {
        if item.makes_entries() {
            self.unpin(item.to_bare());
            if Self::has_sent_copy(item) {
                self.unpin(item.sender_bare());
            }
        }
    }

    /// The sign of life of a domain: how many records each gateway has had since the last, by
    /// their numbers, so that it can be checked against the records themselves.
    fn beat(&mut self, domain: &str) -> Act {
        let mut gateways = serde_json::Map::new();
        self.counts.retain(|(of, gateway), counts| {
            if of == domain {
                let counts = serde_json::json!({ "allow": counts.allow, "deny": counts.deny });
                gateways.insert(gateway.clone(), counts);
            }
            of != domain
        });
        let detail = serde_json::json!({ "act": "heartbeat", "gateways": gateways });
        own_act(
            Kind::Heartbeat,
            domain.to_owned(),
            "heartbeat",
            detail.to_string(),
        )
    }

    fn count(&mut self, item: &Item) {
        let key = (item.domain(), item.wire.gateway.as_str());
        let found = self
            .counts
            .iter_mut()
            .find(|(k, _)| (k.0.as_str(), k.1.as_str()) == key);
        let counts = match found {
            Some((_, counts)) => counts,
            None => {
                if self.domains.len() < DOMAINS_LIMIT && !self.domains.iter().any(|d| d == key.0) {
                    self.domains.push(key.0.to_owned());
                }
                self.counts
                    .entry((key.0.to_owned(), key.1.to_owned()))
                    .or_default()
            }
        };
        if item.allowed {
            counts.allow += 1;
        } else {
            counts.deny += 1;
        }
    }
}
