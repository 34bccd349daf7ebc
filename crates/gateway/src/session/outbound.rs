//! The session's writing side: what came up, replies, own presence, and the one flush.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use chancery_api::Kind;
use chancery_api::archive::{DenyEntry, attach_down};
use chancery_xmpp::StreamCondition;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::outgoing::{Next, Source};
use super::stream_management::Unacked;
use super::window::Ruling;
use super::{ASK_WHEN_IDLE, READ_OUT_LIMIT, Session};
use crate::colleagues::told;
use crate::presence::{self, Owed, Own, Why};
use crate::service::Gateway;
use crate::trace;

/// Policy that gave no verdict on a delivery is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(400);

impl Session {
    /// Something came up for this session.
    pub(super) fn on_delivery(&mut self, source: Source) {
        if self.ending.is_some() {
            // Not written, so not acknowledged: the shard decides again when the session is gone.
            // Somebody waits for the answer to a request.
            if source.is_request() {
                self.outgoing.push(source);
            }
            return;
        }
        if source.is_push() || source.is_notice() {
            self.on_roster_changed();
        }
        if source.is_notice() || self.is_said_otherwise(&source) {
            return;
        }
        if let Some(is_push) = source.is_blocks() {
            // Whom it shows itself to depends on the lists.
            self.owe(Why::Refresh);
            if !is_push || !self.handle.identity.followed.lock().wants_blocks {
                return;
            }
        }
        let entry = source.entry();
        if self.away_until.is_some() && entry == 0 && self.holds_too_much() {
            self.fail(StreamCondition::ResourceConstraint);
            return self.on_delivery(source);
        }
        if entry != 0 && self.rejoined && self.has_out(entry) {
            return; // came up on the old stream as well
        }
        if let (Some(position), true) = (&mut self.position, entry != 0) {
            *position = entry.max(*position);
        }
        if let Some(source) = self.client_state.hold(source) {
            self.hand_on_held();
            self.outgoing.push(source);
        }
    }

    pub(super) fn hand_on_held(&mut self) {
        for held in self.client_state.release() {
            self.outgoing.push(held);
        }
    }

    fn has_out(&self, entry: u64) -> bool {
        self.unwritten.contains(&entry)
            || self.outgoing.entries().any(|n| n == entry)
            || self
                .management
                .iter()
                .any(|sm| sm.entries().any(|n| n == entry))
    }

    /// Writes what may be written under the version in force. The version is held while writing:
    /// whoever confirms a newer one waits for this.
    pub(super) fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ending.is_some() || !self.connection.is_open() {
            return false;
        }
        let mut progress = self.write_again();
        if self.outgoing.is_empty() {
            return progress;
        }
        let gateway = Arc::clone(&self.gateway);
        if !gateway.policy.is_followed(gateway.clock.monotonic()) {
            // There may be a newer version: everything waits until policy is heard of again.
            return progress | self.give_up_page();
        }
        let handle = Arc::clone(&self.handle);
        let reader = handle.identity.reader();
        let ask = |source: &Source| ask_again(&gateway, source, reader);
        let in_force = gateway.policy.in_force();
        // Before the first version is known nothing passes without a verdict of its own.
        let current = (*in_force).max(1);
        while self.connection.has_room() && self.management.as_ref().is_none_or(|sm| !sm.is_full())
        {
            match self.outgoing.poll_next(cx, current, &ask) {
                Poll::Ready(Next::Write(source)) => self.write_source(&source),
                Poll::Ready(Next::Denied(source, verdict)) => self.deny(&source, verdict),
                Poll::Pending => break,
            }
            progress = true;
        }
        progress
    }

    /// What a stream before this one had, or waited for it: as it was, and not decided again.
    fn write_again(&mut self) -> bool {
        let Some(management) = &mut self.management else {
            return false;
        };
        let mut progress = false;
        while self.connection.has_room()
            && let Some(bytes) = management.next_unsent()
        {
            self.connection.queue(&bytes);
            progress = true;
        }
        progress
    }

    /// Whoever asked for a page does not wait for policy: a query may be asked again.
    fn give_up_page(&mut self) -> bool {
        let full = self.management.as_ref().is_some_and(|sm| sm.is_full());
        if full || !self.connection.has_room() {
            return false;
        }
        let Some(outage) = self.outgoing.give_up_page() else {
            return false;
        };
        self.write_stanza(outage);
        true
    }

    fn write_source(&mut self, source: &Source) {
        let mut span = self
            .gateway
            .tracer
            .served(trace::DELIVER, source.traceparent());
        span.set("kind", trace::kind(source.kind()));
        let handle = Arc::clone(&self.handle);
        let Some(bytes) = source.form(handle.identity.reader()) else {
            tracing::error!("a delivery has no form that can be written");
            return;
        };
        let entry = source.entry();
        self.connection.queue(&bytes);
        self.gateway.metrics.outbound.inc();
        match &mut self.management {
            Some(management) => {
                management.sent(Unacked {
                    entry,
                    bytes,
                    request: source.is_request(),
                });
            }
            None if entry != 0 => self.unwritten.push(entry),
            None => {}
        }
    }

    /// Denied under the version in force: closes the entry and is a record. Nobody is told.
    fn deny(&mut self, source: &Source, verdict: chancery_api::Verdict) {
        self.gateway.metrics.denied_again.inc();
        let number = source.entry();
        if number == 0 {
            return;
        }
        let session = self.handle.identity.number;
        let deny = DenyEntry {
            session,
            number,
            verdict: Some(verdict),
        };
        self.tell(attach_down::Item::Deny(deny));
        self.grant(1);
    }

    /// Writes a stanza of the server itself; without a stream it waits for the next.
    pub(super) fn write_stanza(&mut self, bytes: Bytes) {
        let direct =
            self.connection.is_open() && self.management.as_ref().is_none_or(|sm| !sm.has_unsent());
        if direct {
            self.connection.queue(&bytes);
        }
        if let Some(management) = &mut self.management {
            if management.overflows_with(0, 0) {
                // A client that asks on and on and acknowledges nothing.
                self.end(
                    Some(chancery_xmpp::StreamError::new(
                        StreamCondition::PolicyViolation,
                    )),
                    super::DRAIN_LIMIT,
                );
                return;
            }
            let unacked = Unacked {
                bytes,
                ..Unacked::default()
            };
            if direct {
                management.sent(unacked);
            } else {
                management.wait(unacked);
            }
        }
    }

    /// Writes to the socket. True when that made room for more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if !self.connection.is_open() {
            return false;
        }
        if let Some(management) = &self.management {
            if management.wants_request() {
                self.request_acknowledgement(now);
            } else if management.waits() && !management.requested && self.ask_at.is_none() {
                self.ask_at = Some(now + ASK_WHEN_IDLE);
            }
        }
        let held_back = !self.connection.has_room();
        match self.connection.poll_flush(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                // With the kernel: without stream management that is all there is to know.
                let written = std::mem::take(&mut self.unwritten);
                self.acknowledge(written);
                held_back
            }
            Poll::Ready(Err(_)) if self.ending.is_some() => {
                self.die();
                true
            }
            Poll::Ready(Err(_)) => {
                self.connection.mute(now + READ_OUT_LIMIT);
                true
            }
        }
    }

    /// The session's own presence: nothing is read until it is published or owed.
    pub(super) fn own_presence(&mut self, own: Own, counted: bool) {
        self.own = Some(Arc::new(own));
        // What was owed before is superseded, but for what is said of others.
        self.owed = self.owed.superseded();
        self.owed_at = self.owed_at.filter(|_| self.owed != Owed::default());
        self.publish(counted, Why::Changed);
    }

    /// The roster has changed, or may have: pushes are ephemeral, and get lost with a stream to the
    /// shard and in a long lag.
    pub(super) fn on_roster_changed(&mut self) {
        self.handle.identity.followed.lock().roster_changed();
        self.owe(Why::Roster);
    }

    /// Presence is to be published again, as soon as nothing else runs alone: once for many reasons.
    pub(super) fn owe(&mut self, why: Why) {
        self.owe_after(why, Duration::ZERO);
    }

    /// The same, after a while: sooner where something else is due before.
    pub(super) fn owe_after(&mut self, why: Why, after: Duration) {
        self.owed.add(why);
        let at = self.gateway.clock.monotonic() + after;
        self.owed_at = Some(self.owed_at.map_or(at, |owed_at| owed_at.min(at)));
    }

    /// What could not be published is tried again.
    pub(super) fn publish_owed(&mut self, now: Instant) {
        for why in std::mem::take(&mut self.owed).reasons() {
            if why == Why::Probe && !self.has_written() {
                // What came of the last one is to be read first.
                self.owed.add(why);
                self.owed_at = Some(now + presence::PROBE_PAUSE);
                continue;
            }
            self.publish_again(why);
        }
    }

    /// Is everything that came up on its way to the client?
    fn has_written(&self) -> bool {
        self.away_until.is_none() && self.outgoing.is_empty() && self.takes_stanzas()
    }

    /// An item of the roster is to be pushed as it is with the groups of the directory.
    pub(super) fn on_roster_item(&mut self, jid: Arc<str>) {
        self.handle.identity.followed.lock().moved.add_item(jid);
        self.owe(Why::Colleagues);
    }

    /// What is said to this session otherwise, or not at all: a request to be heard by who hears already,
    /// and a push to whoever has colleagues, has missed one, or has no roster to which it is the next.
    fn is_said_otherwise(&mut self, source: &Source) -> bool {
        let identity = Arc::clone(&self.handle.identity);
        let Source::Log(delivered, _) = source else {
            return false;
        };
        if source.kind() == Kind::Presence && delivered.up.r#type == "subscribe" {
            let colleagues = &self.gateway.colleagues;
            return colleagues.are(&identity.account, &delivered.up.from);
        }
        if !source.is_push() {
            return false;
        }
        let Some((jid, version)) = told::pushed(&delivered.up.payload) else {
            return false;
        };
        let as_it_is = {
            let mut followed = identity.followed.lock();
            let waiting = !followed.moved.items.is_empty();
            let told = followed.roster.as_mut();
            told.is_some_and(|told| told.hear(&version) && !told.has_any() && !waiting)
        };
        if as_it_is && self.gateway.colleagues.of(&identity.account).is_empty() {
            return false;
        }
        self.on_roster_item(jid.into());
        true
    }

    /// Publishes the newest presence, for another reason than that the client has just said so.
    fn publish_again(&mut self, why: Why) {
        let directed = !self.handle.identity.followed.lock().directed.is_empty();
        let available = self.own.as_ref().is_some_and(|own| own.is_available());
        let wanted = matches!(why, Why::Changed | Why::Colleagues) || available || directed;
        if wanted && self.ending.is_none() {
            self.publish(false, why);
        }
    }

    fn publish(&mut self, counted: bool, why: Why) {
        let gateway = Arc::clone(&self.gateway);
        let identity = Arc::clone(&self.handle.identity);
        let work = presence::publish(gateway, identity, self.own.clone(), why);
        self.window.alone(counted, work.boxed());
    }
}

/// Asks policy again about a delivery, with a pause where there was no verdict.
fn ask_again(
    gateway: &Arc<Gateway>,
    source: &Source,
    reader: super::deliver::Reader<'_>,
) -> Ruling {
    gateway.metrics.decided_again.inc();
    let question = source.question(reader);
    let gateway = Arc::clone(gateway);
    async move {
        let verdict = gateway.policy.decide_one(&question).await;
        if verdict.is_err() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        verdict
    }
    .boxed()
}
