//! What this gateway follows: the policy in force, and the accounts that may be here.
//!
//! A change is confirmed when everybody here acts by it: a version when no write relies on an
//! older one, a cut-off when the sessions are told.

use std::collections::HashSet;
use std::sync::Arc;

use chancery_api::{Cx, directory, policy};

use crate::attach::{OPEN_LIMIT, REOPEN_FIRST, REOPEN_LAST};
use crate::colleagues;
use crate::pipeline::decide::LEASE;
use crate::service::Gateway;
use crate::session::inbox::Event;

/// Follows the policy's versions, for ever.
pub(crate) async fn follow_policy(gateway: Arc<Gateway>) {
    let mut pause = REOPEN_FIRST;
    loop {
        let opened =
            tokio::time::timeout(OPEN_LIMIT, gateway.policy_service.watch(&Cx::local())).await;
        if let Ok(Ok(mut stream)) = opened {
            use policy::watch_down::Item;
            let down = |item| policy::WatchDown { item: Some(item) };
            let hello = policy::WatchHello {
                gateway: gateway.name.to_string(),
            };
            if stream.send(down(Item::Hello(hello))).await.is_ok() {
                pause = REOPEN_FIRST;
                // A stopped service keeps its stream: silence beyond the lease is a loss.
                while let Ok(Some(up)) = tokio::time::timeout(LEASE, stream.recv()).await {
                    // Returns when no write under an older version is under way.
                    let heard = gateway.policy.heard(up.version, gateway.clock.monotonic());
                    if heard.newer {
                        tracing::info!(version = up.version, "policy in force");
                        gateway.sessions.push_all(&Event::PolicyChanged);
                    } else if heard.again {
                        gateway.sessions.push_all(&Event::PolicyBack);
                    }
                    let confirm = policy::WatchConfirm {
                        version: up.version,
                    };
                    if stream.send(down(Item::Confirm(confirm))).await.is_err() {
                        break;
                    }
                }
                gateway.policy.lost();
                tracing::info!("policy is out of reach");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_LAST);
    }
}

/// Follows the directory, for ever.
pub(crate) async fn follow_directory(gateway: Arc<Gateway>) {
    let mut pause = REOPEN_FIRST;
    let mut since = 0;
    loop {
        let opened = tokio::time::timeout(OPEN_LIMIT, gateway.directory.watch(&Cx::local())).await;
        if let Ok(Ok(stream)) = opened {
            let heard = read_directory(&gateway, stream, &mut since).await;
            if heard {
                pause = REOPEN_FIRST;
            }
            tracing::info!("the directory is out of reach");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_LAST);
    }
}

/// A snapshot under way.
struct Snapshot {
    /// Sessions up to this number are older than the snapshot.
    newest: u64,
    /// Accounts in it that have sessions here.
    seen: HashSet<String>,
    groups: Vec<directory::GroupFact>,
}

async fn read_directory(
    gateway: &Gateway,
    mut stream: chancery_api::Link<directory::WatchDown, directory::WatchUp>,
    since: &mut u64,
) -> bool {
    use directory::watch_down::Item;
    let down = |item| directory::WatchDown { item: Some(item) };
    let follower = format!("gateway-{}", gateway.name);
    let hello = directory::WatchHello {
        follower,
        since: *since,
    };
    if stream.send(down(Item::Hello(hello))).await.is_err() {
        return false;
    }
    let mut heard = false;
    let mut snapshot: Option<Snapshot> = None;
    while let Some(up) = stream.recv().await {
        heard = true;
        if !up.domains.is_empty() {
            gateway.domains.store(Arc::new(up.domains));
        }
        if up.snapshot {
            let begun = snapshot.get_or_insert_with(|| Snapshot {
                newest: gateway.sessions.last_number(),
                seen: HashSet::new(),
                groups: Vec::new(),
            });
            begun.groups.extend(up.groups);
            for fact in &up.accounts {
                if gateway.sessions.has_account(&fact.jid) {
                    gateway.sessions.apply(fact);
                    begun.seen.insert(fact.jid.clone());
                }
            }
        } else {
            let ended: usize = up.accounts.iter().map(|f| gateway.sessions.apply(f)).sum();
            if ended > 0 {
                tracing::info!(sessions = ended, "sessions cut off");
            }
            if !up.groups.is_empty() {
                let moved = gateway.colleagues.apply(up.groups, false);
                colleagues::tell(gateway, moved);
            }
        }
        if !up.complete {
            continue;
        }
        if let Some(whole) = snapshot.take() {
            gateway
                .sessions
                .end_absent(whole.newest, |account| whole.seen.contains(account));
            let moved = gateway.colleagues.apply(whole.groups, true);
            colleagues::tell(gateway, moved);
        }
        *since = up.version;
        gateway
            .directory_version
            .store(up.version.max(1), std::sync::atomic::Ordering::Release);
        let confirm = directory::WatchConfirm {
            version: up.version,
        };
        if stream.send(down(Item::Confirm(confirm))).await.is_err() {
            break;
        }
    }
    heard
}
