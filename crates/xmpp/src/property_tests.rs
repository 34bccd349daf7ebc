//! Properties: addresses have one spelling, hostile stanzas have an answer, nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use chancery_xml::{Element, Limits, escape_text, push_attr, scan};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::stanza::{StanzaHeader, kind_of};
use crate::strip::strip;
use crate::{Condition, StanzaError, datetime, exempt, jid, mam, ns};

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

/// Queries of the archive, right and wrong.
fn archive_query() -> impl Strategy<Value = String> {
    let values = prop_oneof![
        address(),
        "[0-9]{1,12}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
        proptest::sample::select(vec!["", "-1", "1e9", "urn:xmpp:mam:2", "true", "' OR 1=1"])
            .prop_map(str::to_owned),
    ];
    let names = vec![
        "FORM_TYPE",
        "with",
        "start",
        "end",
        "after-id",
        "before-id",
        "ids",
        "include-groupchat",
        "x",
    ];
    let field =
        (proptest::sample::select(names), vec(values.clone(), 0..3)).prop_map(|(name, values)| {
            let mut out = format!("<field var='{name}'>");
            for value in values {
                out.push_str("<value>");
                escape_text(&mut out, &value);
                out.push_str("</value>");
            }
            out + "</field>"
        });
    let paging = proptest::sample::select(vec!["max", "after", "before", "index", "x"]);
    let paging = (paging, values).prop_map(|(name, value)| {
        let mut out = format!("<{name}>");
        escape_text(&mut out, &value);
        out + &format!("</{name}>")
    });
    let form = (
        proptest::sample::select(vec!["submit", "form"]),
        any::<bool>(),
        vec(field, 0..4),
    );
    let form = form.prop_map(|(type_, typed, fields)| {
        let typed = if typed {
            "<field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>"
        } else {
            ""
        };
        format!(
            "<x xmlns='jabber:x:data' type='{type_}'>{typed}{}</x>",
            fields.concat()
        )
    });
    let set = vec(paging, 0..4).prop_map(|inner| {
        format!(
            "<set xmlns='http://jabber.org/protocol/rsm'>{}</set>",
            inner.concat()
        )
    });
    (vec(form, 0..2), vec(set, 0..2)).prop_map(|(forms, sets)| {
        format!(
            "<query xmlns='urn:xmpp:mam:2'>{}{}</query>",
            forms.concat(),
            sets.concat()
        )
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
    fn every_archive_query_is_bounded_or_refused(xml in archive_query()) {
        let query: minidom::Element = xml.parse().unwrap();
        match mam::Query::read(&query) {
            Ok(query) => {
                prop_assert!(query.ids.len() <= mam::IDS_MAX);
                prop_assert!(query.page.index.is_none_or(|index| index == 0));
                let ids = [&query.after_id, &query.before_id, &query.page.after];
                prop_assert!(ids.into_iter().flatten().all(|id| !id.is_empty()));
                if let Some(with) = &query.with {
                    let again = jid::parse(with.as_str());
                    prop_assert_eq!(again.as_ref(), Ok(with));
                }
                // no later than the end of year 9999, wherever that was said
                let limit = 253_402_300_800_000 + 86_400_000;
                let times = [query.start_ms, query.end_ms];
                prop_assert!(times.into_iter().flatten().all(|time| time.abs() <= limit));
            }
            Err(error) => prop_assert!(matches!(
                error.condition,
                Condition::BadRequest
                    | Condition::JidMalformed
                    | Condition::ItemNotFound
                    | Condition::FeatureNotImplemented
            )),
        }
    }

    #[test]
    fn a_time_is_read_or_refused(text in "\\PC{0,32}", at in any::<prop::sample::Index>()) {
        let _ = datetime::parse(&text);
        let right = "2026-02-28T23:59:59.999Z";
        let mut changed: Vec<char> = right.chars().collect();
        let place = at.index(changed.len());
        changed[place] = text.chars().next().unwrap_or('x');
        let changed: String = changed.into_iter().collect();
        if let Some(time) = datetime::parse(&changed) {
            prop_assert!(changed.is_ascii());
            prop_assert!((-62_200_000_000_000..253_402_400_000_000).contains(&time));
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
                if exempt::is_exempt(&element, &header) {
                    prop_assert!(!header.has_body && !header.has_status && !header.is_kept());
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
