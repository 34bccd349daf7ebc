//! The service itself: what it is made of, the one place where changes are committed and published,
//! and the contract's methods, each handed to its file.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, Semaphore, oneshot};

use chancery_api::archive::Archive;
use chancery_api::directory::{
    AccountAct, AccountFact, AdministerRequest, AdministerResponse, AdministratorRequest,
    AdministratorResponse, ChangeAccountRequest, ChangeAccountResponse, ChangeGroupRequest,
    ChangeGroupResponse, ChangePasswordRequest, ChangePasswordResponse, CredentialsRequest,
    CredentialsResponse, Directory, DomainsRequest, DomainsResponse, ImportAccountsRequest,
    ImportAccountsResponse, ListAccountsRequest, ListAccountsResponse, ListGroupsRequest,
    ListGroupsResponse, ReportAttemptRequest, ReportAttemptResponse, SearchRequest, SearchResponse,
    VerifyPasswordRequest, VerifyPasswordResponse, WatchDown, WatchUp,
};
use chancery_api::{ApiError, Cx, Followers, Link};
use chancery_runtime::metrics::Counters;
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};
use chancery_store::StoreError;

use crate::acts::Acts;
use crate::administer::AdministratorsOf;
use crate::names::Domains;
use crate::password_pool::PasswordPool;
use crate::store::{Account, Applied, Change, Group, Store};
use crate::throttle::Throttle;
use crate::watch::Watch;
use crate::{Config, accounts, administer, credentials, groups, import, names, watch};

/// How long a change waits for the followers to confirm it.
pub const CONFIRM_LIMIT: Duration = Duration::from_secs(5);
/// Changes under way at once; a further one is refused. Disabling is not counted.
const CHANGES_LIMIT: usize = 64;
/// Accounts of one page.
const PAGE_LIMIT: u32 = 1_000;

/// What the directory is made of.
pub struct Parts {
    pub config: Config,
    /// The hosted domains, the default one first.
    pub domains: Vec<String>,
    /// Who may change accounts from a session.
    pub administrators: AdministratorsOf,
    pub store: Arc<dyn Store>,
    pub archive: Arc<dyn Archive>,
    pub clock: Clock,
    pub ids: Ids,
    pub metrics: Metrics,
    pub failpoints: Failpoints,
    pub tasks: Tasks,
}

/// Why the directory does not start.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{0}")]
    Domains(String),
    #[error("directory.{field} {problem}")]
    Config {
        field: &'static str,
        problem: String,
    },
    #[error("directory: {0}")]
    Store(#[from] StoreError),
}

/// Implements [`Directory`]. Cloning shares it.
#[derive(Clone)]
pub struct DirectoryService(Arc<Inner>);

pub struct Inner {
    pub config: Config,
    pub domains: Domains,
    pub administrators: AdministratorsOf,
    pub secret: [u8; 32],
    pub store: Arc<dyn Store>,
    pub acts: Arc<Acts>,
    pub pool: PasswordPool,
    pub throttle: Arc<Throttle>,
    pub watch: Watch,
    pub followers: Followers,
    pub failpoints: Failpoints,
    pub attempts: Counters,
    pub tasks: Tasks,
    /// Held from the commit of a version until it is published, so that versions are published in
    /// order. Never held while another service is asked.
    commits: Mutex<()>,
    changes: Arc<Semaphore>,
}

impl DirectoryService {
    /// Starts the service, and finishes what an earlier process left over.
    pub async fn start(parts: Parts) -> Result<Self, DirectoryError> {
        if let Some((field, problem)) = parts.config.problems().into_iter().next() {
            return Err(DirectoryError::Config { field, problem });
        }
        let domains = Domains::new(&parts.domains).map_err(DirectoryError::Domains)?;
        let secret = parts.store.secret(parts.ids.bytes()).await?;
        let Parts {
            config,
            administrators,
            store,
            archive,
            clock,
            ids,
            metrics,
            failpoints,
            tasks,
            ..
        } = parts;
        let acts = Arc::new(Acts::new(archive, Arc::clone(&store), &metrics));
        let pool = PasswordPool::new(config.password_threads, tasks.clone(), ids);
        let waiting = pool.clone();
        metrics.gauge_fn(
            "chancery_directory_passwords_waiting",
            "passwords worked on or waiting for it",
            move || i64::try_from(waiting.waiting()).unwrap_or(i64::MAX),
        );
        let throttle = Arc::new(Throttle::new(clock));
        let counted = Arc::clone(&throttle);
        metrics.gauge_fn(
            "chancery_directory_throttle_entries",
            "accounts and addresses that the throttle remembers",
            move || i64::try_from(counted.len()).unwrap_or(i64::MAX),
        );
        let attempts = metrics.counters(
            "chancery_directory_attempts",
            "attempts to log in, by outcome",
            &["outcome"],
        );
        tasks.spawn("directory-acts", Arc::clone(&acts).work(tasks.clone()));
        Ok(Self(Arc::new(Inner {
            config,
            domains,
            administrators,
            secret,
            store,
            acts,
            pool,
            throttle,
            watch: Watch::new(&metrics),
            followers: Followers::new(),
            failpoints,
            attempts,
            tasks,
            commits: Mutex::new(()),
            changes: Arc::new(Semaphore::new(CHANGES_LIMIT)),
        })))
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Runs a change to its end, also when its caller goes away: what is recorded takes effect, and
    /// what took effect is published.
    async fn detached<R, F>(
        &self,
        counted: bool,
        work: impl FnOnce(Arc<Inner>) -> F,
    ) -> Result<R, ApiError>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, ApiError>> + Send + 'static,
    {
        let place = match counted {
            true => Some(
                Arc::clone(&self.0.changes)
                    .try_acquire_owned()
                    .map_err(|_| ApiError::resource("too many changes under way"))?,
            ),
            false => None,
        };
        let (done, result) = oneshot::channel();
        let work = work(Arc::clone(&self.0));
        self.0.tasks.spawn("directory-change", async move {
            // The caller may be gone; the change is made all the same.
            let _ = done.send(work.await);
            drop(place);
        });
        result
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable("the directory ends")))
    }
}

impl Inner {
    /// Commits changes as one version and tells the followers; `session` is the full JID of the one
    /// that made them, empty when none did.
    pub async fn commit(&self, changes: Vec<Change>, session: &str) -> Result<Applied, ApiError> {
        let _order = self.commits.lock().await;
        let applied = self
            .store
            .apply(changes)
            .await
            .map_err(|error| store_error(&error))?;
        if applied.changed() {
            let fact = |account: &Account| AccountFact {
                changed_by: session.to_owned(),
                ..account.fact()
            };
            self.watch.publish(&WatchUp {
                version: applied.version,
                accounts: applied.accounts.iter().map(fact).collect(),
                groups: applied.groups.iter().map(Group::fact).collect(),
                complete: true,
                ..WatchUp::default()
            });
        }
        Ok(applied)
    }
}

/// A failing store, as this service's error.
pub fn store_error(error: &StoreError) -> ApiError {
    if error.is_full() || error.is_busy() {
        return ApiError::resource(error.to_string());
    }
    tracing::error!(%error, "the directory's store failed");
    match error {
        StoreError::Closed => ApiError::unavailable("the directory ends"),
        other => ApiError::internal(other.to_string()),
    }
}

#[async_trait]
impl Directory for DirectoryService {
    async fn domains(&self, _: &Cx, _: DomainsRequest) -> Result<DomainsResponse, ApiError> {
        Ok(DomainsResponse {
            domains: self.0.domains.list().to_vec(),
        })
    }

    async fn credentials(
        &self,
        _: &Cx,
        request: CredentialsRequest,
    ) -> Result<CredentialsResponse, ApiError> {
        credentials::credentials(&self.0, request).await
    }

    async fn verify_password(
        &self,
        _: &Cx,
        request: VerifyPasswordRequest,
    ) -> Result<VerifyPasswordResponse, ApiError> {
        // Detached: an attempt whose stream is gone still counts.
        self.detached(false, |inner| async move {
            credentials::verify_password(&inner, request).await
        })
        .await
    }

    async fn report_attempt(
        &self,
        _: &Cx,
        request: ReportAttemptRequest,
    ) -> Result<ReportAttemptResponse, ApiError> {
        credentials::report_attempt(&self.0, &request)?;
        Ok(ReportAttemptResponse {})
    }

    async fn change_account(
        &self,
        _: &Cx,
        request: ChangeAccountRequest,
    ) -> Result<ChangeAccountResponse, ApiError> {
        let counted = request.act() != AccountAct::Disable;
        self.detached(counted, |inner| async move {
            accounts::change(&inner, request).await
        })
        .await
    }

    async fn change_password(
        &self,
        _: &Cx,
        request: ChangePasswordRequest,
    ) -> Result<ChangePasswordResponse, ApiError> {
        self.detached(true, |inner| async move {
            accounts::change_password(&inner, request).await
        })
        .await
    }

    async fn administrator(
        &self,
        _: &Cx,
        request: AdministratorRequest,
    ) -> Result<AdministratorResponse, ApiError> {
        administer::administrator(&self.0, &request).await
    }

    async fn administer(
        &self,
        _: &Cx,
        request: AdministerRequest,
    ) -> Result<AdministerResponse, ApiError> {
        let counted = request.act() != AccountAct::Disable;
        self.detached(counted, |inner| async move {
            administer::administer(&inner, request).await
        })
        .await
    }

    async fn import_accounts(
        &self,
        _: &Cx,
        request: ImportAccountsRequest,
    ) -> Result<ImportAccountsResponse, ApiError> {
        self.detached(true, |inner| async move {
            import::import(&inner, request).await
        })
        .await
    }

    async fn list_accounts(
        &self,
        _: &Cx,
        request: ListAccountsRequest,
    ) -> Result<ListAccountsResponse, ApiError> {
        let domain = self.0.domains.hosted(&request.domain)?;
        let after = match request.after.as_str() {
            "" => String::new(),
            jid => self.0.domains.account(jid)?.localpart,
        };
        let limit = match request.limit {
            0 => PAGE_LIMIT,
            limit => limit.min(PAGE_LIMIT),
        } as usize;
        let page = self.0.store.page(domain, after, limit + 1).await;
        let page = page.map_err(|error| store_error(&error))?;
        let more = page.len() > limit;
        let accounts = page.iter().take(limit).map(Account::fact).collect();
        Ok(ListAccountsResponse { accounts, more })
    }

    async fn search(&self, _: &Cx, request: SearchRequest) -> Result<SearchResponse, ApiError> {
        let domain = self.0.domains.hosted(&request.domain)?;
        // What cannot be the beginning of a name finds nobody.
        let Some(wanted) = names::username(&domain, &request.prefix) else {
            return Ok(SearchResponse::default());
        };
        let after = match request.after.as_str() {
            "" => String::new(),
            jid => self.0.domains.account(jid)?.localpart,
        };
        let limit = match request.limit {
            0 => PAGE_LIMIT,
            limit => limit.min(PAGE_LIMIT),
        } as usize;
        let found = self
            .0
            .store
            .begin(domain, wanted.localpart, after, limit + 1);
        let found = found.await.map_err(|error| store_error(&error))?;
        let more = found.len() > limit;
        let jids = found.iter().take(limit).map(|account| account.name.jid());
        Ok(SearchResponse {
            jids: jids.collect(),
            more,
        })
    }

    async fn change_group(
        &self,
        _: &Cx,
        request: ChangeGroupRequest,
    ) -> Result<ChangeGroupResponse, ApiError> {
        self.detached(true, |inner| async move {
            groups::change(&inner, request).await
        })
        .await
    }

    async fn list_groups(
        &self,
        _: &Cx,
        request: ListGroupsRequest,
    ) -> Result<ListGroupsResponse, ApiError> {
        let domain = self.0.domains.hosted(&request.domain)?;
        let groups = self
            .0
            .store
            .groups(domain)
            .await
            .map_err(|error| store_error(&error))?;
        Ok(ListGroupsResponse {
            groups: groups.iter().map(Group::fact).collect(),
        })
    }

    async fn watch(&self, _: &Cx) -> Result<Link<WatchDown, WatchUp>, ApiError> {
        watch::attach(&self.0)
    }
}
