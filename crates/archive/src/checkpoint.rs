//! The thread that moves the write-ahead log into the database. Owns how often: often enough that no
//! move keeps a processor or the disk from the commits for long. Refuses to go on after an error
//! whose effect is unknown.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use chancery_runtime::Clock;
use chancery_store::{Checkpoint, Checkpointed, Profile, StoreError, checkpoint, open};
use rusqlite::Connection;

use crate::commit::Fatal;

/// Size of the write-ahead log's file from which it is moved into the database.
const WAL_BYTES: u64 = 4 * 1024 * 1024;
/// Pages in it, of 4 KiB, from which writers wait for that, so that it starts anew. Not the file's
/// size: what has grown stays, and they would wait at every move.
const RESTART_PAGES: i64 = 16 * 1024;
/// The log is moved at least this often, whatever its size.
const INTERVAL: Duration = Duration::from_secs(30);
/// What is to be moved at once: a millisecond of a processor.
const PAGES: i64 = 400;
/// Between two moves...
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(250);
/// ...and this often what one took: a slow disk is the commits' first.
const REST_TIMES: u32 = 3;

/// Starts the thread. It ends, after a last checkpoint, when the sender is dropped.
pub(crate) fn start_checkpoints(
    path: &Path,
    clock: Clock,
    fatal: Fatal,
) -> Result<(SyncSender<()>, JoinHandle<()>), StoreError> {
    let connection = open(path, Profile::log())?;
    let wal = wal_of(path);
    let (end, ended) = sync_channel::<()>(1);
    let run = move || {
        let mut last = clock.monotonic();
        let mut rest = Rest::default();
        loop {
            let over = matches!(
                ended.recv_timeout(rest.time),
                Err(RecvTimeoutError::Disconnected) | Ok(())
            );
            let size = std::fs::metadata(&wal).map_or(0, |meta| meta.len());
            let now = clock.monotonic();
            let due = now.saturating_duration_since(last) >= INTERVAL;
            if over || size >= WAL_BYTES || (due && size > 0) {
                last = now;
                match checkpointed(&connection) {
                    Ok(done) => {
                        let took = clock.monotonic().saturating_duration_since(now);
                        rest.after(&done, took);
                    }
                    Err(error) if error.is_fatal() => {
                        tracing::error!(%error, "the log cannot be moved, ending the process");
                        fatal(&error.to_string());
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a checkpoint failed");
                        rest.time = REST_MAX;
                    }
                }
            }
            if over {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("archive-checkpoint".to_owned())
        .spawn(run)
        .map_err(|source| StoreError::io(path, source))?;
    Ok((end, thread))
}

/// Moves what can be moved.
fn checkpointed(connection: &Connection) -> Result<Checkpointed, StoreError> {
    let done = checkpoint(connection, Checkpoint::Passive)?;
    if done.log_pages < RESTART_PAGES {
        return Ok(done);
    }
    // The passive one has moved nearly everything; the rest is short.
    checkpoint(connection, Checkpoint::Restart)
}

/// How long it is to the next move: as long as the log takes to grow by [`PAGES`].
struct Rest {
    time: Duration,
    /// Pages of the log that have been moved since it was begun anew.
    moved: i64,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            time: REST_MAX,
            moved: 0,
        }
    }
}

impl Rest {
    /// Half to twice the one before, but for what the move took.
    fn after(&mut self, done: &Checkpointed, took: Duration) {
        if done.moved_pages < self.moved {
            self.moved = 0; // the log was begun anew
        }
        let pages = (done.moved_pages - self.moved).clamp(PAGES / 2, PAGES * 2);
        self.moved = done.moved_pages;
        let even = self.time.mul_f64(PAGES as f64 / pages as f64);
        self.time = even.max(took * REST_TIMES).clamp(REST_MIN, REST_MAX);
    }
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use chancery_store::Synchronous;

    /// Moves a log that grows by so many pages a second, each move taking so long; gives the rest
    /// it comes to.
    fn settles(rest: &mut Rest, pages_a_second: f64, took: Duration) -> Duration {
        let mut moved = rest.moved;
        for round in 1..=32 {
            // Now and then its file begins anew.
            if round % 10 == 0 {
                moved = 0;
            }
            moved += (rest.time.as_secs_f64() * pages_a_second) as i64;
            let done = Checkpointed {
                blocked: false,
                log_pages: moved,
                moved_pages: moved,
            };
            rest.after(&done, took);
        }
        rest.time
    }

    #[test]
    fn the_log_is_moved_in_pieces_and_not_for_a_few_pages() {
        let rest = &mut Rest::default();
        let quick = Duration::from_micros(100);
        let busy = settles(rest, 27_000.0, quick);
        assert!(busy >= REST_MIN && busy <= 2 * REST_MIN, "{busy:?}");
        assert_eq!(settles(rest, 1_000_000.0, quick), REST_MIN);
        assert_eq!(settles(rest, 1_000.0, quick), REST_MAX);
        assert_eq!(settles(rest, 0.0, quick), REST_MAX);
    }

    #[test]
    fn a_slow_disk_is_left_to_the_commits() {
        let rest = &mut Rest::default();
        let slow = Duration::from_millis(15);
        assert_eq!(settles(rest, 27_000.0, slow), 3 * slow);
        let stuck = Duration::from_secs(2);
        assert_eq!(settles(rest, 27_000.0, stuck), REST_MAX);
    }

    #[test]
    fn a_file_that_was_long_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.db");
        let profile = Profile {
            synchronous: Synchronous::Normal,
            busy_timeout: Duration::from_millis(50),
            ..Profile::log()
        };
        let [writer, reader, mover] = [(); 3].map(|()| open(&path, profile).unwrap());
        writer.execute_batch("CREATE TABLE t (x BLOB)").unwrap();
        let write = |pages: i64| {
            writer
                .execute("INSERT INTO t VALUES (zeroblob(?1))", [pages * 4096])
                .unwrap();
        };
        write(RESTART_PAGES);
        let done = checkpointed(&mover).unwrap();
        assert!(!done.blocked && done.log_pages >= RESTART_PAGES, "{done:?}");

        write(1);
        // Whoever reads is waited for only by a move that begins the log anew.
        let reads = "BEGIN; SELECT count(*) FROM t";
        reader.execute_batch(reads).unwrap();
        write(1);
        let size = std::fs::metadata(wal_of(&path)).unwrap().len();
        assert!(size >= RESTART_PAGES as u64 * 4096);
        let done = checkpointed(&mover).unwrap();
        assert!(!done.blocked && done.log_pages < 100, "{done:?}");

        write(RESTART_PAGES);
        let done = checkpointed(&mover).unwrap();
        assert!(done.blocked, "the test's reader is in the way: {done:?}");
    }
}
