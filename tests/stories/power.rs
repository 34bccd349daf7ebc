//! The power fails at each boundary of short runs of `directory.db`, `roster.db` and `policy.db` (row 6 of the
//! fault matrix): each acknowledged change is there, and each database is what it was between two changes.
//! The log has the same test beside its code, `crates/archive/src/commit/power_tests.rs`.
//!
//! `CHANCERY_KILL_TIMES` is the number of seeds, `CHANCERY_KILL_SEED` replays one.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use chancery_api::roster::{Item, Subscription};
use chancery_directory::store as directory;
use chancery_policy::{PolicyStore, SqlitePolicyStore, StoredVersion};
use chancery_roster::store as roster;
use chancery_store::{Profile, open};
use chancery_testkit::disk::{Disk, Image, ROOT, layer};
use chancery_testkit::power::{Cut, Dice, LOSSES, Loss, States, digest};
use directory::Store as _;
use roster::Store as _;

/// Changes of one run.
const CHANGES: usize = 24;
/// The database is closed and opened again after so many: then it is moved out of its log.
const OPEN_FOR: usize = 9;

/// A database of ours, opened as its service opens it.
#[allow(async_fn_in_trait)]
trait Kept: Sized {
    fn open(path: &Path) -> Self;
    /// Makes a change; one that is refused is none.
    async fn change(&self, number: u64, dice: &mut Dice);
    async fn close(self);
}

impl Kept for SqlitePolicyStore {
    fn open(path: &Path) -> Self {
        Self::open(path).unwrap()
    }

    async fn change(&self, number: u64, dice: &mut Dice) {
        if dice.below(3) == 0 {
            self.raise(number).await.unwrap();
            return;
        }
        let version = StoredVersion {
            version: number,
            toml: "#".repeat(dice.below(9_000) as usize),
            applied_at_ms: 5,
            actor: "officer".into(),
        };
        self.apply(version).await.unwrap();
    }

    async fn close(self) {
        Self::close(&self).await;
    }
}

impl Kept for roster::SqliteStore {
    fn open(path: &Path) -> Self {
        Self::open(path).unwrap()
    }

    async fn change(&self, number: u64, dice: &mut Dice) {
        let owner = format!("o{}@a.test", dice.below(3));
        let jid = format!("c{}@a.test", dice.below(6));
        let change = match dice.below(8) {
            0 => roster::Change::Remove { jid },
            1 | 2 => roster::Change::Edit {
                jid,
                name: number.to_string(),
                groups: vec!["g".repeat(dice.below(900) as usize + 1)],
                colleague: false,
            },
            3 | 4 => {
                let listing = if dice.below(3) == 0 {
                    roster::Listing::Unblock(vec![jid])
                } else {
                    roster::Listing::Block(vec![jid])
                };
                self.list(owner, listing, 100).await.unwrap();
                return;
            }
            5 if dice.below(3) == 0 => {
                self.clear(owner).await.unwrap();
                return;
            }
            _ => roster::Change::Put(Item {
                jid,
                name: number.to_string(),
                subscription: Subscription::Both.into(),
                ..Item::default()
            }),
        };
        roster::Store::change(self, owner, change, 100)
            .await
            .unwrap();
    }

    async fn close(self) {
        Self::close(&self).await;
    }
}

impl Kept for directory::SqliteStore {
    fn open(path: &Path) -> Self {
        Self::open(path).unwrap()
    }

    async fn change(&self, number: u64, dice: &mut Dice) {
        let (domain, group) = ("a.test".to_owned(), "staff".to_owned());
        let name = directory::Name {
            domain: domain.clone(),
            localpart: format!("u{}", dice.below(5)),
        };
        let there = self.find(name.clone()).await.unwrap();
        let seen = there.map(|(account, _)| account.version);
        let keys = || directory::KeySet {
            sha1: None,
            sha256: Some(directory::Keys {
                salt: vec![number as u8; 16],
                iterations: 4_096,
                stored_key: vec![number as u8; 32],
                server_key: vec![1; 32],
            }),
        };
        let members = vec![name.localpart.clone()];
        let change = match (dice.below(8), seen) {
            (0, Some(seen)) => directory::Change::Delete { name, seen },
            (1, _) => directory::Change::Disable {
                name,
                act: directory::Act {
                    domain,
                    actor: "root".into(),
                    act: "account.disable".into(),
                    detail: "{}".into(),
                },
            },
            (2, Some(seen)) => directory::Change::Enable { name, seen },
            (3, Some(seen)) => directory::Change::SetKeys {
                name,
                keys: keys(),
                seen,
            },
            (4, _) => directory::Change::CreateGroup { domain, group },
            (5, Some(_)) => directory::Change::AddMembers {
                domain,
                group,
                members,
            },
            (6, _) => directory::Change::DeleteGroup { domain, group },
            _ => directory::Change::Add {
                name,
                keys: keys(),
                seen,
            },
        };
        self.apply(vec![change]).await.unwrap();
    }

    async fn close(self) {
        Self::close(&self).await;
    }
}

/// What a run left.
struct Ran {
    disk: Disk,
    states: States,
    start: usize,
}

async fn run<K: Kept>(seed: u64) -> Ran {
    chancery_store::simulate(Path::new(ROOT), layer().unwrap());
    let disk = Disk::new(Image::new());
    let path = disk.path("a.db");
    let mut dice = Dice(seed);
    let mut states = States::default();
    let now = |path: &Path| digest(&open(path, Profile::durable().reader()).unwrap()).unwrap();
    let mut store = K::open(&path);
    let start = disk.position();
    states.add(now(&path), start, start, true);
    for number in 1..=CHANGES {
        if number % OPEN_FOR == 0 {
            store.close().await;
            store = K::open(&path);
        }
        let begun = disk.position();
        store.change(number as u64, &mut dice).await;
        states.add(now(&path), begun, disk.position(), true);
    }
    store.close().await;
    Ran {
        disk,
        states,
        start,
    }
}

/// What is on a disk, opened as the service opens it.
fn found(image: Image) -> (u64, Disk, PathBuf) {
    let disk = Disk::new(image);
    let path = disk.path("a.db");
    let found = open(&path, Profile::durable()).and_then(|db| Ok(digest(&db)?));
    (found.unwrap_or(0), disk, path)
}

async fn cut_everywhere<K: Kept>(what: &str) {
    for seed in seeds() {
        let ran = run::<K>(seed).await;
        let trace = ran.disk.trace();
        let (mut cut, mut dice) = (Cut::new(&Image::new()), Dice(seed ^ 0xc0ffee));
        let mut known: HashMap<u64, u64> = HashMap::new();
        for (at, op) in trace.iter().map(Some).chain([None]).enumerate() {
            for loss in LOSSES {
                let image = cut.image(loss, &mut dice);
                let mut hasher = DefaultHasher::new();
                image.hash(&mut hasher);
                let number = hasher.finish();
                let digest = match known.get(&number) {
                    Some(digest) => *digest,
                    None => {
                        let (digest, disk, path) = found(image);
                        K::open(&path).close().await;
                        drop(disk);
                        known.insert(number, digest);
                        digest
                    }
                };
                if at < ran.start {
                    continue;
                }
                if let Err(error) = ran.states.found(digest, at) {
                    panic!(
                        "{what}, CHANCERY_KILL_SEED={seed}, cut at {at}, {loss:?} lost: {error:#}"
                    );
                }
            }
            if let Some(op) = op {
                cut.step(op);
            }
        }
        println!(
            "{what}, seed {seed}: {} boundaries, {} disks",
            trace.len(),
            known.len()
        );
        assert!(known.len() > 100, "{what}: {} disks", known.len());
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("CHANCERY_KILL_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("CHANCERY_KILL_TIMES").unwrap_or(2)).collect(),
    }
}

#[tokio::test]
async fn every_acknowledged_change_of_the_directory_survives() {
    cut_everywhere::<directory::SqliteStore>("directory").await;
}

#[tokio::test]
async fn every_acknowledged_change_of_a_roster_survives() {
    cut_everywhere::<roster::SqliteStore>("roster").await;
}

#[tokio::test]
async fn every_acknowledged_change_of_the_policy_survives() {
    cut_everywhere::<SqlitePolicyStore>("policy").await;
}

/// The test sees what it is there to see.
#[tokio::test]
async fn a_disk_that_lies_is_found_out() {
    let ran = run::<roster::SqliteStore>(1).await;
    let trace = ran.disk.trace();
    let (mut cut, mut dice, mut wrong) = (Cut::new(&Image::new()), Dice(1), 0);
    for (at, op) in trace.iter().enumerate() {
        if at >= ran.start {
            let (digest, ..) = found(cut.image(Loss::Lying, &mut dice));
            wrong += usize::from(ran.states.found(digest, at).is_err());
        }
        cut.step(op);
    }
    assert!(wrong > 100, "{wrong}");
}
