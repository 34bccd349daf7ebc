//! The directory's contract. See `proto/chancery/directory/v1/directory.proto`.

use crate::wire::directory::v1::directory_server as stub;
pub use crate::wire::directory::v1::*;
use tonic::transport::Channel;

service! {
    /// Accounts, credentials and groups.
    service Directory, remote RemoteDirectory, adapter DirectoryAdapter,
    client directory_client::DirectoryClient<Channel>, server directory_server::DirectoryServer<DirectoryAdapter>;
    calls {
        /// The hosted domains, the default one first.
        domains(DomainsRequest) -> DomainsResponse, "directory.domains", true;
        /// SCRAM keys; invented, stable ones for who does not exist.
        credentials(CredentialsRequest) -> CredentialsResponse, "directory.credentials", true;
        /// Checks a password.
        verify_password(VerifyPasswordRequest) -> VerifyPasswordResponse, "directory.verify_password", true;
        /// How an attempt ended.
        report_attempt(ReportAttemptRequest) -> ReportAttemptResponse, "directory.report_attempt", false;
        /// Changes one account.
        change_account(ChangeAccountRequest) -> ChangeAccountResponse, "directory.change_account", false;
        /// A person's own change of password.
        change_password(ChangePasswordRequest) -> ChangePasswordResponse, "directory.change_password", false;
        /// Is somebody an administrator?
        administrator(AdministratorRequest) -> AdministratorResponse, "directory.administrator", true;
        /// Changes accounts for an administrator.
        administer(AdministerRequest) -> AdministerResponse, "directory.administer", false;
        /// Adds many accounts.
        import_accounts(ImportAccountsRequest) -> ImportAccountsResponse, "directory.import_accounts", false;
        /// Accounts of a domain, a page at a time.
        list_accounts(ListAccountsRequest) -> ListAccountsResponse, "directory.list_accounts", true;
        /// Active accounts by the beginning of their names.
        search(SearchRequest) -> SearchResponse, "directory.search", true;
        /// Changes a group.
        change_group(ChangeGroupRequest) -> ChangeGroupResponse, "directory.change_group", false;
        /// Groups of a domain.
        list_groups(ListGroupsRequest) -> ListGroupsResponse, "directory.list_groups", true;
    }
    lanes {}
    links {
        /// Facts and their changes.
        watch (WatchDownBatch => WatchDown) -> (WatchUpBatch => WatchUp), WatchStream, "directory.watch";
    }
    streams {}
}
