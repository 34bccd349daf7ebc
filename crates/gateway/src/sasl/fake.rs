//! A directory for tests of what asks it: a few accounts in memory. Refuses everything that
//! authentication does not need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;

use chancery_api::directory::*;
use chancery_api::{ApiError, Cx, Link};

use super::scram;
use super::scram::tests::keys;

pub(crate) const PASSWORD: &str = "pencil";

/// alice and bob with [`PASSWORD`], dora disabled with it; nobody else.
#[derive(Default)]
pub(crate) struct FakeDirectory {
    pub unreachable: AtomicBool,
    pub refuses: AtomicBool,
    pub delay_ms: AtomicU64,
    /// User name and success, as reported.
    pub reports: Mutex<Vec<(String, bool)>>,
    pub asked: AtomicU64,
}

impl FakeDirectory {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn ask(&self) -> Result<(), ApiError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("away"));
        }
        Ok(())
    }
}

fn account(username: &str) -> Option<bool> {
    let accounts = HashMap::from([("alice", false), ("bob", false), ("dora", true)]);
    accounts.get(username.to_lowercase().as_str()).copied()
}

fn jid(username: &str, domain: &str) -> String {
    chancery_xmpp::jid::parse_bare(&format!("{username}@{domain}"))
        .unwrap()
        .to_string()
}

#[async_trait]
impl Directory for FakeDirectory {
    async fn domains(&self, _: &Cx, _: DomainsRequest) -> Result<DomainsResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn credentials(
        &self,
        _: &Cx,
        request: CredentialsRequest,
    ) -> Result<CredentialsResponse, ApiError> {
        self.ask()?;
        let known = account(&request.username);
        let hash = match request.hash() {
            Hash::Sha1 => scram::Hash::Sha1,
            Hash::Sha256 => scram::Hash::Sha256,
            Hash::Unspecified => return Err(ApiError::invalid("no hash")),
        };
        let salt = format!("salt of {}", request.username);
        let password = if known.is_some() {
            PASSWORD
        } else {
            "invented"
        };
        let keys = keys(hash, password, salt.as_bytes(), 4096);
        Ok(CredentialsResponse {
            keys: Some(ScramKeys {
                hash: request.hash,
                salt: keys.salt.into(),
                iterations: keys.iterations,
                stored_key: keys.stored_key.into(),
                server_key: keys.server_key.into(),
            }),
            usable: known.is_some(),
            disabled: known == Some(true),
            jid: jid(&request.username, &request.domain),
            credential_version: 7,
            delay_ms: self.delay_ms.load(Ordering::SeqCst),
            refused: self.refuses.load(Ordering::SeqCst),
        })
    }

    async fn verify_password(
        &self,
        _: &Cx,
        request: VerifyPasswordRequest,
    ) -> Result<VerifyPasswordResponse, ApiError> {
        self.ask()?;
        let known = account(&request.username);
        Ok(VerifyPasswordResponse {
            verified: known.is_some() && request.password == PASSWORD,
            disabled: known == Some(true),
            jid: jid(&request.username, &request.domain),
            credential_version: 7,
            delay_ms: self.delay_ms.load(Ordering::SeqCst),
            refused: self.refuses.load(Ordering::SeqCst),
        })
    }

    async fn report_attempt(
        &self,
        _: &Cx,
        request: ReportAttemptRequest,
    ) -> Result<ReportAttemptResponse, ApiError> {
        self.ask()?;
        self.reports
            .lock()
            .push((request.username, request.success));
        Ok(ReportAttemptResponse {})
    }

    async fn change_account(
        &self,
        _: &Cx,
        _: ChangeAccountRequest,
    ) -> Result<ChangeAccountResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn change_password(
        &self,
        _: &Cx,
        _: ChangePasswordRequest,
    ) -> Result<ChangePasswordResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn administrator(
        &self,
        _: &Cx,
        _: AdministratorRequest,
    ) -> Result<AdministratorResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn administer(
        &self,
        _: &Cx,
        _: AdministerRequest,
    ) -> Result<AdministerResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn import_accounts(
        &self,
        _: &Cx,
        _: ImportAccountsRequest,
    ) -> Result<ImportAccountsResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn list_accounts(
        &self,
        _: &Cx,
        _: ListAccountsRequest,
    ) -> Result<ListAccountsResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn search(&self, _: &Cx, _: SearchRequest) -> Result<SearchResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn change_group(
        &self,
        _: &Cx,
        _: ChangeGroupRequest,
    ) -> Result<ChangeGroupResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn list_groups(
        &self,
        _: &Cx,
        _: ListGroupsRequest,
    ) -> Result<ListGroupsResponse, ApiError> {
        Err(ApiError::denied("not in this test"))
    }

    async fn watch(&self, _: &Cx) -> Result<Link<WatchDown, WatchUp>, ApiError> {
        Err(ApiError::denied("not in this test"))
    }
}
