//! What a probe writes down and the test reads meanwhile. Refuses to judge it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use chancery_testkit::checker::Journal;

/// A message that was read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) id: String,
    pub(super) stanza_id: String,
    pub(super) at: Instant,
    /// The probe's sessions are numbered.
    pub(super) session: u32,
    /// When an `<a/>` that covers it was written.
    pub(super) acknowledged: Option<Instant>,
}

/// A message that came back.
#[derive(Clone, Debug)]
pub(super) struct Bounced {
    pub(super) id: String,
    pub(super) condition: String,
    pub(super) kind: String,
}

/// A presence that was read.
#[derive(Clone, Debug)]
#[allow(dead_code)] // printed
pub(super) struct Shown {
    pub(super) from: String,
    pub(super) kind: String,
    pub(super) at: Instant,
}

/// What a probe writes down.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) journal: Journal,
    /// When each message was written first.
    pub(super) sent_at: HashMap<String, Instant>,
    pub(super) reads: Vec<Read>,
    pub(super) bounced: Vec<Bounced>,
    pub(super) presences: Vec<Shown>,
    pub(super) stream_errors: Vec<String>,
    /// When a lost session's count was told as less than was acknowledged.
    pub(super) low_counts: Vec<Instant>,
    pub(super) connected: bool,
    /// Has read its own presence in this session: what waits for it is handed out.
    pub(super) available: bool,
    pub(super) sessions: u32,
    /// Times that a session went on with another stream.
    pub(super) resumed: u32,
    pub(super) resent: u32,
    pub(super) told_h: u32,
    /// Stanzas without acknowledgement.
    pub(super) unsettled: usize,
    pub(super) marked: u32,
    /// The last marker came back as an error.
    pub(super) mark_failed: bool,
    pub(super) problems: Vec<String>,
}

/// Notes that the test reads while the probe writes.
#[derive(Clone, Default)]
pub(super) struct Notebook(Arc<Mutex<Notes>>);

impl Notebook {
    pub(super) fn open(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap()
    }
}
