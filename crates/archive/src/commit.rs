//! The commit thread: seals a group, chains it, and writes its records in one durable transaction;
//! the rows of their entries follow (`making.rs`), after the answers, in some that need not be
//! durable. Owns the writing connection and the chain's last hash. Refuses to decide anything, and
//! to go on after an error whose effect is unknown.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chancery_evidence::{Hash, KeyRing};
use chancery_runtime::{Clock, Failpoints, Ids};
use chancery_store::StoreError;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use crate::entry::Peer;
use crate::mailbox::MailboxSave;
use crate::making::{Making, PENDING_RECORDS};
use crate::metrics::ArchiveMetrics;
use crate::recover::planned;
use crate::seal::{self, Drawn, KeyError, Place};
use crate::shard::{Act, Change, Group, NotCommitted, Record};
use crate::store::{LogStore, Planned, Row, Writing};

/// Jobs that wait for the thread: one group, a few writes of open sets, the end.
pub(crate) const JOBS_LIMIT: usize = 8;
/// A group of so few records is committed on the sequencer's own thread...
const IN_PLACE_RECORDS: usize = 64;
/// ...while the disk takes less than this...
const QUICK: Duration = Duration::from_micros(150);
/// ...beside what each record takes of the processor...
const RECORD: Duration = Duration::from_micros(8);
/// ...but for so many of the last 16 commits: a thread that had to wait for a processor says nothing
/// of the disk.
const SLOW_COMMITS: u32 = 4;
/// A commit that takes so long is none of a quick disk.
const STALL: Duration = Duration::from_millis(20);

/// Ends the process, because what is on the disk is unknown.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Work for the commit thread.
pub(crate) enum Job {
    Group(Group),
    Save(Vec<MailboxSave>),
    /// Makes what is left to make; the thread ends.
    End,
}

/// What became of it.
pub(crate) enum Done {
    Group(Result<Vec<String>, NotCommitted>),
    Saved(Vec<Arc<str>>, bool),
}

/// What the commit thread is made of.
pub(crate) struct Committer<S> {
    pub(crate) store: S,
    pub(crate) ring: Arc<RwLock<KeyRing>>,
    pub(crate) key_file: PathBuf,
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) hash: Hash,
    pub(crate) making: Making,
    pub(crate) pace: Pace,
    pub(crate) drawn: Drawn,
    pub(crate) ids: Ids,
    pub(crate) clock: Clock,
    pub(crate) failpoints: Failpoints,
    pub(crate) metrics: ArchiveMetrics,
    pub(crate) fatal: Fatal,
    /// What is on the disk is unknown.
    pub(crate) ended: bool,
}

/// Which of the last 16 commits of small groups took the disk long, a bit each.
pub(crate) struct Pace(u16);

impl Default for Pace {
    /// A disk is slow until it has shown that it is not.
    fn default() -> Self {
        Self(u16::MAX)
    }
}

impl Pace {
    fn took(&mut self, time: Duration, records: usize) {
        if records > IN_PLACE_RECORDS {
            return; // most of it is the processor's
        }
        let records = RECORD * u32::try_from(records).unwrap_or(u32::MAX);
        let is_slow = time.saturating_sub(records) >= QUICK;
        self.0 = if time >= STALL {
            u16::MAX
        } else {
            self.0 << 1 | u16::from(is_slow)
        };
    }

    fn is_quick(&self) -> bool {
        self.0.count_ones() <= SLOW_COMMITS
    }
}

/// The way to the thread, and past it.
pub(crate) struct Commits<S> {
    jobs: SyncSender<Job>,
    committer: Arc<Mutex<Committer<S>>>,
}

impl<S: LogStore + Send + 'static> Commits<S> {
    /// With the thread's end of the way to it.
    fn new(committer: Committer<S>) -> (Self, Receiver<Job>) {
        let (sender, jobs) = sync_channel(JOBS_LIMIT);
        let commits = Self {
            jobs: sender,
            committer: Arc::new(Mutex::new(committer)),
        };
        (commits, jobs)
    }

    fn start(
        &self,
        jobs: Receiver<Job>,
        done: mpsc::Sender<Done>,
    ) -> std::io::Result<JoinHandle<()>> {
        let committer = Arc::clone(&self.committer);
        std::thread::Builder::new()
            .name("archive-commit".to_owned())
            .spawn(move || run(&committer, &jobs, &done))
    }

    /// Tells the thread; gives the job back when it has no room or is gone.
    pub(crate) fn tell(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Commits a group here and now, where that takes less than waking the thread and being woken:
    /// not while the thread works, nor a large group, nor on a disk that lets one wait. Gives the
    /// group back otherwise. With failpoints none is committed here: they may block. It may overtake
    /// a [`Job::Save`] that waits; see [`LogStore::save`].
    pub(crate) fn in_place(&self, group: Group) -> Result<Option<Done>, Group> {
        match self.committer.try_lock() {
            Some(mut committer) if committer.may_commit_in_place(&group) => {
                Ok(committer.work(Job::Group(group)))
            }
            _ => Err(group),
        }
    }

    /// Makes a piece of entries here and now, if one is due: where groups are committed in place the
    /// thread would be in their way.
    pub(crate) fn make_in_place(&self) {
        if let Some(mut committer) = self.committer.try_lock()
            && !committer.ended
            && !committer.failpoints.is_armed()
            && committer.is_due()
            && let Err(reason) = committer.make_piece()
        {
            committer.end(&reason);
        }
    }
}

/// The thread.
fn run<S: LogStore + Send + 'static>(
    committer: &Mutex<Committer<S>>,
    jobs: &Receiver<Job>,
    done: &mpsc::Sender<Done>,
) {
    loop {
        // Without a job it looks whether something is left to make.
        let left = committer.lock().until_due();
        let job = match jobs.recv_timeout(left) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Disconnected) => Some(Job::End),
            Err(RecvTimeoutError::Timeout) => None,
        };
        if let Some(job) = job {
            let result = committer.lock().work(job);
            let Some(result) = result else { return };
            if done.blocking_send(result).is_err() {
                return;
            }
        }
        let mut committer = committer.lock();
        if !committer.ended
            && let Err(reason) = committer.make_due()
        {
            committer.end(&reason);
        }
        if committer.ended {
            return;
        }
    }
}

enum Failure {
    /// Nothing was written.
    Nothing(String),
    /// What was written is unknown.
    Unknown(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_full() {
            Self::Nothing(error.to_string())
        } else {
            Self::Unknown(error.to_string())
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        match &error {
            KeyError::Io { .. } if !error.is_full() => Self::Unknown(error.to_string()),
            _ => Self::Nothing(error.to_string()),
        }
    }
}

impl<S: LogStore + Send + 'static> Committer<S> {
    /// Starts the thread.
    pub(crate) fn start(
        self,
        done: mpsc::Sender<Done>,
    ) -> std::io::Result<(Commits<S>, JoinHandle<()>)> {
        let (commits, jobs) = Commits::new(self);
        let thread = commits.start(jobs, done)?;
        Ok((commits, thread))
    }

    /// Does a job; `None` ends the thread.
    fn work(&mut self, job: Job) -> Option<Done> {
        if self.ended {
            return None;
        }
        let result = match job {
            Job::Group(group) => self.commit(group).map(Done::Group),
            Job::Save(saves) => self.save(&saves),
            Job::End => {
                // What is not made now is made at the next start.
                if let Err(reason) = self.make_all() {
                    self.end(&reason);
                }
                return None;
            }
        };
        result.map_err(|reason| self.end(&reason)).ok()
    }

    fn end(&mut self, reason: &str) {
        self.ended = true;
        tracing::error!(reason, "the log cannot be written, ending the process");
        (self.fatal)(reason);
    }

    fn may_commit_in_place(&self, group: &Group) -> bool {
        !self.ended
            && group.records.len() <= IN_PLACE_RECORDS
            && self.pace.is_quick()
            && !self.lacks_too_many(group)
            && !self.failpoints.is_armed()
    }

    fn until_due(&self) -> Duration {
        self.making.until_due(self.clock.monotonic())
    }

    fn is_due(&self) -> bool {
        self.making.is_due(self.clock.monotonic())
    }

    /// Makes the piece that is due, and further ones for the records since. An error, here and below,
    /// says that what is on the disk is unknown.
    fn make_due(&mut self) -> Result<(), String> {
        while self.is_due() && self.make_piece()? && self.making.owes() {}
        Ok(())
    }

    /// Makes the entries of all that is durable.
    fn make_all(&mut self) -> Result<(), String> {
        while self.making.records() > 0 && self.make_piece()? {}
        Ok(())
    }

    /// Makes a piece of the entries of what is durable; gives whether it was made. Where there is no
    /// room, they wait.
    fn make_piece(&mut self) -> Result<bool, String> {
        let now = self.clock.monotonic();
        let point = self.failpoints.hit_sync("archive::entries::before");
        if point.is_err() {
            self.making.put_off(now);
            return Ok(false);
        }
        let (store, head) = (&mut self.store, (self.number, self.hash));
        let make = |entries: &[_], upto| store.make_entries(entries, upto);
        match self.making.piece(head, now, make).map_err(Failure::from) {
            Ok(()) => Ok(true),
            Err(Failure::Nothing(reason)) => {
                tracing::warn!(reason, "entries were not made");
                Ok(false)
            }
            Err(Failure::Unknown(reason)) => Err(reason),
        }
    }

    fn commit(&mut self, group: Group) -> Result<Result<Vec<String>, NotCommitted>, String> {
        if self.failpoints.hit_sync("archive::commit::before").is_err() {
            return Ok(Err(NotCommitted));
        }
        let since = self.clock.monotonic();
        let result = self.write(group);
        let took = self.clock.monotonic().saturating_duration_since(since);
        self.metrics.commit_seconds.observe(took.as_secs_f64());
        match result {
            Ok(archive_ids) => {
                if self.failpoints.hit_sync("archive::commit::after").is_err() {
                    tracing::warn!("a failpoint cannot undo a commit");
                }
                Ok(Ok(archive_ids))
            }
            Err(Failure::Nothing(reason)) => {
                tracing::warn!(reason, "a group was not written");
                self.metrics.full.inc();
                Ok(Err(NotCommitted))
            }
            Err(Failure::Unknown(reason)) => Err(reason),
        }
    }

    fn write(&mut self, group: Group) -> Result<Vec<String>, Failure> {
        if self.lacks_too_many(&group) {
            self.make_all().map_err(Failure::Unknown)?;
        }
        if self.lacks_too_many(&group) {
            return Err(Failure::Nothing(
                "too many records lack their entries".to_owned(),
            ));
        }
        self.make_keys(&group)?;
        let mut writing = Writing {
            first: group.first,
            records: Vec::with_capacity(group.records.len()),
            mailboxes: group.mailboxes,
            ..Writing::default()
        };
        let mut hash = self.hash;
        let mut archive_ids = Vec::with_capacity(group.records.len());
        {
            let ring = self.ring.read();
            for (number, record) in (group.first..).zip(&group.records) {
                let place = Place {
                    shard: self.shard,
                    epoch: self.epoch,
                    number,
                    time_ms: group.time_ms,
                };
                let random = &mut |out: &mut [u8]| self.drawn.fill(out, &self.ids);
                let made = seal::seal(&ring, record, place, &hash, random)
                    .map_err(|error| Failure::Nothing(error.to_string()))?;
                hash = made.sealed.hash;
                archive_ids.push(made.archive_id);
                let planned = match record {
                    Record::Stanza { entries, .. } => with_peers(*entries, made.peers),
                    Record::Act { act, mailbox } => {
                        note_act(&mut writing, act, *mailbox, number)?;
                        [None, None]
                    }
                };
                let bytes = made.sealed.bytes;
                writing.records.push(Row { bytes, planned });
            }
        }
        let since = self.clock.monotonic();
        self.store.append(&writing)?;
        let now = self.clock.monotonic();
        let took = now.saturating_duration_since(since);
        self.pace.took(took, writing.records.len());
        let rows = (group.first..).zip(&writing.records);
        let entries = rows.flat_map(|(number, row)| planned(&row.planned, number));
        self.making.add(writing.records.len(), entries, now);
        self.number += writing.records.len() as u64;
        self.hash = hash;
        Ok(archive_ids)
    }

    /// Whether more records than may would lack their entries with this group.
    fn lacks_too_many(&self, group: &Group) -> bool {
        self.making.records() + group.records.len() > PENDING_RECORDS
    }

    /// Domains that have no keys yet get some, before anything of theirs is sealed.
    fn make_keys(&self, group: &Group) -> Result<(), Failure> {
        for record in &group.records {
            let domain = seal::domain_of_record(record);
            if self.ring.read().domain(domain).is_ok() {
                continue;
            }
            let mut ring = self.ring.write();
            seal::add_domain(&self.key_file, &mut ring, domain, &self.ids)?;
        }
        Ok(())
    }

    fn save(&mut self, saves: &[MailboxSave]) -> Result<Done, String> {
        let jids = saves.iter().map(|save| Arc::clone(&save.jid)).collect();
        match self.store.save(saves).map_err(Failure::from) {
            Ok(()) => Ok(Done::Saved(jids, true)),
            Err(Failure::Nothing(reason)) => {
                tracing::warn!(reason, "open sets were not written");
                Ok(Done::Saved(jids, false))
            }
            Err(Failure::Unknown(reason)) => Err(reason),
        }
    }
}

/// The entries of a record, each with who is at its other side.
fn with_peers(mut entries: Planned, peers: Option<[Peer; 2]>) -> Planned {
    for (slot, peer) in entries.iter_mut().zip(peers.into_iter().flatten()) {
        if let Some((_, entry)) = slot {
            *entry = entry.with_peer(peer);
        }
    }
    entries
}

/// What an act changes of a mailbox.
fn note_act(
    writing: &mut Writing,
    act: &Act,
    mailbox: Option<i64>,
    number: u64,
) -> Result<(), Failure> {
    let (Some(mailbox), Some(change)) = (mailbox, &act.change) else {
        return Ok(());
    };
    match change {
        Change::Drop(_) => writing.floors.push((mailbox, number)),
        Change::Prefer(_, preferences) => {
            let preferences = preferences
                .encode()
                .map_err(|error| Failure::Nothing(error.to_string()))?;
            writing.preferences.push((mailbox, preferences));
        }
    }
    Ok(())
}

#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
