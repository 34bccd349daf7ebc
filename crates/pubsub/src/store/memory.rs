//! The store in memory, for tests. It refuses to last.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use chancery_store::StoreError;

use super::{Kept, Last, Private, Store};

/// See the module.
#[derive(Default)]
pub struct MemoryStore(Mutex<HashMap<String, Owned>>);

#[derive(Default)]
struct Owned {
    private: BTreeMap<(String, String), Bytes>,
    vcard: Option<Bytes>,
    last: Option<Last>,
}

#[async_trait]
impl Store for MemoryStore {
    async fn private(
        &self,
        owner: String,
        ns: String,
        name: String,
    ) -> Result<Option<Bytes>, StoreError> {
        let all = self.0.lock();
        let found = all
            .get(&owner)
            .and_then(|owned| owned.private.get(&(ns, name)));
        Ok(found.cloned())
    }

    async fn set_private(
        &self,
        owner: String,
        elements: Vec<Private>,
        limit: usize,
    ) -> Result<Kept, StoreError> {
        let mut all = self.0.lock();
        let owned = all.entry(owner).or_default();
        let mut private = owned.private.clone();
        for Private { ns, name, xml } in elements {
            if xml.is_empty() {
                private.remove(&(ns, name));
            } else {
                private.insert((ns, name), xml);
            }
        }
        if private.len() > limit && private.len() > owned.private.len() {
            return Ok(Kept::Full);
        }
        owned.private = private;
        Ok(Kept::Yes)
    }

    async fn vcard(&self, owner: String) -> Result<Option<Bytes>, StoreError> {
        let all = self.0.lock();
        Ok(all.get(&owner).and_then(|owned| owned.vcard.clone()))
    }

    async fn set_vcard(&self, owner: String, xml: Bytes) -> Result<(), StoreError> {
        self.0.lock().entry(owner).or_default().vcard = (!xml.is_empty()).then_some(xml);
        Ok(())
    }

    async fn last(&self, owner: String) -> Result<Option<Last>, StoreError> {
        let all = self.0.lock();
        Ok(all.get(&owner).and_then(|owned| owned.last.clone()))
    }

    async fn set_last(&self, new: Vec<(String, Last)>) -> Result<(), StoreError> {
        let mut all = self.0.lock();
        for (owner, last) in new {
            let owned = all.entry(owner).or_default();
            if owned
                .last
                .as_ref()
                .is_none_or(|old| old.at_ms <= last.at_ms)
            {
                owned.last = Some(last);
            }
        }
        Ok(())
    }

    async fn clear(&self, owner: String) -> Result<(), StoreError> {
        self.0.lock().remove(&owner);
        Ok(())
    }
}
