//! For tests: a directory and an archive that say what the test hands them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chancery_api::archive::{
    self as log, AppendAnswer, AppendItem, Archive, AttachDown, AttachUp, DropMailboxRequest,
    DropMailboxResponse, ExportChunk, ExportRequest, PublicKeyRequest, PublicKeyResponse,
    RecordActRequest, RecordActResponse, SettleRequest, SettleResponse, StatusRequest,
    StatusResponse,
};
use chancery_api::directory::{self as dir, Directory};
use chancery_api::{ApiError, Cx, Lane, LanePeer, LaneService, Link};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::mpsc;

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

/// An archive that counts acts, or is away.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) acts: SyncMutex<Vec<RecordActRequest>>,
    pub(crate) away: AtomicBool,
}

facade! {
    impl Archive for Log;
    not_called {
        settle: SettleRequest => SettleResponse,
        drop_mailbox: DropMailboxRequest => DropMailboxResponse,
        public_key: PublicKeyRequest => PublicKeyResponse,
        status: StatusRequest => StatusResponse,
        query_archive: log::QueryArchiveRequest => log::QueryArchiveResponse,
        get_preferences: log::GetPreferencesRequest => log::GetPreferencesResponse,
        set_preferences: log::SetPreferencesRequest => log::SetPreferencesResponse,
    }
    async fn record_act(&self, _cx: &Cx, act: RecordActRequest) -> Result<RecordActResponse, ApiError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(ApiError::unavailable("away"));
        }
        self.acts.lock().push(act);
        Ok(RecordActResponse { number: 1 })
    }
    fn append(&self, _peer: LanePeer) -> Lane<AppendItem, AppendAnswer> {
        panic!("not called")
    }
    fn append_service(&self) -> Result<Arc<dyn LaneService<AppendItem, AppendAnswer>>, ApiError> {
        Err(ApiError::internal("append"))
    }
    async fn attach(&self, _cx: &Cx) -> Result<Link<AttachDown, AttachUp>, ApiError> {
        Err(ApiError::internal("attach"))
    }
    async fn export(
        &self,
        _cx: &Cx,
        _request: ExportRequest,
    ) -> Result<mpsc::Receiver<Result<ExportChunk, ApiError>>, ApiError> {
        Err(ApiError::internal("export"))
    }
}
