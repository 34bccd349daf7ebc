//! From an item's fields to the facts that the routing table asks for, and from the table's answer
//! to forms on the wire. Refuses to decide anything itself: RFC 6121 §8.5 and XEP-0280 are in
//! `chancery_xmpp::routing`.

use chancery_api::Kind;
use chancery_api::archive::{AppendItem, Form};
use chancery_xmpp::routing::{Delivery, Facts};
use chancery_xmpp::stanza::{IqType, MessageType, PresenceType, StanzaType};

/// The facts of an item; `None` when its kind or type does not exist.
pub(crate) fn facts(item: &AppendItem) -> Option<Facts> {
    let type_ = match item.kind() {
        Kind::Message => StanzaType::Message(message_type(&item.r#type)),
        Kind::Presence => StanzaType::Presence(presence_type(&item.r#type)?),
        Kind::Iq => StanzaType::Iq(iq_type(&item.r#type)?),
        Kind::Unspecified => return None,
    };
    let chat = type_ == StanzaType::Message(MessageType::Chat);
    let normal = type_ == StanzaType::Message(MessageType::Normal);
    Some(Facts {
        type_,
        has_body: item.has_body,
        // XEP-0280 §6.1: chat, and normal with a body; what only its sender's hints exclude is out.
        carbon: !item.no_copy && (chat || (normal && item.has_body)),
        muc_private: false,
        // XEP-0160 §3; what it excludes for want of content is said to be `no_store`.
        keep: !item.no_store && !item.ephemeral && (chat || normal),
    })
}

/// RFC 6121 §5.2.2: an unknown type of message is `normal`.
fn message_type(name: &str) -> MessageType {
    match name {
        "chat" => MessageType::Chat,
        "headline" => MessageType::Headline,
        "groupchat" => MessageType::Groupchat,
        "error" => MessageType::Error,
        _ => MessageType::Normal,
    }
}

fn presence_type(name: &str) -> Option<PresenceType> {
    Some(match name {
        "" => PresenceType::Available,
        "unavailable" => PresenceType::Unavailable,
        "subscribe" => PresenceType::Subscribe,
        "subscribed" => PresenceType::Subscribed,
        "unsubscribe" => PresenceType::Unsubscribe,
        "unsubscribed" => PresenceType::Unsubscribed,
        "probe" => PresenceType::Probe,
        "error" => PresenceType::Error,
        _ => return None,
    })
}

fn iq_type(name: &str) -> Option<IqType> {
    Some(match name {
        "get" => IqType::Get,
        "set" => IqType::Set,
        "result" => IqType::Result,
        "error" => IqType::Error,
        _ => return None,
    })
}

/// The form that a delivery has on the wire; `None` for no delivery.
pub(crate) fn form(delivery: Delivery) -> Option<Form> {
    match delivery {
        Delivery::Nothing => None,
        Delivery::Original => Some(Form::Original),
        Delivery::CarbonReceived => Some(Form::CarbonReceived),
        Delivery::CarbonSent => Some(Form::CarbonSent),
    }
}

/// An entry that comes to the mailbox again, as if it had been sent to the bare JID just now.
pub(crate) fn to_bare_again() -> Facts {
    Facts {
        type_: StanzaType::Message(MessageType::Chat),
        has_body: true,
        carbon: false,
        muc_private: false,
        keep: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, type_: &str) -> AppendItem {
        AppendItem {
            kind: kind.into(),
            r#type: type_.into(),
            has_body: true,
            ..AppendItem::default()
        }
    }

    #[test]
    fn chat_and_normal_are_kept_unless_the_sender_said_no_store() {
        for (type_, keep) in [
            ("chat", true),
            ("", true),
            ("headline", false),
            ("groupchat", false),
            ("error", false),
        ] {
            let mut item = item(Kind::Message, type_);
            assert_eq!(facts(&item).map(|f| f.keep), Some(keep), "{type_}");
            item.no_store = true;
            assert_eq!(facts(&item).map(|f| f.keep), Some(false), "{type_}");
        }
    }

    /// XEP-0280 §6.1
    #[test]
    fn copies_are_made_of_chat_and_of_normal_with_a_body() {
        for (type_, has_body, carbon) in [
            ("chat", true, true),
            ("chat", false, true),
            ("", true, true),
            ("", false, false),
            ("headline", true, false),
            ("groupchat", true, false),
            ("error", true, false),
        ] {
            let mut item = item(Kind::Message, type_);
            item.has_body = has_body;
            assert_eq!(facts(&item).map(|f| f.carbon), Some(carbon), "{type_}");
            item.no_copy = true;
            assert_eq!(facts(&item).map(|f| f.carbon), Some(false), "{type_}");
        }
    }

    #[test]
    fn what_does_not_exist_has_no_facts() {
        assert!(facts(&item(Kind::Unspecified, "")).is_none());
        assert!(facts(&item(Kind::Iq, "")).is_none());
        assert!(facts(&item(Kind::Presence, "chat")).is_none());
    }
}
