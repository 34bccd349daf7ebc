//! The store in memory, for tests. It refuses to last.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use parking_lot::Mutex;

use chancery_api::roster::Item;
use chancery_store::StoreError;

use super::{Change, Changed, ROSTER_BYTES_LIMIT, Roster, Store, after, removed, size, subject};

/// See the module.
#[derive(Default)]
pub struct MemoryStore(Mutex<HashMap<String, Owned>>);

#[derive(Default)]
struct Owned {
    version: u64,
    items: BTreeMap<String, Item>,
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, owner: String) -> Result<Roster, StoreError> {
        let all = self.0.lock();
        let roster = all.get(&owner).map(|owned| Roster {
            version: owned.version,
            items: owned.items.values().cloned().collect(),
        });
        Ok(roster.unwrap_or_default())
    }

    async fn change(
        &self,
        owner: String,
        change: Change,
        items_limit: usize,
    ) -> Result<Changed, StoreError> {
        let mut all = self.0.lock();
        let owned = all.entry(owner).or_default();
        let jid = subject(&change).to_owned();
        let old = owned.items.get(&jid);
        let new = after(&change, old);
        let item = match new {
            None if old.is_none() => return Ok(Changed::NotFound),
            None => {
                owned.items.remove(&jid);
                removed(&jid)
            }
            Some(item) if old == Some(&item) => {
                return Ok(Changed::No {
                    version: owned.version,
                });
            }
            Some(item) => {
                let before: usize = owned.items.values().map(size).sum();
                let bytes = before - old.map_or(0, size) + size(&item);
                let is_new = old.is_none();
                if bytes > ROSTER_BYTES_LIMIT || (is_new && owned.items.len() >= items_limit) {
                    return Ok(Changed::Full);
                }
                owned.items.insert(jid, item.clone());
                item
            }
        };
        owned.version += 1;
        Ok(Changed::Yes {
            version: owned.version,
            item,
        })
    }

    async fn clear(&self, owner: String) -> Result<(), StoreError> {
        if let Some(owned) = self.0.lock().get_mut(&owner) {
            owned.items.clear();
            owned.version += 1;
        }
        Ok(())
    }
}
