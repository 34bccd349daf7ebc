//! An item that was taken, and an envelope: an item with its place in the log. Owns the check of
//! what an item must have; refuses to look into the payload.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use chancery_api::archive::{AppendItem, AttachUp, Deliver, Target, attach_up};
use chancery_api::{Decision, Kind, Verdict};
use chancery_evidence::{IdempotencyKey, Opened, RECORD_LIMIT_BYTES, Stored};
use chancery_xmpp::routing::Facts;
use chancery_xmpp::stanza::{MessageType, StanzaType};

use crate::entry::Entry;
use crate::route;

/// The longest address (RFC 7622 §3.1).
const JID_LIMIT_BYTES: usize = 3_071;
/// The longest id, type or rule: above it the gateway's own limits have failed.
const TEXT_LIMIT_BYTES: usize = 16 * 1024;
/// What a record needs besides the stanza.
const RECORD_ROOM_BYTES: usize = 128 * 1024;

/// An item that may go into the log.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) wire: AppendItem,
    pub(crate) facts: Facts,
    pub(crate) allowed: bool,
    pub(crate) key: Option<IdempotencyKey>,
    /// The two bare JIDs, as one number.
    pub(crate) pair: u64,
    from_bare: usize,
    to_bare: usize,
}

/// Why an item is not taken.
pub(crate) type Refusal = &'static str;

impl Item {
    /// Checks an item. Addresses come normalised: here only what would break a key is refused.
    pub(crate) fn check(wire: AppendItem, shard: u32) -> Result<Self, Refusal> {
        if wire.shard != shard {
            return Err("wrong shard");
        }
        let from_bare = bare_len(&wire.from).ok_or("malformed from")?;
        let to_bare = bare_len(&wire.to).ok_or("malformed to")?;
        let key = match wire.sm_id.len() {
            0 => None,
            16 => Some(IdempotencyKey {
                stream: stream_id(&wire.sm_id),
                count: wire.count,
            }),
            _ => return Err("malformed stream-management id"),
        };
        let facts = route::facts(&wire).ok_or("unknown kind or type")?;
        let decision = wire
            .verdict
            .as_ref()
            .map_or(Decision::Unspecified, Verdict::decision);
        if decision == Decision::Unspecified {
            return Err("no verdict");
        }
        if wire.ephemeral && decision != Decision::Allow {
            return Err("an ephemeral item that is denied");
        }
        let texts = [&wire.id, &wire.r#type, &wire.gateway, &wire.traceparent];
        let rule = wire
            .verdict
            .as_ref()
            .map_or(0, |verdict| verdict.rule_id.len());
        if texts.iter().any(|text| text.len() > TEXT_LIMIT_BYTES) || rule > TEXT_LIMIT_BYTES {
            return Err("a text is too long");
        }
        if wire.payload.len() + wire.received.len() > RECORD_LIMIT_BYTES - RECORD_ROOM_BYTES {
            return Err("the stanza is too long");
        }
        let mut hasher = DefaultHasher::new();
        (wire.from.get(..from_bare), wire.to.get(..to_bare)).hash(&mut hasher);
        let pair = hasher.finish();
        let allowed = decision == Decision::Allow;
        Ok(Self {
            wire,
            facts,
            allowed,
            key,
            pair,
            from_bare,
            to_bare,
        })
    }

    /// The item that a stored record was made of; what is not stored (session, trace) is empty.
    pub(crate) fn from_record(stored: &Stored<'_>, opened: Opened, entry: Entry) -> Option<Self> {
        let content = opened.content;
        let kind = match stored.header.kind {
            chancery_evidence::Kind::Message => Kind::Message,
            chancery_evidence::Kind::Iq => Kind::Iq,
            _ => return None,
        };
        let wire = AppendItem {
            shard: stored.header.shard,
            from: content.from,
            to: content.to.into_iter().next()?,
            kind: kind.into(),
            r#type: content.stanza_type,
            id: content.stanza_id,
            payload: content.delivered.unwrap_or(content.payload).into(),
            verdict: Some(Verdict {
                decision: Decision::Allow.into(),
                policy_version: stored.header.policy_version,
                ..Verdict::default()
            }),
            has_body: entry.has(Entry::BODY),
            no_copy: entry.has(Entry::NO_COPY),
            no_store: entry.has(Entry::NO_STORE),
            ..AppendItem::default()
        };
        Self::check(wire, stored.header.shard).ok()
    }

    pub(crate) fn sender_bare(&self) -> &str {
        self.wire
            .from
            .get(..self.from_bare)
            .unwrap_or(&self.wire.from)
    }

    pub(crate) fn to_bare(&self) -> &str {
        self.wire.to.get(..self.to_bare).unwrap_or(&self.wire.to)
    }

    pub(crate) fn to_resource(&self) -> Option<&str> {
        self.wire.to.get(self.to_bare + 1..)
    }

    pub(crate) fn sender_resource(&self) -> &str {
        self.wire.from.get(self.from_bare + 1..).unwrap_or_default()
    }

    /// The domain whose keys seal the record: the sender's, who is always one of ours.
    pub(crate) fn domain(&self) -> &str {
        domain_of(self.sender_bare())
    }

    pub(crate) fn is_to_self(&self) -> bool {
        self.sender_bare() == self.to_bare()
    }

    pub(crate) fn is_iq_request(&self) -> bool {
        self.wire.kind() == Kind::Iq && matches!(self.wire.r#type.as_str(), "get" | "set")
    }

    /// Whether it makes entries at all: presence is evidence only (RFC 6121 §4 delivers it).
    pub(crate) fn makes_entries(&self) -> bool {
        self.allowed && self.wire.kind() != Kind::Presence && !self.wire.ephemeral
    }

    /// Whether users find it in their archives: what is a conversation (XEP-0313), and nothing that
    /// its sender's hints exclude (XEP-0334).
    fn is_archived(&self) -> bool {
        let hinted = self.wire.no_store || self.wire.no_archive;
        let conversation = matches!(
            self.facts.type_,
            StanzaType::Message(MessageType::Chat | MessageType::Normal)
        );
        conversation && !hinted
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        let mut set = |on: bool, flag: u8| flags |= if on { flag } else { 0 };
        set(self.wire.has_body, Entry::BODY);
        set(self.wire.no_copy, Entry::NO_COPY);
        set(self.wire.no_store, Entry::NO_STORE);
        set(!self.is_archived(), Entry::HIDDEN);
        flags
    }

    /// The recipient's entry.
    pub(crate) fn received_entry(&self) -> Entry {
        let open = if self.facts.keep { Entry::OPEN } else { 0 };
        Entry::new(self.flags() | open, self.wire.payload.len())
    }

    /// The sender's own copy, born closed.
    pub(crate) fn sent_entry(&self) -> Entry {
        Entry::new(self.flags() | Entry::SENT, self.wire.payload.len())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.wire.payload.len() + self.wire.received.len() + 512
    }
}

/// An item with its place in the log; an ephemeral one has the number 0 and no archive id.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) item: Arc<Item>,
    pub(crate) number: u64,
    pub(crate) archive_id: String,
    pub(crate) stamp_ms: i64,
}

impl Envelope {
    /// The envelope for `targets`, all on one gateway.
    pub(crate) fn deliver(&self, targets: Vec<Target>) -> AttachUp {
        let wire = &self.item.wire;
        let deliver = Deliver {
            number: self.number,
            archive_id: self.archive_id.clone(),
            from: wire.from.clone(),
            to: wire.to.clone(),
            kind: wire.kind,
            r#type: wire.r#type.clone(),
            payload: wire.payload.clone(),
            stamp_ms: self.stamp_ms,
            policy_version: wire
                .verdict
                .as_ref()
                .map_or(0, |verdict| verdict.policy_version),
            targets,
            traceparent: wire.traceparent.clone(),
        };
        AttachUp {
            item: Some(attach_up::Item::Deliver(deliver)),
        }
    }
}

/// The domainpart of a bare JID.
pub(crate) fn domain_of(bare: &str) -> &str {
    bare.rsplit_once('@').map_or(bare, |(_, domain)| domain)
}

/// Where the bare JID ends in a well-formed address.
pub(crate) fn bare_len(jid: &str) -> Option<usize> {
    if jid.len() > JID_LIMIT_BYTES || jid.bytes().any(|b| b < b' ') {
        return None;
    }
    let bare = jid.find('/').unwrap_or(jid.len());
    let (local, domain) = match jid.get(..bare)?.split_once('@') {
        Some((local, domain)) => (Some(local), domain),
        None => (None, jid.get(..bare)?),
    };
    let domain_bad = domain.is_empty() || domain.contains(['@', ' ']);
    let bad = domain_bad || local.is_some_and(str::is_empty) || bare + 1 == jid.len();
    (!bad).then_some(bare)
}

/// A stream-management id as the record keeps it.
pub(crate) fn stream_id(bytes: &[u8]) -> [u8; 16] {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(bytes) {
        *to = *from;
    }
    id
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn an_address_is_taken_apart_or_refused() {
        for (jid, bare) in [
            ("a@b", Some(3)),
            ("a@b/c", Some(3)),
            ("a@b/c/d@e", Some(3)),
            ("b", Some(1)),
            ("", None),
            ("@b", None),
            ("a@", None),
            ("a@b/", None),
            ("a@b@c", None),
            ("a\n@b", None),
        ] {
            assert_eq!(bare_len(jid), bare, "{jid:?}");
        }
    }

    fn good() -> AppendItem {
        AppendItem {
            from: "a@x/1".into(),
            to: "b@x".into(),
            kind: Kind::Message.into(),
            r#type: "chat".into(),
            sm_id: vec![7; 16].into(),
            count: 1,
            verdict: Some(Verdict {
                decision: Decision::Allow.into(),
                ..Verdict::default()
            }),
            ..AppendItem::default()
        }
    }

    #[test]
    fn an_item_without_what_it_must_have_is_refused() {
        let item = Item::check(good(), 0).unwrap();
        assert_eq!((item.sender_bare(), item.sender_resource()), ("a@x", "1"));
        assert_eq!(
            (item.to_bare(), item.to_resource(), item.domain()),
            ("b@x", None, "x")
        );
        assert!(Item::check(good(), 1).is_err(), "another shard's");
        for bad in [
            AppendItem {
                verdict: None,
                ..good()
            },
            AppendItem {
                verdict: Some(Verdict::default()),
                ..good()
            },
            AppendItem {
                sm_id: vec![7; 15].into(),
                ..good()
            },
            AppendItem {
                to: "b@".into(),
                ..good()
            },
            AppendItem { kind: 0, ..good() },
            AppendItem {
                payload: vec![0; RECORD_LIMIT_BYTES].into(),
                ..good()
            },
        ] {
            assert!(Item::check(bad, 0).is_err());
        }
    }
}
