//! One mailbox in the shard's memory: who follows it, and which of its entries are open. Owns the
//! stored form of the open set; refuses to know what an entry says.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::entry::Entry;
use crate::follower::FollowerKey;
use crate::preferences::Preferences;

/// An entry that nobody has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) bytes: u32,
    pub(crate) at_ms: i64,
}

/// A mailbox as its row and the entries above it tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MailboxRow {
    pub(crate) id: i64,
    pub(crate) floor: u64,
    /// Up to here the open set of the row accounts for every entry.
    pub(crate) upto: u64,
    pub(crate) open: Vec<u8>,
    /// Entries above `upto`.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// The number of the last entry.
    pub(crate) last: u64,
    /// What its owner wants in the own archive, as stored.
    pub(crate) preferences: Option<Vec<u8>>,
}

/// What is written of a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MailboxSave {
    pub(crate) id: i64,
    pub(crate) jid: Arc<str>,
    pub(crate) floor: u64,
    pub(crate) upto: u64,
    pub(crate) open: Vec<u8>,
}

/// A mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) id: i64,
    /// Whether its row exists.
    pub(crate) created: bool,
    /// What its owner wants in the own archive; `None`: everything.
    pub(crate) preferences: Option<Preferences>,
    pub(crate) floor: u64,
    pub(crate) last_entry: u64,
    pub(crate) open: BTreeMap<u64, Open>,
    pub(crate) open_bytes: u64,
    /// Entries that will be open once their group is committed.
    pub(crate) reserved: u32,
    pub(crate) reserved_bytes: u64,
    pub(crate) sessions: Vec<FollowerKey>,
    /// The open set is newer than its row.
    pub(crate) dirty: bool,
    pub(crate) saving: bool,
    /// Items under way that will make entries here.
    pub(crate) pins: u32,
    pub(crate) idle_since: Instant,
}

impl Mailbox {
    /// A mailbox that has no row yet.
    pub(crate) fn new(id: i64, now: Instant) -> Self {
        Self {
            id,
            created: false,
            preferences: None,
            floor: 0,
            last_entry: 0,
            open: BTreeMap::new(),
            open_bytes: 0,
            reserved: 0,
            reserved_bytes: 0,
            sessions: Vec::new(),
            dirty: false,
            saving: false,
            pins: 0,
            idle_since: now,
        }
    }

    /// The mailbox of a row. Entries above `upto` are open as they were born: what was
    /// acknowledged but not yet written comes again, and no other.
    pub(crate) fn from_row(row: MailboxRow, now: Instant, now_ms: i64) -> Option<Self> {
        let mut mailbox = Self {
            created: true,
            ..Self::new(row.id, now)
        };
        mailbox.floor = row.floor;
        mailbox.last_entry = row.last;
        mailbox.preferences = row.preferences.as_deref().and_then(Preferences::decode);
        for (number, open) in decode(&row.open)? {
            mailbox.insert(number, open);
        }
        for (number, entry) in row.entries {
            if number > row.floor && entry.has(Entry::OPEN) {
                mailbox.insert(
                    number,
                    Open {
                        bytes: entry.payload_bytes(),
                        at_ms: now_ms,
                    },
                );
                mailbox.dirty = true;
            }
        }
        Some(mailbox)
    }

    /// Whether its row was read, or found not to be there.
    pub(crate) fn is_loaded(&self) -> bool {
        self.id != 0
    }

    /// Opens an entry.
    pub(crate) fn insert(&mut self, number: u64, open: Open) {
        if number > self.floor && self.open.insert(number, open).is_none() {
            self.open_bytes += u64::from(open.bytes);
        }
    }

    /// Closes an entry. False when it was closed already.
    pub(crate) fn close(&mut self, number: u64) -> bool {
        let Some(open) = self.open.remove(&number) else {
            return false;
        };
        self.open_bytes -= u64::from(open.bytes);
        self.dirty = true;
        true
    }

    /// Closes what was born before `before_ms`.
    pub(crate) fn expire(&mut self, before_ms: i64) -> usize {
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.at_ms < before_ms)
            .map(|(number, _)| *number)
            .collect();
        for number in &late {
            self.close(*number);
        }
        late.len()
    }

    /// Nothing up to `floor` is ever delivered again.
    pub(crate) fn drop_below(&mut self, floor: u64) {
        self.floor = floor;
        self.preferences = None;
        self.open.clear();
        self.open_bytes = 0;
        self.dirty = false;
    }

    /// Whether one more open entry fits.
    pub(crate) fn has_room(&self, bytes: u32, entries: u32, limit_bytes: u64) -> bool {
        let held = self.open.len() + self.reserved as usize;
        let held_bytes = self.open_bytes + self.reserved_bytes;
        held < entries as usize && held_bytes + u64::from(bytes) <= limit_bytes
    }

    /// What is written, as of the shard's `head`.
    pub(crate) fn save(&self, jid: &Arc<str>, head: u64) -> MailboxSave {
        MailboxSave {
            id: self.id,
            jid: Arc::clone(jid),
            floor: self.floor,
            upto: head,
            open: encode(&self.open),
        }
    }

    /// Whether nothing is lost when it leaves the memory.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_loaded()
            && self.sessions.is_empty()
            && self.pins == 0
            && self.reserved == 0
            && !self.dirty
            && !self.saving
    }
}

fn encode(open: &BTreeMap<u64, Open>) -> Vec<u8> {
    let mut out = Vec::with_capacity(open.len() * 8);
    let (mut number, mut at_ms) = (0_u64, 0_i64);
    for (this, entry) in open {
        put(&mut out, this - number);
        put(&mut out, u64::from(entry.bytes));
        // Times never go back in a shard, except where an entry was found again at a start.
        let step = entry.at_ms.wrapping_sub(at_ms);
        put(&mut out, ((step << 1) ^ (step >> 63)).cast_unsigned());
        (number, at_ms) = (*this, entry.at_ms);
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Vec<(u64, Open)>> {
    let mut out = Vec::new();
    let (mut number, mut at_ms) = (0_u64, 0_i64);
    while !bytes.is_empty() {
        number = number.checked_add(take(&mut bytes)?)?;
        let size = u32::try_from(take(&mut bytes)?).ok()?;
        let step = take(&mut bytes)?;
        at_ms = at_ms.wrapping_add((step >> 1).cast_signed() ^ -(step & 1).cast_signed());
        out.push((number, Open { bytes: size, at_ms }));
    }
    Some(out)
}

/// LEB128: seven bits a byte, lowest first.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The next number of `bytes`, as `put` wrote it.
pub(crate) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::disallowed_methods
    )]
    use super::*;

    #[test]
    fn the_open_set_survives_storing() {
        let mut open = BTreeMap::new();
        for (number, bytes, at_ms) in [(1, 0, 5), (2, 300, 5), (900_000, 7, 4), (u64::MAX, 1, -3)] {
            open.insert(number, Open { bytes, at_ms });
        }
        let again: BTreeMap<_, _> = decode(&encode(&open)).unwrap().into_iter().collect();
        assert_eq!(again, open);
        assert!(decode(&[0x80]).is_none());
        assert!(decode(&[0xff; 30]).is_none());
    }

    #[test]
    fn entries_above_the_row_are_open_as_they_were_born() {
        let mut open = BTreeMap::new();
        open.insert(
            3,
            Open {
                bytes: 10,
                at_ms: 1,
            },
        );
        let row = MailboxRow {
            id: 1,
            floor: 2,
            upto: 5,
            open: encode(&open),
            entries: vec![
                (6, Entry::new(Entry::OPEN, 20)),
                (7, Entry::new(Entry::SENT, 5)),
            ],
            last: 7,
            preferences: None,
        };
        let mut mailbox = Mailbox::from_row(row, Instant::now(), 9).unwrap();
        assert_eq!(mailbox.open.keys().copied().collect::<Vec<_>>(), [3, 6]);
        assert_eq!(mailbox.open_bytes, 30);
        assert_eq!(mailbox.expire(9), 1);
        assert!(!mailbox.close(3) && mailbox.close(6));
        assert_eq!(mailbox.open_bytes, 0);
    }

    #[test]
    fn room_counts_what_is_under_way() {
        let mut mailbox = Mailbox::new(1, Instant::now());
        assert!(mailbox.has_room(10, 2, 100));
        mailbox.insert(
            1,
            Open {
                bytes: 60,
                at_ms: 0,
            },
        );
        assert!(!mailbox.has_room(41, 2, 100));
        mailbox.reserved = 1;
        assert!(!mailbox.has_room(1, 2, 100));
    }
}
