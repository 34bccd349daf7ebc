//! The log's tables and statements: records, narrow entries, mailboxes, the head. Owns the schema;
//! refuses to seal, to order, or to decide. The shard's number is part of every key.
//!
//! A record's row says which entries it makes. Only that row needs the durable commit: the rows of
//! the entries follow for many records at once, and the head tells up to which record they have.

use std::sync::Arc;

use chancery_evidence::Hash;
use chancery_store::{Migration, Migrations, StoreError, unconfirmed};
use rusqlite::{Connection, OptionalExtension, params};

use crate::entry::Entry;
use crate::mailbox::{MailboxRow, MailboxSave, put, take};

/// Bits of a key below the shard's number: a shard has room for 2^48 records.
const NUMBER_BITS: u32 = 48;
/// Entries above its row that are read of one mailbox at a time.
const TAIL_ENTRIES: usize = 1_000_000;

const SCHEMA: Migrations = Migrations::new(&[
    Migration {
        version: 1,
        name: "records, entries, mailboxes, head",
        sql: "
        CREATE TABLE record (
            key INTEGER PRIMARY KEY,
            entries BLOB NOT NULL,
            bytes BLOB NOT NULL
        ) STRICT;
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
    },
    Migration {
        version: 2,
        name: "what the owner of a mailbox wants in the own archive",
        sql: "ALTER TABLE mailbox ADD COLUMN preferences BLOB",
    },
]);

/// A record up to which all entries have their rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) hash: Hash,
}

/// Which entries a record makes, as its row says: at most the recipient's and the sender's.
pub(crate) type Planned = [Option<(i64, Entry)>; 2];

/// A record with what its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) bytes: Vec<u8>,
    pub(crate) planned: Planned,
}

/// One group, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// Stored records, from `first` without gaps.
    pub(crate) first: u64,
    pub(crate) records: Vec<Row>,
    pub(crate) mailboxes: Vec<(i64, Arc<str>)>,
    /// Mailboxes of which nothing up to the number is delivered again.
    pub(crate) floors: Vec<(i64, u64)>,
    /// What the owners of mailboxes want in their archives.
    pub(crate) preferences: Vec<(i64, Vec<u8>)>,
}

/// A shard's log, as its one writer sees it. Every backend passes `store_suite`.
pub(crate) trait LogStore {
    /// Takes the shard over: raises its epoch, which fences the writer before. In a store without
    /// this shard it is made, with `genesis` in place of a hash.
    fn open(&mut self, genesis: Hash) -> Result<Head, StoreError>;
    /// Writes a group, durably: all of it or nothing. Refuses one that does not follow the last
    /// record, or whose writer was fenced.
    fn append(&mut self, writing: &Writing) -> Result<(), StoreError>;
    /// Makes entries (by mailbox, then number) and says, where `upto` is given, that up to this
    /// record, which has this hash, all are made. Atomic, not durable: what is lost is made again.
    /// Making one twice is making it once.
    fn make_entries(
        &mut self,
        entries: &[(i64, u64, Entry)],
        upto: Option<(u64, Hash)>,
    ) -> Result<(), StoreError>;
    /// Writes open sets. One may be older than a group that was written since: it does not lower the
    /// floor that this has raised, below which nothing is opened again.
    fn save(&mut self, saves: &[MailboxSave]) -> Result<(), StoreError>;
}

/// What readers ask, over a connection of their own.
pub(crate) trait LogReader {
    /// A mailbox with the entries above its row.
    fn mailbox(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError> {
        let Some(mut row) = self.row(jid)? else {
            return Ok(None);
        };
        row.entries = self.entries(row.id, row.upto, u64::MAX, TAIL_ENTRIES)?;
        row.last = match row.entries.last() {
            Some((number, _)) => *number,
            None => self.last_entry(row.id)?,
        };
        Ok(Some(row))
    }
    /// The row of a mailbox alone.
    fn row(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError>;
    /// The number of a mailbox's last entry; 0 without any.
    fn last_entry(&self, mailbox: i64) -> Result<u64, StoreError>;
    /// A record.
    fn record(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError>;
    /// Hands these records to `take`, in this order and in one look, until it has enough (false).
    fn each_record(
        &self,
        numbers: &[u64],
        take: &mut dyn FnMut(u64, Option<&[u8]>) -> bool,
    ) -> Result<(), StoreError>;
    /// Has a mailbox more rows than `limit` above `after`, up to `end`?
    fn has_more_rows(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<bool, StoreError>;
    /// Entries of a mailbox above `after`, up to `end`, in order.
    fn entries(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError>;
    /// The same in the other order, from `end` down.
    fn entries_down(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError>;
    /// The number of the last record; 0 without any.
    fn last_record(&self) -> Result<u64, StoreError>;
    /// The entry of a record in a mailbox.
    fn entry(&self, mailbox: i64, number: u64) -> Result<Option<Entry>, StoreError>;
    /// Records from `first` to `last`, at most `limit`, in order.
    fn records(
        &self,
        first: u64,
        last: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
    /// The same with what their rows say.
    fn rows(&self, first: u64, last: u64, limit: usize) -> Result<Vec<(u64, Row)>, StoreError>;
    /// The highest mailbox id; 0 without any.
    fn last_mailbox(&self) -> Result<i64, StoreError>;
    /// Up to where entries are made.
    fn head(&self) -> Result<Option<Head>, StoreError>;
}

/// A shard's tables in SQLite.
pub(crate) struct SqliteLog<C> {
    connection: C,
    shard: u32,
    /// Of this writer; 0 for a reader.
    epoch: u64,
}

/// Brings the schema up to date.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    SCHEMA.apply(connection).map(drop)
}

impl<C> SqliteLog<C> {
    pub(crate) fn new(connection: C, shard: u32) -> Self {
        Self {
            connection,
            shard,
            epoch: 0,
        }
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

/// A planned entry: the mailbox's id and the entry, both LEB128.
fn encode(planned: &Planned) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    for (mailbox, entry) in planned.iter().flatten() {
        put(&mut out, mailbox.cast_unsigned());
        put(&mut out, entry.stored().cast_unsigned());
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Planned> {
    let mut planned = [None, None];
    for slot in &mut planned {
        if bytes.is_empty() {
            break;
        }
        let mailbox = take(&mut bytes)?.cast_signed();
        *slot = Some((mailbox, Entry::from_stored(take(&mut bytes)?.cast_signed())));
    }
    bytes.is_empty().then_some(planned)
}

/// Runs `work` in one writing transaction, whose own statements are parsed once. One that can be
/// neither committed nor undone is no full disk, whatever it failed of.
fn transact<R>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let result = work(connection).and_then(|done| {
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(done)
    });
    if let Err(error) = &result
        && !connection.is_autocommit()
        && let Err(undo) = connection.execute_batch("ROLLBACK")
    {
        let reason = format!("{error}; it cannot be undone: {undo}");
        return Err(StoreError::Invalid(reason));
    }
    result
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
        let head = self.reader().head()?;
        let head = head.ok_or_else(|| StoreError::Invalid("no head".to_owned()))?;
        self.epoch = head.epoch;
        Ok(head)
    }

    fn append(&mut self, writing: &Writing) -> Result<(), StoreError> {
        let (shard, base) = (self.shard, self.key(0));
        let before = self.key(writing.first.saturating_sub(1));
        let epoch = self.epoch.cast_signed();
        transact(&self.connection, |transaction| {
            // Reads two pages that are in the cache; nobody else writes until the commit.
            let mut follows = transaction.prepare_cached(
                "SELECT epoch = ?2 AND ifnull((SELECT key FROM record
                    WHERE key BETWEEN ?3 AND ?4 ORDER BY key DESC LIMIT 1), ?3) = ?5
                 FROM head WHERE shard = ?1",
            )?;
            let end = base | ((1 << NUMBER_BITS) - 1);
            let follows: Option<bool> = follows
                .query_row(params![shard, epoch, base, end, before], |row| row.get(0))
                .optional()?;
            if follows != Some(true) {
                return Err(StoreError::Invalid(
                    "the log is not where it was left".to_owned(),
                ));
            }
            let mut record = transaction
                .prepare_cached("INSERT INTO record (key, entries, bytes) VALUES (?1, ?2, ?3)")?;
            for (number, row) in (writing.first..).zip(&writing.records) {
                let planned = encode(&row.planned);
                record.execute(params![base | stored(number), planned, row.bytes])?;
            }
            for (id, jid) in &writing.mailboxes {
                let mut made = transaction.prepare_cached(
                    "INSERT INTO mailbox (id, shard, jid, floor, upto, open)
                     VALUES (?1, ?2, ?3, 0, 0, x'')",
                )?;
                made.execute(params![id, shard, jid.as_ref()])?;
            }
            for (mailbox, preferences) in &writing.preferences {
                let mut keep = transaction
                    .prepare_cached("UPDATE mailbox SET preferences = ?2 WHERE id = ?1")?;
                keep.execute(params![mailbox, preferences])?;
            }
            for (mailbox, floor) in &writing.floors {
                // Whoever gets the name next begins anew.
                let mut raise = transaction.prepare_cached(
                    "UPDATE mailbox SET floor = ?2, upto = ?2, open = x'', preferences = NULL
                     WHERE id = ?1",
                )?;
                raise.execute(params![mailbox, stored(*floor)])?;
            }
            Ok(())
        })
    }

    fn make_entries(
        &mut self,
        entries: &[(i64, u64, Entry)],
        upto: Option<(u64, Hash)>,
    ) -> Result<(), StoreError> {
        let (shard, base) = (self.shard, self.key(0));
        let epoch = self.epoch.cast_signed();
        unconfirmed(&mut self.connection, |connection| {
            transact(connection, |transaction| {
                let ours = if let Some((number, hash)) = upto {
                    let mut head = transaction.prepare_cached(
                        "UPDATE head SET number = ?3, hash = ?4 WHERE shard = ?1 AND epoch = ?2",
                    )?;
                    head.execute(params![shard, epoch, stored(number), hash.as_slice()])? == 1
                } else {
                    let mut head = transaction
                        .prepare_cached("SELECT 1 FROM head WHERE shard = ?1 AND epoch = ?2")?;
                    head.exists(params![shard, epoch])?
                };
                if !ours {
                    return Err(StoreError::Invalid("another took the log over".to_owned()));
                }
                let mut make = transaction.prepare_cached(
                    "INSERT OR IGNORE INTO entry (mailbox, key, entry) VALUES (?1, ?2, ?3)",
                )?;
                for (mailbox, number, entry) in entries {
                    make.execute(params![mailbox, base | stored(*number), entry.stored()])?;
                }
                Ok(())
            })
        })
    }

    fn save(&mut self, saves: &[MailboxSave]) -> Result<(), StoreError> {
        transact(&self.connection, |transaction| {
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
            Ok(())
        })
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
        SqliteLog::new(&self.connection, self.shard)
    }
}

impl SqliteLog<&Connection> {
    /// Entries of a mailbox above the first number of a range, up to the second.
    fn range(
        &self,
        statement: &str,
        mailbox: i64,
        (after, end): (u64, u64),
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let mut find = self.connection.prepare_cached(statement)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = find.query_map(
            params![mailbox, self.key(after), self.key(end), limit],
            |row| Ok((number(row.get(0)?), Entry::from_stored(row.get(1)?))),
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl LogReader for SqliteLog<&Connection> {
    fn row(&self, jid: &str) -> Result<Option<MailboxRow>, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT id, floor, upto, open, preferences FROM mailbox
             WHERE shard = ?1 AND jid = ?2",
        )?;
        Ok(find
            .query_row(params![self.shard, jid], |row| {
                Ok(MailboxRow {
                    id: row.get(0)?,
                    floor: row.get::<_, i64>(1)?.cast_unsigned(),
                    upto: row.get::<_, i64>(2)?.cast_unsigned(),
                    open: row.get(3)?,
                    preferences: row.get(4)?,
                    ..MailboxRow::default()
                })
            })
            .optional()?)
    }

    fn last_entry(&self, mailbox: i64) -> Result<u64, StoreError> {
        let mut last = self
            .connection
            .prepare_cached("SELECT max(key) FROM entry WHERE mailbox = ?1")?;
        let last: Option<i64> = last.query_row([mailbox], |row| row.get(0))?;
        Ok(last.map_or(0, number))
    }

    fn record(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let mut find = self
            .connection
            .prepare_cached("SELECT bytes FROM record WHERE key = ?1")?;
        Ok(find
            .query_row([self.key(number)], |row| row.get(0))
            .optional()?)
    }

    fn each_record(
        &self,
        numbers: &[u64],
        take: &mut dyn FnMut(u64, Option<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        let look = self.connection.unchecked_transaction()?;
        let mut find = look.prepare_cached("SELECT bytes FROM record WHERE key = ?1")?;
        for number in numbers {
            let mut rows = find.query([self.key(*number)])?;
            let bytes = match rows.next()? {
                Some(row) => Some(row.get_ref(0)?.as_blob().map_err(|error| {
                    StoreError::Invalid(format!("record {number} is no blob: {error}"))
                })?),
                None => None,
            };
            if !take(*number, bytes) {
                break;
            }
        }
        drop(find);
        Ok(look.commit()?)
    }

    fn has_more_rows(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<bool, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT 1 FROM entry WHERE mailbox = ?1 AND key > ?2 AND key <= ?3 LIMIT 1 OFFSET ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(find.exists(params![mailbox, self.key(after), self.key(end), limit])?)
    }

    fn entries(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let statement = "SELECT key, entry FROM entry
             WHERE mailbox = ?1 AND key > ?2 AND key <= ?3 ORDER BY key LIMIT ?4";
        self.range(statement, mailbox, (after, end), limit)
    }

    fn entries_down(
        &self,
        mailbox: i64,
        after: u64,
        end: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let statement = "SELECT key, entry FROM entry
             WHERE mailbox = ?1 AND key > ?2 AND key <= ?3 ORDER BY key DESC LIMIT ?4";
        self.range(statement, mailbox, (after, end), limit)
    }

    fn last_record(&self) -> Result<u64, StoreError> {
        let mut last = self
            .connection
            .prepare_cached("SELECT max(key) FROM record WHERE key BETWEEN ?1 AND ?2")?;
        let ends = params![self.key(0), self.key(u64::MAX)];
        let last: Option<i64> = last.query_row(ends, |row| row.get(0))?;
        Ok(last.map_or(0, number))
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

    fn rows(&self, first: u64, last: u64, limit: usize) -> Result<Vec<(u64, Row)>, StoreError> {
        let mut find = self.connection.prepare_cached(
            "SELECT key, entries, bytes FROM record WHERE key BETWEEN ?1 AND ?2
             ORDER BY key LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut found = find.query(params![self.key(first), self.key(last), limit])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let number = number(row.get(0)?);
            let planned = row.get_ref(1)?.as_blob().ok().and_then(decode);
            let planned = planned.ok_or_else(|| {
                StoreError::Invalid(format!("the entries of record {number} are malformed"))
            })?;
            let bytes = row.get(2)?;
            rows.push((number, Row { bytes, planned }));
        }
        Ok(rows)
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
