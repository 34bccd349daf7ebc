//! A session that follows its owner's mailbox, and the gateway it is on: their state in the
//! shard's memory. Owns the bounds of lag; refuses to decide who gets what.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use chancery_api::archive::{AttachDown, AttachUp, Form, attach_up};
use chancery_xmpp::routing::SessionState;
use tokio::time::Instant;

use crate::item::Envelope;

/// Entries that wait for a session that lags: a full mailbox of backlog, and as many on top.
pub(crate) const LAG_ENTRIES: usize = 20_000;
/// Ephemeral items that wait for a session that lags: chat states up to here...
pub(crate) const LAG_SIGNALS: usize = 16;
/// ...requests of anybody up to here...
pub(crate) const LAG_REQUESTS: usize = 48;
/// ...and answers, and what the server says itself, up to here.
pub(crate) const LAG_EPHEMERALS: usize = 64;
/// What waits for room on one stream, above which its sessions lag.
pub(crate) const OUTBOX_ITEMS: usize = 1_024;
/// What waits for room on one stream, confirmations included, above which the stream is given up.
pub(crate) const OUTBOX_LIMIT: usize = 65_536;
/// What a stream may have sent that waits for a mailbox to be read, above which it is given up.
pub(crate) const INBOX_LIMIT: usize = 65_536;

/// Names a session: its gateway's index, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FollowerKey {
    pub(crate) gateway: u32,
    pub(crate) session: u64,
}

/// Names a stream.
pub(crate) type StreamId = u64;

/// A session.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) mailbox: Arc<str>,
    pub(crate) resource: Box<str>,
    pub(crate) available: bool,
    pub(crate) priority: i8,
    pub(crate) carbons: bool,
    pub(crate) interested: bool,
    pub(crate) credit: u32,
    /// Its client has no socket: nothing is handed to it, whatever its credit.
    pub(crate) away: bool,
    /// `None` while its gateway's stream is lost.
    pub(crate) stream: Option<StreamId>,
    pub(crate) lost_at: Option<Instant>,
    /// Bound since the shard runs: newer than whoever attaches again.
    pub(crate) bound: bool,
    /// What came up to here it had before it was attached, or gets by catching up.
    pub(crate) since: u64,
    /// Everything above this was handed to it, or will be, by position.
    pub(crate) covered: u64,
    /// Open entries that it was given, or that wait for it, and that it has not acknowledged.
    pub(crate) out: BTreeSet<u64>,
    /// Of these, what was handed to it out of its turn: its position says nothing of them.
    pub(crate) delayed: BTreeSet<u64>,
    pub(crate) lag: Option<Box<Lag>>,
}

impl Follower {
    pub(crate) fn state(&self) -> SessionState<'_> {
        SessionState {
            resource: &self.resource,
            available: self.available,
            priority: self.priority,
            carbons: self.carbons,
            interested: self.interested,
        }
    }

    /// Whether an open entry comes to it by catching up.
    pub(crate) fn will_read(&self, number: u64) -> bool {
        let catch_up = self.lag.as_ref().and_then(|lag| lag.catch_up);
        self.receives() && catch_up.is_some_and(|c| c.position < number && number <= c.end)
    }

    /// Whether messages to the bare JID come to it (RFC 6121 §8.5.2.1.1).
    pub(crate) fn receives(&self) -> bool {
        self.available && self.priority >= 0
    }
}

/// What waits for a session that lags.
#[derive(Debug)]
pub(crate) enum Queued {
    /// An entry, by number: its payload stays in the log until there is credit.
    Entry {
        number: u64,
        form: Form,
        delayed: bool,
    },
    /// An entry that was read back already.
    Read { envelope: Arc<Envelope>, form: Form },
    /// An ephemeral item, behind the entry it followed.
    Ephemeral { envelope: Arc<Envelope>, form: Form },
}

/// The range that a session attached again still has to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CatchUp {
    /// Everything up to here is read.
    pub(crate) position: u64,
    /// Everything above this comes by itself.
    pub(crate) end: u64,
}

/// The state of a session that lags.
#[derive(Debug)]
pub(crate) struct Lag {
    pub(crate) catch_up: Option<CatchUp>,
    /// What catching up has found; goes before `queue`.
    pub(crate) found: VecDeque<Queued>,
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) ephemerals: usize,
    /// Envelopes read back, in the order of the queue.
    pub(crate) pages: VecDeque<Arc<Envelope>>,
    /// A read is under way; its number, so that a late one is told from the current.
    pub(crate) reading: Option<u64>,
    pub(crate) progress: Instant,
}

impl Lag {
    pub(crate) fn new(now: Instant) -> Box<Self> {
        Self::catching_up(now, None)
    }

    pub(crate) fn catching_up(now: Instant, catch_up: Option<CatchUp>) -> Box<Self> {
        Box::new(Self {
            catch_up,
            found: VecDeque::new(),
            queue: VecDeque::new(),
            ephemerals: 0,
            pages: VecDeque::new(),
            reading: None,
            progress: now,
        })
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.catch_up.is_none() && self.found.is_empty() && self.queue.is_empty()
    }
}

/// A gateway, and its stream if it has one.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) name: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) stream: Option<StreamId>,
}

/// A stream to a gateway.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// `None` until it said hello.
    pub(crate) gateway: Option<u32>,
    pub(crate) inbox: VecDeque<AttachDown>,
    pub(crate) outbox: VecDeque<AttachUp>,
    /// The head that was announced last.
    pub(crate) announced: u64,
}

impl Stream {
    pub(crate) fn push(&mut self, item: attach_up::Item) {
        self.outbox.push_back(AttachUp { item: Some(item) });
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_ITEMS
    }
}
