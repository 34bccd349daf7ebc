//! From a group's records to sealed bytes: fills in the evidence draft, and keeps the key file.
//! Owns what goes into the readable header and what is sealed; refuses to know the disk's tables.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chancery_api::{Denial, Kind as StanzaKind};
use chancery_evidence::{
    ContentRef, DEPLOYMENT, Direction, Draft, EvidenceError, Hash, KeyRing, Kind,
    Outcome as Recorded, Random, Sealed, Verdict,
};
use chancery_runtime::Ids;
use chancery_store::StoreError;

use crate::entry::Peer;
use crate::item::{Item, domain_of};
use crate::shard::{Act, Record};

/// The only retention class there is yet.
const RETENTION: &str = "standard";
/// Domains that may have keys; a further one is refused.
const DOMAINS_LIMIT: usize = 1_024;

/// Why keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is no key file, or the keys do not work.
    #[error("keys: {0}")]
    Evidence(#[from] EvidenceError),
    /// A log without its keys cannot be read, and must not be gone on with under others.
    #[error("{path} is missing beside a log that has records")]
    Missing { path: PathBuf },
    /// More domains than the limit.
    #[error("more than {DOMAINS_LIMIT} domains have keys")]
    TooMany,
}

impl KeyError {
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Io { path, source } => {
                let kind = std::io::Error::from(source.kind());
                StoreError::io(path, kind).is_full()
            }
            _ => false,
        }
    }
}

/// Reads the key file, or makes it beside an empty log; adds keys for `domains`.
pub(crate) fn load_keys(
    path: &Path,
    log_has_records: bool,
    domains: &[String],
    ids: &Ids,
) -> Result<KeyRing, KeyError> {
    let mut random = |out: &mut [u8]| ids.fill(out);
    let mut ring = match fs::read_to_string(path) {
        Ok(text) => KeyRing::from_json(&text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if log_has_records {
                return Err(KeyError::Missing {
                    path: path.to_owned(),
                });
            }
            KeyRing::generate(&mut random)
        }
        Err(source) => {
            return Err(KeyError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut changed = ring.add_domain(DEPLOYMENT, &mut random)?;
    for domain in domains {
        changed |= ring.add_domain(domain, &mut random)?;
    }
    if changed {
        write_keys(path, &ring)?;
    }
    Ok(ring)
}

/// Makes keys for a domain that is new, durably, before anything is sealed with them.
pub(crate) fn add_domain(
    path: &Path,
    ring: &mut KeyRing,
    domain: &str,
    ids: &Ids,
) -> Result<(), KeyError> {
    if ring.domains().count() >= DOMAINS_LIMIT {
        return Err(KeyError::TooMany);
    }
    // Written first: keys that are not on the disk must seal nothing.
    let mut longer = KeyRing::from_json(&ring.to_json()?)?;
    longer.add_domain(domain, &mut |out: &mut [u8]| ids.fill(out))?;
    write_keys(path, &longer)?;
    *ring = longer;
    Ok(())
}

/// Replaces the file, readable by its owner only, in one durable step.
fn write_keys(path: &Path, ring: &KeyRing) -> Result<(), KeyError> {
    let json = ring.to_json()?;
    let io = |source| KeyError::Io {
        path: path.to_owned(),
        source,
    };
    let next = path.with_extension("json.new");
    match fs::remove_file(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)
        .map_err(io)?;
    file.write_all(json.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&next, path).map_err(io)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::File::open(directory)
        .and_then(|dir| dir.sync_all())
        .map_err(io)
}

/// Bytes drawn from the generator at once: its cost is per call.
const DRAWN_BYTES: usize = 4 * 1024;

/// Random bytes for nonces and salts, drawn in advance; each is given once.
pub(crate) struct Drawn {
    bytes: Box<[u8; DRAWN_BYTES]>,
    given: usize,
}

impl Default for Drawn {
    fn default() -> Self {
        Self {
            bytes: Box::new([0; DRAWN_BYTES]),
            given: DRAWN_BYTES,
        }
    }
}

impl Drawn {
    /// Fills `out`.
    pub(crate) fn fill(&mut self, out: &mut [u8], ids: &Ids) {
        if DRAWN_BYTES - self.given < out.len() {
            ids.fill(&mut self.bytes[..]);
            self.given = 0;
        }
        match self.bytes.get_mut(self.given..self.given + out.len()) {
            Some(next) => {
                out.copy_from_slice(next);
                // Nobody who sees the memory later learns what was used.
                next.fill(0);
                self.given += out.len();
            }
            None => ids.fill(out),
        }
    }
}

/// The place of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    pub(crate) time_ms: i64,
}

/// The domain whose keys seal a record.
pub(crate) fn domain_of_record(record: &Record) -> &str {
    match record {
        Record::Stanza { item, .. } => item.domain(),
        Record::Act { act, .. } => &act.domain,
    }
}

/// A sealed record, and what only its entries need.
pub(crate) struct Made {
    pub(crate) sealed: Sealed,
    pub(crate) archive_id: String,
    /// The other side of the recipient's entry, and of the sender's.
    pub(crate) peers: Option<[Peer; 2]>,
}

/// Seals a record.
pub(crate) fn seal(
    ring: &KeyRing,
    record: &Record,
    place: Place,
    previous: &Hash,
    random: Random<'_>,
) -> Result<Made, EvidenceError> {
    match record {
        Record::Stanza { item, outcome, .. } => {
            seal_stanza(ring, item, *outcome, place, previous, random)
        }
        Record::Act { act, .. } => {
            let sealed = seal_act(ring, act, place, previous, random)?;
            Ok(Made {
                sealed,
                archive_id: String::new(),
                peers: None,
            })
        }
    }
}

fn seal_stanza(
    ring: &KeyRing,
    item: &Item,
    outcome: Recorded,
    place: Place,
    previous: &Hash,
    random: Random<'_>,
) -> Result<Made, EvidenceError> {
    let wire = &item.wire;
    let domain = item.domain();
    let keys = ring.domain(domain)?;
    let verdict = wire.verdict.as_ref();
    let reason = verdict
        .filter(|_| !item.allowed)
        .map_or("", |v| match v.denial() {
            Denial::PolicyViolation => "policy-violation",
            Denial::RemoteServerNotFound => "remote-server-not-found",
            Denial::Blocked => "blocked",
            Denial::ServiceUnavailable | Denial::Unspecified => "service-unavailable",
        });
    let changed = !wire.received.is_empty();
    let sender = keys.pseudonym(item.sender_bare());
    let recipient = keys.pseudonym(item.to_bare());
    let draft = Draft {
        domain,
        shard: place.shard,
        epoch: place.epoch,
        number: place.number,
        time_ms: place.time_ms,
        kind: match wire.kind() {
            StanzaKind::Presence => Kind::Presence,
            StanzaKind::Iq => Kind::Iq,
            StanzaKind::Message | StanzaKind::Unspecified => Kind::Message,
        },
        direction: Direction::Internal,
        outcome,
        verdict: if item.allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        },
        policy_version: verdict.map_or(0, |v| v.policy_version),
        rule: verdict.map_or("", |v| v.rule_id.as_str()),
        reason,
        retention: RETENTION,
        gateway: &wire.gateway,
        key: item.key,
        sender: Some(sender),
        recipients: &[recipient],
        detail: "",
        content: ContentRef {
            from: &wire.from,
            to: &[&wire.to],
            stanza_id: &wire.id,
            stanza_type: &wire.r#type,
            payload: if changed {
                &wire.received
            } else {
                &wire.payload
            },
            delivered: changed.then_some(&wire.payload[..]),
        },
    };
    let sealed = draft.seal(ring, previous, random)?;
    let theirs = ring.archive_id(domain_of(item.to_bare()), place.shard, place.number);
    // A domain without keys of its own is not ours: then the id is the sender's.
    let archive_id = theirs.or_else(|_| keys.archive_id(place.shard, place.number))?;
    Ok(Made {
        sealed,
        archive_id,
        peers: Some([Peer::of(&sender), Peer::of(&recipient)]),
    })
}

fn seal_act(
    ring: &KeyRing,
    act: &Act,
    place: Place,
    previous: &Hash,
    random: Random<'_>,
) -> Result<Sealed, EvidenceError> {
    let draft = Draft {
        domain: &act.domain,
        shard: place.shard,
        epoch: place.epoch,
        number: place.number,
        time_ms: place.time_ms,
        kind: act.kind,
        direction: Direction::Internal,
        outcome: Recorded::Recorded,
        verdict: Verdict::NotAsked,
        policy_version: 0,
        rule: "",
        reason: "",
        retention: RETENTION,
        gateway: "",
        key: None,
        sender: None,
        recipients: &[],
        detail: &act.detail,
        content: ContentRef {
            from: &act.actor,
            to: &[],
            stanza_id: "",
            stanza_type: &act.act,
            payload: act.sealed.as_bytes(),
            delivered: None,
        },
    };
    draft.seal(ring, previous, random)
}

/// The kind of record that an act makes.
pub(crate) fn kind_of_act(act: &str) -> Kind {
    match act.split('.').next() {
        Some("policy") => Kind::PolicyChange,
        Some("evidence") if act == "evidence.export" => Kind::Export,
        Some("evidence" | "archive") => Kind::Reading,
        _ => Kind::Administrative,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_file_is_private_and_made_only_beside_an_empty_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let ids = Ids::seeded(1);
        let missing = load_keys(&path, true, &[], &ids).unwrap_err();
        assert!(matches!(missing, KeyError::Missing { .. }), "{missing}");
        let ring = load_keys(&path, false, &["x.test".to_owned()], &ids).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = load_keys(&path, true, &[], &ids).unwrap();
        assert_eq!(again.deployment(), ring.deployment());
        assert!(again.domain("x.test").is_ok() && again.domain("y.test").is_err());
        add_domain(&path, &mut again, "y.test", &ids).unwrap();
        let again = load_keys(&path, true, &[], &ids).unwrap();
        assert!(again.domain("y.test").is_ok());
        std::fs::write(&path, "{}").unwrap();
        assert!(load_keys(&path, true, &[], &ids).is_err());
    }

    #[test]
    fn what_was_drawn_is_given_once() {
        let ids = Ids::seeded(5);
        let mut drawn = Drawn::default();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let mut out = [0; 44];
            drawn.fill(&mut out, &ids);
            assert!(out != [0; 44] && seen.insert(out));
        }
        let mut large = vec![0; DRAWN_BYTES + 1];
        drawn.fill(&mut large, &ids);
        assert!(large.iter().any(|byte| *byte != 0));
    }
}
