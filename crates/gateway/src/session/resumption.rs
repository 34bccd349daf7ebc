//! A session without a stream, and how another stream takes it over (XEP-0198 §5).
//!
//! A session that may be resumed and has lost its socket is *away*: its shard hands it nothing,
//! what is under way is brought to its end, presence stays. Whoever resumes it offers the socket of
//! a stream that has authenticated; the session takes it or gives it back. Refuses to know who may
//! offer: that is [`super::bind`]'s.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chancery_api::archive::{Away, attach_down};
use chancery_xmpp::{StreamCondition, StreamError, ns};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::Connection;
use super::nonzas::hex;
use super::stream_management::WrongCount;
use super::{DRAIN_LIMIT, Session};
use crate::transport::{CLOSE_LIMIT, Transport};

/// A stream that wants to go on with a session.
pub(crate) struct Offer {
    pub(crate) transport: Box<Transport>,
    /// What its client has handled.
    pub(crate) h: u32,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// What became of an offer.
pub(crate) enum Answer {
    /// The session has the socket now.
    Taken,
    /// The socket is given back.
    Refused(Box<Transport>, Refusal),
}

/// Why an offer was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The session ends, or does not go back so far.
    Gone,
    /// The client claims to have handled what was never sent.
    TooHigh,
    /// Another stream came later.
    Conflict,
}

impl Offer {
    pub(crate) fn refuse(self, why: Refusal) {
        // Whoever offered may have given up: then the socket closes here.
        let _ = self.answer.send(Answer::Refused(self.transport, why));
    }
}

/// XEP-0198 §6.
pub(crate) fn handled_too_high() -> StreamError {
    StreamError::new(StreamCondition::UndefinedCondition).with_app(ns::SM, "handled-count-too-high")
}

impl Session {
    /// For how long the session outlasts its stream, if it does.
    fn resumable(&self) -> Option<Duration> {
        let seconds = self.management.as_ref()?.resumable_seconds?;
        self.ending
            .is_none()
            .then(|| Duration::from_secs(seconds.into()))
    }

    /// Lets the stream go, with an error if it can still be told one. False when the session cannot
    /// go on without.
    pub(super) fn detach(&mut self, error: Option<StreamError>) -> bool {
        let Some(limit) = self.resumable() else {
            return false;
        };
        self.let_go(error);
        if let Some(management) = &mut self.management {
            management.detach();
        }
        (self.asked_at, self.ask_at, self.paused_until) = (None, None, None);
        self.answer_unasked = false;
        if self.away_until.is_none() {
            // Presence of each resource is held once, as for a client that is inactive.
            self.client_state.set(true);
            self.say_away(true);
        }
        self.away_until = Some(self.gateway.clock.monotonic() + limit);
        true
    }

    fn let_go(&mut self, error: Option<StreamError>) {
        if let (Some(transport), Some(error)) = (self.connection.take(), error) {
            self.gateway.streams.spawn("closing stream", async move {
                transport.close_with(Some(&error), CLOSE_LIMIT).await;
            });
        }
    }

    fn say_away(&self, away: bool) {
        self.handle.away.store(away, Ordering::Relaxed);
        let session = self.handle.identity.number;
        self.tell(attach_down::Item::Away(Away { session, away }));
    }

    /// A stream wants to take over. The socket that is there, even if it looks alive, makes room (§5).
    pub(super) fn on_offer(&mut self, offer: Offer) {
        let wrong = match &self.management {
            Some(management) if self.resumable().is_some() => management
                .check_resume(offer.h)
                .err()
                .map(|wrong| match wrong {
                    WrongCount::TooHigh => Refusal::TooHigh,
                    WrongCount::TooLow => Refusal::Gone,
                }),
            _ => Some(Refusal::Gone),
        };
        if let Some(why) = wrong {
            offer.refuse(why);
            return;
        }
        self.detach(Some(StreamError::new(StreamCondition::Conflict)));
        let Offer {
            transport,
            h,
            answer,
        } = offer;
        if let Some(management) = &mut self.management
            && let Ok(entries) = management.acknowledge(h)
        {
            self.acknowledge(entries);
        }
        self.connection = Connection::Joining(transport);
        self.away_until = Some(self.gateway.clock.monotonic() + DRAIN_LIMIT);
        // Whoever offered has nothing left to do.
        let _ = answer.send(Answer::Taken);
    }

    /// Goes on with the new stream once the outcome of all that was read is known: `h` is exact.
    pub(super) fn poll_resumption(&mut self) -> bool {
        if !self.connection.is_joining() || self.ending.is_some() || !self.window.is_empty() {
            return false;
        }
        self.say_handled(false);
        let Some(management) = &mut self.management else {
            return false;
        };
        let resumed = management.resumed(&hex(&self.handle.identity.sm_id));
        self.connection.open();
        self.connection.queue(resumed.as_bytes());
        self.away_until = None;
        // XEP-0352 §5: a resumed stream begins active.
        self.client_state.set(false);
        self.hand_on_held();
        self.say_away(false);
        self.gateway.metrics.resumed.inc();
        true
    }

    /// The time without a stream is over, or that of a resumption which waits.
    pub(super) fn poll_away(&mut self, now: Instant) -> bool {
        if self.ending.is_some() || self.away_until.is_none_or(|until| until > now) {
            return false;
        }
        if self.connection.is_joining() {
            self.detach(Some(StreamError::new(StreamCondition::ResourceConstraint)));
        } else {
            self.end(None, DRAIN_LIMIT);
        }
        true
    }

    /// Whether a session without a stream holds as much as it may, not counting the log's traffic:
    /// that is held by the shard.
    pub(super) fn holds_too_much(&self) -> bool {
        let (queued, queued_bytes) = self.outgoing.extras();
        let (held, held_bytes) = self.client_state.held();
        self.management
            .as_ref()
            .is_some_and(|sm| sm.overflows_with(queued + held, queued_bytes + held_bytes))
    }

    /// The outcome of a stanza is unknown: it and all behind it are forgotten and not counted, so
    /// that the client says them again. The log knows by the count what it has of them already.
    pub(super) fn thaw(&mut self) {
        let Some(management) = &self.management else {
            return;
        };
        self.window.clear();
        self.count -= management.unhandled(self.count);
        self.frozen = false;
    }
}
