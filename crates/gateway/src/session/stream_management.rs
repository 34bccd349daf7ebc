//! XEP-0198 counters and the queue of what the client has not acknowledged. Pure: no I/O, no clock.
//!
//! Refuses to know what an entry is: it keeps its number, and the bytes, which go out again as they
//! were when the session is resumed.

use std::collections::VecDeque;

use bytes::Bytes;

/// The server asks for an acknowledgement after so many stanzas, or when it goes idle.
pub(crate) const REQUEST_EVERY: u32 = 16;

/// A stanza that was written, or waits for a stream, and is not acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unacked {
    /// Its number, when it was an entry; 0 otherwise.
    pub(crate) entry: u64,
    /// As written.
    pub(crate) bytes: Bytes,
    /// An IQ request: somebody waits for an answer.
    pub(crate) request: bool,
}

/// The client claims to have handled more than was sent (XEP-0198 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandledTooHigh;

/// What is wrong with the count of a `<resume/>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrongCount {
    /// More than was sent (§6).
    TooHigh,
    /// Less than the client has acknowledged already: it is no longer here.
    TooLow,
}

/// The state of an enabled stream, and of the session that goes on from stream to stream.
#[derive(Debug, Default)]
pub(crate) struct StreamManagement {
    /// Stanzas of the client whose outcome is known; wraps at 2^32 (XEP-0198 §4).
    handled: u32,
    /// The `h` last written.
    told: u32,
    /// Whether the last of the handled is in the log, or the shard knows that it is not.
    logged: bool,
    /// The client's last `h`.
    acked: u32,
    queue: VecDeque<Unacked>,
    /// How many at the end of the queue were not yet written to the stream there is.
    unsent: usize,
    bytes: usize,
    /// Of the queue, what is no entry: the log's traffic is held by credit, this is not.
    extras: usize,
    extra_bytes: usize,
    limit_stanzas: usize,
    limit_bytes: usize,
    since_request: u32,
    /// An `<r/>` is out.
    pub(crate) requested: bool,
    /// For how many seconds the session may be resumed; `None` when it ends with its stream.
    pub(crate) resumable_seconds: Option<u32>,
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

    /// One more stanza of the client is handled; and whether the log has it.
    pub(crate) fn count_handled(&mut self, logged: bool) {
        self.handled = self.handled.wrapping_add(1);
        self.logged = logged;
    }

    /// True when the count that is told next is not in the log: the shard has to hear of it first.
    pub(crate) fn take_beyond_log(&mut self) -> bool {
        !std::mem::replace(&mut self.logged, true)
    }

    /// How many of `count` stanzas that were read are not handled.
    pub(crate) fn unhandled(&self, count: u64) -> u64 {
        let counted = u32::try_from(count % (1 << 32)).unwrap_or(0);
        u64::from(counted.wrapping_sub(self.handled))
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
        self.bytes += unacked.bytes.len();
        if unacked.entry == 0 {
            self.extras += 1;
            self.extra_bytes += unacked.bytes.len();
        }
        self.queue.push_back(unacked);
        self.since_request = self.since_request.saturating_add(1);
    }

    /// A stanza that counts as sent, and waits for its turn on a stream.
    pub(crate) fn wait(&mut self, unacked: Unacked) {
        self.sent(unacked);
        self.unsent += 1;
    }

    /// True when something has to be written again before anything else.
    pub(crate) fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// The next stanza that has to be written again, in order and as it was.
    pub(crate) fn next_unsent(&mut self) -> Option<Bytes> {
        let at = self.queue.len().checked_sub(self.unsent)?;
        let next = self.queue.get(at)?.bytes.clone();
        self.unsent -= 1;
        Some(next)
    }

    /// The stream is gone: all that is unacknowledged has to be written to the next.
    pub(crate) fn detach(&mut self) {
        self.unsent = self.queue.len();
        self.requested = false;
    }

    /// What is wrong with the count that a `<resume/>` states, if anything. Half of the numbers lie
    /// ahead of the last acknowledgement, the others behind it.
    pub(crate) fn check_resume(&self, h: u32) -> Result<(), WrongCount> {
        let covered = h.wrapping_sub(self.acked);
        if covered as usize <= self.queue.len() {
            Ok(())
        } else if covered > u32::MAX / 2 {
            Err(WrongCount::TooLow)
        } else {
            Err(WrongCount::TooHigh)
        }
    }

    /// `<resumed/>` (§5): tells the count reached, and asks for an acknowledgement after what is
    /// written again.
    pub(crate) fn resumed(&mut self, previd: &str) -> String {
        self.told = self.handled;
        self.since_request = REQUEST_EVERY;
        let h = self.handled;
        format!("<resumed xmlns='urn:xmpp:sm:3' previd='{previd}' h='{h}'/>")
    }

    /// True when nothing more that waits may be written.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.limit_stanzas || self.bytes >= self.limit_bytes
    }

    /// True when what is no entry, with so much more that waits elsewhere, fills the queue alone:
    /// nothing but the end of the session bounds it.
    pub(crate) fn overflows_with(&self, stanzas: usize, bytes: usize) -> bool {
        self.extras + stanzas >= self.limit_stanzas || self.extra_bytes + bytes >= self.limit_bytes
    }

    /// True when something waits for an acknowledgement.
    pub(crate) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// True when it is time to ask, not counting idleness.
    pub(crate) fn wants_request(&self) -> bool {
        !self.requested && self.unsent == 0 && self.since_request >= REQUEST_EVERY
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
            self.bytes -= unacked.bytes.len();
            if unacked.entry == 0 {
                self.extras -= 1;
                self.extra_bytes -= unacked.bytes.len();
            } else {
                entries.push(unacked.entry);
            }
        }
        self.unsent = self.unsent.min(self.queue.len());
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
            .filter(|unacked| unacked.request)
            .map(|unacked| unacked.bytes)
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
            bytes: Bytes::from(format!("stanza {number:03}")),
            request: false,
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
            bytes: Bytes::from(vec![b'x'; 100]),
            ..Unacked::default()
        });
        assert!(sm.is_full());
    }

    #[test]
    fn the_logs_traffic_does_not_overflow_it() {
        let mut sm = StreamManagement::at(0);
        for number in 1..=9 {
            sm.sent(entry(number));
        }
        assert!(sm.is_full() && !sm.overflows_with(3, 99));
        assert!(sm.overflows_with(4, 0) && sm.overflows_with(0, 100));
        for _ in 0..4 {
            sm.sent(entry(0));
        }
        assert!(sm.overflows_with(0, 0));
        sm.acknowledge(10).unwrap();
        assert!(!sm.overflows_with(0, 69));
        assert!(sm.overflows_with(0, 70));
    }

    #[test]
    fn handled_wraps() {
        let mut sm = StreamManagement::at(u32::MAX);
        sm.count_handled(true);
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

    fn unsent(sm: &mut StreamManagement) -> Vec<Bytes> {
        std::iter::from_fn(|| sm.next_unsent()).collect()
    }

    #[test]
    fn what_is_unacknowledged_is_written_again_as_it_was() {
        let mut sm = StreamManagement::at(u32::MAX - 1);
        for number in [7, 0, 9] {
            sm.sent(entry(number));
        }
        assert!(!sm.has_unsent(), "it is on the stream there is");
        sm.detach();
        // Said while there is no stream.
        sm.wait(entry(11));
        assert_eq!(sm.check_resume(0), Ok(()));
        assert_eq!(sm.acknowledge(0), Ok(vec![7]));
        assert_eq!(
            sm.resumed("x"),
            "<resumed xmlns='urn:xmpp:sm:3' previd='x' h='4294967294'/>"
        );
        assert!(!sm.wants_request());
        assert_eq!(unsent(&mut sm), ["stanza 009", "stanza 011"]);
        assert!(sm.wants_request(), "and asks");
        assert_eq!(sm.entries().collect::<Vec<_>>(), [9, 11]);
        // Broken again half way: all of it is written again.
        sm.detach();
        assert_eq!(sm.next_unsent().unwrap(), "stanza 009");
        sm.detach();
        assert_eq!(unsent(&mut sm), ["stanza 009", "stanza 011"]);
        sm.detach();
        assert_eq!(sm.acknowledge(2), Ok(vec![9, 11]));
        assert!(unsent(&mut sm).is_empty());
    }

    #[test]
    fn the_count_of_a_resumption_lies_between_acknowledged_and_sent() {
        for acked in [0, 5, u32::MAX - 1, u32::MAX] {
            let mut sm = StreamManagement::at(acked);
            sm.sent(entry(1));
            sm.sent(entry(2));
            for (ahead, wanted) in [
                (0, Ok(())),
                (1, Ok(())),
                (2, Ok(())),
                (3, Err(WrongCount::TooHigh)),
                (u32::MAX / 2, Err(WrongCount::TooHigh)),
                (u32::MAX / 2 + 1, Err(WrongCount::TooLow)),
                (u32::MAX, Err(WrongCount::TooLow)),
            ] {
                let h = acked.wrapping_add(ahead);
                assert_eq!(sm.check_resume(h), wanted, "{h} after {acked}");
            }
        }
    }
}
