//! For tests: a directory that says what the test hands it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chancery_api::directory::{self as dir, Directory};
use chancery_api::{ApiError, Cx, Link};
use parking_lot::Mutex as SyncMutex;

/// A directory that says what the test hands it.
#[derive(Default)]
pub(crate) struct Facade {
    pub(crate) link: SyncMutex<Option<Link<dir::WatchUp, dir::WatchDown>>>,
    pub(crate) opened: tokio::sync::Notify,
    pub(crate) away: AtomicBool,
}

/// A trait of which the test needs only `rest`.
macro_rules! facade {
    (
        impl $Trait:ident for $Type:ident;
        not_called { $($name:ident: $req:ty => $resp:ty),* $(,)? }
        $($rest:tt)*
    ) => {
        #[async_trait]
        impl $Trait for $Type {
            $(async fn $name(&self, _cx: &Cx, _request: $req) -> Result<$resp, ApiError> {
                Err(ApiError::internal(stringify!($name)))
            })*
            $($rest)*
        }
    };
}

facade! {
    impl Directory for Facade;
    not_called {
        domains: dir::DomainsRequest => dir::DomainsResponse,
        credentials: dir::CredentialsRequest => dir::CredentialsResponse,
        verify_password: dir::VerifyPasswordRequest => dir::VerifyPasswordResponse,
        report_attempt: dir::ReportAttemptRequest => dir::ReportAttemptResponse,
        change_account: dir::ChangeAccountRequest => dir::ChangeAccountResponse,
        change_password: dir::ChangePasswordRequest => dir::ChangePasswordResponse,
        administrator: dir::AdministratorRequest => dir::AdministratorResponse,
        administer: dir::AdministerRequest => dir::AdministerResponse,
        import_accounts: dir::ImportAccountsRequest => dir::ImportAccountsResponse,
        list_accounts: dir::ListAccountsRequest => dir::ListAccountsResponse,
        search: dir::SearchRequest => dir::SearchResponse,
        change_group: dir::ChangeGroupRequest => dir::ChangeGroupResponse,
        list_groups: dir::ListGroupsRequest => dir::ListGroupsResponse,
    }
    async fn watch(&self, _cx: &Cx) -> Result<Link<dir::WatchDown, dir::WatchUp>, ApiError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("away"));
        }
        let (link, near) = Link::pair();
        *self.link.lock() = Some(near);
        self.opened.notify_one();
        Ok(link)
    }
}
