//! Administrative acts on their way into the log: recorded before they take effect, or, for the one
//! that must not wait (disabling), as soon as the log can be reached. Also the dropping of deleted
//! accounts' mailboxes. It owns the retrying of both; it refuses to decide what an act means.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use chancery_api::archive::{Archive, DropMailboxRequest, RecordActRequest};
use chancery_api::{ApiError, Cx};
use chancery_runtime::metrics::Counter;
use chancery_runtime::{Metrics, Tasks};

use crate::service::store_error;
use crate::store::{Account, Act, Name, State, Store};

/// The longest name of who did it.
const ACTOR_LIMIT_BYTES: usize = 1_023;
/// How many open ends are looked at in one round.
const ROUND: usize = 100;
/// Pause after a round that failed, doubled each time up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// See the module.
pub struct Acts {
    archive: Arc<dyn Archive>,
    store: Arc<dyn Store>,
    /// Held while a mailbox is dropped and marked so: a late second drop would take the mail of
    /// whoever has the name next.
    drops: Mutex<()>,
    left_over: Notify,
    late: Counter,
}

impl Acts {
    pub fn new(archive: Arc<dyn Archive>, store: Arc<dyn Store>, metrics: &Metrics) -> Self {
        let late = metrics.counter(
            "chancery_directory_late_acts",
            "tries to record an act that took effect, or to drop a mailbox, that failed",
        );
        Self {
            archive,
            store,
            drops: Mutex::new(()),
            left_over: Notify::new(),
            late,
        }
    }

    /// Records an act that has not taken effect yet. When that fails it must not.
    pub async fn record(&self, act: Act) -> Result<(), ApiError> {
        let request = RecordActRequest {
            domain: act.domain,
            actor: act.actor,
            act: act.act,
            detail: act.detail,
        };
        match self.archive.record_act(&Cx::local(), request).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_wait() => Err(ApiError::unavailable(format!(
                "the act cannot be recorded, so nothing was changed: {}",
                error.message
            ))),
            Err(error) => Err(error),
        }
    }

    /// Records that an act, recorded before, did not take effect after all. Best effort: the first
    /// record says "before it takes effect", and the state speaks for itself.
    pub async fn record_failure(&self, mut act: Act, why: &str) {
        act.detail = serde_json::json!({ "act": act.act, "why": why }).to_string();
        act.act = "directory.change_failed".to_owned();
        if let Err(error) = self.record(act).await {
            tracing::warn!(%error, "the failure of a recorded act could not be recorded");
        }
    }

    /// Makes sure that the mailbox of a deleted account is dropped.
    pub async fn finish_drop(&self, name: &Name) -> Result<(), ApiError> {
        let _one = self.drops.lock().await;
        let found = self
            .store
            .find(name.clone())
            .await
            .map_err(|error| store_error(&error))?;
        let Some((
            Account {
                state: State::Deleted,
                drop_pending: true,
                generation,
                ..
            },
            _,
        )) = found
        else {
            return Ok(());
        };
        self.archive
            .drop_mailbox(&Cx::local(), DropMailboxRequest { jid: name.jid() })
            .await?;
        self.store
            .dropped(name.clone(), generation)
            .await
            .map_err(|error| store_error(&error))
    }

    /// Something was left over: the worker looks at once.
    pub fn look(&self) {
        self.left_over.notify_one();
    }

    /// Finishes what is left over, also from before a restart, until the tasks end.
    pub async fn work(self: Arc<Self>, tasks: Tasks) {
        let mut pause = RETRY_FIRST;
        loop {
            let more = match self.round().await {
                Ok(more) => {
                    pause = RETRY_FIRST;
                    more
                }
                Err(error) => {
                    self.late.inc();
                    tracing::warn!(%error, retry_ms = pause.as_millis(), "acts wait for the log");
                    tokio::select! {
                        () = tasks.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_LAST);
                    continue;
                }
            };
            if more {
                continue;
            }
            tokio::select! {
                () = tasks.cancelled() => return,
                () = self.left_over.notified() => {}
            }
        }
    }

    /// One round; true when there may be more.
    async fn round(&self) -> Result<bool, ApiError> {
        let acts = self
            .store
            .unrecorded(ROUND)
            .await
            .map_err(|error| store_error(&error))?;
        let drops = self
            .store
            .pending_drops(ROUND)
            .await
            .map_err(|error| store_error(&error))?;
        let more = acts.len() == ROUND || drops.len() == ROUND;
        for (id, act) in acts {
            self.record(act).await?;
            self.store
                .recorded(id)
                .await
                .map_err(|error| store_error(&error))?;
        }
        for account in drops {
            self.finish_drop(&account.name).await?;
        }
        Ok(more)
    }
}

/// Checks the name of who acts.
pub fn actor(actor: &str) -> Result<String, ApiError> {
    if actor.is_empty() || actor.len() > ACTOR_LIMIT_BYTES {
        return Err(ApiError::invalid("actor must have 1 to 1023 bytes"));
    }
    Ok(actor.to_owned())
}
