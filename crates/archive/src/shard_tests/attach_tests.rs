//! What sessions get: live, late, again, and not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::Decision;
use chancery_api::archive::*;

use super::rig::*;
use crate::shard::Act;

#[test]
fn two_devices_get_original_and_carbon_and_the_senders_other_device_a_copy() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(2, 1, "b@x/2");
    rig.attach(1, 900, "a@x/1");
    rig.attach(1, 901, "a@x/2");
    rig.append(chat("a@x/1", "b@x/1"));
    assert_eq!(rig.given(1, 1), [(1, ORIGINAL, false)]);
    assert_eq!(rig.given(2, 1), [(1, Form::CarbonReceived, false)]);
    assert_eq!(rig.given(1, 901), [(1, Form::CarbonSent, false)]);
    assert!(rig.given(1, 900).is_empty(), "never to the sending session");
    assert_eq!(rig.open("b@x"), [1]);
    assert!(rig.open("a@x").is_empty(), "a sent copy is born closed");
    // One envelope for each gateway, whatever the number of its targets.
    let envelopes = rig.ups[&1]
        .iter()
        .filter(|up| deliver(up).is_some())
        .count();
    assert_eq!(envelopes, 1);
    rig.acknowledge(2, 1, &[1]);
    assert!(
        rig.open("b@x").is_empty(),
        "a carbon's acknowledgement closes it too"
    );
}

#[test]
fn backlog_comes_first_in_order_and_delayed() {
    let mut rig = Rig::new();
    for _ in 0..300 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.hello(1, "gw1", 1);
    let attach = AttachSession {
        available: false,
        credit: 0,
        ..attaching(1, "b@x/1")
    };
    rig.down(1, attach_down::Item::Attach(attach));
    rig.priority(1, 1, true, -1);
    rig.credit(1, 1, 10);
    assert!(
        rig.given(1, 1).is_empty(),
        "a negative priority gets nothing"
    );
    rig.priority(1, 1, true, 0);
    rig.append(chat("a@x/1", "b@x"));
    rig.credit(1, 1, 1_000);
    let given = rig.given(1, 1);
    assert_eq!(
        given.iter().map(|g| g.0).collect::<Vec<_>>(),
        (1..=301).collect::<Vec<_>>()
    );
    assert!(given[..300].iter().all(|g| g.2) && !given[300].2);
    // Twice available is not twice the backlog.
    rig.priority(1, 1, true, 5);
    assert!(rig.given(1, 1).is_empty());
    // What is out with one device is not another's backlog.
    rig.attach(1, 2, "b@x/2");
    assert!(rig.given(1, 2).is_empty());
}

#[test]
fn a_session_that_ends_leaves_what_it_did_not_acknowledge_to_the_others() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.priority(1, 1, true, 5);
    let plain = UpdateSession {
        session: 2,
        available: true,
        ..UpdateSession::default()
    };
    rig.attach(1, 2, "b@x/2");
    rig.down(1, attach_down::Item::Update(plain));
    for _ in 0..3 {
        rig.append(chat("a@x/1", "b@x"));
    }
    assert_eq!(rig.numbers(1, 1), [1, 2, 3]);
    assert!(
        rig.given(1, 2).is_empty(),
        "a lower priority without carbons gets nothing"
    );
    rig.acknowledge(1, 1, &[2]);
    rig.detach(1, 1);
    assert_eq!(rig.given(1, 2), [(1, ORIGINAL, true), (3, ORIGINAL, true)]);
    rig.detach(1, 2);
    assert_eq!(rig.open("b@x"), [1, 3], "nobody is left: they stay open");
}

#[test]
fn the_same_full_jid_again_fences_the_first() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.attach(1, 1, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1), [1]);
    let attach = AttachSession {
        available: false,
        ..attaching(7, "b@x/1")
    };
    rig.down(2, attach_down::Item::Attach(attach));
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Conflict));
    assert_eq!(
        rig.attached(2, 7),
        0,
        "what the first acknowledges may be on its way"
    );
    rig.append(chat("a@x/1", "b@x"));
    rig.acknowledge(1, 1, &[1]);
    rig.detach(1, 1);
    assert_eq!(rig.attached(2, 7), 1);
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 1), [2], "given before it was over");
    rig.priority(2, 7, true, 0);
    assert_eq!(rig.numbers(2, 7), [2, 3]);
}

#[test]
fn whoever_makes_room_has_a_second_for_it() {
    let mut rig = Rig::new();
    for gateway in 1..=3 {
        rig.hello(gateway, &format!("gw{gateway}"), 1);
    }
    rig.attach(1, 1, "b@x/1");
    rig.attach(2, 2, "b@x/1");
    rig.pass(Duration::from_millis(900));
    rig.attach(3, 3, "b@x/1");
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Conflict));
    assert_eq!(rig.end_of(2, 2), Some(EndReason::Conflict), "the last wins");
    assert_eq!(rig.attached(3, 3), 0);
    rig.pass(Duration::from_millis(100));
    assert_eq!((rig.attached(2, 2), rig.attached(3, 3)), (0, 1));
}

#[test]
fn nobody_waits_for_a_gateway_that_is_gone() {
    let mut rig = Rig::new();
    for gateway in 1..=3 {
        rig.hello(gateway, &format!("gw{gateway}"), 1);
    }
    rig.attach(1, 1, "b@x/1");
    rig.attach(2, 2, "b@x/1");
    rig.shard.stream_lost(1);
    rig.pass(Duration::from_millis(25));
    assert_eq!(rig.attached(2, 2), 1);
    rig.shard.stream_lost(2);
    rig.attach(3, 3, "b@x/1");
    assert_eq!(rig.attached(3, 3), 1);
    rig.hello(4, "gw1", 2);
    rig.attach(4, 1, "b@x/1");
    rig.shard.stream_lost(4);
    rig.detach(3, 3);
    assert_eq!(rig.sessions("b@x"), 0, "its gateway has to ask again");
}

#[test]
fn who_waits_may_give_up_and_ends_with_the_account() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(1, 2, "b@x/1");
    rig.detach(1, 2);
    rig.detach(1, 1);
    assert_eq!(rig.sessions("b@x"), 0);
    rig.attach(1, 3, "b@x/1");
    rig.attach(1, 4, "b@x/1");
    rig.shard.dropped("b@x", 0);
    rig.run();
    assert_eq!(rig.end_of(1, 4), Some(EndReason::Deleted));
    assert_eq!(rig.sessions("b@x"), 0);
}

#[test]
fn a_stream_attached_again_gets_exactly_what_it_missed() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(1, 901, "a@x/2");
    for _ in 0..3 {
        rig.append(chat("a@x/1", "b@x"));
    }
    assert_eq!(rig.numbers(1, 1), [1, 2, 3]);
    assert_eq!(rig.numbers(1, 901), [1, 2, 3]);
    rig.acknowledge(1, 1, &[1]);
    rig.shard.stream_lost(1);
    for _ in 0..5 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.append(iq("set", "b@x/1"));
    rig.hello(2, "gw1", 2);
    for (session, jid, unacknowledged) in [(1, "b@x/1", vec![2, 3]), (901, "a@x/2", vec![])] {
        let again = AttachSession {
            again: true,
            position: 3,
            unacknowledged,
            ..attaching(session, jid)
        };
        rig.down(2, attach_down::Item::Attach(again));
    }
    assert_eq!(rig.numbers(2, 1), [4, 5, 6, 7, 8, 9]);
    let copies = rig.given(2, 901);
    assert_eq!(
        copies.iter().map(|c| c.0).collect::<Vec<_>>(),
        [4, 5, 6, 7, 8]
    );
    assert!(copies.iter().all(|c| c.1 == Form::CarbonSent));
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(2, 1), [10]);
    rig.acknowledge(2, 1, &[2, 3, 4, 5, 6, 7, 8, 10]);
    assert!(rig.open("b@x").is_empty());
}

#[test]
fn an_acknowledgement_lost_with_the_stream_is_not_a_second_delivery() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    for _ in 0..3 {
        rig.append(chat("a@x/1", "b@x"));
    }
    assert_eq!(rig.numbers(1, 1), [1, 2, 3, 4]);
    rig.shard.stream_lost(1);
    rig.hello(2, "gw1", 2);
    // The client has acknowledged 2 and 3; of 1, a late one, the gateway says nothing.
    let again = AttachSession {
        again: true,
        position: 4,
        unacknowledged: vec![4],
        ..attaching(1, "b@x/1")
    };
    rig.down(2, attach_down::Item::Attach(again));
    assert_eq!(rig.given(2, 1), [(1, ORIGINAL, true)]);
    assert_eq!(rig.open("b@x"), [1, 4]);
}

#[test]
fn sessions_of_a_lost_stream_end_after_a_grace() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hello(2, "gw2", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(2, 1, "b@x/2");
    rig.priority(1, 1, true, 5);
    rig.shard.stream_lost(1);
    let token = rig.append(chat("a@x/1", "b@x/1"));
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
    rig.given(2, 1);
    rig.pass(Duration::from_secs(14));
    assert_eq!(rig.shard.followers.len(), 2);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.shard.followers.len(), 1);
    // It was a carbon of the other's; a carbon is out with it already.
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(2, 1), [2]);
}

#[test]
fn a_higher_incarnation_fences_a_lower_stream() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 5);
    rig.hello(2, "gw1", 6);
    rig.hello(3, "gw1", 5);
    assert_eq!(rig.closed, [1, 3]);
    assert_eq!(rig.shard.streams.keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn heads_follow_what_was_sent() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    rig.append(chat("a@x/1", "c@x"));
    rig.pass(Duration::from_millis(25));
    let order: Vec<u64> = rig.ups[&1]
        .iter()
        .filter_map(|up| match &up.item {
            Some(attach_up::Item::Deliver(deliver)) => Some(deliver.number * 10),
            Some(attach_up::Item::Head(head)) => Some(head.number),
            _ => None,
        })
        .collect();
    assert_eq!(order, [0, 10, 1, 2]);
}

#[test]
fn a_dropped_mailbox_gives_nothing_to_the_next_owner() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    rig.hold = true;
    rig.append(chat("a@x/1", "b@x"));
    let act = Act {
        kind: chancery_evidence::Kind::Administrative,
        domain: "x".into(),
        actor: "directory".into(),
        act: "mailbox.drop".into(),
        detail: "{}".into(),
        sealed: String::new(),
        change: Some(crate::shard::Change::Drop("b@x".into())),
    };
    rig.shard.act(act, Some(500));
    rig.run();
    rig.release();
    rig.release();
    assert_eq!(rig.acted[&500], Some(3));
    assert_eq!(rig.end_of(1, 1), Some(EndReason::Deleted));
    rig.hold = false;
    rig.ups.clear();
    rig.attach(1, 2, "b@x/1");
    assert!(rig.given(1, 2).is_empty());
    rig.restart();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 3, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.numbers(1, 3), [4]);
}

#[test]
fn open_entries_survive_a_restart_and_acknowledged_ones_do_not_return() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    for _ in 0..4 {
        rig.append(chat("a@x/1", "b@x"));
    }
    rig.acknowledge(1, 1, &[1, 3]);
    rig.pass(Duration::from_secs(2));
    rig.append(chat("a@x/1", "b@x"));
    rig.restart();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 2, "b@x/2");
    let given = rig.given(1, 2);
    assert_eq!(
        given,
        [
            (2, ORIGINAL, true),
            (4, ORIGINAL, true),
            (5, ORIGINAL, true)
        ]
    );
}

#[test]
fn after_a_start_an_absent_full_jid_is_unknown() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.restart();
    rig.hello(1, "gw1", 1);
    let asked = rig.append(ephemeral(iq("get", "b@x/1")));
    let recorded = rig.append(iq("set", "b@x/1"));
    assert_eq!(rig.outcome(asked), Some(Outcome::Wait));
    assert_eq!(rig.outcome(recorded), Some(Outcome::Wait));
    let normal = |to: &str| AppendItem {
        r#type: "normal".into(),
        ..chat("a@x/1", to)
    };
    let back = rig.append(normal("b@x/1"));
    let gone = rig.append(normal("b@x/2"));
    let fresh = rig.append(normal("b@x/3"));
    assert_eq!(rig.outcome(back), None);
    let again = AttachSession {
        again: true,
        position: 1,
        ..attaching(1, "b@x/1")
    };
    rig.down(1, attach_down::Item::Attach(again));
    let quiet = AttachSession {
        available: false,
        ..attaching(3, "b@x/3")
    };
    rig.down(1, attach_down::Item::Attach(quiet));
    rig.pass(Duration::from_secs(6));
    assert_eq!(rig.outcome(back), Some(Outcome::Committed));
    assert_eq!(rig.outcome(gone), Some(Outcome::Gone));
    assert_eq!(rig.outcome(fresh), Some(Outcome::Committed));
    // Each once: by position, or when the time was over.
    assert_eq!(rig.numbers(1, 1), [2]);
    assert_eq!(rig.numbers(1, 3), [4]);
    assert!(
        !rig.open("b@x").contains(&3),
        "what was returned is not kept"
    );
    let asked = rig.append(ephemeral(iq("get", "b@x/9")));
    assert_eq!(rig.outcome(asked), Some(Outcome::Gone));
}

#[test]
fn a_denial_at_the_gateway_closes_the_entry_and_is_a_record() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.append(chat("a@x/1", "b@x"));
    let deny = DenyEntry {
        session: 1,
        number: 1,
        verdict: verdict(Decision::Deny),
    };
    rig.down(1, attach_down::Item::Deny(deny));
    assert!(rig.open("b@x").is_empty());
    assert_eq!(rig.acts[&2].kind, chancery_evidence::Kind::DeliveryDenied);
    assert!(
        !rig.acts[&2].detail.contains("b@x"),
        "no address in the readable part"
    );
}

#[test]
fn the_highest_count_waits_for_what_is_under_way() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.hold = true;
    rig.append(keyed(4));
    let asked = HighestCount {
        request: 1,
        sm_id: vec![9; 16].into(),
    };
    rig.down(1, attach_down::Item::Highest(asked));
    let told = |rig: &Rig| {
        rig.ups[&1].iter().find_map(|up| match &up.item {
            Some(attach_up::Item::Highest(h)) => Some(h.count),
            _ => None,
        })
    };
    assert_eq!(told(&rig), None);
    rig.release();
    assert_eq!(told(&rig), Some(4));
}

#[test]
fn the_highest_count_is_told() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.append(keyed(4));
    rig.append(keyed(7));
    for (request, id) in [(1, 9), (2, 8)] {
        let sm_id = vec![id; 16].into();
        rig.down(
            1,
            attach_down::Item::Highest(HighestCount { request, sm_id }),
        );
    }
    let told: Vec<_> = rig.ups[&1]
        .iter()
        .filter_map(|up| match &up.item {
            Some(attach_up::Item::Highest(h)) => Some((h.request, h.count, h.known)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, 7, true), (2, 0, false)]);
    // Still under way at another gateway: the client has been told that it is not here.
    let late = rig.append(keyed(8));
    assert_eq!(rig.outcome(late), Some(Outcome::Late));
}
