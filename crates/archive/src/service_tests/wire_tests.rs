//! Over gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chancery_api::archive::{Archive, Key, Outcome, RemoteArchive, SettleRequest};
use chancery_api::channel::{Served, pipe};
use chancery_api::{Calls, Cx, LanePeer, Role};
use chancery_runtime::{Failpoints, Metrics, Tasks};
use std::time::Duration;

use super::house::*;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_is_dropped_midway_leaves_every_item_settled() {
    const COUNT: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let served = Served {
        archive: Some(house.archive.clone()),
        ..Served::default()
    };
    let calls = Calls::new(Failpoints::off(), &Metrics::new());
    let (wire, ours) = (Tasks::new(), Tasks::new());
    let channel = pipe(&wire, served.clone(), Role::Gateway);
    let remote = RemoteArchive::new(channel, calls.clone(), ours.clone());
    let lane = remote.append(LanePeer {
        gateway: "gw1".to_owned(),
        incarnation: 0,
    });
    while !lane.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    house
        .failpoints
        .set("archive::commit::before", "delay(10)")
        .unwrap();
    let mut answers = Vec::new();
    for count in 1..=COUNT {
        answers.push(lane.submit(message(1, count)).await.unwrap());
    }
    let first = tokio::time::timeout(LIMIT, answers.remove(0))
        .await
        .unwrap()
        .unwrap();
    wire.drain(Duration::ZERO).await;
    ours.drain(Duration::ZERO).await;

    // The gateway comes back over another connection and asks before it says anything again.
    let (wire, ours) = (Tasks::new(), Tasks::new());
    let channel = pipe(&wire, served, Role::Gateway);
    let remote = RemoteArchive::new(channel, calls, ours.clone());
    let key = |count| Key {
        sm_id: vec![1; 16].into(),
        count,
    };
    let request = SettleRequest {
        gateway: "gw1".into(),
        incarnation: 100,
        keys: (1..=COUNT).map(key).collect(),
    };
    let settled = remote.settle(&Cx::local(), request).await.unwrap().answers;
    assert_eq!(settled[0].number, first.number);
    let lane = remote.append(LanePeer {
        gateway: "gw1".to_owned(),
        incarnation: 100,
    });
    while !lane.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut numbers = std::collections::BTreeSet::new();
    for (count, settled) in (1..=COUNT).zip(settled) {
        let answer = match settled.outcome() {
            Outcome::Never => call(&lane, message(1, count)).await,
            _ => settled,
        };
        assert_eq!(answer.outcome(), Outcome::Committed);
        assert!(numbers.insert(answer.number), "no twin");
    }
    // Nothing was taken twice: after these, and the record of the start, comes the next.
    let next = call(&lane, message(1, COUNT + 1)).await;
    assert_eq!(next.number, COUNT + 2);
    house
        .failpoints
        .set("archive::commit::before", "off")
        .unwrap();
    ours.drain(Duration::from_secs(5)).await;
    wire.drain(Duration::from_secs(5)).await;
    house.close().await;
}
