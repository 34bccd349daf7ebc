//! Who is shown a session: put in place, refreshed or amended, and the difference said. It refuses to
//! know why somebody may hear.

use std::collections::HashSet;

use bytes::Bytes;
use chancery_api::presence::PublishItem;
use chancery_xmpp::jid::bare;

use super::{DIRECTED_LIMIT, Registry, SHOWN_LIMIT};
use crate::effects::{Copy, Effects, gone, hides, shows};
use crate::names::Set;
use crate::store::{PresenceStore, Session, SessionKey};

impl<S: PresenceStore> Registry<S> {
    /// It is shown to somebody. True when it was not before; false too where a limit keeps them out.
    pub(super) fn show(&mut self, session: &mut Session, jid: &str, effects: &mut Effects) -> bool {
        if self.names.find(jid).is_some_and(|id| session.shown.has(id)) {
            return false;
        }
        if session.shown.len() >= SHOWN_LIMIT {
            effects.refuse(1);
            return false;
        }
        session.shown.insert(self.names.take(jid))
    }

    /// Puts the targets in place of those shown before, and hides the session from who is missing.
    pub(super) fn replace_shown(
        &mut self,
        session: &mut Session,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let targets = || item.targets.iter().take(SHOWN_LIMIT);
        effects.refuse(item.targets.len().saturating_sub(SHOWN_LIMIT));
        let known = |jid: &String| self.names.find(jid);
        // The usual case, a change of show or status: the same as before, and nothing to build.
        if item.targets.len() == session.shown.len()
            && targets().all(|jid| known(jid).is_some_and(|id| session.shown.has(id)))
        {
            return;
        }
        let ids: Vec<u32> = targets().map(|jid| self.names.take(jid)).collect();
        let (shown, twice) = Set::of(ids);
        self.names.release(twice.into_iter());
        let before = std::mem::replace(&mut session.shown, shown);
        let names = self.names.of(&before);
        let hidden = before.iter().zip(names).filter(|(id, jid)| {
            let directed = || session.directed.contains(*jid);
            !session.shown.has(*id) && !directed()
        });
        let hidden: Vec<&str> = hidden.map(|(_, jid)| jid).collect();
        self.hide(session, hidden, item, effects);
        self.names.release(before.iter());
    }

    /// The policy changed: `targets` is everybody allowed now, those of directed presence too.
    pub(super) fn refresh(
        &mut self,
        key: &SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let Some(mut session) = self.take_own(key, &item.from) else {
            return;
        };
        session.attachment = attachment;
        let allowed: HashSet<&str> = item
            .targets
            .iter()
            .take(SHOWN_LIMIT + DIRECTED_LIMIT)
            .map(String::as_str)
            .collect();
        effects.refuse(
            item.targets
                .len()
                .saturating_sub(SHOWN_LIMIT + DIRECTED_LIMIT),
        );
        // The own account may always.
        let own = bare(&item.from);
        let may =
            |jid: &str| allowed.contains(jid) || allowed.contains(bare(jid)) || bare(jid) == own;
        let names = session.shown.iter().zip(self.names.of(&session.shown));
        let hidden: Vec<(u32, &str)> = names.filter(|(_, jid)| !may(jid)).collect();
        let directed = session.directed.iter().map(AsRef::as_ref);
        let directed = directed.filter(|jid| !may(jid));
        let jids = hidden.iter().map(|(_, jid)| *jid).chain(directed);
        self.hide(&session, jids, item, effects);
        let ids: Vec<u32> = hidden.into_iter().map(|(id, _)| id).collect();
        self.unshow(&mut session, &ids);
        session.directed.retain(|jid| may(jid));
        let mut fresh = Vec::new();
        if let Some(said) = &mut session.said {
            said.policy_version = item.policy_version;
            let payload = said.payload.clone();
            for jid in allowed {
                let new = !jid.contains('/') && !session.directed.contains(jid);
                if new && self.show(&mut session, jid, effects) {
                    fresh.push(jid);
                }
            }
            self.show_to(fresh, payload, item, effects);
        }
        self.store.put(session);
    }

    /// A difference: shown to the targets that have not seen it, taken back from the hidden ones that
    /// have, unless it was directed to them.
    pub(super) fn amend(
        &mut self,
        key: &SessionKey,
        attachment: u64,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let Some(mut session) = self.take_own(key, &item.from) else {
            return;
        };
        session.attachment = attachment;
        let jids = item.hidden.iter().map(String::as_str);
        let hidden = jids.filter_map(|jid| self.names.find(jid).map(|id| (id, jid)));
        let hidden: Vec<(u32, &str)> = hidden.filter(|(id, _)| session.shown.has(*id)).collect();
        let seen = |jid: &&str| !session.directed.contains(*jid);
        let jids = hidden.iter().map(|(_, jid)| *jid);
        self.hide(&session, jids.filter(seen), item, effects);
        let ids: Vec<u32> = hidden.into_iter().map(|(id, _)| id).collect();
        self.unshow(&mut session, &ids);
        if let Some(said) = &session.said {
            let payload = said.payload.clone();
            let mut fresh = Vec::new();
            for jid in &item.targets {
                if self.show(&mut session, jid, effects) {
                    fresh.push(jid.as_str());
                }
            }
            self.show_to(fresh, payload, item, effects);
        }
        self.store.put(session);
    }

    /// What it has said, to those who see it now.
    fn show_to(&self, fresh: Vec<&str>, payload: Bytes, item: &PublishItem, effects: &mut Effects) {
        let shows = Copy {
            payload,
            ..shows(item)
        };
        self.copy(effects, &shows, &self.receivers(fresh, None));
    }

    /// It is not shown to these any more.
    fn unshow(&mut self, session: &mut Session, ids: &[u32]) {
        let gone = ids.iter().filter(|id| session.shown.remove(**id));
        self.names.release(gone.copied());
    }

    fn hide<'j>(
        &self,
        session: &Session,
        from: impl IntoIterator<Item = &'j str>,
        item: &PublishItem,
        effects: &mut Effects,
    ) {
        let mut receivers = self.receivers(from, None);
        // Never from the own account, whatever the targets say.
        receivers.retain(|receiver| receiver.bare() != session.bare());
        let hides = hides(&session.full, gone(&session.full), "", &item.traceparent);
        self.copy(effects, &hides, &receivers);
    }
}
