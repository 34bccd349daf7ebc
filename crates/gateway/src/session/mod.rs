//! A session: one bound resource, as one task, on one stream at a time (XEP-0198).
//!
//! The task is a poll function over a few state machines that do no I/O of their own: the inbound
//! window, the outgoing order, the XEP-0198 counters, the shaping bucket. It owns the stream and
//! writes what is ready in one flush. Everything that is idle costs nothing: queues are empty,
//! timers and futures exist only while something is due.

pub(crate) mod bind;
pub(crate) mod client_state;
mod connection;
pub(crate) mod deliver;
mod end;
pub(crate) mod identity;
mod inbound;
pub(crate) mod inbox;
mod nonzas;
mod outbound;
pub(crate) mod outgoing;
pub(crate) mod resumption;
pub(crate) mod shaping;
pub(crate) mod stream_management;
pub(crate) mod table;
pub(crate) mod window;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chancery_api::archive::{AttachDown, AttachSession, EndReason, attach_down};
use chancery_xmpp::{StreamCondition, StreamError};
use tokio::time::{Instant, Sleep};

use crate::presence::{Owed, Own, Why};
use crate::service::Gateway;
use crate::transport::Transport;
use client_state::ClientState;
use connection::Connection;
use inbox::{CutOff, Event};
use outgoing::{Outgoing, Source};
use shaping::{Shaping, Shared};
use stream_management::StreamManagement;
use table::Handle;
use window::Window;

/// Entries that may be out without acknowledgement: without stream management they are
/// acknowledged when they are written.
pub(crate) const CREDIT: u32 = 64;
/// Rounds of one poll before other tasks get their turn.
const ROUNDS: usize = 32;
/// An ending session waits so long for the outcomes of what it has read.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// The same when the process ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);
/// Presence that could not be published is tried again after this.
const OWED_AGAIN: Duration = Duration::from_secs(1);
/// A client that does not answer an `<r/>` for so long is gone.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(120);
/// A socket that takes nothing more is read for so long, or to its end.
const READ_OUT_LIMIT: Duration = Duration::from_secs(1);
/// An idle stream with unacknowledged stanzas is asked after this.
const ASK_WHEN_IDLE: Duration = Duration::from_secs(1);

/// How the stream ends.
struct Ending {
    /// `None`: with our closing tag only.
    error: Option<StreamError>,
    /// No longer than this for what is under way.
    until: Instant,
    /// Frames that are still read.
    frames: usize,
}

/// See the module.
pub(crate) struct Session {
    gateway: Arc<Gateway>,
    handle: Arc<Handle>,
    connection: Connection,
    window: Window,
    outgoing: Outgoing,
    client_state: ClientState,
    management: Option<Box<StreamManagement>>,
    /// Stanzas read since `<enable/>`, or since the bind before it.
    count: u64,
    shaping: Shaping,
    /// What the sessions of its account, and those of its domain, take from together.
    shared: [Shared; 2],
    /// Over a rate: nothing is read until then.
    paused_until: Option<Instant>,
    /// Entries queued for the socket, without stream management.
    unwritten: Vec<u64>,
    /// The presence last published or owed.
    own: Option<Arc<Own>>,
    /// Presence that could not be published, by reason.
    owed: Owed,
    owed_at: Option<Instant>,
    /// An `<a/>` is owed although nobody asked again.
    answer_unasked: bool,
    asked_at: Option<Instant>,
    ask_at: Option<Instant>,
    /// Own place in the log while the session lags.
    position: Option<u64>,
    /// The place it attached at again, until the shard confirms: on a further loss it still holds.
    place: Option<u64>,
    /// Attached again: entries may come twice.
    rejoined: bool,
    timer: Option<Pin<Box<Sleep>>>,
    ending: Option<Box<Ending>>,
    /// Without a stream, until then; or about to take over another, until then.
    away_until: Option<Instant>,
    /// An outcome is unknown: nothing behind it is counted or answered.
    frozen: bool,
}

impl Session {
    /// A session whose bind result is queued.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        handle: Arc<Handle>,
        transport: Box<Transport>,
    ) -> Self {
        let now = gateway.clock.monotonic();
        let [own, account, domain] = gateway.config.rates();
        let shared = gateway.sessions.shaping(
            &handle,
            || Shared::new(account.0, account.1, now),
            || Shared::new(domain.0, domain.1, now),
        );
        Self {
            shaping: Shaping::new(own.0, own.1, now),
            shared,
            gateway,
            handle,
            connection: Connection::Open(transport),
            window: Window::default(),
            outgoing: Outgoing::default(),
            client_state: ClientState::default(),
            management: None,
            count: 0,
            paused_until: None,
            unwritten: Vec::new(),
            own: None,
            owed: Owed::default(),
            owed_at: None,
            answer_unasked: false,
            asked_at: None,
            ask_at: None,
            position: None,
            place: None,
            rejoined: false,
            timer: None,
            ending: None,
            away_until: None,
            frozen: false,
        }
    }

    /// Runs until the stream is over and everybody who has to know of it does.
    pub(crate) async fn run(mut self: Box<Self>) {
        poll_fn(|cx| self.poll(cx)).await;
        // Large, and rare: not part of the idle session.
        Box::pin(self.finish()).await;
    }

    /// Ready when nothing more is to be done on this stream.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            let now = self.gateway.clock.monotonic();
            let mut progress = self.poll_inbox(cx);
            progress |= self.poll_window(cx, now);
            progress |= self.poll_resumption();
            progress |= self.poll_outgoing(cx);
            progress |= self.poll_frames(cx, now);
            progress |= self.read_out(cx);
            progress |= self.poll_due(now);
            if !progress {
                progress = self.poll_flush(cx, now);
            }
            if self.is_over(now) {
                return Poll::Ready(());
            }
            if !progress && self.poll_timer(cx, now).is_pending() {
                return Poll::Pending;
            }
        }
        // Others get their turn; what is ready here is written first.
        let now = self.gateway.clock.monotonic();
        self.poll_flush(cx, now);
        if self.is_over(now) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_over(&self, now: Instant) -> bool {
        match &self.ending {
            Some(ending) => self.window.is_empty() || ending.until <= now,
            None => false,
        }
    }

    /// Ends the stream once what is under way is over. The first reason stays.
    fn end(&mut self, error: Option<StreamError>, limit: Duration) {
        if self.ending.is_none() {
            let until = self.gateway.clock.monotonic() + limit;
            self.ending = Some(Box::new(Ending {
                error,
                until,
                frames: end::READ_OUT_FRAMES,
            }));
        }
    }

    fn fail(&mut self, condition: StreamCondition) {
        self.end(Some(StreamError::new(condition)), DRAIN_LIMIT);
    }

    /// The socket is gone: what was read is still brought to its end.
    fn die(&mut self) {
        if !self.detach(None) {
            self.connection = Connection::Gone;
            self.end(None, DRAIN_LIMIT);
        }
    }

    /// The stream ends with this error; a session that may be resumed outlasts it.
    fn break_off(&mut self, error: StreamError, limit: Duration) {
        if !self.detach(Some(error.clone())) {
            self.end(Some(error), limit);
        }
    }

    /// Takes what came up. While there is no room for stanzas only what ends the session is taken:
    /// the inbox is bounded, and says when it overflows.
    fn poll_inbox(&mut self, cx: &Context<'_>) -> bool {
        // First, so that nothing that comes from here on is missed.
        self.handle.inbox.register(cx);
        let mut progress = false;
        if let Some(offer) = self.handle.inbox.take_offer() {
            self.on_offer(*offer);
            progress = true;
        }
        while let Some(event) = self.handle.inbox.pop_urgent() {
            self.on_event(event);
            progress = true;
        }
        while self.takes_stanzas() {
            let Poll::Ready(event) = self.handle.inbox.poll_next(cx) else {
                return progress;
            };
            self.on_event(event);
            progress = true;
        }
        if self.ending.is_none() && self.handle.inbox.overflown() {
            // Entries are held by credit: this is presence and other ephemerals to a client that
            // does not take them.
            self.fail(StreamCondition::ResourceConstraint);
            progress = true;
        }
        progress
    }

    fn takes_stanzas(&self) -> bool {
        // Away it takes everything and looks at its bounds itself: there is no socket to wait for.
        self.ending.is_some()
            || self.away_until.is_some()
            || (self.outgoing.takes_more()
                && self.connection.has_room()
                && self.management.as_ref().is_none_or(|sm| !sm.is_full()))
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Attached => {
                self.place = None;
                self.handle.identity.followed.lock().attached();
            }
            Event::Updated => self.handle.identity.followed.lock().updated(),
            Event::Deliver(delivered, at) => self.on_delivery(Source::Log(delivered, at)),
            Event::Presence(presence) => self.on_delivery(Source::Presence(presence)),
            Event::End(reason) => self.on_end(reason),
            Event::Detached => {}
            Event::Lagging(lagging, position) => {
                self.position = lagging.then_some(position);
                if !lagging {
                    self.on_roster_changed();
                }
            }
            Event::LinkUp(place) => {
                self.attach_again(place);
                self.on_roster_changed();
            }
            Event::PolicyChanged => self.owe(Why::Refresh),
            Event::PolicyBack => {
                self.owed_at = self.owed_at.map(|_| self.gateway.clock.monotonic());
            }
            Event::Resync => self.owe(Why::Resync),
            Event::Colleagues(shift, after) => {
                self.handle.identity.followed.lock().moved.add(shift);
                self.owe_after(Why::Colleagues, after);
            }
            Event::RosterItem(jid) => self.on_roster_item(jid),
            Event::CutOff(why) => self.on_cut_off(why),
            Event::Shutdown => {
                self.end(
                    Some(StreamError::new(StreamCondition::SystemShutdown)),
                    SHUTDOWN_LIMIT,
                );
            }
        }
    }

    /// The shard has spoken; what is under way is still brought to its end.
    fn on_end(&mut self, reason: EndReason) {
        match reason {
            EndReason::Conflict => self.fail(StreamCondition::Conflict),
            EndReason::Deleted => self.fail(StreamCondition::NotAuthorized),
            EndReason::Lag | EndReason::Unspecified => {
                self.fail(StreamCondition::ResourceConstraint);
            }
        }
    }

    /// The account may no longer be here: at once, whatever is under way.
    fn on_cut_off(&mut self, why: CutOff) {
        let error = cut_off_error(why);
        self.ending = None;
        self.end(Some(error), Duration::ZERO);
    }

    /// Attaches at the shard again: a new stream to it knows nothing of this session. `place` is
    /// that of the stream before.
    fn attach_again(&mut self, place: u64) {
        let generation = self.gateway.link.generation();
        {
            let mut followed = self.handle.identity.followed.lock();
            if std::mem::replace(&mut followed.attached_on, generation) == generation {
                return;
            }
        }
        let mut unacknowledged: Vec<u64> = self.unwritten.clone();
        unacknowledged.extend(self.management.iter().flat_map(|sm| sm.entries()));
        unacknowledged.extend(self.outgoing.entries());
        let room = if self.management.is_some() {
            self.managed_credit()
        } else {
            CREDIT
        };
        let out = u32::try_from(unacknowledged.len()).unwrap_or(u32::MAX);
        let position = self.position.or(self.place).unwrap_or(place);
        self.place = Some(position);
        self.rejoined = true;
        let identity = &self.handle.identity;
        let (attach, update) = {
            let mut followed = identity.followed.lock();
            let (available, update) = followed.again(identity.number, self.position.is_some());
            let attach = AttachSession {
                available,
                priority: followed.priority.into(),
                carbons: followed.carbons,
                interested: followed.interested,
                credit: room.saturating_sub(out),
                again: true,
                position,
                unacknowledged,
                away: self.away_until.is_some(),
                ..attach_of(identity)
            };
            (attach, update)
        };
        self.tell(attach_down::Item::Attach(attach));
        if let Some(update) = update {
            self.tell(attach_down::Item::Update(update));
        }
        // It may be another process, which knows what is in the log.
        self.say_handled(true);
    }

    /// Entries that may be out with stream management: half of what its queue holds, the rest is
    /// for presence and answers.
    fn managed_credit(&self) -> u32 {
        (self.gateway.config.sm_queue_stanzas / 2).max(CREDIT)
    }

    /// Tells the shard something.
    fn tell(&self, item: attach_down::Item) {
        self.gateway.link.tell(AttachDown { item: Some(item) });
    }

    /// What is due by the clock.
    fn poll_due(&mut self, now: Instant) -> bool {
        let mut progress = false;
        if self.paused_until.is_some_and(|at| at <= now) {
            self.paused_until = None;
            progress = true;
        }
        if self.owed_due().is_some_and(|at| at <= now) {
            self.owed_at = None;
            self.publish_owed(now);
            progress = true;
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_at = None;
            progress |= self.request_acknowledgement(now);
        }
        if self
            .asked_at
            .is_some_and(|at| at + ACKNOWLEDGE_LIMIT <= now)
        {
            self.asked_at = None;
            let error = StreamError::new(StreamCondition::ConnectionTimeout);
            self.break_off(error, DRAIN_LIMIT);
            progress = true;
        }
        if self.connection.mute_until().is_some_and(|at| at <= now) {
            self.die();
            progress = true;
        }
        progress |= self.poll_away(now);
        progress
    }

    /// When presence is owed; what is under way may still change what it says.
    fn owed_due(&self) -> Option<Instant> {
        self.owed_at.filter(|_| !self.window.is_alone())
    }

    /// Pending while nothing is due; a timer exists only while something will be.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let due = [
            self.paused_until,
            self.owed_due(),
            self.ask_at,
            self.asked_at.map(|at| at + ACKNOWLEDGE_LIMIT),
            self.connection.mute_until(),
            self.window.deadline(),
            self.away_until.filter(|_| self.ending.is_none()),
            self.ending.as_ref().map(|ending| ending.until),
        ];
        let Some(next) = due.into_iter().flatten().min() else {
            self.timer = None;
            return Poll::Pending;
        };
        if next <= now {
            return Poll::Ready(());
        }
        match &mut self.timer {
            // A timer that is early costs one wake-up, less than moving it each time.
            Some(timer) if timer.deadline() <= next && !timer.is_elapsed() => {}
            Some(timer) => timer.as_mut().reset(next),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(next))),
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// The stream error of a cut-off.
pub(crate) fn cut_off_error(why: CutOff) -> StreamError {
    match why {
        CutOff::Disabled => {
            StreamError::new(StreamCondition::NotAuthorized).with_text("the account is disabled")
        }
        CutOff::Deleted => StreamError::new(StreamCondition::NotAuthorized),
        // RFC 6120 §4.9.3.16: the security context has changed.
        CutOff::Credentials => StreamError::new(StreamCondition::Reset),
    }
}

/// The parts of an attachment that never change.
pub(crate) fn attach_of(identity: &identity::Identity) -> AttachSession {
    AttachSession {
        session: identity.number,
        full_jid: identity.full.to_string(),
        sm_id: bytes::Bytes::copy_from_slice(&identity.log_id),
        credit: CREDIT,
        ..AttachSession::default()
    }
}

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
mod colleague_tests;
#[cfg(test)]
mod end_tests;
#[cfg(test)]
mod fake_archive;
#[cfg(test)]
mod fake_pubsub;
#[cfg(test)]
mod fakes;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod resumption_tests;
#[cfg(test)]
mod talk_tests;
