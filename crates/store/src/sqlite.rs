//! How a database file is opened: write-ahead log, durability, sizes, timeouts. It refuses to
//! choose for a service: the service names its profile.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::StoreError;

/// Prepared statements kept per connection.
const STATEMENTS: usize = 128;
/// SQLite's layer for files of one process: one exclusive lock for its whole life, and the index
/// of the write-ahead log in its memory.
const EXCLUSIVE_VFS: &str = "unix-excl";

/// Where files are not the system's, and on which of SQLite's layers they are.
static SIMULATED: OnceLock<(PathBuf, String)> = OnceLock::new();

/// From here on the databases of this process below `root` are on SQLite's layer `vfs`, which whoever
/// calls has registered: a disk that a test made. The first call counts.
pub fn simulate(root: &Path, vfs: &str) {
    SIMULATED.get_or_init(|| (root.to_owned(), vfs.to_owned()));
}

fn simulated(path: &Path) -> Option<&'static str> {
    let (root, vfs) = SIMULATED.get()?;
    path.starts_with(root).then_some(vfs.as_str())
}

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
    /// Only this process opens the file while it has it: its connections agree in memory, not by
    /// locks of the system on every transaction. All connections to one file say the same.
    pub one_process: bool,
}

impl Profile {
    /// The log: every commit durable, many of them, checkpoints by a thread of its own.
    pub const fn log() -> Self {
        Self {
            wal_autocheckpoint_pages: 0,
            cache_kib: 16 * 1024,
            one_process: true,
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
            one_process: false,
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
    let simulated = simulated(path);
    if profile.read_only {
        flags |= OpenFlags::SQLITE_OPEN_READ_ONLY;
    } else {
        flags |= OpenFlags::SQLITE_OPEN_READ_WRITE;
        if simulated.is_some() {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        } else {
            create(path)?;
        }
    }
    let connection = match simulated.or(profile.one_process.then_some(EXCLUSIVE_VFS)) {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        None => Connection::open_with_flags(path, flags)?,
    };
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

/// Makes the file unless it is there; SQLite gives the log and its index the same mode. One that
/// is there is not opened: closing it again would drop the locks that this process has on it.
fn create(path: &Path) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match options.open(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(StoreError::io(path, source))
        }
        _ => Ok(()),
    }
}

/// What SQLite does without a disk's confirmation of each commit: for a transaction whose loss
/// costs work only. The next one that is confirmed confirms it too.
pub fn unconfirmed<R>(
    connection: &mut Connection,
    work: impl FnOnce(&mut Connection) -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    connection.pragma_update(None, "synchronous", "normal")?;
    let result = work(connection);
    connection.pragma_update(None, "synchronous", "full")?;
    result
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
        for (name, profile) in [("a.db", Profile::durable()), ("log.db", Profile::log())] {
            let db = open(&dir.path().join(name), profile).unwrap();
            db.execute_batch("CREATE TABLE t (x)").unwrap();
            for suffix in ["", "-wal", "-shm"] {
                let file = dir.path().join(format!("{name}{suffix}"));
                if suffix == "-shm" && profile.one_process {
                    assert!(!file.exists(), "the index is in memory");
                    continue;
                }
                let mode = file.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{file:?}");
            }
        }
    }

    /// What the test below runs in a process of its own, where it is told a file: it opens the file
    /// as any other program would. Elsewhere there is nothing to look at.
    #[test]
    fn another_process() {
        let Ok(path) = std::env::var("CHANCERY_TEST_DATABASE") else {
            return;
        };
        let opened = open(Path::new(&path), Profile::durable());
        let error = opened.and_then(|db| {
            let count = db.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0))?;
            assert_eq!(count, 1);
            Ok(())
        });
        let expected = std::env::var("CHANCERY_TEST_LOCKED").unwrap() == "yes";
        assert_eq!(error.is_err(), expected, "{error:?}");
        if let Err(error) = error {
            assert!(error.is_busy(), "{error}");
        }
    }

    fn look_from_another_process(path: &Path, locked: bool) {
        let looked = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::tests::another_process"])
            .env("CHANCERY_TEST_DATABASE", path)
            .env("CHANCERY_TEST_LOCKED", if locked { "yes" } else { "no" })
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&looked.stdout);
        assert!(
            looked.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    /// What the test below runs in a process of its own, where it is told a file: it writes, and
    /// dies with all its connections open.
    #[test]
    fn a_process_that_dies() {
        let Ok(path) = std::env::var("CHANCERY_TEST_DYING") else {
            return;
        };
        let path = Path::new(&path);
        let writer = open(path, Profile::log()).unwrap();
        writer.execute_batch("CREATE TABLE t (x)").unwrap();
        let second = open(path, Profile::log()).unwrap();
        let _reader = open(path, Profile::log().reader()).unwrap();
        for number in 0..100 {
            writer
                .execute("INSERT INTO t VALUES (?1)", [number])
                .unwrap();
            if number == 50 {
                checkpoint(&second, Checkpoint::Passive).unwrap();
            }
        }
        writer
            .execute_batch("BEGIN; INSERT INTO t VALUES (100)")
            .unwrap();
        std::process::abort();
    }

    #[test]
    fn what_was_committed_is_there_after_the_process_died() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let died = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::tests::a_process_that_dies"])
            .env("CHANCERY_TEST_DYING", &path)
            .output()
            .unwrap();
        assert!(!died.status.success());
        assert!(!dir.path().join("log.db-shm").exists());
        let db = open(&path, Profile::log()).unwrap();
        let reader = open(&path, Profile::log().reader()).unwrap();
        for connection in [&db, &reader] {
            let count = connection.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0));
            assert_eq!(count.unwrap(), 100);
        }
        assert!(!checkpoint(&db, Checkpoint::Truncate).unwrap().blocked);
    }

    #[test]
    fn a_file_of_one_process_is_shut_to_others_until_its_last_connection_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let profile = Profile {
            busy_timeout: Duration::from_millis(10),
            ..Profile::log()
        };
        let writer = open(&path, profile).unwrap();
        writer
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
            .unwrap();
        // A second writer, as for checkpoints, and a reader that is closed again.
        let second = open(&path, profile).unwrap();
        drop(open(&path, profile.reader()).unwrap());
        checkpoint(&second, Checkpoint::Passive).unwrap();
        look_from_another_process(&path, true);
        drop(writer);
        drop(second);
        look_from_another_process(&path, false);
    }

    #[test]
    fn an_unconfirmed_transaction_is_one_and_the_next_is_confirmed_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = open(&dir.path().join("log.db"), Profile::log()).unwrap();
        unconfirmed(&mut db, |db| {
            assert_eq!(pragma::<i64>(db, "synchronous"), 1);
            Ok(db.execute_batch("CREATE TABLE t (x)")?)
        })
        .unwrap();
        assert_eq!(pragma::<i64>(&db, "synchronous"), 2);
        let failed = unconfirmed(&mut db, |db| Ok(db.execute_batch("nonsense")?));
        assert!(failed.is_err());
        assert_eq!(pragma::<i64>(&db, "synchronous"), 2);
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
