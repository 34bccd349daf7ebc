//! [`Followers`]: who follows a versioned state, and up to which version each has confirmed, so that
//! what a person changes can return when those who act on it have it. [`Feeds`]: the changes on
//! their way to them; [`serve`] sends them up. Nobody waits for any follower while a change is
//! published.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::Link;

/// Followers by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Followers(Arc<State>);

#[derive(Default)]
struct State {
    /// Name, and (number of the joining, confirmed version).
    confirmed: Mutex<HashMap<String, (u64, u64)>>,
    joins: Mutex<u64>,
    changed: Notify,
}

/// Followers at once.
const FOLLOWERS_LIMIT: usize = 256;
/// Changes that wait for one follower; one more and it is let go.
const FEED_LIMIT: usize = 256;
/// How long a follower may take nothing before it is let go.
const LAG_LIMIT: Duration = Duration::from_secs(5);
/// How long a new link may say nothing.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How often a follower hears that its owner lives.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The longest name of a follower.
const NAME_LIMIT_BYTES: usize = 255;

/// Changes on their way to those who follow.
pub struct Feeds<T>(Mutex<Vec<mpsc::Sender<T>>>);

impl<T> Default for Feeds<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T: Clone> Feeds<T> {
    /// Gives a change to all followers. Called in the order of versions. Says how many did not keep
    /// up and were let go: their feed ends.
    pub fn publish(&self, change: &T) -> usize {
        let mut let_go = 0;
        self.0
            .lock()
            .retain(|feed| match feed.try_send(change.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let_go += 1;
                    false
                }
            });
        let_go
    }

    /// The changes from now on; none when there are too many followers.
    pub fn feed(&self) -> Option<mpsc::Receiver<T>> {
        let mut feeds = self.0.lock();
        feeds.retain(|feed| !feed.is_closed());
        if feeds.len() >= FOLLOWERS_LIMIT {
            return None;
        }
        let (feed, changes) = mpsc::channel(FEED_LIMIT);
        feeds.push(feed);
        Some(changes)
    }
}

/// A versioned state that others follow.
#[async_trait]
pub trait Watched: Send + Sync + 'static {
    /// What goes up: parts of a snapshot, changes, signs of life.
    type Up: Clone + Send + 'static;
    /// What followers say.
    type Down: Send + 'static;

    /// The follower's name, of a hello.
    fn hello(down: Self::Down) -> Option<String>;
    /// The version that a follower confirms.
    fn confirmed(down: Self::Down) -> Option<u64>;
    /// The version of what goes up.
    fn version(up: &Self::Up) -> u64;
    /// A sign of life: an empty, complete part with the version sent last.
    fn alive(version: u64) -> Self::Up;
    /// The state in parts, the last one complete, and its version; `None` when it cannot be read.
    async fn snapshot(&self) -> Option<(u64, Vec<Self::Up>)>;
}

/// Serves one follower until either side is gone: a snapshot, then every change in the order of
/// versions, and a sign of life each second. One that does not keep up is let go; it comes again.
pub async fn serve<W: Watched>(
    watched: &W,
    followers: &Followers,
    link: Link<W::Up, W::Down>,
    mut changes: mpsc::Receiver<W::Up>,
) {
    let (up, mut down) = link.split();
    let hello = tokio::time::timeout(HELLO_LIMIT, down.recv()).await;
    let Some(name) = hello.ok().flatten().and_then(W::hello) else {
        tracing::debug!("a follower said no hello");
        return;
    };
    if name.is_empty() || name.len() > NAME_LIMIT_BYTES {
        tracing::warn!("a follower has no proper name");
        return;
    }
    // Before the snapshot: a change from now on waits for this follower too.
    let confirmations = followers.join(&name);
    let Some((mut version, parts)) = watched.snapshot().await else {
        return;
    };
    for part in parts {
        if !send_up(&up, part).await {
            return;
        }
    }
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            heard = down.recv() => {
                let Some(heard) = heard else { return };
                if let Some(confirmed) = W::confirmed(heard) {
                    // Nobody can have what was not sent to him.
                    confirmations.confirm(confirmed.min(version));
                }
                continue;
            }
            change = changes.recv() => match change {
                None => {
                    tracing::warn!("a follower did not keep up");
                    return;
                }
                // The snapshot has it already.
                Some(change) if W::version(&change) <= version => continue,
                Some(change) => change,
            },
            _ = heartbeat.tick() => W::alive(version),
        };
        version = W::version(&next);
        if !send_up(&up, next).await {
            return;
        }
    }
}

/// False when the follower is gone or takes nothing.
async fn send_up<T>(up: &mpsc::Sender<T>, item: T) -> bool {
    match tokio::time::timeout(LAG_LIMIT, up.send(item)).await {
        Ok(sent) => sent.is_ok(),
        Err(_) => {
            tracing::warn!("a follower takes nothing");
            false
        }
    }
}

/// A follower's membership; ends when dropped.
pub struct Confirmations {
    followers: Followers,
    name: String,
    join: u64,
}

impl Followers {
    /// Nobody follows.
    pub fn new() -> Self {
        Self::default()
    }

    /// `name` follows from now on, having confirmed nothing. A second joining replaces the first.
    pub fn join(&self, name: &str) -> Confirmations {
        let join = {
            let mut joins = self.0.joins.lock();
            *joins += 1;
            *joins
        };
        self.0.confirmed.lock().insert(name.to_owned(), (join, 0));
        Confirmations {
            followers: self.clone(),
            name: name.to_owned(),
            join,
        }
    }

    /// How many follow.
    pub fn len(&self) -> usize {
        self.0.confirmed.lock().len()
    }

    /// True when nobody follows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until everybody who follows has confirmed `version`; names those that have not by `limit`.
    pub async fn confirmed(&self, version: u64, limit: Duration) -> Vec<String> {
        let until = Instant::now() + limit;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let late: Vec<String> = self
                .0
                .confirmed
                .lock()
                .iter()
                .filter(|(_, (_, confirmed))| *confirmed < version)
                .map(|(name, _)| name.clone())
                .collect();
            if late.is_empty() || tokio::time::timeout_at(until, changed).await.is_err() {
                return late;
            }
        }
    }
}

impl Confirmations {
    /// The follower has taken over `version`.
    pub fn confirm(&self, version: u64) {
        if let Some((join, confirmed)) = self.followers.0.confirmed.lock().get_mut(&self.name)
            && *join == self.join
        {
            *confirmed = version.max(*confirmed);
        }
        self.followers.0.changed.notify_waiters();
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        let mut all = self.followers.0.confirmed.lock();
        if all
            .get(&self.name)
            .is_some_and(|(join, _)| *join == self.join)
        {
            all.remove(&self.name);
        }
        drop(all);
        self.followers.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_everybody_and_names_the_late() {
        let followers = Followers::new();
        let (one, two) = (followers.join("gw1"), followers.join("gw2"));
        one.confirm(3);
        assert_eq!(
            followers.confirmed(3, Duration::from_secs(1)).await,
            ["gw2"]
        );
        two.confirm(4);
        assert!(
            followers
                .confirmed(3, Duration::from_secs(1))
                .await
                .is_empty()
        );
        drop(two);
        one.confirm(4);
        assert!(
            followers
                .confirmed(4, Duration::from_secs(1))
                .await
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_replaced_follower_cannot_confirm_for_its_successor() {
        let followers = Followers::new();
        let old = followers.join("gw1");
        let _new = followers.join("gw1");
        old.confirm(9);
        drop(old);
        assert_eq!(
            followers.confirmed(9, Duration::from_millis(5)).await,
            ["gw1"]
        );
    }
}
