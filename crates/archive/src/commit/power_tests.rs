//! The log on a disk whose power fails at each boundary of a short run (row 6 of the fault matrix): after
//! each cut the log opens, is exactly one of the states between what was answered and what was begun,
//! verifies, and goes on.
//!
//! `CHANCERY_KILL_TIMES` is the number of seeds, `CHANCERY_KILL_SEED` replays one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::path::Path;

use chancery_evidence::{ExportWriter, Finding, Kind, Outcome, verify};
use chancery_runtime::Metrics;
use chancery_store::{Checkpoint, Profile, checkpoint, open};
use chancery_testkit::disk::{Disk, Image, Op, ROOT, layer};
use chancery_testkit::power::{Cut, Dice, LOSSES, Loss, States, digest};
use rusqlite::Connection;

use super::*;
use crate::entry::Entry;
use crate::mailbox::{Mailbox, Open};
use crate::recover::{Opened, StartError, take_over};
use crate::store::{LogReader, SqliteLog};
use crate::tick::own_act;
use tokio::time::Instant;

/// Transactions and checkpoints of one run.
const STEPS: u64 = 26;
const OWNERS: [&str; 4] = ["a@x", "b@x", "c@x", "d@x"];
/// One recovery of so many is cut as well.
const AGAIN: u64 = 24;

type Log = SqliteLog<Connection>;

/// What the log must say once it is open again.
#[derive(Clone, Default)]
struct Model {
    last: u64,
    /// Mailbox, number, born open.
    entries: BTreeSet<(i64, u64, bool)>,
    /// Below which nothing is open, and up to where the row says what is.
    rows: BTreeMap<i64, (u64, BTreeSet<u64>)>,
}

impl Model {
    /// What was acknowledged and not written down is open again; nothing else.
    fn open(&self, mailbox: i64) -> BTreeSet<u64> {
        let (upto, saved) = &self.rows[&mailbox];
        let later = self
            .entries
            .iter()
            .filter(|(of, number, open)| *of == mailbox && *number > *upto && *open);
        saved
            .iter()
            .copied()
            .chain(later.map(|(_, number, _)| *number))
            .collect()
    }
}

struct Run {
    dice: Dice,
    disk: Disk,
    committer: Committer<Log>,
    other: Connection,
    mailboxes: BTreeMap<i64, Mailbox>,
    now: Model,
    models: Vec<Model>,
    states: States,
    messages: u64,
}

fn start(disk: &Disk, key_file: &Path, seed: u64) -> Result<Opened, StartError> {
    let ids = Ids::seeded(seed);
    take_over(&disk.path("log.db"), key_file, 0, &["x".to_owned()], &ids)
}

fn committer(opened: Opened, key_file: &Path, seed: u64) -> Committer<Log> {
    Committer {
        store: opened.store,
        epoch: opened.head.epoch,
        number: opened.head.number,
        hash: opened.head.hash,
        making: Making::in_pieces_of(3),
        pace: Pace::default(),
        drawn: Drawn::default(),
        ring: Arc::new(RwLock::new(opened.ring)),
        key_file: key_file.to_owned(),
        shard: 0,
        ids: Ids::seeded(seed ^ 0xff),
        clock: Clock::real(),
        failpoints: Failpoints::off(),
        metrics: ArchiveMetrics::new(&Metrics::new()),
        fatal: Arc::new(|reason: &str| panic!("fatal: {reason}")),
        ended: false,
    }
}

fn item(number: u64, from: &str, to: &str, bytes: usize) -> Arc<crate::item::Item> {
    let wire = chancery_api::archive::AppendItem {
        from: format!("{from}/1"),
        to: to.into(),
        kind: chancery_api::Kind::Message.into(),
        r#type: "chat".into(),
        id: number.to_string(),
        sm_id: vec![3; 16].into(),
        count: number,
        payload: vec![b'x'; bytes].into(),
        verdict: Some(chancery_api::Verdict {
            decision: chancery_api::Decision::Allow.into(),
            policy_version: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    Arc::new(crate::item::Item::check(wire, 0).unwrap())
}

impl Run {
    fn new(seed: u64, key_file: &Path) -> Self {
        let disk = Disk::new(Image::new());
        let opened = start(&disk, key_file, seed).unwrap();
        let other = open(&disk.path("log.db"), Profile::log()).unwrap();
        let mut run = Self {
            dice: Dice(seed),
            committer: committer(opened, key_file, seed),
            disk,
            other,
            mailboxes: BTreeMap::new(),
            now: Model::default(),
            models: Vec::new(),
            states: States::default(),
            messages: 0,
        };
        let begun = run.disk.position();
        run.note(begun, true);
        run
    }

    fn note(&mut self, begun: usize, durable: bool) {
        let digest = digest(&self.other).unwrap();
        self.states
            .add(digest, begun, self.disk.position(), durable);
        self.models.push(self.now.clone());
    }

    fn step(&mut self) {
        let begun = self.disk.position();
        match self.dice.below(10) {
            0..=4 => {
                self.group();
                self.note(begun, true);
            }
            5 | 6 => {
                if self.committer.making.records() > 0 {
                    self.committer.make_piece().unwrap();
                    self.note(begun, false);
                }
            }
            7 => {
                self.save();
                self.note(begun, true);
            }
            kind => {
                let how = [
                    Checkpoint::Passive,
                    Checkpoint::Restart,
                    Checkpoint::Truncate,
                ];
                let at = (kind + self.dice.below(2)) as usize % how.len();
                checkpoint(&self.other, how[at]).unwrap();
            }
        }
    }

    /// A few messages, or the end of an account among them.
    fn group(&mut self) {
        let first = self.now.last + 1;
        let (mut records, mut made) = (Vec::new(), Vec::new());
        let mut drops = Vec::new();
        for number in first..first + 1 + self.dice.below(5) {
            let (from, to) = (self.dice.below(4) as usize, self.dice.below(4) as usize);
            let ids = [to, from].map(|at| at as i64 + 1);
            for (id, at) in ids.into_iter().zip([to, from]) {
                if let btree_map::Entry::Vacant(free) = self.mailboxes.entry(id) {
                    free.insert(Mailbox::new(id, Instant::now()));
                    self.now.rows.insert(id, Default::default());
                    made.push((id, Arc::from(OWNERS[at])));
                }
            }
            if self.dice.below(12) == 0 {
                let mut act = own_act(
                    Kind::Administrative,
                    "x".into(),
                    "mailbox.drop",
                    "{}".into(),
                );
                act.change = Some(Change::Drop(OWNERS[to].into()));
                let (act, mailbox) = (Arc::new(act), Some(ids[0]));
                records.push(Record::Act { act, mailbox });
                drops.push((ids[0], number));
                continue;
            }
            let bytes = 20 + self.dice.below(3_000) as usize;
            let received = (ids[0], Entry::new(Entry::OPEN | Entry::BODY, bytes));
            let sent = (ids[1], Entry::new(Entry::SENT | Entry::BODY, bytes));
            self.messages += 1;
            records.push(Record::Stanza {
                item: item(self.messages, OWNERS[from], OWNERS[to], bytes),
                outcome: Outcome::Logged,
                entries: [Some(received), (from != to).then_some(sent)],
            });
        }
        let planned: Vec<_> = (first..)
            .zip(&records)
            .flat_map(|(number, record)| match record {
                Record::Stanza { entries, .. } => entries
                    .iter()
                    .flatten()
                    .map(|(id, entry)| (*id, number, *entry))
                    .collect(),
                Record::Act { .. } => Vec::new(),
            })
            .collect();
        let last = first + records.len() as u64 - 1;
        let group = Group {
            first,
            time_ms: 1_000 + first.cast_signed(),
            mailboxes: made,
            records,
        };
        let done = self.committer.work(Job::Group(group));
        assert!(matches!(done, Some(Done::Group(Ok(_)))));
        self.now.last = last;
        for (id, number, entry) in planned {
            self.now
                .entries
                .insert((id, number, entry.has(Entry::OPEN)));
            if entry.has(Entry::OPEN) {
                let open = Open {
                    bytes: entry.payload_bytes(),
                    at_ms: 5,
                };
                self.mailboxes.get_mut(&id).unwrap().insert(number, open);
            }
        }
        for (id, number) in drops {
            let later = self.mailboxes[&id]
                .open
                .range(number..)
                .map(|(n, o)| (*n, *o));
            let later: Vec<_> = later.collect();
            let mailbox = self.mailboxes.get_mut(&id).unwrap();
            mailbox.drop_below(number);
            later
                .into_iter()
                .for_each(|(n, open)| mailbox.insert(n, open));
            self.now.rows.insert(id, (number, BTreeSet::new()));
        }
    }

    /// Some is acknowledged, and what is left open is written down.
    fn save(&mut self) {
        let head = self.now.last;
        let mut saves = Vec::new();
        for (id, mailbox) in &mut self.mailboxes {
            let open: Vec<u64> = mailbox.open.keys().copied().collect();
            for number in open {
                if self.dice.below(2) == 0 {
                    mailbox.close(number);
                }
            }
            let jid: Arc<str> = OWNERS[*id as usize - 1].into();
            saves.push(mailbox.save(&jid, head));
            let left = mailbox.open.keys().copied().collect();
            self.now.rows.insert(*id, (head, left));
        }
        let done = self.committer.work(Job::Save(saves));
        assert!(matches!(done, Some(Done::Saved(_, true))));
    }
}

/// The log opens, and says what it must.
fn opens(disk: &Disk, key_file: &Path, model: &Model) -> Committer<Log> {
    let opened = start(disk, key_file, 77).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(opened.recovered.head, model.last);
    let committer = committer(opened, key_file, 78);
    let reader = committer.store.reader();
    let numbers: Vec<u64> = reader
        .records(0, u64::MAX, 10_000)
        .unwrap()
        .iter()
        .map(|r| r.0)
        .collect();
    assert_eq!(numbers, (1..=model.last).collect::<Vec<_>>(), "gapless");
    let mut entries = BTreeSet::new();
    for id in model.rows.keys() {
        let jid = OWNERS[*id as usize - 1];
        let all = reader.entries(*id, 0, u64::MAX, 10_000).unwrap();
        entries.extend(
            all.iter()
                .map(|(n, entry)| (*id, *n, entry.has(Entry::OPEN))),
        );
        let row = reader.mailbox(jid).unwrap().expect("the mailbox is there");
        let mailbox = Mailbox::from_row(row, Instant::now(), 5).unwrap();
        let open: BTreeSet<u64> = mailbox.open.keys().copied().collect();
        assert_eq!(open, model.open(*id), "what is open for {jid}");
    }
    assert_eq!(entries, model.entries);
    assert_eq!(
        reader.last_mailbox().unwrap(),
        model.rows.keys().max().copied().unwrap_or(0)
    );
    committer
}

/// It goes on where it is, and the whole verifies as anybody would verify it.
fn goes_on(mut committer: Committer<Log>, model: &Model) {
    let entries = [Some((1, Entry::new(Entry::OPEN, 9))), None];
    let record = Record::Stanza {
        item: item(1_000_000, "a@x", "b@x", 9),
        outcome: Outcome::Logged,
        entries,
    };
    let group = Group {
        first: model.last + 1,
        time_ms: 9_000_000,
        mailboxes: Vec::new(),
        records: vec![record],
    };
    let done = committer.work(Job::Group(group));
    assert!(matches!(done, Some(Done::Group(Ok(_)))));
    let ring = committer.ring.read();
    let mut export = ExportWriter::new(Vec::new(), ring.domain("x").unwrap(), ring.deployment());
    for (_, bytes) in committer
        .store
        .reader()
        .records(0, u64::MAX, 10_000)
        .unwrap()
    {
        export.write(&bytes, None).unwrap();
    }
    let (out, _) = export.finish(9_000_001).unwrap();
    let report = verify(&out[..], &ring.public_key("x").unwrap(), &mut |_| {});
    assert!(
        matches!(report.finding, Finding::Clean),
        "{:?}",
        report.finding
    );
}

/// What a run left: its trace, and what may be found.
struct Ran {
    trace: Vec<Op>,
    start: usize,
    states: States,
    models: Vec<Model>,
    key_file: PathBuf,
    _dir: tempfile::TempDir,
}

fn ran(seed: u64) -> Ran {
    chancery_store::simulate(Path::new(ROOT), layer().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("keys.json");
    let mut run = Run::new(seed, &key_file);
    let start = run.disk.position();
    for _ in 0..STEPS {
        run.step();
    }
    let Run {
        disk,
        committer,
        other,
        states,
        models,
        ..
    } = run;
    // The end, too: the last connection moves all pages and deletes the log's file.
    drop((committer, other));
    Ran {
        trace: disk.trace(),
        start,
        states,
        models,
        key_file,
        _dir: dir,
    }
}

/// The digest of a log that is not opened by its owner yet. Opening it is part of the test.
fn found(disk: &Disk) -> (u64, Connection) {
    let db = open(&disk.path("log.db"), Profile::log()).unwrap();
    (digest(&db).unwrap(), db)
}

fn number_of(image: &Image) -> u64 {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    hasher.finish()
}

/// Cuts everywhere. Gives how many disks there were to recover.
fn cut_everywhere(seed: u64) -> usize {
    let ran = ran(seed);
    let (mut cut, mut dice) = (Cut::new(&Image::new()), Dice(seed ^ 0xc0ffee));
    let mut known: HashMap<u64, u64> = HashMap::new();
    let mut disks = 0;
    for (at, op) in ran.trace.iter().map(Some).chain([None]).enumerate() {
        for loss in LOSSES {
            let image = cut.image(loss, &mut dice);
            let told = || format!("CHANCERY_KILL_SEED={seed}, cut at {at}, {loss:?} lost");
            let state = |digest| {
                let state = ran.states.found(digest, at);
                state.unwrap_or_else(|error| panic!("{}: {error:#}", told()))
            };
            if at < ran.start {
                let disk = Disk::new(image);
                goes_on_from_nothing(&disk, &ran.key_file);
                continue;
            }
            let number = number_of(&image);
            if let Some(digest) = known.get(&number) {
                state(*digest);
                continue;
            }
            disks += 1;
            let disk = Disk::new(image.clone());
            let (digest, db) = found(&disk);
            known.insert(number, digest);
            let model = &ran.models[state(digest)];
            let committer = opens(&disk, &ran.key_file, model);
            drop(db);
            let trace = disk.trace();
            goes_on(committer, model);
            if dice.below(AGAIN) == 0 {
                disks += again(&image, &trace, &ran.key_file, model, &mut dice);
            }
        }
        if let Some(op) = op {
            cut.step(op);
        }
    }
    disks
}

/// The power fails during the recovery.
fn again(image: &Image, trace: &[Op], key_file: &Path, model: &Model, dice: &mut Dice) -> usize {
    let mut cut = Cut::new(image);
    for op in trace {
        let loss = LOSSES[dice.below(LOSSES.len() as u64) as usize];
        let disk = Disk::new(cut.image(loss, dice));
        goes_on(opens(&disk, key_file, model), model);
        cut.step(op);
    }
    trace.len()
}

fn goes_on_from_nothing(disk: &Disk, key_file: &Path) {
    drop(opens(disk, key_file, &Model::default()));
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("CHANCERY_KILL_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("CHANCERY_KILL_TIMES").unwrap_or(2)).collect(),
    }
}

#[test]
fn the_log_survives_a_power_cut_at_every_boundary() {
    for seed in seeds() {
        let disks = cut_everywhere(seed);
        println!("seed {seed}: {disks} disks");
        assert!(disks > 100, "seed {seed}: {disks} disks");
    }
}

/// The test sees what it is there to see: a disk that loses what it said was synced.
#[test]
fn a_disk_that_lies_is_found_out() {
    let ran = ran(1);
    let (mut cut, mut dice, mut wrong) = (Cut::new(&Image::new()), Dice(1), 0);
    for (at, op) in ran.trace.iter().enumerate() {
        if at >= ran.start {
            let disk = Disk::new(cut.image(Loss::Lying, &mut dice));
            let opened = open(&disk.path("log.db"), Profile::log());
            let digest = opened.ok().and_then(|db| digest(&db).ok());
            wrong += usize::from(digest.is_none_or(|d| ran.states.found(d, at).is_err()));
        }
        cut.step(op);
    }
    assert!(wrong > 100, "{wrong}");
}
