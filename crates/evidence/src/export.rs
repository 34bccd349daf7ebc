//! The export: one JSON line a record, each signed, and a signed manifest as the last line. It
//! owns the form of the lines; it refuses to sign a log whose own chain is broken, and never
//! holds more than one line.
//!
//! A line is a JSON object whose last member is `signature`, over everything before it in the
//! line. So a changed line is found by itself, whatever else an attacker computed anew, and the
//! lines of a file without its end can still be trusted.

use std::collections::BTreeMap;
use std::io::Write;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::record::{Content, Header, Opened, Stored};
use crate::{
    DEPLOYMENT, DomainKeys, EvidenceError, FIRST_NUMBER, Hash, digest, genesis, record_hash, seal,
};

/// The format's name, in the manifest.
pub const EXPORT_FORMAT: &str = "chancery-evidence-export/1";
/// The longest line: the longest record in base64, and its content escaped as JSON.
pub const LINE_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// The most shards in one export.
pub const SHARDS_LIMIT: usize = 4_096;

pub(crate) const RECORD_START: &[u8] = b"{\"shard\":";
pub(crate) const MANIFEST_START: &[u8] = b"{\"manifest\":";
const SIGNATURE_START: &[u8] = b",\"signature\":\"";
const SIGNATURE_END: &[u8] = b"\"}";
const SIGNATURE_BASE64_BYTES: usize = 88;
const LINE_LABEL: &[u8] = b"chancery evidence export line v1\0";

/// One record in an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    pub shard: u32,
    pub number: u64,
    pub previous: String,
    pub hash: String,
    /// What `record` says, readable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderView>,
    /// The stored bytes, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// What the sealed part says, for an officer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<Plaintext>,
    /// The record is another domain's: only its place and hash are shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
}

/// A header as exports show it: names for numbers, hex for bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderView {
    domain: String,
    epoch: u64,
    time_ms: i64,
    kind: String,
    direction: String,
    outcome: String,
    verdict: String,
    policy_version: u64,
    rule: String,
    reason: String,
    retention: String,
    gateway: String,
    sm_id: Option<String>,
    sm_count: Option<u64>,
    sender: Option<String>,
    recipients: Vec<String>,
    detail: String,
    key_id: u32,
    algorithm: u8,
    content_digest: String,
}

impl From<&Header> for HeaderView {
    fn from(header: &Header) -> Self {
        Self {
            domain: header.domain.clone(),
            epoch: header.epoch,
            time_ms: header.time_ms,
            kind: header.kind.name().to_owned(),
            direction: header.direction.name().to_owned(),
            outcome: header.outcome.name().to_owned(),
            verdict: header.verdict.name().to_owned(),
            policy_version: header.policy_version,
            rule: header.rule.clone(),
            reason: header.reason.clone(),
            retention: header.retention.clone(),
            gateway: header.gateway.clone(),
            sm_id: header.key.map(|key| hex::encode(key.stream)),
            sm_count: header.key.map(|key| key.count),
            sender: header.sender.map(hex::encode),
            recipients: header.recipients.iter().map(hex::encode).collect(),
            detail: header.detail.clone(),
            key_id: header.key_id,
            algorithm: header.algorithm,
            content_digest: hex::encode(header.content_digest),
        }
    }
}

/// An opened content in an export, with the salt that makes it checkable.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plaintext {
    salt: String,
    from: String,
    to: Vec<String>,
    id: String,
    r#type: String,
    payload: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<Bytes>,
}

/// Text where the bytes are text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Binary { base64: String },
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Binary {
                base64: STANDARD.encode(bytes),
            },
        }
    }

    fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.into_bytes()),
            Self::Binary { base64 } => STANDARD.decode(base64).ok(),
        }
    }
}

impl Plaintext {
    fn new(opened: &Opened) -> Self {
        let content = &opened.content;
        Self {
            salt: STANDARD.encode(opened.salt),
            from: content.from.clone(),
            to: content.to.clone(),
            id: content.stanza_id.clone(),
            r#type: content.stanza_type.clone(),
            payload: Bytes::new(&content.payload),
            delivered: content.delivered.as_deref().map(Bytes::new),
        }
    }

    /// The digest that the header must have, if this is what was sealed.
    pub(crate) fn digest(self) -> Option<Hash> {
        let salt = STANDARD.decode(&self.salt).ok()?.try_into().ok()?;
        let delivered = match self.delivered {
            Some(bytes) => Some(bytes.into_bytes()?),
            None => None,
        };
        let content = Content {
            from: self.from,
            to: self.to,
            stanza_id: self.id,
            stanza_type: self.r#type,
            payload: self.payload.into_bytes()?,
            delivered,
        };
        content
            .with_ref(|content| seal::content_digest(&salt, content))
            .ok()
    }
}

/// What an export holds, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub domain: String,
    pub deployment: String,
    /// [`crate::PublicKey::id`] of the key that signed.
    pub key_id: String,
    pub exported_at_ms: i64,
    /// How many lines are above.
    pub lines: u64,
    pub shards: Vec<ShardSummary>,
    /// SHA-256 of every byte above the manifest's line.
    pub sha256: String,
}

/// The part of a shard that an export holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSummary {
    pub shard: u32,
    pub first: u64,
    pub last: u64,
    pub count: u64,
    /// How many of these are another domain's, shown as a hash only.
    pub withheld: u64,
    /// The hash before the first record.
    pub first_previous: String,
    /// The hash of the last record.
    pub head: String,
}

#[derive(Serialize)]
struct ManifestBody<'a> {
    manifest: &'a Manifest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestLine {
    pub manifest: Manifest,
}

/// Follows the chain of one shard, for the writer as for the checker.
#[derive(Debug)]
pub(crate) struct Chain {
    pub first: u64,
    pub next: u64,
    pub first_previous: Hash,
    pub head: Hash,
    pub withheld: u64,
}

impl Chain {
    pub fn start(number: u64, previous: Hash) -> Self {
        Self {
            first: number,
            next: number,
            first_previous: previous,
            head: previous,
            withheld: 0,
        }
    }

    /// Takes the next record, or says what does not fit.
    pub fn take(&mut self, number: u64, previous: &Hash, hash: Hash) -> Result<(), &'static str> {
        if number != self.next {
            return Err("a record is missing or out of place");
        }
        if *previous != self.head {
            return Err("the previous hash is not that of the record before");
        }
        self.head = hash;
        self.next = number
            .checked_add(1)
            .ok_or("the number is the last there is")?;
        Ok(())
    }

    pub fn summary(&self, shard: u32) -> ShardSummary {
        ShardSummary {
            shard,
            first: self.first,
            last: self.next.saturating_sub(1),
            count: self.next - self.first,
            withheld: self.withheld,
            first_previous: hex::encode(self.first_previous),
            head: hex::encode(self.head),
        }
    }
}

/// What a line's signature signs.
pub(crate) fn line_digest(body: &[u8]) -> Hash {
    digest(LINE_LABEL, &[body])
}

/// A line without its end of line as its body (without the closing brace) and its signature.
pub(crate) fn split_signature(line: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let rest = line.strip_suffix(SIGNATURE_END)?;
    let (rest, signature) =
        rest.split_at_checked(rest.len().checked_sub(SIGNATURE_BASE64_BYTES)?)?;
    let body = rest.strip_suffix(SIGNATURE_START)?;
    Some((body, STANDARD.decode(signature).ok()?))
}

/// Writes an export.
pub struct ExportWriter<'a, W> {
    out: W,
    keys: &'a DomainKeys,
    deployment: &'a str,
    chains: BTreeMap<u32, Chain>,
    above: Context,
    lines: u64,
    line: Vec<u8>,
}

impl<'a, W: Write> ExportWriter<'a, W> {
    /// An export for the domain of `keys`, to `out` (which should be buffered).
    pub fn new(out: W, keys: &'a DomainKeys, deployment: &'a str) -> Self {
        let above = Context::new(&SHA256);
        let chains = BTreeMap::new();
        Self {
            out,
            keys,
            deployment,
            chains,
            above,
            lines: 0,
            line: Vec::new(),
        }
    }

    /// Adds the next record of its shard. One of another domain is shown by its hash only.
    pub fn write(&mut self, stored: &[u8], opened: Option<&Opened>) -> Result<(), EvidenceError> {
        let record = Stored::parse(stored)?;
        let header = &record.header;
        let hash = record_hash(stored);
        if header.domain != self.keys.domain() && header.domain != DEPLOYMENT {
            return self.write_withheld(header.shard, header.number, &header.previous, &hash);
        }
        self.take(header.shard, header.number, &header.previous, hash)?;
        self.write_line(&Line {
            shard: header.shard,
            number: header.number,
            previous: hex::encode(header.previous),
            hash: hex::encode(hash),
            header: Some(HeaderView::from(header)),
            record: Some(STANDARD.encode(stored)),
            plaintext: opened.map(Plaintext::new),
            withheld: false,
        })
    }

    /// Adds a record by its hash only, so that the chain goes on.
    pub fn write_withheld(
        &mut self,
        shard: u32,
        number: u64,
        previous: &Hash,
        hash: &Hash,
    ) -> Result<(), EvidenceError> {
        self.take(shard, number, previous, *hash)?;
        if let Some(chain) = self.chains.get_mut(&shard) {
            chain.withheld += 1;
        }
        self.write_line(&Line {
            shard,
            number,
            previous: hex::encode(previous),
            hash: hex::encode(hash),
            header: None,
            record: None,
            plaintext: None,
            withheld: true,
        })
    }

    /// Writes the manifest, and gives back what was written to.
    pub fn finish(mut self, exported_at_ms: i64) -> Result<(W, Manifest), EvidenceError> {
        let manifest = Manifest {
            format: EXPORT_FORMAT.to_owned(),
            domain: self.keys.domain().to_owned(),
            deployment: self.deployment.to_owned(),
            key_id: self.keys.public_key().id(),
            exported_at_ms,
            lines: self.lines,
            shards: self
                .chains
                .iter()
                .map(|(shard, chain)| chain.summary(*shard))
                .collect(),
            sha256: hex::encode(seal::finish(self.above.clone())),
        };
        self.write_line(&ManifestBody {
            manifest: &manifest,
        })?;
        self.out.flush()?;
        Ok((self.out, manifest))
    }

    fn take(
        &mut self,
        shard: u32,
        number: u64,
        previous: &Hash,
        hash: Hash,
    ) -> Result<(), EvidenceError> {
        if !self.chains.contains_key(&shard) {
            if self.chains.len() >= SHARDS_LIMIT {
                return Err(EvidenceError::TooManyShards(SHARDS_LIMIT));
            }
            if number == FIRST_NUMBER && *previous != genesis(self.deployment, shard) {
                let reason = "it does not begin at this deployment's genesis";
                return Err(EvidenceError::BrokenLog {
                    shard,
                    number,
                    reason,
                });
            }
        }
        let chain = self
            .chains
            .entry(shard)
            .or_insert_with(|| Chain::start(number, *previous));
        let at = chain.next;
        let broken = |reason| EvidenceError::BrokenLog {
            shard,
            number: at,
            reason,
        };
        chain.take(number, previous, hash).map_err(broken)
    }

    fn write_line(&mut self, body: &impl Serialize) -> Result<(), EvidenceError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, body)?;
        // The signature goes in before the closing brace, over all that stands before it.
        self.line.pop();
        let signature = self.keys.sign(&line_digest(&self.line))?;
        self.line.extend_from_slice(SIGNATURE_START);
        self.line
            .extend_from_slice(STANDARD.encode(signature).as_bytes());
        self.line.extend_from_slice(SIGNATURE_END);
        if self.line.len() > LINE_LIMIT_BYTES {
            return Err(EvidenceError::TooLong("export line"));
        }
        self.line.push(b'\n');
        self.above.update(&self.line);
        self.out.write_all(&self.line)?;
        self.lines += 1;
        Ok(())
    }
}
