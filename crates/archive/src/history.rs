//! What people ask of their own archives: pages and preferences, over reading connections of their
//! own. Owns the checks of a request; `query.rs` pages, `preferences.rs` matches. Refuses to write:
//! a change of preferences is an act like others.

use std::sync::Arc;

use chancery_api::ApiError;
use chancery_api::archive::{
    GetPreferencesRequest, GetPreferencesResponse, QueryArchiveRequest, QueryArchiveResponse,
    SetPreferencesRequest,
};
use chancery_evidence::{KeyRing, Kind};
use chancery_store::{ReadPool, StoreError};
use parking_lot::RwLock;

use crate::commit::Fatal;
use crate::item::{bare_len, domain_of};
use crate::pending::{PendingEntries, WithPending};
use crate::preferences::Preferences;
use crate::query::{self, QueryError};
use crate::shard::{Act, Change};
use crate::store::{LogReader, SqliteLog};

/// The archive as its owners read it.
pub(crate) struct History {
    pub(crate) pool: ReadPool,
    pub(crate) pending: Arc<PendingEntries>,
    pub(crate) ring: Arc<RwLock<KeyRing>>,
    pub(crate) shard: u32,
    /// Preferences are the administrator's.
    pub(crate) locked: bool,
    pub(crate) fatal: Fatal,
}

impl History {
    /// A page of one mailbox.
    pub(crate) async fn query(
        &self,
        request: QueryArchiveRequest,
    ) -> Result<QueryArchiveResponse, ApiError> {
        check(&request)?;
        let (pending, ring, shard) = (
            Arc::clone(&self.pending),
            Arc::clone(&self.ring),
            self.shard,
        );
        let read = self.pool.call(move |connection| {
            let log = WithPending {
                log: SqliteLog::new(&*connection, shard),
                pending: &pending,
            };
            match query::page(&log, &ring, shard, &request) {
                Ok(page) => Ok(Ok(page)),
                Err(QueryError::Store(error)) => Err(error),
                Err(QueryError::NotFound) => Ok(Err(ApiError::not_found("no such archive id"))),
            }
        });
        read.await.map_err(|error| self.failed(&error))?
    }

    /// The preferences in force for one mailbox.
    pub(crate) async fn preferences(
        &self,
        request: GetPreferencesRequest,
    ) -> Result<GetPreferencesResponse, ApiError> {
        let mut preferences = Preferences::default();
        if !self.locked {
            let shard = self.shard;
            let row = self
                .pool
                .call(move |connection| SqliteLog::new(&*connection, shard).row(&request.jid))
                .await
                .map_err(|error| self.failed(&error))?;
            let stored = row.and_then(|row| row.preferences);
            preferences = stored
                .and_then(|stored| Preferences::decode(&stored))
                .unwrap_or_default();
        }
        Ok(GetPreferencesResponse {
            preferences: Some(preferences.wire()),
            locked: self.locked,
        })
    }

    /// The act that changes them.
    pub(crate) fn preferring(&self, request: SetPreferencesRequest) -> Result<Act, ApiError> {
        if self.locked {
            return Err(ApiError::denied("preferences are locked"));
        }
        owner(&request.jid)?;
        if bare_len(&request.actor).is_none() {
            return Err(ApiError::invalid("an act is somebody's"));
        }
        let wire = request.preferences.unwrap_or_default();
        let preferences = Preferences::read(wire).map_err(ApiError::invalid)?;
        let sealed = serde_json::json!({ "mailbox": &request.jid, "preferences": &preferences });
        Ok(Act {
            kind: Kind::Administrative,
            domain: domain_of(&request.jid).to_owned(),
            actor: request.actor,
            act: "mailbox.preferences".to_owned(),
            detail: serde_json::json!({ "act": "mailbox.preferences" }).to_string(),
            sealed: sealed.to_string(),
            change: Some(Change::Prefer(request.jid.as_str().into(), preferences)),
        })
    }

    fn failed(&self, error: &StoreError) -> ApiError {
        tracing::warn!(%error, "reading an archive failed");
        if error.is_fatal() {
            (self.fatal)(&error.to_string());
        }
        ApiError::unavailable("the archive cannot be read")
    }
}

fn owner(jid: &str) -> Result<(), ApiError> {
    if bare_len(jid) == Some(jid.len()) {
        Ok(())
    } else {
        Err(ApiError::invalid("not a bare jid"))
    }
}

fn check(request: &QueryArchiveRequest) -> Result<(), ApiError> {
    owner(&request.jid)?;
    if !request.with.is_empty() && bare_len(&request.with).is_none() {
        return Err(ApiError::invalid("malformed with"));
    }
    if request.ids.len() > query::PAGE_MESSAGES {
        return Err(ApiError::invalid("too many ids"));
    }
    Ok(())
}
