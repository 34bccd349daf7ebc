//! What each act does: new state, and what goes to whom. A state machine without I/O: an act in,
//! deliveries out. It refuses to know links, clocks and policy.

mod shown;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chancery_api::presence::{Act, AttachUp, PublishItem};
use chancery_xmpp::jid::bare;

use crate::effects::{Copy, Effects, gone, hides, said, shows};
use crate::names::{Names, Set};
use crate::store::{PresenceStore, Session, SessionKey};

/// Accounts that the broadcast of one session goes to; further ones do not hear.
pub const SHOWN_LIMIT: usize = 10_000;
/// JIDs that one session has directed presence to; further ones do not hear.
pub const DIRECTED_LIMIT: usize = 1_000;

/// Others whose presence a session may miss while its gateway is lost; further ones are forgotten.
pub const MISSED_LIMIT: usize = 1_000;

/// All sessions.
#[derive(Debug)]
pub struct Registry<S> {
    store: S,
    /// Of all who were shown a session.
    names: Names,
    sessions_limit: usize,
    /// Gateways with a link, and its attachment.
    reachable: HashMap<Arc<str>, u64>,
}

impl<S: PresenceStore> Registry<S> {
    /// The sessions in `store`, and no more than `sessions_limit`.
    pub fn new(store: S, sessions_limit: usize) -> Self {
        Self {
            store,
            names: Names::default(),
            sessions_limit,
            reachable: HashMap::new(),
        }
    }

    /// From now on only sessions that spoke under this attachment are sent anything: a number may mean
    /// another session in the next life of its gateway. None: the gateway is lost.
    pub fn reach(&mut self, gateway: &Arc<str>, attachment: Option<u64>) {
        match attachment {
            Some(attachment) => self.reachable.insert(Arc::clone(gateway), attachment),
            None => self.reachable.remove(gateway),
        };
    }

    /// An envelope that did not get to its gateway: its sessions hear when they are back.
    pub fn missed(&mut self, gateway: &Arc<str>, up: &AttachUp) {
        for session in &up.sessions {
            let key = SessionKey {
                gateway: Arc::clone(gateway),
                session: *session,
            };
            self.miss(&key, &up.from, up.unavailable);
        }
    }

    fn miss(&mut self, key: &SessionKey, from: &str, unavailable: bool) {
        let Some(mut session) = self.store.take(key) else {
            return;
        };
        if session.missed.len() < MISSED_LIMIT || session.missed.contains_key(from) {
            session.missed.insert(from.into(), unavailable);
        }
        self.store.put(session);
    }

    /// To those of the receivers that can be reached; of the others it is remembered.
    fn copy(&self, effects: &mut Effects, copy: &Copy<'_>, receivers: &[&Session]) {
        let mut near = Vec::with_capacity(receivers.len());
        for of_gateway in receivers.chunk_by(|one, next| one.key.gateway == next.key.gateway) {
            let link = of_gateway
                .first()
                .and_then(|first| self.reachable.get(&first.key.gateway));
            for session in of_gateway {
                if link == Some(&session.attachment) {
                    near.push(&session.key);
                } else {
                    let missed = (session.key.clone(), copy.from.into(), copy.unavailable);
                    effects.missed.push(missed);
                }
            }
        }
        effects.copy(copy, &near);
    }

    fn keep_missed(&mut self, effects: &mut Effects) {
        for (key, from, unavailable) in std::mem::take(&mut effects.missed) {
            self.miss(&key, &from, unavailable);
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Does one act of a session whose gateway has this attachment.
    pub fn act(&mut self, gateway: &Arc<str>, attachment: u64, item: &PublishItem) -> Effects {
        let mut effects = Effects::default();
        let key = SessionKey {
            gateway: Arc::clone(gateway),
            session: item.session,
        };
        match item.act() {
            Act::Available => self.available(key, attachment, item, &mut effects),
            Act::Unavailable => self.unavailable(&key, item, &mut effects),
            Act::Directed => self.directed(key, attachment, item, &mut effects),
            Act::Amend => self.amend(&key, attachment, item, &mut effects),
            Act::Refresh => self.refresh(&key, attachment, item, &mut effects),
            Act::Resync => self.resync(key, attachment, item, &mut effects),
            Act::Probe => self.probe(&key, item, &mut effects),
            // From a newer gateway: nothing that we could do for it.
            Act::Unspecified => effects.refuse(1),
        }
        self.keep_missed(&mut effects);
        effects
    }

    /// RFC 6121 §4.2.2 and §4.4.2: to those allowed, and to all the account's available resources,
    /// the session's own among them. Who was shown it and may not any more gets `unavailable`.
    fn available(
        &mut self,
        key: SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let Some(mut session) = self.claim(key, attachment, item, effects) else {
            return;
        };
        self.replace_shown(&mut session, item, effects);
        session.said = Some(said(item));
        self.store.put(session);
        let targets = item.targets.iter().take(SHOWN_LIMIT).map(String::as_str);
        let receivers = self.receivers(targets, Some(bare(&item.from)));
        self.copy(effects, &shows(item), &receivers);
    }

    /// RFC 6121 §4.5.2 and §4.6.3: to everybody who was shown it, by broadcast or directly, and to the
    /// account's other resources.
    fn unavailable(&mut self, key: &SessionKey, item: &PublishItem, effects: &mut Effects) {
        // A session that another replaced under its full JID has nothing to say any more.
        if self
            .store
            .by_full(&item.from)
            .is_some_and(|session| session.key != *key)
        {
            return;
        }
        let mut session = match self.take_own(key, &item.from) {
            Some(session) => session,
            // Ended while this service was away: the gateway knows who saw it.
            None => Session {
                key: key.clone(),
                full: item.from.as_str().into(),
                said: None,
                shown: Set::default(),
                directed: HashSet::new(),
                attachment: 0,
                missed: HashMap::new(),
            },
        };
        let limit = SHOWN_LIMIT + DIRECTED_LIMIT;
        effects.refuse(item.targets.len().saturating_sub(limit));
        let targets = item
            .targets
            .iter()
            .take(limit)
            .map(|target| target.as_str().into());
        session.directed.extend(targets);
        let payload = Some(&item.payload).filter(|payload| !payload.is_empty());
        self.leave(&session, payload, &item.traceparent, effects);
    }

    /// Everybody who was shown it hears that it is gone. It is not kept: its names are released.
    fn leave(
        &mut self,
        session: &Session,
        payload: Option<&Bytes>,
        traceparent: &str,
        effects: &mut Effects,
    ) {
        let directed = session.directed.iter().map(AsRef::as_ref);
        let saw = self.names.of(&session.shown).chain(directed);
        let own = session.said.is_some().then(|| session.bare());
        let receivers = self.receivers(saw, own);
        let payload = payload.cloned().unwrap_or_else(|| gone(&session.full));
        self.copy(
            effects,
            &hides(&session.full, payload, "", traceparent),
            &receivers,
        );
        self.names.release(session.shown.iter());
    }

    /// RFC 6121 §4.6: to one JID, whether or not the session has broadcast anything.
    fn directed(
        &mut self,
        key: SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let Some(target) = item.targets.first() else {
            return;
        };
        if item.unavailable {
            if let Some(mut session) = self.take_own(&key, &item.from) {
                session.directed.remove(target.as_str());
                // A contact of the broadcast sees it gone until the next broadcast (RFC 6121 §4.6.5).
                if !session.shown.is_empty()
                    || !session.directed.is_empty()
                    || session.said.is_some()
                {
                    self.store.put(session);
                }
            }
            let hides = hides(&item.from, item.payload.clone(), target, &item.traceparent);
            self.copy(effects, &hides, &self.receivers([target.as_str()], None));
            return;
        }
        let Some(mut session) = self.claim(key, attachment, item, effects) else {
            return;
        };
        let known = session.directed.contains(target.as_str());
        let room = known || session.directed.len() < DIRECTED_LIMIT;
        if room && !known {
            session.directed.insert(target.as_str().into());
        }
        self.store.put(session);
        if !room {
            // Whoever is not remembered could not be told of the end: so they hear nothing.
            effects.refuse(1);
            return;
        }
        let shows = Copy {
            to: target,
            ..shows(item)
        };
        self.copy(effects, &shows, &self.receivers([target.as_str()], None));
    }

    /// After a loss: state without any broadcast. What is still known of who saw it stays, so that
    /// they can be told of the end.
    fn resync(
        &mut self,
        key: SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let Some(mut session) = self.claim(key, attachment, item, effects) else {
            return;
        };
        for target in &item.targets {
            // A directed one is written with its resource; a bare one is told of the end all the same.
            if !target.contains('/') {
                self.show(&mut session, target, effects);
            } else if session.directed.len() < DIRECTED_LIMIT {
                session.directed.insert(target.as_str().into());
            } else if !session.directed.contains(target.as_str()) {
                effects.refuse(1);
            }
        }
        if !item.payload.is_empty() {
            session.said = Some(said(item));
        }
        let missed = std::mem::take(&mut session.missed);
        let key = session.key.clone();
        self.store.put(session);
        self.catch_up(&key, missed, item, effects);
    }

    /// What others said while this session could not be told, as it stands now. Version 0: for the
    /// gateway to decide.
    fn catch_up(
        &self,
        key: &SessionKey,
        missed: HashMap<Box<str>, bool>,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let mut missed: Vec<_> = missed.into_iter().collect();
        missed.sort();
        for (from, unavailable) in missed {
            let said = self
                .store
                .by_full(&from)
                .and_then(|other| other.said.as_ref());
            let told = match said.filter(|_| !unavailable) {
                Some(said) => Copy {
                    from: &from,
                    payload: said.payload.clone(),
                    policy_version: 0,
                    unavailable: false,
                    to: "",
                    traceparent: &item.traceparent,
                },
                None => hides(&from, gone(&from), "", &item.traceparent),
            };
            effects.copy(&told, &[key]);
        }
    }

    /// The session hears what every available session of the targets last said, if that was shown to
    /// its account: the one probed knows who hears (RFC 6121 §4.3.2). Version 0: whether it may is for
    /// the gateway to ask before it writes.
    fn probe(&self, key: &SessionKey, item: &PublishItem, effects: &mut Effects) {
        effects.refuse(item.targets.len().saturating_sub(SHOWN_LIMIT));
        for target in item.targets.iter().take(SHOWN_LIMIT) {
            let asks = bare(&item.from);
            let hears = |other: &&Session| {
                let shown = |jid: &str| self.names.find(jid).is_some_and(|id| other.shown.has(id));
                let saw = |jid: &str| shown(jid) || other.directed.contains(jid);
                other.key != *key && (other.bare() == asks || saw(asks) || saw(&item.from))
            };
            for other in self.addressed(target).filter(hears) {
                let Some(said) = &other.said else { continue };
                let told = Copy {
                    from: &other.full,
                    payload: said.payload.clone(),
                    policy_version: 0,
                    unavailable: false,
                    to: "",
                    traceparent: &item.traceparent,
                };
                effects.copy(&told, &[key]);
            }
        }
    }

    /// Ends what a gateway did not publish again: everything whose attachment is older.
    pub fn end_before(&mut self, gateway: &str, attachment: u64) -> Effects {
        let mut effects = Effects::default();
        for key in self.store.of_gateway(gateway) {
            if self
                .store
                .get(&key)
                .is_some_and(|session| session.attachment < attachment)
                && let Some(session) = self.store.take(&key)
            {
                self.leave(&session, None, "", &mut effects);
            }
        }
        self.keep_missed(&mut effects);
        effects
    }

    /// The session as it is or new, taken out of the store. Whoever had its full JID before is
    /// replaced silently, but who saw that one is remembered; another session that had its number
    /// (its gateway started again) ends.
    fn claim(
        &mut self,
        key: SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) -> Option<Session> {
        let same_number = self.store.take(&key);
        let mut session = match same_number {
            Some(session) if *session.full == *item.from => session,
            other => {
                if let Some(ended) = other {
                    self.leave(&ended, None, &item.traceparent, effects);
                }
                let older = self
                    .store
                    .by_full(&item.from)
                    .map(|older| older.key.clone());
                match older.and_then(|older| self.store.take(&older)) {
                    Some(older) => Session { key, ..older },
                    None if self.store.len() >= self.sessions_limit => {
                        effects.refuse(1);
                        return None;
                    }
                    None => Session {
                        key,
                        full: item.from.as_str().into(),
                        said: None,
                        shown: Set::default(),
                        directed: HashSet::new(),
                        attachment,
                        missed: HashMap::new(),
                    },
                }
            }
        };
        session.attachment = attachment;
        Some(session)
    }

    /// Takes out the session, if it is still that of this full JID.
    fn take_own(&mut self, key: &SessionKey, full: &str) -> Option<Session> {
        let own = self
            .store
            .get(key)
            .is_some_and(|session| *session.full == *full);
        own.then(|| self.store.take(key)).flatten()
    }

    /// The available sessions that these JIDs mean, and those of the account `own`; by gateway.
    fn receivers<'j>(
        &self,
        jids: impl IntoIterator<Item = &'j str>,
        own: Option<&str>,
    ) -> Vec<&Session> {
        let of_jids = jids.into_iter().flat_map(|jid| self.addressed(jid));
        let mut receivers: Vec<&Session> = of_jids.collect();
        receivers.extend(own.into_iter().flat_map(|own| self.available_of(own)));
        receivers.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        receivers.dedup_by(|one, other| one.key == other.key);
        receivers
    }

    /// RFC 6121 §8.5.2.1.2 and §8.5.3.1: a bare JID means all its available resources, a full one that
    /// resource.
    fn addressed(&self, jid: &str) -> impl Iterator<Item = &Session> {
        let full = jid.contains('/');
        let resource = full
            .then(|| self.store.by_full(jid).filter(|s| s.said.is_some()))
            .flatten();
        let all = (!full).then(|| self.available_of(jid));
        resource.into_iter().chain(all.into_iter().flatten())
    }

    /// Full JIDs of available sessions of an account, or of a domain; sorted, and at most so many.
    /// Whether there are more.
    pub fn who(&self, of: &str, limit: usize) -> (Vec<String>, bool) {
        let mut found: Vec<String> = if of.contains('@') {
            let sessions = self
                .available_of(of)
                .map(|session| session.full.to_string());
            sessions.take(limit + 1).collect()
        } else {
            let here = |session: &&Session| {
                let domain = session.bare().split_once('@').map(|(_, domain)| domain);
                session.said.is_some() && domain == Some(of)
            };
            let sessions = self.store.all().filter(here);
            let sessions = sessions.map(|session| session.full.to_string());
            sessions.take(limit + 1).collect()
        };
        let more = found.len() > limit;
        found.truncate(limit);
        found.sort_unstable();
        (found, more)
    }

    fn available_of(&self, bare: &str) -> impl Iterator<Item = &Session> {
        self.store
            .of_account(bare)
            .filter(|session| session.said.is_some())
    }
}

#[cfg(test)]
#[path = "registry_property_tests.rs"]
mod property_tests;
#[cfg(test)]
#[path = "registry/shown_tests.rs"]
mod shown_tests;
#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
