//! The store on SQLite, `pubsub.db`: one thread writes, one reads; each change is durable when it is
//! answered. It refuses to hold a transaction open between calls.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use chancery_store::rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use chancery_store::{Db, Migration, Migrations, Profile, ReadPool, StoreError, open};

use super::{Kept, Last, Private, Store};

const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "private xml, vcards, last activity",
    sql: "
CREATE TABLE private (
  owner TEXT NOT NULL,
  ns TEXT NOT NULL,
  name TEXT NOT NULL,
  xml BLOB NOT NULL,
  PRIMARY KEY (owner, ns, name)
) WITHOUT ROWID;
CREATE TABLE vcard (
  owner TEXT PRIMARY KEY,
  xml BLOB NOT NULL
);
CREATE TABLE last (
  owner TEXT PRIMARY KEY,
  at_ms INTEGER NOT NULL,
  status TEXT NOT NULL
) WITHOUT ROWID;
",
}]);

/// See the module. Cloning shares the connections.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: Db,
    reader: ReadPool,
}

impl SqliteStore {
    /// Opens the database, and makes it when it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = open(path, Profile::durable())?;
        MIGRATIONS.apply(&mut connection)?;
        let writer = Db::new("pubsub-db", connection)?;
        let reader = ReadPool::open("pubsub-read", path, Profile::durable(), 1)?;
        Ok(Self { writer, reader })
    }

    /// Ends the threads, after what is queued.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// Runs a change in a transaction of its own; it is committed unless it says no.
    async fn change<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<(T, bool), StoreError> + Send + 'static,
    {
        self.writer
            .call(move |db| {
                let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let (done, keep) = work(&transaction)?;
                if keep {
                    transaction.commit()?;
                }
                Ok(done)
            })
            .await
    }
}

fn count(transaction: &Transaction<'_>, owner: &str) -> Result<usize, StoreError> {
    let mut query = transaction.prepare_cached("SELECT count(*) FROM private WHERE owner = ?1")?;
    let count: i64 = query.query_row(params![owner], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

#[async_trait]
impl Store for SqliteStore {
    async fn private(
        &self,
        owner: String,
        ns: String,
        name: String,
    ) -> Result<Option<Bytes>, StoreError> {
        self.reader
            .call(move |db| {
                let mut query = db.prepare_cached(
                    "SELECT xml FROM private WHERE owner = ?1 AND ns = ?2 AND name = ?3",
                )?;
                let found = query
                    .query_row(params![owner, ns, name], |row| row.get::<_, Vec<u8>>(0))
                    .optional()?;
                Ok(found.map(Bytes::from))
            })
            .await
    }

    async fn set_private(
        &self,
        owner: String,
        elements: Vec<Private>,
        limit: usize,
    ) -> Result<Kept, StoreError> {
        self.change(move |transaction| {
            let before = count(transaction, &owner)?;
            for Private { ns, name, xml } in elements {
                if xml.is_empty() {
                    transaction
                        .prepare_cached(
                            "DELETE FROM private WHERE owner = ?1 AND ns = ?2 AND name = ?3",
                        )?
                        .execute(params![owner, ns, name])?;
                } else {
                    transaction
                        .prepare_cached(
                            "INSERT INTO private VALUES (?1, ?2, ?3, ?4) \
                             ON CONFLICT DO UPDATE SET xml = excluded.xml",
                        )?
                        .execute(params![owner, ns, name, &xml[..]])?;
                }
            }
            let after = count(transaction, &owner)?;
            if after > limit && after > before {
                return Ok((Kept::Full, false));
            }
            Ok((Kept::Yes, true))
        })
        .await
    }

    async fn vcard(&self, owner: String) -> Result<Option<Bytes>, StoreError> {
        self.reader
            .call(move |db| {
                let mut query = db.prepare_cached("SELECT xml FROM vcard WHERE owner = ?1")?;
                let found = query
                    .query_row(params![owner], |row| row.get::<_, Vec<u8>>(0))
                    .optional()?;
                Ok(found.map(Bytes::from))
            })
            .await
    }

    async fn set_vcard(&self, owner: String, xml: Bytes) -> Result<(), StoreError> {
        self.change(move |transaction| {
            if xml.is_empty() {
                transaction.execute("DELETE FROM vcard WHERE owner = ?1", params![owner])?;
            } else {
                transaction
                    .prepare_cached(
                        "INSERT INTO vcard VALUES (?1, ?2) \
                         ON CONFLICT DO UPDATE SET xml = excluded.xml",
                    )?
                    .execute(params![owner, &xml[..]])?;
            }
            Ok(((), true))
        })
        .await
    }

    async fn last(&self, owner: String) -> Result<Option<Last>, StoreError> {
        self.reader
            .call(move |db| {
                let mut query =
                    db.prepare_cached("SELECT at_ms, status FROM last WHERE owner = ?1")?;
                let found = query.query_row(params![owner], |row| {
                    Ok(Last {
                        at_ms: row.get(0)?,
                        status: row.get(1)?,
                    })
                });
                Ok(found.optional()?)
            })
            .await
    }

    async fn set_last(&self, all: Vec<(String, Last)>) -> Result<(), StoreError> {
        self.change(move |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO last VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET \
                 at_ms = excluded.at_ms, status = excluded.status \
                 WHERE excluded.at_ms >= at_ms",
            )?;
            for (owner, last) in all {
                insert.execute(params![owner, last.at_ms, last.status])?;
            }
            Ok(((), true))
        })
        .await
    }

    async fn clear(&self, owner: String) -> Result<(), StoreError> {
        self.change(move |transaction| {
            for table in ["private", "vcard", "last"] {
                transaction.execute(
                    &format!("DELETE FROM {table} WHERE owner = ?1"),
                    params![owner],
                )?;
            }
            Ok(((), true))
        })
        .await
    }
}
