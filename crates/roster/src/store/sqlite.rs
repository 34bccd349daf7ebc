//! The store on SQLite, `roster.db`: one thread writes, one reads; each change is durable when it is
//! answered. It refuses to hold a transaction open between calls.

use std::path::Path;

use async_trait::async_trait;

use chancery_api::roster::{Item, Subscription};
use chancery_store::rusqlite::{self, Connection, OptionalExtension, Row, Transaction, params};
use chancery_store::{Db, Migration, Migrations, Profile, ReadPool, StoreError, open};

use super::blocks::listed;
use super::handshake::{Side, play};
use super::{
    Change, Changed, Handshake, Listed, Listing, Outcome, Pushed, REQUESTS_LIMIT,
    ROSTER_BYTES_LIMIT, Request, Roster, Shaken, Store, after, answers, bereft, removed, size,
    subject,
};

const MIGRATIONS: Migrations = Migrations::new(&[
    Migration {
        version: 1,
        name: "rosters and items",
        sql: "
CREATE TABLE roster (
  owner TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  items INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE item (
  owner TEXT NOT NULL REFERENCES roster,
  jid TEXT NOT NULL,
  name TEXT NOT NULL,
  subscription INTEGER NOT NULL, -- 1 none, 2 to, 3 from, 4 both
  ask INTEGER NOT NULL,
  approved INTEGER NOT NULL,
  groups TEXT NOT NULL, -- a JSON list
  PRIMARY KEY (owner, jid)
) WITHOUT ROWID;
",
    },
    Migration {
        version: 2,
        name: "requests that wait for an answer",
        sql: "
CREATE TABLE request (
  owner TEXT NOT NULL, -- who is asked
  jid TEXT NOT NULL, -- who asks
  stanza BLOB NOT NULL,
  policy_version INTEGER NOT NULL,
  PRIMARY KEY (owner, jid)
) WITHOUT ROWID;
CREATE INDEX request_by_jid ON request (jid);
",
    },
    Migration {
        version: 3,
        name: "block lists",
        sql: "
CREATE TABLE block (
  owner TEXT NOT NULL,
  jid TEXT NOT NULL,
  PRIMARY KEY (owner, jid)
) WITHOUT ROWID;
",
    },
    Migration {
        version: 4,
        name: "names of colleagues",
        sql: "
ALTER TABLE item ADD COLUMN colleague INTEGER NOT NULL DEFAULT 0;
",
    },
    Migration {
        version: 5,
        name: "items by whom they name",
        sql: "
CREATE INDEX item_by_jid ON item (jid);
",
    },
]);

const ITEM: &str = "SELECT jid, name, subscription, ask, approved, groups, colleague FROM item";

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
        let writer = Db::new("roster-db", connection)?;
        let reader = ReadPool::open("roster-read", path, Profile::durable(), 1)?;
        Ok(Self { writer, reader })
    }

    /// Ends the threads, after what is queued.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// The roster's row.
#[derive(Default)]
struct Totals {
    version: i64,
    items: i64,
    bytes: i64,
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn version(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Invalid("version of a roster".to_owned()))
}

fn totals(db: &Connection, owner: &str) -> Result<Totals, StoreError> {
    let mut query =
        db.prepare_cached("SELECT version, items, bytes FROM roster WHERE owner = ?1")?;
    let row = query.query_row(params![owner], |row| {
        Ok(Totals {
            version: row.get(0)?,
            items: row.get(1)?,
            bytes: row.get(2)?,
        })
    });
    Ok(row.optional()?.unwrap_or_default())
}

/// An item, its groups still in JSON.
fn item(row: &Row<'_>) -> rusqlite::Result<(Item, String)> {
    let item = Item {
        jid: row.get(0)?,
        name: row.get(1)?,
        subscription: row.get(2)?,
        ask: row.get(3)?,
        approved: row.get(4)?,
        groups: Vec::new(),
        colleague: row.get(6)?,
    };
    Ok((item, row.get(5)?))
}

fn whole((item, groups): (Item, String)) -> Result<Item, StoreError> {
    if item.subscription() == Subscription::Unspecified {
        return Err(StoreError::Invalid(
            "subscription of a roster item".to_owned(),
        ));
    }
    let groups = serde_json::from_str(&groups)
        .map_err(|_| StoreError::Invalid("groups of a roster item".to_owned()))?;
    Ok(Item { groups, ..item })
}

fn find(db: &Connection, owner: &str, jid: &str) -> Result<Option<Item>, StoreError> {
    let mut query = db.prepare_cached(&format!("{ITEM} WHERE owner = ?1 AND jid = ?2"))?;
    let found = query.query_row(params![owner, jid], item).optional()?;
    found.map(whole).transpose()
}

fn write_totals(db: &Connection, owner: &str, totals: &Totals) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO roster VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET \
         version = excluded.version, items = excluded.items, bytes = excluded.bytes",
    )?
    .execute(params![owner, totals.version, totals.items, totals.bytes])?;
    Ok(())
}

fn write_item(db: &Connection, owner: &str, item: &Item) -> Result<(), StoreError> {
    let groups = serde_json::to_string(&item.groups)
        .map_err(|_| StoreError::Invalid("groups of a roster item".to_owned()))?;
    db.prepare_cached(
        "INSERT INTO item VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO UPDATE SET \
         name = excluded.name, subscription = excluded.subscription, ask = excluded.ask, \
         approved = excluded.approved, groups = excluded.groups, colleague = excluded.colleague",
    )?
    .execute(params![
        owner,
        item.jid,
        item.name,
        item.subscription,
        item.ask,
        item.approved,
        groups,
        item.colleague
    ])?;
    Ok(())
}

fn apply(
    transaction: &Transaction<'_>,
    owner: &str,
    change: &Change,
    items_limit: usize,
) -> Result<Changed, StoreError> {
    let jid = subject(change);
    let old = find(transaction, owner, jid)?;
    let new = after(change, old.as_ref());
    if answers(change) {
        transaction
            .prepare_cached("DELETE FROM request WHERE owner = ?1 AND jid = ?2")?
            .execute(params![owner, jid])?;
    }
    replace(transaction, owner, jid, old.as_ref(), new, items_limit)
}

/// Makes an item what it is to be.
fn replace(
    transaction: &Transaction<'_>,
    owner: &str,
    jid: &str,
    old: Option<&Item>,
    new: Option<Item>,
    items_limit: usize,
) -> Result<Changed, StoreError> {
    let mut totals = totals(transaction, owner)?;
    let item = match (new, old) {
        (None, None) => return Ok(Changed::NotFound),
        (None, Some(old)) => {
            transaction
                .prepare_cached("DELETE FROM item WHERE owner = ?1 AND jid = ?2")?
                .execute(params![owner, jid])?;
            totals.items -= 1;
            totals.bytes -= number(size(old));
            removed(jid)
        }
        (Some(new), Some(old)) if new == *old => {
            return Ok(Changed::No {
                version: version(totals.version)?,
            });
        }
        (Some(new), old) => {
            totals.bytes += number(size(&new)) - number(old.map_or(0, size));
            totals.items += i64::from(old.is_none());
            let too_many = old.is_none() && totals.items > number(items_limit);
            if too_many || totals.bytes > number(ROSTER_BYTES_LIMIT) {
                return Ok(Changed::Full);
            }
            new
        }
    };
    totals.version += 1;
    write_totals(transaction, owner, &totals)?;
    if item.subscription() != Subscription::Remove {
        write_item(transaction, owner, &item)?;
    }
    Ok(Changed::Yes {
        version: version(totals.version)?,
        item,
    })
}

fn side(db: &Connection, owner: &str, other: &str) -> Result<Side, StoreError> {
    let mut query = db.prepare_cached("SELECT 1 FROM request WHERE owner = ?1 AND jid = ?2")?;
    Ok(Side {
        item: find(db, owner, other)?,
        asked: query.exists(params![owner, other])?,
    })
}

fn requests_of(db: &Connection, owner: &str) -> Result<usize, StoreError> {
    let mut query = db.prepare_cached("SELECT count(*) FROM request WHERE owner = ?1")?;
    let count: i64 = query.query_row(params![owner], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Writes one side. `Err` in the result: a limit.
fn write_side(
    transaction: &Transaction<'_>,
    (owner, jid): (&str, &str),
    (before, after): (&Side, Side),
    request: &Request,
    items_limit: usize,
) -> Result<Result<Option<Pushed>, Outcome>, StoreError> {
    if after.asked && !before.asked {
        transaction
            .prepare_cached("INSERT INTO request VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                owner,
                jid,
                request.stanza,
                request.policy_version.cast_signed()
            ])?;
    } else if before.asked && !after.asked {
        transaction
            .prepare_cached("DELETE FROM request WHERE owner = ?1 AND jid = ?2")?
            .execute(params![owner, jid])?;
    }
    let old = before.item.as_ref();
    Ok(
        match replace(transaction, owner, jid, old, after.item, items_limit)? {
            Changed::Yes { version, item } => Ok(Some(Pushed {
                owner: owner.to_owned(),
                version,
                item,
            })),
            Changed::No { .. } | Changed::NotFound => Ok(None),
            Changed::Full => Err(Outcome::Full),
        },
    )
}

fn shake(
    transaction: &Transaction<'_>,
    handshake: &Handshake,
    items_limit: usize,
) -> Result<Outcome, StoreError> {
    let (owner, peer) = (handshake.owner.as_str(), handshake.peer.as_str());
    let own = side(transaction, owner, peer)?;
    let other = side(transaction, peer, owner)?;
    if handshake.remove && own.item.is_none() {
        return Ok(Outcome::NotFound);
    }
    let room = requests_of(transaction, peer)? < REQUESTS_LIMIT;
    let (mut own_after, mut other_after) = (own.clone(), other.clone());
    let (delivered, answered) = play(handshake, &mut own_after, &mut other_after, room);
    let mut shaken = Shaken {
        delivered,
        answered,
        ..Shaken::default()
    };
    let request = &handshake.request;
    let sides = (&own, own_after);
    match write_side(transaction, (owner, peer), sides, request, items_limit)? {
        Ok(pushed) => shaken.own = pushed,
        Err(full) => return Ok(full),
    }
    if handshake.heard {
        let sides = (&other, other_after);
        match write_side(transaction, (peer, owner), sides, request, items_limit)? {
            Ok(pushed) => shaken.peer = pushed,
            Err(full) => return Ok(full),
        }
    }
    Ok(Outcome::Done(Box::new(shaken)))
}

fn blocks_of(db: &Connection, owner: &str) -> Result<Vec<String>, StoreError> {
    let mut query = db.prepare_cached("SELECT jid FROM block WHERE owner = ?1 ORDER BY jid")?;
    let rows = query.query_map(params![owner], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn list(
    transaction: &Transaction<'_>,
    owner: &str,
    listing: &Listing,
    limit: usize,
) -> Result<Listed, StoreError> {
    let listed = listed(blocks_of(transaction, owner)?, listing, limit);
    if let Listed::Yes(now) = &listed {
        transaction.execute("DELETE FROM block WHERE owner = ?1", params![owner])?;
        let mut insert = transaction.prepare_cached("INSERT INTO block VALUES (?1, ?2)")?;
        for jid in now {
            insert.execute(params![owner, jid])?;
        }
    }
    Ok(listed)
}

fn clear(transaction: &Transaction<'_>, owner: &str) -> Result<Vec<Pushed>, StoreError> {
    transaction.execute("DELETE FROM item WHERE owner = ?1", params![owner])?;
    transaction.execute("DELETE FROM block WHERE owner = ?1", params![owner])?;
    transaction.execute(
        "DELETE FROM request WHERE owner = ?1 OR jid = ?1",
        params![owner],
    )?;
    transaction.execute(
        "UPDATE roster SET version = version + 1, items = 0, bytes = 0 WHERE owner = ?1",
        params![owner],
    )?;
    let others: Vec<String> = transaction
        .prepare_cached("SELECT owner FROM item WHERE jid = ?1 ORDER BY owner")?
        .query_map(params![owner], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut pushed = Vec::new();
    for other in others {
        let Some(old) = find(transaction, &other, owner)? else {
            continue;
        };
        let Some(left) = bereft(&old) else { continue };
        // It gets no longer: no limit can stop it.
        let changed = replace(
            transaction,
            &other,
            owner,
            Some(&old),
            Some(left),
            usize::MAX,
        )?;
        if let Changed::Yes { version, item } = changed {
            pushed.push(Pushed {
                owner: other,
                version,
                item,
            });
        }
    }
    Ok(pushed)
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self, owner: String) -> Result<Roster, StoreError> {
        self.reader
            .call(move |db| {
                // One moment for the version and the items.
                let moment = db.transaction()?;
                let totals = totals(&moment, &owner)?;
                let mut query =
                    moment.prepare_cached(&format!("{ITEM} WHERE owner = ?1 ORDER BY jid"))?;
                let rows = query.query_map(params![owner], item)?;
                let items = rows
                    .map(|row| whole(row?))
                    .collect::<Result<_, StoreError>>()?;
                Ok(Roster {
                    version: version(totals.version)?,
                    items,
                })
            })
            .await
    }

    async fn change(
        &self,
        owner: String,
        change: Change,
        items_limit: usize,
    ) -> Result<Changed, StoreError> {
        self.writer
            .call(move |db| {
                let transaction =
                    db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let changed = apply(&transaction, &owner, &change, items_limit)?;
                transaction.commit()?;
                Ok(changed)
            })
            .await
    }

    async fn shake(&self, handshake: Handshake, items_limit: usize) -> Result<Outcome, StoreError> {
        self.writer
            .call(move |db| {
                let transaction =
                    db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let outcome = shake(&transaction, &handshake, items_limit)?;
                // Else nothing at all has happened.
                if matches!(outcome, Outcome::Done(_)) {
                    transaction.commit()?;
                }
                Ok(outcome)
            })
            .await
    }

    async fn requests(&self, owner: String) -> Result<Vec<(String, Request)>, StoreError> {
        self.reader
            .call(move |db| {
                let mut query = db.prepare_cached(
                    "SELECT jid, stanza, policy_version FROM request WHERE owner = ?1 ORDER BY jid",
                )?;
                let rows = query.query_map(params![owner], |row| {
                    let version: i64 = row.get(2)?;
                    let request = Request {
                        stanza: row.get(1)?,
                        policy_version: version.cast_unsigned(),
                    };
                    Ok((row.get(0)?, request))
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.reader
            .call(move |db| {
                let mut query =
                    db.prepare_cached("SELECT owner, jid FROM block ORDER BY owner, jid")?;
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn blocks_of(&self, owner: String) -> Result<Vec<String>, StoreError> {
        self.reader.call(move |db| blocks_of(db, &owner)).await
    }

    async fn list(
        &self,
        owner: String,
        listing: Listing,
        limit: usize,
    ) -> Result<Listed, StoreError> {
        self.writer
            .call(move |db| {
                let transaction =
                    db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let listed = list(&transaction, &owner, &listing, limit)?;
                transaction.commit()?;
                Ok(listed)
            })
            .await
    }

    async fn clear(&self, owner: String) -> Result<Vec<Pushed>, StoreError> {
        self.writer
            .call(move |db| {
                let transaction =
                    db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let pushed = clear(&transaction, &owner)?;
                transaction.commit()?;
                Ok(pushed)
            })
            .await
    }
}
