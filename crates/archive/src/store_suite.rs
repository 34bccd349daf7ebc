//! What every backend of the log must do. Runs on SQLite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use chancery_store::{Profile, StoreError, open};
use rusqlite::Connection;

use crate::entry::Entry;
use crate::mailbox::MailboxSave;
use crate::store::{LogReader, LogStore, SqliteLog, Writing, migrate};

fn writing(first: u64, count: u64, hash: u8) -> Writing {
    Writing {
        first,
        records: (first..first + count)
            .map(|n| n.to_be_bytes().to_vec())
            .collect(),
        hash: [hash; 32],
        ..Writing::default()
    }
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

    // Records, entries and a mailbox in one step.
    let jid: Arc<str> = "b@x".into();
    let entry = Entry::new(Entry::OPEN, 12);
    log.append(&Writing {
        mailboxes: vec![(1, Arc::clone(&jid))],
        entries: vec![(1, 1, entry), (1, 3, entry)],
        ..writing(1, 3, 1)
    })
    .unwrap();
    let row = read(&log).mailbox("b@x").unwrap().unwrap();
    assert_eq!((row.id, row.floor, row.last), (1, 0, 3));
    assert_eq!(row.entries, [(1, entry), (3, entry)]);
    assert!(read(&log).mailbox("c@x").unwrap().is_none());
    assert_eq!(read(&log).record(2).unwrap().unwrap(), 2_u64.to_be_bytes());
    assert!(read(&log).record(4).unwrap().is_none());
    assert_eq!(read(&log).entries(1, 1, 9, 9).unwrap(), [(3, entry)]);
    assert_eq!(read(&log).entry(1, 2).unwrap(), None);

    // All of a group or nothing: the second mailbox has the first's name.
    let twice = Writing {
        mailboxes: vec![(2, Arc::clone(&jid))],
        ..writing(4, 1, 2)
    };
    assert!(log.append(&twice).is_err());
    assert!(read(&log).record(4).unwrap().is_none());
    // A group that does not follow the head is refused whole.
    assert!(log.append(&writing(5, 1, 2)).is_err());
    assert!(read(&log).record(5).unwrap().is_none());

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

    // A floor is never lowered by an older open set.
    log.append(&Writing {
        floors: vec![(1, 4)],
        ..writing(4, 1, 4)
    })
    .unwrap();
    log.save(&[save(0, 3)]).unwrap();
    assert_eq!(read(&log).mailbox("b@x").unwrap().unwrap().floor, 4);

    // A later writer finds it all, under a higher epoch.
    drop(log);
    let mut log = again();
    let head = log.open([0; 32]).unwrap();
    assert_eq!((head.epoch, head.number, head.hash), (2, 4, [4; 32]));
    assert_eq!(read(&log).last_mailbox().unwrap(), 1);
    let page = read(&log).records(2, 4, 2).unwrap();
    assert_eq!(
        page.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [2, 3]
    );
    log.append(&writing(5, 1, 5)).unwrap();
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
        records: vec![vec![1; 100_000]],
        ..writing(1, 0, 1)
    };
    let error: StoreError = log.append(&large).unwrap_err();
    assert!(error.is_full() && !error.is_fatal(), "{error}");
    assert_eq!(log.reader().head().unwrap().unwrap().number, 0);
    log.append(&writing(1, 1, 1)).unwrap();
}
