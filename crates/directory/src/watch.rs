//! Followers of the directory: a snapshot, then every change in the order of versions, and a sign of
//! life each second. A follower that cannot keep up is let go; it comes again for a snapshot. It
//! refuses to wait for any follower while a change is published.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use chancery_api::directory::{WatchDown, WatchUp, watch_down};
use chancery_api::{ApiError, Feeds, Link, send_up};
use chancery_runtime::Metrics;
use chancery_runtime::metrics::Counter;

use crate::service::Inner;
use crate::store::Snapshot;

/// How long a new link may say nothing.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// The sign of life: an empty, complete part with the version sent last.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Accounts and group members of one part of a snapshot, except that a group is never split.
const PART_FACTS: usize = 1_000;
/// The longest name of a follower.
const NAME_LIMIT_BYTES: usize = 255;

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
        follow(&follower, ours, changes).await;
    });
    Ok(theirs)
}

async fn follow(
    inner: &Inner,
    link: Link<WatchUp, WatchDown>,
    mut changes: mpsc::Receiver<WatchUp>,
) {
    let (up, mut down) = link.split();
    let hello = timeout(HELLO_LIMIT, down.recv()).await;
    let Ok(Some(WatchDown {
        item: Some(watch_down::Item::Hello(hello)),
    })) = hello
    else {
        tracing::debug!("a follower of the directory said no hello");
        return;
    };
    if hello.follower.is_empty() || hello.follower.len() > NAME_LIMIT_BYTES {
        tracing::warn!("a follower of the directory has no proper name");
        return;
    }
    // Before the snapshot: a change from now on waits for this follower too.
    let confirmations = inner.followers.join(&hello.follower);
    let snapshot = match inner.store.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::error!(%error, "no snapshot for a follower");
            return;
        }
    };
    let mut version = snapshot.version;
    for part in parts(inner.domains.list(), &snapshot) {
        if !send_up(&up, part).await {
            return;
        }
    }
    drop(snapshot);
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            heard = down.recv() => match heard {
                None => return,
                Some(WatchDown { item: Some(watch_down::Item::Confirm(confirm)) }) => {
                    // Nobody can have what was not sent to him.
                    confirmations.confirm(confirm.version.min(version));
                }
                Some(_) => {}
            },
            change = changes.recv() => match change {
                None => {
                    tracing::warn!("a follower of the directory did not keep up");
                    return;
                }
                // The snapshot has it already.
                Some(change) if change.version <= version => {}
                Some(change) => {
                    version = change.version;
                    if !send_up(&up, change).await {
                        return;
                    }
                }
            },
            _ = heartbeat.tick() => {
                let alive = WatchUp { version, complete: true, ..WatchUp::default() };
                if !send_up(&up, alive).await {
                    return;
                }
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
