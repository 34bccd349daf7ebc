//! The threads on which statements run: one for a database's writer ([`Db`]), a few for its
//! readers ([`ReadPool`]). Callers queue, bounded in number and time. It refuses to merge or to
//! retry: whoever needs group commit writes its own transaction.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

use crate::{Profile, StoreError, open};

/// How many calls may wait for one writer or one pool.
pub const QUEUE_LIMIT: usize = 1_024;
/// How long a call waits for room in the queue before it gets [`StoreError::QueueFull`].
pub const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// The most readers of one database.
pub const READERS_LIMIT: usize = 16;

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

enum Job {
    Work(Work),
    /// Ends the thread that takes it.
    End,
}

/// The writer of a database: a thread that owns the connection. Cloning shares it; it ends when
/// the last clone is gone, after what is queued.
#[derive(Clone, Debug)]
pub struct Db(Arc<Threads>);

impl Db {
    /// Gives `connection` to a thread called `name`.
    pub fn new(name: &str, connection: Connection) -> Result<Self, StoreError> {
        Threads::start(name, vec![connection]).map(|threads| Self(Arc::new(threads)))
    }

    /// Runs `work` with the connection, after everything queued before. A caller that goes away
    /// meanwhile does not stop it. What it leaves uncommitted, or a panic in it, is rolled back.
    pub async fn call<R, W>(&self, work: W) -> Result<R, StoreError>
    where
        W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
        R: Send + 'static,
    {
        self.0.call(work).await
    }

    /// The same from a thread that is not part of the runtime. It waits for room without limit.
    pub fn call_blocking<R, W>(&self, work: W) -> Result<R, StoreError>
    where
        W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
        R: Send + 'static,
    {
        self.0.call_blocking(work)
    }

    /// How many calls wait.
    pub fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Runs what is queued, closes the connection and waits for that. Later calls get
    /// [`StoreError::Closed`].
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// The readers of a database, each on its own thread. Cloning shares them.
#[derive(Clone, Debug)]
pub struct ReadPool(Arc<Threads>);

impl ReadPool {
    /// Opens `readers` reading connections (1 to [`READERS_LIMIT`]) to the database at `path`.
    pub fn open(
        name: &str,
        path: &Path,
        profile: Profile,
        readers: usize,
    ) -> Result<Self, StoreError> {
        let readers = readers.clamp(1, READERS_LIMIT);
        let connections: Result<Vec<_>, _> =
            (0..readers).map(|_| open(path, profile.reader())).collect();
        Threads::start(name, connections?).map(|threads| Self(Arc::new(threads)))
    }

    /// Runs `work` on whichever reader is free first. Keep it short: an open read transaction
    /// holds back checkpoints.
    pub async fn call<R, W>(&self, work: W) -> Result<R, StoreError>
    where
        W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
        R: Send + 'static,
    {
        self.0.call(work).await
    }

    /// How many calls wait.
    pub fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Runs what is queued, closes the connections and waits for that.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

#[derive(Debug)]
struct Threads {
    sender: mpsc::Sender<Job>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn start(name: &str, connections: Vec<Connection>) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut handles = Vec::with_capacity(connections.len());
        for connection in connections {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new().name(name.to_owned());
            let handle = thread.spawn(move || run(&receiver, connection));
            handles.push(handle.map_err(|source| StoreError::io(Path::new(name), source))?);
        }
        Ok(Self {
            sender,
            handles: Mutex::new(handles),
        })
    }

    async fn call<R, W>(&self, work: W) -> Result<R, StoreError>
    where
        W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
        R: Send + 'static,
    {
        let (job, answer) = prepare(work);
        self.sender
            .send_timeout(job, QUEUE_WAIT)
            .await
            .map_err(|error| match error {
                SendTimeoutError::Timeout(_) => {
                    let waited_ms = u64::try_from(QUEUE_WAIT.as_millis()).unwrap_or(u64::MAX);
                    StoreError::QueueFull { waited_ms }
                }
                SendTimeoutError::Closed(_) => StoreError::Closed,
            })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    fn call_blocking<R, W>(&self, work: W) -> Result<R, StoreError>
    where
        W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
        R: Send + 'static,
    {
        let (job, answer) = prepare(work);
        self.sender
            .blocking_send(job)
            .map_err(|_| StoreError::Closed)?;
        answer.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }

    fn queued(&self) -> usize {
        self.sender.max_capacity() - self.sender.capacity()
    }

    async fn close(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        for _ in &handles {
            if self.sender.send(Job::End).await.is_err() {
                break;
            }
        }
        self.sender.closed().await;
        for handle in handles {
            // The receiver is gone, so each thread is at most closing its connection.
            let joined = tokio::task::spawn_blocking(move || handle.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("a database thread ended badly");
            }
        }
    }
}

fn prepare<R, W>(work: W) -> (Job, oneshot::Receiver<Result<R, StoreError>>)
where
    W: FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
    R: Send + 'static,
{
    let (sender, answer) = oneshot::channel();
    let job = Job::Work(Box::new(move |connection| {
        let result = catch_unwind(AssertUnwindSafe(|| work(connection)));
        let result = result.unwrap_or(Err(StoreError::Panicked));
        if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "an open transaction could not be rolled back");
        }
        // The caller may have gone away: then nobody wants the answer.
        let _ = sender.send(result);
    }));
    (job, answer)
}

fn run(receiver: &Mutex<mpsc::Receiver<Job>>, mut connection: Connection) {
    loop {
        // One idle thread waits in the channel, the others for their turn to.
        let job = receiver.lock().blocking_recv();
        match job {
            Some(Job::Work(work)) => work(&mut connection),
            Some(Job::End) | None => break,
        }
    }
    if let Err((_, error)) = connection.close() {
        tracing::error!(%error, "a database connection could not be closed");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn database() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let connection = open(&dir.path().join("t.db"), Profile::durable()).unwrap();
        connection
            .execute_batch("CREATE TABLE t (x INTEGER)")
            .unwrap();
        (dir, Db::new("t", connection).unwrap())
    }

    fn insert(x: i64) -> impl FnOnce(&mut Connection) -> Result<usize, StoreError> {
        move |db| Ok(db.execute("INSERT INTO t VALUES (?1)", [x])?)
    }

    fn sum(db: &mut Connection) -> Result<i64, StoreError> {
        Ok(db.query_row("SELECT coalesce(sum(x), 0) FROM t", [], |row| row.get(0))?)
    }

    #[tokio::test]
    async fn calls_run_in_order_and_answer() {
        let (_dir, db) = database();
        for x in 1..=10 {
            assert_eq!(db.call(insert(x)).await.unwrap(), 1);
        }
        assert_eq!(db.call(sum).await.unwrap(), 55);
        let error = db
            .call(|db| Ok(db.execute("nonsense", [])?))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Sqlite(_)));
    }

    #[tokio::test]
    async fn a_panic_or_an_open_transaction_is_rolled_back() {
        let (_dir, db) = database();
        let error = db
            .call(|db| -> Result<(), StoreError> {
                let transaction = db.transaction()?;
                transaction.execute("INSERT INTO t VALUES (1)", [])?;
                panic!("on purpose")
            })
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Panicked));
        db.call(|db| Ok(db.execute_batch("BEGIN; INSERT INTO t VALUES (2)")?))
            .await
            .unwrap();
        db.call(insert(4)).await.unwrap();
        assert_eq!(db.call(sum).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_stop_the_work() {
        let (_dir, db) = database();
        let (go, wait) = sync_channel::<()>(1);
        let blocked = db.call(move |_| wait.recv().map_err(|e| StoreError::Invalid(e.to_string())));
        tokio::select! { biased; _ = blocked => panic!("it waits"), () = tokio::task::yield_now() => {} }
        tokio::select! { biased; _ = db.call(insert(3)) => panic!(), () = tokio::task::yield_now() => {} }
        go.send(()).unwrap();
        assert_eq!(db.call(sum).await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_is_an_error_after_a_while() {
        let (_dir, db) = database();
        let (go, wait) = sync_channel::<()>(1);
        let mut callers = tokio::task::JoinSet::new();
        let blocker = db.clone();
        callers.spawn(async move {
            blocker
                .call(move |_| wait.recv().map_err(|e| StoreError::Invalid(e.to_string())))
                .await
                .is_ok()
        });
        while callers.is_empty() || db.queued() < QUEUE_LIMIT {
            for _ in 0..=QUEUE_LIMIT {
                let db = db.clone();
                callers.spawn(async move { db.call(|_| Ok(())).await.is_ok() });
            }
            tokio::task::yield_now().await;
        }
        let error = db.call(|_| Ok(())).await.unwrap_err();
        assert!(
            matches!(error, StoreError::QueueFull { .. }) && error.is_busy(),
            "{error}"
        );
        go.send(()).unwrap();
        assert!(callers.join_all().await.iter().filter(|ok| **ok).count() > QUEUE_LIMIT);
    }

    #[tokio::test]
    async fn close_runs_what_is_queued_and_refuses_the_rest() {
        let (dir, db) = database();
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let db = db.clone();
            callers.spawn(async move { db.call(insert(1)).await.unwrap() });
        }
        // The runtime of a test has one thread: all of them queue before this one goes on.
        tokio::task::yield_now().await;
        db.close().await;
        assert_eq!(callers.join_all().await.iter().sum::<usize>(), 20);
        assert!(matches!(db.call(sum).await, Err(StoreError::Closed)));
        let mut again = open(&dir.path().join("t.db"), Profile::durable()).unwrap();
        assert_eq!(sum(&mut again).unwrap(), 20);
    }

    #[tokio::test]
    async fn readers_run_side_by_side() {
        let (dir, db) = database();
        db.call(insert(9)).await.unwrap();
        let pool = ReadPool::open("r", &dir.path().join("t.db"), Profile::durable(), 2).unwrap();
        // Each waits for the other: one thread alone would never get there.
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let read = |barrier: Arc<std::sync::Barrier>| {
            pool.call(move |db| {
                barrier.wait();
                sum(db)
            })
        };
        let (a, b) = tokio::join!(read(Arc::clone(&barrier)), read(barrier));
        assert_eq!((a.unwrap(), b.unwrap()), (9, 9));
        assert!(
            pool.call(insert(1)).await.is_err(),
            "a reader does not write"
        );
        pool.close().await;
    }

    #[test]
    fn a_plain_thread_may_call_too() {
        let (_dir, db) = database();
        assert_eq!(db.call_blocking(insert(5)).unwrap(), 1);
        assert_eq!(db.call_blocking(sum).unwrap(), 5);
    }
}
