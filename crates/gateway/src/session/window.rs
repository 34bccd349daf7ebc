//! The inbound window: stanzas of one session that wait for policy, the shard or a handler.
//!
//! Decisions run ahead, submissions and outcomes keep the order of the stanzas, handlers keep
//! theirs. What must be alone (own presence, a change that the shard has to confirm) runs when all
//! before it is over. Owns the order; refuses to read, to write and to count.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use chancery_api::archive::{AppendAnswer, AppendItem, Outcome};
use chancery_api::{Answer, Lane, LaneError, Verdict};
use chancery_runtime::trace::{Span, TraceContext};
use chancery_runtime::{Failpoints, Tracer};
use chancery_xml::Element;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::pipeline::answer::{self, End};
use crate::pipeline::decide::{Undecided, allows};
use crate::presence::Why;
use crate::session::outgoing::Source;
use crate::trace;

/// Stanzas that one session may have under way; then reading pauses.
pub(crate) const WINDOW_STANZAS: usize = 64;
/// So many may be with the shard without a wake-up for each of its answers, while nothing waits for
/// them: whatever moves the session next finds them.
const UNWATCHED: usize = 8;
/// Bytes of a stanza that may be kept so.
const UNWATCHED_BYTES: usize = 4096;

/// What a handler, or what runs alone, has done.
#[derive(Debug, Default)]
pub(crate) struct Handled {
    /// Written at once.
    pub(crate) reply: Option<Bytes>,
    /// Presence that could not be published, and why it should have been: it is tried again.
    pub(crate) owed: Option<Why>,
    /// Waits its turn behind what came up, and for room: a page of the archive and its answer, or pushes.
    pub(crate) page: Vec<Source>,
}

/// A question to policy that is under way.
pub(crate) type Ruling = BoxFuture<'static, Result<Verdict, Undecided>>;

/// The shard's answer, under way.
enum Acknowledged {
    Plain(Answer<AppendAnswer>),
    /// Through a failpoint.
    Tested(BoxFuture<'static, Result<AppendAnswer, LaneError>>),
}

impl Acknowledged {
    /// Without `cx` nobody is woken, but for what is not plain.
    fn poll(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<AppendAnswer, LaneError>> {
        match (self, cx) {
            (Self::Plain(answer), None) => answer.try_take().map_or(Poll::Pending, Poll::Ready),
            (Self::Plain(answer), Some(cx)) => answer.poll_unpin(cx),
            (Self::Tested(answer), Some(cx)) => answer.poll_unpin(cx),
            (Self::Tested(_), None) => Poll::Pending,
        }
    }
}

enum Step {
    Handling(BoxFuture<'static, Handled>),
    Alone(BoxFuture<'static, Handled>),
    Deciding(Ruling, Box<AppendItem>),
    Decided(Result<Verdict, Undecided>, Box<AppendItem>),
    Submitting(BoxFuture<'static, Result<Acknowledged, LaneError>>, Route),
    Appending(Acknowledged, Route),
    /// An `<r/>`, answered in its place or when its time is over.
    Request(Instant),
    Over(End),
}

/// What is remembered of a routed stanza while the shard has it.
struct Route {
    verdict: Verdict,
    ephemeral: bool,
    request: bool,
    /// From the submission to the answer.
    _span: Span,
}

struct Slot {
    /// Counts for XEP-0198.
    counted: bool,
    /// The log has it.
    logged: bool,
    /// Kept where it may have to be answered.
    element: Option<Box<Element>>,
    step: Step,
    /// From the read to the end.
    span: Span,
}

impl Slot {
    /// Whether nobody has to be told when the shard has it.
    fn is_unwatched(&self) -> bool {
        match &self.step {
            Step::Appending(Acknowledged::Plain(_), route) => {
                let bytes = self.element.as_ref().map_or(0, |e| e.bytes.len());
                allows(&route.verdict) && bytes <= UNWATCHED_BYTES && !self.span.is_on()
            }
            Step::Over(end) => *end == End::Silent,
            Step::Deciding(..) | Step::Submitting(..) => true,
            _ => false,
        }
    }
}

/// What follows from progress in the window, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A reply of a handler.
    Write(Bytes),
    /// What a handler has to say in its turn.
    Queue(Vec<Source>),
    /// A stanza is over: it counts, and may be answered.
    Settled {
        counted: bool,
        logged: bool,
        end: End,
        element: Option<Box<Element>>,
    },
    /// `<a/>` is due.
    Answer,
    /// Presence has to be tried again.
    Owed(Why),
    /// Policy gave a verdict.
    Ruled { allowed: bool },
    /// The shard committed a record.
    Recorded,
}

/// Where stanzas are submitted to.
#[derive(Clone, Copy)]
pub(crate) struct Shard<'a> {
    pub(crate) lane: &'a Lane<AppendItem, AppendAnswer>,
    pub(crate) tracer: &'a Tracer,
    pub(crate) failpoints: &'a Failpoints,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Window {
    slots: VecDeque<Slot>,
    alone: usize,
}

impl Window {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// May another stanza be read?
    pub(crate) fn takes_more(&self) -> bool {
        self.alone == 0 && self.slots.len() < WINDOW_STANZAS
    }

    /// A stanza to be decided, and submitted in its turn.
    pub(crate) fn route(
        &mut self,
        counted: bool,
        element: Element,
        item: AppendItem,
        ruling: Ruling,
    ) {
        self.push(
            counted,
            Some(element),
            Step::Deciding(ruling, Box::new(item)),
        );
    }

    /// A request for a handler; does not wait for others than handlers.
    pub(crate) fn handle(&mut self, counted: bool, work: BoxFuture<'static, Handled>) {
        self.push(counted, None, Step::Handling(work));
    }

    /// What runs when everything before it is over; nothing is read until it is over too.
    pub(crate) fn alone(&mut self, counted: bool, work: BoxFuture<'static, Handled>) {
        self.alone += 1;
        self.push(counted, None, Step::Alone(work));
    }

    /// Does something run alone, or wait to?
    pub(crate) fn is_alone(&self) -> bool {
        self.alone > 0
    }

    /// A stanza whose end is known already.
    pub(crate) fn over(&mut self, counted: bool, element: Option<Element>, end: End) {
        self.push(counted, element, Step::Over(end));
    }

    /// An `<r/>`.
    pub(crate) fn request(&mut self, until: Instant) {
        self.push(false, None, Step::Request(until));
    }

    /// The stanza that was taken last is followed by `span` until it is over.
    pub(crate) fn follow(&mut self, span: Span) {
        if let Some(slot) = self.slots.back_mut() {
            slot.span = span;
        }
    }

    /// When something is due even without progress.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.slots
            .iter()
            .filter_map(|slot| match slot.step {
                Step::Request(until) => Some(until),
                _ => None,
            })
            .min()
    }

    fn push(&mut self, counted: bool, element: Option<Element>, step: Step) {
        self.slots.push_back(Slot {
            counted,
            logged: false,
            element: element.map(Box::new),
            step,
            span: Span::off(),
        });
    }

    /// Moves everything as far as it goes. `watched`: somebody waits for the end of what is under way.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        shard: Shard<'_>,
        now: Instant,
        watched: bool,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.slots.is_empty() {
            return effects;
        }
        self.poll_rulings(cx, &mut effects);
        self.poll_handlers(cx, &mut effects);
        loop {
            self.submit(cx, shard);
            self.poll_answers(cx, watched, &mut effects);
            let over = self.take_over(cx, &mut effects);
            if !over {
                break;
            }
        }
        self.answer_late_requests(now, &mut effects);
        if self.slots.is_empty() && self.slots.capacity() > WINDOW_STANZAS / 4 {
            self.slots = VecDeque::new();
        }
        effects
    }

    fn poll_rulings(&mut self, cx: &mut Context<'_>, effects: &mut Vec<Effect>) {
        for slot in &mut self.slots {
            let Step::Deciding(ruling, _) = &mut slot.step else {
                continue;
            };
            let Poll::Ready(ruled) = ruling.as_mut().poll(cx) else {
                continue;
            };
            if let Ok(verdict) = &ruled {
                effects.push(Effect::Ruled {
                    allowed: allows(verdict),
                });
            }
            let step = std::mem::replace(&mut slot.step, Step::Over(End::Silent));
            if let Step::Deciding(_, item) = step {
                slot.step = Step::Decided(ruled, item);
            }
        }
    }

    /// One handler at a time: two changes of a roster keep their order.
    fn poll_handlers(&mut self, cx: &mut Context<'_>, effects: &mut Vec<Effect>) {
        for slot in &mut self.slots {
            match &mut slot.step {
                Step::Handling(work) => {
                    let Poll::Ready(handled) = work.as_mut().poll(cx) else {
                        return;
                    };
                    effects.extend(handled.reply.map(Effect::Write));
                    if !handled.page.is_empty() {
                        effects.push(Effect::Queue(handled.page));
                    }
                    slot.step = Step::Over(End::Silent);
                }
                Step::Alone(_) => return,
                _ => {}
            }
        }
    }

    /// Submits in order, one at a time, what is decided.
    fn submit(&mut self, cx: &mut Context<'_>, shard: Shard<'_>) {
        for slot in &mut self.slots {
            if let Step::Decided(..) = slot.step {
                let step = std::mem::replace(&mut slot.step, Step::Over(End::Silent));
                if let Step::Decided(ruled, item) = step {
                    slot.step = start(ruled, item, shard, slot.span.context());
                }
            }
            match &mut slot.step {
                Step::Deciding(..) | Step::Alone(_) => return,
                Step::Submitting(work, _) => {
                    let Poll::Ready(taken) = work.as_mut().poll(cx) else {
                        return;
                    };
                    let step = std::mem::replace(&mut slot.step, Step::Over(End::Silent));
                    if let Step::Submitting(_, route) = step {
                        slot.step = match taken {
                            Ok(answer) => Step::Appending(answer, route),
                            Err(error) => Step::Over(answer::unanswered(
                                error,
                                route.ephemeral,
                                route.request,
                            )),
                        };
                    }
                }
                _ => {}
            }
        }
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>, watched: bool, effects: &mut Vec<Effect>) {
        let watched =
            watched || self.slots.len() > UNWATCHED || !self.slots.iter().all(Slot::is_unwatched);
        for slot in &mut self.slots {
            let Step::Appending(answer, route) = &mut slot.step else {
                continue;
            };
            let Poll::Ready(answered) = answer.poll(watched.then_some(&mut *cx)) else {
                continue;
            };
            let end = match answered {
                Ok(answered) => {
                    let outcome = answered.outcome();
                    if !route.ephemeral && answered.number > 0 {
                        effects.push(Effect::Recorded);
                        slot.logged = true;
                    }
                    if outcome == Outcome::Refused {
                        tracing::error!("the log refused a stanza");
                    }
                    if allows(&route.verdict) {
                        answer::allowed(outcome)
                    } else {
                        answer::refused(outcome, &route.verdict)
                    }
                }
                Err(error) => answer::unanswered(error, route.ephemeral, route.request),
            };
            slot.step = Step::Over(end);
        }
    }

    /// Takes what is over from the front, and runs what had to wait for that. True when something
    /// came to the front that may go on now.
    fn take_over(&mut self, cx: &mut Context<'_>, effects: &mut Vec<Effect>) -> bool {
        let mut ran_alone = false;
        while let Some(slot) = self.slots.front_mut() {
            match &mut slot.step {
                Step::Over(_) => {}
                Step::Request(_) => {
                    effects.push(Effect::Answer);
                    self.slots.pop_front();
                    continue;
                }
                Step::Alone(work) => {
                    let Poll::Ready(handled) = work.as_mut().poll(cx) else {
                        break;
                    };
                    effects.extend(handled.reply.map(Effect::Write));
                    if !handled.page.is_empty() {
                        effects.push(Effect::Queue(handled.page));
                    }
                    effects.extend(handled.owed.map(Effect::Owed));
                    self.alone -= 1;
                    ran_alone = true;
                    slot.step = Step::Over(End::Silent);
                }
                _ => break,
            }
            if let Some(Slot {
                counted,
                logged,
                element,
                step: Step::Over(end),
                mut span,
            }) = self.slots.pop_front()
            {
                trace::conclude(&mut span, &end);
                effects.push(Effect::Settled {
                    counted,
                    logged,
                    end,
                    element,
                });
            }
        }
        ran_alone && !self.slots.is_empty()
    }

    /// `<r/>` is answered after its time with the count reached so far.
    fn answer_late_requests(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for slot in &mut self.slots {
            if matches!(slot.step, Step::Request(until) if until <= now) {
                effects.push(Effect::Answer);
                slot.step = Step::Over(End::Silent);
            }
        }
    }
}

/// What a ruling leads to.
fn start(
    ruled: Result<Verdict, Undecided>,
    mut item: Box<AppendItem>,
    shard: Shard<'_>,
    trace: Option<TraceContext>,
) -> Step {
    let Ok(verdict) = ruled else {
        return Step::Over(End::Bounce(answer::outage()));
    };
    if !allows(&verdict) && item.ephemeral {
        return Step::Over(End::Bounce(answer::denied(&verdict)));
    }
    // A denied stanza is recorded as well, with its verdict: evidence, and no entry.
    item.verdict = Some(verdict.clone());
    let span = shard.tracer.calls(trace::APPEND, trace);
    item.traceparent = span.traceparent();
    let route = Route {
        ephemeral: item.ephemeral,
        request: item.kind() == chancery_api::Kind::Iq && matches!(&*item.r#type, "get" | "set"),
        verdict,
        _span: span,
    };
    let (lane, failpoints) = (shard.lane.clone(), shard.failpoints.clone());
    let work = async move {
        let alarm = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let answer = lane.submit_quietly(*item, alarm).await?;
        if !failpoints.is_armed() {
            return Ok(Acknowledged::Plain(answer));
        }
        let tested = async move {
            let answer = answer.await?;
            match failpoints.hit("gateway::archive::acknowledged").await {
                Ok(()) => Ok(answer),
                Err(_) => Err(LaneError::Unknown),
            }
        };
        Ok(Acknowledged::Tested(tested.boxed()))
    };
    Step::Submitting(Box::pin(work), route)
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
