//! The filters of the pipeline, in the order of `modules.rs`. Each looks at one stanza.
//!
//! Pure: they ask nobody and wait for nothing.

use chancery_xmpp::stanza::{IqType, MessageType, PresenceType, StanzaType, kind_of};
use chancery_xmpp::strip::strip;
use chancery_xmpp::subscription::Act;
use chancery_xmpp::{Condition, Jid, StanzaError, StanzaHeader, StreamCondition, StreamError, ns};

use super::{Flow, Inbound, Work};
use crate::iq::Scope;

/// RFC 6120 §4.9.3.24: anything else ends the stream.
pub(crate) fn kind(inbound: &mut Inbound<'_>) -> Flow {
    match kind_of(&inbound.element) {
        Some(_) => Flow::Pass,
        None => Flow::End(StreamError::new(StreamCondition::UnsupportedStanzaType)),
    }
}

/// Reads the header; what violates RFC 6120 §8 or RFC 6121 is answered.
pub(crate) fn header(inbound: &mut Inbound<'_>) -> Flow {
    match StanzaHeader::read(&inbound.element) {
        Ok(header) => {
            inbound.header = Some(header);
            Flow::Pass
        }
        Err(error) => Flow::Bounce(error),
    }
}

/// RFC 6120 §8.1.2.1: `from`, if there, is the own full or bare JID. The true one is stamped when
/// the stanza is built anew.
pub(crate) fn sender(inbound: &mut Inbound<'_>) -> Flow {
    let identity = inbound.ground.identity;
    let own = |from: &Jid| from.as_str() == &*identity.full || from.as_str() == &*identity.account;
    match inbound
        .header
        .as_ref()
        .and_then(|header| header.from.as_ref())
    {
        Some(from) if !own(from) => Flow::End(StreamError::new(StreamCondition::InvalidFrom)),
        _ => Flow::Pass,
    }
}

/// Removes or refuses what only a server may say, by the one published list.
pub(crate) fn forgeries(inbound: &mut Inbound<'_>) -> Flow {
    let ground = inbound.ground;
    match strip(&inbound.element, &|domain| ground.is_local(domain)) {
        Ok(removed) => {
            inbound.removed = removed;
            Flow::Pass
        }
        Err(error) => Flow::Bounce(error),
    }
}

/// Presence: broadcast, addressed, or of the subscription handshake.
pub(crate) fn presence(inbound: &mut Inbound<'_>) -> Flow {
    let Some(header) = &inbound.header else {
        return Flow::Pass;
    };
    let StanzaType::Presence(type_) = header.type_ else {
        return Flow::Pass;
    };
    match type_ {
        PresenceType::Available | PresenceType::Unavailable => match &header.to {
            None => Flow::Take(Work::OwnPresence),
            // The server has no use for it.
            Some(to) if to.node().is_none() => Flow::Done,
            Some(_) => Flow::Take(Work::DirectedPresence),
        },
        PresenceType::Subscribe => Flow::Take(Work::Subscription(Act::Subscribe)),
        PresenceType::Subscribed => Flow::Take(Work::Subscription(Act::Subscribed)),
        PresenceType::Unsubscribe => Flow::Take(Work::Subscription(Act::Unsubscribe)),
        PresenceType::Unsubscribed => Flow::Take(Work::Subscription(Act::Unsubscribed)),
        // A client has no business probing (RFC 6121 §4.3), and nobody waits for its error.
        PresenceType::Probe | PresenceType::Error => Flow::Done,
    }
}

/// IQs to the server or the own account, and those that are answered on behalf of others.
pub(crate) fn handlers(inbound: &mut Inbound<'_>) -> Flow {
    let Some(header) = &inbound.header else {
        return Flow::Pass;
    };
    let Some(scope) = scope(inbound, header) else {
        return match others_archive(inbound, header) {
            Flow::Pass => on_behalf(inbound, header),
            refused => refused,
        };
    };
    match header.type_ {
        StanzaType::Iq(IqType::Get | IqType::Set) => {
            let handler = header.iq_payload.as_ref().and_then(|payload| {
                inbound
                    .ground
                    .handlers
                    .find(scope, &payload.ns, &payload.name)
            });
            match handler {
                Some(handler) => Flow::Take(Work::Handle(handler, scope)),
                // RFC 6120 §8.4
                None => Flow::Bounce(StanzaError::new(Condition::ServiceUnavailable)),
            }
        }
        // To a push or a ping of ours, or to nothing: never answered (RFC 6120 §8.2.3).
        StanzaType::Iq(IqType::Result | IqType::Error) => Flow::Done,
        StanzaType::Message(MessageType::Error) if scope == Scope::Server => Flow::Done,
        // RFC 6121 §8.1: the server reads no mail.
        StanzaType::Message(_) if scope == Scope::Server => {
            Flow::Bounce(StanzaError::new(Condition::ServiceUnavailable))
        }
        StanzaType::Message(_) | StanzaType::Presence(_) => Flow::Pass,
    }
}

/// XEP-0313 §8.1: nobody reads somebody else's archive. Said to all alike, whether the account
/// exists or not.
fn others_archive(inbound: &Inbound<'_>, header: &StanzaHeader) -> Flow {
    let request = matches!(header.type_, StanzaType::Iq(IqType::Get | IqType::Set));
    let archive = header
        .iq_payload
        .as_ref()
        .is_some_and(|payload| &*payload.ns == ns::MAM);
    let account = header
        .to
        .as_ref()
        .is_some_and(|to| to.resource().is_none() && inbound.ground.is_local(to.domain().as_str()));
    if request && archive && account {
        Flow::Bounce(StanzaError::new(Condition::Forbidden))
    } else {
        Flow::Pass
    }
}

/// RFC 6121 §8.5.2: an IQ request to another account's bare JID is the server's to answer, where it
/// knows how; what it does not know is routed, to nobody.
fn on_behalf(inbound: &Inbound<'_>, header: &StanzaHeader) -> Flow {
    let (StanzaType::Iq(type_ @ (IqType::Get | IqType::Set)), Some(to), Some(payload)) =
        (header.type_, &header.to, &header.iq_payload)
    else {
        return Flow::Pass;
    };
    let bare = to.node().is_some() && to.resource().is_none();
    if !bare || !inbound.ground.is_local(to.domain().as_str()) {
        return Flow::Pass;
    }
    let handlers = inbound.ground.handlers;
    match handlers.find(Scope::Other, &payload.ns, &payload.name) {
        Some(handler) if handler.fits(type_ == IqType::Set) => {
            Flow::Take(Work::Handle(handler, Scope::Other))
        }
        _ => Flow::Pass,
    }
}

/// The end of the filters.
pub(crate) fn route(_: &mut Inbound<'_>) -> Flow {
    Flow::Take(Work::Route)
}

/// Whose handlers a stanza is for; `None` when it goes to somebody. Without `to` it is for the own
/// account (RFC 6120 §10.3.3).
fn scope(inbound: &Inbound<'_>, header: &StanzaHeader) -> Option<Scope> {
    let Some(to) = &header.to else {
        return Some(Scope::Account);
    };
    if to.as_str() == &*inbound.ground.identity.account {
        return Some(Scope::Account);
    }
    let server = to.node().is_none() && inbound.ground.is_local(to.domain().as_str());
    server.then_some(Scope::Server)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use chancery_xml::{Limits, scan};

    use super::*;
    use crate::iq::Handlers;
    use crate::pipeline::{Ground, modules};
    use crate::session::identity::Identity;

    fn verdict(xml: &str) -> String {
        let identity = Identity::example("alice@a.test", "desk");
        let handlers = Handlers::standard();
        let domains = ["a.test".to_owned(), "b.test".to_owned()];
        let ground = Ground {
            identity: &identity,
            domains: &domains,
            handlers: &handlers,
        };
        let element = scan(
            &Bytes::copy_from_slice(xml.as_bytes()),
            &Limits::after_auth(),
        )
        .unwrap();
        let mut inbound = Inbound {
            ground,
            element,
            header: None,
            removed: Vec::new(),
        };
        match modules::run(&mut inbound) {
            Flow::Pass => "pass".into(),
            Flow::Done => "done".into(),
            Flow::Bounce(error) => format!("bounce {}", error.condition.as_str()),
            Flow::End(error) => format!("end {}", error.condition.as_str()),
            Flow::Take(Work::Handle(_, scope)) => format!("handle {scope:?}"),
            Flow::Take(Work::OwnPresence) => "own presence".into(),
            Flow::Take(Work::DirectedPresence) => "directed presence".into(),
            Flow::Take(Work::Subscription(act)) => format!("subscription {}", act.as_str()),
            Flow::Take(Work::Route) => format!("route -{}", inbound.removed.len()),
        }
    }

    #[test]
    fn each_stanza_takes_its_road() {
        for (xml, expected) in [
            (
                "<message to='bob@a.test'><body>x</body></message>",
                "route -0",
            ),
            ("<message><body>note to self</body></message>", "route -0"),
            (
                "<message to='a.test'><body>x</body></message>",
                "bounce service-unavailable",
            ),
            ("<message to='a.test' type='error'/>", "done"),
            ("<message to='@'/>", "bounce jid-malformed"),
            ("<message from='alice@a.test' to='bob@a.test'/>", "route -0"),
            (
                "<message from='ALICE@a.test/desk' to='bob@a.test'/>",
                "route -0",
            ),
            (
                "<message from='alice@a.test/other' to='bob@a.test'/>",
                "end invalid-from",
            ),
            (
                "<message from='mallory@a.test' to='bob@a.test'/>",
                "end invalid-from",
            ),
            (
                "<message to='b@a.test'><stanza-id xmlns='urn:xmpp:sid:0' by='b@a.test' id='1'/></message>",
                "route -1",
            ),
            (
                "<message to='b@a.test'><sent xmlns='urn:xmpp:carbons:2'/></message>",
                "bounce forbidden",
            ),
            ("<presence/>", "own presence"),
            ("<presence type='unavailable'/>", "own presence"),
            ("<presence to='bob@a.test'/>", "directed presence"),
            ("<presence to='a.test'/>", "done"),
            (
                "<presence to='bob@a.test' type='subscribe'/>",
                "subscription subscribe",
            ),
            ("<presence to='bob@a.test' type='probe'/>", "done"),
            ("<presence type='x'/>", "bounce bad-request"),
            (
                "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
                "handle Account",
            ),
            (
                "<iq type='get' id='1' to='b.test'><ping xmlns='urn:xmpp:ping'/></iq>",
                "handle Server",
            ),
            (
                "<iq type='get' id='1' to='c.test'><ping xmlns='urn:xmpp:ping'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='bob@a.test'><ping xmlns='urn:xmpp:ping'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='alice@a.test/desk'><ping xmlns='urn:xmpp:ping'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='bob@b.test'><vCard xmlns='vcard-temp'/></iq>",
                "handle Other",
            ),
            (
                "<iq type='set' id='1' to='bob@a.test'><vCard xmlns='vcard-temp'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='bob@a.test/r'><vCard xmlns='vcard-temp'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='bob@c.test'><vCard xmlns='vcard-temp'/></iq>",
                "route -0",
            ),
            (
                "<iq type='result' id='1' to='bob@a.test'><vCard xmlns='vcard-temp'/></iq>",
                "route -0",
            ),
            (
                "<iq type='get' id='1' to='alice@a.test'><vCard xmlns='vcard-temp'/></iq>",
                "handle Account",
            ),
            (
                "<iq type='get' id='1'><x xmlns='urn:unknown'/></iq>",
                "bounce service-unavailable",
            ),
            (
                "<iq type='set' id='1' to='bob@a.test'><query xmlns='urn:xmpp:mam:2'/></iq>",
                "bounce forbidden",
            ),
            (
                "<iq type='set' id='1' to='bob@a.test/r'><query xmlns='urn:xmpp:mam:2'/></iq>",
                "route -0",
            ),
            (
                "<iq type='set' id='1' to='bob@c.test'><query xmlns='urn:xmpp:mam:2'/></iq>",
                "route -0",
            ),
            (
                "<iq type='set' id='1' to='alice@a.test'><query xmlns='urn:xmpp:mam:2'/></iq>",
                "handle Account",
            ),
            ("<iq type='result' id='1'/>", "done"),
            ("<iq type='error' id='1' to='a.test'/>", "done"),
            ("<iq type='get' id='1'/>", "bounce bad-request"),
            (
                "<iq type='get'><ping xmlns='urn:xmpp:ping'/></iq>",
                "bounce bad-request",
            ),
            ("<foo xmlns='urn:x'/>", "end unsupported-stanza-type"),
        ] {
            assert_eq!(verdict(xml), expected, "{xml}");
        }
    }
}
