//! The rules on stanza headers and the answers to violations.
#![allow(clippy::unwrap_used)]
use super::*;
use bytes::Bytes;
use chancery_xml::{Limits, scan};

fn element(xml: &str) -> Element {
    scan(
        &Bytes::copy_from_slice(xml.as_bytes()),
        &Limits::after_auth(),
    )
    .unwrap()
}

fn read(xml: &str) -> Result<StanzaHeader, Condition> {
    StanzaHeader::read(&element(xml)).map_err(|error| error.condition)
}

#[test]
fn iq_rules_have_one_answer() {
    // attacks E10
    for xml in [
        "<iq type='get'><a xmlns='u'/></iq>",
        "<iq type='get' id=''><a xmlns='u'/></iq>",
        "<iq type='get' id='1'><a xmlns='u'/><a xmlns='u'/></iq>",
        "<iq type='set' id='1'/>",
        "<iq type='foo' id='1'><a xmlns='u'/></iq>",
        "<iq id='1'><a xmlns='u'/></iq>",
        "<iq type='result' id='1'><a xmlns='u'/><b xmlns='u'/></iq>",
    ] {
        assert_eq!(read(xml), Err(Condition::BadRequest), "{xml}");
    }
    let iq = read("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>").unwrap();
    let payload = iq.iq_payload.unwrap();
    assert_eq!((&*payload.ns, &*payload.name), (ns::PING, "ping"));
    assert!(
        read("<iq type='result' id='1'/>")
            .unwrap()
            .iq_payload
            .is_none()
    );
    assert!(read("<iq type='error' id='1'><a xmlns='u'/><error type='wait'/></iq>").is_ok());
}

#[test]
fn presence_rules_have_one_answer() {
    // attacks E15
    for xml in [
        "<presence type='x'/>",
        "<presence type=''/>",
        "<presence><priority>128</priority></presence>",
        "<presence><priority>-129</priority></presence>",
        "<presence><priority>abc</priority></presence>",
        "<presence><priority/></presence>",
        "<presence><priority>1</priority><priority>2</priority></presence>",
    ] {
        assert_eq!(read(xml), Err(Condition::BadRequest), "{xml}");
    }
    let full = "<presence><show>xa</show><priority> -128 </priority><status>s</status></presence>";
    let full = read(full).unwrap();
    assert_eq!(
        (full.priority, full.show, full.has_status),
        (-128, Some(Show::Xa), true)
    );
    assert_eq!(
        read("<presence><priority>+127</priority></presence>")
            .unwrap()
            .priority,
        127
    );
    let away = read("<presence type='unavailable'><priority>x</priority></presence>").unwrap();
    assert_eq!(away.type_, StanzaType::Presence(PresenceType::Unavailable));
}

#[test]
fn addresses_are_normalised_or_refused() {
    let message = read("<message to='Bob@Example.Test./R' from='a@b'/>").unwrap();
    assert_eq!(message.to.unwrap().as_str(), "bob@example.test/R");
    assert_eq!(
        read("<message to='u@127.0.0.1'/>"),
        Err(Condition::JidMalformed)
    );
    assert_eq!(read("<message to=''/>"), Err(Condition::JidMalformed));
}

#[test]
fn only_the_content_namespaces_are_stanzas() {
    assert_eq!(kind_of(&element("<message xmlns='jabber:client#'/>")), None);
    assert_eq!(kind_of(&element("<foo xmlns='urn:x'/>")), None);
    assert_eq!(
        kind_of(&element("<c:iq xmlns:c='jabber:client'/>")),
        Some(Kind::Iq)
    );
    assert_eq!(kind_of(&element("<iq xmlns='jabber:server'/>")), None);
    // a body of another namespace is no body
    assert!(
        !read("<message><body xmlns='urn:x'/></message>")
            .unwrap()
            .has_body
    );
}

#[test]
fn what_is_kept_follows_xep_0160_and_0334() {
    let kept = |inner: &str| {
        read(&format!("<message type='chat'>{inner}</message>"))
            .unwrap()
            .is_kept()
    };
    let body = "<body>x</body>";
    let state = "<composing xmlns='http://jabber.org/protocol/chatstates'/><thread>t</thread>";
    assert!(kept(body) && kept("<x xmlns='u'/>") && !kept(state) && !kept(""));
    assert!(kept("<received xmlns='urn:xmpp:receipts' id='1'/>"));
    for (hint, of_body, of_state) in [
        ("no-store", false, false),
        ("no-copy", true, false),
        ("no-permanent-store", true, false),
        ("store", true, true),
    ] {
        let hint = format!("<{hint} xmlns='urn:xmpp:hints'/>");
        assert_eq!(kept(&format!("{body}{hint}")), of_body, "{hint}");
        assert_eq!(kept(&format!("{state}{hint}")), of_state, "{hint}");
    }
}

#[test]
fn a_private_message_through_a_room_is_no_invitation() {
    let room = |inner: &str| {
        let x = format!("<x xmlns='http://jabber.org/protocol/muc#user'>{inner}</x>");
        let header = read(&format!("<message>{x}</message>")).unwrap();
        (header.muc_private, header.im_payload, header.is_kept())
    };
    assert_eq!(room(""), (true, false, false));
    assert_eq!(room("<invite from='a@b'/>"), (false, true, true));
    assert_eq!(room("<decline to='a@b'/>"), (false, true, true));
}
