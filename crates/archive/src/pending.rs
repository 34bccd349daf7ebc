//! Entries whose records are durable and which have no rows yet. Owns the memory of them, shared
//! by the committer, which adds and makes them, and by the readers, who must not miss any.
//! Refuses to decide when they are made: `making.rs` does, and bounds them.

use std::collections::BTreeMap;

use chancery_store::StoreError;
use parking_lot::RwLock;

use crate::entry::Entry;
use crate::mailbox::MailboxRow;
use crate::store::{Head, LogReader, Row};

/// Entries by mailbox and number.
type Entries = BTreeMap<(i64, u64), Entry>;

#[derive(Debug, Default)]
struct Both {
    /// Of the round under way; each older than all that are fresh.
    round: Entries,
    fresh: Entries,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PendingEntries(RwLock<Both>);

impl PendingEntries {
    /// Adds entries; whoever is told of their records afterwards finds them.
    pub(crate) fn add(&self, entries: impl Iterator<Item = (i64, u64, Entry)>) {
        let entries = entries.map(|(mailbox, number, entry)| ((mailbox, number), entry));
        self.0.write().fresh.extend(entries);
    }

    /// Begins a round with what is fresh; the one before is over.
    pub(crate) fn begin(&self) {
        let mut both = self.0.write();
        both.round = std::mem::take(&mut both.fresh);
    }

    /// Gives the next entries of the round, by mailbox, then number, at most `limit`, and whether they
    /// are its last; forgets them if `make` has made their rows. Gives whether the round is over.
    pub(crate) fn make<E>(
        &self,
        limit: usize,
        make: impl FnOnce(&[(i64, u64, Entry)], bool) -> Result<(), E>,
    ) -> Result<bool, E> {
        // Only the committer changes the round, behind a lock of its own.
        let (piece, is_last) = {
            let both = self.0.read();
            let next = both.round.iter().take(limit);
            let piece: Vec<_> = next.map(|((m, n), entry)| (*m, *n, *entry)).collect();
            let is_last = piece.len() == both.round.len();
            (piece, is_last)
        };
        make(&piece, is_last)?;
        let mut both = self.0.write();
        match piece.last() {
            Some((mailbox, number, _)) if !is_last => {
                both.round = both.round.split_off(&(*mailbox, number + 1));
            }
            _ => both.round.clear(),
        }
        Ok(is_last)
    }

    fn of(&self, mailbox: i64, after: u64, end: u64) -> Vec<(u64, Entry)> {
        let Some(first) = after.checked_add(1).filter(|first| *first <= end) else {
            return Vec::new();
        };
        let range = (mailbox, first)..=(mailbox, end);
        let both = self.0.read();
        let of = both.round.range(range.clone());
        let of = of.chain(both.fresh.range(range));
        of.map(|((_, number), entry)| (*number, *entry)).collect()
    }

    fn get(&self, mailbox: i64, number: u64) -> Option<Entry> {
        let both = self.0.read();
        let key = (mailbox, number);
        both.round
            .get(&key)
            .or_else(|| both.fresh.get(&key))
            .copied()
    }
}

/// The log with the entries that have no rows yet. Each question looks at them first, then at the
/// rows: an entry that moves meanwhile is seen twice, never missed.
pub(crate) struct WithPending<'a, L> {
    pub(crate) log: L,
    pub(crate) pending: &'a PendingEntries,
}

impl<L: LogReader> LogReader for WithPending<'_, L> {
    fn row(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError> {
        self.log.row(jid)
    }

    fn last_entry(&self, mailbox: i64) -> Result<u64, StoreError> {
        match self.pending.of(mailbox, 0, u64::MAX).last() {
            Some((number, _)) => Ok(*number),
            None => self.log.last_entry(mailbox),
        }
    }

    fn record(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.log.record(number)
    }

    fn each_record(
        &self,
        numbers: &[u64],
        take: &mut dyn FnMut(u64, Option<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        self.log.each_record(numbers, take)
    }

    fn has_more_rows(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<bool, StoreError> {
        self.log.has_more_rows(mailbox, after, end, limit)
    }

    fn entries(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let pending = self.pending.of(mailbox, after, end);
        let mut entries = self.log.entries(mailbox, after, end, limit)?;
        if !pending.is_empty() {
            entries.extend(pending);
            entries.sort_by_key(|(number, _)| *number);
            entries.dedup_by_key(|(number, _)| *number);
            entries.truncate(limit);
        }
        Ok(entries)
    }

    fn entries_down(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let pending = self.pending.of(mailbox, after, end);
        let mut entries = self.log.entries_down(mailbox, after, end, limit)?;
        if !pending.is_empty() {
            entries.extend(pending);
            entries.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
            entries.dedup_by_key(|(number, _)| *number);
            entries.truncate(limit);
        }
        Ok(entries)
    }

    fn last_record(&self) -> Result<u64, StoreError> {
        self.log.last_record()
    }

    fn entry(&self, mailbox: i64, number: u64) -> Result<Option<Entry>, StoreError> {
        match self.pending.get(mailbox, number) {
            Some(entry) => Ok(Some(entry)),
            None => self.log.entry(mailbox, number),
        }
    }

    fn records(
        &self,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.log.records(first, last, limit)
    }

    fn rows(&self, first: u64, last: u64, limit: usize) -> Result<Vec<(u64, Row)>, StoreError> {
        self.log.rows(first, last, limit)
    }

    fn last_mailbox(&self) -> Result<i64, StoreError> {
        self.log.last_mailbox()
    }

    fn head(&self) -> Result<Option<Head>, StoreError> {
        self.log.head()
    }
}

#[cfg(test)]
impl PendingEntries {
    pub(crate) fn len(&self) -> usize {
        let both = self.0.read();
        both.round.len() + both.fresh.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::store::{LogStore, SqliteLog, Writing, migrate};
    use chancery_store::{Profile, open};
    use std::collections::BTreeSet;

    /// Wherever the line between what has rows and what has none is, readers see the same.
    #[test]
    fn a_reader_sees_one_list_wherever_the_line_is() {
        const LAST: u64 = 20;
        let entry = |number: u64| Entry::new(0, usize::try_from(number).unwrap());
        let of = |mailbox: i64, number: u64| number.is_multiple_of(mailbox.cast_unsigned());
        let all = |from: u64, to: u64| {
            (from..=to).flat_map(move |number| {
                let here = [2, 3].into_iter().filter(move |m| of(*m, number));
                here.map(move |mailbox| (mailbox, number, entry(number)))
            })
        };
        for line in 0..=LAST {
            let dir = tempfile::tempdir().unwrap();
            let mut connection = open(&dir.path().join("log.db"), Profile::log()).unwrap();
            migrate(&mut connection).unwrap();
            let mut rows = SqliteLog::new(connection, 1);
            rows.open([0; 32]).unwrap();
            let mailboxes = vec![(2, "b@x".into()), (3, "c@x".into()), (4, "d@x".into())];
            let made = Writing {
                first: 1,
                mailboxes,
                ..Writing::default()
            };
            rows.append(&made).unwrap();
            let made: Vec<_> = all(1, line).collect();
            rows.make_entries(&made, Some((line, [0; 32]))).unwrap();
            let pending = PendingEntries::default();
            // Two of them are moving: they are in both; and some are in no round yet.
            let round = line + (LAST - line) / 2;
            pending.add(all(line.saturating_sub(2) + 1, round));
            pending.begin();
            pending.add(all(round + 1, LAST));
            let log = WithPending {
                log: rows.reader(),
                pending: &pending,
            };
            for (mailbox, jid) in [(2, "b@x"), (3, "c@x"), (4, "d@x")] {
                let expected: Vec<_> = (1..=LAST)
                    .filter(|number| mailbox != 4 && of(mailbox, *number))
                    .map(|number| (number, entry(number)))
                    .collect();
                let row = log.mailbox(jid).unwrap().unwrap();
                assert_eq!((row.id, &row.entries), (mailbox, &expected));
                assert_eq!(row.last, expected.last().map_or(0, |(number, _)| *number));
                assert_eq!(log.last_entry(mailbox).unwrap(), row.last);
                for after in 0..=LAST {
                    for (end, limit) in [(LAST, 3), (u64::MAX, 100), (after, 9), (15, 2)] {
                        let within = expected.iter().filter(|(n, _)| *n > after && *n <= end);
                        let page: Vec<_> = within.take(limit).copied().collect();
                        assert_eq!(log.entries(mailbox, after, end, limit).unwrap(), page);
                        let within = expected.iter().filter(|(n, _)| *n > after && *n <= end);
                        let page: Vec<_> = within.rev().take(limit).copied().collect();
                        assert_eq!(log.entries_down(mailbox, after, end, limit).unwrap(), page);
                    }
                }
                let found: BTreeSet<_> = (1..=LAST)
                    .filter(|number| log.entry(mailbox, *number).unwrap().is_some())
                    .collect();
                assert_eq!(found, expected.iter().map(|(number, _)| *number).collect());
            }
            assert!(log.mailbox("e@x").unwrap().is_none());
        }
    }

    #[test]
    fn an_open_set_accounts_for_what_is_pending_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut connection = open(&dir.path().join("log.db"), Profile::log()).unwrap();
        migrate(&mut connection).unwrap();
        let mut rows = SqliteLog::new(connection, 0);
        rows.open([0; 32]).unwrap();
        let made = Writing {
            first: 1,
            mailboxes: vec![(1, "b@x".into())],
            ..Writing::default()
        };
        rows.append(&made).unwrap();
        let pending = PendingEntries::default();
        let entry = Entry::new(Entry::OPEN, 1);
        pending.add((1..=5).map(|number| (1, number, entry)));
        let save = crate::mailbox::MailboxSave {
            id: 1,
            jid: "b@x".into(),
            floor: 0,
            upto: 3,
            open: Vec::new(),
        };
        rows.save(&[save]).unwrap();
        let read = || {
            let (log, pending) = (rows.reader(), &pending);
            WithPending { log, pending }
                .mailbox("b@x")
                .unwrap()
                .unwrap()
        };
        assert_eq!(read().entries, [(4, entry), (5, entry)]);
        assert_eq!(read().last, 5);
    }

    #[test]
    fn what_could_not_be_made_is_kept_and_what_was_is_gone() {
        let pending = PendingEntries::default();
        let entry = Entry::new(0, 1);
        pending.add([(2, 1, entry), (1, 2, entry), (1, 1, entry)].into_iter());
        pending.begin();
        pending.add([(1, 3, entry)].into_iter());
        let first = [(1, 1, entry), (1, 2, entry)];
        let kept: Result<bool, ()> = pending.make(2, |piece, is_last| {
            assert_eq!((piece, is_last), (&first[..], false));
            Err(())
        });
        assert!(kept.is_err() && pending.len() == 4);
        let made: Result<bool, ()> = pending.make(2, |piece, _| {
            assert_eq!(piece, first);
            Ok(())
        });
        assert!(made == Ok(false) && pending.len() == 2);
        let made: Result<bool, ()> = pending.make(2, |piece, is_last| {
            assert_eq!((piece, is_last), (&[(2, 1, entry)][..], true));
            Ok(())
        });
        assert!(made == Ok(true) && pending.len() == 1, "what came since");
        // A round of nothing is over with its first piece.
        pending.begin();
        let _: Result<bool, ()> = pending.make(9, |_, _| Ok(()));
        pending.begin();
        let made: Result<bool, ()> = pending.make(2, |piece, is_last| {
            assert!(piece.is_empty() && is_last);
            Ok(())
        });
        assert!(made == Ok(true) && pending.len() == 0);
    }
}
