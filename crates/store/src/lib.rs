//! The plumbing under every store on SQLite: how a database is opened, how its schema moves, who
//! may hold the data directory, and the threads on which statements run. It refuses to know any
//! table: each service owns its own.

mod error;
pub mod lock;
pub mod migration;
pub mod sqlite;
pub mod worker;

pub use error::StoreError;
pub use lock::DataLock;
pub use migration::{Migration, Migrations};
pub use rusqlite;
pub use sqlite::{
    Checkpoint, Checkpointed, Profile, Synchronous, checkpoint, open, simulate, unconfirmed,
};
pub use worker::{Db, ReadPool};
