//! Sessions and what they said, behind [`PresenceStore`]. Owns the look-ups by session, by full JID,
//! by account and by gateway; it refuses to know who must hear.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chancery_xmpp::jid::bare;

use crate::names::Set;

/// A session: its gateway and its number there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// The session's number on it.
    pub session: u64,
}

/// The presence that a session last broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The stanza without `to`.
    pub payload: Bytes,
    /// RFC 6121 §4.7.2.3.
    pub priority: i32,
    /// Version of the verdicts under which it was shown.
    pub policy_version: u64,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Which.
    pub key: SessionKey,
    /// Its full JID.
    pub full: Arc<str>,
    /// None while it only directed presence (RFC 6121 §4.6.1).
    pub said: Option<Said>,
    /// Bare JIDs that its broadcast went to, by their numbers.
    pub shown: Set,
    /// Bare or full JIDs that it directed presence to.
    pub directed: HashSet<Box<str>>,
    /// The attachment of its gateway under which it last spoke.
    pub attachment: u64,
    /// Whose presence it could not be told while its gateway was lost, and whether the last of it was
    /// `unavailable`.
    pub missed: HashMap<Box<str>, bool>,
}

impl Session {
    /// The account.
    pub fn bare(&self) -> &str {
        bare(&self.full)
    }
}

/// Where sessions are kept.
pub trait PresenceStore: Send + 'static {
    /// One session.
    fn get(&self, key: &SessionKey) -> Option<&Session>;
    /// By full JID.
    fn by_full(&self, full: &str) -> Option<&Session>;
    /// All sessions of an account, in no order.
    fn of_account(&self, bare: &str) -> impl Iterator<Item = &Session>;
    /// Everybody, in no order.
    fn all(&self) -> impl Iterator<Item = &Session>;
    /// All sessions of a gateway, sorted.
    fn of_gateway(&self, gateway: &str) -> Vec<SessionKey>;
    /// Keeps a session whose key and full JID are free.
    fn put(&mut self, session: Session);
    /// Takes a session out.
    fn take(&mut self, key: &SessionKey) -> Option<Session>;
    /// How many there are.
    fn len(&self) -> usize;
    /// True when there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// In this process's memory.
#[derive(Debug, Default)]
pub struct MemoryPresenceStore {
    sessions: HashMap<SessionKey, Session>,
    /// By account; nearly always one or two.
    accounts: HashMap<Box<str>, Vec<SessionKey>>,
    gateways: HashMap<Arc<str>, HashSet<u64>>,
}

impl PresenceStore for MemoryPresenceStore {
    fn get(&self, key: &SessionKey) -> Option<&Session> {
        self.sessions.get(key)
    }

    fn by_full(&self, full: &str) -> Option<&Session> {
        self.of_account(bare(full))
            .find(|session| &*session.full == full)
    }

    fn of_account(&self, bare: &str) -> impl Iterator<Item = &Session> {
        let keys = self.accounts.get(bare).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(|key| self.sessions.get(key))
    }

    fn all(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    fn of_gateway(&self, gateway: &str) -> Vec<SessionKey> {
        let Some((gateway, numbers)) = self.gateways.get_key_value(gateway) else {
            return Vec::new();
        };
        let key = |session: &u64| SessionKey {
            gateway: Arc::clone(gateway),
            session: *session,
        };
        let mut keys: Vec<SessionKey> = numbers.iter().map(key).collect();
        keys.sort();
        keys
    }

    fn put(&mut self, session: Session) {
        let key = session.key.clone();
        self.gateways
            .entry(Arc::clone(&key.gateway))
            .or_default()
            .insert(key.session);
        if let Some(keys) = self.accounts.get_mut(session.bare()) {
            keys.push(key.clone());
        } else {
            self.accounts
                .insert(session.bare().into(), vec![key.clone()]);
        }
        self.sessions.insert(key, session);
    }

    fn take(&mut self, key: &SessionKey) -> Option<Session> {
        let session = self.sessions.remove(key)?;
        if let Some(keys) = self.accounts.get_mut(session.bare()) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.accounts.remove(session.bare());
            }
        }
        if let Some(numbers) = self.gateways.get_mut(&key.gateway) {
            numbers.remove(&key.session);
            if numbers.is_empty() {
                self.gateways.remove(&key.gateway);
            }
        }
        Some(session)
    }

    fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn key(gateway: &str, session: u64) -> SessionKey {
        SessionKey {
            gateway: gateway.into(),
            session,
        }
    }

    fn session(gateway: &str, number: u64, full: &str) -> Session {
        Session {
            key: key(gateway, number),
            full: full.into(),
            said: None,
            shown: Set::default(),
            directed: HashSet::new(),
            attachment: 1,
            missed: HashMap::new(),
        }
    }

    /// What every store has to do.
    fn conforms(store: &mut impl PresenceStore) {
        assert!(store.is_empty());
        let all = [
            session("gw1", 1, "a@x.example/one"),
            session("gw1", 2, "b@x.example/one"),
            session("gw2", 1, "a@x.example/two"),
            session("gw2", 9, "a@x.example/two/slash"),
        ];
        for one in &all {
            store.put(one.clone());
        }
        assert_eq!(store.len(), 4);
        assert_eq!(store.get(&key("gw2", 1)), Some(&all[2]));
        assert_eq!(store.get(&key("gw2", 2)), None);
        assert_eq!(store.by_full("a@x.example/two/slash"), Some(&all[3]));
        assert_eq!(store.by_full("a@x.example/three"), None);
        let mut of_a: Vec<_> = store
            .of_account("a@x.example")
            .map(|s| s.key.clone())
            .collect();
        of_a.sort();
        assert_eq!(of_a, [key("gw1", 1), key("gw2", 1), key("gw2", 9)]);
        assert_eq!(store.of_account("c@x.example").count(), 0);
        assert_eq!(store.of_gateway("gw1"), [key("gw1", 1), key("gw1", 2)]);
        assert_eq!(store.take(&key("gw1", 1)), Some(all[0].clone()));
        assert_eq!(store.take(&key("gw1", 1)), None);
        assert_eq!(store.of_gateway("gw1"), [key("gw1", 2)]);
        assert_eq!(store.by_full("a@x.example/one"), None);
        assert_eq!(store.of_account("a@x.example").count(), 2);
        for one in &all {
            store.take(&one.key);
        }
        assert!(store.is_empty());
        assert!(store.of_gateway("gw2").is_empty());
    }

    #[test]
    fn memory_conforms() {
        let mut store = MemoryPresenceStore::default();
        conforms(&mut store);
        assert!(
            store.accounts.is_empty() && store.gateways.is_empty(),
            "nothing stays behind"
        );
    }
}
