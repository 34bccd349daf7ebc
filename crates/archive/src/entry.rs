//! The narrow row that stands for a record in a mailbox: what the shard must know of an entry
//! without reading its record, in one integer. Refuses to hold any text.

/// What an entry is, as stored: eight flags, and the size of the payload above them.
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

    pub(crate) fn payload_bytes(self) -> u32 {
        u32::try_from(self.0 >> 8).unwrap_or(0)
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
    }
}
