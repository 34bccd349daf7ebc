//! XEP-0198 counters and the queue of what the client has not acknowledged. Pure: no I/O, no clock.
//!
//! Refuses to know what an entry is: it keeps its number, and what an unanswered IQ request needs.

use std::collections::VecDeque;

use bytes::Bytes;

/// The server asks for an acknowledgement after so many stanzas, or when it goes idle.
pub(crate) const REQUEST_EVERY: u32 = 16;

/// A stanza that was written and is not acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unacked {
    /// Its number, when it was an entry; 0 otherwise.
    pub(crate) entry: u64,
    /// Its bytes, for the limit.
    pub(crate) size: usize,
    /// An IQ request, kept because somebody waits for an answer.
    pub(crate) request: Option<Bytes>,
}

/// The client claims to have handled more than was sent (XEP-0198 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandledTooHigh;

/// The state of an enabled stream.
#[derive(Debug, Default)]
pub(crate) struct StreamManagement {
    /// Stanzas of the client whose outcome is known; wraps at 2^32 (XEP-0198 §4).
    handled: u32,
    /// The `h` last written.
    told: u32,
    /// The client's last `h`.
    acked: u32,
    queue: VecDeque<Unacked>,
    bytes: usize,
    limit_stanzas: usize,
    limit_bytes: usize,
    since_request: u32,
    /// An `<r/>` is out.
    pub(crate) requested: bool,
}

impl StreamManagement {
    /// A stream on which nothing was counted; its queue holds so much. Entries are held by credit,
    /// far below; anything else that fills it ends the session.
    pub(crate) fn new(stanzas: u32, bytes: u32) -> Self {
        Self {
            limit_stanzas: stanzas as usize,
            limit_bytes: bytes as usize,
            ..Self::default()
        }
    }

    /// One more stanza of the client is handled.
    pub(crate) fn count_handled(&mut self) {
        self.handled = self.handled.wrapping_add(1);
    }

    /// True when `h` has grown since it was last told.
    pub(crate) fn owes_answer(&self) -> bool {
        self.handled != self.told
    }

    /// `<a/>` with the count reached.
    pub(crate) fn answer(&mut self) -> String {
        self.told = self.handled;
        format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.handled)
    }

    /// A stanza was written.
    pub(crate) fn sent(&mut self, unacked: Unacked) {
        self.bytes += unacked.size;
        self.queue.push_back(unacked);
        self.since_request = self.since_request.saturating_add(1);
    }

    /// True when nothing more may be written.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.limit_stanzas || self.bytes >= self.limit_bytes
    }

    /// True when something waits for an acknowledgement.
    pub(crate) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// True when it is time to ask, not counting idleness.
    pub(crate) fn wants_request(&self) -> bool {
        !self.requested && self.since_request >= REQUEST_EVERY
    }

    /// `<r/>`.
    pub(crate) fn request(&mut self) -> &'static str {
        self.requested = true;
        self.since_request = 0;
        "<r xmlns='urn:xmpp:sm:3'/>"
    }

    /// `<a h=''/>` of the client: gives the entries it covers.
    pub(crate) fn acknowledge(&mut self, h: u32) -> Result<Vec<u64>, HandledTooHigh> {
        let covered = h.wrapping_sub(self.acked) as usize;
        if covered > self.queue.len() {
            return Err(HandledTooHigh);
        }
        self.requested = false;
        self.acked = h;
        let mut entries = Vec::new();
        for unacked in self.queue.drain(..covered) {
            self.bytes -= unacked.size;
            if unacked.entry != 0 {
                entries.push(unacked.entry);
            }
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        Ok(entries)
    }

    /// Entries without acknowledgement.
    pub(crate) fn entries(&self) -> impl Iterator<Item = u64> + '_ {
        self.queue
            .iter()
            .map(|unacked| unacked.entry)
            .filter(|n| *n != 0)
    }

    /// Takes the IQ requests that were written and never acknowledged.
    pub(crate) fn unanswered(&mut self) -> Vec<Bytes> {
        self.queue
            .drain(..)
            .filter_map(|unacked| unacked.request)
            .collect()
    }

    #[cfg(test)]
    fn at(count: u32) -> Self {
        Self {
            handled: count,
            told: count,
            acked: count,
            ..Self::new(4, 100)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(number: u64) -> Unacked {
        Unacked {
            entry: number,
            size: 10,
            request: None,
        }
    }

    #[test]
    fn acknowledges_in_order_and_across_the_wrap() {
        let mut sm = StreamManagement::at(u32::MAX - 1);
        for number in [7, 0, 9] {
            sm.sent(entry(number));
        }
        assert_eq!(sm.acknowledge(u32::MAX), Ok(vec![7]));
        assert_eq!(sm.acknowledge(u32::MAX), Ok(vec![]));
        assert_eq!(sm.acknowledge(1), Ok(vec![9]));
        assert!(!sm.waits());
    }

    #[test]
    fn refuses_what_was_never_sent() {
        let mut sm = StreamManagement::at(u32::MAX);
        sm.sent(entry(1));
        assert_eq!(sm.acknowledge(1), Err(HandledTooHigh));
        // a count that goes back is a count far ahead
        assert_eq!(sm.acknowledge(u32::MAX - 1), Err(HandledTooHigh));
        assert_eq!(sm.acknowledge(0), Ok(vec![1]));
    }

    #[test]
    fn the_queue_is_bounded_in_stanzas_and_bytes() {
        let mut sm = StreamManagement::at(0);
        for number in 1..=4 {
            assert!(!sm.is_full());
            sm.sent(entry(number));
        }
        assert!(sm.is_full());
        sm.acknowledge(4).unwrap();
        assert!(!sm.is_full());
        sm.sent(Unacked {
            size: 100,
            ..Unacked::default()
        });
        assert!(sm.is_full());
    }

    #[test]
    fn handled_wraps() {
        let mut sm = StreamManagement::at(u32::MAX);
        sm.count_handled();
        assert!(sm.owes_answer());
        assert_eq!(sm.answer(), "<a xmlns='urn:xmpp:sm:3' h='0'/>");
        assert!(!sm.owes_answer());
    }

    #[test]
    fn asks_every_so_many() {
        let mut sm = StreamManagement::default();
        for n in 1..REQUEST_EVERY {
            sm.sent(entry(u64::from(n)));
            assert!(!sm.wants_request());
        }
        sm.sent(entry(99));
        assert!(sm.wants_request());
        sm.request();
        sm.sent(entry(100));
        assert!(!sm.wants_request());
        assert_eq!(sm.entries().count(), REQUEST_EVERY as usize + 1);
    }
}
