//! In one process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chancery_api::Cx;
use chancery_api::archive::{
    Acknowledge, AppendItem, Archive, Credit, DropMailboxRequest, Key, Outcome, PublicKeyRequest,
    RecordActRequest, SettleRequest, StatusRequest, attach_down,
};
use chancery_evidence::{Finding, verify};
use std::collections::BTreeSet;

use super::house::*;

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
