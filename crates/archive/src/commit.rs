//! The commit thread: seals a group, chains it, and writes it in one durable transaction; and the
//! thread that checkpoints the write-ahead log. Owns the writing connection and the chain's last
//! hash. Refuses to decide anything, and to go on after an error whose effect is unknown.

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

use crate::mailbox::MailboxSave;
use crate::metrics::ArchiveMetrics;
use crate::seal::{self, KeyError, Place};
use crate::shard::{Group, NotCommitted, Record};
use crate::store::{LogStore, Writing};

/// Jobs that wait for the thread: one group, a few writes of open sets, the end.
pub(crate) const JOBS_LIMIT: usize = 8;
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
    pub(crate) hash: Hash,
    pub(crate) ids: Ids,
    pub(crate) clock: Clock,
    pub(crate) failpoints: Failpoints,
    pub(crate) metrics: ArchiveMetrics,
    pub(crate) fatal: Fatal,
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
        while let Ok(job) = jobs.recv() {
            let result = match job {
                Job::End => return,
                Job::Group(group) => self.commit(group).map(Done::Group),
                Job::Save(saves) => self.save(&saves),
            };
            match result {
                Ok(result) => {
                    if done.blocking_send(result).is_err() {
                        return;
                    }
                }
                Err(reason) => {
                    tracing::error!(reason, "the log cannot be written, ending the process");
                    (self.fatal)(&reason);
                    return;
                }
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
        self.make_keys(&group)?;
        let mut writing = Writing {
            first: group.first,
            records: Vec::with_capacity(group.records.len()),
            mailboxes: group.mailboxes,
            entries: Vec::with_capacity(group.records.len() * 2),
            floors: Vec::new(),
            hash: self.hash,
        };
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
                let (sealed, archive_id) =
                    seal::seal(&ring, record, place, &writing.hash, &self.ids)
                        .map_err(|error| Failure::Nothing(error.to_string()))?;
                writing.hash = sealed.hash;
                writing.records.push(sealed.bytes);
                archive_ids.push(archive_id);
                match record {
                    Record::Stanza { entries, .. } => {
                        for (mailbox, entry) in entries.iter().flatten() {
                            writing.entries.push((*mailbox, number, *entry));
                        }
                    }
                    Record::Act { floor, .. } => {
                        writing
                            .floors
                            .extend(floor.map(|mailbox| (mailbox, number)));
                    }
                }
            }
        }
        self.store.append(&writing)?;
        self.hash = writing.hash;
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
    use crate::shard::Act;
    use crate::store::Head;
    use crate::tick::own_act;
    use chancery_evidence::{DEPLOYMENT, Kind};
    use chancery_runtime::Metrics;
    use std::collections::VecDeque;
    use std::io::ErrorKind;

    /// Fails as told.
    struct Broken(VecDeque<Option<ErrorKind>>);

    impl Broken {
        fn next(&mut self) -> Result<(), StoreError> {
            let kind = self.0.pop_front().expect("a result");
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

    #[test]
    fn no_room_is_told_and_any_other_failure_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("keys.json");
        let ids = Ids::seeded(3);
        let ring = seal::load_keys(&key_file, false, &[], &ids).unwrap();
        let ended = Arc::new(parking_lot::Mutex::new(None));
        let end = Arc::clone(&ended);
        let results = [
            Some(ErrorKind::StorageFull),
            None,
            Some(ErrorKind::StorageFull),
        ];
        let broken = results
            .into_iter()
            .chain([Some(ErrorKind::Other)])
            .collect();
        let committer = Committer {
            store: Broken(broken),
            hash: ring.genesis(0),
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
        let (sender, mut done) = mpsc::channel(4);
        let (jobs, thread) = committer.start(sender).unwrap();
        assert!(tell(&jobs, group(1)).is_ok());
        assert!(matches!(
            done.blocking_recv(),
            Some(Done::Group(Err(NotCommitted)))
        ));
        assert!(tell(&jobs, group(1)).is_ok());
        assert!(matches!(done.blocking_recv(), Some(Done::Group(Ok(ids))) if ids.len() == 1));
        assert!(tell(&jobs, Job::Save(Vec::new())).is_ok());
        assert!(matches!(done.blocking_recv(), Some(Done::Saved(_, false))));
        assert!(ended.lock().is_none());
        assert!(tell(&jobs, group(2)).is_ok());
        assert!(
            done.blocking_recv().is_none(),
            "no answer about what is unknown"
        );
        thread.join().unwrap();
        assert!(ended.lock().is_some());
    }
}
