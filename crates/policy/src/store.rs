//! Versions of the policy, and the highest version that was ever in force. Owns `policy.db` behind
//! [`PolicyStore`], and the form in memory; it refuses to read a policy.
//!
//! Versions of the policy and of what the directory changed share one sequence: a policy's version is
//! the number at which it was applied, and it holds until the next one.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use chancery_store::rusqlite::{Connection, OptionalExtension, Row, params};
use chancery_store::{Db, Migration, Migrations, Profile, StoreError, open};
use parking_lot::Mutex;

/// One applied policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    /// The version at which it came into force.
    pub version: u64,
    /// As its author wrote it.
    pub toml: String,
    /// When.
    pub applied_at_ms: i64,
    /// By whom.
    pub actor: String,
}

/// Where policies are kept.
#[async_trait]
pub trait PolicyStore: Send + Sync + 'static {
    /// The policy that was in force at `version`: the last one applied at or below it.
    async fn at(&self, version: u64) -> Result<Option<StoredVersion>, StoreError>;
    /// The highest version that was ever in force; 0 for a new store.
    async fn highest(&self) -> Result<u64, StoreError>;
    /// Keeps a policy. Its version must be above the highest, and becomes it.
    async fn apply(&self, applied: StoredVersion) -> Result<(), StoreError>;
    /// Raises the highest version. It must be above it.
    async fn raise(&self, version: u64) -> Result<(), StoreError>;
}

const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "versions",
    sql: "CREATE TABLE versions (
              version INTEGER PRIMARY KEY,
              toml TEXT NOT NULL,
              applied_at_ms INTEGER NOT NULL,
              actor TEXT NOT NULL
          ) STRICT;
          CREATE TABLE highest (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL) STRICT;
          INSERT INTO highest VALUES (1, 0);",
}]);

/// `policy.db`.
#[derive(Debug, Clone)]
pub struct SqlitePolicyStore(Db);

impl SqlitePolicyStore {
    /// Opens, or makes, the database at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = open(path, Profile::durable())?;
        MIGRATIONS.apply(&mut connection)?;
        Ok(Self(Db::new("policy-db", connection)?))
    }

    /// Closes it after what is queued.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

#[async_trait]
impl PolicyStore for SqlitePolicyStore {
    async fn at(&self, version: u64) -> Result<Option<StoredVersion>, StoreError> {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        self.0
            .call(move |db| {
                let sql = "SELECT version, toml, applied_at_ms, actor FROM versions
                           WHERE version <= ?1 ORDER BY version DESC LIMIT 1";
                Ok(db.query_row(sql, [version], row).optional()?)
            })
            .await
    }

    async fn highest(&self) -> Result<u64, StoreError> {
        self.0.call(|db| highest(db)).await
    }

    async fn apply(&self, applied: StoredVersion) -> Result<(), StoreError> {
        self.0
            .call(move |db| {
                let transaction = db.transaction()?;
                raise(&transaction, applied.version)?;
                transaction.execute(
                    "INSERT INTO versions VALUES (?1, ?2, ?3, ?4)",
                    params![
                        integer(applied.version)?,
                        applied.toml,
                        applied.applied_at_ms,
                        applied.actor
                    ],
                )?;
                Ok(transaction.commit()?)
            })
            .await
    }

    async fn raise(&self, version: u64) -> Result<(), StoreError> {
        self.0
            .call(move |db| {
                let transaction = db.transaction()?;
                raise(&transaction, version)?;
                Ok(transaction.commit()?)
            })
            .await
    }
}

fn row(row: &Row<'_>) -> Result<StoredVersion, chancery_store::rusqlite::Error> {
    Ok(StoredVersion {
        version: row.get::<_, i64>(0)?.unsigned_abs(),
        toml: row.get(1)?,
        applied_at_ms: row.get(2)?,
        actor: row.get(3)?,
    })
}

fn highest(db: &Connection) -> Result<u64, StoreError> {
    let version: i64 = db.query_row("SELECT version FROM highest", [], |row| row.get(0))?;
    u64::try_from(version).map_err(|_| StoreError::Invalid("a negative version".into()))
}

fn raise(db: &Connection, version: u64) -> Result<(), StoreError> {
    rises(highest(db)?, version)?;
    db.execute("UPDATE highest SET version = ?1", [integer(version)?])?;
    Ok(())
}

fn integer(version: u64) -> Result<i64, StoreError> {
    i64::try_from(version).map_err(|_| StoreError::Invalid("a version beyond all bounds".into()))
}

fn rises(highest: u64, version: u64) -> Result<(), StoreError> {
    if version > highest {
        return Ok(());
    }
    Err(StoreError::Invalid(format!(
        "version {version} is not above {highest}"
    )))
}

/// In memory.
#[derive(Debug, Default)]
pub struct MemoryPolicyStore(Mutex<Versions>);

#[derive(Debug, Default)]
struct Versions {
    highest: u64,
    all: BTreeMap<u64, StoredVersion>,
}

#[async_trait]
impl PolicyStore for MemoryPolicyStore {
    async fn at(&self, version: u64) -> Result<Option<StoredVersion>, StoreError> {
        Ok(self
            .0
            .lock()
            .all
            .range(..=version)
            .next_back()
            .map(|(_, applied)| applied.clone()))
    }

    async fn highest(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().highest)
    }

    async fn apply(&self, applied: StoredVersion) -> Result<(), StoreError> {
        let mut versions = self.0.lock();
        rises(versions.highest, applied.version)?;
        versions.highest = applied.version;
        versions.all.insert(applied.version, applied);
        Ok(())
    }

    async fn raise(&self, version: u64) -> Result<(), StoreError> {
        let mut versions = self.0.lock();
        rises(versions.highest, version)?;
        versions.highest = version;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn stored(version: u64) -> StoredVersion {
        StoredVersion {
            version,
            toml: format!("# {version}\n"),
            applied_at_ms: 1_000 + i64::try_from(version).unwrap(),
            actor: "officer".into(),
        }
    }

    /// What every store has to do.
    async fn conforms(store: &dyn PolicyStore) {
        assert_eq!(store.highest().await.unwrap(), 0);
        assert_eq!(store.at(u64::MAX).await.unwrap(), None);
        store.apply(stored(1)).await.unwrap();
        store.raise(4).await.unwrap();
        store.apply(stored(5)).await.unwrap();
        assert_eq!(store.highest().await.unwrap(), 5);
        for (asked, expected) in [
            (0, None),
            (1, Some(1)),
            (4, Some(1)),
            (5, Some(5)),
            (u64::MAX, Some(5)),
        ] {
            assert_eq!(
                store.at(asked).await.unwrap(),
                expected.map(stored),
                "{asked}"
            );
        }
        for late in [0, 3, 5] {
            assert!(matches!(
                store.apply(stored(late)).await,
                Err(StoreError::Invalid(_))
            ));
            assert!(matches!(
                store.raise(late).await,
                Err(StoreError::Invalid(_))
            ));
        }
        assert_eq!(
            store.at(3).await.unwrap(),
            Some(stored(1)),
            "a refused one left nothing"
        );
        assert_eq!(store.highest().await.unwrap(), 5);
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(&MemoryPolicyStore::default()).await;
    }

    #[tokio::test]
    async fn sqlite_conforms_and_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.db");
        let store = SqlitePolicyStore::open(&path).unwrap();
        conforms(&store).await;
        store.raise(11).await.unwrap();
        store.close().await;
        let again = SqlitePolicyStore::open(&path).unwrap();
        assert_eq!(again.highest().await.unwrap(), 11);
        assert_eq!(again.at(11).await.unwrap(), Some(stored(5)));
    }
}
