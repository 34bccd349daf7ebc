//! Every row of the routing table, by example of sessions.
#![allow(clippy::unwrap_used)]
use super::Delivery::{CarbonReceived, CarbonSent, Nothing, Original};
use super::*;

fn facts(type_: StanzaType) -> Facts {
    let conversation = matches!(
        type_,
        StanzaType::Message(MessageType::Chat | MessageType::Normal)
    );
    Facts {
        type_,
        has_body: true,
        carbon: conversation,
        muc_private: false,
        keep: conversation,
    }
}

fn message(type_: MessageType) -> Facts {
    facts(StanzaType::Message(type_))
}

fn chat() -> Facts {
    message(MessageType::Chat)
}

/// `name priority flags`; flags: `a` available, `c` carbons, `i` interested.
fn sessions(spec: &'static str) -> Vec<SessionState<'static>> {
    spec.split(", ")
        .filter(|one| !one.is_empty())
        .map(|one| {
            let mut words = one.split(' ');
            let resource = words.next().unwrap();
            let priority = words.next().unwrap().parse().unwrap();
            let flags = words.next().unwrap_or("");
            SessionState {
                resource,
                priority,
                available: flags.contains('a'),
                carbons: flags.contains('c'),
                interested: flags.contains('i'),
            }
        })
        .collect()
}

fn check(facts: Facts, to: Option<&str>, spec: &'static str, expected: &[Delivery]) {
    let plan = received(facts, to, &sessions(spec));
    assert_eq!(plan.deliveries, expected, "{spec}");
    assert_eq!(plan.outcome, Outcome::Delivered, "{spec}");
    assert_eq!(plan.born_open, facts.keep, "{spec}");
}

fn nobody(facts: Facts, to: Option<&str>, spec: &'static str, expected: Nobody) {
    let plan = received(facts, to, &sessions(spec));
    assert_eq!(
        plan.outcome,
        Outcome::Nobody(expected),
        "{:?} {to:?} {spec}",
        facts.type_
    );
    assert!(plan.deliveries.iter().all(|delivery| *delivery == Nothing));
    assert_eq!(plan.born_open, expected == Nobody::KeepOpen);
}

/// States of the recipient without anyone for a message: none, negative, not available.
const ABSENT: [&str; 4] = ["", "a -1 a", "a -1 ac, b 5 c", "a 5"];

#[test]
fn conversation_to_the_bare_jid() {
    for type_ in [MessageType::Chat, MessageType::Normal] {
        let facts = message(type_);
        check(facts, None, "a 0 a", &[Original]);
        check(facts, None, "a 1 a, b 5 a", &[Nothing, Original]);
        check(
            facts,
            None,
            "a 5 a, b 5 a, c 0 a",
            &[Original, Original, Nothing],
        );
        check(
            facts,
            None,
            "a 5 ac, b 0 ac, c -1 ac, d 0 c, e 9",
            &[
                Original,
                CarbonReceived,
                CarbonReceived,
                CarbonReceived,
                Nothing,
            ],
        );
        for absent in ABSENT {
            nobody(facts, None, absent, Nobody::KeepOpen);
            nobody(
                Facts {
                    keep: false,
                    ..facts
                },
                None,
                absent,
                Nobody::Bounce,
            );
            nobody(
                Facts {
                    keep: false,
                    has_body: false,
                    ..facts
                },
                None,
                absent,
                Nobody::Drop,
            );
        }
    }
}

#[test]
fn other_messages_to_the_bare_jid() {
    check(
        message(MessageType::Headline),
        None,
        "a 1 ac, b 5 a, c -1 ac, d 1 c",
        &[Original, Original, Nothing, Nothing],
    );
    for absent in ABSENT {
        nobody(message(MessageType::Headline), None, absent, Nobody::Drop);
    }
    for state in ["", "a 5 ac"] {
        nobody(message(MessageType::Groupchat), None, state, Nobody::Bounce);
        nobody(message(MessageType::Error), None, state, Nobody::Drop);
    }
}

#[test]
fn a_connected_full_jid_gets_everything() {
    for type_ in TYPES {
        let plan = received(facts(type_), Some("b"), &sessions("a 5 a, b -1"));
        assert_eq!(plan.deliveries, [Nothing, Original], "{type_:?}");
        assert_eq!(plan.outcome, Outcome::Delivered);
    }
    check(
        chat(),
        Some("a"),
        "a 0 ac, b 9 ac, c -1 c, d 1 a",
        &[Original, CarbonReceived, CarbonReceived, Nothing],
    );
    check(
        message(MessageType::Groupchat),
        Some("a"),
        "a 0 ac, b 9 ac",
        &[Original, Nothing],
    );
}

#[test]
fn an_absent_full_jid() {
    let x = Some("x");
    check(chat(), x, "a 0 ac, b 9 a", &[CarbonReceived, Original]);
    nobody(chat(), x, "a -1 ac", Nobody::KeepOpen);
    for state in ["", "a 5 aci"] {
        nobody(message(MessageType::Normal), x, state, Nobody::Bounce);
        nobody(message(MessageType::Groupchat), x, state, Nobody::Bounce);
        nobody(message(MessageType::Headline), x, state, Nobody::Drop);
        nobody(message(MessageType::Error), x, state, Nobody::Drop);
        nobody(facts(StanzaType::Iq(IqType::Get)), x, state, Nobody::Bounce);
        nobody(facts(StanzaType::Iq(IqType::Set)), x, state, Nobody::Bounce);
        nobody(
            facts(StanzaType::Iq(IqType::Result)),
            x,
            state,
            Nobody::Drop,
        );
        nobody(facts(StanzaType::Iq(IqType::Error)), x, state, Nobody::Drop);
        for type_ in [
            PresenceType::Available,
            PresenceType::Unavailable,
            PresenceType::Error,
        ] {
            nobody(facts(StanzaType::Presence(type_)), x, state, Nobody::Drop);
        }
        nobody(
            facts(StanzaType::Presence(PresenceType::Probe)),
            x,
            state,
            Nobody::Server,
        );
    }
}

#[test]
fn presence_and_iq_to_the_bare_jid() {
    let presence = |type_| facts(StanzaType::Presence(type_));
    let spec = "a -1 a, b 0 i, c 5 ai";
    for type_ in [
        PresenceType::Available,
        PresenceType::Unavailable,
        PresenceType::Subscribe,
    ] {
        check(presence(type_), None, spec, &[Original, Nothing, Original]);
    }
    for type_ in [
        PresenceType::Subscribed,
        PresenceType::Unsubscribe,
        PresenceType::Unsubscribed,
    ] {
        for to in [None, Some("gone")] {
            check(presence(type_), to, spec, &[Nothing, Original, Original]);
            nobody(presence(type_), to, "", Nobody::Server);
        }
    }
    nobody(presence(PresenceType::Subscribe), None, "", Nobody::Server);
    nobody(presence(PresenceType::Available), None, "", Nobody::Drop);
    nobody(presence(PresenceType::Probe), None, spec, Nobody::Server);
    nobody(presence(PresenceType::Error), None, spec, Nobody::Drop);
    for type_ in [IqType::Get, IqType::Set] {
        nobody(facts(StanzaType::Iq(type_)), None, spec, Nobody::Server);
    }
    for type_ in [IqType::Result, IqType::Error] {
        nobody(facts(StanzaType::Iq(type_)), None, spec, Nobody::Drop);
    }
}

#[test]
fn private_messages_are_not_copied() {
    let private = Facts {
        carbon: false,
        ..chat()
    };
    check(private, None, "a 5 ac, b 0 ac", &[Original, Nothing]);
    assert_eq!(
        sent(private, "a", &sessions("a 5 ac, b 0 ac")),
        [Nothing, Nothing]
    );
    // the room has sent the other sessions their own (XEP-0280 §6.1), but not what was sent
    let room = Facts {
        muc_private: true,
        ..chat()
    };
    check(room, Some("a"), "a 5 ac, b 0 ac", &[Original, Nothing]);
    assert_eq!(
        sent(room, "a", &sessions("a 5 ac, b 0 ac")),
        [Nothing, CarbonSent]
    );
}

#[test]
fn what_was_sent_is_copied_to_the_others() {
    let spec = "a 5 ac, b 0 ac, c -1 c, d 0 a";
    assert_eq!(
        sent(chat(), "a", &sessions(spec)),
        [Nothing, CarbonSent, CarbonSent, Nothing]
    );
    for type_ in [
        MessageType::Headline,
        MessageType::Groupchat,
        MessageType::Error,
    ] {
        assert_eq!(sent(message(type_), "a", &sessions(spec)), [Nothing; 4]);
    }
}

#[test]
fn a_message_to_oneself_is_one_entry_without_carbons() {
    let plan = to_self(chat(), None, &sessions("a 5 ac, b 0 ac, c 5 a, d 0 a"));
    assert_eq!(plan.deliveries, [Original, Original, Original, Nothing]);
    assert!(plan.born_open);
    let plan = to_self(chat(), Some("b"), &sessions("a 5 ac, b 0 ac"));
    assert_eq!(plan.deliveries, [Original, Original]);
}

#[test]
fn the_table_names_every_type() {
    assert_eq!(markdown().lines().count(), 2 + TYPES.len() + 2);
}
