//! How a session makes room for another of its full JID (RFC 6120 §7.7.2.2: the newcomer wins,
//! whichever gateway it is on).
//!
//! The newcomer's attachment waits until the gateway of the first has confirmed its end: what that
//! client acknowledged last may still be on its way, and would come to the newcomer again. Refuses to
//! wait for a gateway that is not there, or for long.

use std::time::Duration;

use chancery_api::archive::{AttachSession, EndReason, EndSession, attach_up};
use tokio::time::Instant;

use crate::follower::{FollowerKey, StreamId};
use crate::item::bare_len;
use crate::shard::Shard;

/// The first is over by then, confirmed or not.
const HANDOVER_LIMIT: Duration = Duration::from_secs(1);

/// An attachment that waits; there is one of each full JID at most.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) stream: StreamId,
    attach: AttachSession,
    /// Who makes room.
    first: FollowerKey,
    until: Instant,
}

impl<T> Shard<T> {
    /// Ends `first` in favour of `key`, the newcomer. True when `key` has to wait for that, or is none.
    pub(crate) fn hand_over(
        &mut self,
        stream: StreamId,
        key: FollowerKey,
        attach: &AttachSession,
        first: FollowerKey,
    ) -> bool {
        let earlier = self.handovers.iter().find(|(_, h)| h.first == first);
        let earlier = earlier.map(|(other, h)| (*other, h.stream, h.until));
        let is_bound = self.followers.get(&first).is_some_and(|f| f.bound);
        if attach.again && (is_bound || earlier.is_some()) {
            // Its gateway lost the stream, and another came meanwhile.
            self.say_end(stream, key, EndReason::Conflict);
            return true;
        }
        if let Some((other, stream, _)) = earlier {
            self.handovers.remove(&other);
            self.say_end(stream, other, EndReason::Conflict);
        }
        let there = self.followers.get(&first).and_then(|f| f.stream);
        // Attached again it goes on from a place of its own, and has told what it holds.
        let Some(there) = there.filter(|_| !attach.again) else {
            self.end_session(first, Some(EndReason::Conflict));
            return false;
        };
        let until = earlier.map(|(_, _, until)| until).unwrap_or_else(|| {
            self.say_end(there, first, EndReason::Conflict);
            self.now.monotonic + HANDOVER_LIMIT
        });
        let handover = Handover {
            stream,
            attach: attach.clone(),
            first,
            until,
        };
        self.handovers.insert(key, handover);
        true
    }

    /// `first` is over: who waited for that attaches.
    pub(crate) fn handed_over(&mut self, first: FollowerKey) {
        let waits = self.handovers.iter().find(|(_, h)| h.first == first);
        let Some(key) = waits.map(|(key, _)| *key) else {
            return;
        };
        if let Some(Handover { stream, attach, .. }) = self.handovers.remove(&key) {
            self.attach(stream, key, &attach);
        }
    }

    /// Ends those that had to make room and whose gateway is gone, or takes too long.
    pub(crate) fn end_handovers(&mut self) {
        let there = |first| {
            let follower = self.followers.get(&first);
            follower.is_some_and(|follower| follower.stream.is_some())
        };
        let over: Vec<FollowerKey> = self
            .handovers
            .values()
            .filter(|h| h.until <= self.now.monotonic || !there(h.first))
            .map(|h| h.first)
            .collect();
        for first in over {
            // Once more: what it was told is lost with its stream, if it has another by now.
            self.end_session(first, Some(EndReason::Conflict));
        }
    }

    /// The account is gone: nobody waits for a session of it any more.
    pub(crate) fn refuse_handovers(&mut self, jid: &str) {
        let of = |full: &str| bare_len(full).and_then(|n| full.get(..n)) == Some(jid);
        let mut gone = Vec::new();
        self.handovers.retain(|key, handover| {
            let stays = !of(&handover.attach.full_jid);
            if !stays {
                gone.push((handover.stream, *key));
            }
            stays
        });
        for (stream, key) in gone {
            self.say_end(stream, key, EndReason::Deleted);
        }
    }

    /// Tells a gateway that a session ends.
    fn say_end(&mut self, stream: StreamId, key: FollowerKey, reason: EndReason) {
        let end = EndSession {
            session: key.session,
            reason: reason.into(),
        };
        self.send(stream, attach_up::Item::End(end));
    }
}
