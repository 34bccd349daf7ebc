//! Sessions whose client has no stream: what waits for them, and what becomes of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::archive::*;

use super::rig::*;

#[test]
fn whose_client_is_away_gets_nothing_and_does_not_end_for_it() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    let away = |away| attach_down::Item::Away(Away { session: 1, away });
    rig.append(chat("a@x/1", "b@x"));
    rig.down(1, away(true));
    // Whatever its credit, and whatever it is.
    for _ in 0..2 {
        rig.append(chat("a@x/1", "b@x"));
        rig.append(ephemeral(chat("a@x/1", "b@x/1")));
    }
    rig.credit(1, 1, 50);
    rig.acknowledge(1, 1, &[1]);
    rig.pass(Duration::from_secs(200));
    assert_eq!(rig.numbers(1, 1), [1]);
    assert_eq!(rig.end_of(1, 1), None);
    assert_eq!(rig.open("b@x"), [2, 3]);
    rig.down(1, away(false));
    assert_eq!(rig.numbers(1, 1), [2, 0, 3, 0], "each in its place");
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1).len(), 1, "and no longer lags");
    assert!(rig.shard.lagging.is_empty());
}

#[test]
fn attached_again_without_a_client_it_catches_up_when_the_client_is_back() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1), [1]);
    rig.shard.stream_lost(1);
    rig.append(chat("a@x/1", "b@x"));
    rig.hello(2, "gw1", 2);
    let again = AttachSession {
        again: true,
        position: 1,
        unacknowledged: vec![1],
        away: true,
        ..attaching(1, "b@x/1")
    };
    rig.down(2, attach_down::Item::Attach(again));
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(200));
    assert!(rig.given(2, 1).is_empty());
    let back = Away {
        session: 1,
        away: false,
    };
    rig.down(2, attach_down::Item::Away(back));
    assert_eq!(rig.numbers(2, 1), [2, 3]);
    rig.acknowledge(2, 1, &[1, 2, 3]);
    assert!(rig.open("b@x").is_empty());
}

#[test]
fn requests_that_waited_are_handed_over_at_the_end_to_be_answered() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    let away = Away {
        session: 1,
        away: true,
    };
    rig.down(1, attach_down::Item::Away(away));
    rig.append(chat("a@x/1", "b@x"));
    rig.append(ephemeral(iq("get", "b@x/1")));
    rig.append(ephemeral(iq("result", "b@x/1")));
    rig.append(ephemeral(chat("a@x/1", "b@x/1")));
    rig.append(iq("set", "b@x/1"));
    rig.detach(1, 1);
    assert_eq!(rig.numbers(1, 1), [0, 2], "the two that somebody waits for");
    let last = rig.ups[&1].last().and_then(|up| up.item.clone());
    assert!(matches!(last, Some(attach_up::Item::Detached(_))));
    assert_eq!(rig.open("b@x"), [1]);
}

#[test]
fn what_it_had_not_read_back_when_it_ended_goes_to_the_others() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.shard.stream_lost(1);
    for _ in 0..3 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.hello(2, "gw1", 2);
    let again = AttachSession {
        again: true,
        away: true,
        ..attaching(1, "b@x/1")
    };
    rig.down(2, attach_down::Item::Attach(again));
    rig.attach(2, 2, "b@x/2");
    assert!(rig.given(2, 2).is_empty(), "they are the first one's");
    rig.detach(2, 1);
    assert_eq!(rig.numbers(2, 2), [1, 2, 3]);
}

/// While the log was away the session became available: it says so behind its attachment.
#[test]
fn who_becomes_available_after_a_start_gets_what_waited_below_its_place() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.append(chat("a@x/1", "b@x"));
    rig.hello(1, "gw1", 1);
    let again = AttachSession {
        again: true,
        position: 2,
        available: false,
        ..attaching(1, "b@x/1")
    };
    rig.down(1, attach_down::Item::Attach(again));
    assert!(rig.given(1, 1).is_empty());
    rig.priority(1, 1, true, 0);
    assert_eq!(rig.numbers(1, 1), [1, 2]);
}

/// Its gateway lost the stream on which it was told to make room, and is back before the second is over.
#[test]
fn who_has_to_make_room_is_told_again_when_its_time_is_over() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(2, 2, "b@x/1");
    rig.shard.stream_lost(1);
    rig.hello(3, "gw1", 2);
    let again = AttachSession {
        again: true,
        ..attaching(1, "b@x/1")
    };
    rig.down(3, attach_down::Item::Attach(again));
    assert_eq!((rig.attached(3, 1), rig.end_of(3, 1)), (1, None));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.end_of(3, 1), Some(EndReason::Conflict));
    assert_eq!(rig.attached(2, 2), 1);
}

/// Whoever was bound while the first one's gateway had no stream is the newcomer.
#[test]
fn who_attaches_again_does_not_take_the_place_of_who_came_since() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.attach(1, 1, "b@x/1");
    rig.shard.stream_lost(1);
    rig.attach(2, 2, "b@x/1");
    rig.hello(3, "gw1", 2);
    let again = |session| {
        attach_down::Item::Attach(AttachSession {
            again: true,
            ..attaching(session, "b@x/1")
        })
    };
    rig.down(3, again(1));
    assert_eq!(rig.end_of(3, 1), Some(EndReason::Conflict));
    assert_eq!((rig.attached(3, 1), rig.end_of(2, 2)), (0, None));
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(2, 2), [1]);
    // It is so over its own loss of the stream too.
    rig.shard.stream_lost(2);
    rig.hello(4, "gw2", 2);
    rig.down(4, again(2));
    rig.down(3, again(1));
    assert_eq!((rig.attached(4, 2), rig.attached(3, 1)), (1, 0));
    // Of two that were there before the shard, nobody knows.
    rig.restart();
    for gateway in 1..=3 {
        rig.hello(gateway, &format!("gw{gateway}"), 3);
    }
    rig.down(1, again(1));
    rig.down(2, again(2));
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Conflict));
    assert_eq!(rig.attached(2, 2), 1);
    // A newcomer that waits for its place is one too.
    rig.attach(3, 3, "b@x/1");
    rig.down(1, again(1));
    assert_eq!((rig.attached(1, 1), rig.end_of(3, 3)), (1, None));
    rig.detach(2, 2);
    assert_eq!(rig.attached(3, 3), 1);
}

/// The shard is another, and the place says nothing of what was read back out of its turn.
#[test]
fn who_lagged_when_the_log_died_gets_the_rest_of_what_waited() {
    let mut rig = Rig::new();
    for _ in 0..100 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.hello(1, "gw1", 1);
    let attach = AttachSession {
        available: false,
        credit: 10,
        ..attaching(1, "b@x/1")
    };
    rig.down(1, attach_down::Item::Attach(attach));
    rig.priority(1, 1, true, 0);
    let last = rig.ups[&1].last().and_then(|up| up.item.clone());
    assert!(
        matches!(last, Some(attach_up::Item::Updated(_))),
        "behind that it lags"
    );
    assert_eq!(rig.numbers(1, 1).len(), 10);
    rig.restart();
    rig.hello(1, "gw1", 2);
    let again = AttachSession {
        again: true,
        available: false,
        position: 100,
        unacknowledged: (1..=10).collect(),
        ..attaching(1, "b@x/1")
    };
    rig.down(1, attach_down::Item::Attach(again));
    rig.priority(1, 1, true, 0);
    rig.credit(1, 1, 200);
    assert_eq!(rig.numbers(1, 1), (11..=100).collect::<Vec<_>>());
}
