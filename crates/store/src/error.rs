//! The one error of this crate, and the two questions that decide what a service does about it:
//! is the disk full (refuse work, go on), is the file or the disk broken (end the process).

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// `SQLITE_IOERR_SHMSIZE`: the index of the write-ahead log could not grow. SQLite reports a full
/// disk so here, where it says `SQLITE_FULL` everywhere else.
const IOERR_SHMSIZE: i32 = 10 | (19 << 8);

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said so.
    #[error("sqlite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file system said so.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The file is not in WAL mode and cannot be put into it.
    #[error("{path}: journal mode is {mode} in place of wal")]
    JournalMode { path: PathBuf, mode: String },
    /// The file was written by a newer version of the program.
    #[error("the schema has version {found}, this program knows versions up to {known}")]
    NewerSchema { found: u32, known: u32 },
    /// A step of the schema failed; none of it happened.
    #[error("migration {version} ({name}) failed: {source}")]
    Migration {
        version: u32,
        name: &'static str,
        source: rusqlite::Error,
    },
    /// The list of migrations does not rise.
    #[error("migration {version} ({name}) is out of order")]
    MigrationOrder { version: u32, name: &'static str },
    /// Another process holds the data directory.
    #[error("{} is in use by {}", path.display(), holder_text(*.holder))]
    Locked { path: PathBuf, holder: Option<u32> },
    /// The queue before the database stayed full for the time that a caller waits.
    #[error("the database queue stayed full for {waited_ms} ms")]
    QueueFull { waited_ms: u64 },
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// The statement's code panicked; its transaction was rolled back.
    #[error("the statement panicked")]
    Panicked,
    /// What is stored does not say what it must.
    #[error("stored data is not valid: {0}")]
    Invalid(String),
}

impl StoreError {
    /// An error of the file system at `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether there is no space left: nothing was changed, the same may work later.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sqlite(error) | Self::Migration { source: error, .. } => {
                error.sqlite_error_code() == Some(ErrorCode::DiskFull)
                    || extended_code(error) == Some(IOERR_SHMSIZE)
            }
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }

    /// Whether the disk or the file is broken: what was committed is unknown, so the process
    /// must end and read it again.
    pub fn is_fatal(&self) -> bool {
        if self.is_full() {
            return false;
        }
        match self {
            Self::Sqlite(error) | Self::Migration { source: error, .. } => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::SystemIoFailure
                        | ErrorCode::DatabaseCorrupt
                        | ErrorCode::NotADatabase
                )
            ),
            Self::Io { .. } => true,
            _ => false,
        }
    }

    /// Whether another connection or the queue was in the way: the same may work at once.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            ),
            Self::QueueFull { .. } => true,
            _ => false,
        }
    }
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => Some(error.extended_code),
        _ => None,
    }
}

fn holder_text(holder: Option<u32>) -> String {
    match holder {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn failure(extended: i32) -> StoreError {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(extended), None).into()
    }

    #[test]
    fn full_fatal_and_busy_exclude_each_other() {
        // (extended code, full, fatal, busy)
        for (code, full, fatal, busy) in [
            (rusqlite::ffi::SQLITE_FULL, true, false, false),
            (IOERR_SHMSIZE, true, false, false),
            (rusqlite::ffi::SQLITE_IOERR_FSYNC, false, true, false),
            (rusqlite::ffi::SQLITE_CORRUPT, false, true, false),
            (rusqlite::ffi::SQLITE_NOTADB, false, true, false),
            (rusqlite::ffi::SQLITE_BUSY, false, false, true),
            (rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE, false, false, false),
        ] {
            let error = failure(code);
            assert_eq!(
                (error.is_full(), error.is_fatal(), error.is_busy()),
                (full, fatal, busy),
                "{code}"
            );
        }
        let full = StoreError::io(Path::new("/x"), io::ErrorKind::StorageFull.into());
        assert!(full.is_full() && !full.is_fatal());
        assert!(!StoreError::Closed.is_fatal() && !StoreError::Closed.is_full());
    }
}
