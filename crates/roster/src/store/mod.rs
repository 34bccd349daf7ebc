//! What the roster keeps, as a trait: one change of one roster, or of two that shake hands, in a
//! transaction, with the rosters' next versions. It refuses to check names and limits of single
//! items (the service does).

mod blocks;
mod handshake;
mod memory;
mod sqlite;

#[cfg(test)]
pub mod conformance;

use async_trait::async_trait;

use chancery_api::roster::{Item, Subscription};
use chancery_store::StoreError;

pub use blocks::{Listed, Listing};
pub use handshake::{Handshake, Outcome, Pushed, REQUESTS_LIMIT, Request, Shaken};
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Bytes of all items of one roster: it has to fit into one message.
pub const ROSTER_BYTES_LIMIT: usize = 2 * 1024 * 1024;

/// One change.
#[derive(Clone, Debug)]
pub enum Change {
    /// A client's: handle and groups only, the rest stays (RFC 6121 §2.1.2.5). A new item has
    /// subscription `none`. Of a `colleague` a new item holds only these.
    Edit {
        jid: String,
        name: String,
        groups: Vec<String>,
        colleague: bool,
    },
    /// An administrator's: the whole item.
    Put(Item),
    Remove {
        jid: String,
    },
}

/// A whole roster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roster {
    pub version: u64,
    /// In the order of their JIDs.
    pub items: Vec<Item>,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// The version now, and the item for the push; a removed one has subscription `remove`.
    Yes { version: u64, item: Item },
    /// It was so already.
    No { version: u64 },
    /// Nothing to remove.
    NotFound,
    /// A limit of the roster.
    Full,
}

/// Where the roster keeps its state.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// A roster; empty, with version 0, for who never had one.
    async fn load(&self, owner: String) -> Result<Roster, StoreError>;
    /// Makes one change of a roster that may have up to `items_limit` items.
    async fn change(
        &self,
        owner: String,
        change: Change,
        items_limit: usize,
    ) -> Result<Changed, StoreError>;
    /// Plays a handshake on both rosters at once; the owner's may have up to `items_limit` items.
    async fn shake(&self, handshake: Handshake, items_limit: usize) -> Result<Outcome, StoreError>;
    /// The requests that wait on an owner, with who asks, in the order of their JIDs.
    async fn requests(&self, owner: String) -> Result<Vec<(String, Request)>, StoreError>;
    /// All block lists: who, and whom, in this order.
    async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError>;
    /// Whom one account has blocked, in order.
    async fn blocks_of(&self, owner: String) -> Result<Vec<String>, StoreError>;
    /// Changes a block list that may have up to `limit` JIDs.
    async fn list(
        &self,
        owner: String,
        listing: Listing,
        limit: usize,
    ) -> Result<Listed, StoreError>;
    /// Removes all items, requests and blocks, and what the items of others stand for that name the
    /// owner, whether the owner has one for them or not: an approval given unasked (RFC 6121 §3.4)
    /// would let in whoever has the name next. The version goes on, so that a later roster of the
    /// same name has none that was given out before. Gives what has changed for the others, in
    /// their order.
    async fn clear(&self, owner: String) -> Result<Vec<Pushed>, StoreError>;
}

/// The item that a change makes of an old one; `None` for a removal.
fn after(change: &Change, old: Option<&Item>) -> Option<Item> {
    match change {
        Change::Remove { .. } => None,
        Change::Put(item) => Some(item.clone()),
        Change::Edit {
            jid,
            name,
            groups,
            colleague,
        } => {
            let fresh = || Item {
                jid: jid.clone(),
                subscription: Subscription::None.into(),
                colleague: *colleague,
                ..Item::default()
            };
            let old = old.cloned().unwrap_or_else(fresh);
            Some(Item {
                name: name.clone(),
                groups: groups.clone(),
                colleague: old.colleague && *colleague,
                ..old
            })
        }
    }
}

/// Whether a change answers what the other may have asked.
fn answers(change: &Change) -> bool {
    let subscription = match change {
        Change::Put(item) => item.subscription(),
        Change::Edit { .. } | Change::Remove { .. } => Subscription::None,
    };
    matches!(subscription, Subscription::From | Subscription::Both)
}

/// The JID that a change is about.
fn subject(change: &Change) -> &str {
    match change {
        Change::Edit { jid, .. } | Change::Remove { jid } => jid,
        Change::Put(item) => &item.jid,
    }
}

/// What an item counts towards [`ROSTER_BYTES_LIMIT`].
fn size(item: &Item) -> usize {
    let groups: usize = item.groups.iter().map(|group| group.len() + 8).sum();
    item.jid.len() + item.name.len() + groups + 32
}

/// What is left of an item when the account it names is gone; `None` when it stood for nothing.
fn bereft(item: &Item) -> Option<Item> {
    let left = Item {
        subscription: Subscription::None.into(),
        ask: false,
        approved: false,
        ..item.clone()
    };
    (left != *item).then_some(left)
}

/// What a push of a removal carries.
fn removed(jid: &str) -> Item {
    Item {
        jid: jid.to_owned(),
        subscription: Subscription::Remove.into(),
        ..Item::default()
    }
}
