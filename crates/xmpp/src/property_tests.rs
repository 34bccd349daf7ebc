//! Properties: addresses have one spelling, hostile stanzas have an answer, nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use chancery_xml::{Element, Limits, push_attr, scan};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::stanza::{StanzaHeader, kind_of};
use crate::strip::strip;
use crate::{Condition, StanzaError, exempt, jid, ns};

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9.@/: _-]{0,12}",
        "\\PC{0,8}",
        any::<String>().prop_map(|text| text.chars().take(6).collect()),
        Just("example.test".to_owned()),
        Just("\u{ff21}\u{df}\u{130}\u{2126}\u{fb01}".to_owned()),
        Just("127.0.0.1".to_owned()),
    ]
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        part(),
        (part(), part()).prop_map(|(local, domain)| format!("{local}@{domain}")),
        (part(), part(), part()).prop_map(|(local, domain, res)| format!("{local}@{domain}/{res}")),
    ]
}

fn attrs() -> impl Strategy<Value = String> {
    let names = [
        "to", "from", "id", "type", "by", "stamp", "var", "hash", "x",
    ];
    let values = prop_oneof![
        address(),
        proptest::sample::select(vec![
            "get",
            "set",
            "result",
            "error",
            "chat",
            "probe",
            "example.test"
        ])
        .prop_map(str::to_owned),
    ];
    vec(proptest::option::weighted(0.4, values), names.len()).prop_map(move |values| {
        let mut out = String::new();
        for (name, value) in names.iter().zip(values) {
            if let Some(value) = value {
                push_attr(&mut out, name, &value);
            }
        }
        out
    })
}

fn stanza() -> impl Strategy<Value = Element> {
    let words: Vec<&'static str> = crate::ns::ALL
        .iter()
        .map(|(_, uri)| *uri)
        .filter(|uri| *uri != ns::XML)
        .collect();
    let names = vec![
        "body",
        "show",
        "priority",
        "status",
        "error",
        "query",
        "ping",
        "x",
        "c",
        "delay",
        "stanza-id",
        "received",
        "sent",
        "result",
        "active",
        "no-store",
        "private",
        "item",
        "bad-request",
        "photo",
    ];
    let name = proptest::sample::select(names);
    let text = proptest::sample::select(vec!["", "1", "-129", "away", " ", "two words"]);
    let leaf = (name, proptest::sample::select(words), attrs(), text)
        .prop_map(|(name, ns, attrs, text)| format!("<{name} xmlns='{ns}'{attrs}>{text}</{name}>"))
        .boxed();
    let child = prop_oneof![
        leaf.clone(),
        (leaf.clone(), vec(leaf, 0..3)).prop_map(|(outer, inner)| {
            let at = outer.rfind("</").unwrap();
            format!("{}{}{}", &outer[..at], inner.concat(), &outer[at..])
        })
    ];
    let kinds = proptest::sample::select(vec!["message", "presence", "iq", "other"]);
    (kinds, attrs(), vec(child, 0..4)).prop_map(|(kind, attrs, children)| {
        let xml = format!("<{kind}{attrs}>{}</{kind}>", children.concat());
        scan(&Bytes::from(xml), &Limits::after_auth()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_normal_address_is_its_own_normal_form(raw in address()) {
        if let Ok(jid) = jid::parse(&raw) {
            let again = jid::parse(jid.as_str());
            prop_assert_eq!(again.as_ref(), Ok(&jid));
            prop_assert!(!jid::is_ip_literal(jid.domain().as_str()));
            prop_assert!(!jid.domain().as_str().ends_with('.'));
            prop_assert!(jid.as_str().len() <= jid::JID_BYTES_MAX);
            let upper = raw.to_ascii_uppercase();
            if let Ok(same) = jid::parse(&upper) {
                prop_assert_eq!(same.to_bare(), jid.to_bare());
            }
        }
    }

    #[test]
    fn every_stanza_has_an_answer(element in stanza()) {
        let local = |domain: &str| domain == "example.test";
        if let Ok(remove) = strip(&element, &local) {
            prop_assert!(remove.iter().all(|index| *index < element.header.children.len()));
        }
        match StanzaHeader::read(&element) {
            Ok(header) => {
                prop_assert!(kind_of(&element).is_some());
                let facts = header.facts();
                prop_assert_eq!(crate::routing::Facts::from_bits(facts.to_bits()), Some(facts));
                if exempt::is_exempt(&element, &header) {
                    prop_assert!(!header.has_body && !header.has_status);
                    prop_assert!(!element.header.has_text);
                }
            }
            Err(error) => {
                let answerable = matches!(error.condition, Condition::BadRequest | Condition::JidMalformed);
                prop_assert!(answerable);
            }
        }
        let reply = StanzaError::new(Condition::ServiceUnavailable).reply(&element, None, None);
        if let Some(reply) = reply {
            let reply = scan(&reply, &Limits::internal()).unwrap();
            prop_assert_eq!(&reply.header.to, &element.header.from);
            prop_assert_eq!(&reply.header.id, &element.header.id);
            prop_assert!(reply.header.children[0].children[0].is("service-unavailable", ns::STANZA_ERRORS));
            // an answer is never answered
            let again = StanzaError::new(Condition::BadRequest).reply(&reply, None, None);
            prop_assert_eq!(again, None);
        }
    }
}
