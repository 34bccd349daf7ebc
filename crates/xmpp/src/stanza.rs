//! What routing, policy and recording must know of a stanza, read from its header without a tree.
//!
//! Owns the rules on stanzas' own attributes (RFC 6120 §8, RFC 6121 §4, §5) and the answers to
//! violations. Refuses to own payloads and routing.

use std::sync::Arc;

use chancery_xml::{Child, Element};

use crate::error::{Condition, StanzaError};
use crate::jid::{self, Jid};
use crate::ns;

/// Kind of stanza (RFC 6120 §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Message,
    Presence,
    Iq,
}

/// RFC 6121 §5.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    Normal,
    Chat,
    Headline,
    Groupchat,
    Error,
}

/// RFC 6121 §4.7.1; no type is `Available`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PresenceType {
    Available,
    Unavailable,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Probe,
    Error,
}

/// RFC 6120 §8.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IqType {
    Get,
    Set,
    Result,
    Error,
}

/// Kind and type of a stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StanzaType {
    Message(MessageType),
    Presence(PresenceType),
    Iq(IqType),
}

/// RFC 6121 §4.7.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Show {
    Away,
    Chat,
    Dnd,
    Xa,
}

/// XEP-0334. They bind the user's archive and carbons, never the evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub no_store: bool,
    pub no_permanent_store: bool,
    pub no_copy: bool,
    pub store: bool,
}

/// Name of an IQ's payload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Payload {
    pub ns: Arc<str>,
    pub name: Box<str>,
}

/// What is known of a stanza without looking into its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StanzaHeader {
    pub type_: StanzaType,
    pub to: Option<Jid>,
    pub from: Option<Jid>,
    pub id: Option<Box<str>>,
    pub has_body: bool,
    /// Anything that a reader would miss if it were lost, the body included: more than chat
    /// states, hints and ids.
    pub has_payload: bool,
    pub hints: Hints,
    /// XEP-0280 §9 `<private/>`.
    pub private: bool,
    /// XEP-0203.
    pub has_delay: bool,
    /// XEP-0045 §7.5, a private message through a room.
    pub muc_private: bool,
    /// Payload typical of instant messaging (XEP-0280 §6.1).
    pub im_payload: bool,
    pub iq_payload: Option<Payload>,
    pub show: Option<Show>,
    /// RFC 6121 §4.7.2.3; 0 when not given.
    pub priority: i8,
    /// Presence carries text (RFC 6121 §4.7.2.2).
    pub has_status: bool,
}

impl StanzaType {
    pub const fn kind(self) -> Kind {
        match self {
            Self::Message(_) => Kind::Message,
            Self::Presence(_) => Kind::Presence,
            Self::Iq(_) => Kind::Iq,
        }
    }

    pub const fn is_error(self) -> bool {
        matches!(
            self,
            Self::Message(MessageType::Error)
                | Self::Presence(PresenceType::Error)
                | Self::Iq(IqType::Error)
        )
    }
}

impl MessageType {
    /// The attribute's value; `normal` is also the meaning of none.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Chat => "chat",
            Self::Headline => "headline",
            Self::Groupchat => "groupchat",
            Self::Error => "error",
        }
    }
}

impl PresenceType {
    /// The attribute's value; available presence has none.
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Available => None,
            Self::Unavailable => Some("unavailable"),
            Self::Subscribe => Some("subscribe"),
            Self::Subscribed => Some("subscribed"),
            Self::Unsubscribe => Some("unsubscribe"),
            Self::Unsubscribed => Some("unsubscribed"),
            Self::Probe => Some("probe"),
            Self::Error => Some("error"),
        }
    }
}

impl IqType {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Result => "result",
            Self::Error => "error",
        }
    }
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Presence => "presence",
            Self::Iq => "iq",
        }
    }
}

impl Show {
    /// The show with this text.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "away" => Some(Self::Away),
            "chat" => Some(Self::Chat),
            "dnd" => Some(Self::Dnd),
            "xa" => Some(Self::Xa),
            _ => None,
        }
    }
}

/// Which kind of stanza an element is on a client's stream (RFC 6120 §4.8.2: the content namespace
/// is jabber:client); `None` calls for `unsupported-stanza-type`.
pub fn kind_of(element: &Element) -> Option<Kind> {
    if &*element.header.ns != ns::CLIENT {
        return None;
    }
    match &*element.header.name {
        "message" => Some(Kind::Message),
        "presence" => Some(Kind::Presence),
        "iq" => Some(Kind::Iq),
        _ => None,
    }
}

/// Content namespaces (RFC 6120 §4.8.2): the same words in both.
fn is_content(ns: &str) -> bool {
    ns == ns::CLIENT || ns == ns::SERVER
}

impl StanzaHeader {
    /// Reads a stanza; an error says how to answer it.
    pub fn read(element: &Element) -> Result<Self, StanzaError> {
        let kind = kind_of(element).ok_or(Condition::BadRequest)?;
        let raw = &element.header;
        let type_ = read_type(kind, raw.type_.as_deref())?;
        let address = |raw: &Option<Box<str>>| raw.as_deref().map(jid::parse).transpose();
        let mut header = Self {
            type_,
            to: address(&raw.to)?,
            from: address(&raw.from)?,
            id: raw.id.clone(),
            has_body: false,
            has_payload: false,
            hints: Hints::default(),
            private: false,
            has_delay: false,
            muc_private: false,
            im_payload: false,
            iq_payload: None,
            show: None,
            priority: 0,
            has_status: false,
        };
        match type_ {
            StanzaType::Message(_) => raw.children.iter().for_each(|child| header.note(child)),
            StanzaType::Presence(type_) => header.read_presence(element, type_)?,
            StanzaType::Iq(type_) => header.read_iq(element, type_)?,
        }
        Ok(header)
    }

    pub const fn kind(&self) -> Kind {
        self.type_.kind()
    }

    /// Whether a message is to be kept for who is absent, and in archives, as far as its sender and its
    /// content say: not what is only a chat state (XEP-0160 §3), unless `store` asks for it (XEP-0334 §4.4).
    pub fn is_kept(&self) -> bool {
        !self.hints.no_store && (self.has_payload || self.hints.store)
    }

    /// Notes one child of a message.
    fn note(&mut self, child: &Child) {
        let name = &*child.name;
        match &*child.ns {
            ns if is_content(ns) => match name {
                "body" => {
                    self.has_body = true;
                    self.has_payload = true;
                }
                "thread" => {}
                _ => self.has_payload = true,
            },
            ns::CHAT_STATES => self.im_payload = true,
            ns::HINTS => match name {
                "no-store" => self.hints.no_store = true,
                "no-permanent-store" => self.hints.no_permanent_store = true,
                "no-copy" => self.hints.no_copy = true,
                "store" => self.hints.store = true,
                _ => {}
            },
            ns::CARBONS if name == "private" => self.private = true,
            ns::DELAY | ns::LEGACY_DELAY => self.has_delay = true,
            ns::SID => {}
            ns::MUC_USER if name == "x" => {
                // an invitation is no private message (XEP-0045 §7.8.2), nor is its refusal
                let invitation = ["invite", "decline"];
                let is_one = |inner: &Child| invitation.iter().any(|n| inner.is(n, ns::MUC_USER));
                if child.children.iter().any(is_one) {
                    self.im_payload = true;
                    self.has_payload = true;
                } else {
                    self.muc_private = true;
                }
            }
            ns::RECEIPTS if name == "request" => {}
            ns::RECEIPTS | ns::MARKERS | ns::CONFERENCE | ns::REACTIONS | ns::RETRACT => {
                // `markable` only asks for markers
                self.im_payload = true;
                self.has_payload |= name != "markable";
            }
            _ => self.has_payload = true,
        }
    }

    fn read_presence(&mut self, element: &Element, type_: PresenceType) -> Result<(), StanzaError> {
        let mut priority = None;
        for child in &element.header.children {
            match (&*child.ns, &*child.name) {
                (ns, "status") if is_content(ns) => self.has_status = true,
                (ns, "show") if is_content(ns) => {
                    self.show = Show::from_text(&element.child_text(child));
                }
                (ns, "priority") if is_content(ns) && type_ == PresenceType::Available => {
                    // RFC 6121 §4.7.2.3: one integer from -128 to +127
                    let value = element.child_text(child).trim().parse::<i8>();
                    match (priority, value) {
                        (None, Ok(value)) => priority = Some(value),
                        _ => return Err(Condition::BadRequest.into()),
                    }
                }
                (ns::DELAY | ns::LEGACY_DELAY, _) => self.has_delay = true,
                _ => {}
            }
        }
        self.priority = priority.unwrap_or(0);
        Ok(())
    }

    fn read_iq(&mut self, element: &Element, type_: IqType) -> Result<(), StanzaError> {
        // RFC 6120 §8.2.3: an id on all; one payload in a request, at most one in a result
        let children = &element.header.children;
        let legal = match type_ {
            IqType::Get | IqType::Set => children.len() == 1,
            IqType::Result => children.len() <= 1,
            IqType::Error => true,
        };
        if self.id.as_deref().is_none_or(str::is_empty) || !legal {
            return Err(Condition::BadRequest.into());
        }
        let payload = children
            .iter()
            .find(|child| !(is_content(&child.ns) && &*child.name == "error"));
        self.iq_payload = payload.map(|child| Payload {
            ns: child.ns.clone(),
            name: child.name.clone(),
        });
        Ok(())
    }
}

fn read_type(kind: Kind, raw: Option<&str>) -> Result<StanzaType, StanzaError> {
    Ok(match kind {
        Kind::Message => StanzaType::Message(match raw {
            Some("chat") => MessageType::Chat,
            Some("headline") => MessageType::Headline,
            Some("groupchat") => MessageType::Groupchat,
            Some("error") => MessageType::Error,
            // RFC 6121 §5.2.2: none, and any unknown, is normal
            _ => MessageType::Normal,
        }),
        Kind::Presence => StanzaType::Presence(match raw {
            None => PresenceType::Available,
            Some("unavailable") => PresenceType::Unavailable,
            Some("subscribe") => PresenceType::Subscribe,
            Some("subscribed") => PresenceType::Subscribed,
            Some("unsubscribe") => PresenceType::Unsubscribe,
            Some("unsubscribed") => PresenceType::Unsubscribed,
            Some("probe") => PresenceType::Probe,
            Some("error") => PresenceType::Error,
            Some(_) => return Err(Condition::BadRequest.into()),
        }),
        Kind::Iq => StanzaType::Iq(match raw {
            Some("get") => IqType::Get,
            Some("set") => IqType::Set,
            Some("result") => IqType::Result,
            Some("error") => IqType::Error,
            _ => return Err(Condition::BadRequest.into()),
        }),
    })
}

#[cfg(test)]
mod tests;
