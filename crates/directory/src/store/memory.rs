//! The store in memory: for tests and for a directory whose truth is elsewhere. It refuses to last.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use parking_lot::Mutex;

use chancery_store::StoreError;

use super::{
    Account, Act, Applied, Change, GROUP_BYTES_LIMIT, GROUP_MEMBERS_LIMIT, GROUPS_LIMIT, Group,
    KeySet, Name, Refusal, Snapshot, State, Store,
};

/// See the module.
#[derive(Default)]
pub struct MemoryStore(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    secret: Option<[u8; 32]>,
    version: u64,
    accounts: BTreeMap<Name, (Account, KeySet)>,
    groups: BTreeMap<(String, String), BTreeSet<String>>,
    /// Of the groups that rosters show.
    labels: BTreeMap<(String, String), String>,
    acts: BTreeMap<i64, Act>,
    last_act: i64,
}

/// What one change touched.
#[derive(Default)]
struct Touched {
    accounts: BTreeSet<Name>,
    groups: BTreeSet<(String, String)>,
}

impl Tables {
    fn live(&mut self, name: &Name) -> Result<&mut (Account, KeySet), Refusal> {
        match self.accounts.get_mut(name) {
            Some(entry) if entry.0.state != State::Deleted => Ok(entry),
            _ => Err(Refusal::NotFound),
        }
    }

    fn live_as_seen(&mut self, name: &Name, seen: u64) -> Result<&mut (Account, KeySet), Refusal> {
        let entry = self.live(name)?;
        if entry.0.version == seen {
            Ok(entry)
        } else {
            Err(Refusal::Changed)
        }
    }

    fn one(&mut self, change: Change, next: u64, touched: &mut Touched) -> Result<(), Refusal> {
        match change {
            Change::Add { name, keys, seen } => self.add(name, keys, seen, next, touched),
            Change::SetKeys { name, keys, seen } => {
                let (account, old) = self.live_as_seen(&name, seen)?;
                *old = keys;
                account.credential_version += 1;
                account.version = next;
                touched.accounts.insert(name);
                Ok(())
            }
            Change::Enable { name, seen } => {
                let (account, _) = self.live_as_seen(&name, seen)?;
                if account.state != State::Active {
                    account.state = State::Active;
                    account.version = next;
                    touched.accounts.insert(name);
                }
                Ok(())
            }
            Change::Disable { name, act } => {
                let (account, _) = self.live(&name)?;
                if account.state != State::Disabled {
                    account.state = State::Disabled;
                    account.version = next;
                    touched.accounts.insert(name);
                    self.last_act += 1;
                    self.acts.insert(self.last_act, act);
                }
                Ok(())
            }
            Change::Delete { name, seen } => {
                let (account, keys) = self.live_as_seen(&name, seen)?;
                *keys = KeySet::default();
                account.state = State::Deleted;
                account.version = next;
                account.drop_pending = true;
                for (key, members) in &mut self.groups {
                    if key.0 == name.domain && members.remove(&name.localpart) {
                        touched.groups.insert(key.clone());
                    }
                }
                touched.accounts.insert(name);
                Ok(())
            }
            Change::CreateGroup { domain, group } => self.create_group((domain, group), touched),
            Change::DeleteGroup { domain, group } => {
                let key = (domain, group);
                self.groups.remove(&key).ok_or(Refusal::NotFound)?;
                self.labels.remove(&key);
                touched.groups.insert(key);
                Ok(())
            }
            Change::AddMembers {
                domain,
                group,
                members,
            } => self.add_members((domain, group), members, touched),
            Change::RemoveMembers {
                domain,
                group,
                members,
            } => {
                let key = (domain, group);
                let old = self.groups.get_mut(&key).ok_or(Refusal::NotFound)?;
                let before = old.len();
                for member in &members {
                    old.remove(member);
                }
                if old.len() != before {
                    touched.groups.insert(key);
                }
                Ok(())
            }
            Change::LabelGroup {
                domain,
                group,
                label,
            } => {
                let key = (domain, group);
                if !self.groups.contains_key(&key) {
                    return Err(Refusal::NotFound);
                }
                let old = match label.clone() {
                    Some(label) => self.labels.insert(key.clone(), label),
                    None => self.labels.remove(&key),
                };
                if old != label {
                    touched.groups.insert(key);
                }
                Ok(())
            }
        }
    }

    fn add(
        &mut self,
        name: Name,
        keys: KeySet,
        seen: Option<u64>,
        next: u64,
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        let mut credential_version = 1;
        let mut now = 0;
        if let Some((old, _)) = self.accounts.get(&name) {
            if old.state != State::Deleted {
                return Err(Refusal::Exists);
            }
            if old.drop_pending {
                return Err(Refusal::DropPending);
            }
            credential_version = old.credential_version + 1;
            now = old.version;
        }
        if seen.is_some_and(|seen| seen != now) {
            return Err(Refusal::Changed);
        }
        let account = Account {
            name: name.clone(),
            state: State::Active,
            credential_version,
            generation: next,
            version: next,
            drop_pending: false,
        };
        self.accounts.insert(name.clone(), (account, keys));
        touched.accounts.insert(name);
        Ok(())
    }

    fn create_group(
        &mut self,
        key: (String, String),
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        if self.groups.contains_key(&key) {
            return Err(Refusal::Exists);
        }
        if self
            .groups
            .keys()
            .filter(|(domain, _)| *domain == key.0)
            .count()
            >= GROUPS_LIMIT
        {
            return Err(Refusal::Full);
        }
        self.groups.insert(key.clone(), BTreeSet::new());
        touched.groups.insert(key);
        Ok(())
    }

    fn add_members(
        &mut self,
        key: (String, String),
        members: Vec<String>,
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        if !self.groups.contains_key(&key) {
            return Err(Refusal::NotFound);
        }
        for member in &members {
            let name = Name {
                domain: key.0.clone(),
                localpart: member.clone(),
            };
            self.live(&name).map_err(|_| Refusal::NoSuchMember)?;
        }
        let old = self.groups.get_mut(&key).ok_or(Refusal::NotFound)?;
        let before = old.len();
        let mut new = old.clone();
        new.extend(members);
        let bytes: usize = new.iter().map(String::len).sum();
        if new.len() > GROUP_MEMBERS_LIMIT || bytes > GROUP_BYTES_LIMIT {
            return Err(Refusal::Full);
        }
        *old = new;
        if old.len() != before {
            touched.groups.insert(key);
        }
        Ok(())
    }

    fn group(&self, key: &(String, String)) -> Group {
        let members = self.groups.get(key);
        Group {
            domain: key.0.clone(),
            group: key.1.clone(),
            members: members.into_iter().flatten().cloned().collect(),
            deleted: members.is_none(),
            label: self.labels.get(key).cloned(),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        Ok(*self.0.lock().secret.get_or_insert(fresh))
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Applied, StoreError> {
        let mut tables = self.0.lock();
        let next = tables.version + 1;
        let mut applied = Applied::default();
        let mut touched = Touched::default();
        for (index, change) in changes.into_iter().enumerate() {
            if let Err(refusal) = tables.one(change, next, &mut touched) {
                applied.refused.push((index, refusal));
            }
        }
        for name in &touched.accounts {
            applied.accounts.extend(
                tables
                    .accounts
                    .get(name)
                    .map(|(account, _)| account.clone()),
            );
        }
        applied.groups = touched.groups.iter().map(|key| tables.group(key)).collect();
        if applied.changed() {
            tables.version = next;
        }
        applied.version = tables.version;
        Ok(applied)
    }

    async fn find(&self, name: Name) -> Result<Option<(Account, KeySet)>, StoreError> {
        Ok(self.0.lock().accounts.get(&name).cloned())
    }

    async fn page(
        &self,
        domain: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        let tables = self.0.lock();
        let live = tables
            .accounts
            .values()
            .map(|(account, _)| account)
            .filter(|account| {
                account.state != State::Deleted
                    && account.name.domain == domain
                    && account.name.localpart > after
            });
        Ok(live.take(limit).cloned().collect())
    }

    async fn begin(
        &self,
        domain: String,
        prefix: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        let tables = self.0.lock();
        let found = tables
            .accounts
            .values()
            .map(|(account, _)| account)
            .filter(|account| {
                account.state == State::Active
                    && account.name.domain == domain
                    && account.name.localpart.starts_with(&prefix)
                    && account.name.localpart > after
            });
        Ok(found.take(limit).cloned().collect())
    }

    async fn groups(&self, domain: String) -> Result<Vec<Group>, StoreError> {
        let tables = self.0.lock();
        let keys = tables.groups.keys().filter(|key| key.0 == domain);
        Ok(keys.map(|key| tables.group(key)).collect())
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let tables = self.0.lock();
        let accounts = tables.accounts.values().map(|(account, _)| account);
        Ok(Snapshot {
            version: tables.version,
            accounts: accounts
                .filter(|a| a.state != State::Deleted)
                .cloned()
                .collect(),
            groups: tables.groups.keys().map(|key| tables.group(key)).collect(),
        })
    }

    async fn pending_drops(&self, limit: usize) -> Result<Vec<Account>, StoreError> {
        let tables = self.0.lock();
        let accounts = tables.accounts.values().map(|(account, _)| account);
        Ok(accounts
            .filter(|account| account.drop_pending)
            .take(limit)
            .cloned()
            .collect())
    }

    async fn dropped(&self, name: Name, generation: u64) -> Result<(), StoreError> {
        if let Some((account, _)) = self.0.lock().accounts.get_mut(&name)
            && account.generation == generation
        {
            account.drop_pending = false;
        }
        Ok(())
    }

    async fn unrecorded(&self, limit: usize) -> Result<Vec<(i64, Act)>, StoreError> {
        let tables = self.0.lock();
        Ok(tables
            .acts
            .iter()
            .take(limit)
            .map(|(id, act)| (*id, act.clone()))
            .collect())
    }

    async fn recorded(&self, id: i64) -> Result<(), StoreError> {
        self.0.lock().acts.remove(&id);
        Ok(())
    }
}
