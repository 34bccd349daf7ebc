//! Evidence: what a record is, how it is sealed and chained, how the log is exported, and how an
//! export is checked by somebody who trusts nothing but a public key. It refuses to know where
//! records are stored, what time it is and where randomness comes from.

mod codec;
mod error;
pub mod export;
pub mod keys;
pub mod record;
mod seal;
mod terms;
#[cfg(test)]
mod testing;
pub mod verify;

pub use error::EvidenceError;
pub use export::{ExportWriter, Manifest, ShardSummary};
pub use keys::{DomainKeys, KeyRing, PublicKey};
pub use record::{Content, ContentRef, Draft, Header, IdempotencyKey, Opened, Sealed, Stored};
pub(crate) use seal::digest;
pub use seal::{genesis, record_hash};
pub use terms::{Direction, Kind, Outcome, Verdict};
pub use verify::{Finding, Progress, Report, verify};

/// A SHA-256 hash.
pub type Hash = [u8; 32];
/// What stands for a JID in the readable part of a record.
pub type Pseudonym = [u8; 16];
/// A source of random bytes, handed in by the caller.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// The name under which a deployment keeps what belongs to no domain: a writer's opening,
/// heartbeats, clock steps. Such records name nobody, and every domain's export shows them.
pub const DEPLOYMENT: &str = "";
/// The number of the first record of a shard.
pub const FIRST_NUMBER: u64 = 1;
/// The version of the record's format.
pub const RECORD_FORMAT: u8 = 1;
/// The longest record.
pub const RECORD_LIMIT_BYTES: usize = 2 * 1024 * 1024;
