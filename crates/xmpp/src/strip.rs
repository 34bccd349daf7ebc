//! The published list of what only a server may say, and what happens when a client says it.
//!
//! Owns the list and its application to one stanza. Refuses to edit: the caller splices.

use std::fmt::Write as _;

use chancery_xml::{Child, Element};

use crate::error::{Condition, StanzaError};
use crate::jid;
use crate::ns;
use crate::stanza::{Kind, kind_of};

/// What is done with a child on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The child is removed, the stanza goes on.
    Remove,
    /// The stanza is answered `forbidden`.
    Refuse,
}

/// When a child on the list is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// This attribute is missing, is no address, or names a local domain or an entity of one.
    Claims(&'static str),
    /// This attribute names a local domain or an entity of one, or is no address.
    ClaimsIfPresent(&'static str),
    /// One of these elements is inside, in the same namespace.
    Contains(&'static [&'static str]),
}

/// One row of the list.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub name: &'static str,
    pub ns: &'static str,
    pub when: When,
    pub action: Action,
    pub why: &'static str,
}

/// The list. It holds for direct children of messages and presence.
pub const STRIPPED: &[Rule] = &[
    Rule {
        name: "stanza-id",
        ns: ns::SID,
        when: When::Claims("by"),
        action: Action::Remove,
        why: "XEP-0359 §5: only the entity named assigns its ids",
    },
    Rule {
        name: "occupant-id",
        ns: ns::OCCUPANT_ID,
        when: When::Always,
        action: Action::Remove,
        why: "XEP-0421 §4: only a room assigns them",
    },
    Rule {
        name: "delay",
        ns: ns::DELAY,
        when: When::ClaimsIfPresent("from"),
        action: Action::Remove,
        why: "XEP-0203 §7: back-dating in a server's name",
    },
    Rule {
        name: "x",
        ns: ns::LEGACY_DELAY,
        when: When::ClaimsIfPresent("from"),
        action: Action::Remove,
        why: "XEP-0091: the same in its old form",
    },
    Rule {
        name: "x",
        ns: ns::MUC_USER,
        when: When::Contains(&["item", "status", "destroy"]),
        action: Action::Remove,
        why: "XEP-0045 §7, XEP-0313: only a room tells who is who",
    },
    Rule {
        name: "received",
        ns: ns::CARBONS,
        when: When::Always,
        action: Action::Refuse,
        why: "XEP-0280 §11: a forged carbon",
    },
    Rule {
        name: "sent",
        ns: ns::CARBONS,
        when: When::Always,
        action: Action::Refuse,
        why: "XEP-0280 §11: a forged carbon",
    },
    Rule {
        name: "result",
        ns: ns::MAM,
        when: When::Always,
        action: Action::Refuse,
        why: "XEP-0313 §10: a forged page of an archive",
    },
];

/// Which children of a client's stanza must be removed, by index; or why it is refused.
///
/// `is_local` is asked with a normalised domainpart.
pub fn strip(
    element: &Element,
    is_local: &dyn Fn(&str) -> bool,
) -> Result<Vec<usize>, StanzaError> {
    let mut remove = Vec::new();
    // an IQ has one payload, and every handler checks whom it is from
    if !matches!(kind_of(element), Some(Kind::Message | Kind::Presence)) {
        return Ok(remove);
    }
    for (index, child) in element.header.children.iter().enumerate() {
        let mut rules = STRIPPED
            .iter()
            .filter(|rule| applies(rule, child, is_local));
        match rules.next().map(|rule| rule.action) {
            Some(Action::Remove) => remove.push(index),
            Some(Action::Refuse) => return Err(StanzaError::new(Condition::Forbidden)),
            None => {}
        }
    }
    Ok(remove)
}

fn applies(rule: &Rule, child: &Child, is_local: &dyn Fn(&str) -> bool) -> bool {
    if !child.is(rule.name, rule.ns) {
        return false;
    }
    let local = |raw: &str| jid::parse(raw).map_or(true, |jid| is_local(jid.domain().as_str()));
    match rule.when {
        When::Always => true,
        When::Claims(attr) => child.attr(attr).is_none_or(local),
        When::ClaimsIfPresent(attr) => child.attr(attr).is_some_and(local),
        When::Contains(names) => child
            .children
            .iter()
            .any(|inner| names.iter().any(|name| inner.is(name, rule.ns))),
    }
}

/// The list as a table for the manual.
pub fn markdown() -> String {
    let mut out =
        String::from("| child | namespace | when | then | why |\n|---|---|---|---|---|\n");
    for rule in STRIPPED {
        let when = match rule.when {
            When::Always => "always".to_owned(),
            When::Claims(attr) => format!("`{attr}` is local, missing or malformed"),
            When::ClaimsIfPresent(attr) => format!("`{attr}` is local or malformed"),
            When::Contains(names) => format!("it holds one of `{}`", names.join(" ")),
        };
        let then = match rule.action {
            Action::Remove => "removed",
            Action::Refuse => "stanza refused, `forbidden`",
        };
        // writing to a String cannot fail
        let _ = writeln!(
            out,
            "| `<{}/>` | `{}` | {when} | {then} | {} |",
            rule.name, rule.ns, rule.why
        );
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use chancery_xml::{Limits, scan};

    fn check(children: &str) -> Result<Vec<usize>, Condition> {
        let xml = format!("<message>{children}</message>");
        let element = scan(&Bytes::from(xml), &Limits::after_auth()).unwrap();
        strip(&element, &|domain| domain == "example.test").map_err(|error| error.condition)
    }

    #[test]
    fn e4_e5_wrappers_are_refused() {
        let forwarded =
            "<forwarded xmlns='urn:xmpp:forward:0'><message from='ceo@example.test'/></forwarded>";
        for wrapper in [
            "received xmlns='urn:xmpp:carbons:2'",
            "sent xmlns='urn:xmpp:carbons:2'",
        ] {
            let name = wrapper.split(' ').next().unwrap();
            let xml = format!("<body/><{wrapper}>{forwarded}</{name}>");
            assert_eq!(check(&xml), Err(Condition::Forbidden));
        }
        let result = "<result xmlns='urn:xmpp:mam:2' queryid='q1' id='1'/>";
        assert_eq!(check(result), Err(Condition::Forbidden));
        // prefixed and in a prefixed stanza, it is the same
        assert_eq!(
            check("<c:sent xmlns:c='urn:xmpp:carbons:2'/>"),
            Err(Condition::Forbidden)
        );
        assert_eq!(check(forwarded), Ok(vec![]));
    }

    #[test]
    fn e6_all_forged_ids_go() {
        let forged = "<stanza-id xmlns='urn:xmpp:sid:0' by='alice@example.test' id='z'/>";
        let occupant = "<occupant-id xmlns='urn:xmpp:occupant-id:0' id='z'/>";
        let xml = format!("{forged}<body/>{forged}{occupant}{occupant}");
        assert_eq!(check(&xml), Ok(vec![0, 2, 3, 4]));
        for by in [
            "by='Example.Test.'",
            "",
            "by=''",
            "by='@'",
            "by='ALICE@EXAMPLE.TEST/x'",
        ] {
            let xml = format!("<stanza-id xmlns='urn:xmpp:sid:0' {by} id='z'/>");
            assert_eq!(check(&xml), Ok(vec![0]), "{by}");
        }
        assert_eq!(
            check("<stanza-id xmlns='urn:xmpp:sid:0' by='a@other.test' id='z'/>"),
            Ok(vec![])
        );
        assert_eq!(
            check("<origin-id xmlns='urn:xmpp:sid:0' id='z'/>"),
            Ok(vec![])
        );
    }

    #[test]
    fn e8_delays_in_our_name_go() {
        let delay = |from: &str| {
            check(&format!(
                "<delay xmlns='urn:xmpp:delay' {from} stamp='2001-01-01T00:00:00Z'/>"
            ))
        };
        assert_eq!(delay("from='example.test'"), Ok(vec![0]));
        assert_eq!(delay("from='bob@example.test/r'"), Ok(vec![0]));
        assert_eq!(delay("from='other.test'"), Ok(vec![]));
        assert_eq!(delay(""), Ok(vec![]));
    }

    #[test]
    fn e12_room_data_goes_and_invitations_stay() {
        let x = |inner: &str| {
            check(&format!(
                "<x xmlns='http://jabber.org/protocol/muc#user'>{inner}</x>"
            ))
        };
        assert_eq!(x("<item jid='ceo@example.test'/>"), Ok(vec![0]));
        assert_eq!(x("<status code='110'/>"), Ok(vec![0]));
        assert_eq!(x("<invite to='a@b'/>"), Ok(vec![]));
        assert_eq!(x(""), Ok(vec![]));
    }

    #[test]
    fn the_table_is_whole() {
        let table = markdown();
        assert_eq!(table.lines().count(), STRIPPED.len() + 2);
        assert!(table.contains(
            "| `<stanza-id/>` | `urn:xmpp:sid:0` | `by` is local, missing or malformed | removed |"
        ));
    }
}
