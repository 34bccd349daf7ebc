//! Every act: state, who hears what, bounds, and what a lost gateway misses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::store::MemoryPresenceStore;

pub(super) const ALICE: &str = "alice@example.org/phone";
const BOB: &str = "bob@example.org/desk";

pub(super) struct Case {
    pub(super) registry: Registry<MemoryPresenceStore>,
}

pub(super) fn item(act: Act, session: u64, from: &str, targets: &[&str]) -> PublishItem {
    PublishItem {
        act: act.into(),
        session,
        from: from.into(),
        payload: format!("<presence from='{from}'/>").into(),
        targets: targets.iter().map(ToString::to_string).collect(),
        policy_version: 5,
        traceparent: "t".into(),
        ..PublishItem::default()
    }
}

#[test]
fn available_sessions_are_found_by_account_and_by_domain() {
    let mut case = Case::new();
    case.act("gw1", &item(Act::Available, 1, ALICE, &[]));
    case.act(
        "gw2",
        &item(Act::Available, 2, "alice@example.org/tab", &[]),
    );
    case.act("gw1", &item(Act::Available, 3, "eve@other.org/x", &[]));
    // Only directed presence: not there for others.
    case.act("gw1", &item(Act::Directed, 4, BOB, &["alice@example.org"]));
    let alices = vec![ALICE.to_owned(), "alice@example.org/tab".to_owned()];
    let who = |case: &Case, of: &str, limit| case.registry.who(of, limit);
    assert_eq!(who(&case, "alice@example.org", 9), (alices.clone(), false));
    assert_eq!(who(&case, "example.org", 9), (alices.clone(), false));
    assert_eq!(who(&case, "example.org", 2), (alices, false));
    assert_eq!(who(&case, "bob@example.org", 9), (vec![], false));
    assert_eq!(who(&case, "org", 9), (vec![], false));
    let (one, more) = who(&case, "example.org", 1);
    assert!(one.len() == 1 && more);
    case.act("gw1", &item(Act::Unavailable, 1, ALICE, &[]));
    assert_eq!(who(&case, "alice@example.org", 9).0.len(), 1);
}

impl Case {
    pub(super) fn new() -> Self {
        let mut registry = Registry::new(MemoryPresenceStore::default(), 100);
        registry.reach(&"gw1".into(), Some(1));
        registry.reach(&"gw2".into(), Some(1));
        Self { registry }
    }

    pub(super) fn act(&mut self, gateway: &str, item: &PublishItem) -> Effects {
        self.registry.act(&gateway.into(), 1, item)
    }

    /// Acts, and gives what is sent as `gateway from[!] > sessions [@to]`, `!` for unavailable.
    pub(super) fn sent(&mut self, gateway: &str, item: &PublishItem) -> Vec<String> {
        short(&self.act(gateway, item))
    }
}

fn short(effects: &Effects) -> Vec<String> {
    let copies: usize = effects
        .deliveries
        .iter()
        .map(|(_, up)| up.sessions.len())
        .sum();
    assert_eq!(usize::try_from(effects.copies).unwrap(), copies);
    let line = |(gateway, up): &(Arc<str>, AttachUp)| {
        let payload = std::str::from_utf8(&up.payload).unwrap();
        assert!(payload.starts_with("<presence"), "{payload}");
        assert!(!up.unavailable || up.policy_version == 0);
        let mark = if up.unavailable { "!" } else { "" };
        let to = if up.to.is_empty() {
            String::new()
        } else {
            format!(" @{}", up.to)
        };
        format!("{gateway} {}{mark} > {:?}{to}", up.from, up.sessions)
    };
    effects.deliveries.iter().map(line).collect()
}

/// Alice has two sessions on two gateways, bob two, carol one.
pub(super) fn crowd() -> Case {
    crowd_shown_to(&[])
}

fn crowd_shown_to(targets: &[&str]) -> Case {
    let mut case = Case::new();
    for (gateway, session, from) in [
        ("gw2", 1, "alice@example.org/tab"),
        ("gw1", 2, BOB),
        ("gw2", 2, "bob@example.org/phone"),
        ("gw2", 3, "carol@example.org/x"),
    ] {
        case.act(gateway, &item(Act::Available, session, from, targets));
    }
    case
}

#[test]
fn available_goes_to_all_resources_of_targets_and_own_with_an_echo() {
    let mut case = crowd();
    let mut said = item(
        Act::Available,
        1,
        ALICE,
        &["bob@example.org", "nobody@example.org"],
    );
    assert_eq!(
        case.sent("gw1", &said),
        [
            "gw1 alice@example.org/phone > [1, 2]",
            "gw2 alice@example.org/phone > [1, 2]"
        ],
        "one envelope for each gateway"
    );
    said.payload = "<presence><show>away</show></presence>".into();
    let effects = case.act("gw1", &said);
    assert_eq!(effects.deliveries[0].1.payload, said.payload);
    assert_eq!(effects.deliveries[0].1.policy_version, 5);
    assert_eq!(effects.deliveries[0].1.traceparent, "t");
    let said = item(Act::Available, 1, ALICE, &["carol@example.org"]);
    assert_eq!(
        case.sent("gw1", &said),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [2]",
            "gw1 alice@example.org/phone > [1]",
            "gw2 alice@example.org/phone > [1, 3]"
        ],
        "bob is hidden from, carol hears"
    );
}

#[test]
fn unavailable_goes_to_whom_it_was_shown_and_own_resources() {
    let mut case = crowd();
    case.act("gw1", &item(Act::Available, 1, ALICE, &["bob@example.org"]));
    case.act(
        "gw1",
        &item(Act::Directed, 1, ALICE, &["carol@example.org/x"]),
    );
    let gone = item(Act::Unavailable, 1, ALICE, &[]);
    assert_eq!(
        case.sent("gw1", &gone),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [1, 2, 3]"
        ]
    );
    assert!(case.sent("gw1", &gone).is_empty(), "forgotten");
    assert_eq!(case.registry.len(), 4);
}

#[test]
fn unavailable_of_an_unknown_session_goes_to_the_targets_that_its_gateway_knows() {
    let mut case = crowd();
    let gone = item(
        Act::Unavailable,
        7,
        "dave@example.org/x",
        &["bob@example.org"],
    );
    assert_eq!(
        case.sent("gw1", &gone),
        [
            "gw1 dave@example.org/x! > [2]",
            "gw2 dave@example.org/x! > [2]"
        ]
    );
}

#[test]
fn directed_presence_is_addressed_and_remembered_apart() {
    let mut case = crowd();
    let to = |target| item(Act::Directed, 1, ALICE, &[target]);
    assert_eq!(
        case.sent("gw1", &to("bob@example.org")),
        [
            "gw1 alice@example.org/phone > [2] @bob@example.org",
            "gw2 alice@example.org/phone > [2] @bob@example.org"
        ],
        "without any broadcast before"
    );
    assert_eq!(
        case.sent("gw1", &to("carol@example.org/x")),
        ["gw2 alice@example.org/phone > [3] @carol@example.org/x"]
    );
    assert!(case.sent("gw1", &to("carol@example.org/other")).is_empty());
    let said = item(Act::Available, 1, ALICE, &[]);
    assert_eq!(
        case.sent("gw1", &said),
        [
            "gw1 alice@example.org/phone > [1]",
            "gw2 alice@example.org/phone > [1]"
        ],
        "a broadcast does not hide it from them"
    );
    let mut ends = to("carol@example.org/x");
    ends.unavailable = true;
    assert_eq!(
        case.sent("gw1", &ends),
        ["gw2 alice@example.org/phone! > [3] @carol@example.org/x"]
    );
    assert_eq!(
        case.sent("gw1", &item(Act::Unavailable, 1, ALICE, &[])),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [1, 2]"
        ],
        "carol has heard already"
    );
}

#[test]
fn a_session_that_only_directed_presence_is_not_available() {
    let mut case = crowd();
    case.act("gw1", &item(Act::Directed, 1, ALICE, &["bob@example.org"]));
    assert!(
        case.sent(
            "gw1",
            &item(Act::Probe, 2, BOB, &["alice@example.org/phone"])
        )
        .is_empty()
    );
    let said = item(Act::Available, 2, BOB, &["alice@example.org"]);
    assert_eq!(
        case.sent("gw1", &said),
        [
            "gw1 bob@example.org/desk > [2]",
            "gw2 bob@example.org/desk > [1, 2]"
        ]
    );
    let mut ends = item(Act::Directed, 1, ALICE, &["bob@example.org"]);
    ends.unavailable = true;
    case.act("gw1", &ends);
    assert_eq!(case.registry.len(), 4, "nothing left of it");
}

#[test]
fn refresh_sends_the_difference() {
    let mut case = crowd();
    case.act("gw1", &item(Act::Available, 1, ALICE, &["bob@example.org"]));
    case.act(
        "gw1",
        &item(Act::Directed, 1, ALICE, &["carol@example.org/x"]),
    );
    let mut refresh = item(
        Act::Refresh,
        1,
        ALICE,
        &["bob@example.org", "carol@example.org/x"],
    );
    refresh.payload = Bytes::new();
    refresh.policy_version = 6;
    assert!(case.sent("gw1", &refresh).is_empty(), "nothing changed");
    refresh.targets = vec!["carol@example.org".into()];
    let effects = case.act("gw1", &refresh);
    assert_eq!(
        short(&effects),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone > [3]"
        ],
        "bob is denied, carol is allowed"
    );
    let shown = &effects.deliveries[2].1;
    assert_eq!(shown.policy_version, 6);
    assert_eq!(
        shown.payload, "<presence from='alice@example.org/phone'/>",
        "what was said last"
    );
    refresh.targets = Vec::new();
    assert_eq!(
        case.sent("gw1", &refresh),
        ["gw2 alice@example.org/phone! > [3]"],
        "all denied"
    );
    assert!(case.sent("gw1", &refresh).is_empty());
    refresh.session = 99;
    assert!(case.sent("gw1", &refresh).is_empty(), "an unknown session");
}

#[test]
fn resync_is_silent_and_remembers_who_saw() {
    let mut case = crowd_shown_to(&["bob@example.org"]);
    let resync = item(
        Act::Resync,
        1,
        ALICE,
        &["bob@example.org", "carol@example.org/x"],
    );
    assert!(case.sent("gw1", &resync).is_empty());
    let mut probed = case.sent("gw1", &item(Act::Probe, 2, BOB, &["alice@example.org"]));
    probed.sort();
    assert_eq!(
        probed,
        [
            "gw1 alice@example.org/phone > [2]",
            "gw1 alice@example.org/tab > [2]"
        ]
    );
    assert_eq!(
        case.sent("gw1", &item(Act::Unavailable, 1, ALICE, &[])),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [1, 2, 3]"
        ]
    );
}

#[test]
fn probe_tells_one_session_what_those_say_who_show_it() {
    let mut case = crowd_shown_to(&["alice@example.org"]);
    // Not to her, whatever her own roster says (RFC 6121 §4.3.2).
    case.act("gw1", &item(Act::Available, 7, "dave@example.org/x", &[]));
    case.act("gw1", &item(Act::Available, 1, ALICE, &[]));
    let probe = item(
        Act::Probe,
        1,
        ALICE,
        &[
            "alice@example.org",
            "bob@example.org",
            "carol@example.org/x",
            "dave@example.org",
        ],
    );
    let effects = case.act("gw1", &probe);
    let mut lines = short(&effects);
    lines.sort();
    assert_eq!(
        lines,
        [
            "gw1 alice@example.org/tab > [1]",
            "gw1 bob@example.org/desk > [1]",
            "gw1 bob@example.org/phone > [1]",
            "gw1 carol@example.org/x > [1]"
        ],
        "not its own"
    );
    assert!(
        effects
            .deliveries
            .iter()
            .all(|(_, up)| up.policy_version == 0 && !up.unavailable)
    );
}

#[test]
fn the_newer_of_two_with_one_full_jid_wins_silently() {
    let mut case = crowd();
    case.act("gw1", &item(Act::Available, 1, ALICE, &["bob@example.org"]));
    let said = item(Act::Available, 9, ALICE, &["carol@example.org"]);
    assert_eq!(
        case.sent("gw2", &said),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone > [1, 3, 9]"
        ],
        "who saw the older and may not see the newer is told"
    );
    assert!(
        case.sent(
            "gw1",
            &item(Act::Unavailable, 1, ALICE, &["carol@example.org"])
        )
        .is_empty()
    );
    assert_eq!(case.registry.len(), 5);
}

#[test]
fn a_number_that_means_another_session_now_ends_the_old_one() {
    let mut case = crowd();
    case.act("gw1", &item(Act::Available, 1, ALICE, &["bob@example.org"]));
    let said = item(Act::Available, 1, "dave@example.org/x", &[]);
    assert_eq!(
        case.sent("gw1", &said),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [1, 2]",
            "gw1 dave@example.org/x > [1]"
        ]
    );
}

#[test]
fn bounds_hold_and_are_told() {
    let mut case = crowd();
    let many: Vec<String> = (0..SHOWN_LIMIT + 3)
        .map(|n| format!("u{n}@example.org"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let effects = case.act("gw1", &item(Act::Available, 1, ALICE, &many));
    assert_eq!(effects.refused, 3);
    let mut refused = 0;
    for n in 0..DIRECTED_LIMIT + 2 {
        let target = format!("d{n}@example.org/x");
        refused += case
            .act("gw1", &item(Act::Directed, 1, ALICE, &[&target]))
            .refused;
    }
    assert_eq!(refused, 2);
    let key = SessionKey {
        gateway: "gw1".into(),
        session: 1,
    };
    let session = case.registry.store.get(&key).unwrap();
    assert_eq!(
        (session.shown.len(), session.directed.len()),
        (SHOWN_LIMIT, DIRECTED_LIMIT)
    );
    for n in 0..200 {
        let from = format!("s{n}@example.org/x");
        case.act("gw1", &item(Act::Available, 100 + n, &from, &[]));
    }
    assert_eq!(case.registry.len(), 100);
    let effects = case.act(
        "gw1",
        &item(
            Act::Available,
            999,
            "late@example.org/x",
            &["bob@example.org"],
        ),
    );
    assert_eq!((effects.refused, effects.copies), (1, 0));
}

#[test]
fn sessions_that_were_not_published_again_end() {
    let mut case = crowd();
    case.act(
        "gw1",
        &item(Act::Available, 1, ALICE, &["carol@example.org"]),
    );
    let gw1: Arc<str> = "gw1".into();
    case.registry.reach(&gw1, Some(2));
    case.registry.act(&gw1, 2, &item(Act::Resync, 2, BOB, &[]));
    let effects = case.registry.end_before("gw1", 2);
    assert_eq!(short(&effects), ["gw2 alice@example.org/phone! > [1, 3]"]);
    let payload = &effects.deliveries[0].1.payload;
    assert_eq!(
        payload,
        "<presence xmlns='jabber:client' type='unavailable' from='alice@example.org/phone'/>"
    );
    assert!(short(&case.registry.end_before("gw1", 2)).is_empty());
}

#[test]
fn what_a_lost_gateway_missed_is_told_when_its_session_is_back() {
    let mut case = crowd();
    let gw1: Arc<str> = "gw1".into();
    case.registry.reach(&gw1, None);
    let alice = |act| item(act, 1, "alice@example.org/tab", &["bob@example.org"]);
    assert_eq!(
        case.sent("gw2", &alice(Act::Available)),
        ["gw2 alice@example.org/tab > [1, 2]"],
        "bob's desk is out of reach"
    );
    case.act(
        "gw2",
        &item(
            Act::Available,
            3,
            "carol@example.org/x",
            &["bob@example.org"],
        ),
    );
    case.act(
        "gw2",
        &item(Act::Unavailable, 3, "carol@example.org/x", &[]),
    );
    case.registry.reach(&gw1, Some(2));
    assert_eq!(
        case.sent("gw2", &alice(Act::Available)),
        ["gw2 alice@example.org/tab > [1, 2]"],
        "nor may its number be used before it is back"
    );
    let effects = case.registry.act(&gw1, 2, &item(Act::Resync, 2, BOB, &[]));
    assert_eq!(
        short(&effects),
        [
            "gw1 alice@example.org/tab > [2]",
            "gw1 carol@example.org/x! > [2]"
        ]
    );
    assert_eq!(
        effects.deliveries[0].1.policy_version, 0,
        "for the gateway to decide"
    );
    let effects = case.registry.act(&gw1, 2, &item(Act::Resync, 2, BOB, &[]));
    assert!(effects.deliveries.is_empty());
    assert_eq!(
        case.sent("gw2", &alice(Act::Available)),
        [
            "gw1 alice@example.org/tab > [2]",
            "gw2 alice@example.org/tab > [1, 2]"
        ]
    );
}

#[test]
fn an_envelope_that_was_not_sent_is_missed() {
    let mut case = crowd();
    let effects = case.act(
        "gw2",
        &item(
            Act::Unavailable,
            3,
            "carol@example.org/x",
            &["bob@example.org"],
        ),
    );
    let (gateway, up) = &effects.deliveries[0];
    assert_eq!((&**gateway, up.sessions.as_slice()), ("gw1", &[2][..]));
    case.registry.missed(gateway, up);
    let effects = case.act("gw1", &item(Act::Resync, 2, BOB, &[]));
    assert_eq!(short(&effects), ["gw1 carol@example.org/x! > [2]"]);
}
