//! What a mailbox's owner wants in the own archive (XEP-0441): a default, and two lists. Owns the
//! limits, the matching and the stored form. It is asked when an entry is made and binds that entry
//! only; refuses to bind the evidence, and what is delivered.

use chancery_api::archive::{Keep, Preferences as Wire};
use serde::{Deserialize, Serialize};

use crate::item::bare_len;

/// JIDs of both lists together.
const JIDS_LIMIT: usize = 1_000;
/// Bytes of both lists together: they stay in memory with the mailbox.
const JIDS_LIMIT_BYTES: usize = 64 * 1024;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preferences {
    /// Whoever is on no list is kept.
    fallback: bool,
    always: Vec<String>,
    never: Vec<String>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            fallback: true,
            always: Vec::new(),
            never: Vec::new(),
        }
    }
}

impl Preferences {
    /// Checks what came over the wire. Addresses come normalised.
    pub(crate) fn read(wire: Wire) -> Result<Self, &'static str> {
        let fallback = match wire.fallback() {
            Keep::Always => true,
            Keep::Never => false,
            Keep::Unspecified => return Err("no default"),
        };
        let jids = || wire.always.iter().chain(&wire.never);
        if jids().count() > JIDS_LIMIT || jids().map(String::len).sum::<usize>() > JIDS_LIMIT_BYTES
        {
            return Err("too many addresses");
        }
        if jids().any(|jid| bare_len(jid).is_none()) {
            return Err("malformed address");
        }
        Ok(Self {
            fallback,
            always: wire.always,
            never: wire.never,
        })
    }

    pub(crate) fn wire(self) -> Wire {
        let fallback = if self.fallback {
            Keep::Always
        } else {
            Keep::Never
        };
        Wire {
            fallback: fallback.into(),
            always: self.always,
            never: self.never,
        }
    }

    /// Whether what is exchanged with `peer` is kept. The more exact address wins, and of two that
    /// are equally exact the one on the list of what is never kept.
    pub(crate) fn keeps(&self, peer: &str) -> bool {
        let bare = bare_len(peer).and_then(|at| peer.get(..at));
        let has = |list: &[String], jid: &str| list.iter().any(|listed| listed == jid);
        // A listed bare JID stands for every resource (XEP-0441, JID matching).
        for jid in [Some(peer), bare].into_iter().flatten() {
            if has(&self.never, jid) {
                return false;
            }
            if has(&self.always, jid) {
                return true;
            }
        }
        self.fallback
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// What was stored. What cannot be read hides nothing.
    pub(crate) fn decode(stored: &[u8]) -> Option<Self> {
        serde_json::from_slice(stored)
            .inspect_err(|error| tracing::error!(%error, "stored preferences are malformed"))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn wire(fallback: Keep, always: &[&str], never: &[&str]) -> Wire {
        let list = |jids: &[&str]| jids.iter().map(|jid| (*jid).to_owned()).collect();
        Wire {
            fallback: fallback.into(),
            always: list(always),
            never: list(never),
        }
    }

    #[test]
    fn the_more_exact_address_wins() {
        let never = wire(Keep::Never, &["a@x", "c@x/1"], &["a@x/2", "b@x"]);
        let prefers = Preferences::read(never.clone()).unwrap();
        for (peer, kept) in [
            ("a@x", true),
            ("a@x/1", true),
            ("a@x/2", false),
            ("b@x/1", false),
            ("c@x/1", true),
            ("c@x/2", false),
            ("c@x", false),
            ("x", false),
        ] {
            assert_eq!(prefers.keeps(peer), kept, "{peer}");
        }
        let both = Preferences::read(wire(Keep::Always, &["a@x"], &["a@x"])).unwrap();
        assert!(!both.keeps("a@x/1") && both.keeps("b@x"));
        let again = Preferences::decode(&prefers.encode().unwrap()).unwrap();
        assert_eq!(again.wire(), never);
        assert!(Preferences::default().keeps("a@x"));
    }

    #[test]
    fn what_has_no_default_or_is_too_much_is_refused() {
        assert!(Preferences::read(wire(Keep::Unspecified, &[], &[])).is_err());
        assert!(Preferences::read(wire(Keep::Always, &["@"], &[])).is_err());
        let mut many = wire(Keep::Always, &[], &[]);
        many.never = vec!["a@x".to_owned(); JIDS_LIMIT];
        assert!(Preferences::read(many.clone()).is_ok());
        many.always = vec!["a@x".to_owned()];
        assert!(Preferences::read(many).is_err());
        let mut long = wire(Keep::Always, &[], &[]);
        long.never = vec![format!("a@x/{}", "r".repeat(1_000)); 66];
        assert!(Preferences::read(long).is_err());
        assert!(Preferences::decode(b"{}").is_none());
    }
}
