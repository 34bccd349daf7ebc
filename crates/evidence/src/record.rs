//! The record: a readable header, chained to the record before it, and a sealed part with the
//! JIDs and what was said. It owns the one encoding of both; `seal` owns the cryptography.
//!
//! Stored bytes: format (u8), header (u32 length, bytes), nonce (12 bytes), sealed part (u32
//! length, bytes). Everything up to the end of the header is the associated data of the seal.

use crate::codec::{Reader, Writer, utf8};
use crate::seal::{self, NONCE_BYTES, SALT_BYTES};
use crate::{
    Direction, EvidenceError, Hash, KeyRing, Kind, Outcome, Pseudonym, RECORD_FORMAT,
    RECORD_LIMIT_BYTES, Random, Verdict,
};

/// Names one stanza of one stream-management session, so that a resend is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// The stream-management id.
    pub stream: [u8; 16],
    /// The count of the stanza in it (XEP-0198 `h`).
    pub count: u64,
}

/// A record before it is sealed. Borrows everything: sealing makes one allocation.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    pub domain: &'a str,
    pub shard: u32,
    /// The incarnation of the shard's writer.
    pub epoch: u64,
    /// The place in the shard, from [`crate::FIRST_NUMBER`], without gaps.
    pub number: u64,
    pub time_ms: i64,
    pub kind: Kind,
    pub direction: Direction,
    pub outcome: Outcome,
    pub verdict: Verdict,
    pub policy_version: u64,
    pub rule: &'a str,
    pub reason: &'a str,
    /// The retention class.
    pub retention: &'a str,
    pub gateway: &'a str,
    pub key: Option<IdempotencyKey>,
    pub sender: Option<Pseudonym>,
    pub recipients: &'a [Pseudonym],
    /// Readable without a key: counters of a heartbeat, a policy's version. No JID, no content.
    pub detail: &'a str,
    pub content: ContentRef<'a>,
}

/// What is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRef<'a> {
    pub from: &'a str,
    pub to: &'a [&'a str],
    pub stanza_id: &'a str,
    pub stanza_type: &'a str,
    /// As received, after the true `from` was stamped.
    pub payload: &'a [u8],
    /// As delivered, where that differs.
    pub delivered: Option<&'a [u8]>,
}

/// What was sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub from: String,
    pub to: Vec<String>,
    pub stanza_id: String,
    pub stanza_type: String,
    pub payload: Vec<u8>,
    pub delivered: Option<Vec<u8>>,
}

/// The sealed part, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Makes the header's digest unguessable; given out together with the content.
    pub salt: [u8; SALT_BYTES],
    pub content: Content,
}

/// A record as it is stored, and its hash, which the next record carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub bytes: Vec<u8>,
    pub hash: Hash,
}

/// The readable part of a record. Fields as in [`Draft`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub domain: String,
    pub shard: u32,
    pub epoch: u64,
    pub number: u64,
    /// The hash of the record before it in the shard.
    pub previous: Hash,
    pub time_ms: i64,
    pub kind: Kind,
    pub direction: Direction,
    pub outcome: Outcome,
    pub verdict: Verdict,
    pub policy_version: u64,
    pub rule: String,
    pub reason: String,
    pub retention: String,
    pub gateway: String,
    pub key: Option<IdempotencyKey>,
    pub sender: Option<Pseudonym>,
    pub recipients: Vec<Pseudonym>,
    pub detail: String,
    /// The data key and the algorithm of the seal.
    pub key_id: u32,
    pub algorithm: u8,
    /// The salted digest of the content, to check an opened content without the key.
    pub content_digest: Hash,
}

/// What sealing adds to a draft.
pub(crate) struct Binding<'a> {
    pub previous: &'a Hash,
    pub key_id: u32,
    pub algorithm: u8,
    pub content_digest: Hash,
}

impl Draft<'_> {
    /// Encodes and seals the record after the one whose hash is `previous`.
    pub fn seal(
        &self,
        ring: &KeyRing,
        previous: &Hash,
        random: Random<'_>,
    ) -> Result<Sealed, EvidenceError> {
        seal::seal(self, ring.domain(self.domain)?, previous, random)
    }

    pub(crate) fn encode_header(
        &self,
        out: &mut Vec<u8>,
        binding: &Binding<'_>,
    ) -> Result<(), EvidenceError> {
        let mut w = Writer(out);
        w.text(self.domain, "domain")?;
        w.u32(self.shard);
        w.u64(self.epoch);
        w.u64(self.number);
        w.array(binding.previous);
        w.i64(self.time_ms);
        w.u8(self.kind.number());
        w.u8(self.direction.number());
        w.u8(self.outcome.number());
        w.u8(self.verdict.number());
        w.u64(self.policy_version);
        w.text(self.rule, "rule")?;
        w.text(self.reason, "reason")?;
        w.text(self.retention, "retention class")?;
        w.text(self.gateway, "gateway")?;
        w.u8(u8::from(self.key.is_some()));
        if let Some(key) = &self.key {
            w.array(&key.stream);
            w.u64(key.count);
        }
        w.u8(u8::from(self.sender.is_some()));
        if let Some(sender) = &self.sender {
            w.array(sender);
        }
        w.len16(self.recipients.len(), "recipients")?;
        for recipient in self.recipients {
            w.array(recipient);
        }
        w.long(self.detail.as_bytes(), "detail")?;
        w.u32(binding.key_id);
        w.u8(binding.algorithm);
        w.array(&binding.content_digest);
        Ok(())
    }
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let mut r = Reader::new(bytes);
        let header = Self {
            domain: r.text()?.to_owned(),
            shard: r.u32()?,
            epoch: r.u64()?,
            number: r.u64()?,
            previous: r.array()?,
            time_ms: r.i64()?,
            kind: Kind::from_number(r.u8()?)?,
            direction: Direction::from_number(r.u8()?)?,
            outcome: Outcome::from_number(r.u8()?)?,
            verdict: Verdict::from_number(r.u8()?)?,
            policy_version: r.u64()?,
            rule: r.text()?.to_owned(),
            reason: r.text()?.to_owned(),
            retention: r.text()?.to_owned(),
            gateway: r.text()?.to_owned(),
            key: match r.flag()? {
                true => Some(IdempotencyKey {
                    stream: r.array()?,
                    count: r.u64()?,
                }),
                false => None,
            },
            sender: match r.flag()? {
                true => Some(r.array()?),
                false => None,
            },
            recipients: {
                let count = usize::from(r.u16()?);
                let bytes = r.bytes(count * size_of::<Pseudonym>())?;
                bytes.as_chunks().0.to_vec()
            },
            detail: utf8(r.long()?)?.to_owned(),
            key_id: r.u32()?,
            algorithm: r.u8()?,
            content_digest: r.array()?,
        };
        r.end()?;
        Ok(header)
    }
}

impl ContentRef<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), EvidenceError> {
        let mut w = Writer(out);
        w.text(self.from, "from")?;
        w.len16(self.to.len(), "to")?;
        for to in self.to {
            w.text(to, "to")?;
        }
        w.text(self.stanza_id, "stanza id")?;
        w.text(self.stanza_type, "stanza type")?;
        w.long(self.payload, "payload")?;
        w.u8(u8::from(self.delivered.is_some()));
        if let Some(delivered) = self.delivered {
            w.long(delivered, "delivered payload")?;
        }
        Ok(())
    }

    /// Roughly how long the encoding is.
    pub(crate) fn len_hint(&self) -> usize {
        let to: usize = self.to.iter().map(|to| to.len() + 2).sum();
        self.from.len()
            + to
            + self.stanza_id.len()
            + self.stanza_type.len()
            + self.payload.len()
            + self.delivered.map_or(0, <[u8]>::len)
            + 24
    }
}

impl Content {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let mut r = Reader::new(bytes);
        let content = Self {
            from: r.text()?.to_owned(),
            to: {
                let count = r.u16()?;
                (0..count)
                    .map(|_| r.text().map(str::to_owned))
                    .collect::<Result<_, _>>()?
            },
            stanza_id: r.text()?.to_owned(),
            stanza_type: r.text()?.to_owned(),
            payload: r.long()?.to_vec(),
            delivered: match r.flag()? {
                true => Some(r.long()?.to_vec()),
                false => None,
            },
        };
        r.end()?;
        Ok(content)
    }

    /// Calls `f` with the content, borrowed.
    pub fn with_ref<R>(&self, f: impl FnOnce(ContentRef<'_>) -> R) -> R {
        let to: Vec<&str> = self.to.iter().map(String::as_str).collect();
        f(ContentRef {
            from: &self.from,
            to: &to,
            stanza_id: &self.stanza_id,
            stanza_type: &self.stanza_type,
            payload: &self.payload,
            delivered: self.delivered.as_deref(),
        })
    }
}

/// A stored record, parsed. The sealed part stays sealed until asked.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    pub header: Header,
    pub(crate) associated: &'a [u8],
    pub(crate) nonce: [u8; NONCE_BYTES],
    pub(crate) sealed: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Reads stored bytes. Strict: whatever is not exactly one record is an error.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > RECORD_LIMIT_BYTES {
            return Err(EvidenceError::TooLong("record"));
        }
        let mut r = Reader::new(bytes);
        if r.u8()? != RECORD_FORMAT {
            return Err(EvidenceError::Malformed("unknown format"));
        }
        let header_bytes = r.long()?;
        let header = Header::decode(header_bytes)?;
        // The header's end: the format's byte, the length's four, the header.
        let associated = bytes.get(..5 + header_bytes.len()).unwrap_or_default();
        let nonce = r.array()?;
        let sealed = r.long()?;
        r.end()?;
        Ok(Self {
            header,
            associated,
            nonce,
            sealed,
        })
    }

    /// Opens the sealed part, and checks it against the header's digest.
    pub fn open(&self, ring: &KeyRing) -> Result<Opened, EvidenceError> {
        seal::open(self, ring.domain(&self.header.domain)?)
    }
}

#[cfg(test)]
mod tests;
