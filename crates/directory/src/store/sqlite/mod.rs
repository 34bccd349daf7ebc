//! The store on SQLite, `directory.db`: one thread writes, a few read (logins do not queue behind an
//! import); each change is durable when it is answered. It refuses to hold a transaction open between calls.

mod changes;
mod rows;

use std::path::Path;

use async_trait::async_trait;

use chancery_store::rusqlite::params;
use chancery_store::{Db, Migration, Migrations, Profile, ReadPool, StoreError, open};

use super::{Account, Act, Applied, Change, Group, KeySet, Name, Snapshot, Store};
use changes::apply;
use rows::{ACCOUNT, account, find, groups, keys, number, version};

const MIGRATIONS: Migrations = Migrations::new(&[
    Migration {
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
    },
    Migration {
        version: 2,
        name: "groups in rosters",
        sql: "
ALTER TABLE account_group ADD COLUMN label TEXT; -- NULL: not shown
",
    },
]);

/// Reading connections.
const READERS: usize = 2;

/// See the module. Cloning shares the connections.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: Db,
    readers: ReadPool,
}

impl SqliteStore {
    /// Opens the database, and makes it when it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = open(path, Profile::durable())?;
        MIGRATIONS.apply(&mut connection)?;
        let writer = Db::new("directory-db", connection)?;
        let readers = ReadPool::open("directory-read", path, Profile::durable(), READERS)?;
        Ok(Self { writer, readers })
    }

    /// Ends the threads, after what is queued.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.writer
            .call(move |db| {
                db.execute(
                    "INSERT OR IGNORE INTO secret VALUES (1, ?1)",
                    params![fresh],
                )?;
                Ok(db.query_row("SELECT value FROM secret", [], |row| row.get(0))?)
            })
            .await
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Applied, StoreError> {
        self.writer.call(move |db| apply(db, changes)).await
    }

    async fn find(&self, name: Name) -> Result<Option<(Account, KeySet)>, StoreError> {
        self.readers
            .call(move |db| {
                // One moment for both. Keys are looked for in any case: who does not exist must
                // not be answered sooner.
                let moment = db.transaction()?;
                let (account, keys) = (find(&moment, &name)?, keys(&moment, &name)?);
                Ok(account.map(|account| (account, keys)))
            })
            .await
    }

    async fn page(
        &self,
        domain: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        self.readers
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

    async fn begin(
        &self,
        domain: String,
        prefix: String,
        after: String,
        limit: usize,
    ) -> Result<Vec<Account>, StoreError> {
        self.readers
            .call(move |db| {
                // Both bounds, so that the index ends the search: no localpart has U+10FFFF.
                let mut query = db.prepare_cached(&format!(
                    "{ACCOUNT} WHERE domain = ?1 AND localpart >= ?2 \
                     AND localpart < ?2 || char(1114111) AND localpart > ?3 AND state = 1 \
                     ORDER BY localpart LIMIT ?4"
                ))?;
                let limit = number(limit as u64);
                let rows = query.query_map(params![domain, prefix, after, limit], account)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn groups(&self, domain: String) -> Result<Vec<Group>, StoreError> {
        self.readers.call(move |db| groups(db, Some(&domain))).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.readers
            .call(|db| {
                let moment = db.transaction()?;
                let mut query = moment.prepare_cached(&format!(
                    "{ACCOUNT} WHERE state <> 3 ORDER BY domain, localpart"
                ))?;
                let accounts = query.query_map([], account)?.collect::<Result<_, _>>()?;
                let (version, groups) = (version(&moment)?, groups(&moment, None)?);
                Ok(Snapshot {
                    version,
                    accounts,
                    groups,
                })
            })
            .await
    }

    async fn pending_drops(&self, limit: usize) -> Result<Vec<Account>, StoreError> {
        self.readers
            .call(move |db| {
                let mut query =
                    db.prepare_cached(&format!("{ACCOUNT} WHERE drop_pending = 1 LIMIT ?1"))?;
                let rows = query.query_map(params![number(limit as u64)], account)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn dropped(&self, name: Name, generation: u64) -> Result<(), StoreError> {
        self.writer
            .call(move |db| {
                db.prepare_cached(
                    "UPDATE account SET drop_pending = 0 \
                     WHERE domain = ?1 AND localpart = ?2 AND generation = ?3",
                )?
                .execute(params![
                    name.domain,
                    name.localpart,
                    number(generation)
                ])?;
                Ok(())
            })
            .await
    }

    async fn unrecorded(&self, limit: usize) -> Result<Vec<(i64, Act)>, StoreError> {
        self.readers
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
        self.writer
            .call(move |db| {
                db.execute("DELETE FROM unrecorded_act WHERE id = ?1", params![id])?;
                Ok(())
            })
            .await
    }
}
