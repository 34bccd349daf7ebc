//! The published list of what is exempt from recording: signals that carry no content.
//!
//! A stanza is exempt only if *every* child is on the list, with only its known attributes, each
//! value at most [`VALUE_BYTES_MAX`] bytes without spaces, and with no text but the few forms
//! named here. Everything unknown is recorded. Refuses to know who asks for silence: hints and
//! preferences have no say.

use std::fmt::Write as _;

use chancery_xml::{Attr, Child, Element};

use crate::error::Condition;
use crate::ns;
use crate::stanza::{Kind, StanzaHeader};

/// Longest attribute value or text of an exempt stanza.
pub const VALUE_BYTES_MAX: usize = 64;
/// Most elements below the root of an exempt stanza: many short values are content again.
pub const ELEMENTS_MAX: usize = 128;

/// Text that an item may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    None,
    OneOf(&'static [&'static str]),
    /// An integer from -128 to 127.
    Priority,
    /// A hash in hexadecimal or base64.
    Hash,
    /// A date, a time, an offset.
    Timestamp,
}

/// An element on the list.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub ns: &'static str,
    /// Names in this namespace.
    pub names: &'static [&'static str],
    pub attrs: &'static [&'static str],
    pub text: Text,
    /// Elements allowed inside; those hold none themselves.
    pub inner: &'static [Item],
}

impl Item {
    const fn of(ns: &'static str, names: &'static [&'static str]) -> Self {
        Self {
            ns,
            names,
            attrs: &[],
            text: Text::None,
            inner: &[],
        }
    }

    const fn attrs(mut self, attrs: &'static [&'static str]) -> Self {
        self.attrs = attrs;
        self
    }

    const fn text(mut self, text: Text) -> Self {
        self.text = text;
        self
    }

    const fn inner(mut self, inner: &'static [Self]) -> Self {
        self.inner = inner;
        self
    }
}

const CHAT_STATES: &[&str] = &["active", "composing", "paused", "inactive", "gone"];
/// `store` asks that there be a record.
const HINTS: &[&str] = &["no-store", "no-permanent-store", "no-copy"];
const SHOWS: &[&str] = &["away", "chat", "dnd", "xa"];

/// Children of exempt messages; a message without any child is recorded.
pub const MESSAGE: &[Item] = &[
    Item::of(ns::CHAT_STATES, CHAT_STATES),
    Item::of(ns::HINTS, HINTS),
    Item::of(ns::CARBONS, &["private"]),
    Item::of(ns::SID, &["origin-id"]).attrs(&["id"]),
];

/// Children of exempt presence.
pub const PRESENCE: &[Item] = &[
    Item::of(ns::CLIENT, &["show"]).text(Text::OneOf(SHOWS)),
    Item::of(ns::CLIENT, &["priority"]).text(Text::Priority),
    Item::of(ns::CAPS, &["c"]).attrs(&["hash", "node", "ver", "ext"]),
    Item::of(ns::CAPS2, &["c"]).inner(&[Item::of(ns::HASHES, &["hash"])
        .attrs(&["algo"])
        .text(Text::Hash)]),
    Item::of(ns::VCARD_UPDATE, &["x"])
        .inner(&[Item::of(ns::VCARD_UPDATE, &["photo"]).text(Text::Hash)]),
    Item::of(ns::IDLE, &["idle"]).attrs(&["since"]),
    Item::of(ns::DELAY, &["delay"]).attrs(&["from", "stamp"]),
    Item::of(ns::MUC, &["x"]).inner(&[Item::of(ns::MUC, &["history"]).attrs(&[
        "maxchars",
        "maxstanzas",
        "seconds",
        "since",
    ])]),
    ERROR,
];

/// Payloads of exempt IQs.
pub const IQ: &[Item] = &[
    Item::of(ns::PING, &["ping"]),
    Item::of(ns::VERSION, &["query"]),
    Item::of(ns::TIME, &["time"])
        .inner(&[Item::of(ns::TIME, &["tzo", "utc"]).text(Text::Timestamp)]),
    Item::of(ns::LAST, &["query"]).attrs(&["seconds"]),
    // Only a question, or an answer that there is nothing.
    Item::of(ns::VCARD, &["vCard"]),
    Item::of(ns::DISCO_INFO, &["query"])
        .attrs(&["node"])
        .inner(&[
            Item::of(ns::DISCO_INFO, &["identity"])
                .attrs(&["category", "type", "name", "xml:lang"]),
            Item::of(ns::DISCO_INFO, &["feature"]).attrs(&["var"]),
        ]),
    Item::of(ns::DISCO_ITEMS, &["query"])
        .attrs(&["node"])
        .inner(&[Item::of(ns::DISCO_ITEMS, &["item"]).attrs(&["jid", "node", "name"])]),
    ERROR,
];

/// An error that says nothing but its condition (RFC 6120 §8.3).
const ERROR: Item = Item::of(ns::CLIENT, &["error"])
    .attrs(&["type", "by", "code"])
    .inner(&[Item::of(ns::STANZA_ERRORS, CONDITIONS)]);

const CONDITIONS: &[&str] = &{
    let mut names = [""; Condition::ALL.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = Condition::ALL[at].as_str();
        at += 1;
    }
    names
};

/// Whether this stanza need not be recorded.
pub fn is_exempt(element: &Element, header: &StanzaHeader) -> bool {
    let raw = &element.header;
    let list = match header.kind() {
        Kind::Message if raw.children.is_empty() => return false,
        Kind::Message => MESSAGE,
        Kind::Presence => PRESENCE,
        Kind::Iq => IQ,
    };
    let known_type = matches!(
        (header.kind(), raw.type_.as_deref()),
        (Kind::Presence | Kind::Iq, _)
            | (
                Kind::Message,
                None | Some("normal" | "chat" | "headline" | "groupchat" | "error")
            )
    );
    let mut budget = ELEMENTS_MAX;
    known_type
        && !raw.has_text
        && raw.attrs.is_empty()
        && raw.id.as_deref().is_none_or(is_short)
        && raw.lang.as_deref().is_none_or(is_short)
        && raw
            .children
            .iter()
            .all(|child| is_listed(element, child, list, &mut budget))
}

fn is_listed(element: &Element, child: &Child, list: &[Item], budget: &mut usize) -> bool {
    let Some(left) = budget.checked_sub(1) else {
        return false;
    };
    *budget = left;
    // the words of the two content namespaces are the same (RFC 6120 §4.8.2)
    let ns = if &*child.ns == ns::SERVER {
        ns::CLIENT
    } else {
        &*child.ns
    };
    let same = |item: &&Item| item.ns == ns && item.names.contains(&&*child.name);
    let Some(item) = list.iter().find(same) else {
        return false;
    };
    let inside = if item.inner.is_empty() {
        !child.has_elements
    } else {
        // what lies deeper than the header shows is not listed
        child
            .children
            .iter()
            .all(|inner| is_listed(element, inner, item.inner, budget))
            && (!child.has_elements || !child.children.is_empty())
    };
    inside
        && child.attrs.iter().all(|attr| is_known(attr, item.attrs))
        && (!child.has_text || is_allowed(&element.child_text(child), item.text))
}

fn is_known(attr: &Attr, known: &[&str]) -> bool {
    let named = match attr.ns.as_deref() {
        None => known.contains(&&*attr.name),
        Some(ns::XML) => &*attr.name == "lang" && known.contains(&"xml:lang"),
        Some(_) => false,
    };
    named && is_short(&attr.value)
}

fn is_short(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX && !value.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn is_allowed(text: &str, form: Text) -> bool {
    let made_of = |legal: fn(char) -> bool| is_short(text) && text.chars().all(legal);
    match form {
        Text::None => false,
        Text::OneOf(words) => words.contains(&text),
        Text::Priority => text.len() <= 4 && text.parse::<i8>().is_ok(),
        Text::Hash => made_of(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')),
        Text::Timestamp => {
            made_of(|c| c.is_ascii_digit() || matches!(c, '-' | '+' | ':' | '.' | 'T' | 'Z'))
        }
    }
}

/// The list as a table for the manual.
pub fn markdown() -> String {
    let mut out =
        String::from("| stanza | child | namespace | attributes | text |\n|---|---|---|---|---|\n");
    for (stanza, list) in [("message", MESSAGE), ("presence", PRESENCE), ("iq", IQ)] {
        for item in list {
            write_row(&mut out, stanza, "", item);
            for inner in item.inner {
                write_row(&mut out, stanza, "in it ", inner);
            }
        }
    }
    out
}

fn write_row(out: &mut String, stanza: &str, place: &str, item: &Item) {
    let names: Vec<_> = item
        .names
        .iter()
        .map(|name| format!("`<{name}/>`"))
        .collect();
    let attrs: Vec<_> = item.attrs.iter().map(|attr| format!("`{attr}`")).collect();
    let text = match item.text {
        Text::None => "none".to_owned(),
        Text::OneOf(words) => words.join(", "),
        Text::Priority => "-128 to 127".to_owned(),
        Text::Hash => "a hash".to_owned(),
        Text::Timestamp => "a timestamp".to_owned(),
    };
    // writing to a String cannot fail
    let _ = writeln!(
        out,
        "| {stanza} | {place}{} | `{}` | {} | {text} |",
        names.join(" "),
        item.ns,
        attrs.join(" ")
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use chancery_xml::{Limits, scan};

    fn exempt(xml: &str) -> bool {
        let element = scan(
            &Bytes::copy_from_slice(xml.as_bytes()),
            &Limits::after_auth(),
        )
        .unwrap();
        is_exempt(&element, &StanzaHeader::read(&element).unwrap())
    }

    fn check(expected: bool, cases: &[&str]) {
        for xml in cases {
            assert_eq!(exempt(xml), expected, "{xml}");
        }
    }

    #[test]
    fn signals_are_exempt() {
        check(
            true,
            &[
                "<message type='chat' id='1'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message><paused xmlns='http://jabber.org/protocol/chatstates'/><no-store xmlns='urn:xmpp:hints'/>\
             <origin-id xmlns='urn:xmpp:sid:0' id='a'/></message>",
                "<presence/>",
                "<presence type='unavailable'/>",
                "<presence type='subscribe' to='a@b'/>",
                "<presence><show>dnd</show><priority>-1</priority>\
             <c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://x.test' ver='aGk='/>\
             <x xmlns='vcard-temp:x:update'><photo>0123abcd</photo></x></presence>",
                "<c:presence xmlns:c='jabber:client'><c:show>away</c:show></c:presence>",
                "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
                "<iq type='result' id='1'/>",
                "<iq type='get' id='1'><query xmlns='http://jabber.org/protocol/disco#info' node='a#b'/></iq>",
                "<iq type='result' id='1'><query xmlns='http://jabber.org/protocol/disco#info'>\
             <identity category='client' type='pc' name='Gajim' xml:lang='en'/><feature var='urn:x'/></query></iq>",
                "<iq type='result' id='1'><time xmlns='urn:xmpp:time'><tzo>+01:00</tzo>\
             <utc>2026-01-01T00:00:00Z</utc></time></iq>",
                "<iq type='error' id='1'><ping xmlns='urn:xmpp:ping'/><error type='cancel'>\
             <service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>",
            ],
        );
    }

    #[test]
    fn content_in_any_place_is_recorded() {
        let long = format!(
            "<message id='{}'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
            "x".repeat(65)
        );
        let many = format!(
            "<iq type='result' id='1'><query xmlns='http://jabber.org/protocol/disco#info'>{}</query></iq>",
            "<feature var='word'/>".repeat(ELEMENTS_MAX)
        );
        check(
            false,
            &[
                &long,
                &many,
                "<message/>",
                "<message type='secret'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message x='secret'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message id='a b'><active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message>secret<active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message> <active xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates'>secret</active></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates' x='secret'/></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates' xmlns:p='u' p:x='1'/></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates'><b/></active></message>",
                "<message><secret xmlns='http://jabber.org/protocol/chatstates'/></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates'/><body/></message>",
                "<message><active xmlns='http://jabber.org/protocol/chatstates'/><thread>secret</thread></message>",
                "<message><received xmlns='urn:xmpp:receipts' id='1'/></message>",
                "<message><displayed xmlns='urn:xmpp:chat-markers:0' id='1'/></message>",
                "<message><body>x</body><no-store xmlns='urn:xmpp:hints'/></message>",
                "<presence><status/></presence>",
                "<presence><show>secret</show></presence>",
                "<presence><show xmlns='u'>away</show></presence>",
                "<presence><priority>+0000001</priority></presence>",
                "<presence><c xmlns='http://jabber.org/protocol/caps' node='meet at noon'/></presence>",
                "<presence><nick xmlns='http://jabber.org/protocol/nick'>x</nick></presence>",
                "<presence><x xmlns='http://jabber.org/protocol/muc'><password>x</password></x></presence>",
                "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'>secret</ping></iq>",
                "<iq type='set' id='1'><data xmlns='http://jabber.org/protocol/ibb'>eA==</data></iq>",
                "<iq type='result' id='1'><query xmlns='jabber:iq:version'><name>x</name></query></iq>",
                "<iq type='get' id='1'><query xmlns='jabber:iq:private'/></iq>",
                "<iq type='result' id='1'><query xmlns='http://jabber.org/protocol/disco#info'>\
             <identity category='client' type='pc' name='meet at noon'/></query></iq>",
                "<iq type='result' id='1'><query xmlns='http://jabber.org/protocol/disco#info'>\
             <feature var='a'><deep/></feature></query></iq>",
                "<iq type='result' id='1'><time xmlns='urn:xmpp:time'><tzo>meet</tzo></time></iq>",
                "<iq type='error' id='1'><error type='cancel'><service-unavailable \
             xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>\
             secret</text></error></iq>",
                "<iq type='error' id='1'><error type='cancel'><gone \
             xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>secret</gone></error></iq>",
            ],
        );
    }

    #[test]
    fn the_table_is_whole() {
        let rows: usize = [MESSAGE, PRESENCE, IQ]
            .iter()
            .flat_map(|list| list.iter())
            .map(|item| 1 + item.inner.len())
            .sum();
        assert_eq!(markdown().lines().count(), rows + 2);
    }
}
