//! What the thread does with errors of the disk, and when it makes entries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::entry::Entry;
use crate::making::{ROUND_INTERVAL, ROUND_RECORDS};
use crate::pending::PendingEntries;
use crate::shard::Act;
use crate::store::Head;
use crate::tick::own_act;
use chancery_evidence::{DEPLOYMENT, Kind};
use chancery_runtime::Metrics;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;

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
        _entries: &[(i64, u64, Entry)],
        _upto: Option<(u64, Hash)>,
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
        mailbox: None,
    };
    Job::Group(Group {
        first,
        time_ms: 1,
        mailboxes: Vec::new(),
        records: vec![record],
    })
}

/// A committer whose store answers `results`, then works, on a clock that stands; its thread has not
/// begun, and so holds no lock.
struct Idle {
    commits: Commits<Broken>,
    jobs: Receiver<Job>,
    ended: Arc<Mutex<Option<String>>>,
    entries: Arc<PendingEntries>,
    clock: Clock,
    dir: tempfile::TempDir,
}

/// With its thread; and what ended it.
struct Thread {
    commits: Commits<Broken>,
    done: mpsc::Receiver<Done>,
    thread: JoinHandle<()>,
    ended: Arc<Mutex<Option<String>>>,
    entries: Arc<PendingEntries>,
    clock: Clock,
    _dir: tempfile::TempDir,
}

fn idle(results: impl IntoIterator<Item = Option<ErrorKind>>) -> Idle {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("keys.json");
    let ids = Ids::seeded(3);
    let ring = seal::load_keys(&key_file, false, &["x".to_owned()], &ids).unwrap();
    let ended = Arc::new(Mutex::new(None));
    let end = Arc::clone(&ended);
    let making = Making::default();
    let entries = Arc::clone(&making.entries);
    let clock = Clock::manual(1);
    let (commits, jobs) = Commits::new(Committer {
        store: Broken(results.into_iter().collect()),
        number: 0,
        hash: ring.genesis(0),
        making,
        pace: Pace::default(),
        drawn: Drawn::default(),
        ring: Arc::new(RwLock::new(ring)),
        key_file,
        shard: 0,
        epoch: 1,
        ids,
        clock: clock.clone(),
        failpoints: Failpoints::off(),
        metrics: ArchiveMetrics::new(&Metrics::new()),
        fatal: Arc::new(move |reason: &str| *end.lock() = Some(reason.to_owned())),
        ended: false,
    });
    Idle {
        commits,
        jobs,
        ended,
        entries,
        clock,
        dir,
    }
}

fn start(results: impl IntoIterator<Item = Option<ErrorKind>>) -> Thread {
    idle(results).start()
}

impl Idle {
    fn start(self) -> Thread {
        let (sender, done) = mpsc::channel(4);
        Thread {
            thread: self.commits.start(self.jobs, sender).unwrap(),
            commits: self.commits,
            done,
            ended: self.ended,
            entries: self.entries,
            clock: self.clock,
            _dir: self.dir,
        }
    }

    /// Commits until the disk has shown that it is quick; gives the number of the next record.
    fn warm(&self) -> u64 {
        for number in 1..ROUND_RECORDS as u64 / 2 {
            let (done, here) = match self.commits.in_place(of(group(number))) {
                Ok(done) => (done, true),
                Err(group) => (self.commits.committer.lock().work(Job::Group(group)), false),
            };
            assert!(matches!(done, Some(Done::Group(Ok(_)))));
            if here {
                let least = 16 - u64::from(SLOW_COMMITS);
                assert!(number > least, "too little was known of it");
                return number + 1;
            }
        }
        panic!("it never counted as quick");
    }
}

impl Thread {
    /// Whether the job was done; `None` when the thread has ended.
    fn call(&mut self, job: Job) -> Option<bool> {
        assert!(self.commits.tell(job).is_ok());
        self.done.blocking_recv().map(|done| match done {
            Done::Group(result) => result.is_ok(),
            Done::Saved(_, written) => written,
        })
    }

    fn close(self) -> Option<String> {
        // The thread may have ended by itself.
        let _ = self.commits.tell(Job::End);
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
        r#type: "chat".into(),
        verdict: Some(chancery_api::Verdict {
            decision: chancery_api::Decision::Allow.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let item = Arc::new(crate::item::Item::check(wire, 0).unwrap());
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
    let many = ROUND_RECORDS as u64;
    assert_eq!(thread.call(stanzas(1, many - 1)), Some(true));
    assert_eq!(thread.entries.len(), 2 * (ROUND_RECORDS - 1));
    // With the next a round begins: a piece for each few records, until only later ones lack theirs.
    assert_eq!(thread.call(stanzas(many, 1)), Some(true));
    let mut next = many + 1;
    while thread.entries.len() as u64 > 2 * (next - 1 - many) || next == many + 1 {
        assert!(next < 2 * many, "before the next round is due");
        assert_eq!(thread.call(stanzas(next, 24)), Some(true));
        next += 24;
    }
    // The rest by time.
    while thread.entries.len() > 0 {
        thread.clock.advance(ROUND_INTERVAL);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(thread.call(stanzas(next, 200)), Some(true));
    let entries = Arc::clone(&thread.entries);
    assert_eq!(thread.close(), None);
    assert_eq!(entries.len(), 0);
}

#[test]
fn entries_without_room_wait_up_to_a_limit_above_which_no_group_is_written() {
    let group = ROUND_RECORDS as u64;
    let groups = (PENDING_RECORDS / ROUND_RECORDS) as u64;
    // Groups are written, entries are not.
    let full = Some(ErrorKind::StorageFull);
    let results = [None, full].into_iter().cycle().take(2 * groups as usize);
    // Nor when it comes to the limit.
    let mut thread = start(results.chain([full]));
    for at in 0..groups {
        assert_eq!(thread.call(stanzas(1 + at * group, group)), Some(true));
    }
    let next = 1 + groups * group;
    assert_eq!(thread.call(stanzas(next, 1)), Some(false));
    assert_eq!(thread.entries.len(), 2 * PENDING_RECORDS);
    // Now there is room: all are made before it is written.
    assert_eq!(thread.call(stanzas(next, 1)), Some(true));
    assert_eq!(thread.entries.len(), 2);
    assert_eq!(thread.close(), None);
}

#[test]
fn entries_that_fail_in_any_other_way_end_the_process() {
    let mut thread = start([None, Some(ErrorKind::Other)]);
    assert_eq!(thread.call(stanzas(1, ROUND_RECORDS as u64)), Some(true));
    assert!(thread.done.blocking_recv().is_none());
    assert!(thread.close().is_some());
}

/// The group of a job.
fn of(job: Job) -> Group {
    match job {
        Job::Group(group) => group,
        _ => panic!("no group"),
    }
}

#[test]
fn a_group_is_committed_in_place_once_the_disk_has_been_quick() {
    let idle = idle([]);
    let next = idle.warm();
    let many = IN_PLACE_RECORDS as u64 + 1;
    assert!(idle.commits.in_place(of(stanzas(next, many))).is_err());
    assert!(idle.commits.in_place(of(stanzas(next, 1))).is_ok());
    // Whoever commits here makes what is due, a piece at a time.
    let mut next = next + 1;
    let full = IN_PLACE_RECORDS as u64;
    for _ in 0..=ROUND_RECORDS / IN_PLACE_RECORDS {
        assert!(idle.commits.in_place(of(stanzas(next, full))).is_ok());
        next += full;
    }
    let before = idle.entries.len();
    idle.commits.make_in_place();
    let after = idle.entries.len();
    assert!(0 < after && after < before, "{before}, {after}");
    let busy = idle.commits.committer.lock();
    assert!(idle.commits.in_place(of(group(next))).is_err());
    drop(busy);
    for _ in 0..SLOW_COMMITS {
        idle.commits.committer.lock().pace.took(2 * QUICK, 1);
        assert!(idle.commits.in_place(of(group(next))).is_ok());
        next += 1;
    }
    let slow = |time, records| idle.commits.committer.lock().pace.took(time, records);
    slow(STALL, IN_PLACE_RECORDS + 1);
    assert!(
        idle.commits.in_place(of(group(next))).is_ok(),
        "a large group says nothing"
    );
    next += 1;
    for _ in 0..=SLOW_COMMITS {
        slow(2 * QUICK, 1);
    }
    assert!(idle.commits.in_place(of(group(next))).is_err());
    let mut pace = Pace(0);
    pace.took(STALL, 1);
    assert!(!pace.is_quick());
    assert_eq!(*idle.ended.lock(), None);
}

#[test]
fn with_failpoints_nothing_is_committed_in_place() {
    let idle = idle([]);
    let next = idle.warm();
    let failpoints = idle.commits.committer.lock().failpoints.clone();
    failpoints.set("archive::commit::before", "off").unwrap();
    assert!(idle.commits.in_place(of(group(next))).is_err());
    assert_eq!(*idle.ended.lock(), None);
}

#[test]
fn an_error_in_place_ends_the_process_and_the_thread() {
    let idle = idle([]);
    let next = idle.warm();
    idle.commits.committer.lock().store = Broken([Some(ErrorKind::Other)].into());
    assert!(matches!(idle.commits.in_place(of(group(next))), Ok(None)));
    assert!(idle.ended.lock().is_some());
    assert!(idle.commits.in_place(of(group(next))).is_err());
    let mut thread = idle.start();
    let answer = thread.call(Job::Save(Vec::new()));
    assert_eq!(answer, None, "nothing more is written, and no word of it");
    assert!(thread.close().is_some());
}
