//! The narrow row that stands for a record in a mailbox: what the shard must know of an entry
//! without reading its record, in one integer. Refuses to hold any text.

use chancery_evidence::Pseudonym;

/// Bits above the flags and the size: who is at the other side, as a number that may be shared.
const PEER_SHIFT: u32 = 40;
const PEER_BITS: u32 = 23;

/// Who is at the other side of an entry: some bits of the keyed pseudonym in its record, so that
/// the row tells no more than the record does. Two people may share them; nobody has 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer(u32);

impl Peer {
    pub(crate) fn of(pseudonym: &Pseudonym) -> Self {
        let first = pseudonym.first_chunk().copied().unwrap_or_default();
        Self((u32::from_be_bytes(first) >> (32 - PEER_BITS)).max(1))
    }
}

/// What an entry is, as stored: eight flags, the size of the payload above them, and above that
/// the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(i64);

impl Entry {
    /// Born open: a received message that is kept until somebody acknowledges it.
    pub(crate) const OPEN: u8 = 1;
    /// The sender's own copy.
    pub(crate) const SENT: u8 = 2;
    /// Has no place in the user's own archive: IQ, or XEP-0334 `<no-store/>`.
    pub(crate) const HIDDEN: u8 = 4;
    /// The stanza has a body.
    pub(crate) const BODY: u8 = 8;
    /// XEP-0280 `<private/>` or XEP-0334 `<no-copy/>`.
    pub(crate) const NO_COPY: u8 = 16;
    /// XEP-0334 `<no-store/>`.
    pub(crate) const NO_STORE: u8 = 32;

    pub(crate) fn new(flags: u8, payload_bytes: usize) -> Self {
        let size = i64::from(u32::try_from(payload_bytes).unwrap_or(u32::MAX));
        Self(size << 8 | i64::from(flags))
    }

    pub(crate) fn from_stored(value: i64) -> Self {
        Self(value)
    }

    pub(crate) fn stored(self) -> i64 {
        self.0
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.0 & i64::from(flag) != 0
    }

    /// The same, born closed.
    pub(crate) fn without_open(self) -> Self {
        Self(self.0 & !i64::from(Self::OPEN))
    }

    /// The same, without a place in the user's own archive.
    pub(crate) fn hidden(self) -> Self {
        Self(self.0 | i64::from(Self::HIDDEN))
    }

    /// The same, with its peer.
    pub(crate) fn with_peer(self, peer: Peer) -> Self {
        let rest = self.0 & ((1 << PEER_SHIFT) - 1);
        Self(i64::from(peer.0) << PEER_SHIFT | rest)
    }

    /// The peer; `None` in a row that was written before there were any.
    pub(crate) fn peer(self) -> Option<Peer> {
        let bits = u32::try_from(self.0 >> PEER_SHIFT).unwrap_or(0);
        (bits != 0).then_some(Peer(bits))
    }

    pub(crate) fn payload_bytes(self) -> u32 {
        ((self.0 >> 8) & i64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_size_survive_storing() {
        let entry = Entry::new(Entry::OPEN | Entry::BODY, 70_000);
        let again = Entry::from_stored(entry.stored());
        assert_eq!(again.payload_bytes(), 70_000);
        assert!(again.has(Entry::OPEN) && again.has(Entry::BODY));
        assert!(!again.has(Entry::SENT) && !again.has(Entry::HIDDEN));
        assert!(again.hidden().has(Entry::HIDDEN));
    }

    #[test]
    fn a_peer_disturbs_nothing_else() {
        let entry = Entry::new(u8::MAX, usize::MAX);
        assert_eq!(entry.peer(), None);
        for pseudonym in [[0; 16], [0xff; 16], [0x5a; 16]] {
            let peer = Peer::of(&pseudonym);
            let with = Entry::from_stored(entry.with_peer(peer).with_peer(peer).stored());
            assert!(with.stored() > 0);
            assert_eq!(with.peer(), Some(peer));
            assert_eq!(with.payload_bytes(), u32::MAX);
            assert!(with.has(Entry::OPEN) && with.has(Entry::NO_STORE));
        }
        assert_ne!(Peer::of(&[0; 16]), Peer::of(&[0xff; 16]));
    }
}
