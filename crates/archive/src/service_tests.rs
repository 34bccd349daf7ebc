//! The whole archive with its threads, its disk and both wirings.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::{
    Acknowledge, AppendAnswer, AppendItem, Archive, AttachDown, AttachHello, AttachSession,
    AttachUp, Credit, Deliver, DropMailboxRequest, ExportRequest, Key, Outcome, PublicKeyRequest,
    RecordActRequest, RemoteArchive, SettleRequest, StatusRequest, attach_down, attach_up,
};
use chancery_api::channel::{Served, pipe};
use chancery_api::{Calls, Cx, Decision, Kind, Lane, LanePeer, Link, Role, Verdict};
use chancery_evidence::{Finding, PublicKey, verify};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};

use chancery_evidence::Hash;
use chancery_store::StoreError;
use rusqlite::Connection;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::mailbox::MailboxSave;
use crate::recover::{Opened, take_over};
use crate::store::{Head, LogStore, SqliteLog, Writing};
use crate::{ArchiveService, Config, Parts, StartError};

const LIMIT: Duration = Duration::from_secs(30);

struct House {
    tasks: Tasks,
    failpoints: Failpoints,
    metrics: Metrics,
    archive: Arc<ArchiveService>,
}

fn parts(dir: &Path) -> Parts {
    Parts {
        data_dir: dir.to_owned(),
        domains: vec!["x".to_owned()],
        config: Config::default(),
        clock: Clock::real(),
        ids: Ids::real(),
        metrics: Metrics::new(),
        failpoints: Failpoints::off(),
        tasks: Tasks::new(),
        fatal: Some(Arc::new(|reason: &str| panic!("fatal: {reason}"))),
    }
}

async fn try_open(dir: &Path) -> Result<House, StartError> {
    let parts = parts(dir);
    let (tasks, failpoints) = (parts.tasks.clone(), parts.failpoints.clone());
    let metrics = parts.metrics.clone();
    let archive = ArchiveService::start(parts).await?;
    Ok(House {
        tasks,
        failpoints,
        metrics,
        archive,
    })
}

async fn open(dir: &Path) -> House {
    try_open(dir).await.unwrap()
}

impl House {
    async fn close(self) {
        assert_eq!(
            self.tasks.drain(Duration::from_secs(10)).await,
            0,
            "a task is late"
        );
        assert_eq!(self.tasks.panicked(), 0);
    }

    fn lane(&self) -> Lane<AppendItem, AppendAnswer> {
        self.archive.append(LanePeer {
            gateway: "gw1".to_owned(),
            incarnation: 1,
        })
    }

    async fn export(&self, decrypt: bool) -> (Vec<u8>, PublicKey) {
        let request = ExportRequest {
            domain: "x".to_owned(),
            decrypt,
            actor: "officer".to_owned(),
            ..ExportRequest::default()
        };
        let mut chunks = self.archive.export(&Cx::local(), request).await.unwrap();
        let mut out = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.unwrap();
            assert!(chunk.data.len() <= 256 * 1024 && chunk.done <= chunk.total);
            out.extend_from_slice(&chunk.data);
        }
        let request = PublicKeyRequest {
            domain: "x".to_owned(),
        };
        let key = self
            .archive
            .public_key(&Cx::local(), request)
            .await
            .unwrap();
        assert_eq!(key.key.len(), 32);
        let key: PublicKey = self.archive.inner_ring().public_key("x").unwrap();
        (out, key)
    }
}

fn message(sm_id: u8, count: u64) -> AppendItem {
    AppendItem {
        sm_id: vec![sm_id; 16].into(),
        count,
        gateway: "gw1".into(),
        session: 900 + u64::from(sm_id),
        from: format!("a{sm_id}@x/1"),
        to: "b@x".into(),
        kind: Kind::Message.into(),
        r#type: "chat".into(),
        id: format!("{sm_id}-{count}"),
        payload: format!("<message><body>{sm_id}-{count}</body></message>")
            .into_bytes()
            .into(),
        verdict: Some(Verdict {
            decision: Decision::Allow.into(),
            policy_version: 7,
            rule_id: "default".into(),
            ..Verdict::default()
        }),
        has_body: true,
        ..AppendItem::default()
    }
}

fn down(item: attach_down::Item) -> AttachDown {
    AttachDown { item: Some(item) }
}

async fn follow(
    archive: &dyn Archive,
    incarnation: u64,
    attach: AttachSession,
) -> Link<AttachDown, AttachUp> {
    let mut link = archive.attach(&Cx::local()).await.unwrap();
    let hello = AttachHello {
        gateway: "gw1".into(),
        incarnation,
        shard: 0,
    };
    link.send(down(attach_down::Item::Hello(hello)))
        .await
        .unwrap();
    link.send(down(attach_down::Item::Attach(attach)))
        .await
        .unwrap();
    loop {
        match next(&mut link).await {
            attach_up::Item::Attached(_) => return link,
            attach_up::Item::Head(_) => {}
            other => panic!("{other:?} before the confirmation"),
        }
    }
}

async fn next(link: &mut Link<AttachDown, AttachUp>) -> attach_up::Item {
    let up = tokio::time::timeout(LIMIT, link.recv())
        .await
        .expect("something comes");
    up.expect("the link lives").item.expect("an item")
}

async fn next_delivery(link: &mut Link<AttachDown, AttachUp>) -> Deliver {
    loop {
        if let attach_up::Item::Deliver(deliver) = next(link).await {
            return deliver;
        }
    }
}

fn session(credit: u32) -> AttachSession {
    AttachSession {
        session: 1,
        full_jid: "b@x/1".into(),
        available: true,
        credit,
        ..AttachSession::default()
    }
}

async fn call(lane: &Lane<AppendItem, AppendAnswer>, item: AppendItem) -> AppendAnswer {
    tokio::time::timeout(LIMIT, lane.call(item))
        .await
        .expect("an answer")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_messages_are_followed_acknowledged_and_there_after_reopening() {
    const TASKS: u8 = 4;
    const EACH: u64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let mut link = follow(&*house.archive, 1, session(64)).await;
    let mut senders = tokio::task::JoinSet::new();
    for sm_id in 1..=TASKS {
        let lane = house.lane();
        senders.spawn(async move {
            let mut answers = Vec::new();
            for count in 1..=EACH {
                answers.push(lane.submit(message(sm_id, count)).await.unwrap());
            }
            let mut numbers = Vec::new();
            for answer in answers {
                let answer = answer.await.unwrap();
                assert_eq!(answer.outcome(), Outcome::Committed);
                numbers.push(answer.number);
            }
            assert!(numbers.is_sorted(), "in the order of submission");
            numbers
        });
    }
    let mut seen = BTreeSet::new();
    let mut bodies = BTreeSet::new();
    let total = u64::from(TASKS) * EACH;
    // The last hundred stay unacknowledged.
    while (seen.len() as u64) < total {
        let deliver = next_delivery(&mut link).await;
        assert!(seen.insert(deliver.number), "once");
        assert!(seen.last() == Some(&deliver.number), "in order");
        assert_eq!(deliver.policy_version, 7);
        bodies.insert(deliver.payload.clone());
        let credit = Credit {
            session: 1,
            credit: 1,
        };
        link.send(down(attach_down::Item::Credit(credit)))
            .await
            .unwrap();
        if (seen.len() as u64) <= total - 100 {
            let ack = Acknowledge {
                session: 1,
                numbers: vec![deliver.number],
            };
            link.send(down(attach_down::Item::Acknowledge(ack)))
                .await
                .unwrap();
        }
    }
    assert_eq!(bodies.len() as u64, total);
    let mut numbers = BTreeSet::new();
    while let Some(more) = senders.join_next().await {
        numbers.extend(more.unwrap());
    }
    assert_eq!(numbers, seen, "what was answered is what was delivered");
    house.close().await;

    let house = open(dir.path()).await;
    let mut link = follow(&*house.archive, 2, session(1_000)).await;
    let left: Vec<u64> = seen
        .iter()
        .copied()
        .skip(usize::try_from(total).unwrap() - 100)
        .collect();
    for number in left {
        let deliver = next_delivery(&mut link).await;
        assert_eq!(deliver.number, number, "read back from the log, in order");
        assert!(deliver.targets[0].delayed && bodies.contains(&deliver.payload));
        assert!(!deliver.archive_id.is_empty());
    }
    // A repeat is answered from the memory that was rebuilt.
    let again = call(&house.lane(), message(2, 17)).await;
    assert_eq!(again.outcome(), Outcome::Committed);
    assert!(numbers.contains(&again.number));
    let status = house
        .archive
        .status(&Cx::local(), StatusRequest {})
        .await
        .unwrap();
    assert_eq!((status.followers, status.open_entries), (1, 100));

    for decrypt in [false, true] {
        let (export, key) = house.export(decrypt).await;
        let report = verify(&export[..], &key, &mut |_| {});
        assert!(matches!(report.finding, Finding::Clean), "{report}");
        assert!(report.records >= total);
        let clear = export.windows(10).any(|part| part == b"4-500</bod");
        assert_eq!(clear, decrypt);
        let mut forged = export.clone();
        let at = forged.len() / 2;
        forged[at] ^= 1;
        let report = verify(&forged[..], &key, &mut |_| {});
        assert_ne!(report.finding.exit_code(), 0);
    }
    let shown = house.metrics.render();
    assert!(shown.contains("chancery_archive_commit_seconds"), "{shown}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill_and_what_was_not_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    // A runtime that is dropped takes all tasks with it, without a last word: as a kill does.
    let path = dir.path().to_owned();
    let answered = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let answered = runtime.block_on(async {
            let house = open(&path).await;
            let lane = house.lane();
            let mut answered = Vec::new();
            for count in 1..=50 {
                answered.push(call(&lane, message(1, count)).await);
            }
            answered
        });
        runtime.shutdown_background();
        answered
    })
    .join()
    .unwrap();
    let house = open(dir.path()).await;
    let keys = (1..=51)
        .map(|count| Key {
            sm_id: vec![1; 16].into(),
            count,
        })
        .collect();
    let request = SettleRequest {
        gateway: "gw1".into(),
        incarnation: 2,
        keys,
    };
    let settled = house
        .archive
        .settle(&Cx::local(), request)
        .await
        .unwrap()
        .answers;
    for (settled, answered) in settled.iter().zip(&answered) {
        assert_eq!(
            (settled.outcome(), settled.number),
            (Outcome::Committed, answered.number)
        );
        assert_eq!(settled.archive_id, answered.archive_id);
    }
    assert_eq!(settled[50].outcome(), Outcome::Never);
    // The lane of before is fenced.
    assert!(house.lane().call(message(1, 51)).await.is_err());
    let (export, key) = house.export(false).await;
    assert!(matches!(
        verify(&export[..], &key, &mut |_| {}).finding,
        Finding::Clean
    ));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_is_answered_wait_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let lane = house.lane();
    let first = call(&lane, message(1, 1)).await;
    house
        .failpoints
        .set("archive::commit::before", "error")
        .unwrap();
    assert_eq!(call(&lane, message(1, 2)).await.outcome(), Outcome::Wait);
    house
        .failpoints
        .set("archive::commit::before", "off")
        .unwrap();
    let again = call(&lane, message(1, 2)).await;
    assert_eq!(again.outcome(), Outcome::Committed);
    assert_eq!(again.number, first.number + 1, "no gap");
    house
        .failpoints
        .set("archive::append::before", "error")
        .unwrap();
    assert!(lane.call(message(1, 3)).await.is_err());
    house.close().await;
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acts_are_records_and_a_dropped_mailbox_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let cx = Cx::local();
    call(&house.lane(), message(1, 1)).await;
    let act = RecordActRequest {
        domain: "x".into(),
        actor: "root".into(),
        act: "account.disable".into(),
        detail: "{\"account\":\"b@x\"}".into(),
    };
    let number = house.archive.record_act(&cx, act).await.unwrap().number;
    let dropped = DropMailboxRequest { jid: "b@x".into() };
    let floor = house
        .archive
        .drop_mailbox(&cx, dropped)
        .await
        .unwrap()
        .floor;
    assert_eq!(floor, number + 1);
    house.close().await;
    let house = open(dir.path()).await;
    let mut link = follow(&*house.archive, 2, session(10)).await;
    let fresh = call(&house.lane(), message(1, 2)).await;
    assert_eq!(next_delivery(&mut link).await.number, fresh.number);
    let (export, _) = house.export(false).await;
    let text = String::from_utf8(export).unwrap();
    assert!(text.contains("account.disable"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_domain_gets_keys_with_its_first_record() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let foreign = AppendItem {
        from: "c@new.test/1".into(),
        ..message(3, 1)
    };
    assert_eq!(
        call(&house.lane(), foreign).await.outcome(),
        Outcome::Committed
    );
    house.close().await;
    let house = open(dir.path()).await;
    let request = PublicKeyRequest {
        domain: "new.test".to_owned(),
    };
    assert!(
        house
            .archive
            .public_key(&Cx::local(), request)
            .await
            .is_ok()
    );
    // In another domain's export the record is there by its hash only.
    let (export, key) = house.export(true).await;
    let report = verify(&export[..], &key, &mut |_| {});
    assert!(matches!(report.finding, Finding::Clean), "{report}");
    assert_eq!(report.withheld, 1);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc_a_lane_that_is_lost_midway_is_settled_without_twin_or_loss() {
    const COUNT: u64 = 600;
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let served = Served {
        archive: Some(house.archive.clone()),
        ..Served::default()
    };
    let (wire, ours) = (Tasks::new(), Tasks::new());
    let failpoints = Failpoints::off();
    let calls = Calls::new(failpoints.clone(), &Metrics::new());
    let channel = pipe(&wire, served.clone(), Role::Gateway);
    let remote = RemoteArchive::new(channel, calls, ours.clone());
    let mut link = follow(&remote, 1, session(10_000)).await;
    let lane = remote.append(LanePeer {
        gateway: "gw1".to_owned(),
        incarnation: 0,
    });
    while !lane.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Commits are slow, so that there is always something under way; then the newest lane of the
    // gateway fences this one, which loses it with its answers.
    house
        .failpoints
        .set("archive::commit::before", "delay(20)")
        .unwrap();
    let mut answers = Vec::new();
    for count in 1..=COUNT {
        if count == COUNT / 2 {
            let request = SettleRequest {
                gateway: "gw1".into(),
                incarnation: 2,
                keys: Vec::new(),
            };
            house.archive.settle(&Cx::local(), request).await.unwrap();
        }
        loop {
            match lane.submit(message(1, count)).await {
                Ok(answer) => {
                    answers.push(answer);
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
    let mut numbers = Vec::new();
    for answer in answers {
        let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
        assert_eq!(answer.outcome(), Outcome::Committed);
        numbers.push(answer.number);
    }
    assert!(
        numbers.is_sorted_by(|a, b| a < b),
        "no twin, in order of count"
    );
    let mut delivered = Vec::new();
    while (delivered.len() as u64) < COUNT {
        delivered.push(next_delivery(&mut link).await.number);
    }
    assert_eq!(delivered, numbers);
    house
        .failpoints
        .set("archive::commit::before", "off")
        .unwrap();
    ours.drain(Duration::from_secs(5)).await;
    wire.drain(Duration::from_secs(5)).await;
    house.close().await;
}
