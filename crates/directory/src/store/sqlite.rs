//! The store on SQLite, `directory.db`: one thread writes and reads, each change is durable when it
//! is answered. It refuses to hold a transaction open between calls.

use std::collections::BTreeSet;
use std::path::Path;

use async_trait::async_trait;

use chancery_store::rusqlite::types::Type;
use chancery_store::rusqlite::{self, Connection, OptionalExtension, Row, Transaction, params};
use chancery_store::{Db, Migration, Migrations, Profile, StoreError, open};

use super::{
    Account, Act, Applied, Change, GROUP_BYTES_LIMIT, GROUP_MEMBERS_LIMIT, GROUPS_LIMIT, Group,
    KeySet, Keys, Mechanism, Name, Refusal, Snapshot, State, Store,
};

const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "accounts and groups",
    sql: "
CREATE TABLE secret (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
CREATE TABLE version (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL);
INSERT INTO version VALUES (1, 0);
CREATE TABLE account (
  domain TEXT NOT NULL,
  localpart TEXT NOT NULL,
  state INTEGER NOT NULL, -- 1 active, 2 disabled, 3 deleted
  credential_version INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  version INTEGER NOT NULL,
  drop_pending INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (domain, localpart)
) WITHOUT ROWID;
CREATE INDEX account_drop_pending ON account (drop_pending) WHERE drop_pending = 1;
CREATE TABLE scram_key (
  domain TEXT NOT NULL,
  localpart TEXT NOT NULL,
  hash INTEGER NOT NULL, -- 1 sha-1, 2 sha-256
  salt BLOB NOT NULL,
  iterations INTEGER NOT NULL,
  stored_key BLOB NOT NULL,
  server_key BLOB NOT NULL,
  PRIMARY KEY (domain, localpart, hash),
  FOREIGN KEY (domain, localpart) REFERENCES account
) WITHOUT ROWID;
CREATE TABLE account_group (
  domain TEXT NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (domain, name)
) WITHOUT ROWID;
CREATE TABLE group_member (
  domain TEXT NOT NULL,
  name TEXT NOT NULL,
  localpart TEXT NOT NULL,
  PRIMARY KEY (domain, name, localpart),
  FOREIGN KEY (domain, name) REFERENCES account_group ON DELETE CASCADE,
  FOREIGN KEY (domain, localpart) REFERENCES account
) WITHOUT ROWID;
CREATE INDEX group_member_of ON group_member (domain, localpart);
CREATE TABLE unrecorded_act (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  domain TEXT NOT NULL,
  actor TEXT NOT NULL,
  act TEXT NOT NULL,
  detail TEXT NOT NULL
);
",
}]);

const ACCOUNT: &str =
    "SELECT domain, localpart, state, credential_version, generation, version, drop_pending \
     FROM account";

/// See the module. Cloning shares the connection.
#[derive(Clone, Debug)]
pub struct SqliteStore(Db);

impl SqliteStore {
    /// Opens the database, and makes it when it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = open(path, Profile::durable())?;
        MIGRATIONS.apply(&mut connection)?;
        Db::new("directory-db", connection).map(Self)
    }

    /// Ends the thread, after what is queued.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

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

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn state(value: i64) -> Option<State> {
    match value {
        1 => Some(State::Active),
        2 => Some(State::Disabled),
        3 => Some(State::Deleted),
        _ => None,
    }
}

fn state_number(state: State) -> i64 {
    match state {
        State::Active => 1,
        State::Disabled => 2,
        State::Deleted => 3,
    }
}

fn hash_number(mechanism: Mechanism) -> i64 {
    match mechanism {
        Mechanism::Sha1 => 1,
        Mechanism::Sha256 => 2,
    }
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let known = state(row.get(2)?).ok_or_else(|| {
        let error = StoreError::Invalid("state of an account".to_owned());
        rusqlite::Error::FromSqlConversionFailure(2, Type::Integer, Box::new(error))
    })?;
    Ok(Account {
        name: Name { domain: row.get(0)?, localpart: row.get(1)? },
        state: known,
        credential_version: unsigned(row, 3)?,
        generation: unsigned(row, 4)?,
        version: unsigned(row, 5)?,
        drop_pending: row.get(6)?,
    })
}

fn find(db: &Connection, name: &Name) -> Result<Option<Account>, StoreError> {
    let mut query =
        db.prepare_cached(&format!("{ACCOUNT} WHERE domain = ?1 AND localpart = ?2"))?;
    Ok(query.query_row(params![name.domain, name.localpart], account).optional()?)
}

fn live(db: &Connection, name: &Name) -> Result<Account, Failure> {
    match find(db, name)? {
        Some(account) if account.state != State::Deleted => Ok(account),
        _ => Err(Refusal::NotFound.into()),
    }
}

fn live_as_seen(db: &Connection, name: &Name, seen: u64) -> Result<Account, Failure> {
    let account = live(db, name)?;
    if account.version == seen { Ok(account) } else { Err(Refusal::Changed.into()) }
}

fn version(db: &Connection) -> Result<u64, StoreError> {
    let mut query = db.prepare_cached("SELECT value FROM version")?;
    Ok(query.query_row([], |row| unsigned(row, 0))?)
}

fn keys(db: &Connection, name: &Name) -> Result<KeySet, StoreError> {
    let mut set = KeySet::default();
    let mut query = db.prepare_cached(
        "SELECT salt, iterations, stored_key, server_key FROM scram_key \
         WHERE domain = ?1 AND localpart = ?2 AND hash = ?3",
    )?;
    for mechanism in Mechanism::ALL {
        let wanted = params![name.domain, name.localpart, hash_number(mechanism)];
        let keys = query.query_row(wanted, |row| {
            Ok(Keys {
                salt: row.get(0)?,
                iterations: row.get(1)?,
                stored_key: row.get(2)?,
                server_key: row.get(3)?,
            })
        });
        if let Some(keys) = keys.optional()? {
            set.set(mechanism, keys);
        }
    }
    Ok(set)
}

fn write_keys(db: &Connection, name: &Name, keys: &KeySet) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM scram_key WHERE domain = ?1 AND localpart = ?2")?
        .execute(params![name.domain, name.localpart])?;
    let mut insert =
        db.prepare_cached("INSERT INTO scram_key VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    for mechanism in Mechanism::ALL {
        if let Some(keys) = keys.get(mechanism) {
            insert.execute(params![
                name.domain,
                name.localpart,
                hash_number(mechanism),
                keys.salt,
                keys.iterations,
                keys.stored_key,
                keys.server_key
            ])?;
        }
    }
    Ok(())
}

fn write_account(db: &Connection, account: &Account) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET \
         state = excluded.state, credential_version = excluded.credential_version, \
         generation = excluded.generation, version = excluded.version, \
         drop_pending = excluded.drop_pending",
    )?
    .execute(params![
        account.name.domain,
        account.name.localpart,
        state_number(account.state),
        number(account.credential_version),
        number(account.generation),
        number(account.version),
        account.drop_pending
    ])?;
    Ok(())
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
            Change::Add { name, keys, seen } => self.add(name, &keys, seen),
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
                self.write(Account { state: State::Active, ..account })
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
                self.write(Account { state: State::Disabled, ..account })
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
            Change::AddMembers { domain, group, members } => {
                self.add_members(domain, group, &members)
            }
            Change::RemoveMembers { domain, group, members } => {
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
        }
    }

    fn write(&mut self, account: Account) -> Result<(), Failure> {
        let account = Account { version: self.next, ..account };
        write_account(self.db, &account)?;
        self.accounts.insert(account.name);
        Ok(())
    }

    fn add(&mut self, name: Name, keys: &KeySet, seen: Option<u64>) -> Result<(), Failure> {
        let old = find(self.db, &name)?;
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
        Ok(write_keys(self.db, &name, keys)?)
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
        self.write(Account { state: State::Deleted, drop_pending: true, ..account })
    }

    fn has_group(&self, domain: &str, group: &str) -> Result<bool, StoreError> {
        let mut query =
            self.db.prepare_cached("SELECT 1 FROM account_group WHERE domain = ?1 AND name = ?2")?;
        Ok(query.exists(params![domain, group])?)
    }

    fn must_have(&self, domain: &str, group: &str) -> Result<(), Failure> {
        if self.has_group(domain, group)? { Ok(()) } else { Err(Refusal::NotFound.into()) }
    }

    fn create_group(&mut self, domain: String, group: String) -> Result<(), Failure> {
        if self.has_group(&domain, &group)? {
            return Err(Refusal::Exists.into());
        }
        let groups: usize = self
            .db
            .prepare_cached("SELECT count(*) FROM account_group WHERE domain = ?1")?
            .query_row(params![domain], |row| row.get(0))?;
        if groups >= GROUPS_LIMIT {
            return Err(Refusal::Full.into());
        }
        self.db
            .prepare_cached("INSERT INTO account_group VALUES (?1, ?2)")?
            .execute(params![domain, group])?;
        self.groups.insert((domain, group));
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
            let name = Name { domain: domain.clone(), localpart: member.clone() };
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
        let mut insert =
            self.db.prepare_cached("INSERT OR IGNORE INTO group_member VALUES (?1, ?2, ?3)")?;
        for member in new {
            insert.execute(params![domain, group, member])?;
        }
        self.groups.insert((domain, group));
        Ok(())
    }
}

fn members(db: &Connection, domain: &str, group: &str) -> Result<Vec<String>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT localpart FROM group_member WHERE domain = ?1 AND name = ?2 ORDER BY localpart",
    )?;
    let rows = query.query_map(params![domain, group], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn group(db: &Connection, domain: String, group: String) -> Result<Group, StoreError> {
    let mut query =
        db.prepare_cached("SELECT 1 FROM account_group WHERE domain = ?1 AND name = ?2")?;
    let deleted = !query.exists(params![domain, group])?;
    let members = members(db, &domain, &group)?;
    Ok(Group { domain, group, members, deleted })
}

fn groups(db: &Connection, domain: Option<&str>) -> Result<Vec<Group>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT domain, name FROM account_group WHERE ?1 IS NULL OR domain = ?1 \
         ORDER BY domain, name",
    )?;
    let rows = query.query_map(params![domain], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let names: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    names.into_iter().map(|(domain, name)| group(db, domain, name)).collect()
}

fn apply(db: &mut Connection, changes: Vec<Change>) -> Result<Applied, StoreError> {
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let before = version(&transaction)?;
    let mut applying = Applying {
        db: &transaction,
        next: before + 1,
        accounts: BTreeSet::new(),
        groups: BTreeSet::new(),
    };
    let mut applied = Applied { version: before, ..Applied::default() };
    for (index, change) in changes.into_iter().enumerate() {
        match applying.one(change) {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) => applied.refused.push((index, refusal)),
            Err(Failure::Store(error)) => return Err(error),
        }
    }
    let Applying { next, accounts, groups, .. } = applying;
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

#[async_trait]
impl Store for SqliteStore {
    async fn secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.0
            .call(move |db| {
                db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?1)", params![fresh])?;
                Ok(db.query_row("SELECT value FROM secret", [], |row| row.get(0))?)
            })
            .await
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Applied, StoreError> {
        self.0.call(move |db| apply(db, changes)).await
    }

    async fn find(&self, name: Name) -> Result<Option<(Account, KeySet)>, StoreError> {
        self.0
            .call(move |db| match find(db, &name)? {
                Some(account) => Ok(Some((account, keys(db, &name)?))),
                None => Ok(None),
            })
            .await
    }

    async fn page(
        &self,
        domain: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        self.0
            .call(move |db| {
                let mut query = db.prepare_cached(&format!(
                    "{ACCOUNT} WHERE domain = ?1 AND localpart > ?2 AND state <> 3 \
                     ORDER BY localpart LIMIT ?3"
                ))?;
                let limit = number(limit as u64);
                let rows = query.query_map(params![domain, after, limit], account)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn groups(&self, domain: String) -> Result<Vec<Group>, StoreError> {
        self.0.call(move |db| groups(db, Some(&domain))).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.0
            .call(|db| {
                let moment = db.transaction()?;
                let mut query = moment.prepare_cached(&format!(
                    "{ACCOUNT} WHERE state <> 3 ORDER BY domain, localpart"
                ))?;
                let accounts = query.query_map([], account)?.collect::<Result<_, _>>()?;
                let (version, groups) = (version(&moment)?, groups(&moment, None)?);
                Ok(Snapshot { version, accounts, groups })
            })
            .await
    }

    async fn pending_drops(&self, limit: usize) -> Result<Vec<Account>, StoreError> {
        self.0
            .call(move |db| {
                let mut query =
                    db.prepare_cached(&format!("{ACCOUNT} WHERE drop_pending = 1 LIMIT ?1"))?;
                let rows = query.query_map(params![number(limit as u64)], account)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn dropped(&self, name: Name, generation: u64) -> Result<(), StoreError> {
        self.0
            .call(move |db| {
                db.prepare_cached(
                    "UPDATE account SET drop_pending = 0 \
                     WHERE domain = ?1 AND localpart = ?2 AND generation = ?3",
                )?
                .execute(params![name.domain, name.localpart, number(generation)])?;
                Ok(())
            })
            .await
    }

    async fn unrecorded(&self, limit: usize) -> Result<Vec<(i64, Act)>, StoreError> {
        self.0
            .call(move |db| {
                let mut query = db.prepare_cached(
                    "SELECT id, domain, actor, act, detail FROM unrecorded_act ORDER BY id LIMIT ?1",
                )?;
                let rows = query.query_map(params![number(limit as u64)], |row| {
                    let (domain, actor) = (row.get(1)?, row.get(2)?);
                    let (act, detail) = (row.get(3)?, row.get(4)?);
                    Ok((row.get(0)?, Act { domain, actor, act, detail }))
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn recorded(&self, id: i64) -> Result<(), StoreError> {
        self.0
            .call(move |db| {
                db.execute("DELETE FROM unrecorded_act WHERE id = ?1", params![id])?;
                Ok(())
            })
            .await
    }
}
