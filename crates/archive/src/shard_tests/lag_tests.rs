//! Sessions that take nothing, or too little: what waits for them, and for how long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::archive::*;

use super::rig::*;

#[test]
fn without_credit_a_session_lags_and_ephemerals_keep_their_place() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.down(
        1,
        attach_down::Item::Attach(AttachSession {
            credit: 1,
            ..attaching(1, "b@x/1")
        }),
    );
    for _ in 0..2 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.append(ephemeral(iq("get", "b@x/1")));
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1), [1]);
    let lagging = rig.ups[&1].iter().find_map(|up| match up.item {
        Some(attach_up::Item::Lagging(lagging)) => Some((lagging.lagging, lagging.position)),
        _ => None,
    });
    assert_eq!(lagging, Some((true, 1)));
    rig.credit(1, 1, 1);
    assert_eq!(rig.numbers(1, 1), [2, 0]);
    rig.credit(1, 1, 5);
    assert_eq!(rig.numbers(1, 1), [3]);
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1), [4]);
    assert!(rig.shard.lagging.is_empty());
}

#[test]
fn chat_states_leave_room_for_requests_and_these_for_answers() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.down(
        1,
        attach_down::Item::Attach(AttachSession {
            credit: 0,
            ..attaching(1, "b@x/1")
        }),
    );
    rig.append(chat("a@x/1", "b@x"));
    let waiting = |rig: &Rig| {
        let mut followers = rig.shard.followers.values();
        followers.next().unwrap().lag.as_ref().unwrap().ephemerals
    };
    for _ in 0..17 {
        let state = rig.append(ephemeral(chat("a@x/1", "b@x/1")));
        let outcome = rig.outcome(state);
        assert_eq!(outcome, Some(Outcome::Committed), "dropped without a word");
    }
    assert_eq!(waiting(&rig), 16);
    for _ in 16..48 {
        let request = rig.append(ephemeral(iq("get", "b@x/1")));
        assert_eq!(rig.outcome(request), Some(Outcome::Committed));
    }
    let request = rig.append(ephemeral(iq("get", "b@x/1")));
    assert_eq!(rig.outcome(request), Some(Outcome::Wait));
    for _ in 48..64 {
        rig.append(ephemeral(iq("result", "b@x/1")));
    }
    assert_eq!((waiting(&rig), rig.end_of(1, 1)), (64, None));
    rig.append(ephemeral(iq("result", "b@x/1")));
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Lag));
    assert_eq!(rig.open("b@x"), [1]);
}

#[test]
fn a_minute_of_lag_without_progress_ends_the_session() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.down(
        1,
        attach_down::Item::Attach(AttachSession {
            credit: 0,
            ..attaching(1, "b@x/1")
        }),
    );
    rig.append(chat("a@x/1", "b@x"));
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(59));
    rig.credit(1, 1, 1);
    rig.pass(Duration::from_secs(59));
    assert_eq!(rig.end_of(1, 1), None);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Lag));
    assert!(rig.shard.followers.is_empty());
}

#[test]
fn a_stalled_stream_blocks_nobody_and_catches_up() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.down(
        1,
        attach_down::Item::Attach(AttachSession {
            credit: 9_999,
            ..attaching(1, "b@x/1")
        }),
    );
    rig.down(
        2,
        attach_down::Item::Attach(AttachSession {
            credit: 9_999,
            ..attaching(1, "c@x/1")
        }),
    );
    rig.stalled = true;
    for _ in 0..3_000 {
        rig.append(chat("a@x/1", "b@x"));
    }
    assert!(
        rig.shard.streams[&1].outbox.len() < 2_000,
        "what waits is bounded"
    );
    rig.append(chat("a@x/1", "c@x"));
    assert_eq!(
        rig.shard.streams[&2]
            .outbox
            .iter()
            .filter(|up| deliver(up).is_some())
            .count(),
        1
    );
    rig.stalled = false;
    let mut numbers = Vec::new();
    for _ in 0..10 {
        rig.pass(Duration::from_millis(25));
        numbers.extend(rig.numbers(1, 1));
    }
    assert_eq!(numbers, (1..=3_000).collect::<Vec<_>>());
}
