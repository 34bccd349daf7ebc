//! The log's tables and statements: records, narrow entries, mailboxes, the head. Owns the schema;
//! refuses to seal, to order, or to decide. The shard's number is part of every key.

use std::sync::Arc;

use chancery_evidence::Hash;
use chancery_store::{Migration, Migrations, StoreError};
use rusqlite::{Connection, OptionalExtension, params};

use crate::entry::Entry;
use crate::mailbox::{MailboxRow, MailboxSave};

/// Bits of a key below the shard's number: a shard has room for 2^48 records.
const NUMBER_BITS: u32 = 48;
/// Entries above its row that are read of one mailbox at a time.
const TAIL_ENTRIES: i64 = 1_000_000;

const SCHEMA: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "records, entries, mailboxes, head",
    sql: "
        CREATE TABLE record (key INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
        CREATE TABLE mailbox (
            id INTEGER PRIMARY KEY,
            shard INTEGER NOT NULL,
            jid TEXT NOT NULL,
            floor INTEGER NOT NULL,
            upto INTEGER NOT NULL,
            open BLOB NOT NULL,
            UNIQUE (shard, jid)
        ) STRICT;
        CREATE TABLE entry (
            mailbox INTEGER NOT NULL,
            key INTEGER NOT NULL,
            entry INTEGER NOT NULL,
            PRIMARY KEY (mailbox, key)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE head (
            shard INTEGER PRIMARY KEY,
            epoch INTEGER NOT NULL,
            number INTEGER NOT NULL,
            hash BLOB NOT NULL
        ) STRICT;
    ",
}]);

/// Where a shard's log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) hash: Hash,
}

/// One group, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// Stored records, from `first` without gaps.
    pub(crate) first: u64,
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) mailboxes: Vec<(i64, Arc<str>)>,
    /// Mailbox, number, entry.
    pub(crate) entries: Vec<(i64, u64, Entry)>,
    /// Mailboxes of which nothing up to the number is delivered again.
    pub(crate) floors: Vec<(i64, u64)>,
    pub(crate) hash: Hash,
}

/// A shard's log, as its one writer sees it. Every backend passes `store_suite`.
pub(crate) trait LogStore {
    /// Takes the shard over: raises its epoch. `None` in a store without this shard: it is made,
    /// with `genesis` in place of a hash.
    fn open(&mut self, genesis: Hash) -> Result<Head, StoreError>;
    /// Writes a group: all of it or nothing.
    fn append(&mut self, writing: &Writing) -> Result<(), StoreError>;
    /// Writes open sets.
    fn save(&mut self, saves: &[MailboxSave]) -> Result<(), StoreError>;
}

/// What readers ask, over a connection of their own.
pub(crate) trait LogReader {
    /// A mailbox with the entries above its row.
    fn mailbox(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError>;
    /// A record.
    fn record(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError>;
    /// Entries of a mailbox above `after`, up to `end`, in order.
    fn entries(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError>;
    /// The entry of a record in a mailbox.
    fn entry(&self, mailbox: i64, number: u64) -> Result<Option<Entry>, StoreError>;
    /// Records from `first` to `last`, at most `limit`, in order.
    fn records(
        &self,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
    /// The highest mailbox id; 0 without any.
    fn last_mailbox(&self) -> Result<i64, StoreError>;
    /// Where the log stands.
    fn head(&self) -> Result<Option<Head>, StoreError>;
}

/// A shard's tables in SQLite.
pub(crate) struct SqliteLog<C> {
    connection: C,
    shard: u32,
}

/// Brings the schema up to date.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    SCHEMA.apply(connection).map(drop)
}

impl<C> SqliteLog<C> {
    pub(crate) fn new(connection: C, shard: u32) -> Self {
        Self { connection, shard }
    }

    fn key(&self, number: u64) -> i64 {
        let number = number.min((1 << NUMBER_BITS) - 1);
        (u64::from(self.shard) << NUMBER_BITS | number).cast_signed()
    }
}

fn number(key: i64) -> u64 {
    key.cast_unsigned() & ((1 << NUMBER_BITS) - 1)
}

fn stored(number: u64) -> i64 {
    number.cast_signed()
}

impl LogStore for SqliteLog<Connection> {
    fn open(&mut self, genesis: Hash) -> Result<Head, StoreError> {
        let shard = self.shard;
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "INSERT INTO head (shard, epoch, number, hash) VALUES (?1, 1, 0, ?2)
             ON CONFLICT (shard) DO UPDATE SET epoch = epoch + 1",
            params![shard, genesis.as_slice()],
        )?;
        transaction.commit()?;
        self.reader()
            .head()?
            .ok_or_else(|| StoreError::Invalid("no head".to_owned()))
    }

    fn append(&mut self, writing: &Writing) -> Result<(), StoreError> {
        let shard = self.shard;
        let base = self.key(0);
        let transaction = self.connection.transaction()?;
        {
            let mut record =
                transaction.prepare_cached("INSERT INTO record (key, bytes) VALUES (?1, ?2)")?;
            for (number, bytes) in (writing.first..).zip(&writing.records) {
                record.execute(params![base | stored(number), bytes])?;
            }
            if !writing.mailboxes.is_empty() {
                let mut made = transaction.prepare_cached(
                    "INSERT INTO mailbox (id, shard, jid, floor, upto, open)
                     VALUES (?1, ?2, ?3, 0, 0, x'')",
                )?;
                for (id, jid) in &writing.mailboxes {
                    made.execute(params![id, shard, jid.as_ref()])?;
                }
            }
            let mut entry = transaction
                .prepare_cached("INSERT INTO entry (mailbox, key, entry) VALUES (?1, ?2, ?3)")?;
            for (mailbox, number, value) in &writing.entries {
                entry.execute(params![mailbox, base | stored(*number), value.stored()])?;
            }
            for (mailbox, floor) in &writing.floors {
                let mut raise = transaction.prepare_cached(
                    "UPDATE mailbox SET floor = ?2, upto = ?2, open = x'' WHERE id = ?1",
                )?;
                raise.execute(params![mailbox, stored(*floor)])?;
            }
            let last = (writing.first + writing.records.len() as u64).saturating_sub(1);
            let mut head = transaction.prepare_cached(
                "UPDATE head SET number = ?2, hash = ?3 WHERE shard = ?1 AND number = ?4",
            )?;
            let before = stored(writing.first.saturating_sub(1));
            let hash = writing.hash.as_slice();
            if head.execute(params![shard, stored(last), hash, before])? != 1 {
                return Err(StoreError::Invalid(
                    "the head is not where it was left".to_owned(),
                ));
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn save(&mut self, saves: &[MailboxSave]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        {
            let mut save = transaction.prepare_cached(
                "UPDATE mailbox SET floor = max(floor, ?2), upto = ?3, open = ?4 WHERE id = ?1",
            )?;
            for row in saves {
                save.execute(params![
                    row.id,
                    stored(row.floor),
                    stored(row.upto),
                    row.open
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
impl SqliteLog<Connection> {
    /// A disk of this many pages.
    pub(crate) fn limit_pages(&self, pages: i64) -> Result<(), StoreError> {
        self.connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }
}

impl SqliteLog<Connection> {
    /// The same log, read through this connection.
    pub(crate) fn reader(&self) -> SqliteLog<&Connection> {
        SqliteLog {
            connection: &self.connection,
            shard: self.shard,
        }
    }
}

impl LogReader for SqliteLog<&Connection> {
    fn mailbox(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT id, floor, upto, open FROM mailbox WHERE shard = ?1 AND jid = ?2",
        )?;
        let row = find
            .query_row(params![self.shard, jid], |row| {
                Ok(MailboxRow {
                    id: row.get(0)?,
                    floor: row.get::<_, i64>(1)?.cast_unsigned(),
                    upto: row.get::<_, i64>(2)?.cast_unsigned(),
                    open: row.get(3)?,
                    ..MailboxRow::default()
                })
            })
            .optional()?;
        let Some(mut row) = row else { return Ok(None) };
        let limit = usize::try_from(TAIL_ENTRIES).unwrap_or(usize::MAX);
        row.entries = self.entries(row.id, row.upto, u64::MAX, limit)?;
        row.last = match row.entries.last() {
            Some((number, _)) => *number,
            None => {
                let mut last = self
                    .connection
                    .prepare_cached("SELECT max(key) FROM entry WHERE mailbox = ?1")?;
                last.query_row([row.id], |row| row.get::<_, Option<i64>>(0))?
                    .map_or(0, number)
            }
        };
        Ok(Some(row))
    }

    fn record(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let mut find = self
            .connection
            .prepare_cached("SELECT bytes FROM record WHERE key = ?1")?;
        Ok(find
            .query_row([self.key(number)], |row| row.get(0))
            .optional()?)
    }

    fn entries(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT key, entry FROM entry WHERE mailbox = ?1 AND key > ?2 AND key <= ?3
             ORDER BY key LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = find.query_map(
            params![mailbox, self.key(after), self.key(end), limit],
            |row| Ok((number(row.get(0)?), Entry::from_stored(row.get(1)?))),
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn entry(&self, mailbox: i64, number: u64) -> Result<Option<Entry>, StoreError> {
        let mut find = self
            .connection
            .prepare_cached("SELECT entry FROM entry WHERE mailbox = ?1 AND key = ?2")?;
        let found = find.query_row(params![mailbox, self.key(number)], |row| row.get(0));
        Ok(found.optional()?.map(Entry::from_stored))
    }

    fn records(
        &self,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT key, bytes FROM record WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = find.query_map(params![self.key(first), self.key(last), limit], |row| {
            Ok((number(row.get(0)?), row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn last_mailbox(&self) -> Result<i64, StoreError> {
        let last: Option<i64> =
            self.connection
                .query_row("SELECT max(id) FROM mailbox", [], |row| row.get(0))?;
        Ok(last.unwrap_or(0))
    }

    fn head(&self) -> Result<Option<Head>, StoreError> {
        let mut find = self
            .connection
            .prepare_cached("SELECT epoch, number, hash FROM head WHERE shard = ?1")?;
        let head = find
            .query_row([self.shard], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, Vec<u8>>(2)?,
                ))
            })
            .optional()?;
        let Some((epoch, number, hash)) = head else {
            return Ok(None);
        };
        let hash = Hash::try_from(hash.as_slice())
            .map_err(|_| StoreError::Invalid("the head's hash is not a hash".to_owned()))?;
        Ok(Some(Head {
            epoch: epoch.cast_unsigned(),
            number: number.cast_unsigned(),
            hash,
        }))
    }
}
