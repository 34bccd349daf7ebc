//! The sequencer of one shard, as a state machine without I/O: items, streams and results of the
//! disk come in as calls, and go out as [`Effect`]s and as what waits on each stream. Owns the one
//! order in which records are written, delivered and answered. Does no I/O, reads no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chancery_api::Kind;
use chancery_api::archive::{AppendAnswer, HighestCount, Outcome};
use chancery_evidence::{IdempotencyKey, Outcome as Recorded};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::follower::{Follower, FollowerKey, Gateway, Stream, StreamId};
use crate::handover::Handover;
use crate::item::{Envelope, Item};
use crate::mailbox::{Mailbox, MailboxRow, MailboxSave};
use crate::memory::Memory;
use crate::preferences::Preferences;
use crate::read::{ReadPage, ReadRange};
use crate::settle::{KeyWait, SettleWait};

/// Envelopes kept in memory for sessions that catch up, and their bytes.
const TAIL_ITEMS: usize = 4_096;
const TAIL_BYTES: usize = 8 * 1024 * 1024;
/// For so long after a start an unattached full JID is unknown, not gone.
pub(crate) const START_WINDOW: Duration = Duration::from_secs(5);

/// What a shard is told once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) shard: u32,
    pub(crate) mailbox_entries: u32,
    pub(crate) mailbox_bytes: u64,
    pub(crate) expiry_ms: i64,
    /// Everybody's archive has everything, whatever anybody has said.
    pub(crate) preferences_locked: bool,
}

/// The time, as the caller of a step read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) monotonic: Instant,
    pub(crate) wall_ms: i64,
}

/// Where the log stood when the shard was taken over.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) head: u64,
    pub(crate) last_time_ms: i64,
    pub(crate) last_mailbox: i64,
    pub(crate) memory: Memory,
    pub(crate) counts: BTreeMap<(String, String), Counts>,
    /// The last heartbeat; 0 where none was read.
    pub(crate) beaten: u64,
    pub(crate) domains: Vec<String>,
}

/// Records of one gateway since the last heartbeat, so that completeness can be checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) allow: u64,
    pub(crate) deny: u64,
}

/// A record that no stanza makes.
#[derive(Debug)]
pub(crate) struct Act {
    pub(crate) kind: chancery_evidence::Kind,
    pub(crate) domain: String,
    pub(crate) actor: String,
    pub(crate) act: String,
    /// Readable without a key; no JID, no content.
    pub(crate) detail: String,
    /// Sealed.
    pub(crate) sealed: String,
    /// What it changes of a mailbox.
    pub(crate) change: Option<Change>,
}

/// A change of one mailbox that is a record.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Nothing below this record is delivered again.
    Drop(Arc<str>),
    /// What its owner wants in the own archive from here on.
    Prefer(Arc<str>, Preferences),
}

impl Act {
    /// The mailbox that it changes.
    pub(crate) fn mailbox(&self) -> Option<&Arc<str>> {
        match self.change.as_ref()? {
            Change::Drop(jid) | Change::Prefer(jid, _) => Some(jid),
        }
    }
}

/// One record of a group.
#[derive(Debug)]
pub(crate) enum Record {
    Stanza {
        item: Arc<Item>,
        outcome: Recorded,
        entries: [Option<(i64, Entry)>; 2],
    },
    Act {
        act: Arc<Act>,
        mailbox: Option<i64>,
    },
}

/// What one durable transaction writes: all of it or nothing.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) first: u64,
    pub(crate) time_ms: i64,
    pub(crate) mailboxes: Vec<(i64, Arc<str>)>,
    pub(crate) records: Vec<Record>,
}

/// Nothing of the group was written; the same may work later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotCommitted;

/// What the shard wants done. `T` names whoever waits for an answer.
#[derive(Debug)]
pub(crate) enum Effect<T> {
    Commit(Group),
    Save(Vec<MailboxSave>),
    Load(Arc<str>),
    Read(ReadPage),
    CatchUp(ReadRange),
    Answer(T, AppendAnswer),
    Acted(T, Option<u64>),
    Settled(T, Vec<AppendAnswer>),
    Close(StreamId),
    /// Room in the queue that an item no longer takes.
    Release(u32),
}

pub(crate) enum Body<T> {
    Stanza {
        item: Arc<Item>,
        token: T,
        outcome: Recorded,
        entry: Option<Entry>,
    },
    Act {
        act: Arc<Act>,
        token: Option<T>,
    },
}

pub(crate) struct Pending<T> {
    pub(crate) id: u64,
    pub(crate) units: u32,
    pub(crate) body: Body<T>,
    pub(crate) trailing: Vec<(Arc<Item>, T)>,
}

pub(crate) struct UnderWay<T> {
    pub(crate) first: u64,
    pub(crate) time_ms: i64,
    pub(crate) made: Vec<Arc<str>>,
    /// The counters as they were before it.
    pub(crate) counts: BTreeMap<(String, String), Counts>,
    pub(crate) pending: VecDeque<Pending<T>>,
}

/// An answer that waits until the gateways have had time to attach again.
pub(crate) struct Deferred<T> {
    pub(crate) token: T,
    pub(crate) envelope: Arc<Envelope>,
}

/// Recent envelopes, by number.
#[derive(Default)]
pub(crate) struct Tail {
    envelopes: VecDeque<Arc<Envelope>>,
    bytes: usize,
}

impl Tail {
    pub(crate) fn push(&mut self, envelope: Arc<Envelope>) {
        self.bytes += envelope.item.bytes();
        self.envelopes.push_back(envelope);
        while self.envelopes.len() > TAIL_ITEMS || self.bytes > TAIL_BYTES {
            let Some(old) = self.envelopes.pop_front() else {
                break;
            };
            self.bytes -= old.item.bytes();
        }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Arc<Envelope>> {
        let at = self
            .envelopes
            .binary_search_by_key(&number, |e| e.number)
            .ok()?;
        self.envelopes.get(at)
    }
}

/// The sequencer.
pub(crate) struct Shard<T> {
    pub(crate) settings: Settings,
    pub(crate) now: Now,
    pub(crate) effects: Vec<Effect<T>>,
    pub(crate) head: u64,
    pub(crate) last_time_ms: i64,
    pub(crate) arrived: VecDeque<Pending<T>>,
    pub(crate) under_way: Option<UnderWay<T>>,
    pub(crate) next_pending: u64,
    /// The last uncommitted item of a pair of bare JIDs, by their hash; one that collides waits
    /// for nothing worse than a commit.
    pub(crate) pairs: hashbrown::HashMap<u64, u64>,
    pub(crate) memory: Memory,
    pub(crate) keys: hashbrown::HashMap<IdempotencyKey, KeyWait<T>>,
    pub(crate) settles: HashMap<u64, SettleWait<T>>,
    pub(crate) next_settle: u64,
    /// Questions for a highest count that wait for what is under way.
    pub(crate) highest: Vec<(StreamId, HighestCount)>,
    pub(crate) lanes: HashMap<String, u64>,
    pub(crate) mailboxes: HashMap<Arc<str>, Mailbox>,
    next_mailbox: i64,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) gateway_index: HashMap<Arc<str>, u32>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    pub(crate) followers: hashbrown::HashMap<FollowerKey, Follower>,
    pub(crate) lagging: BTreeSet<FollowerKey>,
    /// Who waits for another session of its full JID to end.
    pub(crate) handovers: BTreeMap<FollowerKey, Handover>,
    /// A stream had no room since the last tick: its sessions are looked at again.
    pub(crate) pressed: bool,
    pub(crate) next_read: u64,
    pub(crate) tail: Tail,
    pub(crate) window_until: Option<Instant>,
    pub(crate) deferred: Vec<Deferred<T>>,
    pub(crate) counts: BTreeMap<(String, String), Counts>,
    pub(crate) domains: Vec<String>,
    pub(crate) ticks: crate::tick::Ticks,
    pub(crate) figures: crate::metrics::Figures,
}

impl<T> Shard<T> {
    pub(crate) fn new(settings: Settings, recovered: Recovered, now: Now) -> Self {
        let ticks = crate::tick::Ticks::new(now, &recovered);
        Self {
            settings,
            now,
            effects: Vec::new(),
            head: recovered.head,
            last_time_ms: recovered.last_time_ms,
            arrived: VecDeque::new(),
            under_way: None,
            next_pending: 1,
            pairs: hashbrown::HashMap::new(),
            memory: recovered.memory,
            keys: hashbrown::HashMap::new(),
            settles: HashMap::new(),
            next_settle: 1,
            highest: Vec::new(),
            lanes: HashMap::new(),
            mailboxes: HashMap::new(),
            next_mailbox: recovered.last_mailbox + 1,
            gateways: Vec::new(),
            gateway_index: HashMap::new(),
            streams: BTreeMap::new(),
            followers: hashbrown::HashMap::new(),
            lagging: BTreeSet::new(),
            handovers: BTreeMap::new(),
            pressed: false,
            next_read: 1,
            tail: Tail::default(),
            // An empty log has no sessions that could come back.
            window_until: (recovered.head > 0).then(|| now.monotonic + START_WINDOW),
            deferred: Vec::new(),
            counts: recovered.counts,
            domains: recovered.domains,
            ticks,
            figures: crate::metrics::Figures::default(),
        }
    }

    /// Queues a record that no stanza makes.
    pub(crate) fn act(&mut self, act: Act, token: Option<T>) {
        if let Some(jid) = act.mailbox() {
            self.want(jid, 1);
        }
        self.enqueue(
            0,
            Body::Act {
                act: Arc::new(act),
                token,
            },
        );
    }

    pub(crate) fn enqueue(&mut self, units: u32, body: Body<T>) {
        let id = self.next_pending;
        self.next_pending += 1;
        self.arrived.push_back(Pending {
            id,
            units,
            body,
            trailing: Vec::new(),
        });
    }

    /// Whether the sender's own mailbox gets a copy.
    pub(crate) fn has_sent_copy(item: &Item) -> bool {
        item.wire.kind() == Kind::Message && !item.is_to_self()
    }

    pub(crate) fn session_of(&self, bare: &str, resource: &str) -> Option<FollowerKey> {
        let sessions = &self.mailboxes.get(bare)?.sessions;
        let has = |key: &&FollowerKey| {
            self.followers
                .get(*key)
                .is_some_and(|f| &*f.resource == resource)
        };
        sessions.iter().find(has).copied()
    }

    /// The mailbox is needed: has it read unless it is here. `pins` items under way need it.
    pub(crate) fn want(&mut self, bare: &str, pins: u32) {
        if let Some(mailbox) = self.mailboxes.get_mut(bare) {
            mailbox.pins += pins;
            return;
        }
        let jid: Arc<str> = bare.into();
        let mut mailbox = Mailbox::new(0, self.now.monotonic);
        mailbox.pins = pins;
        self.mailboxes.insert(Arc::clone(&jid), mailbox);
        self.effects.push(Effect::Load(jid));
    }

    /// A mailbox was read; `None` when there is no such row.
    pub(crate) fn loaded(&mut self, jid: &str, row: Option<MailboxRow>) {
        let Some(waiting) = self.mailboxes.get(jid) else {
            return;
        };
        if waiting.is_loaded() {
            return;
        }
        let pins = waiting.pins;
        let now = self.now;
        let found = row.and_then(|row| Mailbox::from_row(row, now.monotonic, now.wall_ms));
        let mut mailbox = found.unwrap_or_else(|| {
            let id = self.next_mailbox;
            self.next_mailbox += 1;
            Mailbox::new(id, now.monotonic)
        });
        mailbox.pins = pins;
        if self.settings.preferences_locked {
            mailbox.preferences = None;
        }
        mailbox.expire(now.wall_ms - self.settings.expiry_ms);
        if let Some(slot) = self.mailboxes.get_mut(jid) {
            *slot = mailbox;
        }
        let waiting: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, s)| !s.inbox.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.process(id);
        }
    }

    pub(crate) fn is_loaded(&self, bare: &str) -> bool {
        self.mailboxes.get(bare).is_some_and(Mailbox::is_loaded)
    }

    pub(crate) fn unpin(&mut self, bare: &str) {
        let now = self.now.monotonic;
        if let Some(mailbox) = self.mailboxes.get_mut(bare) {
            mailbox.pins = mailbox.pins.saturating_sub(1);
            mailbox.idle_since = now;
        }
    }

    pub(crate) fn answer(
        &mut self,
        token: T,
        seq: u64,
        outcome: Outcome,
        number: u64,
        archive_id: &str,
    ) {
        let answer = AppendAnswer {
            seq,
            outcome: outcome.into(),
            number,
            archive_id: archive_id.to_owned(),
        };
        self.effects.push(Effect::Answer(token, answer));
    }
}
