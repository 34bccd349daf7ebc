//! What followers of the directory get: all accounts and groups, then every change. How they are
//! served is the `api` crate's.

use std::sync::Arc;

use async_trait::async_trait;

use chancery_api::directory::{WatchDown, WatchUp, watch_down};
use chancery_api::{ApiError, Feeds, Link, Watched, serve_follower};
use chancery_runtime::Metrics;
use chancery_runtime::metrics::Counter;

use crate::service::Inner;
use crate::store::Snapshot;

/// Accounts and group members of one part of a snapshot, except that a group is never split.
const PART_FACTS: usize = 1_000;

/// The feeds of all followers.
pub struct Watch {
    feeds: Feeds<WatchUp>,
    let_go: Counter,
}

impl Watch {
    pub fn new(metrics: &Metrics) -> Self {
        let let_go = metrics.counter(
            "chancery_directory_followers_let_go",
            "followers that did not keep up and had to take a new snapshot",
        );
        Self {
            feeds: Feeds::default(),
            let_go,
        }
    }

    /// Gives a change to all followers. Called in the order of versions.
    pub fn publish(&self, change: &WatchUp) {
        for _ in 0..self.feeds.publish(change) {
            self.let_go.inc();
        }
    }
}

/// Opens a link and serves it until either side is gone.
pub fn attach(inner: &Arc<Inner>) -> Result<Link<WatchDown, WatchUp>, ApiError> {
    let changes = inner
        .watch
        .feeds
        .feed()
        .ok_or_else(|| ApiError::resource("too many followers of the directory"))?;
    let (theirs, ours) = Link::pair();
    let follower = Arc::clone(inner);
    inner.tasks.spawn("directory-watch", async move {
        tokio::select! {
            () = follower.tasks.cancelled() => {}
            () = serve_follower(&*follower, &follower.followers, ours, changes) => {}
        }
    });
    Ok(theirs)
}

#[async_trait]
impl Watched for Inner {
    type Up = WatchUp;
    type Down = WatchDown;

    fn hello(down: WatchDown) -> Option<String> {
        match down.item {
            Some(watch_down::Item::Hello(hello)) => Some(hello.follower),
            _ => None,
        }
    }

    fn confirmed(down: WatchDown) -> Option<u64> {
        match down.item {
            Some(watch_down::Item::Confirm(confirm)) => Some(confirm.version),
            _ => None,
        }
    }

    fn version(up: &WatchUp) -> u64 {
        up.version
    }

    fn alive(version: u64) -> WatchUp {
        WatchUp {
            version,
            complete: true,
            ..WatchUp::default()
        }
    }

    async fn snapshot(&self) -> Option<(u64, Vec<WatchUp>)> {
        match self.store.snapshot().await {
            Ok(snapshot) => Some((snapshot.version, parts(self.domains.list(), &snapshot))),
            Err(error) => {
                tracing::error!(%error, "no snapshot for a follower");
                None
            }
        }
    }
}

/// The snapshot in parts, the last one complete; the first names the domains.
fn parts(domains: &[String], snapshot: &Snapshot) -> Vec<WatchUp> {
    let empty = || WatchUp {
        version: snapshot.version,
        snapshot: true,
        ..WatchUp::default()
    };
    let mut parts = Vec::new();
    let mut part = WatchUp {
        domains: domains.to_vec(),
        ..empty()
    };
    let mut facts = 0;
    for account in &snapshot.accounts {
        if facts >= PART_FACTS {
            parts.push(std::mem::replace(&mut part, empty()));
            facts = 0;
        }
        part.accounts.push(account.fact());
        facts += 1;
    }
    for group in &snapshot.groups {
        if facts > 0 && facts + group.members.len() >= PART_FACTS {
            parts.push(std::mem::replace(&mut part, empty()));
            facts = 0;
        }
        part.groups.push(group.fact());
        facts += group.members.len() + 1;
    }
    part.complete = true;
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::store::{Account, Group, Name, State};

    #[test]
    fn a_snapshot_is_parted_and_only_its_last_part_complete() {
        let account = |n: usize| Account {
            name: Name {
                domain: "a.test".into(),
                localpart: format!("u{n:05}"),
            },
            state: State::Active,
            credential_version: 1,
            generation: 1,
            version: 1,
            drop_pending: false,
        };
        let group = |n: usize, members: usize| Group {
            domain: "a.test".into(),
            group: format!("g{n}"),
            members: (0..members).map(|m| format!("u{m:05}")).collect(),
            deleted: false,
            label: None,
        };
        let snapshot = Snapshot {
            version: 7,
            accounts: (0..2_500).map(account).collect(),
            groups: vec![group(0, 10), group(1, 3_000), group(2, 5)],
        };
        let parts = parts(&["a.test".into()], &snapshot);
        assert!(parts.iter().all(|part| part.snapshot && part.version == 7));
        assert!(parts.iter().all(|part| part.accounts.len() <= PART_FACTS));
        let complete: Vec<bool> = parts.iter().map(|part| part.complete).collect();
        assert_eq!(complete.iter().filter(|c| **c).count(), 1);
        assert_eq!(complete.last(), Some(&true));
        assert_eq!(
            parts.iter().map(|part| part.accounts.len()).sum::<usize>(),
            2_500
        );
        assert_eq!(parts.iter().map(|part| part.groups.len()).sum::<usize>(), 3);
        assert_eq!(parts[0].domains, ["a.test"]);
        let nothing = super::parts(&["a.test".into()], &Snapshot::default());
        assert_eq!(nothing.len(), 1);
        assert!(nothing[0].complete && nothing[0].snapshot);
    }
}
