//! The gateway's sessions: by number, and by account.
//!
//! Owns identity and the inboxes. Refuses to know what a session does.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use chancery_api::archive::EndReason;
use chancery_api::directory::{AccountFact, AccountState};
use parking_lot::{Mutex, RwLock};

use super::identity::Identity;
use super::inbox::{CutOff, Event, Inbox};
use super::shaping::Shared;

/// Sessions that one account may have on one gateway (XEP-0205); the next bind ends the oldest that
/// waits to be resumed, or is refused.
pub(crate) const SESSIONS_PER_ACCOUNT: usize = 64;
/// Account changes remembered, for logins that were under way when they came.
const REMEMBERED_FACTS: usize = 10_000;

/// A bound session as others see it.
pub(crate) struct Handle {
    pub(crate) identity: Arc<Identity>,
    pub(crate) inbox: Inbox,
    /// Without a stream, and waiting to be resumed.
    pub(crate) away: AtomicBool,
    /// What it shares with the other sessions of its account.
    shaping: OnceLock<Shared>,
}

impl Handle {
    pub(crate) fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            inbox: Inbox::default(),
            away: AtomicBool::new(false),
            shaping: OnceLock::new(),
        }
    }
}

#[derive(Default)]
struct Rows {
    by_number: HashMap<u64, Arc<Handle>>,
    by_account: HashMap<Box<str>, Vec<u64>>,
    /// Those that may be resumed, by stream-management id.
    by_sm_id: HashMap<[u8; 16], u64>,
    /// Of the hosted domains that have had a session.
    domains: HashMap<Arc<str>, Shared>,
}

/// Newest facts of accounts that changed lately.
#[derive(Default)]
struct Recent {
    facts: HashMap<String, AccountFact>,
    order: VecDeque<String>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Sessions {
    rows: RwLock<Rows>,
    recent: Mutex<Recent>,
    last: AtomicU64,
}

/// Why a session cannot be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The account has as many as it may have.
    TooMany,
    /// The account was cut off while it logged in.
    CutOff(CutOff),
}

impl Sessions {
    /// A number that no session of this process had.
    pub(crate) fn next_number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Numbers up to this one are given out.
    pub(crate) fn last_number(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Enters a session.
    pub(crate) fn enter(&self, handle: &Arc<Handle>) -> Result<(), Refused> {
        let identity = &handle.identity;
        {
            let mut rows = self.rows.write();
            let Rows {
                by_number,
                by_account,
                ..
            } = &mut *rows;
            let numbers = by_account.entry(identity.account.clone()).or_default();
            // Those that were told to end are on their way out.
            if numbers.len() >= 2 * SESSIONS_PER_ACCOUNT
                || numbers.len() >= SESSIONS_PER_ACCOUNT && !make_room(by_number, numbers)
            {
                return Err(Refused::TooMany);
            }
            numbers.push(identity.number);
            rows.by_number.insert(identity.number, Arc::clone(handle));
        }
        // After the entry, so that a fact that comes now finds either the row or this look.
        if let Some(why) = self.cut_off(&identity.account, identity.credentials()) {
            self.leave(identity);
            return Err(Refused::CutOff(why));
        }
        Ok(())
    }

    /// The buckets that an entered session shares with its account's and with its domain's sessions
    /// here; made when it is the first. An account's are forgotten with its last session.
    pub(crate) fn shaping(
        &self,
        handle: &Handle,
        of_account: impl FnOnce() -> Shared,
        of_domain: impl FnOnce() -> Shared,
    ) -> [Shared; 2] {
        let identity = &handle.identity;
        let mut rows = self.rows.write();
        let numbers = rows.by_account.get(&identity.account).into_iter().flatten();
        let account = numbers
            .filter_map(|number| rows.by_number.get(number)?.shaping.get())
            .next()
            .cloned()
            .unwrap_or_else(of_account);
        let account = handle.shaping.get_or_init(|| account).clone();
        let domain = rows.domains.entry(Arc::clone(&identity.domain));
        [account, domain.or_insert_with(of_domain).clone()]
    }

    /// Why these credentials no longer open a session, as far as it was heard lately.
    pub(crate) fn cut_off(&self, account: &str, credential_version: u64) -> Option<CutOff> {
        let recent = self.recent.lock();
        cut_off(recent.facts.get(account)?, credential_version)
    }

    /// From now on the session may be found by its stream-management id.
    pub(crate) fn resumable(&self, handle: &Handle) {
        let identity = &handle.identity;
        handle.inbox.accept_offers();
        self.rows
            .write()
            .by_sm_id
            .insert(identity.sm_id, identity.number);
    }

    /// The session with this stream-management id, if it may be resumed.
    pub(crate) fn by_sm_id(&self, sm_id: &[u8; 16]) -> Option<Arc<Handle>> {
        let rows = self.rows.read();
        rows.by_number.get(rows.by_sm_id.get(sm_id)?).cloned()
    }

    /// How many sessions wait to be resumed.
    pub(crate) fn away(&self) -> usize {
        let rows = self.rows.read();
        let away = |handle: &&Arc<Handle>| handle.away.load(Ordering::Relaxed);
        rows.by_number.values().filter(away).count()
    }

    /// Removes a session.
    pub(crate) fn leave(&self, identity: &Identity) {
        let mut rows = self.rows.write();
        rows.by_number.remove(&identity.number);
        rows.by_sm_id.remove(&identity.sm_id);
        if let Some(numbers) = rows.by_account.get_mut(&identity.account) {
            numbers.retain(|number| *number != identity.number);
            if numbers.is_empty() {
                rows.by_account.remove(&identity.account);
            }
        }
    }

    /// Puts an event into one session's inbox; false when there is no such session.
    pub(crate) fn push(&self, number: u64, event: Event) -> bool {
        let rows = self.rows.read();
        let Some(handle) = rows.by_number.get(&number) else {
            return false;
        };
        handle.inbox.push(event);
        true
    }

    /// Puts events into the inboxes of an account's sessions; false when it has none.
    pub(crate) fn push_account(&self, account: &str, events: &[Event]) -> bool {
        let rows = self.rows.read();
        let numbers = rows.by_account.get(account).into_iter().flatten();
        let mut told = false;
        for handle in numbers.filter_map(|number| rows.by_number.get(number)) {
            events
                .iter()
                .for_each(|event| handle.inbox.push(event.clone()));
            told = true;
        }
        told
    }

    /// Puts one event into each of these inboxes; their sessions are woken by [`Sessions::wake`], once
    /// for all that came together, and write it together.
    pub(crate) fn put(&self, events: impl Iterator<Item = (u64, Event)>, woken: &mut Vec<u64>) {
        let rows = self.rows.read();
        for (number, event) in events {
            if let Some(handle) = rows.by_number.get(&number) {
                handle.inbox.put(event);
                woken.push(number);
            }
        }
    }

    /// Wakes these sessions, each once, and forgets the list.
    pub(crate) fn wake(&self, woken: &mut Vec<u64>) {
        woken.sort_unstable();
        woken.dedup();
        let rows = self.rows.read();
        for number in woken.drain(..) {
            if let Some(handle) = rows.by_number.get(&number) {
                handle.inbox.wake();
            }
        }
    }

    /// The same, before everything that waits there.
    pub(crate) fn push_urgent(&self, number: u64, event: Event) {
        if let Some(handle) = self.rows.read().by_number.get(&number) {
            handle.inbox.push_urgent(event);
        }
    }

    /// Puts an event into every inbox.
    pub(crate) fn push_all(&self, event: &Event) {
        for handle in self.rows.read().by_number.values() {
            handle.inbox.push(event.clone());
        }
    }

    /// The same, before everything that waits.
    pub(crate) fn push_all_urgent(&self, event: &Event) {
        for handle in self.rows.read().by_number.values() {
            handle.inbox.push_urgent(event.clone());
        }
    }

    /// Ends the sessions that a fact of the directory no longer allows. Returns how many were told.
    pub(crate) fn apply(&self, fact: &AccountFact) -> usize {
        self.remember(fact);
        let rows = self.rows.read();
        let mut told = 0;
        for number in rows.by_account.get(&*fact.jid).into_iter().flatten() {
            let Some(handle) = rows.by_number.get(number) else {
                continue;
            };
            if let Some(why) = handle.identity.cut_off(fact) {
                handle.inbox.push_urgent(Event::CutOff(why));
                told += 1;
            }
        }
        told
    }

    /// Ends the sessions, of those numbered up to `newest`, whose account `exists` denies: what a
    /// whole snapshot does not name was deleted.
    pub(crate) fn end_absent(&self, newest: u64, exists: impl Fn(&str) -> bool) {
        let rows = self.rows.read();
        for (account, numbers) in &rows.by_account {
            if exists(account) {
                continue;
            }
            for number in numbers.iter().filter(|number| **number <= newest) {
                if let Some(handle) = rows.by_number.get(number) {
                    handle.inbox.push_urgent(Event::CutOff(CutOff::Deleted));
                }
            }
        }
    }

    /// Is a session of this account here?
    pub(crate) fn has_account(&self, account: &str) -> bool {
        self.rows.read().by_account.contains_key(account)
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.read().by_number.len()
    }

    fn remember(&self, fact: &AccountFact) {
        let mut recent = self.recent.lock();
        if recent
            .facts
            .insert(fact.jid.clone(), fact.clone())
            .is_some()
        {
            return;
        }
        recent.order.push_back(fact.jid.clone());
        if recent.order.len() > REMEMBERED_FACTS
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.facts.remove(&oldest);
        }
    }
}

/// Ends the oldest session that nobody uses now. False without one.
fn make_room(by_number: &HashMap<u64, Arc<Handle>>, numbers: &[u64]) -> bool {
    let mut away = numbers.iter().filter_map(|number| by_number.get(number));
    let Some(oldest) = away.find(|handle| handle.away.swap(false, Ordering::Relaxed)) else {
        return false;
    };
    oldest.inbox.push_urgent(Event::End(EndReason::Conflict));
    true
}

/// Why credentials of this version no longer open a session.
pub(crate) fn cut_off(fact: &AccountFact, credential_version: u64) -> Option<CutOff> {
    match fact.state() {
        AccountState::Active if fact.credential_version > credential_version => {
            Some(CutOff::Credentials)
        }
        AccountState::Active => None,
        AccountState::Disabled => Some(CutOff::Disabled),
        AccountState::Deleted | AccountState::Unspecified => Some(CutOff::Deleted),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::shaping::Rate;
    use super::*;

    fn handle(sessions: &Sessions, account: &str) -> Arc<Handle> {
        let mut identity = Identity::example(account, "r");
        identity.number = sessions.next_number();
        identity.credential_version = 5.into();
        Arc::new(Handle::new(Arc::new(identity)))
    }

    fn fact(
        jid: &str,
        state: AccountState,
        credential_version: u64,
        generation: u64,
    ) -> AccountFact {
        AccountFact {
            jid: jid.into(),
            state: state.into(),
            credential_version,
            generation,
            changed_by: String::new(),
        }
    }

    #[test]
    fn facts_end_the_sessions_they_concern() {
        let sessions = Sessions::default();
        let alice = handle(&sessions, "alice@a.test");
        let bob = handle(&sessions, "bob@a.test");
        sessions.enter(&alice).unwrap();
        sessions.enter(&bob).unwrap();
        assert_eq!(
            sessions.apply(&fact("alice@a.test", AccountState::Active, 5, 1)),
            0
        );
        assert_eq!(
            sessions.apply(&fact("alice@a.test", AccountState::Active, 6, 1)),
            1
        );
        assert!(matches!(
            alice.inbox.pop_urgent(),
            Some(Event::CutOff(CutOff::Credentials))
        ));
        assert!(bob.inbox.pop_urgent().is_none());
        assert_eq!(
            sessions.apply(&fact("bob@a.test", AccountState::Active, 5, 1)),
            0
        );
        // the name was taken by another account since
        assert_eq!(
            sessions.apply(&fact("bob@a.test", AccountState::Active, 5, 2)),
            1
        );
        assert!(matches!(
            bob.inbox.pop_urgent(),
            Some(Event::CutOff(CutOff::Deleted))
        ));
    }

    #[test]
    fn the_session_that_changes_its_password_goes_on() {
        let sessions = Sessions::default();
        let (alice, other) = (
            handle(&sessions, "alice@a.test"),
            handle(&sessions, "alice@a.test"),
        );
        sessions.enter(&alice).unwrap();
        let changed = AccountFact {
            changed_by: alice.identity.full.to_string(),
            ..fact("alice@a.test", AccountState::Active, 6, 1)
        };
        assert_eq!(sessions.apply(&changed), 0);
        // A login under way with the old one, to the same resource.
        assert!(sessions.enter(&other).is_err());
        // Heard again, as after a loss of the directory, without who it was.
        let again = fact("alice@a.test", AccountState::Active, 6, 1);
        assert_eq!(sessions.apply(&again), 0);
        let disabled = AccountFact {
            state: AccountState::Disabled.into(),
            ..changed
        };
        assert_eq!(sessions.apply(&disabled), 1);
    }

    #[test]
    fn a_login_under_way_does_not_outrun_a_cut_off() {
        let sessions = Sessions::default();
        sessions.apply(&fact("alice@a.test", AccountState::Disabled, 5, 1));
        let alice = handle(&sessions, "alice@a.test");
        assert_eq!(
            sessions.enter(&alice),
            Err(Refused::CutOff(CutOff::Disabled))
        );
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn an_account_has_so_many_sessions() {
        let sessions = Sessions::default();
        for _ in 0..SESSIONS_PER_ACCOUNT {
            sessions.enter(&handle(&sessions, "alice@a.test")).unwrap();
        }
        let one_more = handle(&sessions, "alice@a.test");
        assert_eq!(sessions.enter(&one_more), Err(Refused::TooMany));
        sessions.enter(&handle(&sessions, "bob@a.test")).unwrap();
    }

    #[test]
    fn buckets_are_shared_by_account_and_by_domain() {
        let sessions = Sessions::default();
        let rate = Rate {
            per_second: 1,
            burst: 1,
        };
        let entered = |jid: &str| {
            let handle = handle(&sessions, jid);
            sessions.enter(&handle).unwrap();
            let fresh = || Shared::new(rate, rate, tokio::time::Instant::now());
            let shared = sessions.shaping(&handle, fresh, fresh);
            (handle, shared)
        };
        let (desk, [desk_account, desk_domain]) = entered("alice@a.test");
        let (phone, [phone_account, phone_domain]) = entered("alice@a.test");
        let (_bob, [bob_account, bob_domain]) = entered("bob@a.test");
        assert!(desk_account.is(&phone_account) && !desk_account.is(&bob_account));
        assert!(desk_domain.is(&phone_domain) && desk_domain.is(&bob_domain));
        sessions.leave(&desk.identity);
        let (_, [tablet_account, _]) = entered("alice@a.test");
        assert!(tablet_account.is(&phone_account), "one was left");
        sessions.leave(&phone.identity);
    }

    #[test]
    fn whoever_waits_to_be_resumed_makes_room() {
        let sessions = Sessions::default();
        let all: Vec<_> = (0..SESSIONS_PER_ACCOUNT)
            .map(|_| handle(&sessions, "alice@a.test"))
            .collect();
        for one in &all {
            sessions.enter(one).unwrap();
        }
        for waits in [&all[7], &all[9]] {
            waits.away.store(true, Ordering::Relaxed);
        }
        sessions.enter(&handle(&sessions, "alice@a.test")).unwrap();
        assert!(matches!(all[7].inbox.pop_urgent(), Some(Event::End(_))));
        assert!(all[9].inbox.pop_urgent().is_none(), "one for one");
        sessions.leave(&all[7].identity);
        sessions.enter(&handle(&sessions, "alice@a.test")).unwrap();
        assert!(matches!(all[9].inbox.pop_urgent(), Some(Event::End(_))));
        let one_more = handle(&sessions, "alice@a.test");
        assert_eq!(sessions.enter(&one_more), Err(Refused::TooMany));
    }

    #[test]
    fn a_snapshot_ends_who_is_not_in_it() {
        let sessions = Sessions::default();
        let old = handle(&sessions, "alice@a.test");
        sessions.enter(&old).unwrap();
        let newest = sessions.last_number();
        let new = handle(&sessions, "bob@a.test");
        sessions.enter(&new).unwrap();
        sessions.end_absent(newest, |_| false);
        assert!(old.inbox.pop_urgent().is_some());
        assert!(new.inbox.pop_urgent().is_none());
    }
}
