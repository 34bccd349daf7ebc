//! Tracked tasks, and a shutdown in stages: each stage is asked to end, waited for within a
//! stated time, then dropped. It owns every `tokio::spawn` of the workspace; it refuses to know
//! what a task does, and does not read signals (the binary does).

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a task that was told to drop may take to do so, after its stage's time is over.
const DROP_LIMIT: Duration = Duration::from_millis(500);

/// The stages of a shutdown, in their order: whoever takes new work goes first, the log last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Listeners: no new connection is accepted.
    Accept,
    /// Readers that are no stream's own; a stream brings what it has read to its end itself.
    Read,
    /// Streams: ended with `system-shutdown`, their queues flushed.
    Streams,
    /// The last permit counters, the calls of other processes.
    Edge,
    /// Policy, presence, roster, directory, and the lanes to them.
    Services,
    /// The archive, which must still commit what all others had under way.
    Log,
}

impl Stage {
    /// All stages, in the order in which they end.
    pub const ORDER: [Self; 6] = [
        Self::Accept,
        Self::Read,
        Self::Streams,
        Self::Edge,
        Self::Services,
        Self::Log,
    ];

    /// The stage's name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Read => "read",
            Self::Streams => "streams",
            Self::Edge => "edge",
            Self::Services => "services",
            Self::Log => "log",
        }
    }

    /// The time a stage has by default; together they stay below the 30 s that most
    /// supervisors wait before they kill.
    pub fn default_limit(self) -> Duration {
        match self {
            Self::Accept => Duration::from_secs(1),
            Self::Read | Self::Edge | Self::Services => Duration::from_secs(3),
            Self::Streams | Self::Log => Duration::from_secs(5),
        }
    }
}

/// A group of tracked tasks that end together. Cloning shares the group.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Group>);

#[derive(Debug, Default)]
struct Group {
    tracker: TaskTracker,
    cancel: CancellationToken,
    drop_now: CancellationToken,
    panicked: AtomicU64,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or its group's time is over. A panic ends this task only: it is
    /// logged under `name` and counted. Once the time is over a new task is dropped unpolled.
    #[allow(clippy::disallowed_methods)] // the one place that spawns
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = Arc::clone(&self.0);
        tokio::spawn(self.0.tracker.track_future(async move {
            let witness = PanicWitness {
                name,
                group: &group,
            };
            tokio::select! {
                biased;
                () = group.drop_now.cancelled() => {}
                () = task => {}
            }
            drop(witness);
        }))
    }

    /// Runs `work` on a thread for blocking work. It cannot be dropped: it has to be short or to
    /// look at [`Tasks::cancelled_now`].
    pub fn spawn_blocking<R, W>(&self, name: &'static str, work: W) -> JoinHandle<R>
    where
        W: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let group = Arc::clone(&self.0);
        self.0.tracker.spawn_blocking(move || {
            let witness = PanicWitness {
                name,
                group: &group,
            };
            let result = work();
            drop(witness);
            result
        })
    }

    /// The token that is cancelled when the group is asked to end.
    pub fn signal(&self) -> &CancellationToken {
        &self.0.cancel
    }

    /// Waits until the group is asked to end.
    pub async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    /// Whether the group was asked to end.
    pub fn cancelled_now(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// How many tasks run.
    pub fn len(&self) -> usize {
        self.0.tracker.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.0.tracker.is_empty()
    }

    /// How many tasks of this group panicked since the start.
    pub fn panicked(&self) -> u64 {
        self.0.panicked.load(Ordering::Relaxed)
    }

    /// Asks every task to end and waits; what still runs after `limit` is dropped where it
    /// stands. Returns how many had to be dropped.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.0.cancel.cancel();
        self.0.tracker.close();
        if tokio::time::timeout(limit, self.0.tracker.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let late = self.0.tracker.len();
        self.0.drop_now.cancel();
        // Only blocking work can outlast this, and the process is about to end anyway.
        let _ = tokio::time::timeout(DROP_LIMIT, self.0.tracker.wait()).await;
        late
    }
}

/// Notices, by being dropped in an unwinding thread, that its task panicked. Costs nothing else,
/// unlike a second task per task.
struct PanicWitness<'a> {
    name: &'static str,
    group: &'a Group,
}

impl Drop for PanicWitness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.group.panicked.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = self.name, "a task panicked");
        }
    }
}

/// The shutdown of a process. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<State>);

#[derive(Debug, Default)]
struct State {
    requested: CancellationToken,
    reason: OnceLock<String>,
    stages: [Tasks; Stage::ORDER.len()],
}

impl Shutdown {
    /// A process that nobody has asked to end.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tasks that end in `stage`.
    pub fn tasks(&self, stage: Stage) -> &Tasks {
        &self.0.stages[stage as usize]
    }

    /// The token that is cancelled when `stage` is asked to end.
    pub fn signal(&self, stage: Stage) -> &CancellationToken {
        self.tasks(stage).signal()
    }

    /// Asks the process to end: a signal, or an error after which it must not go on. The first
    /// reason is kept. The caller of [`Shutdown::drain`] does the work.
    pub fn request(&self, reason: impl Into<String>) {
        let _ = self.0.reason.set(reason.into());
        self.0.requested.cancel();
    }

    /// Waits until somebody asks the process to end, and says why.
    pub async fn requested(&self) -> &str {
        self.0.requested.cancelled().await;
        self.0.reason.get().map_or("", String::as_str)
    }

    /// Whether the process was asked to end.
    pub fn is_requested(&self) -> bool {
        self.0.requested.is_cancelled()
    }

    /// Ends the stages one after the other, each within what `limit` gives it.
    pub async fn drain(&self, limit: impl Fn(Stage) -> Duration) -> Drained {
        self.request("drain");
        let mut drained = Drained::default();
        for stage in Stage::ORDER {
            let late = self.tasks(stage).drain(limit(stage)).await;
            if late > 0 {
                tracing::warn!(
                    stage = stage.name(),
                    tasks = late,
                    "dropped tasks that ran late"
                );
                drained.late.push((stage, late));
            }
        }
        drained.panicked = self.panicked();
        drained
    }

    /// How many tasks of all stages panicked since the start.
    pub fn panicked(&self) -> u64 {
        self.0.stages.iter().map(Tasks::panicked).sum()
    }
}

/// What a drain found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Stages in which tasks ran longer than allowed, and how many.
    pub late: Vec<(Stage, usize)>,
    /// Tasks that panicked since the start.
    pub panicked: u64,
}

impl Drained {
    /// Whether everything ended by itself.
    pub fn is_clean(&self) -> bool {
        self.late.is_empty() && self.panicked == 0
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.panicked)?;
        for (stage, tasks) in &self.late {
            write!(f, ", {tasks} late in {}", stage.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use parking_lot::Mutex;

    #[tokio::test(start_paused = true)]
    async fn stages_end_in_their_order() {
        let shutdown = Shutdown::new();
        let ended = Arc::new(Mutex::new(Vec::new()));
        for stage in Stage::ORDER.into_iter().rev() {
            let (tasks, ended) = (shutdown.tasks(stage).clone(), Arc::clone(&ended));
            shutdown.tasks(stage).spawn("worker", async move {
                tasks.cancelled().await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                ended.lock().push(stage);
            });
        }
        let drained = shutdown.drain(Stage::default_limit).await;
        assert!(drained.is_clean(), "{drained}");
        assert_eq!(*ended.lock(), Stage::ORDER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_task_is_dropped_and_named() {
        struct Dropped(Arc<AtomicU64>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let drops = Arc::new(AtomicU64::new(0));
        let shutdown = Shutdown::new();
        let guard = Dropped(Arc::clone(&drops));
        shutdown.tasks(Stage::Read).spawn("stubborn", async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        let drained = shutdown.drain(|_| Duration::from_millis(5)).await;
        assert_eq!(drained.late, [(Stage::Read, 1)]);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        assert!(shutdown.tasks(Stage::Read).is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_contained() {
        let tasks = Tasks::new();
        assert!(
            tasks
                .spawn("broken", async { panic!("on purpose") })
                .await
                .is_err()
        );
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks
            .spawn("whole", async move { sender.send(7).unwrap() })
            .await
            .unwrap();
        assert_eq!(receiver.await.unwrap(), 7);
        assert!(
            tasks
                .spawn_blocking("broken", || panic!("on purpose"))
                .await
                .is_err()
        );
        assert_eq!(tasks.panicked(), 2);
        assert_eq!(tasks.drain(Duration::from_secs(1)).await, 0);
    }

    #[tokio::test]
    async fn the_first_reason_is_kept() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_requested());
        shutdown.request("disk error");
        shutdown.request("signal");
        assert_eq!(shutdown.requested().await, "disk error");
        assert!(
            !shutdown.tasks(Stage::Log).cancelled_now(),
            "a request drains nothing by itself"
        );
    }
}
