//! How a database file is opened: write-ahead log, durability, sizes, timeouts. It refuses to
//! choose for a service: the service names its profile.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::StoreError;

/// Prepared statements kept per connection.
const STATEMENTS: usize = 128;

/// When a commit reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// Each commit: what was answered survives a power cut.
    Full,
    /// Each checkpoint: a power cut may take the last commits, never the file's consistency.
    Normal,
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub synchronous: Synchronous,
    /// Pages in the write-ahead log after which a commit checkpoints it; 0 = never, the owner
    /// calls [`checkpoint`].
    pub wal_autocheckpoint_pages: u32,
    pub cache_kib: u32,
    pub mmap_bytes: u64,
    pub busy_timeout: Duration,
    /// Neither creates nor writes.
    pub read_only: bool,
}

impl Profile {
    /// The log: every commit durable, checkpoints by a thread of its own.
    pub const fn log() -> Self {
        Self {
            wal_autocheckpoint_pages: 0,
            cache_kib: 16 * 1024,
            ..Self::durable()
        }
    }

    /// State that must never be lost and changes seldom.
    pub const fn durable() -> Self {
        Self {
            synchronous: Synchronous::Full,
            wal_autocheckpoint_pages: 1_000,
            cache_kib: 4 * 1024,
            mmap_bytes: 0,
            busy_timeout: Duration::from_secs(5),
            read_only: false,
        }
    }

    /// State that can be made again.
    pub const fn rebuildable() -> Self {
        Self {
            synchronous: Synchronous::Normal,
            ..Self::durable()
        }
    }

    /// The same for a reading connection.
    pub const fn reader(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }
}

/// Opens the database at `path`, readable by its owner only, and made when it is not there.
pub fn open(path: &Path, profile: Profile) -> Result<Connection, StoreError> {
    let mut flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    if profile.read_only {
        flags |= OpenFlags::SQLITE_OPEN_READ_ONLY;
    } else {
        // SQLite gives the log and its index the mode of the database file.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options
            .open(path)
            .map_err(|source| StoreError::io(path, source))?;
        flags |= OpenFlags::SQLITE_OPEN_READ_WRITE;
    }
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(profile.busy_timeout)?;
    if !profile.read_only {
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::JournalMode {
                path: path.to_owned(),
                mode,
            });
        }
        let synchronous = match profile.synchronous {
            Synchronous::Full => "full",
            Synchronous::Normal => "normal",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        let pages = profile.wal_autocheckpoint_pages;
        connection.pragma_update_and_check(None, "wal_autocheckpoint", pages, |_| Ok(()))?;
        connection.pragma_update(None, "foreign_keys", true)?;
    }
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -i64::from(profile.cache_kib))?;
    let mmap_bytes = i64::try_from(profile.mmap_bytes).unwrap_or(i64::MAX);
    // Answers no row where the file system or the build has no memory mapping.
    connection
        .pragma_update(None, "mmap_size", mmap_bytes)
        .or_else(|error| match error {
            rusqlite::Error::ExecuteReturnedResults => Ok(()),
            other => Err(other),
        })?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// How hard a checkpoint tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// As far as it gets without waiting for anybody.
    Passive,
    /// Waits for readers, then starts the log's file anew from its beginning.
    Restart,
    /// The same, and cuts the file to nothing: before a clean end.
    Truncate,
}

/// How far a checkpoint came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointed {
    /// Somebody was in the way.
    pub blocked: bool,
    /// Pages in the log.
    pub log_pages: i64,
    /// Of these, pages that are in the database now.
    pub moved_pages: i64,
}

/// Moves pages from the write-ahead log into the database.
pub fn checkpoint(connection: &Connection, how: Checkpoint) -> Result<Checkpointed, StoreError> {
    let how = match how {
        Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Checkpoint::Restart => "PRAGMA wal_checkpoint(RESTART)",
        Checkpoint::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    Ok(connection.query_row(how, [], |row| {
        Ok(Checkpointed {
            blocked: row.get::<_, i64>(0)? != 0,
            log_pages: row.get(1)?,
            moved_pages: row.get(2)?,
        })
    })?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pragma<T: rusqlite::types::FromSql>(db: &Connection, name: &str) -> T {
        db.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_profile_is_what_the_connection_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let db = open(&path, Profile::log()).unwrap();
        assert_eq!(pragma::<String>(&db, "journal_mode"), "wal");
        assert_eq!(pragma::<i64>(&db, "synchronous"), 2);
        assert_eq!(pragma::<i64>(&db, "wal_autocheckpoint"), 0);
        assert_eq!(pragma::<i64>(&db, "foreign_keys"), 1);
        assert_eq!(pragma::<i64>(&db, "cache_size"), -16_384);
        let db = open(&dir.path().join("b.db"), Profile::rebuildable()).unwrap();
        assert_eq!(pragma::<i64>(&db, "synchronous"), 1);
        assert_eq!(pragma::<i64>(&db, "wal_autocheckpoint"), 1_000);
    }

    #[test]
    fn the_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let db = open(&path, Profile::log()).unwrap();
        db.execute_batch("CREATE TABLE t (x)").unwrap();
        for file in ["log.db", "log.db-wal", "log.db-shm"] {
            let mode = dir
                .path()
                .join(file)
                .metadata()
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_reader_sees_what_is_committed_and_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        assert!(
            open(&path, Profile::log().reader()).is_err(),
            "a reader makes no file"
        );
        let writer = open(&path, Profile::log()).unwrap();
        writer
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
            .unwrap();
        let reader = open(&path, Profile::log().reader()).unwrap();
        writer
            .execute_batch("BEGIN; INSERT INTO t VALUES (2)")
            .unwrap();
        let count = || reader.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0));
        assert_eq!(count().unwrap(), 1);
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(count().unwrap(), 2);
        assert!(reader.execute("INSERT INTO t VALUES (3)", []).is_err());
    }

    #[test]
    fn a_checkpoint_moves_pages_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let db = open(&path, Profile::log()).unwrap();
        db.execute_batch("CREATE TABLE t (x)").unwrap();
        for _ in 0..1_200 {
            db.execute("INSERT INTO t VALUES (zeroblob(4000))", [])
                .unwrap();
        }
        let passive = checkpoint(&db, Checkpoint::Passive).unwrap();
        assert!(
            passive.log_pages > 1_200,
            "nothing was moved before: {passive:?}"
        );
        assert_eq!(passive.moved_pages, passive.log_pages);
        assert!(!checkpoint(&db, Checkpoint::Truncate).unwrap().blocked);
        assert_eq!(dir.path().join("log.db-wal").metadata().unwrap().len(), 0);
    }
}
