//! Follows the directory: takes over snapshots and deltas, makes a new version of what alters a
//! verdict, and confirms when the gateways have it. It refuses to use half a snapshot.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::directory::watch_down::Item;
use chancery_api::directory::{WatchConfirm, WatchDown, WatchHello, WatchUp};
use chancery_api::{ApiError, Cx};
use chancery_store::StoreError;

use crate::decider::named_groups;
use crate::facts::{ACCOUNTS_LIMIT, Change, Facts};
use crate::file::PolicyFile;
use crate::service::Inner;

/// Before the directory is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// A directory that says nothing for this long, not even that it lives, is lost.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// Before a version that could not be made durable is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Follows until the tasks are asked to end.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut since = 0;
    loop {
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            ended = follow(&inner, &mut since) => {
                // Both end in one stage of a shutdown, in either order.
                if inner.tasks.cancelled_now() {
                    return;
                }
                let error = ended.err().map(tracing::field::display);
                if since == 0 {
                    tracing::info!(error, "the directory is not there yet");
                } else {
                    tracing::warn!(error, "lost the directory");
                }
            }
        }
        inner.in_force.directory_reachable(false);
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            () = tokio::time::sleep(RECONNECT_PAUSE) => {}
        }
    }
}

type Confirming = Pin<Box<dyn Future<Output = u64> + Send>>;

/// One link, from hello to its loss.
async fn follow(inner: &Arc<Inner>, since: &mut u64) -> Result<(), ApiError> {
    let link = inner.directory.watch(&Cx::local()).await?;
    let (tx, mut rx) = link.split();
    let send = async |item| {
        let down = WatchDown { item: Some(item) };
        tx.send(down)
            .await
            .map_err(|_| ApiError::unavailable("link lost"))
    };
    let follower = format!("policy-{}", inner.name);
    send(Item::Hello(WatchHello {
        follower,
        since: *since,
    }))
    .await?;
    let mut parts = Vec::new();
    let mut accounts = 0;
    // The directory's change that waits for the gateways, and the latest one behind it.
    let mut confirming: Option<Confirming> = None;
    let mut behind: Option<(u64, u64)> = None;
    loop {
        tokio::select! {
            part = tokio::time::timeout(SILENCE_LIMIT, rx.recv()) => {
                let part = part.map_err(|_| ApiError::unavailable("the directory is silent"))?;
                let Some(part) = part else { return Ok(()) };
                accounts += part.accounts.len();
                if accounts > ACCOUNTS_LIMIT {
                    return Err(ApiError::resource("the directory has too many accounts"));
                }
                let (complete, version) = (part.complete, part.version);
                parts.push(part);
                if !complete {
                    continue;
                }
                accounts = 0;
                let effective = take_durably(inner, std::mem::take(&mut parts)).await;
                *since = version;
                inner.in_force.directory_reachable(true);
                if confirming.is_none() {
                    confirming = Some(confirm(inner, version, effective));
                } else {
                    behind = Some((version, effective));
                }
            }
            version = wait(&mut confirming) => {
                send(Item::Confirm(WatchConfirm { version })).await?;
                confirming = behind.take().map(|(version, effective)| confirm(inner, version, effective));
            }
        }
    }
}

async fn wait(confirming: &mut Option<Confirming>) -> u64 {
    match confirming {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}

/// Gives the directory's version once the gateways follow what came of it, or do not in time: their
/// absence is the gateways' affair, a change of a group must not hang on it.
fn confirm(inner: &Arc<Inner>, version: u64, effective: u64) -> Confirming {
    let followers = inner.followers.clone();
    let limit = Duration::from_millis(inner.config.follow_confirm_limit_ms);
    Box::pin(async move {
        let late = followers.confirmed(effective, limit).await;
        if !late.is_empty() {
            tracing::warn!(
                ?late,
                "gateways did not confirm a change of the directory in time"
            );
        }
        version
    })
}

/// Takes over complete facts, however long the store needs; meanwhile there are no verdicts.
async fn take_durably(inner: &Inner, parts: Vec<WatchUp>) -> u64 {
    let mut ledger = inner.ledger.lock().await;
    let policy = Arc::clone(&ledger.policy);
    let change = take(&mut ledger.facts, parts, &policy);
    if !ledger.stale && inner.in_force.get_any() {
        match change {
            Change::None => return ledger.highest,
            Change::Widened => {
                inner.widen(&ledger);
                return ledger.highest;
            }
            Change::Altered => {}
        }
    }
    loop {
        match inner.renew(&mut ledger).await {
            Ok(version) => return version,
            Err(error) => told(&error),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

fn told(error: &StoreError) {
    tracing::error!(%error, "no verdicts: a policy version cannot be made durable");
}

/// What complete facts do to verdicts.
fn take(facts: &mut Option<Facts>, parts: Vec<WatchUp>, policy: &PolicyFile) -> Change {
    let snapshot = parts.iter().any(|part| part.snapshot);
    let Some(facts) = facts.as_mut().filter(|_| !snapshot) else {
        let mut fresh = Facts::default();
        for part in parts {
            fresh.take(part, &|_| true);
        }
        let same = facts.as_ref() == Some(&fresh);
        *facts = Some(fresh);
        return if same { Change::None } else { Change::Altered };
    };
    let named = named_groups(policy, facts);
    let changes = parts
        .into_iter()
        .map(|part| facts.take(part, &|group| named.contains(group)));
    changes.max().unwrap_or(Change::None)
}
