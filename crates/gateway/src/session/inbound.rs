//! The session's reading side: frames, shaping, the filters, the window and what follows from it.

use std::sync::Arc;
use std::task::{Context, Poll};

use chancery_api::archive::AppendItem;
use chancery_runtime::trace::TraceContext;
use chancery_xml::{Element, Frame};
use chancery_xmpp::{StreamCondition, StreamError, ns};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::window::{Effect, Shard};
use super::{DRAIN_LIMIT, OWED_AGAIN, Session};
use crate::iq::{self, Scope};
use crate::pipeline::answer::End;
use crate::pipeline::decide::{Question, Undecided};
use crate::pipeline::record::{self, Key};
use crate::pipeline::{Flow, Ground, Inbound, Work, modules};
use crate::presence::{self, Why};
use crate::subscription;
use crate::trace;
use crate::transport::TransportError;

/// Frames read in one round.
const FRAMES_A_ROUND: usize = 64;

impl Session {
    /// Reads while there is room in the window, in the bucket and towards the client: otherwise
    /// TCP holds the client back.
    pub(super) fn poll_frames(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut progress = false;
        for _ in 0..FRAMES_A_ROUND {
            let reads = self.ending.is_none()
                && self.paused_until.is_none()
                && self.window.takes_more()
                && self.connection.has_room();
            if !reads {
                break;
            }
            let Poll::Ready(frame) = self.connection.poll_frame(cx) else {
                break;
            };
            progress = true;
            match frame {
                Ok(Some(Frame::Element(element))) => self.on_element(element, now),
                // RFC 6120 §4.4: what was read is answered, then we close too.
                Ok(Some(Frame::Close)) => self.end(None, DRAIN_LIMIT),
                Ok(Some(Frame::Open(_))) => self.fail(StreamCondition::BadFormat),
                Ok(None) | Err(TransportError::Io(_)) => self.die(),
                Err(TransportError::Frame(error)) => {
                    self.end(Some(StreamError::from(error)), DRAIN_LIMIT);
                }
            }
        }
        progress
    }

    fn on_element(&mut self, element: Element, now: Instant) {
        let bytes = element.bytes.len();
        let shared = self.shared.iter().filter_map(|one| one.took(bytes, now));
        self.paused_until = shared.max().max(self.shaping.took(bytes, now));
        let is_on = |feature| self.gateway.handlers.is_on(feature);
        match &*element.header.ns {
            ns::SM if is_on("stream_management") => {
                return self.on_stream_management(&element, now);
            }
            ns::CSI if is_on("client_state") => return self.on_client_state(&element),
            _ => {}
        }
        self.gateway.metrics.inbound.inc();
        let gateway = Arc::clone(&self.gateway);
        let handle = Arc::clone(&self.handle);
        let domains = gateway.domains.load();
        let ground = Ground {
            identity: &handle.identity,
            domains: &domains,
            handlers: &gateway.handlers,
        };
        let mut inbound = Inbound {
            ground,
            element,
            header: None,
            removed: Vec::new(),
        };
        let flow = modules::run(&mut inbound);
        let mut span = gateway.tracer.root(trace::STANZA);
        trace::describe(&mut span, &inbound.element);
        let counted = self.management.is_some();
        if !matches!(flow, Flow::End(_)) {
            self.count += 1;
        }
        match flow {
            Flow::Pass | Flow::Done => self.window.over(counted, None, End::Silent),
            Flow::Bounce(error) => {
                self.window
                    .over(counted, Some(inbound.element), End::Bounce(error));
            }
            Flow::End(error) => {
                span.set("outcome", "stream error");
                self.end(Some(error), DRAIN_LIMIT);
                return;
            }
            Flow::Take(work) => self.take(work, inbound, counted, span.context()),
        }
        self.window.follow(span);
    }

    fn take(
        &mut self,
        work: Work,
        inbound: Inbound<'_>,
        counted: bool,
        trace: Option<TraceContext>,
    ) {
        let Inbound {
            element,
            header,
            removed,
            ..
        } = inbound;
        let Some(header) = header else { return };
        let identity = Arc::clone(&self.handle.identity);
        match work {
            Work::Handle(handler, scope) => {
                let published =
                    handler.publishes() && element.header.type_.as_deref() == Some("set");
                let item = (published || scope == Scope::Other).then(|| {
                    let item = self.item(&element, &header, &removed);
                    let item = if published {
                        record::always(item, self.key())
                    } else {
                        item
                    };
                    Box::new(item)
                });
                let request = iq::Request {
                    gateway: Arc::clone(&self.gateway),
                    identity,
                    element,
                    scope,
                    to: header.to,
                    item,
                    trace,
                };
                if iq::runs_alone(&handler, &request) {
                    self.window
                        .alone(counted, iq::run(handler, request).boxed());
                } else {
                    self.window
                        .handle(counted, iq::run(handler, request).boxed());
                }
            }
            Work::OwnPresence => {
                let key = self.key();
                let own = presence::Own::read(&identity, &element, &header, &removed, key);
                let own = own.followed(trace);
                self.own_presence(own, counted);
            }
            Work::DirectedPresence => {
                let item = self.item(&element, &header, &removed);
                let gateway = Arc::clone(&self.gateway);
                let work = presence::directed(gateway, identity, element, item, trace);
                self.window.alone(counted, work.boxed());
            }
            Work::Subscription(act) => {
                let item = self.item(&element, &header, &removed);
                let gateway = Arc::clone(&self.gateway);
                let said = subscription::Said {
                    act,
                    element,
                    removed,
                    item,
                    trace,
                };
                let work = subscription::handshake(gateway, identity, said);
                self.window.alone(counted, work.boxed());
            }
            Work::Route => {
                let item = self.item(&element, &header, &removed);
                let ruling = rule(Arc::clone(&self.gateway), question(&item, trace)).boxed();
                self.window.route(counted, element, item, ruling);
            }
        }
    }

    /// The key of the stanza read last. Counts of the client begin with `<enable/>`.
    fn key(&self) -> Key {
        let identity = &self.handle.identity;
        let sm_id = if self.management.is_some() {
            identity.log_id
        } else {
            identity.early_id
        };
        Key {
            sm_id,
            count: self.count,
        }
    }

    fn item(
        &self,
        element: &Element,
        header: &chancery_xmpp::StanzaHeader,
        removed: &[usize],
    ) -> AppendItem {
        let identity = &self.handle.identity;
        record::item(
            &self.gateway.name,
            identity,
            element,
            header,
            removed,
            self.key(),
        )
    }

    /// Moves the window, and does what follows.
    pub(super) fn poll_window(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let gateway = Arc::clone(&self.gateway);
        let shard = Shard {
            lane: &gateway.append,
            tracer: &gateway.tracer,
            failpoints: &gateway.failpoints,
        };
        // Without a stream, or towards the end of one, what is under way is waited for.
        let watched = self.ending.is_some() || !self.connection.is_open() || self.answer_unasked;
        let effects = self.window.poll(cx, shard, now, watched);
        let progress = !effects.is_empty();
        for effect in effects {
            self.on_effect(effect, now);
        }
        if self.frozen && self.ending.is_none() {
            self.thaw();
        }
        if progress && self.window.is_empty() && self.answer_unasked {
            self.answer_unasked = false;
            if self.management.as_ref().is_some_and(|sm| sm.owes_answer()) {
                self.write_answer();
            }
        }
        progress
    }

    fn on_effect(&mut self, effect: Effect, now: Instant) {
        match effect {
            // The client says it again, and is answered then.
            Effect::Write(_) if self.frozen => {}
            Effect::Write(bytes) => self.write_stanza(bytes),
            Effect::Queue(page) => page
                .into_iter()
                .for_each(|source| self.outgoing.push(source)),
            Effect::Settled {
                counted,
                logged,
                end,
                element,
            } => self.on_settled(counted.then_some(logged), end, element),
            Effect::Answer => {
                // What settles later is told without being asked.
                self.answer_unasked = !self.window.is_empty();
                self.write_answer();
            }
            Effect::Owed(why) => {
                let pause = match why {
                    Why::Probe => presence::PROBE_PAUSE,
                    _ => OWED_AGAIN,
                };
                self.owed.add(why);
                self.owed_at = Some(now + pause);
            }
            Effect::Ruled { allowed } => self.gateway.permits.ruled(allowed),
            Effect::Recorded => self.gateway.permits.recorded(),
        }
    }

    /// A stanza that counts is in the log or not.
    fn on_settled(&mut self, counted: Option<bool>, end: End, element: Option<Box<Element>>) {
        if self.frozen {
            return;
        }
        if let End::Stream(error) = end {
            // The outcome is unknown: neither bounced nor counted, and nothing behind it is.
            self.gateway.metrics.unknown.inc();
            self.frozen = true;
            if !self.detach(Some(error.clone())) {
                self.ending = None;
                self.end(Some(error), std::time::Duration::ZERO);
            }
            return;
        }
        if end == End::Late {
            self.frozen = true;
            self.ending = None;
            let conflict = StreamError::new(StreamCondition::Conflict);
            self.end(Some(conflict), std::time::Duration::ZERO);
            return;
        }
        if let (Some(logged), Some(management)) = (counted, &mut self.management) {
            management.count_handled(logged);
        }
        if let (End::Bounce(error), Some(element)) = (end, element)
            && let Some(reply) = error.reply(&element, None, Some(&self.handle.identity.full))
        {
            self.gateway.metrics.bounced(error.condition);
            self.write_stanza(reply);
        }
    }
}

/// What policy is asked about an item.
fn question(item: &AppendItem, trace: Option<TraceContext>) -> Question {
    Question {
        from: item.from.clone(),
        to: vec![item.to.clone()],
        kind: item.kind(),
        type_: item.r#type.clone(),
        trace,
    }
}

/// Asks policy about one stanza.
pub(crate) async fn rule(
    gateway: Arc<crate::service::Gateway>,
    question: Question,
) -> Result<chancery_api::Verdict, Undecided> {
    if gateway
        .failpoints
        .hit("gateway::stanza::parsed")
        .await
        .is_err()
    {
        return Err(Undecided);
    }
    let verdict = gateway.decide_one(&question).await;
    if verdict.is_err() {
        gateway.metrics.undecided.inc();
    }
    verdict
}
