//! What the disk does to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::actor::now;
use crate::entry::Entry;
use crate::mailbox::{Mailbox, MailboxSave};
use crate::recover::{Opened, take_over};
use crate::store::{Head, LogReader, LogStore, SqliteLog, Writing};
use crate::{ArchiveService, StartError};
use chancery_api::archive::{Acknowledge, AppendAnswer, AppendItem, Credit, Outcome, attach_down};
use chancery_evidence::Hash;
use chancery_evidence::{Finding, verify};
use chancery_runtime::{Clock, Ids};
use chancery_store::StoreError;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::house::*;

/// A log on a disk whose size a test may change.
struct Disk {
    log: SqliteLog<Connection>,
    pages: Arc<AtomicI64>,
}

impl LogStore for Disk {
    fn open(&mut self, genesis: Hash) -> Result<Head, StoreError> {
        self.log.open(genesis)
    }

    fn append(&mut self, writing: &Writing) -> Result<(), StoreError> {
        self.log.limit_pages(self.pages.load(Ordering::SeqCst))?;
        self.log.append(writing)
    }

    fn make_entries(
        &mut self,
        entries: &[(i64, u64, Entry)],
        upto: Option<(u64, Hash)>,
    ) -> Result<(), StoreError> {
        self.log.make_entries(entries, upto)
    }

    fn save(&mut self, saves: &[MailboxSave]) -> Result<(), StoreError> {
        self.log.save(saves)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_answers_wait_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (log, keys) = (dir.path().join("log.db"), dir.path().join("keys.json"));
    let opened = take_over(&log, &keys, 0, &["x".to_owned()], &Ids::real()).unwrap();
    let pages = Arc::new(AtomicI64::new(1_000_000));
    let disk = Opened {
        store: Disk {
            log: opened.store,
            pages: Arc::clone(&pages),
        },
        ring: opened.ring,
        head: opened.head,
        recovered: opened.recovered,
    };
    let parts = parts(dir.path());
    let (tasks, failpoints) = (parts.tasks.clone(), parts.failpoints.clone());
    let metrics = parts.metrics.clone();
    let archive = ArchiveService::assemble(parts, disk, &log).unwrap();
    let house = House {
        tasks,
        failpoints,
        metrics,
        archive,
    };
    let lane = house.lane();
    let large = |count| AppendItem {
        payload: vec![b' '; 60_000].into(),
        ..message(1, count)
    };
    let first = call(&lane, large(1)).await;
    assert_eq!(first.outcome(), Outcome::Committed);
    pages.store(1, Ordering::SeqCst);
    for count in 2..5 {
        assert_eq!(call(&lane, large(count)).await.outcome(), Outcome::Wait);
    }
    assert_eq!(
        call(&lane, large(1)).await,
        AppendAnswer {
            seq: 5,
            ..first.clone()
        }
    );
    pages.store(1_000_000, Ordering::SeqCst);
    let after = call(&lane, large(5)).await;
    assert_eq!(
        (after.outcome(), after.number),
        (Outcome::Committed, first.number + 1)
    );
    assert!(
        house
            .metrics
            .render()
            .contains("chancery_archive_disk_full_total 3")
    );
    house.close().await;
    let house = open(dir.path()).await;
    let (export, key) = house.export(true).await;
    assert!(matches!(
        verify(&export[..], &key, &mut |_| {}).finding,
        Finding::Clean
    ));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_its_keys_or_with_another_tail_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    call(&house.lane(), message(1, 1)).await;
    house.close().await;
    let keys = dir.path().join("keys.json");
    std::fs::rename(&keys, dir.path().join("away")).unwrap();
    assert!(matches!(
        try_open(dir.path()).await,
        Err(StartError::Keys(_))
    ));
    std::fs::rename(dir.path().join("away"), &keys).unwrap();
    alter(
        dir.path(),
        "UPDATE record SET bytes = x'00' WHERE key = (SELECT max(key) FROM record)",
    );
    assert!(matches!(
        try_open(dir.path()).await,
        Err(StartError::Tail { .. })
    ));
}

fn alter(dir: &std::path::Path, sql: &str) {
    let log = chancery_store::open(&dir.join("log.db"), chancery_store::Profile::log()).unwrap();
    assert_ne!(log.execute(sql, []).unwrap(), 0, "{sql}");
}

/// Each change of the records above the head is found: the head was written before them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_above_the_head_is_one_chain_or_does_not_open() {
    const LAST: &str = "(SELECT max(key) FROM record)";
    let sealed = "CAST(substr(bytes, 1, length(bytes) - 1) ||
        CASE substr(bytes, -1) WHEN x'00' THEN x'01' ELSE x'00' END AS BLOB)";
    let changes = [
        (
            format!("UPDATE record SET bytes = {sealed} WHERE key = {LAST}"),
            "last",
        ),
        (
            format!("UPDATE record SET bytes = {sealed} WHERE key = {LAST} - 2"),
            "middle",
        ),
        (format!("DELETE FROM record WHERE key = {LAST} - 2"), "gap"),
        (
            format!("UPDATE record SET key = key + 1 WHERE key = {LAST}"),
            "place",
        ),
        (
            format!("UPDATE record SET entries = x'80' WHERE key = {LAST}"),
            "entries",
        ),
        ("UPDATE head SET epoch = 0".to_owned(), "epoch"),
        (format!("UPDATE head SET number = {LAST} + 1"), "beyond"),
        ("UPDATE head SET hash = zeroblob(32)".to_owned(), "head"),
    ];
    for (change, what) in changes {
        let dir = tempfile::tempdir().unwrap();
        let house = open(dir.path()).await;
        call(&house.lane(), message(1, 1)).await;
        house.close().await;
        let house = open(dir.path()).await;
        house
            .failpoints
            .set("archive::entries::before", "error")
            .unwrap();
        for count in 2..6 {
            call(&house.lane(), message(1, count)).await;
        }
        house.close().await;
        alter(dir.path(), &change);
        let refused = try_open(dir.path()).await.map(drop);
        let expected = match &refused {
            Err(StartError::Store(StoreError::Invalid(_))) => what == "entries",
            Err(StartError::Tail { .. }) => what != "entries",
            _ => false,
        };
        assert!(expected, "{what}: {refused:?}");
    }
}

/// Its entries have no rows, and neither has its open set when it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_read_before_they_have_rows_and_made_after_a_kill() {
    const COUNT: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let numbers = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let numbers = runtime.block_on(before_the_kill(&path, COUNT));
        runtime.shutdown_background();
        numbers
    })
    .join()
    .unwrap();
    let rows = |sql: &str| -> Vec<u64> {
        let log = chancery_store::open(&dir.path().join("log.db"), chancery_store::Profile::log())
            .unwrap();
        let mut rows = log.prepare(sql).unwrap();
        let rows = rows.query_map([], |row| row.get::<_, i64>(0)).unwrap();
        rows.map(|row| row.unwrap().cast_unsigned()).collect()
    };
    assert!(rows("SELECT key FROM entry").is_empty(), "nothing was made");
    let house = open(dir.path()).await;
    let of_b = "SELECT key FROM entry WHERE mailbox = (SELECT id FROM mailbox WHERE jid = 'b@x')";
    assert_eq!(rows(of_b), numbers, "made at the start");
    // What was acknowledged and saved stays closed; the rest is open, in order.
    let mut link = follow(&*house.archive, 2, session(1_000)).await;
    for number in &numbers[10..] {
        let deliver = next_delivery(&mut link).await;
        assert_eq!(deliver.number, *number);
        assert!(deliver.targets[0].delayed);
    }
    let (export, key) = house.export(true).await;
    assert!(matches!(
        verify(&export[..], &key, &mut |_| {}).finding,
        Finding::Clean
    ));
    house.close().await;
    let head = rows("SELECT number FROM head");
    assert_eq!(
        head,
        rows("SELECT max(key) FROM record"),
        "a clean end leaves nothing to make"
    );
}

/// Sends, and reads it all back with no entry made; acknowledges ten.
async fn before_the_kill(path: &std::path::Path, count: u64) -> Vec<u64> {
    let house = open(path).await;
    house
        .failpoints
        .set("archive::entries::before", "error")
        .unwrap();
    let lane = house.lane();
    let mut numbers = Vec::new();
    for count in 1..=count {
        numbers.push(call(&lane, message(1, count)).await.number);
    }
    // With credit for a few the session lags, and is fed from the log.
    let mut link = follow(&*house.archive, 1, session(10)).await;
    for number in &numbers {
        let deliver = next_delivery(&mut link).await;
        assert_eq!(deliver.number, *number);
        let credit = Credit {
            session: 1,
            credit: 1,
        };
        link.send(down(attach_down::Item::Credit(credit)))
            .await
            .unwrap();
    }
    let acknowledge = Acknowledge {
        session: 1,
        numbers: numbers[..10].to_vec(),
    };
    link.send(down(attach_down::Item::Acknowledge(acknowledge)))
        .await
        .unwrap();
    // Open sets are written once a second, whether or not entries are made.
    let log = path.join("log.db");
    let saved = || {
        let log = chancery_store::open(&log, chancery_store::Profile::log().reader()).unwrap();
        let row = SqliteLog::new(&log, 0).row("b@x").unwrap().unwrap();
        let upto = row.upto;
        let mailbox = Mailbox::from_row(row, now(&Clock::real()).monotonic, 0).unwrap();
        Some(&upto) >= numbers.last() && mailbox.open.len() == numbers.len() - 10
    };
    tokio::time::timeout(LIMIT, async {
        while !saved() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    numbers
}
