//! The gateways' end of the versions: each hears of a new one at once, and every second that the old
//! one still holds. Silence means that there are no verdicts. It refuses to wait for a slow one.

use std::sync::Arc;
use std::time::Duration;

use chancery_api::Link;
use chancery_api::policy::watch_down::Item;
use chancery_api::policy::{WatchDown, WatchUp};
use tokio::sync::mpsc;

use crate::service::Inner;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A gateway says who it is within this.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Serves one gateway until it is lost.
pub(crate) async fn run(inner: Arc<Inner>, link: Link<WatchUp, WatchDown>) {
    let (tx, mut rx) = link.split();
    let hello = tokio::time::timeout(HELLO_LIMIT, rx.recv()).await;
    let Ok(Some(WatchDown {
        item: Some(Item::Hello(hello)),
    })) = hello
    else {
        tracing::debug!("a watch link without a hello");
        return;
    };
    let mut versions = inner.in_force.versions();
    let confirmations = inner.followers.join(&hello.gateway);
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            changed = versions.changed() => {
                if changed.is_err() || !announce(&inner, &tx) {
                    return;
                }
            }
            _ = heartbeat.tick() => {
                if !announce(&inner, &tx) {
                    return;
                }
            }
            down = rx.recv() => match down.map(|down| down.item) {
                None => return,
                Some(Some(Item::Confirm(confirm))) => {
                    // Nobody has what is not there yet.
                    let current = *versions.borrow();
                    confirmations.confirm(confirm.version.min(current));
                }
                Some(Some(Item::Hello(_)) | None) => {}
            },
        }
    }
}

/// False when the gateway is gone, or so far behind that its link is full: it opens a new one.
fn announce(inner: &Inner, tx: &mpsc::Sender<WatchUp>) -> bool {
    match inner.in_force.get() {
        Some(decider) => tx
            .try_send(WatchUp {
                version: decider.version(),
            })
            .is_ok(),
        None => true,
    }
}
