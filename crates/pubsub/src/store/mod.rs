//! What the service keeps, as a trait. It refuses to check sizes and names (the service does); the
//! number of private elements is counted here, inside the transaction that adds one.

mod memory;
mod sqlite;

#[cfg(test)]
pub mod conformance;

use async_trait::async_trait;
use bytes::Bytes;

use chancery_store::StoreError;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// One element of private XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Private {
    pub ns: String,
    pub name: String,
    /// Empty removes it.
    pub xml: Bytes,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// There would be too many; nothing was changed.
    Full,
}

/// When an account's last session ended, and the text of its last `unavailable`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Last {
    pub at_ms: i64,
    pub status: String,
}

/// Where the service keeps its state.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// An element of private XML.
    async fn private(
        &self,
        owner: String,
        ns: String,
        name: String,
    ) -> Result<Option<Bytes>, StoreError>;
    /// Keeps these elements in one transaction, all or none; an account may have so many.
    async fn set_private(
        &self,
        owner: String,
        elements: Vec<Private>,
        limit: usize,
    ) -> Result<Kept, StoreError>;
    /// An account's vCard.
    async fn vcard(&self, owner: String) -> Result<Option<Bytes>, StoreError>;
    /// Replaces it; empty removes it.
    async fn set_vcard(&self, owner: String, xml: Bytes) -> Result<(), StoreError>;
    /// When it was last there.
    async fn last(&self, owner: String) -> Result<Option<Last>, StoreError>;
    /// Keeps what is later than what is known, in one transaction.
    async fn set_last(&self, all: Vec<(String, Last)>) -> Result<(), StoreError>;
    /// Removes everything of an account.
    async fn clear(&self, owner: String) -> Result<(), StoreError>;
}
