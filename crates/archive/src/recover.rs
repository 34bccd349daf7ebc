//! Taking a shard over: opens the log, checks that its tail is one chain from where the head says,
//! makes the entries that the tail's records still lack, and rebuilds from it what only memory
//! holds: recent keys, highest counts, counters since the last heartbeat. Refuses a log whose end
//! does not fit.

use std::path::Path;

use chancery_api::archive::Outcome;
use chancery_evidence::{
    DEPLOYMENT, KeyRing, Kind, Outcome as Recorded, Stored, Verdict, record_hash,
};
use chancery_runtime::Ids;
use chancery_store::{Profile, StoreError, open};
use rusqlite::Connection;

use crate::entry::Entry;
use crate::making::PENDING_RECORDS;
use crate::memory::{Answered, KEYS_LIMIT};
use crate::seal::{KeyError, load_keys};
use crate::shard::Recovered;
use crate::store::{Head, LogReader, LogStore, Planned, SqliteLog, migrate};

/// Records read at a time.
const PAGE_RECORDS: usize = 1_000;

/// Why the log does not open.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database does not open.
    #[error("the log: {0}")]
    Store(#[from] StoreError),
    /// The keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The last record is not the one that the head names.
    #[error("the log's last record {number} is not the one that was committed: {reason}")]
    Tail { number: u64, reason: String },
    /// A thread does not start.
    #[error("thread: {0}")]
    Thread(std::io::Error),
}

/// A shard that was taken over.
pub(crate) struct Opened<S = SqliteLog<Connection>> {
    pub(crate) store: S,
    pub(crate) ring: KeyRing,
    pub(crate) head: Head,
    pub(crate) recovered: Recovered,
}

/// Opens the log in `log` with the keys in `keys`.
pub(crate) fn take_over(
    log: &Path,
    keys: &Path,
    shard: u32,
    domains: &[String],
    ids: &Ids,
) -> Result<Opened, StartError> {
    let mut connection = open(log, Profile::log())?;
    migrate(&mut connection)?;
    let mut store = SqliteLog::new(connection, shard);
    let has_records = !store.reader().records(0, u64::MAX, 1)?.is_empty();
    let ring = load_keys(keys, has_records, domains, ids)?;
    let made = store.open(ring.genesis(shard))?;
    check_made(&store, made)?;
    let tail = follow_tail(&store, &ring, made, shard)?;
    let head = tail.head;
    if head.number > made.number {
        store.make_entries(&tail.entries, Some((head.number, head.hash)))?;
    }
    let mut recovered = read_tail(&store, &ring, head)?;
    let known = ring.domains().filter(|domain| *domain != DEPLOYMENT);
    recovered.domains = known.map(str::to_owned).collect();
    Ok(Opened {
        store,
        ring,
        head,
        recovered,
    })
}

fn tail_error(number: u64, reason: &str) -> StartError {
    let reason = reason.to_owned();
    StartError::Tail { number, reason }
}

/// The record that the head names is the one that was committed.
fn check_made(store: &SqliteLog<Connection>, head: Head) -> Result<(), StartError> {
    if head.number == 0 {
        return Ok(());
    }
    let bytes = store.reader().record(head.number)?;
    let bytes = bytes.ok_or_else(|| tail_error(head.number, "it is not there"))?;
    if record_hash(&bytes) != head.hash {
        return Err(tail_error(head.number, "its hash differs"));
    }
    Ok(())
}

/// The records above the head: where they end, and the entries that they make.
struct Tail {
    head: Head,
    entries: Vec<(i64, u64, Entry)>,
}

/// Follows the chain from the head to the last record. Each record names the one before it; the
/// last, which no other names, must open with its key.
fn follow_tail(
    store: &SqliteLog<Connection>,
    ring: &KeyRing,
    made: Head,
    shard: u32,
) -> Result<Tail, StartError> {
    let reader = store.reader();
    let (mut head, mut entries, mut last) = (made, Vec::new(), Vec::new());
    loop {
        let page = reader.rows(head.number + 1, u64::MAX, PAGE_RECORDS)?;
        let short = page.len() < PAGE_RECORDS;
        for (number, row) in page {
            let bad = |reason: &str| tail_error(number, reason);
            if number != head.number + 1 {
                return Err(bad("the one before it is missing"));
            }
            if number - made.number > PENDING_RECORDS as u64 {
                return Err(bad("too many records are above the head"));
            }
            let stored = Stored::parse(&row.bytes).map_err(|error| bad(&error.to_string()))?;
            let header = &stored.header;
            if header.previous != head.hash {
                return Err(bad("it does not follow the one before it"));
            }
            if (header.shard, header.number) != (shard, number) || header.epoch >= head.epoch {
                return Err(bad("it is another place's"));
            }
            head.number = number;
            head.hash = record_hash(&row.bytes);
            entries.extend(planned(&row.planned, number));
            last = row.bytes;
        }
        if short {
            break;
        }
    }
    if head.number > made.number {
        let opened = Stored::parse(&last).and_then(|stored| stored.open(ring));
        opened.map_err(|error| tail_error(head.number, &error.to_string()))?;
    }
    entries.sort_by_key(|(mailbox, number, _)| (*mailbox, *number));
    Ok(Tail { head, entries })
}

/// The entries of a record.
pub(crate) fn planned(
    planned: &Planned,
    number: u64,
) -> impl Iterator<Item = (i64, u64, Entry)> + '_ {
    let entries = planned.iter().flatten();
    entries.map(move |(mailbox, entry)| (*mailbox, number, *entry))
}

fn read_tail(
    store: &SqliteLog<Connection>,
    ring: &KeyRing,
    head: Head,
) -> Result<Recovered, StartError> {
    let reader = store.reader();
    let mut recovered = Recovered {
        head: head.number,
        last_mailbox: reader.last_mailbox()?,
        ..Recovered::default()
    };
    let mut next = head.number.saturating_sub(KEYS_LIMIT as u64) + 1;
    while next <= head.number {
        let page = reader.records(next, head.number, PAGE_RECORDS)?;
        let Some((last, _)) = page.last() else {
            return Err(StartError::Tail {
                number: next,
                reason: "it is missing".to_owned(),
            });
        };
        let after = last + 1;
        for (number, bytes) in page {
            let stored = Stored::parse(&bytes).map_err(|error| StartError::Tail {
                number,
                reason: error.to_string(),
            })?;
            remember(&mut recovered, ring, &stored, number);
        }
        next = after;
    }
    Ok(recovered)
}

fn remember(recovered: &mut Recovered, ring: &KeyRing, stored: &Stored<'_>, number: u64) {
    let header = &stored.header;
    recovered.last_time_ms = header.time_ms.max(recovered.last_time_ms);
    match header.kind {
        Kind::Heartbeat => {
            recovered.beaten = number;
            let others = |(domain, _): &(String, String), _: &mut _| *domain != header.domain;
            recovered.counts.retain(others);
        }
        Kind::Message | Kind::Presence | Kind::Iq => {
            let key = (header.domain.clone(), header.gateway.clone());
            let counts = recovered.counts.entry(key).or_default();
            match header.verdict {
                Verdict::Allow => counts.allow += 1,
                Verdict::Deny | Verdict::NotAsked => counts.deny += 1,
            }
        }
        _ => {}
    }
    let Some(key) = header.key else { return };
    // The recipient's domain is sealed; where it is the sender's too, the id is the same.
    let archive_id = ring
        .archive_id(&header.domain, header.shard, number)
        .unwrap_or_default();
    let outcome = match header.outcome {
        Recorded::Full => Outcome::Full,
        Recorded::Recorded | Recorded::Logged | Recorded::Denied => Outcome::Committed,
    };
    let answered = Answered {
        outcome,
        number,
        archive_id: archive_id.into(),
    };
    recovered.memory.remember(key, answered);
}
