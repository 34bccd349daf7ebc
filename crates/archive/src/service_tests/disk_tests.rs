//! What the disk does to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::mailbox::MailboxSave;
use crate::recover::{Opened, take_over};
use crate::store::{Head, LogStore, SqliteLog, Writing};
use crate::{ArchiveService, StartError};
use chancery_api::archive::{AppendAnswer, AppendItem, Outcome};
use chancery_evidence::Hash;
use chancery_evidence::{Finding, verify};
use chancery_runtime::Ids;
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
    let connection =
        chancery_store::open(&dir.path().join("log.db"), chancery_store::Profile::log()).unwrap();
    connection
        .execute(
            "UPDATE record SET bytes = x'00' WHERE key = (SELECT max(key) FROM record)",
            [],
        )
        .unwrap();
    drop(connection);
    assert!(matches!(
        try_open(dir.path()).await,
        Err(StartError::Tail { .. })
    ));
}
