//! From the features after authentication to a bound resource (RFC 6120 §7), and `<resume/>`
//! (XEP-0198 §5), which comes in its place. Owns who may resume what.
//!
//! The bind result waits for the shard: from then on nothing for this resource is missed.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use chancery_api::LaneError;
use chancery_api::archive::{AttachDown, DetachSession, EndReason, attach_down};
use chancery_xml::{Element, Frame, push_attr};
use chancery_xmpp::{
    Condition, FullJid, StanzaError, StanzaHeader, StreamCondition, StreamError, jid, ns, stanza,
};

use super::identity::{Identity, log_id};
use super::inbox::Event;
use super::nonzas::unhex;
use super::resumption::{Answer, Offer, Refusal, handled_too_high};
use super::table::{Handle, Refused};
use super::{Session, attach_of, cut_off_error};
use tokio::sync::oneshot;

use crate::features;
use crate::negotiate::Authenticated;
use crate::pipeline::answer;
use crate::service::Gateway;
use crate::transport::{CLOSE_LIMIT, Transport, TransportError};

/// The shard answers an attachment by then.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);
/// Wrong attempts before the stream ends.
const ATTEMPTS: usize = 8;

/// What ends an unbound stream.
enum Over {
    /// The client is gone, or closed its stream.
    Closed { dead: bool },
    /// We end it.
    Error(StreamError),
    /// A session has its socket now.
    Resumed,
}

impl From<StreamCondition> for Over {
    fn from(condition: StreamCondition) -> Self {
        Self::Error(StreamError::new(condition))
    }
}

/// Binds. `None` when the stream is over.
pub(crate) async fn bind(
    gateway: Arc<Gateway>,
    authenticated: Authenticated,
) -> Option<Box<Session>> {
    let Authenticated {
        transport,
        account,
        credential_version,
        ..
    } = authenticated;
    let mut unbound = Unbound {
        gateway,
        transport: Some(Box::new(transport)),
        account,
        credential_version,
    };
    let ending = unbound.gateway.ending.clone();
    let limit = unbound.gateway.config.bind_limit();
    let outcome = tokio::select! {
        biased;
        () = ending.cancelled() => Err(StreamCondition::SystemShutdown.into()),
        outcome = tokio::time::timeout(limit, unbound.run()) => {
            outcome.unwrap_or_else(|_| Err(StreamCondition::ConnectionTimeout.into()))
        }
    };
    let transport = unbound.transport.take()?;
    let error = match outcome {
        Ok(handle) => {
            let session = Session::new(unbound.gateway, handle, transport);
            return Some(Box::new(session));
        }
        Err(Over::Resumed | Over::Closed { dead: true }) => return None,
        Err(Over::Closed { dead: false }) => None,
        Err(Over::Error(error)) => Some(error),
    };
    transport.close_with(error.as_ref(), CLOSE_LIMIT).await;
    None
}

struct Unbound {
    gateway: Arc<Gateway>,
    /// `None` while it is offered to a session.
    transport: Option<Box<Transport>>,
    account: jid::BareJid,
    credential_version: u64,
}

impl Unbound {
    async fn run(&mut self) -> Result<Arc<Handle>, Over> {
        let domain = self.account.domain().as_str();
        let registered = self.gateway.handlers.stream_features(domain);
        let features = features::after_auth(&registered, self.gateway.config.stanza_bytes);
        self.transport()?.queue(features.as_bytes());
        for _ in 0..ATTEMPTS {
            self.flush().await?;
            let element = match self.transport()?.next_frame().await {
                Ok(Some(Frame::Element(element))) => element,
                Ok(Some(Frame::Close)) => return Err(Over::Closed { dead: false }),
                Ok(Some(Frame::Open(_))) => return Err(StreamCondition::BadFormat.into()),
                Ok(None) | Err(TransportError::Io(_)) => return Err(Over::Closed { dead: true }),
                Err(TransportError::Frame(error)) => return Err(Over::Error(error.into())),
            };
            if let Some(handle) = self.on_element(&element).await? {
                return Ok(handle);
            }
        }
        Err(StreamCondition::PolicyViolation.into())
    }

    fn transport(&mut self) -> Result<&mut Transport, Over> {
        self.transport.as_deref_mut().ok_or(Over::Resumed)
    }

    async fn flush(&mut self) -> Result<(), Over> {
        self.transport()?
            .flush()
            .await
            .map_err(|_| Over::Closed { dead: true })
    }

    async fn on_element(&mut self, element: &Element) -> Result<Option<Arc<Handle>>, Over> {
        let managed = self.gateway.handlers.is_on("stream_management");
        if managed && &*element.header.ns == ns::SM {
            self.on_stream_management(element).await?;
            return Ok(None);
        }
        let Some(kind) = stanza::kind_of(element) else {
            return Err(StreamCondition::UnsupportedStanzaType.into());
        };
        let is_bind = kind == stanza::Kind::Iq && element.child("bind", ns::BIND).is_some();
        if !is_bind {
            // RFC 6120 §7.1: no stanzas before a resource is bound.
            return Err(StreamCondition::NotAuthorized.into());
        }
        let refused = match self.requested(element) {
            Ok(full) => match self.attach(&full).await? {
                Ok(handle) => {
                    let result = bound(element, &full);
                    self.transport()?.queue(result.as_bytes());
                    return Ok(Some(handle));
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if let Some(reply) = refused.reply(element, None, None) {
            self.transport()?.queue(&reply);
        }
        Ok(None)
    }

    /// The full JID that a bind asks for.
    fn requested(&self, element: &Element) -> Result<FullJid, StanzaError> {
        let header = StanzaHeader::read(element)?;
        if header.type_ != stanza::StanzaType::Iq(stanza::IqType::Set) {
            return Err(StanzaError::new(Condition::BadRequest));
        }
        let bind = element.child("bind", ns::BIND);
        let asked = bind
            .and_then(|bind| {
                bind.children
                    .iter()
                    .find(|child| child.is("resource", ns::BIND))
            })
            .map(|resource| element.child_text(resource));
        let resource = match asked {
            Some(resource) if !resource.is_empty() => resource,
            // §7.6: the server makes one, which tells nothing.
            _ => format!("{:016x}", self.gateway.ids.number()),
        };
        // §7.7.2.1: what resourceprep refuses is a bad request.
        jid::parse_full(&format!("{}/{resource}", self.account))
            .map_err(|_| StanzaError::new(Condition::BadRequest))
    }

    /// Enters the session and waits until its shard follows for it.
    async fn attach(&mut self, full: &FullJid) -> Result<Result<Arc<Handle>, StanzaError>, Over> {
        let gateway = &self.gateway;
        let identity = Arc::new(Identity::new(
            gateway.sessions.next_number(),
            full,
            gateway.ids.id(),
            gateway.ids.id(),
            self.credential_version,
        ));
        let handle = Arc::new(Handle::new(Arc::clone(&identity)));
        match gateway.sessions.enter(&handle) {
            Ok(()) => {}
            // §7.6.2.1
            Err(Refused::TooMany) => {
                return Ok(Err(StanzaError::new(Condition::ResourceConstraint)));
            }
            Err(Refused::CutOff(why)) => return Err(Over::Error(cut_off_error(why))),
        }
        let guard = Entered {
            gateway,
            handle: &handle,
            kept: false,
        };
        tell_attach(gateway, &identity);
        let attached = poll_fn(|cx| {
            loop {
                match ready!(handle.inbox.poll_next(cx)) {
                    Event::Attached => return Poll::Ready(Ok(())),
                    // The stream to the shard is new: it has not heard of us.
                    Event::LinkUp(_) => tell_attach(gateway, &identity),
                    Event::CutOff(why) => {
                        return Poll::Ready(Err(Over::Error(cut_off_error(why))));
                    }
                    Event::End(EndReason::Conflict) => {
                        return Poll::Ready(Err(StreamCondition::Conflict.into()));
                    }
                    Event::End(_) => {
                        return Poll::Ready(Err(StreamCondition::ResourceConstraint.into()));
                    }
                    Event::Shutdown => {
                        return Poll::Ready(Err(StreamCondition::SystemShutdown.into()));
                    }
                    _ => {}
                }
            }
        });
        match tokio::time::timeout(ATTACH_LIMIT, attached).await {
            Ok(Ok(())) => {
                guard.keep();
                Ok(Ok(handle))
            }
            Ok(Err(over)) => Err(over),
            Err(_) => Ok(Err(answer::outage())),
        }
    }

    /// Before the bind there is nothing to enable or to count, but maybe something to resume.
    async fn on_stream_management(&mut self, element: &Element) -> Result<(), Over> {
        let answer = match &*element.header.name {
            "resume" => {
                let answer = self.resume(element).await;
                if !matches!(answer, Err(Over::Resumed)) {
                    self.gateway.metrics.resumptions_refused.inc();
                }
                answer?
            }
            "enable" | "r" | "a" => failed("unexpected-request", None),
            _ => return Err(StreamCondition::UnsupportedStanzaType.into()),
        };
        self.transport()?.queue(answer.as_bytes());
        Ok(())
    }

    /// Offers the stream to the session that it names, or says why that cannot be.
    async fn resume(&mut self, element: &Element) -> Result<String, Over> {
        let gateway = Arc::clone(&self.gateway);
        let Some(h) = element.header.attr("h").and_then(|h| h.parse().ok()) else {
            return Ok(failed("bad-request", None));
        };
        let id = element.header.attr("previd").and_then(unhex);
        let session = id.and_then(|id| gateway.sessions.by_sm_id(&id));
        if let Some(handle) = &session {
            let identity = &handle.identity;
            if *identity.account != *self.account.as_str() {
                // An id is its owner's: to anybody else it is nothing, and the owner hears nothing.
                return Ok(failed("item-not-found", None));
            }
            let cut_off = gateway
                .sessions
                .cut_off(&identity.account, self.credential_version);
            if let Some(why) = cut_off {
                return Err(Over::Error(cut_off_error(why)));
            }
            // With another password since, it is about to be cut off.
            if identity.credentials() == self.credential_version {
                self.offer(handle, h).await?;
            }
        }
        // The count that the log has is told, so that the client does not send again what is there.
        // Where the log does not say, the stream ends: without a count the client would take it that
        // nothing is there.
        let count = match id {
            Some(id) => match self.highest_count(&id).await {
                Ok(count) => count,
                Err(_) => return Err(StreamCondition::ResourceConstraint.into()),
            },
            None => None,
        };
        Ok(failed("item-not-found", count))
    }

    async fn highest_count(&self, id: &[u8; 16]) -> Result<Option<u64>, LaneError> {
        let key = log_id(id, self.account.as_str());
        self.gateway.link.highest_count(key).await
    }

    /// `Ok` when the session does not take it and the stream is still ours.
    async fn offer(&mut self, handle: &Handle, h: u32) -> Result<(), Over> {
        let Some(transport) = self.transport.take() else {
            return Err(Over::Resumed);
        };
        let (answer, answered) = oneshot::channel();
        let offer = Offer {
            transport,
            h,
            answer,
        };
        if let Err(offer) = handle.inbox.offer(Box::new(offer)) {
            self.transport = Some(offer.transport);
            return Ok(());
        }
        let Ok(Answer::Refused(transport, why)) = answered.await else {
            return Err(Over::Resumed);
        };
        self.transport = Some(transport);
        match why {
            Refusal::Gone => Ok(()),
            Refusal::TooHigh => Err(Over::Error(handled_too_high())),
            Refusal::Conflict => Err(StreamCondition::Conflict.into()),
        }
    }
}

/// Takes the session out again unless it is kept: the client may vanish while it is being attached.
struct Entered<'a> {
    gateway: &'a Gateway,
    handle: &'a Handle,
    kept: bool,
}

impl Entered<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let session = self.handle.identity.number;
            self.gateway.sessions.leave(&self.handle.identity);
            self.gateway.link.tell(AttachDown {
                item: Some(attach_down::Item::Detach(DetachSession { session })),
            });
        }
    }
}

fn tell_attach(gateway: &Gateway, identity: &Identity) {
    // Before it is told: on a later stream it is told again.
    identity.followed.lock().attached_on = gateway.link.generation();
    gateway.link.tell(AttachDown {
        item: Some(attach_down::Item::Attach(attach_of(identity))),
    });
}

/// The result of a bind.
fn bound(element: &Element, full: &FullJid) -> String {
    let mut out = String::with_capacity(160);
    out.push_str("<iq type='result'");
    if let Some(id) = &element.header.id {
        push_attr(&mut out, "id", id);
    }
    out.push_str("><bind");
    push_attr(&mut out, "xmlns", ns::BIND);
    out.push_str("><jid>");
    chancery_xml::escape_text(&mut out, full.as_str());
    out.push_str("</jid></bind></iq>");
    out
}

/// XEP-0198 `<failed/>`; `h` wraps as the client's own count does.
fn failed(condition: &str, count: Option<u64>) -> String {
    let mut out = format!("<failed xmlns='{}'", ns::SM);
    if let Some(count) = count {
        let h = u32::try_from(count % (1 << 32)).unwrap_or(0);
        push_attr(&mut out, "h", &h.to_string());
    }
    out.push_str(&format!(
        "><{condition} xmlns='{}'/></failed>",
        ns::STANZA_ERRORS
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tells_the_wrapped_count() {
        assert_eq!(
            failed("item-not-found", Some((1 << 32) + 5)),
            "<failed xmlns='urn:xmpp:sm:3' h='5'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>"
        );
        assert!(!failed("item-not-found", None).contains("h="));
    }
}
