//! What the directory keeps, as a trait: changes in transactions, each with the next version, and
//! reads. It refuses to hash, to check names and to tell anybody (the service does).

mod memory;
mod sqlite;

#[cfg(test)]
pub mod conformance;

use async_trait::async_trait;

use chancery_api::directory::{AccountFact, AccountState, GroupFact};
use chancery_store::StoreError;

pub use crate::names::Name;
pub use crate::scram::{KeySet, Keys, Mechanism};
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Members of one group.
pub const GROUP_MEMBERS_LIMIT: usize = 10_000;
/// Bytes of all localparts of one group: its fact has to fit into one message.
pub const GROUP_BYTES_LIMIT: usize = 512 * 1024;
/// Groups of one domain.
pub const GROUPS_LIMIT: usize = 1_000;

/// Whether an account may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    Disabled,
    /// A tombstone: the name is free, its numbers are not.
    Deleted,
}

/// An account, or its tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: Name,
    pub state: State,
    /// Grows with each new password, also over re-creation.
    pub credential_version: u64,
    /// The version that created it: no later account of the name has the same.
    pub generation: u64,
    /// The version of its last change.
    pub version: u64,
    /// Deleted, and its mailbox is not dropped yet.
    pub drop_pending: bool,
}

impl Account {
    /// For followers.
    pub fn fact(&self) -> AccountFact {
        let state = match self.state {
            State::Active => AccountState::Active,
            State::Disabled => AccountState::Disabled,
            State::Deleted => AccountState::Deleted,
        };
        AccountFact {
            jid: self.name.jid(),
            state: state.into(),
            credential_version: self.credential_version,
            generation: self.generation,
            changed_by: String::new(),
        }
    }
}

/// A group and its members' localparts, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub domain: String,
    pub group: String,
    pub members: Vec<String>,
    pub deleted: bool,
    /// What rosters call it; `None` when it is not shown in them.
    pub label: Option<String>,
}

impl Group {
    /// For followers.
    pub fn fact(&self) -> GroupFact {
        GroupFact {
            domain: self.domain.clone(),
            group: self.group.clone(),
            members: self
                .members
                .iter()
                .map(|m| format!("{m}@{}", self.domain))
                .collect(),
            deleted: self.deleted,
            label: self.label.clone().unwrap_or_default(),
        }
    }
}

/// An administrative act that still has to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    pub domain: String,
    pub actor: String,
    pub act: String,
    pub detail: String,
}

/// One change. `seen` is the version of the account, or 0 for none, on which the decision to
/// change was based; another one now makes it [`Refusal::Changed`].
#[derive(Clone, Debug)]
pub enum Change {
    Add {
        name: Name,
        keys: KeySet,
        seen: Option<u64>,
    },
    SetKeys {
        name: Name,
        keys: KeySet,
        seen: u64,
    },
    Enable {
        name: Name,
        seen: u64,
    },
    /// Also leaves the act to be recorded, in the same transaction.
    Disable {
        name: Name,
        act: Act,
    },
    /// Leaves a tombstone and all groups.
    Delete {
        name: Name,
        seen: u64,
    },
    CreateGroup {
        domain: String,
        group: String,
    },
    DeleteGroup {
        domain: String,
        group: String,
    },
    /// Members are localparts.
    AddMembers {
        domain: String,
        group: String,
        members: Vec<String>,
    },
    RemoveMembers {
        domain: String,
        group: String,
        members: Vec<String>,
    },
    /// Shows it in rosters by this name, or not any more.
    LabelGroup {
        domain: String,
        group: String,
        label: Option<String>,
    },
}

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Exists,
    NotFound,
    /// Somebody else changed it meanwhile.
    Changed,
    /// A limit of this module.
    Full,
    /// The mailbox of the name's last holder is not dropped yet.
    DropPending,
    /// A member does not exist in the domain.
    NoSuchMember,
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The version now; as before when nothing changed.
    pub version: u64,
    /// Accounts that changed, as they are now.
    pub accounts: Vec<Account>,
    /// Groups that changed, as they are now.
    pub groups: Vec<Group>,
    /// Index of each change that was not made, and why.
    pub refused: Vec<(usize, Refusal)>,
}

impl Applied {
    /// Whether anything changed.
    pub fn changed(&self) -> bool {
        !self.accounts.is_empty() || !self.groups.is_empty()
    }
}

/// Everything, as of one version; without tombstones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub version: u64,
    pub accounts: Vec<Account>,
    pub groups: Vec<Group>,
}

/// Where the directory keeps its state.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The secret that invented keys depend on: `fresh`, unless there is one already.
    async fn secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError>;
    /// Makes the changes in one transaction; those refused leave no trace, the others happen.
    async fn apply(&self, changes: Vec<Change>) -> Result<Applied, StoreError>;
    /// An account or its tombstone, and its keys.
    async fn find(&self, name: Name) -> Result<Option<(Account, KeySet)>, StoreError>;
    /// Accounts of a domain behind a localpart, in order, without tombstones.
    async fn page(
        &self,
        domain: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError>;
    /// Active accounts of a domain whose localparts begin so, behind a localpart, in order.
    async fn begin(
        &self,
        domain: String,
        prefix: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError>;
    /// Groups of a domain.
    async fn groups(&self, domain: String) -> Result<Vec<Group>, StoreError>;
    /// Everything, as of one moment.
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;
    /// Tombstones whose mailbox is not dropped yet.
    async fn pending_drops(&self, limit: usize) -> Result<Vec<Account>, StoreError>;
    /// The mailbox of that generation of the account is dropped.
    async fn dropped(&self, name: Name, generation: u64) -> Result<(), StoreError>;
    /// Acts that took effect and are not recorded yet, oldest first.
    async fn unrecorded(&self, limit: usize) -> Result<Vec<(i64, Act)>, StoreError>;
    /// An act is recorded.
    async fn recorded(&self, id: i64) -> Result<(), StoreError>;
}
