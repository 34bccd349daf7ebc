//! What is taken, recorded, answered and settled.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::archive::*;
use chancery_api::{Decision, Kind};

use super::rig::*;
use crate::shard::Settings;
use crate::tick::HEARTBEAT_RECORDS;

#[test]
fn a_message_reaches_nobody_before_it_is_committed() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.hold = true;
    let token = rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.outcome(token), None);
    assert!(rig.given(1, 1).is_empty());
    rig.release();
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
    assert_eq!(rig.given(1, 1), [(1, ORIGINAL, false)]);
    assert_eq!(rig.answers[&token].archive_id, "id-1");
    assert_eq!(rig.room, 0, "what an item took is given back");
}

#[test]
fn a_denied_message_is_evidence_and_nothing_else() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    let token = rig.append(AppendItem {
        verdict: verdict(Decision::Deny),
        ..chat("a@x/1", "b@x")
    });
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
    assert_eq!(rig.kinds[&1], chancery_evidence::Outcome::Denied);
    assert!(rig.given(1, 1).is_empty() && rig.entries.is_empty());
}

#[test]
fn an_item_without_verdict_is_refused_and_leaves_no_record() {
    let mut rig = Rig::new();
    for bad in [
        AppendItem {
            verdict: None,
            ..chat("a@x/1", "b@x")
        },
        AppendItem {
            shard: 1,
            ..chat("a@x/1", "b@x")
        },
        chat("a@x/1", "b@"),
        ephemeral(AppendItem {
            verdict: verdict(Decision::Deny),
            ..chat("a@x/1", "b@x")
        }),
    ] {
        let token = rig.append(bad);
        assert_eq!(rig.outcome(token), Some(Outcome::Refused));
    }
    assert_eq!((rig.shard.head, rig.room), (0, 0));
}

#[test]
fn presence_is_recorded_and_not_delivered() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    let presence = AppendItem {
        kind: Kind::Presence.into(),
        r#type: String::new(),
        ..chat("a@x/1", "b@x")
    };
    let token = rig.append(presence);
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
    assert_eq!(rig.shard.head, 1);
    assert!(rig.given(1, 1).is_empty() && rig.entries.is_empty());
}

#[test]
fn a_message_to_oneself_is_one_entry_without_a_carbon() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 900, "a@x/1");
    rig.attach(1, 901, "a@x/2");
    rig.append(chat("a@x/1", "a@x"));
    assert_eq!(rig.entries.len(), 1);
    assert_eq!(rig.given(1, 900), [(1, ORIGINAL, false)]);
    assert_eq!(rig.given(1, 901), [(1, ORIGINAL, false)]);
}

#[test]
fn nobody_there_keeps_what_is_kept_and_returns_the_rest() {
    let mut rig = Rig::new();
    let kept = rig.append(chat("a@x/1", "b@x"));
    let no_store = rig.append(AppendItem {
        no_store: true,
        ..chat("a@x/1", "b@x")
    });
    let normal = AppendItem {
        r#type: "normal".into(),
        ..chat("a@x/1", "b@x/gone")
    };
    let normal = rig.append(normal);
    let asked = rig.append(iq("get", "b@x/gone"));
    let asked_live = rig.append(ephemeral(iq("get", "b@x/gone")));
    assert_eq!(rig.outcome(kept), Some(Outcome::Committed));
    for gone in [no_store, normal, asked, asked_live] {
        assert_eq!(rig.outcome(gone), Some(Outcome::Gone));
    }
    assert_eq!(rig.open("b@x"), [1]);
    assert_eq!(rig.shard.head, 4, "the ephemeral one left no record");
}

#[test]
fn a_full_mailbox_makes_evidence_without_an_entry() {
    let mut rig = Rig::with(Settings {
        mailbox_entries: 2,
        ..settings()
    });
    let tokens: Vec<u64> = (0..3).map(|_| rig.append(chat("a@x/1", "b@x"))).collect();
    assert_eq!(rig.outcome(tokens[1]), Some(Outcome::Committed));
    assert_eq!(rig.outcome(tokens[2]), Some(Outcome::Full));
    assert_eq!(rig.kinds[&3], chancery_evidence::Outcome::Full);
    assert_eq!(
        rig.entries.len(),
        4,
        "two entries of two messages, none of the third"
    );
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.acknowledge(1, 1, &[1]);
    let token = rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
}

#[test]
fn a_group_of_quota_counts_what_is_not_yet_committed() {
    let mut rig = Rig::with(Settings {
        mailbox_entries: 2,
        ..settings()
    });
    rig.hold = true;
    let first = rig.append(chat("a@x/1", "b@x"));
    let more: Vec<u64> = (0..3).map(|_| rig.append(chat("a@x/1", "b@x"))).collect();
    rig.release();
    rig.release();
    assert_eq!(rig.outcome(first), Some(Outcome::Committed));
    let outcomes: Vec<_> = more
        .iter()
        .map(|token| rig.outcome(*token).unwrap())
        .collect();
    assert_eq!(outcomes, [Outcome::Committed, Outcome::Full, Outcome::Full]);
}

#[test]
fn an_ephemeral_item_waits_only_for_its_own_pair() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.attach(1, 2, "c@x/1");
    rig.hold = true;
    rig.append(chat("a@x/1", "b@x"));
    let same = rig.append(ephemeral(iq("get", "b@x/1")));
    let other = rig.append(ephemeral(iq("get", "c@x/1")));
    assert_eq!(rig.outcome(other), Some(Outcome::Committed));
    assert_eq!(rig.outcome(same), None);
    rig.release();
    assert_eq!(rig.numbers(1, 1), [1, 0]);
    assert_eq!(rig.outcome(same), Some(Outcome::Committed));
}

#[test]
fn a_roster_push_goes_to_the_interested_and_a_notice_to_the_rest() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.down(
        1,
        attach_down::Item::Attach(AttachSession {
            interested: false,
            ..attaching(2, "b@x/2")
        }),
    );
    let push = AppendItem {
        session: 0,
        audience: chancery_api::archive::Audience::Roster.into(),
        ..ephemeral(iq("set", "b@x"))
    };
    let token = rig.append(push);
    assert_eq!(rig.given(1, 1), [(0, Form::Push, false)]);
    assert_eq!(rig.given(1, 2), [(0, Form::Notice, false)]);
    assert_eq!(rig.outcome(token), Some(Outcome::Committed));
}

#[test]
fn a_repeat_is_one_record_with_the_same_answer() {
    let mut rig = Rig::new();
    rig.hold = true;
    let first = rig.append(keyed(1));
    let again = rig.append(keyed(1));
    rig.release();
    let later = rig.append(keyed(1));
    assert_eq!(rig.answers[&first], rig.answers[&again]);
    assert_eq!(rig.answers[&first], rig.answers[&later]);
    assert_eq!((rig.shard.head, rig.room), (1, 0));
}

#[test]
fn settle_waits_for_what_is_under_way_and_fences_the_older_lane() {
    let mut rig = Rig::new();
    rig.hold = true;
    rig.append_on(1, keyed(1));
    let key = |count| Key {
        sm_id: vec![9; 16].into(),
        count,
    };
    rig.shard.settle("gw1", 2, &[key(1), key(2)], 77);
    rig.run();
    assert!(rig.settled.is_empty());
    let late = rig.append_on(1, keyed(2));
    rig.release();
    let outcomes: Vec<_> = rig.settled[&77].iter().map(AppendAnswer::outcome).collect();
    assert_eq!(outcomes, [Outcome::Committed, Outcome::Never]);
    assert_eq!(rig.settled[&77][0].number, 1);
    assert_eq!(rig.outcome(late), None, "nobody listens on a fenced lane");
    let again = rig.append_on(2, keyed(2));
    rig.release();
    assert_eq!(rig.answers[&again].number, 2);
    assert_eq!(rig.room, 0);
}

#[test]
fn a_full_disk_answers_wait_and_leaves_everything_as_it_was() {
    let mut rig = Rig::new();
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    rig.full = true;
    let lost = rig.append(keyed(1));
    let state = rig.append(ephemeral(iq("get", "b@x/1")));
    assert_eq!(rig.outcome(lost), Some(Outcome::Wait));
    assert_eq!(rig.outcome(state), Some(Outcome::Committed));
    assert_eq!((rig.shard.head, rig.open("b@x").len()), (0, 0));
    assert_eq!(rig.shard.mailboxes["b@x"].reserved, 0);
    rig.full = false;
    let again = rig.append(keyed(1));
    assert_eq!(rig.answers[&again].number, 1);
    assert_eq!(rig.numbers(1, 1), [0, 1]);
}

#[test]
fn expiry_closes_and_an_idle_mailbox_leaves_the_memory() {
    let mut rig = Rig::with(Settings {
        expiry_ms: 60_000,
        ..settings()
    });
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.open("b@x"), [1]);
    rig.pass(Duration::from_secs(31));
    assert!(rig.open("b@x").is_empty());
    rig.pass(Duration::from_secs(61));
    rig.pass(Duration::from_secs(61));
    assert!(rig.shard.mailboxes.is_empty());
    rig.hello(1, "gw1", 1);
    rig.attach(1, 1, "b@x/1");
    assert!(rig.given(1, 1).is_empty());
}

#[test]
fn each_minute_a_heartbeat_counts_each_gateway() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.append(AppendItem {
        verdict: verdict(Decision::Deny),
        ..chat("a@x/1", "b@x")
    });
    rig.append(ephemeral(iq("get", "b@x/1")));
    rig.pass(Duration::from_secs(60));
    let beat = rig.acts.values().last().unwrap();
    assert_eq!(beat.kind, chancery_evidence::Kind::Heartbeat);
    let detail: serde_json::Value = serde_json::from_str(&beat.detail).unwrap();
    assert_eq!(
        detail["gateways"]["gw1"],
        serde_json::json!({ "allow": 1, "deny": 1 })
    );
    rig.pass(Duration::from_secs(60));
    let detail: serde_json::Value =
        serde_json::from_str(&rig.acts.values().last().unwrap().detail).unwrap();
    assert_eq!(detail["gateways"], serde_json::json!({}));
}

#[test]
fn a_heartbeat_that_is_not_written_loses_no_count() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.full = true;
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(60));
    assert!(rig.acts.is_empty());
    rig.full = false;
    rig.hold = true;
    rig.pass(Duration::from_secs(60));
    // Behind the heartbeat by number, so it belongs to the next.
    rig.append(chat("a@x/1", "b@x"));
    rig.release();
    rig.release();
    let (number, beat) = rig.acts.last_key_value().unwrap();
    assert_eq!((*number, rig.shard.head), (2, 3));
    let detail: serde_json::Value = serde_json::from_str(&beat.detail).unwrap();
    assert_eq!(detail["gateways"]["gw1"]["allow"], 1);
    rig.hold = false;
    rig.pass(Duration::from_secs(60));
    let detail: serde_json::Value =
        serde_json::from_str(&rig.acts.values().last().unwrap().detail).unwrap();
    assert_eq!(detail["gateways"]["gw1"]["allow"], 1);
}

#[test]
fn so_many_records_bring_a_heartbeat_too_over_starts_as_well() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.shard.head = HEARTBEAT_RECORDS - 2;
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(2));
    assert!(rig.acts.is_empty());
    rig.restart();
    rig.pass(Duration::from_secs(2));
    assert!(rig.acts.is_empty());
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_millis(25));
    let beats = |rig: &Rig| rig.acts.keys().copied().collect::<Vec<_>>();
    assert_eq!(beats(&rig), [HEARTBEAT_RECORDS + 1]);
    rig.restart();
    rig.append(chat("a@x/1", "b@x"));
    rig.pass(Duration::from_secs(2));
    assert_eq!(beats(&rig).len(), 1, "the last one counts");
    rig.full = true;
    rig.shard.head = 3 * HEARTBEAT_RECORDS;
    rig.pass(Duration::from_millis(25));
    rig.full = false;
    rig.pass(Duration::from_millis(25));
    assert_eq!(beats(&rig).len(), 1, "not at once again");
    rig.pass(Duration::from_secs(1));
    assert_eq!(beats(&rig).len(), 2);
}

#[test]
fn a_clock_that_goes_back_is_recorded_and_times_do_not() {
    let mut rig = Rig::new();
    rig.append(chat("a@x/1", "b@x"));
    rig.shard.now.wall_ms -= 3_600_000;
    rig.pass(Duration::from_millis(25));
    assert_eq!(rig.acts[&2].kind, chancery_evidence::Kind::ClockStep);
    rig.append(chat("a@x/1", "b@x"));
    assert_eq!(rig.envelopes[&3].stamp_ms, rig.envelopes[&1].stamp_ms);
}
