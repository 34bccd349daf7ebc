//! The store in memory, for tests. It refuses to last.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use parking_lot::Mutex;

use chancery_api::roster::Item;
use chancery_store::StoreError;

use super::blocks::listed;
use super::handshake::{Side, play};
use super::{
    Change, Changed, Handshake, Listed, Listing, Outcome, Pushed, REQUESTS_LIMIT,
    ROSTER_BYTES_LIMIT, Request, Roster, Shaken, Store, after, answers, bereft, removed, size,
    subject,
};

/// See the module.
#[derive(Default)]
pub struct MemoryStore(Mutex<HashMap<String, Owned>>);

#[derive(Clone, Default)]
struct Owned {
    version: u64,
    items: BTreeMap<String, Item>,
    requests: BTreeMap<String, Request>,
    blocks: Vec<String>,
}

impl Owned {
    /// Makes an item what it is to be.
    fn replace(&mut self, jid: &str, new: Option<Item>, items_limit: usize) -> Changed {
        let old = self.items.get(jid);
        let item = match new {
            None if old.is_none() => return Changed::NotFound,
            None => {
                self.items.remove(jid);
                removed(jid)
            }
            Some(item) if old == Some(&item) => {
                return Changed::No {
                    version: self.version,
                };
            }
            Some(item) => {
                let before: usize = self.items.values().map(size).sum();
                let bytes = before - old.map_or(0, size) + size(&item);
                let is_new = old.is_none();
                if bytes > ROSTER_BYTES_LIMIT || (is_new && self.items.len() >= items_limit) {
                    return Changed::Full;
                }
                self.items.insert(jid.to_owned(), item.clone());
                item
            }
        };
        self.version += 1;
        Changed::Yes {
            version: self.version,
            item,
        }
    }

    fn side(&self, other: &str) -> Side {
        Side {
            item: self.items.get(other).cloned(),
            asked: self.requests.contains_key(other),
        }
    }
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
        let new = after(&change, owned.items.get(&jid));
        if answers(&change) {
            owned.requests.remove(&jid);
        }
        Ok(owned.replace(&jid, new, items_limit))
    }

    async fn shake(&self, handshake: Handshake, items_limit: usize) -> Result<Outcome, StoreError> {
        let mut all = self.0.lock();
        let (owner, peer) = (&handshake.owner, &handshake.peer);
        let mut at_own = all.get(owner).cloned().unwrap_or_default();
        let mut at_peer = all.get(peer).cloned().unwrap_or_default();
        let (mut own, mut other) = (at_own.side(peer), at_peer.side(owner));
        if handshake.remove && own.item.is_none() {
            return Ok(Outcome::NotFound);
        }
        let room = at_peer.requests.len() < REQUESTS_LIMIT;
        let (delivered, answered) = play(&handshake, &mut own, &mut other, room);
        let mut shaken = Shaken {
            delivered,
            answered,
            ..Shaken::default()
        };
        let write = |at: &mut Owned, owner: &str, jid: &str, side: Side| {
            if side.asked {
                let asked = || handshake.request.clone();
                at.requests.entry(jid.to_owned()).or_insert_with(asked);
            } else {
                at.requests.remove(jid);
            }
            match at.replace(jid, side.item, items_limit) {
                Changed::Yes { version, item } => Ok(Some(Pushed {
                    owner: owner.to_owned(),
                    version,
                    item,
                })),
                Changed::No { .. } | Changed::NotFound => Ok(None),
                Changed::Full => Err(Outcome::Full),
            }
        };
        match write(&mut at_own, owner, peer, own) {
            Ok(pushed) => shaken.own = pushed,
            Err(full) => return Ok(full),
        }
        if handshake.heard {
            match write(&mut at_peer, peer, owner, other) {
                Ok(pushed) => shaken.peer = pushed,
                Err(full) => return Ok(full),
            }
            all.insert(peer.clone(), at_peer);
        }
        all.insert(owner.clone(), at_own);
        Ok(Outcome::Done(Box::new(shaken)))
    }

    async fn requests(&self, owner: String) -> Result<Vec<(String, Request)>, StoreError> {
        let all = self.0.lock();
        let waiting = all.get(&owner).map(|owned| &owned.requests);
        let pair = |(jid, request): (&String, &Request)| (jid.clone(), request.clone());
        Ok(waiting.into_iter().flatten().map(pair).collect())
    }

    async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        let all = self.0.lock();
        let pairs = |(owner, owned): (&String, &Owned)| {
            let pair = |jid: &String| (owner.clone(), jid.clone());
            owned.blocks.iter().map(pair).collect::<Vec<_>>()
        };
        let mut lists: Vec<_> = all.iter().flat_map(pairs).collect();
        lists.sort();
        Ok(lists)
    }

    async fn blocks_of(&self, owner: String) -> Result<Vec<String>, StoreError> {
        let all = self.0.lock();
        Ok(all
            .get(&owner)
            .map(|owned| owned.blocks.clone())
            .unwrap_or_default())
    }

    async fn list(
        &self,
        owner: String,
        listing: Listing,
        limit: usize,
    ) -> Result<Listed, StoreError> {
        let mut all = self.0.lock();
        let owned = all.entry(owner).or_default();
        let listed = listed(owned.blocks.clone(), &listing, limit);
        if let Listed::Yes(now) = &listed {
            owned.blocks.clone_from(now);
        }
        Ok(listed)
    }

    async fn clear(&self, owner: String) -> Result<Vec<Pushed>, StoreError> {
        let mut all = self.0.lock();
        if let Some(owned) = all.get_mut(&owner) {
            owned.version += 1;
            owned.items.clear();
            owned.requests.clear();
            owned.blocks.clear();
        }
        let mut pushed = Vec::new();
        for (other, owned) in all.iter_mut() {
            owned.requests.remove(&owner);
            if let Some(left) = owned.items.get(&owner).and_then(bereft) {
                owned.items.insert(owner.clone(), left.clone());
                owned.version += 1;
                pushed.push(Pushed {
                    owner: other.clone(),
                    version: owned.version,
                    item: left,
                });
            }
        }
        pushed.sort_by(|one, two| one.owner.cmp(&two.owner));
        Ok(pushed)
    }
}
