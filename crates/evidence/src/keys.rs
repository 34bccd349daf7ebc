//! The keys of a deployment: per domain a data key, a key for pseudonyms, one for archive ids and
//! one that signs. It owns their text form; the caller owns the file (mode 0600) and the
//! randomness. Nothing here prints a secret but `to_json`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{DEPLOYMENT, EvidenceError, Hash, Pseudonym, Random, digest, genesis, seal};

const FILE_FORMAT: &str = "chancery-keys/1";
const PSEUDONYM_LABEL: &[u8] = b"chancery pseudonym v1\0";
const PUBLIC_KEY_LABEL: &[u8] = b"chancery public key v1\0";
/// Fills an archive id's block, so that an id of another key is recognised as none of ours.
const ARCHIVE_ID_MARK: [u8; 4] = *b"CHv1";
/// The longest key file that is read: some ten thousand domains.
const FILE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// All keys of a deployment.
#[derive(Debug)]
pub struct KeyRing {
    deployment: String,
    domains: BTreeMap<String, DomainKeys>,
}

impl KeyRing {
    /// A deployment with an id of its own and no keys yet, not even those of [`DEPLOYMENT`].
    pub fn generate(random: Random<'_>) -> Self {
        let mut id = [0; 16];
        random(&mut id);
        Self {
            deployment: hex::encode(id),
            domains: BTreeMap::new(),
        }
    }

    /// Makes keys for `domain`, unless it has some. Returns whether it did.
    pub fn add_domain(&mut self, domain: &str, random: Random<'_>) -> Result<bool, EvidenceError> {
        if self.domains.contains_key(domain) {
            return Ok(false);
        }
        let secrets = Secrets::generate(random);
        self.domains
            .insert(domain.to_owned(), DomainKeys::new(domain, secrets)?);
        Ok(true)
    }

    /// Gives `domain` a new data key for what is sealed from now on; the older ones still open.
    pub fn rotate_data_key(
        &mut self,
        domain: &str,
        random: Random<'_>,
    ) -> Result<u32, EvidenceError> {
        let keys = self.domain(domain)?;
        let mut secrets = keys.secrets.clone();
        let newest = secrets.data.keys().next_back().copied().unwrap_or(0);
        let id = newest.checked_add(1).ok_or(EvidenceError::Crypto)?;
        let mut key = [0; 32];
        random(&mut key);
        secrets.data.insert(id, key);
        self.domains
            .insert(domain.to_owned(), DomainKeys::new(domain, secrets)?);
        Ok(id)
    }

    /// The deployment's id: 32 hex digits, not secret.
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    /// What the first record of `shard` carries as its previous hash.
    pub fn genesis(&self, shard: u32) -> Hash {
        genesis(&self.deployment, shard)
    }

    /// The keys of `domain`.
    pub fn domain(&self, domain: &str) -> Result<&DomainKeys, EvidenceError> {
        self.domains
            .get(domain)
            .ok_or_else(|| EvidenceError::UnknownDomain(domain.to_owned()))
    }

    /// The domains that have keys, without [`DEPLOYMENT`].
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domains
            .keys()
            .map(String::as_str)
            .filter(|domain| *domain != DEPLOYMENT)
    }

    /// See [`DomainKeys::pseudonym`].
    pub fn pseudonym(&self, domain: &str, jid: &str) -> Result<Pseudonym, EvidenceError> {
        Ok(self.domain(domain)?.pseudonym(jid))
    }

    /// See [`DomainKeys::archive_id`].
    pub fn archive_id(
        &self,
        domain: &str,
        shard: u32,
        number: u64,
    ) -> Result<String, EvidenceError> {
        self.domain(domain)?.archive_id(shard, number)
    }

    /// See [`DomainKeys::decode_archive_id`].
    pub fn decode_archive_id(&self, domain: &str, id: &str) -> Option<(u32, u64)> {
        self.domain(domain).ok()?.decode_archive_id(id)
    }

    /// The key that checks what `domain` signs.
    pub fn public_key(&self, domain: &str) -> Result<PublicKey, EvidenceError> {
        Ok(self.domain(domain)?.public_key())
    }

    /// The key file's text. It holds every secret.
    pub fn to_json(&self) -> Result<String, EvidenceError> {
        let domains = self.domains.iter().map(|(name, keys)| {
            let secrets = &keys.secrets;
            let data = secrets
                .data
                .iter()
                .map(|(id, key)| (*id, STANDARD.encode(key)));
            let file = DomainFile {
                data: data.collect(),
                pseudonym: STANDARD.encode(secrets.pseudonym),
                archive_id: STANDARD.encode(secrets.archive_id),
                signing: STANDARD.encode(secrets.signing),
            };
            (name.clone(), file)
        });
        let file = RingFile {
            format: FILE_FORMAT.to_owned(),
            deployment: self.deployment.clone(),
            domains: domains.collect(),
        };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }

    /// Reads a key file's text. Errors name the field, never its value.
    pub fn from_json(text: &str) -> Result<Self, EvidenceError> {
        let bad = |what: &str| EvidenceError::KeyFile(what.to_owned());
        if text.len() > FILE_LIMIT_BYTES {
            return Err(bad("too long"));
        }
        // An error of serde may quote a value, so only its place is passed on.
        let file: RingFile = serde_json::from_str(text)
            .map_err(|e| bad(&format!("line {} column {}", e.line(), e.column())))?;
        if file.format != FILE_FORMAT {
            return Err(bad("unknown format"));
        }
        if file.deployment.len() != 32 || hex::decode(&file.deployment).is_err() {
            return Err(bad("deployment"));
        }
        let mut domains = BTreeMap::new();
        for (name, domain) in file.domains {
            let mut data = BTreeMap::new();
            for (id, key) in domain.data {
                data.insert(id, secret(&key, "data")?);
            }
            let secrets = Secrets {
                data,
                pseudonym: secret(&domain.pseudonym, "pseudonym")?,
                archive_id: secret(&domain.archive_id, "archive_id")?,
                signing: secret(&domain.signing, "signing")?,
            };
            let keys = DomainKeys::new(&name, secrets)?;
            domains.insert(name, keys);
        }
        Ok(Self {
            deployment: file.deployment,
            domains,
        })
    }
}

fn secret<const N: usize>(text: &str, field: &str) -> Result<[u8; N], EvidenceError> {
    let bytes = STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| EvidenceError::KeyFile(field.to_owned()))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RingFile {
    format: String,
    deployment: String,
    domains: BTreeMap<String, DomainFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainFile {
    data: BTreeMap<u32, String>,
    pseudonym: String,
    archive_id: String,
    signing: String,
}

#[derive(Clone)]
struct Secrets {
    data: BTreeMap<u32, [u8; 32]>,
    pseudonym: [u8; 32],
    archive_id: [u8; 16],
    signing: [u8; 32],
}

impl Secrets {
    fn generate(random: Random<'_>) -> Self {
        let mut secrets = Self {
            data: BTreeMap::new(),
            pseudonym: [0; 32],
            archive_id: [0; 16],
            signing: [0; 32],
        };
        let mut key = [0; 32];
        random(&mut key);
        secrets.data.insert(1, key);
        random(&mut secrets.pseudonym);
        random(&mut secrets.archive_id);
        random(&mut secrets.signing);
        secrets
    }
}

/// The keys of one domain, ready for use.
pub struct DomainKeys {
    domain: String,
    secrets: Secrets,
    data: BTreeMap<u32, LessSafeKey>,
    pseudonym: hmac::Key,
    archive_id_out: EncryptingKey,
    archive_id_in: DecryptingKey,
    signing: Ed25519KeyPair,
    public: PublicKey,
}

impl DomainKeys {
    fn new(domain: &str, secrets: Secrets) -> Result<Self, EvidenceError> {
        let crypto = |_| EvidenceError::Crypto;
        if secrets.data.is_empty() {
            return Err(EvidenceError::KeyFile("data".to_owned()));
        }
        let mut data = BTreeMap::new();
        for (id, key) in &secrets.data {
            let key = UnboundKey::new(&AES_256_GCM, key).map_err(crypto)?;
            data.insert(*id, LessSafeKey::new(key));
        }
        let block_key = || UnboundCipherKey::new(&AES_128, &secrets.archive_id).map_err(crypto);
        let signing = Ed25519KeyPair::from_seed_unchecked(&secrets.signing)
            .map_err(|_| EvidenceError::Crypto)?;
        let public = signing
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| EvidenceError::Crypto)?;
        Ok(Self {
            domain: domain.to_owned(),
            data,
            pseudonym: hmac::Key::new(hmac::HMAC_SHA256, &secrets.pseudonym),
            archive_id_out: EncryptingKey::ecb(block_key()?).map_err(crypto)?,
            archive_id_in: DecryptingKey::ecb(block_key()?).map_err(crypto)?,
            signing,
            public: PublicKey(public),
            secrets,
        })
    }

    /// The domain's name.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What stands for `jid` in headers: the same JID is the same pseudonym within the domain,
    /// and nobody without the key can try JIDs against it.
    pub fn pseudonym(&self, jid: &str) -> Pseudonym {
        let mut context = hmac::Context::with_key(&self.pseudonym);
        context.update(PSEUDONYM_LABEL);
        context.update(jid.as_bytes());
        let tag = context.sign();
        let mut pseudonym = Pseudonym::default();
        // The tag is 32 bytes; its first 16 are the pseudonym (RFC 2104 §5 truncation).
        for (to, from) in pseudonym.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        pseudonym
    }

    /// The id by which clients know record `number` of `shard` (XEP-0359, XEP-0313): the number
    /// in one AES block, so that it tells neither order nor volume.
    pub fn archive_id(&self, shard: u32, number: u64) -> Result<String, EvidenceError> {
        let mut block = [0; 16];
        block[..4].copy_from_slice(&shard.to_be_bytes());
        block[4..12].copy_from_slice(&number.to_be_bytes());
        block[12..].copy_from_slice(&ARCHIVE_ID_MARK);
        self.archive_id_out
            .encrypt(&mut block)
            .map_err(|_| EvidenceError::Crypto)?;
        Ok(URL_SAFE_NO_PAD.encode(block))
    }

    /// The shard and number behind an archive id; `None` for whatever is not one of this domain.
    pub fn decode_archive_id(&self, id: &str) -> Option<(u32, u64)> {
        let mut block: [u8; 16] = URL_SAFE_NO_PAD.decode(id).ok()?.try_into().ok()?;
        self.archive_id_in
            .decrypt(&mut block, DecryptionContext::None)
            .ok()?;
        let (shard, rest) = block.split_first_chunk::<4>()?;
        let (number, mark) = rest.split_first_chunk::<8>()?;
        constant_time::verify_slices_are_equal(mark, &ARCHIVE_ID_MARK).ok()?;
        Some((u32::from_be_bytes(*shard), u64::from_be_bytes(*number)))
    }

    /// Signs `message` with the domain's Ed25519 key.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], EvidenceError> {
        let signature = self
            .signing
            .try_sign(message)
            .map_err(|_| EvidenceError::Crypto)?;
        signature
            .as_ref()
            .try_into()
            .map_err(|_| EvidenceError::Crypto)
    }

    /// The key that checks these signatures.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn active_data_key(&self) -> Result<(u32, &LessSafeKey), EvidenceError> {
        let newest = self.data.iter().next_back();
        newest
            .map(|(id, key)| (*id, key))
            .ok_or(EvidenceError::Crypto)
    }

    pub(crate) fn data_key(&self, key_id: u32) -> Result<&LessSafeKey, EvidenceError> {
        let unknown = || EvidenceError::UnknownKey {
            domain: self.domain.clone(),
            key_id,
        };
        self.data.get(&key_id).ok_or_else(unknown)
    }
}

impl fmt::Debug for DomainKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainKeys({}, {})", self.domain, self.public)
    }
}

/// The key that checks a domain's signatures; as text `ed25519:BASE64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Names the key: 16 hex digits of its hash.
    pub fn id(&self) -> String {
        hex::encode(&digest(PUBLIC_KEY_LABEL, &[&self.0])[..8])
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = EvidenceError;

    fn from_str(text: &str) -> Result<Self, EvidenceError> {
        let key = text
            .trim()
            .strip_prefix("ed25519:")
            .and_then(|key| STANDARD.decode(key).ok());
        let key = key
            .and_then(|key| key.try_into().ok())
            .ok_or(EvidenceError::PublicKey)?;
        Ok(Self(key))
    }
}

// The seal's constants and the key's length belong together.
const _: () = assert!(seal::NONCE_BYTES == 12);

#[cfg(test)]
mod tests;
