//! The simulated disk itself: SQLite works on it as on any, and what is lost is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rusqlite::OpenFlags;

use super::*;
use crate::disk::{Disk, layer};

fn open(disk: &Disk) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let layer = layer().unwrap();
    let db = Connection::open_with_flags_and_vfs(disk.path("a.db"), flags, layer).unwrap();
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    let mode: String = db
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    db.pragma_update(None, "synchronous", "full").unwrap();
    db
}

fn count(db: &Connection) -> i64 {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn connections_to_one_file_see_each_other_and_keep_out_of_the_way() {
    let disk = Disk::new(Image::new());
    let (one, other) = (open(&disk), open(&disk));
    one.execute_batch("CREATE TABLE t (x)").unwrap();
    for n in 0..300 {
        let (writer, reader) = if n % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        writer
            .execute("INSERT INTO t VALUES (zeroblob(900))", [])
            .unwrap();
        assert_eq!(count(reader), n + 1);
        if n % 70 == 0 {
            reader
                .execute_batch("PRAGMA wal_checkpoint(RESTART)")
                .unwrap();
        }
    }
    one.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(other.execute_batch("BEGIN IMMEDIATE").is_err());
    one.execute_batch("COMMIT").unwrap();
    let check: String = other
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    drop((one, other));
    assert_eq!(count(&open(&disk)), 300);
}

/// A run of some transactions, with a checkpoint amid, and the states that it went through.
fn run() -> (Vec<Op>, States) {
    let disk = Disk::new(Image::new());
    let db = open(&disk);
    db.execute_batch("CREATE TABLE t (x, y)").unwrap();
    let mut states = States::default();
    states.add(digest(&db).unwrap(), disk.position(), disk.position(), true);
    for n in 0..12 {
        let begun = disk.position();
        db.execute("INSERT INTO t VALUES (?1, zeroblob(3000))", [n])
            .unwrap();
        states.add(digest(&db).unwrap(), begun, disk.position(), true);
        if n % 5 == 4 {
            db.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap();
        }
    }
    drop(db);
    (disk.trace(), states)
}

/// Complaints of all cuts after the first state, with one kind of loss.
fn complaints(loss: Loss) -> usize {
    let (trace, states) = run();
    let start = states.0[0].done;
    let (mut cut, mut dice, mut wrong) = (Cut::new(&Image::new()), Dice(7), 0);
    for (at, op) in trace.iter().enumerate() {
        if at >= start {
            let disk = Disk::new(cut.image(loss, &mut dice));
            let found = digest(&open(&disk)).unwrap_or(0);
            wrong += usize::from(states.found(found, at).is_err());
        }
        cut.step(op);
    }
    wrong
}

#[test]
fn what_was_acknowledged_is_there_after_any_cut() {
    for loss in LOSSES {
        assert_eq!(complaints(loss), 0, "{loss:?}");
    }
}

#[test]
fn a_disk_that_lies_is_found_out() {
    assert!(complaints(Loss::Lying) > 50);
}
