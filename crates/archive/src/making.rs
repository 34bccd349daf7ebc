//! When entries of durable records get their rows: in rounds by mailbox, which keeps their index
//! small, each in pieces, which keep no commit waiting. Owns the schedule and the memory of what is
//! to be made; refuses to write.

use std::sync::Arc;
use std::time::Duration;

use chancery_evidence::Hash;
use tokio::time::Instant;

use crate::entry::Entry;
use crate::group::GROUP_ITEMS;
use crate::pending::PendingEntries;

/// Records whose entries are in no round, from which one begins.
pub(crate) const ROUND_RECORDS: usize = 1_024;
/// One begins after this, or soon after; after a failure it goes on then.
pub(crate) const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// No group is written while more records than this, with its own, would lack their entries.
pub(crate) const PENDING_RECORDS: usize = 8 * GROUP_ITEMS;
/// Entries of one piece: about as long to make as a few commits.
const PIECE_ENTRIES: usize = 128;
/// A piece follows for so many records: these have fewer entries than it, so that a round ends
/// before the next is due...
const PIECE_RECORDS: usize = 48;
/// ...or after this.
const PIECE_PAUSE: Duration = Duration::from_millis(20);

/// A round under way.
struct Round {
    records: usize,
    /// The last of them, with its hash.
    last: (u64, Hash),
}

/// See the module.
pub(crate) struct Making {
    pub(crate) entries: Arc<PendingEntries>,
    piece_entries: usize,
    round: Option<Round>,
    /// Records that are in no round.
    fresh: usize,
    /// Records since the last piece.
    since: usize,
    /// When the next step is due, however few records come; `None` with nothing to make.
    due: Option<Instant>,
}

impl Default for Making {
    fn default() -> Self {
        Self::in_pieces_of(PIECE_ENTRIES)
    }
}

impl Making {
    /// With so many entries in a piece.
    pub(crate) fn in_pieces_of(piece_entries: usize) -> Self {
        Self {
            entries: Arc::default(),
            piece_entries,
            round: None,
            fresh: 0,
            since: 0,
            due: None,
        }
    }

    /// Records are durable.
    pub(crate) fn add(
        &mut self,
        records: usize,
        entries: impl Iterator<Item = (i64, u64, Entry)>,
        now: Instant,
    ) {
        self.entries.add(entries);
        self.fresh += records;
        self.since += records;
        self.due.get_or_insert(now + ROUND_INTERVAL);
    }

    /// Records that lack entries.
    pub(crate) fn records(&self) -> usize {
        self.fresh + self.round.as_ref().map_or(0, |round| round.records)
    }

    /// Whether a piece is to be made now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.owes() || self.due.is_some_and(|due| due <= now)
    }

    /// Whether one is to be made for the records since the last.
    pub(crate) fn owes(&self) -> bool {
        match self.round {
            Some(_) => self.since >= PIECE_RECORDS,
            None => self.fresh >= ROUND_RECORDS,
        }
    }

    /// How long until one is, whatever comes.
    pub(crate) fn until_due(&self, now: Instant) -> Duration {
        let left = |due: Instant| due.saturating_duration_since(now);
        self.due.map_or(ROUND_INTERVAL, left)
    }

    /// Makes the next piece, of a new round where none is under way; `head` is the last record. `make`
    /// writes the rows and, with the last of a round, up to which record all are made. What was not
    /// made waits.
    pub(crate) fn piece<E>(
        &mut self,
        head: (u64, Hash),
        now: Instant,
        make: impl FnOnce(&[(i64, u64, Entry)], Option<(u64, Hash)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let round = self.round.take().unwrap_or_else(|| {
            self.entries.begin();
            let records = std::mem::take(&mut self.fresh);
            self.since = 0;
            Round {
                records,
                last: head,
            }
        });
        let made = self.entries.make(self.piece_entries, |entries, is_last| {
            make(entries, is_last.then_some(round.last))
        });
        match made {
            Ok(true) => {
                self.since = 0;
                self.due = (self.fresh > 0).then(|| now + ROUND_INTERVAL);
                Ok(())
            }
            Ok(false) => {
                self.since = self.since.saturating_sub(PIECE_RECORDS);
                self.due = Some(now + PIECE_PAUSE);
                self.round = Some(round);
                Ok(())
            }
            Err(error) => {
                self.round = Some(round);
                self.put_off(now);
                Err(error)
            }
        }
    }

    /// Goes on later.
    pub(crate) fn put_off(&mut self, now: Instant) {
        self.since = 0;
        self.due = Some(now + ROUND_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(first: u64, count: u64) -> impl Iterator<Item = (i64, u64, Entry)> {
        let entry = Entry::new(0, 1);
        (first..first + count).flat_map(move |n| [(1, n, entry), (2, n, entry)])
    }

    #[test]
    fn a_round_begins_by_number_and_ends_before_the_next_is_due() {
        let now = Instant::now();
        let mut making = Making::default();
        assert!(!making.is_due(now + ROUND_INTERVAL));
        let mut number = 1;
        let mut add = |making: &mut Making, count: u64| {
            making.add(count as usize, entries(number, count), now);
            number += count;
            number - 1
        };
        add(&mut making, ROUND_RECORDS as u64 - 1);
        assert!(!making.is_due(now));
        let last = add(&mut making, 1);
        let mut told = Vec::new();
        let mut head = last;
        loop {
            assert!(making.is_due(now));
            let mut over = false;
            let made: Result<(), ()> = making.piece((head, [1; 32]), now, |piece, upto| {
                assert!(piece.len() <= PIECE_ENTRIES && piece.iter().all(|(_, n, _)| *n <= last));
                told.extend(piece.iter().map(|(mailbox, n, _)| (*mailbox, *n)));
                over = upto.is_some();
                assert!(!over || upto == Some((last, [1; 32])));
                Ok(())
            });
            assert_eq!(made, Ok(()));
            if over {
                break;
            }
            assert!(!making.is_due(now), "a piece follows for some records");
            head = add(&mut making, PIECE_RECORDS as u64);
        }
        assert_eq!(told.len(), 2 * ROUND_RECORDS);
        assert!(told.is_sorted());
        assert!(making.records() < ROUND_RECORDS && !making.is_due(now));
        assert_eq!(making.until_due(now), ROUND_INTERVAL);
    }

    #[test]
    fn what_was_not_made_goes_on_later() {
        let now = Instant::now();
        let mut making = Making::in_pieces_of(3);
        making.add(2, entries(1, 2), now);
        assert!(!making.is_due(now) && making.is_due(now + ROUND_INTERVAL));
        let failed = making.piece((2, [2; 32]), now, |_, _| Err("full"));
        assert_eq!(failed, Err("full"));
        assert_eq!(
            (making.records(), making.until_due(now)),
            (2, ROUND_INTERVAL)
        );
        making.add(1, entries(3, 1), now);
        for upto in [None, Some((2, [2; 32]))] {
            let made: Result<(), ()> = making.piece((3, [3; 32]), now, |piece, told| {
                assert!(piece.iter().all(|(_, number, _)| *number < 3));
                assert_eq!(told, upto);
                Ok(())
            });
            assert_eq!(made, Ok(()));
            let left = if upto.is_none() {
                PIECE_PAUSE
            } else {
                ROUND_INTERVAL
            };
            assert_eq!(making.until_due(now), left);
        }
        assert_eq!(making.records(), 1);
    }
}
