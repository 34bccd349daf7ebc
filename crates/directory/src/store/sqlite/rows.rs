//! Rows of the directory's tables and the values they stand for. It refuses to decide anything.

use chancery_store::StoreError;
use chancery_store::rusqlite::types::Type;
use chancery_store::rusqlite::{self, Connection, OptionalExtension, Row, params};

use crate::store::{Account, Group, KeySet, Keys, Mechanism, Name, State};

/// What every query for accounts begins with.
pub const ACCOUNT: &str = "SELECT domain, localpart, state, credential_version, generation, version, drop_pending \
     FROM account";

pub fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

pub fn state(value: i64) -> Option<State> {
    match value {
        1 => Some(State::Active),
        2 => Some(State::Disabled),
        3 => Some(State::Deleted),
        _ => None,
    }
}

pub fn state_number(state: State) -> i64 {
    match state {
        State::Active => 1,
        State::Disabled => 2,
        State::Deleted => 3,
    }
}

pub fn hash_number(mechanism: Mechanism) -> i64 {
    match mechanism {
        Mechanism::Sha1 => 1,
        Mechanism::Sha256 => 2,
    }
}

pub fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let known = state(row.get(2)?).ok_or_else(|| {
        let error = StoreError::Invalid("state of an account".to_owned());
        rusqlite::Error::FromSqlConversionFailure(2, Type::Integer, Box::new(error))
    })?;
    Ok(Account {
        name: Name {
            domain: row.get(0)?,
            localpart: row.get(1)?,
        },
        state: known,
        credential_version: unsigned(row, 3)?,
        generation: unsigned(row, 4)?,
        version: unsigned(row, 5)?,
        drop_pending: row.get(6)?,
    })
}

pub fn find(db: &Connection, name: &Name) -> Result<Option<Account>, StoreError> {
    let mut query =
        db.prepare_cached(&format!("{ACCOUNT} WHERE domain = ?1 AND localpart = ?2"))?;
    Ok(query
        .query_row(params![name.domain, name.localpart], account)
        .optional()?)
}

pub fn version(db: &Connection) -> Result<u64, StoreError> {
    let mut query = db.prepare_cached("SELECT value FROM version")?;
    Ok(query.query_row([], |row| unsigned(row, 0))?)
}

pub fn keys(db: &Connection, name: &Name) -> Result<KeySet, StoreError> {
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

pub fn write_keys(db: &Connection, name: &Name, keys: &KeySet) -> Result<(), StoreError> {
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

pub fn write_account(db: &Connection, account: &Account) -> Result<(), StoreError> {
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

pub fn members(db: &Connection, domain: &str, group: &str) -> Result<Vec<String>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT localpart FROM group_member WHERE domain = ?1 AND name = ?2 ORDER BY localpart",
    )?;
    let rows = query.query_map(params![domain, group], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub fn group(db: &Connection, domain: String, group: String) -> Result<Group, StoreError> {
    let mut query =
        db.prepare_cached("SELECT label FROM account_group WHERE domain = ?1 AND name = ?2")?;
    let found: Option<Option<String>> = query
        .query_row(params![domain, group], |row| row.get(0))
        .optional()?;
    let deleted = found.is_none();
    let members = members(db, &domain, &group)?;
    Ok(Group {
        domain,
        group,
        members,
        deleted,
        label: found.flatten(),
    })
}

pub fn groups(db: &Connection, domain: Option<&str>) -> Result<Vec<Group>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT domain, name FROM account_group WHERE ?1 IS NULL OR domain = ?1 \
         ORDER BY domain, name",
    )?;
    let rows = query.query_map(params![domain], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let names: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    names
        .into_iter()
        .map(|(domain, name)| group(db, domain, name))
        .collect()
}
