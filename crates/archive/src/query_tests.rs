//! Limits of a look: an archive in which nearly everything is hidden.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::mailbox::MailboxRow;
use crate::store::{Head, Row};
use std::cell::Cell;

/// Entries 1 to `last`, hidden, as if each were there; counts how many were handed out.
struct Hidden {
    last: u64,
    read: Cell<usize>,
}

impl Hidden {
    fn of(&self, numbers: impl Iterator<Item = u64>, limit: usize) -> Vec<(u64, Entry)> {
        let entries: Vec<_> = numbers
            .take(limit)
            .map(|number| (number, Entry::new(Entry::HIDDEN, 1)))
            .collect();
        self.read.set(self.read.get() + entries.len());
        entries
    }
}

impl LogReader for Hidden {
    fn row(&self, _jid: &str) -> Result<Option<MailboxRow>, StoreError> {
        Ok(Some(MailboxRow {
            id: 1,
            ..MailboxRow::default()
        }))
    }
    fn last_entry(&self, _mailbox: i64) -> Result<u64, StoreError> {
        Ok(self.last)
    }
    fn last_record(&self) -> Result<u64, StoreError> {
        Ok(self.last)
    }
    fn record(&self, _number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }
    fn each_record(
        &self,
        numbers: &[u64],
        take: &mut dyn FnMut(u64, Option<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        let _ = numbers.iter().all(|number| take(*number, None));
        Ok(())
    }
    fn has_more_rows(
        &self,
        _mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<bool, StoreError> {
        Ok((after + 1..=end.min(self.last)).count() > limit)
    }
    fn entries(
        &self,
        _mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        Ok(self.of(after + 1..=end.min(self.last), limit))
    }
    fn entries_down(
        &self,
        _mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        Ok(self.of((after + 1..=end.min(self.last)).rev(), limit))
    }
    fn entry(&self, _mailbox: i64, _number: u64) -> Result<Option<Entry>, StoreError> {
        Ok(None)
    }
    fn records(
        &self,
        _first: u64,
        _last: u64,
        _limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        Ok(Vec::new())
    }
    fn rows(&self, _: u64, _: u64, _: usize) -> Result<Vec<(u64, Row)>, StoreError> {
        Ok(Vec::new())
    }
    fn last_mailbox(&self) -> Result<i64, StoreError> {
        Ok(1)
    }
    fn head(&self) -> Result<Option<Head>, StoreError> {
        Ok(None)
    }
}

#[test]
fn a_look_has_an_end_and_the_next_goes_on_there() {
    let last = 2 * SCAN_ENTRIES as u64 + 5_000;
    let ring = RwLock::new(KeyRing::generate(&mut |out: &mut [u8]| out.fill(1)));
    for backward in [false, true] {
        let log = Hidden {
            last,
            read: Cell::new(0),
        };
        let mut request = QueryArchiveRequest {
            jid: "a@x".into(),
            max: 50,
            backward,
            ..QueryArchiveRequest::default()
        };
        let mut looks = 0;
        loop {
            let before = log.read.get();
            let page = page(&log, &ring, 0, &request).unwrap();
            looks += 1;
            let read = log.read.get() - before;
            assert!(
                read <= SCAN_ENTRIES + CHUNK_ENTRIES + COUNT_ENTRIES + 1,
                "{read}"
            );
            assert!(page.messages.is_empty());
            if page.complete {
                assert_eq!(page.cursor, 0);
                break;
            }
            assert_ne!(page.cursor, request.cursor, "it goes on");
            request.cursor = page.cursor;
        }
        assert_eq!(looks, 3);
        assert!(log.read.get() as u64 >= last, "and nothing is left out");
    }
}

#[test]
fn a_span_shrinks_only() {
    let mut span = Span {
        after: 3,
        end: u64::MAX,
    };
    span.above(2);
    span.below(9);
    span.below(20);
    assert_eq!(span, Span { after: 3, end: 8 });
    assert!(!span.has(3) && span.has(4) && span.has(8) && !span.has(9));
    span.below(0);
    assert!(!span.has(0));
}
