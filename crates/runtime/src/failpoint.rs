//! Failpoints: named moments (`service::step::moment`) at which a test makes a process die, fail,
//! wait or stop. Handed in as a value, off unless configured, and then one relaxed load. It
//! refuses to read the environment: the binary passes the configuration in.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

/// The longest `pause`, after which the failpoint gives an error: a forgotten one must not hang
/// a test run.
pub const PAUSE_LIMIT: Duration = Duration::from_secs(60);
/// The longest `delay`.
pub const DELAY_LIMIT_MS: u64 = 60_000;
/// How many failpoints may be configured at once.
pub const POINTS_LIMIT: usize = 64;

/// The configured failpoints of a process. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Failpoints(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    armed: AtomicBool,
    points: Mutex<HashMap<String, Point>>,
    changed: Notify,
    changed_sync: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    action: Action,
    /// `N*`: the N-th pass acts, the ones before and after do not. 0 = every pass acts.
    countdown: u64,
    spent: bool,
    hits: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Off,
    Kill,
    Error,
    Delay(Duration),
    Pause,
}

/// The error that a failpoint gave in place of the real step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0} injected an error")]
pub struct Injected(pub String);

/// A configuration that does not say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailpointError {
    /// An entry without `=`, or with a name that is not `service::step::moment`.
    #[error("failpoint entry {0:?} is not of the form service::step::moment=action")]
    Entry(String),
    /// An action that does not exist.
    #[error("failpoint action {0:?} is not one of off, kill, error, delay(ms), pause")]
    Action(String),
    /// More entries than [`POINTS_LIMIT`].
    #[error("more than {POINTS_LIMIT} failpoints")]
    TooMany,
}

impl Failpoints {
    /// No failpoint acts.
    pub fn off() -> Self {
        Self::default()
    }

    /// Failpoints from `name=action` entries separated by `;`, where an action is `off`, `kill`,
    /// `error`, `delay(ms)` or `pause`, and `3*kill` kills at the third pass.
    pub fn parse(configuration: &str) -> Result<Self, FailpointError> {
        let failpoints = Self::off();
        failpoints.configure(configuration)?;
        Ok(failpoints)
    }

    /// Replaces the whole configuration; whoever pauses at a point that no longer pauses goes on.
    pub fn configure(&self, configuration: &str) -> Result<(), FailpointError> {
        let mut points = HashMap::new();
        for entry in configuration
            .split(';')
            .map(str::trim)
            .filter(|e| !e.is_empty())
        {
            let (name, action) = parse_entry(entry)?;
            points.insert(name, action);
            if points.len() > POINTS_LIMIT {
                return Err(FailpointError::TooMany);
            }
        }
        self.replace(|current| *current = points);
        Ok(())
    }

    /// Sets one failpoint and leaves the others; `off` keeps counting its passes.
    pub fn set(&self, name: &str, action: &str) -> Result<(), FailpointError> {
        let (name, point) = parse_entry(&format!("{name}={action}"))?;
        let mut full = false;
        self.replace(|points| {
            full = points.len() >= POINTS_LIMIT && !points.contains_key(&name);
            if !full {
                points.insert(name, point);
            }
        });
        if full {
            Err(FailpointError::TooMany)
        } else {
            Ok(())
        }
    }

    /// Whether any failpoint is configured.
    pub fn is_armed(&self) -> bool {
        self.0.armed.load(Ordering::Relaxed)
    }

    /// How often a configured failpoint was passed; 0 for one that is not configured.
    pub fn hits(&self, name: &str) -> u64 {
        self.0.points.lock().get(name).map_or(0, |point| point.hits)
    }

    /// Passes the failpoint `name` in a task.
    pub async fn hit(&self, name: &str) -> Result<(), Injected> {
        if !self.0.armed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.pass(name) {
            Action::Off => Ok(()),
            Action::Kill => kill(name),
            Action::Error => Err(Injected(name.to_owned())),
            Action::Delay(by) => {
                tokio::time::sleep(by).await;
                Ok(())
            }
            Action::Pause => {
                let released = tokio::time::timeout(PAUSE_LIMIT, self.released(name)).await;
                released.map_err(|_| Injected(name.to_owned()))
            }
        }
    }

    /// Passes the failpoint `name` on a thread of its own. Blocks: never in a task.
    pub fn hit_sync(&self, name: &str) -> Result<(), Injected> {
        if !self.0.armed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.pass(name) {
            Action::Off => Ok(()),
            Action::Kill => kill(name),
            Action::Error => Err(Injected(name.to_owned())),
            Action::Delay(by) => {
                std::thread::sleep(by);
                Ok(())
            }
            Action::Pause => {
                let mut points = self.0.points.lock();
                while pauses(&points, name) {
                    if self
                        .0
                        .changed_sync
                        .wait_for(&mut points, PAUSE_LIMIT)
                        .timed_out()
                    {
                        return Err(Injected(name.to_owned()));
                    }
                }
                Ok(())
            }
        }
    }

    async fn released(&self, name: &str) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change between the two is not missed.
            changed.as_mut().enable();
            if !pauses(&self.0.points.lock(), name) {
                return;
            }
            changed.await;
        }
    }

    fn pass(&self, name: &str) -> Action {
        let mut points = self.0.points.lock();
        let Some(point) = points.get_mut(name) else {
            return Action::Off;
        };
        point.hits += 1;
        if point.countdown == 0 {
            return if point.spent {
                Action::Off
            } else {
                point.action
            };
        }
        point.countdown -= 1;
        if point.countdown > 0 {
            return Action::Off;
        }
        point.spent = true;
        point.action
    }

    fn replace(&self, change: impl FnOnce(&mut HashMap<String, Point>)) {
        let mut points = self.0.points.lock();
        change(&mut points);
        self.0.armed.store(!points.is_empty(), Ordering::Relaxed);
        drop(points);
        self.0.changed.notify_waiters();
        self.0.changed_sync.notify_all();
    }
}

fn pauses(points: &HashMap<String, Point>, name: &str) -> bool {
    points
        .get(name)
        .is_some_and(|point| point.action == Action::Pause)
}

fn kill(name: &str) -> Result<(), Injected> {
    tracing::error!(failpoint = name, "killed by a failpoint");
    std::process::abort()
}

fn parse_entry(entry: &str) -> Result<(String, Point), FailpointError> {
    let bad_entry = || FailpointError::Entry(entry.to_owned());
    let (name, action) = entry.split_once('=').ok_or_else(bad_entry)?;
    let (name, action) = (name.trim(), action.trim());
    let parts: Vec<&str> = name.split("::").collect();
    if parts.len() != 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(bad_entry());
    }
    let bad_action = || FailpointError::Action(action.to_owned());
    let (countdown, what) = match action.split_once('*') {
        None => (0, action),
        Some((n, what)) => {
            let n: u64 = n.trim().parse().map_err(|_| bad_action())?;
            (if n == 0 { Err(bad_action()) } else { Ok(n) }?, what.trim())
        }
    };
    let action = match what {
        "off" => Action::Off,
        "kill" => Action::Kill,
        "error" => Action::Error,
        "pause" => Action::Pause,
        other => {
            let ms = other
                .strip_prefix("delay(")
                .and_then(|rest| rest.strip_suffix(')'));
            let ms: u64 = ms
                .and_then(|ms| ms.trim().parse().ok())
                .ok_or_else(bad_action)?;
            if ms > DELAY_LIMIT_MS {
                return Err(bad_action());
            }
            Action::Delay(Duration::from_millis(ms))
        }
    };
    Ok((
        name.to_owned(),
        Point {
            action,
            countdown,
            spent: false,
            hits: 0,
        },
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const APPEND: &str = "archive::append::before_commit";

    #[tokio::test]
    async fn off_by_default_and_by_name() {
        let failpoints = Failpoints::off();
        assert_eq!(failpoints.hit(APPEND).await, Ok(()));
        failpoints.set("policy::decide::answer", "error").unwrap();
        assert_eq!(failpoints.hit(APPEND).await, Ok(()));
        assert!(failpoints.hit("policy::decide::answer").await.is_err());
        assert!(failpoints.hit_sync("policy::decide::answer").is_err());
        assert_eq!(failpoints.hits("policy::decide::answer"), 2);
    }

    #[tokio::test]
    async fn a_countdown_acts_once_at_its_end() {
        let failpoints = Failpoints::parse(&format!(" {APPEND} = 3*error ; ")).unwrap();
        let mut acted = Vec::new();
        for _ in 0..5 {
            acted.push(failpoints.hit(APPEND).await.is_err());
        }
        assert_eq!(acted, [false, false, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn delay_waits_and_pause_waits_for_a_change() {
        let failpoints = Failpoints::parse(&format!("{APPEND}=delay(250)")).unwrap();
        let start = tokio::time::Instant::now();
        failpoints.hit(APPEND).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(250));

        failpoints.set(APPEND, "pause").unwrap();
        let paused = failpoints.clone();
        let tasks = crate::Tasks::new();
        let task = tasks.spawn("paused", async move { paused.hit(APPEND).await.unwrap() });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!task.is_finished());
        failpoints.configure("").unwrap();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_pause_ends_in_an_error() {
        let failpoints = Failpoints::parse(&format!("{APPEND}=pause")).unwrap();
        assert_eq!(
            failpoints.hit(APPEND).await,
            Err(Injected(APPEND.to_owned()))
        );
    }

    #[test]
    fn a_thread_pauses_too() {
        let failpoints = Failpoints::parse(&format!("{APPEND}=pause")).unwrap();
        let paused = failpoints.clone();
        let thread = std::thread::spawn(move || paused.hit_sync(APPEND));
        while failpoints.hits(APPEND) == 0 {
            std::thread::yield_now();
        }
        failpoints.set(APPEND, "off").unwrap();
        assert_eq!(thread.join().unwrap(), Ok(()));
    }

    #[test]
    fn bad_configurations_are_named() {
        for bad in ["x", "a::b=error", "a::::c=kill", "a::b::c"] {
            assert!(
                matches!(Failpoints::parse(bad), Err(FailpointError::Entry(_))),
                "{bad}"
            );
        }
        for bad in [
            "explode",
            "0*kill",
            "x*kill",
            "delay(x)",
            "delay(60001)",
            "delay(5",
            "",
        ] {
            let bad = format!("a::b::c={bad}");
            assert!(
                matches!(Failpoints::parse(&bad), Err(FailpointError::Action(_))),
                "{bad}"
            );
        }
        let many: String = (0..65).map(|n| format!("a::b::c{n}=off;")).collect();
        assert_eq!(
            Failpoints::parse(&many).unwrap_err(),
            FailpointError::TooMany
        );
    }
}
