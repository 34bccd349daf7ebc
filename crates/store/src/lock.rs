//! Who may hold the data directory: the server, or one offline command, never both. It owns the
//! file `lock` in it; it refuses to judge whether the holder still does anything useful.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// The longest holder's note that is read.
const NOTE_LIMIT_BYTES: u64 = 64;

/// The exclusive hold of a data directory, until dropped. The kernel lets go of it when the
/// process ends, however it ends; the file stays, since removing it would race.
#[derive(Debug)]
pub struct DataLock {
    path: PathBuf,
    _file: File,
}

impl DataLock {
    /// Takes the directory `data`, or says who has it. Never waits.
    pub fn acquire(data: &Path) -> Result<Self, StoreError> {
        let path = data.join("lock");
        let io = |source| StoreError::io(&path, source);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options.open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = read_holder(&mut file);
                return Err(StoreError::Locked {
                    path: data.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { path, _file: file })
    }

    /// The lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut note = String::new();
    file.take(NOTE_LIMIT_BYTES).read_to_string(&mut note).ok()?;
    note.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_other_hears_who() {
        let data = tempfile::tempdir().unwrap();
        let lock = DataLock::acquire(data.path()).unwrap();
        let error = DataLock::acquire(data.path()).unwrap_err();
        let StoreError::Locked { holder, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(*holder, Some(std::process::id()));
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id()))
        );
        assert!(lock.path().exists());
        drop(lock);
        DataLock::acquire(data.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_an_error_with_its_path() {
        let error = DataLock::acquire(Path::new("/nonexistent/data")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nonexistent/data/lock: "),
            "{error}"
        );
    }
}
