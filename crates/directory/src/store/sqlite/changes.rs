//! Changes of the directory in one transaction. Each is checked before its first write, so that a
//! refused one leaves no trace while the others are made.

use std::collections::BTreeSet;

use chancery_store::StoreError;
use chancery_store::rusqlite::{self, Connection, Transaction, params};

use super::rows::{find, group, members, number, version, write_account, write_keys};
use crate::store::{
    Account, Applied, Change, GROUP_BYTES_LIMIT, GROUP_MEMBERS_LIMIT, GROUPS_LIMIT, KeySet, Name,
    Refusal, State,
};

/// A refused change, or a failed transaction.
enum Failure {
    Refused(Refusal),
    Store(StoreError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn live(db: &Connection, name: &Name) -> Result<Account, Failure> {
    match find(db, name)? {
        Some(account) if account.state != State::Deleted => Ok(account),
        _ => Err(Refusal::NotFound.into()),
    }
}

fn live_as_seen(db: &Connection, name: &Name, seen: u64) -> Result<Account, Failure> {
    let account = live(db, name)?;
    if account.version == seen {
        Ok(account)
    } else {
        Err(Refusal::Changed.into())
    }
}

/// A transaction under way: each change is checked before its first write, so that a refused one
/// leaves no trace.
struct Applying<'a> {
    db: &'a Transaction<'a>,
    next: u64,
    accounts: BTreeSet<Name>,
    groups: BTreeSet<(String, String)>,
}

impl Applying<'_> {
    fn one(&mut self, change: Change) -> Result<(), Failure> {
        match change {
            Change::Add { name, keys, seen } => self.add(&name, &keys, seen),
            Change::SetKeys { name, keys, seen } => {
                let mut account = live_as_seen(self.db, &name, seen)?;
                account.credential_version += 1;
                write_keys(self.db, &name, &keys)?;
                self.write(account)
            }
            Change::Enable { name, seen } => {
                let account = live_as_seen(self.db, &name, seen)?;
                if account.state == State::Active {
                    return Ok(());
                }
                self.write(Account {
                    state: State::Active,
                    ..account
                })
            }
            Change::Disable { name, act } => {
                let account = live(self.db, &name)?;
                if account.state == State::Disabled {
                    return Ok(());
                }
                self.db
                    .prepare_cached(
                        "INSERT INTO unrecorded_act (domain, actor, act, detail) \
                         VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![act.domain, act.actor, act.act, act.detail])?;
                self.write(Account {
                    state: State::Disabled,
                    ..account
                })
            }
            Change::Delete { name, seen } => self.delete(&name, seen),
            Change::CreateGroup { domain, group } => self.create_group(domain, group),
            Change::DeleteGroup { domain, group } => {
                let gone = self
                    .db
                    .prepare_cached("DELETE FROM account_group WHERE domain = ?1 AND name = ?2")?
                    .execute(params![domain, group])?;
                if gone == 0 {
                    return Err(Refusal::NotFound.into());
                }
                self.groups.insert((domain, group));
                Ok(())
            }
            Change::AddMembers {
                domain,
                group,
                members,
            } => self.add_members(domain, group, &members),
            Change::RemoveMembers {
                domain,
                group,
                members,
            } => {
                self.must_have(&domain, &group)?;
                let mut delete = self.db.prepare_cached(
                    "DELETE FROM group_member WHERE domain = ?1 AND name = ?2 AND localpart = ?3",
                )?;
                let mut gone = 0;
                for member in &members {
                    gone += delete.execute(params![domain, group, member])?;
                }
                if gone > 0 {
                    self.groups.insert((domain, group));
                }
                Ok(())
            }
            Change::LabelGroup {
                domain,
                group,
                label,
            } => self.label_group(domain, group, label.as_deref()),
        }
    }

    fn write(&mut self, account: Account) -> Result<(), Failure> {
        let account = Account {
            version: self.next,
            ..account
        };
        write_account(self.db, &account)?;
        self.accounts.insert(account.name);
        Ok(())
    }

    fn add(&mut self, name: &Name, keys: &KeySet, seen: Option<u64>) -> Result<(), Failure> {
        let old = find(self.db, name)?;
        if let Some(old) = &old {
            if old.state != State::Deleted {
                return Err(Refusal::Exists.into());
            }
            if old.drop_pending {
                return Err(Refusal::DropPending.into());
            }
        }
        let now = old.as_ref().map_or(0, |old| old.version);
        if seen.is_some_and(|seen| seen != now) {
            return Err(Refusal::Changed.into());
        }
        let account = Account {
            name: name.clone(),
            state: State::Active,
            credential_version: old.map_or(1, |old| old.credential_version + 1),
            generation: self.next,
            version: self.next,
            drop_pending: false,
        };
        self.write(account)?;
        Ok(write_keys(self.db, name, keys)?)
    }

    fn delete(&mut self, name: &Name, seen: u64) -> Result<(), Failure> {
        let account = live_as_seen(self.db, name, seen)?;
        let mut query = self
            .db
            .prepare_cached("SELECT name FROM group_member WHERE domain = ?1 AND localpart = ?2")?;
        let rows = query.query_map(params![name.domain, name.localpart], |row| row.get(0))?;
        for group in rows {
            self.groups.insert((name.domain.clone(), group?));
        }
        self.db
            .prepare_cached("DELETE FROM group_member WHERE domain = ?1 AND localpart = ?2")?
            .execute(params![name.domain, name.localpart])?;
        write_keys(self.db, name, &KeySet::default())?;
        self.write(Account {
            state: State::Deleted,
            drop_pending: true,
            ..account
        })
    }

    fn has_group(&self, domain: &str, group: &str) -> Result<bool, StoreError> {
        let mut query = self
            .db
            .prepare_cached("SELECT 1 FROM account_group WHERE domain = ?1 AND name = ?2")?;
        Ok(query.exists(params![domain, group])?)
    }

    fn must_have(&self, domain: &str, group: &str) -> Result<(), Failure> {
        if self.has_group(domain, group)? {
            Ok(())
        } else {
            Err(Refusal::NotFound.into())
        }
    }

    fn create_group(&mut self, domain: String, group: String) -> Result<(), Failure> {
        if self.has_group(&domain, &group)? {
            return Err(Refusal::Exists.into());
        }
        let groups: i64 = self
            .db
            .prepare_cached("SELECT count(*) FROM account_group WHERE domain = ?1")?
            .query_row(params![domain], |row| row.get(0))?;
        if groups >= number(GROUPS_LIMIT as u64) {
            return Err(Refusal::Full.into());
        }
        self.db
            .prepare_cached("INSERT INTO account_group (domain, name) VALUES (?1, ?2)")?
            .execute(params![domain, group])?;
        self.groups.insert((domain, group));
        Ok(())
    }

    fn label_group(
        &mut self,
        domain: String,
        group: String,
        label: Option<&str>,
    ) -> Result<(), Failure> {
        self.must_have(&domain, &group)?;
        let changed = self
            .db
            .prepare_cached(
                "UPDATE account_group SET label = ?3 \
                 WHERE domain = ?1 AND name = ?2 AND label IS NOT ?3",
            )?
            .execute(params![domain, group, label])?;
        if changed > 0 {
            self.groups.insert((domain, group));
        }
        Ok(())
    }

    fn add_members(
        &mut self,
        domain: String,
        group: String,
        new: &[String],
    ) -> Result<(), Failure> {
        self.must_have(&domain, &group)?;
        for member in new {
            let name = Name {
                domain: domain.clone(),
                localpart: member.clone(),
            };
            live(self.db, &name).map_err(|failure| match failure {
                Failure::Refused(_) => Failure::Refused(Refusal::NoSuchMember),
                other => other,
            })?;
        }
        let old = members(self.db, &domain, &group)?;
        let mut all: BTreeSet<&String> = old.iter().collect();
        all.extend(new);
        let bytes: usize = all.iter().map(|member| member.len()).sum();
        if all.len() > GROUP_MEMBERS_LIMIT || bytes > GROUP_BYTES_LIMIT {
            return Err(Refusal::Full.into());
        }
        if all.len() == old.len() {
            return Ok(());
        }
        let mut insert = self
            .db
            .prepare_cached("INSERT OR IGNORE INTO group_member VALUES (?1, ?2, ?3)")?;
        for member in new {
            insert.execute(params![domain, group, member])?;
        }
        self.groups.insert((domain, group));
        Ok(())
    }
}

/// Makes the changes as one version.
pub fn apply(db: &mut Connection, changes: Vec<Change>) -> Result<Applied, StoreError> {
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let before = version(&transaction)?;
    let mut applying = Applying {
        db: &transaction,
        next: before + 1,
        accounts: BTreeSet::new(),
        groups: BTreeSet::new(),
    };
    let mut applied = Applied {
        version: before,
        ..Applied::default()
    };
    for (index, change) in changes.into_iter().enumerate() {
        match applying.one(change) {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) => applied.refused.push((index, refusal)),
            Err(Failure::Store(error)) => return Err(error),
        }
    }
    let Applying {
        next,
        accounts,
        groups,
        ..
    } = applying;
    for name in &accounts {
        applied.accounts.extend(find(&transaction, name)?);
    }
    for (domain, name) in groups {
        applied.groups.push(group(&transaction, domain, name)?);
    }
    if applied.changed() {
        applied.version = next;
        transaction.execute("UPDATE version SET value = ?1", params![number(next)])?;
    }
    transaction.commit()?;
    Ok(applied)
}
