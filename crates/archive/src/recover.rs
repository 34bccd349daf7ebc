//! Taking a shard over: opens the log, checks that its tail is what the head says, and rebuilds
//! from the tail what only memory holds: recent keys, highest counts, counters since the last
//! heartbeat. Refuses a log whose end does not fit.

use std::path::Path;

use chancery_api::archive::Outcome;
use chancery_evidence::{
    DEPLOYMENT, KeyRing, Kind, Outcome as Recorded, Stored, Verdict, record_hash,
};
use chancery_runtime::Ids;
use chancery_store::{Profile, StoreError, open};
use rusqlite::Connection;

use crate::memory::{Answered, KEYS_LIMIT};
use crate::seal::{KeyError, load_keys};
use crate::shard::Recovered;
use crate::store::{Head, LogReader, LogStore, SqliteLog, migrate};

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
    let before = store.reader().head()?;
    let has_records = before.is_some_and(|head| head.number > 0);
    let ring = load_keys(keys, has_records, domains, ids)?;
    let head = store.open(ring.genesis(shard))?;
    check_tail(&store, head)?;
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

fn check_tail(store: &SqliteLog<Connection>, head: Head) -> Result<(), StartError> {
    let bad = |reason: &str| StartError::Tail {
        number: head.number,
        reason: reason.to_owned(),
    };
    let reader = store.reader();
    if !reader.records(head.number + 1, u64::MAX, 1)?.is_empty() {
        return Err(bad("there are records above it"));
    }
    if head.number == 0 {
        return Ok(());
    }
    let bytes = reader
        .record(head.number)?
        .ok_or_else(|| bad("it is not there"))?;
    if record_hash(&bytes) != head.hash {
        return Err(bad("its hash differs"));
    }
    Ok(())
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
        Kind::Heartbeat => recovered
            .counts
            .retain(|(domain, _), _| *domain != header.domain),
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
