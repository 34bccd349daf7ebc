//! When accounts were last there (XEP-0012), on its way to the store: kept in memory and written
//! together, at most once a second, so that a thousand logouts cost one commit. A crash loses the
//! last second of them. It refuses to know who is there now (presence does).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

use chancery_runtime::metrics::Counter;
use chancery_runtime::{Metrics, Tasks};
use chancery_store::StoreError;

use crate::store::{Last, Store};

/// Accounts that wait to be written; further ones are lost, and counted.
const WAITING_LIMIT: usize = 100_000;
/// Time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a text that is kept; a longer one is not.
const STATUS_LIMIT_BYTES: usize = 1_024;

/// See the module.
pub struct LastSeen {
    store: Arc<dyn Store>,
    waiting: Mutex<HashMap<String, Last>>,
    /// Held over a write and over a clearing, so that nothing is written back behind it.
    turn: Turn<()>,
    lost: Counter,
}

impl LastSeen {
    pub fn start(store: Arc<dyn Store>, metrics: &Metrics, tasks: &Tasks) -> Arc<Self> {
        let lost = metrics.counter(
            "chancery_pubsub_last_lost",
            "ends of sessions that were not remembered because too many waited",
        );
        let seen = Arc::new(Self {
            store,
            waiting: Mutex::default(),
            turn: Turn::new(()),
            lost,
        });
        tasks.spawn("pubsub-last", Arc::clone(&seen).write(tasks.clone()));
        seen
    }

    /// Remembers.
    pub fn set(&self, owner: String, mut last: Last) {
        if last.status.len() > STATUS_LIMIT_BYTES {
            last.status.clear();
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_LIMIT && !waiting.contains_key(&owner) {
            self.lost.inc();
            return;
        }
        let known = waiting.entry(owner).or_default();
        if known.at_ms <= last.at_ms {
            *known = last;
        }
    }

    /// What is remembered of an account.
    pub async fn get(&self, owner: String) -> Result<Option<Last>, StoreError> {
        let waiting = self.waiting.lock().get(&owner).cloned();
        let kept = self.store.last(owner).await?;
        Ok(match (waiting, kept) {
            (Some(waiting), Some(kept)) if kept.at_ms > waiting.at_ms => Some(kept),
            (Some(waiting), _) => Some(waiting),
            (None, kept) => kept,
        })
    }

    /// Clears an account of everything that the store has.
    pub async fn clear(&self, owner: String) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        self.waiting.lock().remove(&owner);
        self.store.clear(owner).await
    }

    async fn write(self: Arc<Self>, tasks: Tasks) {
        loop {
            let ending = tokio::select! {
                () = tasks.cancelled() => true,
                () = tokio::time::sleep(PAUSE) => false,
            };
            self.write_once().await;
            if ending {
                return;
            }
        }
    }

    /// Writes what waits; what cannot be written waits on.
    pub async fn write_once(&self) {
        let _turn = self.turn.lock().await;
        // Read, not taken: it has to be found until it is in the store.
        let all: Vec<(String, Last)> = {
            let waiting = self.waiting.lock();
            waiting
                .iter()
                .map(|(o, l)| (o.clone(), l.clone()))
                .collect()
        };
        if all.is_empty() {
            return;
        }
        if let Err(error) = self.store.set_last(all.clone()).await {
            tracing::warn!(%error, "last activity waits for the store");
            return;
        }
        let mut waiting = self.waiting.lock();
        for (owner, written) in all {
            if waiting.get(&owner) == Some(&written) {
                waiting.remove(&owner);
            }
        }
        if waiting.is_empty() {
            waiting.shrink_to_fit();
        }
    }
}
