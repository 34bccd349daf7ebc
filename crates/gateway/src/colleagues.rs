//! Groups of the directory that rosters show, as this gateway follows them, and who is a colleague of
//! whom by them. Each name and each list of members is held once, whatever the number of sessions
//! (ADR 19); a change of a group is told as a difference.
//!
//! Refuses to know who may see whom: policy is asked where a list is used.

pub(crate) mod told;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chancery_api::directory::GroupFact;
use chancery_xmpp::jid::bare;
use parking_lot::{Mutex, RwLock};

use crate::service::Gateway;
use crate::session::inbox::Event;

/// Colleagues of one account; further ones are in no roster, and hear nothing.
pub(crate) const COLLEAGUES_LIMIT: usize = 10_000;
/// Sessions that are told of a change of a group in one second: each shows its presence to whoever is
/// new, who gets them at this rate.
const TOLD_PER_SECOND: u64 = 1_000;
/// Changes that wait for one session; with more it looks at everything anew.
const PENDING_LIMIT: usize = 64;
/// Own items that wait to be pushed: as many as a roster has.
const ITEMS_LIMIT: usize = 10_000;

/// A group that is shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    label: Box<str>,
    /// Bare JIDs, sorted.
    members: Box<[Arc<str>]>,
}

impl Group {
    fn has(&self, jid: &str) -> bool {
        let found = self.members.binary_search_by(|member| (**member).cmp(jid));
        found.is_ok()
    }
}

/// The shown groups of one account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Circle {
    /// Of the groups' table, when this was read from it.
    pub(crate) version: u64,
    groups: Vec<Arc<Group>>,
}

impl Circle {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(crate) fn has(&self, jid: &str) -> bool {
        self.groups.iter().any(|group| group.has(jid))
    }

    /// Each colleague of `account` once, and at most [`COLLEAGUES_LIMIT`].
    pub(crate) fn names<'a>(&'a self, account: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        let of = move |(n, group): (usize, &'a Arc<Group>)| {
            let before = self.groups.get(..n).unwrap_or_default();
            let fresh = move |jid: &&Arc<str>| !before.iter().any(|group| group.has(jid));
            group.members.iter().filter(fresh)
        };
        let all = self.groups.iter().enumerate().flat_map(of);
        all.filter(move |jid| ***jid != *account)
            .take(COLLEAGUES_LIMIT)
    }

    /// The same lists, not only equal ones?
    #[cfg(test)]
    pub(crate) fn shares_with(&self, other: &Self) -> bool {
        let mut pairs = self.groups.iter().zip(&other.groups);
        self.groups.len() == other.groups.len() && pairs.all(|(one, two)| Arc::ptr_eq(one, two))
    }

    /// What the groups that somebody is in are called.
    pub(crate) fn labels<'a>(&'a self, jid: &'a str) -> impl Iterator<Item = &'a str> {
        let groups = self.groups.iter().filter(move |group| group.has(jid));
        groups.map(|group| &*group.label)
    }
}

/// One difference for a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// Colleagues by a group with this label, from this version of the table on.
    Joined(u64, Box<str>, Arc<[Arc<str>]>),
    /// No longer so by this group.
    Left(u64, Box<str>, Arc<[Arc<str>]>),
    /// Who may be heard, or hear, has changed, and nothing of the roster.
    Blocked(Arc<[Arc<str>]>),
}

impl Shift {
    /// The version of the table that it came with; none where the table is as it was.
    pub(crate) fn version(&self) -> Option<u64> {
        match self {
            Self::Joined(version, ..) | Self::Left(version, ..) => Some(*version),
            Self::Blocked(_) => None,
        }
    }

    /// Whom it is about.
    pub(crate) fn jids(&self) -> &[Arc<str>] {
        match self {
            Self::Joined(_, _, jids) | Self::Left(_, _, jids) | Self::Blocked(jids) => jids,
        }
    }
}

/// Differences, and the accounts whose sessions are told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) accounts: Vec<Arc<str>>,
    pub(crate) shifts: Vec<Arc<Shift>>,
}

/// What a session was told and has not acted on yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) shifts: Vec<Arc<Shift>>,
    /// Whose own items have changed.
    pub(crate) items: BTreeSet<Arc<str>>,
    /// There was more.
    pub(crate) whole: bool,
    /// Could not be done at once.
    pub(crate) late: bool,
}

impl Pending {
    pub(crate) fn add(&mut self, shift: Arc<Shift>) {
        if self.shifts.len() < PENDING_LIMIT {
            self.shifts.push(shift);
        } else {
            self.whole = true;
        }
    }

    pub(crate) fn add_item(&mut self, jid: Arc<str>) {
        if self.items.len() < ITEMS_LIMIT {
            self.items.insert(jid);
        } else {
            self.whole = true;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shifts.is_empty() && self.items.is_empty() && !self.whole
    }

    /// Puts back what was taken, before what has come since.
    pub(crate) fn put_back(&mut self, taken: Self) {
        let since = std::mem::replace(self, taken);
        self.late = true;
        self.whole |= since.whole;
        since.shifts.into_iter().for_each(|shift| self.add(shift));
        since.items.into_iter().for_each(|jid| self.add_item(jid));
    }
}

/// Domain and name of a group.
type Key = (String, String);

/// See the module.
#[derive(Default)]
pub(crate) struct Colleagues {
    held: RwLock<Held>,
    lists: Mutex<Lists>,
}

/// Lists that sessions share, by a hash of what is in them.
#[derive(Default)]
struct Lists {
    held: HashMap<u64, Weak<[Arc<str>]>>,
    /// With so many those that nobody holds any more are looked for.
    swept_at: usize,
}

#[derive(Default)]
struct Held {
    version: u64,
    groups: BTreeMap<Arc<Key>, Arc<Group>>,
    of: HashMap<Arc<str>, Vec<Arc<Key>>>,
}

impl Colleagues {
    /// The shown groups of an account.
    pub(crate) fn of(&self, account: &str) -> Circle {
        let held = self.held.read();
        let keys = held.of.get(account).into_iter().flatten();
        let groups = keys.filter_map(|key| held.groups.get(key)).cloned();
        Circle {
            version: held.version,
            groups: groups.collect(),
        }
    }

    /// Do two accounts share a shown group?
    pub(crate) fn are(&self, one: &str, other: &str) -> bool {
        let held = self.held.read();
        let (Some(of_one), Some(of_other)) = (held.of.get(one), held.of.get(other)) else {
            return false;
        };
        one != other && of_one.iter().any(|key| of_other.contains(key))
    }

    /// Takes over what the directory says of groups; `whole`: of all there are.
    pub(crate) fn apply(&self, facts: Vec<GroupFact>, whole: bool) -> Vec<Moved> {
        let mut held = self.held.write();
        let mut gone: BTreeMap<Arc<Key>, Arc<Group>> = BTreeMap::new();
        if whole {
            gone.clone_from(&held.groups);
        }
        held.version += 1;
        let mut moved = Vec::new();
        for fact in facts {
            let key = (fact.domain.clone(), fact.group.clone());
            gone.remove(&key);
            let group = held.shown(fact);
            moved.extend(held.replace(key, group));
        }
        for key in gone.into_keys() {
            moved.extend(held.replace((*key).clone(), None));
        }
        moved
    }

    /// The same list for all who hold an equal one.
    pub(crate) fn share(&self, list: Vec<Arc<str>>) -> Arc<[Arc<str>]> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        if list.is_empty() {
            return Arc::default();
        }
        let mut hasher = DefaultHasher::new();
        list.hash(&mut hasher);
        let mut lists = self.lists.lock();
        if lists.held.len() >= lists.swept_at {
            lists.held.retain(|_, list| list.strong_count() > 0);
            lists.swept_at = 2 * lists.held.len() + 64;
        }
        let entry = lists.held.entry(hasher.finish());
        if let Entry::Occupied(held) = &entry
            && let Some(same) = held.get().upgrade().filter(|held| **held == *list)
        {
            return same;
        }
        let list: Arc<[Arc<str>]> = list.into();
        entry.insert_entry(Arc::downgrade(&list));
        list
    }

    /// Who is concerned when `owner` blocks or unblocks `jids`: colleagues that these mean.
    pub(crate) fn concerned(&self, owner: &str, jids: &[&str]) -> Option<Moved> {
        let circle = self.of(owner);
        if circle.is_empty() || jids.is_empty() {
            return None;
        }
        let mut accounts: Vec<Arc<str>> = Vec::new();
        let mut domains: Vec<&str> = Vec::new();
        for jid in jids {
            match bare(jid) {
                bare if !bare.contains('@') => domains.push(bare),
                bare if circle.has(bare) => accounts.push(bare.into()),
                _ => {}
            }
        }
        let domain = |jid: &str| jid.split_once('@').map(|(_, domain)| domain.to_owned());
        if !domains.is_empty() {
            let of_domain = |jid: &&Arc<str>| domain(jid).is_some_and(|d| domains.contains(&&*d));
            accounts.extend(circle.names(owner).filter(of_domain).cloned());
        }
        let owner: Arc<[Arc<str>]> = Arc::from([Arc::from(owner)]);
        (!accounts.is_empty()).then(|| Moved {
            accounts,
            shifts: vec![Arc::new(Shift::Blocked(owner))],
        })
    }
}

impl Held {
    /// The group that a fact means; `None` when rosters do not show it.
    fn shown(&self, fact: GroupFact) -> Option<Group> {
        if fact.deleted || fact.label.is_empty() || fact.members.is_empty() {
            return None;
        }
        let known = |jid: String| match self.of.get_key_value(&*jid) {
            Some((known, _)) => Arc::clone(known),
            None => jid.into(),
        };
        let mut members: Vec<Arc<str>> = fact.members.into_iter().map(known).collect();
        members.sort_unstable();
        members.dedup();
        Some(Group {
            label: fact.label.into(),
            members: members.into(),
        })
    }

    /// Makes a group what it is to be, and says what that is for whom.
    fn replace(&mut self, key: Key, new: Option<Group>) -> Vec<Moved> {
        let key = match self.groups.get_key_value(&key) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(key),
        };
        let old = self.groups.get(&key).cloned();
        if old.as_deref() == new.as_ref() {
            return Vec::new();
        }
        let new = new.map(Arc::new);
        let of = |group: &Option<Arc<Group>>| -> Arc<[Arc<str>]> {
            let members = group.as_ref().map(|group| &*group.members);
            members.unwrap_or_default().into()
        };
        let (before, after) = (of(&old), of(&new));
        let (left, stayed) = apart(&before, new.as_deref());
        let (joined, _) = apart(&after, old.as_deref());
        for jid in &left {
            if let Some(keys) = self.of.get_mut(jid) {
                keys.retain(|known| *known != key);
                if keys.is_empty() {
                    self.of.remove(jid);
                }
            }
        }
        for jid in &joined {
            let keys = self.of.entry(Arc::clone(jid)).or_default();
            keys.push(Arc::clone(&key));
            keys.sort_unstable();
        }
        match &new {
            Some(group) => self.groups.insert(key, Arc::clone(group)),
            None => self.groups.remove(&key),
        };
        let label = |group: &Option<Arc<Group>>| -> Box<str> {
            let label = group.as_ref().map(|group| group.label.clone());
            label.unwrap_or_default()
        };
        let (was, is) = (label(&old), label(&new));
        let version = self.version;
        let away = |jids: Arc<[Arc<str>]>| Arc::new(Shift::Left(version, was.clone(), jids));
        let here = |jids: Arc<[Arc<str>]>| Arc::new(Shift::Joined(version, is.clone(), jids));
        // Who stays sees who came and went; all of them where the group is called otherwise now.
        let seen = match was == is {
            true => (left.clone().into(), joined.clone().into()),
            false => (Arc::clone(&before), Arc::clone(&after)),
        };
        let told = |accounts: Vec<Arc<str>>, out: Arc<[Arc<str>]>, new: Arc<[Arc<str>]>| {
            let mut shifts = Vec::new();
            if !out.is_empty() {
                shifts.push(away(out));
            }
            if !new.is_empty() {
                shifts.push(here(new));
            }
            Moved { accounts, shifts }
        };
        let moved = [
            told(stayed, seen.0, seen.1),
            told(joined, Arc::default(), after),
            told(left, before, Arc::default()),
        ];
        let concerns = |moved: &Moved| !moved.accounts.is_empty() && !moved.shifts.is_empty();
        moved.into_iter().filter(concerns).collect()
    }
}

/// Those that the group does not have, and those that it has.
fn apart(jids: &[Arc<str>], group: Option<&Group>) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let has = |jid: &&Arc<str>| group.is_some_and(|group| group.has(jid));
    let (with, without): (Vec<&Arc<str>>, Vec<&Arc<str>>) = jids.iter().partition(has);
    let own = |jids: Vec<&Arc<str>>| jids.into_iter().cloned().collect();
    (own(without), own(with))
}

/// Tells the sessions here of it, so many in a second.
pub(crate) fn tell(gateway: &Gateway, moved: Vec<Moved>) {
    let mut told: u64 = 0;
    for Moved { accounts, shifts } in moved {
        for account in &accounts {
            let after = pace(told);
            let event = |shift| Event::Colleagues(Arc::clone(shift), after);
            let events: Vec<Event> = shifts.iter().map(event).collect();
            if gateway.sessions.push_account(account, &events) {
                told += 1;
            }
        }
    }
}

/// How long a session waits behind so many others.
fn pace(told: u64) -> Duration {
    Duration::from_millis(told * 1_000 / TOLD_PER_SECOND)
}

#[cfg(test)]
#[path = "colleagues/tests.rs"]
pub(crate) mod tests;
