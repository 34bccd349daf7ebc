//! What every backend of the log must do. Runs on SQLite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use chancery_store::{Profile, StoreError, open};
use rusqlite::Connection;

use crate::entry::Entry;
use crate::mailbox::MailboxSave;
use crate::store::{LogReader, LogStore, Planned, Row, SqliteLog, Writing, migrate};

fn row(number: u64, planned: Planned) -> Row {
    let bytes = number.to_be_bytes().to_vec();
    Row { bytes, planned }
}

fn writing(first: u64, count: u64) -> Writing {
    Writing {
        first,
        records: (first..first + count)
            .map(|n| row(n, [None, None]))
            .collect(),
        ..Writing::default()
    }
}

fn make<S: LogStore>(log: &mut S, entries: &[(i64, u64, Entry)], number: u64, hash: u8) {
    let upto = Some((number, [hash; 32]));
    log.make_entries(entries, upto).unwrap();
}

/// The suite: `log` is an empty log; `again` opens the same one as a later writer.
fn suite<S: LogStore>(
    mut log: S,
    read: impl Fn(&S) -> Box<dyn LogReader + '_>,
    again: impl Fn() -> S,
) {
    let head = log.open([9; 32]).unwrap();
    assert_eq!((head.epoch, head.number, head.hash), (1, 0, [9; 32]));
    assert_eq!(read(&log).last_mailbox().unwrap(), 0);

    // Records and a mailbox in one step; a row says which entries its record makes.
    let jid: Arc<str> = "b@x".into();
    let entry = Entry::new(Entry::OPEN, 12);
    let large = Entry::new(u8::MAX, usize::MAX);
    let planned = [
        [Some((1, entry)), None],
        [Some((1 << 40, large)), Some((1, entry))],
    ];
    log.append(&Writing {
        first: 1,
        records: vec![row(1, planned[0]), row(2, [None, None]), row(3, planned[1])],
        mailboxes: vec![(1, Arc::clone(&jid))],
        ..Writing::default()
    })
    .unwrap();
    let rows = read(&log).rows(1, 9, 9).unwrap();
    let expected = [
        (1, row(1, planned[0])),
        (2, row(2, [None, None])),
        (3, row(3, planned[1])),
    ];
    assert_eq!(rows, expected);
    assert_eq!(read(&log).rows(2, 9, 1).unwrap(), expected[1..2]);
    assert_eq!(
        read(&log).mailbox("b@x").unwrap().unwrap().last,
        0,
        "not made yet"
    );
    assert_eq!(
        read(&log).head().unwrap().unwrap(),
        head,
        "which the head tells"
    );

    // The entries follow, in pieces; making some again changes nothing.
    make(&mut log, &[(1, 1, entry)], 1, 1);
    log.make_entries(&[(1, 1, large), (1, 3, entry)], None)
        .unwrap();
    let now = read(&log).head().unwrap().unwrap();
    assert_eq!(now.number, 1, "not all up to there");
    let all = [(1, 1, large), (1, 3, entry), (1 << 40, 3, large)];
    make(&mut log, &all, 3, 3);
    let now = read(&log).head().unwrap().unwrap();
    assert_eq!((now.epoch, now.number, now.hash), (1, 3, [3; 32]));
    let row = read(&log).mailbox("b@x").unwrap().unwrap();
    assert_eq!((row.id, row.floor, row.last), (1, 0, 3));
    assert_eq!(row.entries, [(1, entry), (3, entry)]);
    assert!(read(&log).mailbox("c@x").unwrap().is_none());
    assert_eq!(read(&log).record(2).unwrap().unwrap(), 2_u64.to_be_bytes());
    assert!(read(&log).record(4).unwrap().is_none());
    assert_eq!(read(&log).entries(1, 1, 9, 9).unwrap(), [(3, entry)]);
    let down = read(&log).entries_down(1, 0, 9, 9).unwrap();
    assert_eq!(down, [(3, entry), (1, entry)]);
    assert_eq!(read(&log).entries_down(1, 0, 2, 9).unwrap(), [(1, entry)]);
    assert_eq!(read(&log).entries_down(1, 0, 9, 1).unwrap(), [(3, entry)]);
    assert_eq!(read(&log).entries_down(1, 3, u64::MAX, 9).unwrap(), []);
    assert_eq!(read(&log).last_record().unwrap(), 3);
    assert_eq!(read(&log).entry(1, 2).unwrap(), None);
    assert_eq!(read(&log).entry(1 << 40, 3).unwrap(), Some(large));

    // All of a group or nothing: the second mailbox has the first's name.
    let twice = Writing {
        mailboxes: vec![(2, Arc::clone(&jid))],
        ..writing(4, 1)
    };
    assert!(log.append(&twice).is_err());
    assert!(read(&log).record(4).unwrap().is_none());
    // A group that does not follow the last record is refused whole: above it, or upon it.
    for first in [5, 3] {
        assert!(log.append(&writing(first, 2)).is_err());
        assert!(read(&log).record(5).unwrap().is_none());
    }

    // An open set accounts for what is not above it.
    let save = |floor, upto| MailboxSave {
        id: 1,
        jid: Arc::clone(&jid),
        floor,
        upto,
        open: vec![7],
    };
    log.save(&[save(0, 2)]).unwrap();
    let row = read(&log).mailbox("b@x").unwrap().unwrap();
    assert_eq!(
        (row.open.as_slice(), row.entries.as_slice()),
        (&[7][..], &[(3, entry)][..])
    );

    // What an owner wants is kept with the mailbox, over the writing of open sets.
    let row = read(&log).row("b@x").unwrap().unwrap();
    assert_eq!(row.preferences, None);
    log.append(&Writing {
        preferences: vec![(1, vec![1]), (1, vec![2])],
        ..writing(4, 1)
    })
    .unwrap();
    log.save(&[save(0, 3)]).unwrap();
    assert_eq!(
        read(&log).row("b@x").unwrap().unwrap().preferences,
        Some(vec![2])
    );

    // A floor is never lowered by an older open set, and ends what the owner wanted.
    log.append(&Writing {
        floors: vec![(1, 5)],
        ..writing(5, 1)
    })
    .unwrap();
    log.save(&[save(0, 3)]).unwrap();
    let row = read(&log).mailbox("b@x").unwrap().unwrap();
    assert_eq!((row.floor, row.preferences), (5, None));

    // A later writer finds it all, under a higher epoch; the one before writes nothing more.
    let mut late = again();
    let head = late.open([0; 32]).unwrap();
    assert_eq!((head.epoch, head.number, head.hash), (2, 3, [3; 32]));
    assert!(log.append(&writing(6, 1)).is_err(), "fenced");
    assert!(log.make_entries(&[], Some((5, [4; 32]))).is_err(), "fenced");
    assert!(log.make_entries(&[(1, 4, entry)], None).is_err(), "fenced");
    drop(log);
    assert_eq!(read(&late).last_mailbox().unwrap(), 1);
    let page = read(&late).records(2, 4, 2).unwrap();
    assert_eq!(
        page.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [2, 3]
    );
    late.append(&writing(6, 1)).unwrap();
    make(&mut late, &[], 6, 6);
    assert_eq!(read(&late).head().unwrap().unwrap().number, 6);
}

#[test]
fn sqlite_passes_in_every_shard() {
    for shard in [0, 1, 63] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let make = || {
            let mut connection = open(&path, Profile::log()).unwrap();
            migrate(&mut connection).unwrap();
            SqliteLog::new(connection, shard)
        };
        suite(
            make(),
            |log: &SqliteLog<Connection>| Box::new(log.reader()),
            make,
        );
    }
}

#[test]
fn a_full_disk_writes_nothing_and_is_told_as_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(&dir.path().join("log.db"), Profile::log()).unwrap();
    migrate(&mut connection).unwrap();
    let pages: i64 = connection
        .pragma_query_value(None, "page_count", |r| r.get(0))
        .unwrap();
    connection
        .pragma_update_and_check(None, "max_page_count", pages + 4, |_| Ok(()))
        .unwrap();
    let mut log = SqliteLog::new(connection, 0);
    log.open([0; 32]).unwrap();
    let large = Writing {
        records: vec![Row {
            bytes: vec![1; 100_000],
            planned: [None, None],
        }],
        ..writing(1, 0)
    };
    let error: StoreError = log.append(&large).unwrap_err();
    assert!(error.is_full() && !error.is_fatal(), "{error}");
    assert!(log.reader().record(1).unwrap().is_none());
    log.append(&writing(1, 1)).unwrap();
    // Neither do entries that find no room: the head stays where it is.
    let entry = Entry::new(0, 1);
    let many: Vec<_> = (0..10_000).map(|mailbox| (mailbox, 1, entry)).collect();
    let error = log.make_entries(&many, Some((1, [1; 32]))).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(log.reader().head().unwrap().unwrap().number, 0);
    assert_eq!(log.reader().entry(1, 1).unwrap(), None);
    make(&mut log, &[(1, 1, entry)], 1, 1);
    assert_eq!(log.reader().entry(1, 1).unwrap(), Some(entry));
}
