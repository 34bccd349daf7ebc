//! Who gets a stanza: RFC 6121 §8.5, XEP-0280 §5 to §8 and XEP-0160 as one pure table.
//!
//! Owns the decision over attached sessions. Refuses to own the sessions, the stanza's bytes and
//! what was decided before (policy, blocking).
//!
//! Choices where the standards leave one:
//!
//! - *Most available* (RFC 6121 §8.5.2.1.1) is every session with the highest priority that is not
//!   negative, ties included; the others follow by carbons.
//! - A carbon is the copy of a delivery: when nobody gets the original, nobody gets a carbon, and
//!   the message waits. So a session with a negative priority loses nothing when it is raised.
//! - Carbons do not ask for presence (XEP-0280 §4: enabling them is enough).
//! - `normal` and `groupchat` to a full JID that is not there are bounced, not dropped
//!   (RFC 6121 §8.5.3.2.1 allows both); `chat` goes on to the bare JID.

use std::fmt::Write as _;

use crate::stanza::{IqType, MessageType, PresenceType, StanzaType};

/// What the table must know of a stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    pub type_: StanzaType,
    pub has_body: bool,
    /// Eligible for carbons (XEP-0280 §6.1).
    pub carbon: bool,
    /// A private message through a room (XEP-0045 §7.5).
    pub muc_private: bool,
    /// Kept for later when nobody is there (XEP-0160).
    pub keep: bool,
}

/// One attached session of the mailbox's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionState<'a> {
    pub resource: &'a str,
    /// Sent initial presence and no unavailable since.
    pub available: bool,
    pub priority: i8,
    pub carbons: bool,
    /// Requested the roster (RFC 6121 §2.2).
    pub interested: bool,
}

/// What one session gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    Nothing,
    Original,
    CarbonReceived,
    CarbonSent,
}

/// What happens when no session gets the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nobody {
    /// The entry stays open (XEP-0160).
    KeepOpen,
    /// The sender gets `service-unavailable`.
    Bounce,
    Drop,
    /// The account's own handler decides (IQ to the bare JID, probe, subscription).
    Server,
}

/// What became of a stanza as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Delivered,
    Nobody(Nobody),
}

/// The decision for one stanza and one mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Parallel to the sessions given.
    pub deliveries: Vec<Delivery>,
    pub outcome: Outcome,
    /// The entry is open until a session acknowledges it.
    pub born_open: bool,
}

/// Which sessions get the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    None,
    /// All with the highest priority that is not negative.
    MostAvailable,
    /// All available with a priority that is not negative.
    NonNegative,
    Available,
    Interested,
}

/// A row of the table for bare JIDs.
#[derive(Clone, Copy, Debug)]
struct Row {
    audience: Audience,
    nobody: Nobody,
    clause: &'static str,
}

const fn row(audience: Audience, nobody: Nobody, clause: &'static str) -> Row {
    Row {
        audience,
        nobody,
        clause,
    }
}

/// Stanza to the bare JID.
fn bare(facts: Facts) -> Row {
    use Audience::{Available, Interested, MostAvailable, NonNegative, None};
    match facts.type_ {
        StanzaType::Message(type_) => match type_ {
            MessageType::Normal | MessageType::Chat => row(
                MostAvailable,
                unread(facts),
                "RFC 6121 §8.5.2.1.1, §8.5.2.2.1; XEP-0160 §3",
            ),
            MessageType::Headline => {
                row(NonNegative, Nobody::Drop, "RFC 6121 §8.5.2.1.1, §8.5.2.2.1")
            }
            MessageType::Groupchat => row(None, Nobody::Bounce, "RFC 6121 §8.5.2.1.1"),
            MessageType::Error => row(None, Nobody::Drop, "RFC 6121 §8.5.2.1.1"),
        },
        StanzaType::Presence(type_) => match type_ {
            PresenceType::Available | PresenceType::Unavailable => {
                row(Available, Nobody::Drop, "RFC 6121 §8.5.2.1.2, §8.5.2.2.2")
            }
            PresenceType::Subscribe => row(Available, Nobody::Server, "RFC 6121 §3.1.3"),
            PresenceType::Subscribed | PresenceType::Unsubscribe | PresenceType::Unsubscribed => {
                row(
                    Interested,
                    Nobody::Server,
                    "RFC 6121 §3.1.6, §3.2.3, §3.3.3",
                )
            }
            PresenceType::Probe => row(None, Nobody::Server, "RFC 6121 §4.3.2"),
            PresenceType::Error => row(None, Nobody::Drop, "RFC 6121 §8.5.2.1.2"),
        },
        StanzaType::Iq(IqType::Get | IqType::Set) => {
            row(None, Nobody::Server, "RFC 6121 §8.5.2.1.3, §8.5.2.2.3")
        }
        StanzaType::Iq(IqType::Result | IqType::Error) => {
            row(None, Nobody::Drop, "RFC 6120 §8.2.3")
        }
    }
}

/// Stanza to a full JID that no session has: `None` sends it on to the bare JID.
fn absent(facts: Facts) -> Option<(Nobody, &'static str)> {
    match facts.type_ {
        StanzaType::Message(type_) => match type_ {
            MessageType::Chat => None,
            MessageType::Normal | MessageType::Groupchat => {
                Some((Nobody::Bounce, "RFC 6121 §8.5.3.2.1"))
            }
            MessageType::Headline | MessageType::Error => {
                Some((Nobody::Drop, "RFC 6121 §8.5.3.2.1"))
            }
        },
        StanzaType::Presence(type_) => match type_ {
            // RFC 6121 §3.1.2: subscription is between bare JIDs
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed => None,
            PresenceType::Probe => Some((Nobody::Server, "RFC 6121 §4.3.2")),
            PresenceType::Available | PresenceType::Unavailable | PresenceType::Error => {
                Some((Nobody::Drop, "RFC 6121 §8.5.3.2.2"))
            }
        },
        StanzaType::Iq(IqType::Get | IqType::Set) => Some((Nobody::Bounce, "RFC 6121 §8.5.3.2.3")),
        StanzaType::Iq(IqType::Result | IqType::Error) => Some((Nobody::Drop, "RFC 6120 §8.2.3")),
    }
}

/// A conversation's message that no session gets.
fn unread(facts: Facts) -> Nobody {
    if facts.keep {
        Nobody::KeepOpen
    } else if facts.has_body {
        // XEP-0334 §4.1: not to be kept; then the sender must know that nobody got it
        Nobody::Bounce
    } else {
        Nobody::Drop
    }
}

/// The recipient's side.
pub fn received(facts: Facts, to_resource: Option<&str>, sessions: &[SessionState<'_>]) -> Plan {
    plan(facts, to_resource, sessions, Delivery::CarbonReceived)
}

/// Both sides in one, when somebody writes to the own account: one entry, and whoever would get a
/// carbon gets the original.
pub fn to_self(facts: Facts, to_resource: Option<&str>, sessions: &[SessionState<'_>]) -> Plan {
    plan(facts, to_resource, sessions, Delivery::Original)
}

/// The sender's side: the other sessions' carbons (XEP-0280 §8).
pub fn sent(facts: Facts, sender_resource: &str, sessions: &[SessionState<'_>]) -> Vec<Delivery> {
    let copy = |session: &SessionState<'_>| {
        if facts.carbon && session.carbons && session.resource != sender_resource {
            Delivery::CarbonSent
        } else {
            Delivery::Nothing
        }
    };
    sessions.iter().map(copy).collect()
}

fn plan(
    facts: Facts,
    to_resource: Option<&str>,
    sessions: &[SessionState<'_>],
    copy: Delivery,
) -> Plan {
    let born_open = facts.keep;
    let mut deliveries = vec![Delivery::Nothing; sessions.len()];
    let exact = to_resource.and_then(|resource| {
        sessions
            .iter()
            .position(|session| session.resource == resource)
    });
    let nobody = match (exact, to_resource.and_then(|_| absent(facts))) {
        (Some(at), _) => {
            // RFC 6121 §8.5.3.1: a connected resource gets it, whatever its presence
            deliveries[at] = Delivery::Original;
            Nobody::Drop
        }
        (None, Some((nobody, _))) => nobody,
        (None, None) => {
            let row = bare(facts);
            address(row.audience, sessions, &mut deliveries);
            row.nobody
        }
    };
    if !deliveries.contains(&Delivery::Original) {
        let born_open = born_open && nobody == Nobody::KeepOpen;
        return Plan {
            deliveries,
            outcome: Outcome::Nobody(nobody),
            born_open,
        };
    }
    // XEP-0280 §6.1: a room replicates its private messages itself
    if facts.carbon && !facts.muc_private {
        for (delivery, session) in deliveries.iter_mut().zip(sessions) {
            if *delivery == Delivery::Nothing && session.carbons {
                *delivery = copy;
            }
        }
    }
    Plan {
        deliveries,
        outcome: Outcome::Delivered,
        born_open,
    }
}

fn address(audience: Audience, sessions: &[SessionState<'_>], deliveries: &mut [Delivery]) {
    let eligible = |session: &SessionState<'_>| session.available && session.priority >= 0;
    let top = sessions
        .iter()
        .filter(|session| eligible(session))
        .map(|s| s.priority)
        .max();
    for (delivery, session) in deliveries.iter_mut().zip(sessions) {
        let named = match audience {
            Audience::None => false,
            Audience::MostAvailable => eligible(session) && Some(session.priority) == top,
            Audience::NonNegative => eligible(session),
            Audience::Available => session.available,
            Audience::Interested => session.interested,
        };
        if named {
            *delivery = Delivery::Original;
        }
    }
}

/// Every stanza type.
const TYPES: [StanzaType; 17] = [
    StanzaType::Message(MessageType::Normal),
    StanzaType::Message(MessageType::Chat),
    StanzaType::Message(MessageType::Headline),
    StanzaType::Message(MessageType::Groupchat),
    StanzaType::Message(MessageType::Error),
    StanzaType::Presence(PresenceType::Available),
    StanzaType::Presence(PresenceType::Unavailable),
    StanzaType::Presence(PresenceType::Subscribe),
    StanzaType::Presence(PresenceType::Subscribed),
    StanzaType::Presence(PresenceType::Unsubscribe),
    StanzaType::Presence(PresenceType::Unsubscribed),
    StanzaType::Presence(PresenceType::Probe),
    StanzaType::Presence(PresenceType::Error),
    StanzaType::Iq(IqType::Get),
    StanzaType::Iq(IqType::Set),
    StanzaType::Iq(IqType::Result),
    StanzaType::Iq(IqType::Error),
];

/// The table for the manual.
pub fn markdown() -> String {
    let mut out = String::from(
        "| stanza | to the bare JID | nobody there | clause | to an absent full JID | clause |\n\
         |---|---|---|---|---|---|\n",
    );
    for type_ in TYPES {
        let chat = matches!(
            type_,
            StanzaType::Message(MessageType::Normal | MessageType::Chat)
        );
        for keep in if chat {
            &[true, false][..]
        } else {
            &[false][..]
        } {
            let facts = Facts {
                type_,
                has_body: true,
                carbon: chat,
                muc_private: false,
                keep: *keep,
            };
            let row = bare(facts);
            let (gone, clause) = match absent(facts) {
                Some((nobody, clause)) => (format!("{nobody:?}"), clause),
                None => (
                    "as to the bare JID".to_owned(),
                    "RFC 6121 §8.5.3.2.1, §3.1.2",
                ),
            };
            let hint = if chat && !keep {
                " with `no-store`"
            } else {
                ""
            };
            // writing to a String cannot fail
            let _ = writeln!(
                out,
                "| {type_:?}{hint} | {:?} | {:?} | {} | {gone} | {clause} |",
                row.audience, row.nobody, row.clause
            );
        }
    }
    out
}

#[cfg(test)]
mod tests;
