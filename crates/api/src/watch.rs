//! [`Followers`]: who follows a versioned state, and up to which version each has confirmed.
//!
//! So that what a person changes can return when those who act on it have it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

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
