//! What goes to the shard for an inbound stanza: the item with its key, its true sender and, where
//! something beyond the stamp was changed, the form as received.
//!
//! Pure. Refuses to submit: order is the window's affair.

use bytes::Bytes;
use chancery_api::Kind;
use chancery_api::archive::AppendItem;
use chancery_xml::{Element, Splice};
use chancery_xmpp::stanza as xmpp;
use chancery_xmpp::{StanzaHeader, exempt, ns};

use crate::session::identity::Identity;

/// The idempotency key of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) sm_id: [u8; 16],
    pub(crate) count: u64,
}

/// A stanza with the server's stamp: true `from`, own namespace, without forgeries.
pub(crate) fn stamped(element: &Element, identity: &Identity, removed: &[usize]) -> Bytes {
    let mut splice = Splice::new(element);
    splice
        .set_attr("from", Some(&identity.full))
        .ensure_ns(ns::CLIENT);
    for index in removed {
        splice.remove_child(*index);
    }
    splice.finish()
}

/// The item for a stanza; its verdict is filled in when there is one.
pub(crate) fn item(
    gateway: &str,
    identity: &Identity,
    element: &Element,
    header: &StanzaHeader,
    removed: &[usize],
    key: Key,
) -> AppendItem {
    // Removed forgeries do not make a stanza worth recording, but what was there is: a stanza
    // that had any is not exempt.
    let ephemeral = removed.is_empty() && exempt::is_exempt(element, header);
    let to = header
        .to
        .as_ref()
        .map_or(&*identity.account, |to| to.as_str());
    AppendItem {
        sm_id: if ephemeral {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(&key.sm_id)
        },
        count: if ephemeral { 0 } else { key.count },
        gateway: gateway.to_owned(),
        session: identity.number,
        from: identity.full.to_string(),
        to: to.to_owned(),
        kind: kind(header.kind()).into(),
        r#type: element
            .header
            .type_
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        id: header.id.as_deref().unwrap_or_default().to_owned(),
        payload: stamped(element, identity, removed),
        received: if removed.is_empty() {
            Bytes::new()
        } else {
            element.bytes.clone()
        },
        ephemeral,
        // Payloads of a conversation count as a body where carbons ask for one (XEP-0280 §6.1).
        has_body: header.has_body || (header.im_payload && !header.hints.no_store),
        no_copy: header.hints.no_copy || header.private,
        no_store: header.kind() == xmpp::Kind::Message && !header.is_kept(),
        no_archive: header.hints.no_permanent_store,
        ..AppendItem::default()
    }
}

/// The same, recorded even if it would be exempt: it says something by being there.
pub(crate) fn always(item: AppendItem, key: Key) -> AppendItem {
    AppendItem {
        sm_id: Bytes::copy_from_slice(&key.sm_id),
        count: key.count,
        ephemeral: false,
        ..item
    }
}

/// The wire's word for a kind.
pub(crate) fn kind(kind: xmpp::Kind) -> Kind {
    match kind {
        xmpp::Kind::Message => Kind::Message,
        xmpp::Kind::Presence => Kind::Presence,
        xmpp::Kind::Iq => Kind::Iq,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use chancery_xml::{Limits, scan};

    use super::*;

    fn build(xml: &str, removed: &[usize]) -> AppendItem {
        let identity = Identity::example("alice@a.test", "desk");
        let element = scan(
            &Bytes::copy_from_slice(xml.as_bytes()),
            &Limits::after_auth(),
        )
        .unwrap();
        let header = StanzaHeader::read(&element).unwrap();
        item(
            "gw1",
            &identity,
            &element,
            &header,
            removed,
            Key {
                sm_id: [7; 16],
                count: 3,
            },
        )
    }

    #[test]
    fn content_is_recorded_under_its_key() {
        let item = build(
            "<message to='Bob@a.test' id='1'><body>x</body></message>",
            &[],
        );
        assert_eq!(
            (item.ephemeral, item.count, &item.sm_id[..]),
            (false, 3, &[7; 16][..])
        );
        assert_eq!(
            (item.from.as_str(), item.to.as_str()),
            ("alice@a.test/desk", "bob@a.test")
        );
        let payload = std::str::from_utf8(&item.payload).unwrap();
        assert!(payload.contains("from='alice@a.test/desk'"));
        assert!(payload.contains("xmlns='jabber:client'"));
        assert!(item.received.is_empty());
    }

    #[test]
    fn what_was_taken_out_is_kept_as_evidence() {
        let xml = "<message to='b@a.test'><x xmlns='u'/><body>x</body></message>";
        let item = build(xml, &[0]);
        assert_eq!(item.received, xml);
        assert!(!std::str::from_utf8(&item.payload).unwrap().contains("<x "));
    }

    #[test]
    fn chat_states_pass_without_a_key() {
        let xml = "<message to='b@a.test' type='chat'><active xmlns='http://jabber.org/protocol/chatstates'/></message>";
        let item = build(xml, &[]);
        assert!(item.ephemeral && item.sm_id.is_empty());
    }

    /// XEP-0160 §3, XEP-0280 §6.1, XEP-0334: what the shard is told of copies and of keeping.
    #[test]
    fn content_and_hints_say_who_gets_a_copy_and_what_is_kept() {
        let body = "<body>x</body>";
        let state = "<composing xmlns='http://jabber.org/protocol/chatstates'/><thread>t</thread>";
        let hint = |name| format!("{body}<{name} xmlns='urn:xmpp:hints'/>");
        for (inner, [counts_as_body, no_copy, no_store, no_archive]) in [
            (body.to_owned(), [true, false, false, false]),
            (state.to_owned(), [true, false, true, false]),
            ("<x xmlns='u'/>".to_owned(), [false, false, false, false]),
            (
                "<received xmlns='urn:xmpp:receipts' id='1'/>".to_owned(),
                [true, false, false, false],
            ),
            (
                format!("{body}<private xmlns='urn:xmpp:carbons:2'/>"),
                [true, true, false, false],
            ),
            (hint("no-copy"), [true, true, false, false]),
            (hint("no-store"), [true, false, true, false]),
            (hint("no-permanent-store"), [true, false, false, true]),
            (hint("store"), [true, false, false, false]),
        ] {
            let item = build(&format!("<message to='b@a.test'>{inner}</message>"), &[]);
            assert_eq!(
                [item.has_body, item.no_copy, item.no_store, item.no_archive],
                [counts_as_body, no_copy, no_store, no_archive],
                "{inner}"
            );
        }
        assert!(
            !build(
                "<iq to='b@a.test' type='get' id='1'><x xmlns='u'/></iq>",
                &[]
            )
            .no_store
        );
    }

    #[test]
    fn without_an_address_it_is_for_the_own_account() {
        assert_eq!(
            build("<message><body>x</body></message>", &[]).to,
            "alice@a.test"
        );
    }
}
