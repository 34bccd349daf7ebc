//! The cryptography of a record: seal, digest, hash, genesis. Each use of SHA-256 has a label of
//! its own, so that no value can stand for another.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::digest::{Context, SHA256};

use crate::record::{Binding, Content, ContentRef, Draft, Opened, Sealed, Stored};
use crate::{DomainKeys, EvidenceError, Hash, RECORD_FORMAT, RECORD_LIMIT_BYTES, Random};

pub(crate) const NONCE_BYTES: usize = NONCE_LEN;
pub(crate) const SALT_BYTES: usize = 16;
/// AES-256-GCM with a random nonce: at most 2^32 records a key (NIST SP 800-38D §8.3), then
/// [`crate::KeyRing::rotate_data_key`].
pub(crate) const AES_256_GCM: u8 = 1;

const TAG_BYTES: usize = 16;
/// Room for the header of a usual record: the fixed fields and some short texts.
const HEADER_HINT: usize = 256;

const RECORD_LABEL: &[u8] = b"chancery evidence record v1\0";
const CONTENT_LABEL: &[u8] = b"chancery evidence content v1\0";
const GENESIS_LABEL: &[u8] = b"chancery evidence genesis v1\0";

/// SHA-256 of a label and what follows it.
pub fn digest(label: &[u8], parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(label);
    for part in parts {
        context.update(part);
    }
    finish(context)
}

pub(crate) fn finish(context: Context) -> Hash {
    let mut hash = Hash::default();
    // SHA-256 is 32 bytes by definition, so the copy covers both.
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}

/// The hash of a stored record, which the next record of its shard carries.
pub fn record_hash(stored: &[u8]) -> Hash {
    digest(RECORD_LABEL, &[stored])
}

/// What the first record of a shard carries in place of a record's hash.
pub fn genesis(deployment: &str, shard: u32) -> Hash {
    digest(
        GENESIS_LABEL,
        &[deployment.as_bytes(), b"\0", &shard.to_be_bytes()],
    )
}

/// The digest of a content with its salt, as the header carries it.
pub(crate) fn content_digest(
    salt: &[u8; SALT_BYTES],
    content: ContentRef<'_>,
) -> Result<Hash, EvidenceError> {
    let mut plain = Vec::with_capacity(content.len_hint());
    content.encode(&mut plain)?;
    Ok(digest(CONTENT_LABEL, &[salt, &plain]))
}

pub(crate) fn seal(
    draft: &Draft<'_>,
    keys: &DomainKeys,
    previous: &Hash,
    random: Random<'_>,
) -> Result<Sealed, EvidenceError> {
    let (key_id, key) = keys.active_data_key()?;
    // One draw: the generator's cost is per call.
    let mut drawn = [0; NONCE_BYTES + SALT_BYTES];
    random(&mut drawn);
    let (nonce, salt) = drawn.split_at(NONCE_BYTES);

    let mut plain = Vec::with_capacity(SALT_BYTES + draft.content.len_hint());
    plain.extend_from_slice(salt);
    draft.content.encode(&mut plain)?;
    let binding = Binding {
        previous,
        key_id,
        algorithm: AES_256_GCM,
        content_digest: digest(CONTENT_LABEL, &[&plain]),
    };

    let mut bytes = Vec::with_capacity(HEADER_HINT + draft.detail.len() + plain.len() + TAG_BYTES);
    bytes.push(RECORD_FORMAT);
    bytes.extend_from_slice(&[0; 4]);
    draft.encode_header(&mut bytes, &binding)?;
    let header_end = bytes.len();
    if header_end + plain.len() + TAG_BYTES + NONCE_BYTES + 4 > RECORD_LIMIT_BYTES {
        return Err(EvidenceError::TooLong("record"));
    }
    let header_len = u32::try_from(header_end - 5).map_err(|_| EvidenceError::TooLong("header"))?;
    bytes[1..5].copy_from_slice(&header_len.to_be_bytes());
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| EvidenceError::Crypto)?;
    bytes.extend_from_slice(nonce.as_ref());
    let sealed_len = u32::try_from(plain.len() + TAG_BYTES);
    let sealed_len = sealed_len.map_err(|_| EvidenceError::TooLong("content"))?;
    bytes.extend_from_slice(&sealed_len.to_be_bytes());

    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(&bytes[..header_end]), &mut plain)
        .map_err(|_| EvidenceError::Crypto)?;
    bytes.extend_from_slice(&plain);
    bytes.extend_from_slice(tag.as_ref());
    let hash = record_hash(&bytes);
    Ok(Sealed { bytes, hash })
}

pub(crate) fn open(stored: &Stored<'_>, keys: &DomainKeys) -> Result<Opened, EvidenceError> {
    if stored.header.algorithm != AES_256_GCM {
        return Err(EvidenceError::Malformed("unknown algorithm"));
    }
    let key = keys.data_key(stored.header.key_id)?;
    let mut plain = stored.sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(stored.nonce);
    let plain = key
        .open_in_place(nonce, Aad::from(stored.associated), &mut plain)
        .map_err(|_| EvidenceError::DoesNotOpen)?;
    if digest(CONTENT_LABEL, &[plain]) != stored.header.content_digest {
        return Err(EvidenceError::ContentDigest);
    }
    let short = EvidenceError::Malformed("no salt");
    let (salt, content) = plain.split_first_chunk::<SALT_BYTES>().ok_or(short)?;
    Ok(Opened {
        salt: *salt,
        content: Content::decode(content)?,
    })
}
