//! The end of a session: the last bytes to the client, then everybody who has to know.
//!
//! The shard first (it decides again what the client did not acknowledge), presence after it has
//! confirmed, then the answers to requests that nobody will answer any more.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use chancery_api::Kind;
use chancery_api::archive::{AppendItem, DetachSession, attach_down};
use chancery_xml::{Frame, Limits, scan};
use chancery_xmpp::{StanzaHeader, StreamCondition, exempt, ns};

use super::Session;
use super::identity::Identity;
use super::inbox::Event;
use super::outgoing::Source;
use crate::iq::last;
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, allows};
use crate::presence;
use crate::service::Gateway;
use crate::transport::CLOSE_LIMIT;

/// The shard confirms the end by then; without it, it ends what it no longer hears of by itself.
const DETACH_LIMIT: Duration = Duration::from_secs(2);
/// How long the runtime has to see what is in the socket of a session that ends.
const READ_OUT_PAUSE: Duration = Duration::from_millis(1);
/// Frames that are still read from it.
pub(super) const READ_OUT_FRAMES: usize = 256;
/// Requests that are answered for a client that is gone; others wait for their own time-out.
const UNANSWERED: usize = 256;

impl Session {
    pub(super) async fn finish(mut self: Box<Self>) {
        let identity = Arc::clone(&self.handle.identity);
        if self.reads_out() {
            // Before it fires a timer, the runtime looks at the sockets.
            tokio::time::sleep(READ_OUT_PAUSE).await;
            poll_fn(|cx| Poll::Ready(self.read_out(cx))).await;
        }
        let ending = self.ending.take();
        let mut requests: Vec<Bytes> = Vec::new();
        self.say_handled(false);
        if let Some(management) = &mut self.management {
            // The client hears of everything that is known to be handled.
            if management.owes_answer() {
                let answer = management.answer();
                self.connection.queue(answer.as_bytes());
            }
            requests.extend(management.unanswered());
        }
        requests.extend(
            self.outgoing
                .drain()
                .filter_map(|source| unwritten(&source)),
        );
        self.tell(attach_down::Item::Detach(DetachSession {
            session: identity.number,
        }));
        self.handle.inbox.refuse_offers();
        let available = self.own.as_ref().is_some_and(|own| own.is_available());
        let cut_off = ending
            .as_ref()
            .and_then(|ending| ending.error.as_ref())
            .is_some_and(|error| error.condition == StreamCondition::NotAuthorized);
        let seen = {
            let followed = identity.followed.lock();
            // Also when it has said that it is gone, and that could not be told.
            available || followed.shown.is_some() || !followed.directed.is_empty()
        };
        let Self {
            gateway,
            handle,
            mut connection,
            ..
        } = *self;
        let closing = async {
            if let Some(transport) = connection.take() {
                let error = ending.as_ref().and_then(|ending| ending.error.as_ref());
                transport.close_with(error, CLOSE_LIMIT).await;
            }
        };
        let leaving = async {
            let detached = poll_fn(|cx| {
                loop {
                    match std::task::ready!(handle.inbox.poll_next(cx)) {
                        Event::Detached => return Poll::Ready(()),
                        Event::Deliver(delivered, at) => {
                            requests.extend(unwritten(&Source::Log(delivered, at)));
                        }
                        _ => {}
                    }
                }
            });
            if tokio::time::timeout(DETACH_LIMIT, detached).await.is_err() {
                tracing::debug!("the shard did not confirm the end of a session");
            }
            gateway.sessions.leave(&identity);
            if seen {
                presence::gone(&gateway, &identity).await;
            }
            // Whoever has a deleted account's name next was never here.
            if available && !cut_off {
                last::note(&gateway, &identity, "").await;
            }
            requests.truncate(UNANSWERED);
            for request in requests {
                bounce(&gateway, &identity, &request).await;
            }
        };
        futures_util::future::join(closing, leaving).await;
    }
}

impl Session {
    /// What the client acknowledged before it is told of the end: it waits in the socket, and unread
    /// it would come again. Stanzas there are not taken any more, and not counted. Read at once: whoever
    /// takes the session's place does not wait for what is under way here.
    pub(super) fn read_out(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.reads_out()
            && let Poll::Ready(frame) = self.connection.poll_frame(cx)
        {
            progress = true;
            let element = match frame {
                Ok(Some(Frame::Element(element))) => Some(element),
                _ => None,
            };
            if let Some(ending) = &mut self.ending {
                let left = ending.frames.saturating_sub(1);
                ending.frames = if element.is_some() { left } else { 0 };
            }
            if let Some(element) = element
                && &*element.header.ns == ns::SM
                && &*element.header.name == "a"
            {
                self.acknowledged(&element);
            }
        }
        progress
    }

    fn reads_out(&self) -> bool {
        self.management.is_some()
            && self.connection.is_read()
            && self.ending.as_ref().is_some_and(|ending| ending.frames > 0)
    }
}

/// The request in a delivery that was never written.
fn unwritten(source: &Source) -> Option<Bytes> {
    match source {
        Source::Log(delivered, _) if source.is_request() => Some(delivered.up.payload.clone()),
        _ => None,
    }
}

/// Answers a request for a client that is gone (RFC 6120 §8.2.3: every request has an answer).
async fn bounce(gateway: &Gateway, identity: &Identity, request: &Bytes) {
    let Ok(original) = scan(request, &Limits::after_auth()) else {
        return;
    };
    let Some(requester) = original.header.from.clone() else {
        return;
    };
    if *requester == *identity.full {
        // Who asked is gone too; another session may have the address by now.
        return;
    }
    let error = answer::absent();
    let Some(reply) = error.reply(&original, Some(&identity.full), Some(&requester)) else {
        return;
    };
    let Ok(element) = scan(&reply, &Limits::after_auth()) else {
        return;
    };
    let Ok(header) = StanzaHeader::read(&element) else {
        return;
    };
    let question = Question {
        from: identity.full.to_string(),
        to: vec![requester.to_string()],
        kind: Kind::Iq,
        type_: "error".to_owned(),
        trace: None,
    };
    let Ok(verdict) = gateway.decide_one(&question).await else {
        return;
    };
    gateway.permits.ruled(allows(&verdict));
    let ephemeral = exempt::is_exempt(&element, &header);
    let key = if ephemeral {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(&gateway.ids.id())
    };
    let item = AppendItem {
        count: u64::from(!ephemeral),
        sm_id: key,
        gateway: gateway.name.to_string(),
        from: identity.full.to_string(),
        to: requester.to_string(),
        kind: Kind::Iq.into(),
        r#type: "error".to_owned(),
        id: header.id.as_deref().unwrap_or_default().to_owned(),
        payload: chancery_xml::Splice::new(&element)
            .ensure_ns(chancery_xmpp::ns::CLIENT)
            .finish(),
        verdict: Some(verdict),
        ephemeral,
        ..AppendItem::default()
    };
    if let Ok(answer) = gateway.append.call(item).await
        && !ephemeral
        && answer.number > 0
    {
        gateway.permits.recorded();
    }
}
