//! The one error of this crate.

/// Why a record, a key or an export could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The bytes are not a record of this format.
    #[error("record is not valid: {0}")]
    Malformed(&'static str),
    /// A field is longer than its length can say, or the record longer than its limit.
    #[error("record is too long: {0}")]
    TooLong(&'static str),
    /// The sealed part was changed, or was sealed with another key.
    #[error("the sealed part does not open")]
    DoesNotOpen,
    /// The opened content is not what the header's digest says.
    #[error("the content is not what the header says")]
    ContentDigest,
    /// No keys for this domain.
    #[error("no keys for domain {0:?}")]
    UnknownDomain(String),
    /// No data key of this number.
    #[error("no data key {key_id} for domain {domain:?}")]
    UnknownKey { domain: String, key_id: u32 },
    /// The key file does not say what it must.
    #[error("key file is not valid: {0}")]
    KeyFile(String),
    /// A public key is not of the form `ed25519:BASE64`.
    #[error("public key is not of the form ed25519:BASE64")]
    PublicKey,
    /// The cryptographic library refused.
    #[error("cryptographic operation failed")]
    Crypto,
    /// The log itself is broken: it is not signed as if it were whole.
    #[error("the log is broken at shard {shard} number {number}: {reason}")]
    BrokenLog {
        shard: u32,
        number: u64,
        reason: &'static str,
    },
    /// More shards than an export may have.
    #[error("more than {0} shards")]
    TooManyShards(usize),
    /// Writing the export failed.
    #[error("writing the export: {0}")]
    Io(#[from] std::io::Error),
    /// A value could not be written as JSON.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
}
