//! [`Inbox`]: what comes up to one session from the links. Bounded; costs nothing while it is empty.
//!
//! Refuses to wait: whoever pushes serves many sessions. A session that overflows is told so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chancery_api::archive::EndReason;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::deliver::{Delivered, PresenceUp};
use super::resumption::{Offer, Refusal};
use crate::colleagues::Shift;

/// Events that may wait. Entries are held by credit, far below this; what fills it is presence and
/// other ephemerals to a session that does not take them: then the session ends.
pub(crate) const INBOX_EVENTS: usize = 2048;
/// An empty queue that has grown beyond this gives its memory back.
const KEPT_CAPACITY: usize = 32;

/// Why an account's sessions end at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutOff {
    /// Disabled by an administrator.
    Disabled,
    /// Deleted, or replaced by a later account of the same name.
    Deleted,
    /// The password was changed: log in again.
    Credentials,
}

/// One thing that a session has to handle.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The shard follows the mailbox for this session.
    Attached,
    /// The shard has taken over the session's newest state.
    Updated,
    /// A stanza from the log or through its sequencer; the index is that of the target.
    Deliver(Arc<Delivered>, u32),
    /// Somebody's presence.
    Presence(Arc<PresenceUp>),
    /// The shard ends the session.
    End(EndReason),
    /// The shard no longer follows for this session.
    Detached,
    /// The session's own position is now separate, or again that of the stream.
    Lagging(bool, u64),
    /// The stream to the shard is open (again): attach, at this place if none of one's own is known.
    LinkUp(u64),
    /// A newer policy version is in force.
    PolicyChanged,
    /// Policy is followed again: what had to wait for it may go on.
    PolicyBack,
    /// The presence service lost its state: register again.
    Resync,
    /// Colleagues came or went; it is acted on after a while.
    Colleagues(Arc<Shift>, Duration),
    /// The client is to be pushed what its roster has of somebody.
    RosterItem(Arc<str>),
    /// The account may no longer be here.
    CutOff(CutOff),
    /// The process ends.
    Shutdown,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    overflown: bool,
    /// The session may be resumed.
    resumable: bool,
    /// A stream that wants to take it over.
    offer: Option<Box<Offer>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

impl Inbox {
    /// Puts an event in; a full inbox is marked as overflown instead. Never blocks.
    pub(crate) fn push(&self, event: Event) {
        self.put(event);
        self.wake();
    }

    /// The same, but the session sleeps on: [`Inbox::wake`] is owed.
    pub(crate) fn put(&self, event: Event) {
        let mut queue = self.queue.lock();
        if queue.events.len() >= INBOX_EVENTS {
            queue.overflown = true;
        } else {
            queue.events.push_back(event);
        }
    }

    /// The session looks at what was put in.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Puts an event before all others: what must not wait behind stanzas.
    pub(crate) fn push_urgent(&self, event: Event) {
        self.queue.lock().events.push_front(event);
        self.waker.wake();
    }

    /// The next event.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Event> {
        if let Some(event) = self.pop() {
            return Poll::Ready(event);
        }
        self.waker.register(cx.waker());
        // Pushed between the look and the registration.
        self.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// Registers for a wake-up without taking anything.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// True once something was refused.
    pub(crate) fn overflown(&self) -> bool {
        self.queue.lock().overflown
    }

    /// Takes the first event if it is urgent: also while stanzas have to wait.
    pub(crate) fn pop_urgent(&self) -> Option<Event> {
        let mut queue = self.queue.lock();
        let first = queue.events.front()?;
        if matches!(first, Event::CutOff(_) | Event::Shutdown | Event::End(_)) {
            return queue.events.pop_front();
        }
        None
    }

    /// From now on streams may offer to take the session over.
    pub(crate) fn accept_offers(&self) {
        self.queue.lock().resumable = true;
    }

    /// No more of them: the session ends.
    pub(crate) fn refuse_offers(&self) {
        let pending = {
            let mut queue = self.queue.lock();
            queue.resumable = false;
            queue.offer.take()
        };
        if let Some(offer) = pending {
            offer.refuse(Refusal::Gone);
        }
    }

    /// A stream offers to take the session over; of two, the later one does. Given back when the
    /// session cannot be resumed.
    pub(crate) fn offer(&self, offer: Box<Offer>) -> Result<(), Box<Offer>> {
        let earlier = {
            let mut queue = self.queue.lock();
            if !queue.resumable {
                return Err(offer);
            }
            queue.offer.replace(offer)
        };
        if let Some(earlier) = earlier {
            earlier.refuse(Refusal::Conflict);
        }
        self.waker.wake();
        Ok(())
    }

    /// Takes the offer.
    pub(crate) fn take_offer(&self) -> Option<Box<Offer>> {
        self.queue.lock().offer.take()
    }

    fn pop(&self) -> Option<Event> {
        let mut queue = self.queue.lock();
        let event = queue.events.pop_front();
        if queue.events.is_empty() && queue.events.capacity() > KEPT_CAPACITY {
            queue.events = VecDeque::new();
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_a_mark_not_a_wait() {
        let inbox = Inbox::default();
        for _ in 0..INBOX_EVENTS {
            inbox.push(Event::Updated);
        }
        assert!(!inbox.overflown());
        inbox.push(Event::Updated);
        assert!(inbox.overflown());
    }

    #[test]
    fn what_is_urgent_passes_what_waits() {
        let inbox = Inbox::default();
        inbox.push(Event::Updated);
        assert!(inbox.pop_urgent().is_none());
        inbox.push_urgent(Event::CutOff(CutOff::Disabled));
        assert!(matches!(
            inbox.pop_urgent(),
            Some(Event::CutOff(CutOff::Disabled))
        ));
        assert!(matches!(inbox.pop(), Some(Event::Updated)));
    }
}
