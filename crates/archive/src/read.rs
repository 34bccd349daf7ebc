//! What is read back from the log on connections of its own: mailboxes, pages for sessions that
//! lag, ranges for sessions that attach again. Owns opening the records; refuses to decide who
//! gets them.

use std::sync::Arc;

use chancery_evidence::{KeyRing, Stored};
use chancery_store::StoreError;
use parking_lot::RwLock;

use crate::entry::Entry;
use crate::follower::FollowerKey;
use crate::item::{Envelope, Item, domain_of};
use crate::mailbox::MailboxRow;
use crate::store::LogReader;

/// Entries of one page.
pub(crate) const PAGE_ENTRIES: usize = 64;
/// Bytes of stored records after which a page ends.
const PAGE_BYTES: usize = 1024 * 1024;

/// Entries that a session which lags is about to get.
#[derive(Clone, Debug)]
pub(crate) struct ReadPage {
    pub(crate) key: FollowerKey,
    pub(crate) read: u64,
    pub(crate) mailbox: i64,
    pub(crate) numbers: Vec<u64>,
}

/// Entries that a session may have missed: above `after`, up to `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadRange {
    pub(crate) key: FollowerKey,
    pub(crate) read: u64,
    pub(crate) mailbox: i64,
    pub(crate) after: u64,
    pub(crate) end: u64,
}

/// An entry with its record.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) entry: Entry,
}

/// A piece of a range.
#[derive(Debug, Default)]
pub(crate) struct Range {
    pub(crate) found: Vec<Read>,
    /// Everything up to here is in `found`, or of no concern.
    pub(crate) position: u64,
}

/// One thing to read.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Mailbox(Arc<str>),
    Page(ReadPage),
    Range(ReadRange),
}

/// What was read. A page lacks what is not there (any more).
#[derive(Debug)]
pub(crate) enum Got {
    Mailbox(Arc<str>, Option<MailboxRow>),
    Page(ReadPage, Vec<Arc<Envelope>>),
    Range(ReadRange, Range),
    /// Nothing: to be asked again.
    Failed(Vec<Ask>),
}

/// Answers one question.
pub(crate) fn answer(
    log: &impl LogReader,
    ring: &RwLock<KeyRing>,
    ask: Ask,
) -> Result<Got, StoreError> {
    match ask {
        Ask::Mailbox(jid) => {
            let row = log.mailbox(&jid)?;
            Ok(Got::Mailbox(jid, row))
        }
        Ask::Page(page) => {
            let mut found = Vec::with_capacity(page.numbers.len());
            for number in &page.numbers {
                let Some(entry) = log.entry(page.mailbox, *number)? else {
                    continue;
                };
                found.extend(envelope(log, ring, *number, entry)?);
            }
            Ok(Got::Page(page, found))
        }
        Ask::Range(range) => {
            let entries = log.entries(range.mailbox, range.after, range.end, PAGE_ENTRIES)?;
            let complete = entries.len() < PAGE_ENTRIES;
            let mut got = Range {
                found: Vec::new(),
                position: range.after,
            };
            let mut bytes = 0;
            for (number, entry) in &entries {
                if bytes > PAGE_BYTES {
                    return Ok(Got::Range(range, got));
                }
                if let Some(envelope) = envelope(log, ring, *number, *entry)? {
                    bytes += envelope.item.bytes();
                    got.found.push(Read {
                        envelope,
                        entry: *entry,
                    });
                }
                got.position = *number;
            }
            if complete {
                got.position = range.end;
            }
            Ok(Got::Range(range, got))
        }
    }
}

/// A record that cannot be opened is logged and passed over: it must not stop the others.
fn envelope(
    log: &impl LogReader,
    ring: &RwLock<KeyRing>,
    number: u64,
    entry: Entry,
) -> Result<Option<Arc<Envelope>>, StoreError> {
    let Some(bytes) = log.record(number)? else {
        tracing::error!(number, "an entry without a record");
        return Ok(None);
    };
    let ring = ring.read();
    let opened = Stored::parse(&bytes).and_then(|stored| {
        let opened = stored.open(&ring)?;
        Ok((stored, opened))
    });
    let (stored, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(number, %error, "a record does not open");
            return Ok(None);
        }
    };
    let Some(item) = Item::from_record(&stored, opened, entry) else {
        tracing::error!(number, "an entry whose record is no stanza");
        return Ok(None);
    };
    let domain = domain_of(item.to_bare());
    let archive_id = ring
        .archive_id(domain, stored.header.shard, number)
        .or_else(|_| ring.archive_id(&stored.header.domain, stored.header.shard, number))
        .unwrap_or_default();
    let stamp_ms = stored.header.time_ms;
    Ok(Some(Arc::new(Envelope {
        item: Arc::new(item),
        number,
        archive_id,
        stamp_ms,
    })))
}
