//! Roster items as they are asked for, checked, and as a push carries them (RFC 6121 §2.1). It
//! refuses to let a client say what only the server knows: subscription, ask, approval.

use chancery_api::ApiError;
use chancery_api::roster::{Item, Subscription};
use chancery_xml::{escape_text, is_xml_char, push_attr};
use chancery_xmpp::subscription::Act;

use crate::Config;

/// The longest handle of an item.
const NAME_LIMIT_BYTES: usize = 1_023;
/// The longest name of a group.
const GROUP_LIMIT_BYTES: usize = 1_023;

/// The owner of a roster: a bare JID with localpart, prepared.
pub fn owner(jid: &str) -> Result<String, ApiError> {
    let bare = chancery_xmpp::jid::parse_bare(jid)
        .map_err(|_| ApiError::invalid("owner is not a bare jid"))?;
    if bare.node().is_none() {
        return Err(ApiError::invalid("owner has no localpart"));
    }
    Ok(bare.to_string())
}

/// The domain of an owner.
pub fn domain(owner: &str) -> &str {
    owner.split_once('@').map_or(owner, |(_, domain)| domain)
}

/// Checks what RFC 6121 §2.3.3 and our limits ask of an item; its JID is prepared and made bare.
pub fn checked(owner: &str, item: Option<Item>, config: &Config) -> Result<Item, ApiError> {
    let item = item.ok_or_else(|| ApiError::invalid("item is missing"))?;
    let jid = chancery_xmpp::jid::parse(&item.jid)
        .map_err(|_| ApiError::invalid("jid of the item is malformed"))?
        .to_bare()
        .to_string();
    if jid == owner {
        return Err(ApiError::invalid("an item for the owner himself"));
    }
    if item.name.len() > NAME_LIMIT_BYTES {
        return Err(ApiError::invalid("name is longer than 1023 bytes"));
    }
    if item.groups.len() > config.groups {
        return Err(ApiError::resource("too many groups"));
    }
    let mut groups = item.groups;
    for group in &groups {
        if group.is_empty() || group.len() > GROUP_LIMIT_BYTES {
            return Err(ApiError::invalid("a group must have 1 to 1023 bytes"));
        }
    }
    if !item
        .name
        .chars()
        .chain(groups.iter().flat_map(|group| group.chars()))
        .all(is_xml_char)
    {
        return Err(ApiError::invalid("a character that xml does not know"));
    }
    groups.sort_unstable();
    let before = groups.len();
    groups.dedup();
    if groups.len() != before {
        return Err(ApiError::invalid("the same group twice"));
    }
    Ok(Item {
        jid,
        groups,
        ..item
    })
}

/// `subscription` as written in XML; `None` where there is none.
pub fn subscription_name(subscription: Subscription) -> Option<&'static str> {
    match subscription {
        Subscription::Unspecified => None,
        Subscription::None => Some("none"),
        Subscription::To => Some("to"),
        Subscription::From => Some("from"),
        Subscription::Both => Some("both"),
        Subscription::Remove => Some("remove"),
    }
}

/// The payload of a roster push (RFC 6121 §2.1.6), without `to`: that is each session's own.
pub fn push(owner: &str, id: &str, version: &str, item: &Item) -> String {
    let mut query = String::with_capacity(128 + item.name.len());
    query.push_str("<query xmlns='jabber:iq:roster'");
    push_attr(&mut query, "ver", version);
    query.push('>');
    write(&mut query, item);
    query.push_str("</query>");
    iq(owner, id, &query)
}

/// A push with this payload, without `to`.
pub fn iq(owner: &str, id: &str, payload: &str) -> String {
    let mut out = String::with_capacity(128 + payload.len());
    out.push_str("<iq xmlns='jabber:client' type='set'");
    push_attr(&mut out, "id", id);
    push_attr(&mut out, "from", owner);
    out.push('>');
    out.push_str(payload);
    out.push_str("</iq>");
    out
}

/// A stanza of the handshake without any content.
pub fn presence(act: Act, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(96 + from.len() + to.len());
    out.push_str("<presence xmlns='jabber:client'");
    push_attr(&mut out, "type", act.as_str());
    push_attr(&mut out, "from", from);
    push_attr(&mut out, "to", to);
    out.push_str("/>");
    out
}

fn write(out: &mut String, item: &Item) {
    out.push_str("<item");
    push_attr(out, "jid", &item.jid);
    if let Some(subscription) = subscription_name(item.subscription()) {
        push_attr(out, "subscription", subscription);
    }
    if item.subscription() == Subscription::Remove {
        out.push_str("/>");
        return;
    }
    if !item.name.is_empty() {
        push_attr(out, "name", &item.name);
    }
    if item.ask {
        push_attr(out, "ask", "subscribe");
    }
    if item.approved {
        push_attr(out, "approved", "true");
    }
    if item.groups.is_empty() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    for group in &item.groups {
        out.push_str("<group>");
        escape_text(out, group);
        out.push_str("</group>");
    }
    out.push_str("</item>");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use chancery_api::Code;

    fn item(jid: &str) -> Item {
        Item {
            jid: jid.into(),
            ..Item::default()
        }
    }

    #[test]
    fn items_are_prepared() {
        let asked = Item {
            groups: vec!["Work".into(), "Friends".into()],
            ..item("BOB@Example.test/phone")
        };
        let got = checked("alice@a.test", Some(asked), &Config::default()).unwrap();
        assert_eq!(got.jid, "bob@example.test");
        assert_eq!(got.groups, ["Friends", "Work"]);
        assert!(checked("alice@a.test", Some(item("icq.a.test")), &Config::default()).is_ok());
    }

    #[test]
    fn bad_items_are_refused() {
        let long = |bytes| "x".repeat(bytes);
        let bob = || item("bob@a.test");
        let groups = |groups: Vec<String>| Item { groups, ..bob() };
        let cases = [
            ("none", None, Code::Invalid),
            ("no jid", Some(item("")), Code::Invalid),
            ("bad jid", Some(item("@a.test")), Code::Invalid),
            ("self", Some(item("ALICE@a.test/r")), Code::Invalid),
            (
                "name",
                Some(Item {
                    name: long(1_024),
                    ..bob()
                }),
                Code::Invalid,
            ),
            (
                "control",
                Some(Item {
                    name: "a\u{1}".into(),
                    ..bob()
                }),
                Code::Invalid,
            ),
            (
                "empty group",
                Some(groups(vec![String::new()])),
                Code::Invalid,
            ),
            ("long group", Some(groups(vec![long(1_024)])), Code::Invalid),
            (
                "twice",
                Some(groups(vec!["g".into(), "g".into()])),
                Code::Invalid,
            ),
            (
                "many",
                Some(groups((0..65).map(|n| n.to_string()).collect())),
                Code::Resource,
            ),
        ];
        for (what, item, code) in cases {
            let error = checked("alice@a.test", item, &Config::default()).unwrap_err();
            assert_eq!(error.code, code, "{what}");
        }
        for bad in ["a.test", "a@a.test/r", "", "@"] {
            assert!(owner(bad).is_err(), "{bad:?}");
        }
        assert_eq!(owner("A@a.test").unwrap(), "a@a.test");
    }

    #[test]
    fn a_push_is_one_well_formed_stanza_whatever_is_in_it() {
        let evil = "'/><item jid=\"ceo@a.test\" subscription='both'/>&";
        let asked = Item {
            name: evil.into(),
            subscription: Subscription::To.into(),
            ask: true,
            approved: true,
            groups: vec![evil.into()],
            ..item("bob@a.test")
        };
        let payload = push("alice@a.test", "push-1", "7", &asked);
        let bytes = bytes::Bytes::from(payload.clone());
        let element = chancery_xml::scan(&bytes, &chancery_xml::Limits::after_auth()).unwrap();
        assert!(element.is("iq", "jabber:client"));
        assert_eq!(element.header.from.as_deref(), Some("alice@a.test"));
        assert_eq!(element.header.to, None);
        let query = element.child("query", "jabber:iq:roster").unwrap();
        assert_eq!(query.attr("ver"), Some("7"));
        assert_eq!(query.children.len(), 1);
        let sent = &query.children[0];
        assert_eq!(sent.attr("name"), Some(evil));
        assert_eq!(sent.attr("subscription"), Some("to"));
        assert_eq!(sent.attr("ask"), Some("subscribe"));
        assert!(payload.contains("<group>") && !payload.contains("<item jid=\"ceo"));
        let gone = Item {
            subscription: Subscription::Remove.into(),
            ..asked
        };
        let payload = push("alice@a.test", "push-2", "8", &gone);
        assert!(
            payload.contains("<item jid='bob@a.test' subscription='remove'/>"),
            "{payload}"
        );
    }
}
