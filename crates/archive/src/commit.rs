//! The commit thread: seals a group, chains it, and writes its records in one durable transaction;
//! the rows of their entries follow, many at once and after the answers, in one that need not be
//! durable. And the thread that checkpoints the write-ahead log. Owns the writing connection and
//! the chain's last hash. Refuses to decide anything, and to go on after an error whose effect is
//! unknown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chancery_evidence::{Hash, KeyRing};
use chancery_runtime::{Clock, Failpoints, Ids};
use chancery_store::{Checkpoint, Profile, StoreError, checkpoint, open};
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::group::GROUP_ITEMS;
use crate::mailbox::MailboxSave;
use crate::metrics::ArchiveMetrics;
use crate::pending::PendingEntries;
use crate::recover::planned;
use crate::seal::{self, Drawn, KeyError, Place};
use crate::shard::{Group, NotCommitted, Record};
use crate::store::{LogStore, Row, Writing};

/// Jobs that wait for the thread: one group, a few writes of open sets, the end.
pub(crate) const JOBS_LIMIT: usize = 8;
/// Records whose entries have no rows, from which these are made.
const MAKE_RECORDS: usize = 1_024;
/// A record's entries have rows after this, or soon after.
const MAKE_INTERVAL: Duration = Duration::from_secs(1);
/// No group is written while more records than this, with its own, would lack their entries.
pub(crate) const PENDING_RECORDS: usize = 8 * GROUP_ITEMS;
/// Size of the write-ahead log from which it is moved into the database.
const WAL_BYTES: u64 = 4 * 1024 * 1024;
/// Size from which writers wait for that, so that the file starts anew.
const WAL_RESTART_BYTES: u64 = 64 * 1024 * 1024;
/// The log is moved at least this often, whatever its size.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
const CHECKPOINT_POLL: Duration = Duration::from_millis(250);

/// Ends the process, because what is on the disk is unknown.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Work for the commit thread.
pub(crate) enum Job {
    Group(Group),
    Save(Vec<MailboxSave>),
    /// Writes nothing more; the thread ends.
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
    pub(crate) drawn: Drawn,
    pub(crate) ids: Ids,
    pub(crate) clock: Clock,
    pub(crate) failpoints: Failpoints,
    pub(crate) metrics: ArchiveMetrics,
    pub(crate) fatal: Fatal,
}

/// What is still to be made of what is durable.
#[derive(Default)]
pub(crate) struct Making {
    pub(crate) entries: Arc<PendingEntries>,
    /// Records since the entries were made last.
    records: usize,
    /// When they are made, at the latest; `None` without any.
    due: Option<Instant>,
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
    ) -> std::io::Result<(SyncSender<Job>, JoinHandle<()>)> {
        let (sender, jobs) = sync_channel(JOBS_LIMIT);
        let thread = std::thread::Builder::new()
            .name("archive-commit".to_owned())
            .spawn(move || self.run(&jobs, &done))?;
        Ok((sender, thread))
    }

    fn run(mut self, jobs: &Receiver<Job>, done: &mpsc::Sender<Done>) {
        loop {
            let job = match self.making.due {
                None => jobs.recv().ok(),
                Some(due) => {
                    let left = due.saturating_duration_since(self.clock.monotonic());
                    match jobs.recv_timeout(left) {
                        Ok(job) => Some(job),
                        Err(RecvTimeoutError::Disconnected) => None,
                        Err(RecvTimeoutError::Timeout) => {
                            if self.make_entries().is_err() {
                                return;
                            }
                            continue;
                        }
                    }
                }
            };
            let result = match job {
                None | Some(Job::End) => {
                    // What is not made now is made at the next start.
                    let _ = self.make_entries();
                    return;
                }
                Some(Job::Group(group)) => self.commit(group).map(Done::Group),
                Some(Job::Save(saves)) => self.save(&saves),
            };
            match result {
                Ok(result) => {
                    if done.blocking_send(result).is_err() {
                        return;
                    }
                }
                Err(reason) => return self.end(&reason),
            }
            // Under load the wait above never times out.
            if self.is_due() && self.make_entries().is_err() {
                return;
            }
        }
    }

    fn end(&self, reason: &str) {
        tracing::error!(reason, "the log cannot be written, ending the process");
        (self.fatal)(reason);
    }

    fn is_due(&self) -> bool {
        let late = |due| self.clock.monotonic() >= due;
        self.making.records >= MAKE_RECORDS || self.making.due.is_some_and(late)
    }

    /// Makes the entries of what is durable. Where there is no room, they wait; an error is told,
    /// and the thread ends.
    fn make_entries(&mut self) -> Result<(), ()> {
        if self.making.records == 0 {
            self.making.due = None;
            return Ok(());
        }
        self.making.due = Some(self.clock.monotonic() + MAKE_INTERVAL);
        if self
            .failpoints
            .hit_sync("archive::entries::before")
            .is_err()
        {
            return Ok(());
        }
        let (store, number, hash) = (&mut self.store, self.number, self.hash);
        let made = self
            .making
            .entries
            .make(|entries| store.make_entries(entries, number, hash));
        match made.map_err(Failure::from) {
            Ok(()) => {
                self.making.records = 0;
                self.making.due = None;
                Ok(())
            }
            Err(Failure::Nothing(reason)) => {
                tracing::warn!(reason, "entries were not made");
                Ok(())
            }
            Err(Failure::Unknown(reason)) => {
                self.end(&reason);
                Err(())
            }
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
        if self.making.records + group.records.len() > PENDING_RECORDS {
            return Err(Failure::Nothing(
                "too many records lack their entries".to_owned(),
            ));
        }
        self.make_keys(&group)?;
        let mut writing = Writing {
            first: group.first,
            records: Vec::with_capacity(group.records.len()),
            mailboxes: group.mailboxes,
            floors: Vec::new(),
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
                let (sealed, archive_id) = seal::seal(&ring, record, place, &hash, random)
                    .map_err(|error| Failure::Nothing(error.to_string()))?;
                hash = sealed.hash;
                archive_ids.push(archive_id);
                let planned = match record {
                    Record::Stanza { entries, .. } => *entries,
                    Record::Act { floor, .. } => {
                        let floor = floor.map(|mailbox| (mailbox, number));
                        writing.floors.extend(floor);
                        [None, None]
                    }
                };
                let bytes = sealed.bytes;
                writing.records.push(Row { bytes, planned });
            }
        }
        self.store.append(&writing)?;
        let rows = (group.first..).zip(&writing.records);
        let entries = rows.flat_map(|(number, row)| planned(&row.planned, number));
        self.making.entries.add(entries);
        self.making.records += writing.records.len();
        let due = || self.clock.monotonic() + MAKE_INTERVAL;
        self.making.due.get_or_insert_with(due);
        self.number += writing.records.len() as u64;
        self.hash = hash;
        Ok(archive_ids)
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

/// Tells the commit thread; false when it has no room or is gone.
pub(crate) fn tell(jobs: &SyncSender<Job>, job: Job) -> Result<(), Job> {
    jobs.try_send(job).map_err(|error| match error {
        TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
    })
}

/// Starts the checkpointing thread. It ends, after a last checkpoint, when the sender is dropped.
pub(crate) fn start_checkpoints(
    path: &Path,
    clock: Clock,
    fatal: Fatal,
) -> Result<(SyncSender<()>, JoinHandle<()>), StoreError> {
    let connection = open(path, Profile::log())?;
    let wal = wal_of(path);
    let (end, ended) = sync_channel::<()>(1);
    let run = move || {
        let mut last = clock.monotonic();
        loop {
            let over = matches!(
                ended.recv_timeout(CHECKPOINT_POLL),
                Err(RecvTimeoutError::Disconnected) | Ok(())
            );
            let size = std::fs::metadata(&wal).map_or(0, |meta| meta.len());
            let now = clock.monotonic();
            let due = now.saturating_duration_since(last) >= CHECKPOINT_INTERVAL;
            if over || size >= WAL_BYTES || (due && size > 0) {
                last = now;
                let mut result = checkpoint(&connection, Checkpoint::Passive);
                // The passive one has moved nearly everything; the rest is short.
                if result.is_ok() && size >= WAL_RESTART_BYTES {
                    result = checkpoint(&connection, Checkpoint::Restart);
                }
                if let Err(error) = result {
                    if error.is_fatal() {
                        tracing::error!(%error, "the log cannot be moved, ending the process");
                        fatal(&error.to_string());
                        return;
                    }
                    tracing::warn!(%error, "a checkpoint failed");
                }
            }
            if over {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("archive-checkpoint".to_owned())
        .spawn(run)
        .map_err(|source| StoreError::io(path, source))?;
    Ok((end, thread))
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::entry::Entry;
    use crate::shard::Act;
    use crate::store::Head;
    use crate::tick::own_act;
    use chancery_evidence::{DEPLOYMENT, Kind};
    use chancery_runtime::Metrics;
    use std::collections::VecDeque;
    use std::io::ErrorKind;

    /// Fails as told, then works.
    struct Broken(VecDeque<Option<ErrorKind>>);

    impl Broken {
        fn next(&mut self) -> Result<(), StoreError> {
            let kind = self.0.pop_front().unwrap_or(None);
            kind.map_or(Ok(()), |kind| {
                Err(StoreError::io(Path::new("log.db"), kind.into()))
            })
        }
    }

    impl LogStore for Broken {
        fn open(&mut self, hash: Hash) -> Result<Head, StoreError> {
            Ok(Head {
                epoch: 1,
                number: 0,
                hash,
            })
        }

        fn append(&mut self, _writing: &Writing) -> Result<(), StoreError> {
            self.next()
        }

        fn make_entries(
            &mut self,
            _entries: &mut dyn Iterator<Item = (i64, u64, Entry)>,
            _number: u64,
            _hash: Hash,
        ) -> Result<(), StoreError> {
            self.next()
        }

        fn save(&mut self, _saves: &[MailboxSave]) -> Result<(), StoreError> {
            self.next()
        }
    }

    fn group(first: u64) -> Job {
        let act: Act = own_act(
            Kind::Heartbeat,
            DEPLOYMENT.to_owned(),
            "heartbeat",
            "{}".into(),
        );
        let record = Record::Act {
            act: Arc::new(act),
            floor: None,
        };
        Job::Group(Group {
            first,
            time_ms: 1,
            mailboxes: Vec::new(),
            records: vec![record],
        })
    }

    /// A commit thread whose store answers `results`, then works; and what ended it.
    struct Thread {
        jobs: SyncSender<Job>,
        done: mpsc::Receiver<Done>,
        thread: JoinHandle<()>,
        ended: Arc<parking_lot::Mutex<Option<String>>>,
        entries: Arc<PendingEntries>,
        _dir: tempfile::TempDir,
    }

    fn start(results: impl IntoIterator<Item = Option<ErrorKind>>) -> Thread {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("keys.json");
        let ids = Ids::seeded(3);
        let ring = seal::load_keys(&key_file, false, &["x".to_owned()], &ids).unwrap();
        let ended = Arc::new(parking_lot::Mutex::new(None));
        let end = Arc::clone(&ended);
        let making = Making::default();
        let entries = Arc::clone(&making.entries);
        let committer = Committer {
            store: Broken(results.into_iter().collect()),
            number: 0,
            hash: ring.genesis(0),
            making,
            drawn: Drawn::default(),
            ring: Arc::new(RwLock::new(ring)),
            key_file,
            shard: 0,
            epoch: 1,
            ids,
            clock: Clock::real(),
            failpoints: Failpoints::off(),
            metrics: ArchiveMetrics::new(&Metrics::new()),
            fatal: Arc::new(move |reason: &str| *end.lock() = Some(reason.to_owned())),
        };
        let (sender, done) = mpsc::channel(4);
        let (jobs, thread) = committer.start(sender).unwrap();
        Thread {
            jobs,
            done,
            thread,
            ended,
            entries,
            _dir: dir,
        }
    }

    impl Thread {
        /// Whether the job was done; `None` when the thread has ended.
        fn call(&mut self, job: Job) -> Option<bool> {
            assert!(tell(&self.jobs, job).is_ok());
            self.done.blocking_recv().map(|done| match done {
                Done::Group(result) => result.is_ok(),
                Done::Saved(_, written) => written,
            })
        }

        fn close(self) -> Option<String> {
            // The thread may have ended by itself.
            let _ = tell(&self.jobs, Job::End);
            self.thread.join().unwrap();
            self.ended.lock().clone()
        }
    }

    #[test]
    fn no_room_is_told_and_any_other_failure_ends_the_process() {
        let full = Some(ErrorKind::StorageFull);
        let mut thread = start([full, None, full, Some(ErrorKind::Other)]);
        assert_eq!(thread.call(group(1)), Some(false));
        assert_eq!(thread.call(group(1)), Some(true));
        assert_eq!(thread.call(Job::Save(Vec::new())), Some(false));
        assert!(thread.ended.lock().is_none());
        let answer = thread.call(group(2));
        assert_eq!(answer, None, "no answer about what is unknown");
        assert!(thread.close().is_some());
    }

    fn stanzas(first: u64, count: u64) -> Job {
        let wire = chancery_api::archive::AppendItem {
            from: "a@x/1".into(),
            to: "b@x".into(),
            kind: chancery_api::Kind::Message.into(),
            ..Default::default()
        };
        let item = Arc::new(crate::item::Item::new(wire, 0).unwrap());
        let entry = Entry::new(Entry::OPEN, 1);
        let record = || Record::Stanza {
            item: Arc::clone(&item),
            outcome: chancery_evidence::Outcome::Logged,
            entries: [Some((1, entry)), Some((2, entry))],
        };
        Job::Group(Group {
            first,
            time_ms: 1,
            mailboxes: Vec::new(),
            records: (0..count).map(|_| record()).collect(),
        })
    }

    #[test]
    fn entries_are_made_by_number_by_time_and_at_the_end() {
        let mut thread = start([]);
        let many = MAKE_RECORDS as u64;
        assert_eq!(thread.call(stanzas(1, many - 1)), Some(true));
        assert_eq!(thread.entries.len(), 2 * (MAKE_RECORDS - 1));
        assert_eq!(thread.call(stanzas(many, 1)), Some(true));
        // A job later they are made.
        assert_eq!(thread.call(stanzas(many + 1, 1)), Some(true));
        assert_eq!(thread.entries.len(), 2);
        while thread.entries.len() > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(thread.call(stanzas(many + 2, 1)), Some(true));
        let entries = Arc::clone(&thread.entries);
        assert_eq!(thread.close(), None);
        assert_eq!(entries.len(), 0);
    }

    #[test]
    fn entries_without_room_wait_up_to_a_limit_above_which_no_group_is_written() {
        let group = MAKE_RECORDS as u64;
        let groups = (PENDING_RECORDS / MAKE_RECORDS) as u64;
        // Groups are written, entries are not.
        let results = [None, Some(ErrorKind::StorageFull)];
        let results = results.into_iter().cycle().take(2 * groups as usize);
        // The refused group does not get to the disk; its turn makes the entries.
        let mut thread = start(results);
        for at in 0..groups {
            assert_eq!(thread.call(stanzas(1 + at * group, group)), Some(true));
        }
        let next = 1 + groups * group;
        assert_eq!(thread.call(stanzas(next, 1)), Some(false));
        assert_eq!(thread.call(stanzas(next, 1)), Some(true));
        assert_eq!(thread.entries.len(), 2);
        assert_eq!(thread.close(), None);
    }

    #[test]
    fn entries_that_fail_in_any_other_way_end_the_process() {
        let mut thread = start([None, Some(ErrorKind::Other)]);
        assert_eq!(thread.call(stanzas(1, MAKE_RECORDS as u64)), Some(true));
        assert!(thread.done.blocking_recv().is_none());
        assert!(thread.close().is_some());
    }
}
