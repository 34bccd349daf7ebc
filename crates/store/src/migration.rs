//! How a schema moves forward: an ordered list of steps, each in its own transaction with the
//! version that it leads to (`PRAGMA user_version`). It refuses to go back, and to touch a file
//! that a newer program wrote.

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// One step of a schema. Once released it never changes.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// The version that the step leads to; versions rise, from 1.
    pub version: u32,
    /// What it does, in a few words.
    pub name: &'static str,
    /// The statements.
    pub sql: &'static str,
}

/// The steps of one database, in order.
#[derive(Clone, Copy, Debug)]
pub struct Migrations(&'static [Migration]);

impl Migrations {
    /// The list; checked when applied.
    pub const fn new(steps: &'static [Migration]) -> Self {
        Self(steps)
    }

    /// The version that the list leads to.
    pub fn version(&self) -> u32 {
        self.0.last().map_or(0, |step| step.version)
    }

    /// Applies what the file lacks, and returns how many steps that were.
    pub fn apply(&self, connection: &mut Connection) -> Result<usize, StoreError> {
        let mut known = 0;
        for step in self.0 {
            if step.version <= known {
                return Err(StoreError::MigrationOrder {
                    version: step.version,
                    name: step.name,
                });
            }
            known = step.version;
        }
        let mut applied = 0;
        let found = version(connection)?;
        if found > known {
            return Err(StoreError::NewerSchema { found, known });
        }
        for step in self.0.iter().filter(|step| step.version > found) {
            let fail = |source| StoreError::Migration {
                version: step.version,
                name: step.name,
                source,
            };
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(fail)?;
            // Another process may have been faster between the look and the transaction.
            if version(&transaction)? >= step.version {
                continue;
            }
            transaction.execute_batch(step.sql).map_err(fail)?;
            transaction
                .pragma_update(None, "user_version", step.version)
                .map_err(fail)?;
            transaction.commit().map_err(fail)?;
            applied += 1;
        }
        Ok(applied)
    }

    /// Checks, without writing, that the file has exactly this schema: for readers.
    pub fn check(&self, connection: &Connection) -> Result<bool, StoreError> {
        let (found, known) = (version(connection)?, self.version());
        if found > known {
            return Err(StoreError::NewerSchema { found, known });
        }
        Ok(found == known)
    }
}

fn version(connection: &Connection) -> Result<u32, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const ONE: Migration = Migration {
        version: 1,
        name: "accounts",
        sql: "CREATE TABLE a (x INTEGER)",
    };
    const TWO: Migration = Migration {
        version: 2,
        name: "groups",
        sql: "CREATE TABLE b (y TEXT); INSERT INTO a VALUES (7)",
    };
    const BROKEN: Migration = Migration {
        version: 3,
        name: "broken",
        sql: "CREATE TABLE c (z); INSERT INTO nowhere VALUES (1)",
    };

    #[test]
    fn steps_are_applied_once_and_in_order() {
        let mut db = Connection::open_in_memory().unwrap();
        assert_eq!(Migrations::new(&[ONE]).apply(&mut db).unwrap(), 1);
        assert!(!Migrations::new(&[ONE, TWO]).check(&db).unwrap());
        assert_eq!(Migrations::new(&[ONE, TWO]).apply(&mut db).unwrap(), 1);
        assert_eq!(Migrations::new(&[ONE, TWO]).apply(&mut db).unwrap(), 0);
        assert!(Migrations::new(&[ONE, TWO]).check(&db).unwrap());
        let sum: i64 = db
            .query_row("SELECT sum(x) FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sum, 7);
    }

    #[test]
    fn a_step_that_fails_leaves_nothing_behind() {
        let mut db = Connection::open_in_memory().unwrap();
        let error = Migrations::new(&[ONE, TWO, BROKEN])
            .apply(&mut db)
            .unwrap_err();
        assert!(matches!(
            error,
            StoreError::Migration {
                version: 3,
                name: "broken",
                ..
            }
        ));
        assert_eq!(version(&db).unwrap(), 2);
        assert!(db.prepare("SELECT * FROM c").is_err());
    }

    #[test]
    fn a_newer_file_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        Migrations::new(&[ONE, TWO]).apply(&mut db).unwrap();
        let error = Migrations::new(&[ONE]).apply(&mut db).unwrap_err();
        assert!(
            matches!(error, StoreError::NewerSchema { found: 2, known: 1 }),
            "{error}"
        );
        assert!(Migrations::new(&[ONE]).check(&db).is_err());
    }

    #[test]
    fn a_list_out_of_order_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        let error = Migrations::new(&[TWO, ONE]).apply(&mut db).unwrap_err();
        assert!(
            matches!(error, StoreError::MigrationOrder { version: 1, .. }),
            "{error}"
        );
        assert_eq!(version(&db).unwrap(), 0);
    }
}
