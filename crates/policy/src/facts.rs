//! What the directory says: hosted domains, accounts and their state, groups and their members.
//! Owns how a snapshot and its deltas become facts; it refuses to know what a policy makes of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chancery_api::directory::{AccountState, WatchUp};

/// Accounts that one policy service follows; a directory beyond it is refused, and without facts
/// there are no verdicts.
pub const ACCOUNTS_LIMIT: usize = 5_000_000;

/// The facts at one version of the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The default domain first.
    pub domains: Vec<String>,
    /// By bare JID: whether the account is active (else disabled).
    pub accounts: HashMap<Arc<str>, bool>,
    /// By (domain, name): bare JIDs of the members.
    pub groups: BTreeMap<GroupKey, BTreeSet<Arc<str>>>,
}

/// A group of the directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The hosted domain that it belongs to.
    pub domain: String,
    /// Its name there.
    pub group: String,
}

impl GroupKey {
    /// The group `group` of `domain`.
    pub fn new(domain: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            group: group.into(),
        }
    }
}

/// What a part of the directory's facts does to verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    None,
    /// Accounts came that did not exist: what was allowed stays allowed, so nothing that is under way
    /// has to be decided again.
    Widened,
    /// What was allowed may be denied now, or the reverse.
    Altered,
}

impl Facts {
    /// The default domain; empty while the directory hosts none.
    pub fn default_domain(&self) -> &str {
        self.domains.first().map_or("", String::as_str)
    }

    /// Takes over one part. `relevant` tells whether a change of a group can alter a verdict.
    pub fn take(&mut self, part: WatchUp, relevant: &dyn Fn(&GroupKey) -> bool) -> Change {
        let mut change = Change::None;
        if !part.domains.is_empty() && part.domains != self.domains {
            self.domains = part.domains;
            change = Change::Altered;
        }
        for account in part.accounts {
            let now = match account.state() {
                AccountState::Active => Some(true),
                AccountState::Disabled => Some(false),
                // A state that this program does not know is no account.
                AccountState::Deleted | AccountState::Unspecified => None,
            };
            let before = match now {
                Some(active) => self.accounts.insert(account.jid.into(), active),
                None => self.accounts.remove(account.jid.as_str()),
            };
            change = change.max(match (before, now) {
                (before, now) if before == now => Change::None,
                (None, _) => Change::Widened,
                (Some(_), _) => Change::Altered,
            });
        }
        for group in part.groups {
            let key = GroupKey::new(group.domain, group.group);
            let now = (!group.deleted).then(|| {
                group
                    .members
                    .into_iter()
                    .map(Arc::from)
                    .collect::<BTreeSet<Arc<str>>>()
            });
            let differs = self.groups.get(&key) != now.as_ref();
            if differs && relevant(&key) {
                change = Change::Altered;
            }
            match now {
                Some(members) => self.groups.insert(key, members),
                None => self.groups.remove(&key),
            };
        }
        change
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use chancery_api::directory::{AccountFact, GroupFact};

    pub(crate) fn account(jid: &str, state: AccountState) -> AccountFact {
        AccountFact {
            jid: jid.into(),
            state: state.into(),
            credential_version: 1,
            generation: 1,
            ..AccountFact::default()
        }
    }

    pub(crate) fn group(domain: &str, name: &str, members: &[&str]) -> GroupFact {
        GroupFact {
            domain: domain.into(),
            group: name.into(),
            members: members.iter().map(ToString::to_string).collect(),
            deleted: false,
            label: String::new(),
        }
    }

    /// Two hosted domains, two groups, five accounts of which one is disabled.
    pub(crate) fn part() -> WatchUp {
        let active = |jid| account(jid, AccountState::Active);
        WatchUp {
            version: 7,
            domains: vec!["example.org".into(), "lab.example".into()],
            accounts: vec![
                active("rita@example.org"),
                active("tom@example.org"),
                active("carl@example.org"),
                active("lena@lab.example"),
                account("dora@example.org", AccountState::Disabled),
            ],
            groups: vec![
                group(
                    "example.org",
                    "research",
                    &["rita@example.org", "dora@example.org"],
                ),
                group(
                    "example.org",
                    "trading",
                    &["tom@example.org", "ghost@example.org"],
                ),
                group("lab.example", "chemists", &["lena@lab.example"]),
            ],
            snapshot: true,
            complete: true,
        }
    }

    pub(crate) fn facts() -> Facts {
        let mut facts = Facts::default();
        assert_eq!(facts.take(part(), &|_| true), Change::Altered);
        facts
    }

    #[test]
    fn only_what_may_alter_a_verdict_counts_as_a_change() {
        let mut facts = facts();
        let none = |_: &GroupKey| false;
        assert_eq!(
            facts.take(part(), &|_| true),
            Change::None,
            "the same again"
        );
        let mut renewed = account("rita@example.org", AccountState::Active);
        renewed.credential_version = 9;
        let accounts = |fact| WatchUp {
            accounts: vec![fact],
            ..WatchUp::default()
        };
        let steps = [
            (renewed, Change::None),
            (
                account("new@example.org", AccountState::Active),
                Change::Widened,
            ),
            (
                account("rita@example.org", AccountState::Disabled),
                Change::Altered,
            ),
            (
                account("rita@example.org", AccountState::Active),
                Change::Altered,
            ),
            (
                account("rita@example.org", AccountState::Deleted),
                Change::Altered,
            ),
            (
                account("rita@example.org", AccountState::Deleted),
                Change::None,
            ),
        ];
        for (fact, expected) in steps {
            assert_eq!(
                facts.take(accounts(fact.clone()), &none),
                expected,
                "{fact:?}"
            );
        }
        assert!(!facts.accounts.contains_key("rita@example.org"));

        let groups = |fact| WatchUp {
            groups: vec![fact],
            ..WatchUp::default()
        };
        let grown = group(
            "example.org",
            "trading",
            &["tom@example.org", "carl@example.org"],
        );
        let key = GroupKey::new("example.org", "trading");
        assert_eq!(
            facts.take(groups(grown), &none),
            Change::None,
            "a group that no wall names"
        );
        assert_eq!(facts.groups[&key].len(), 2, "is followed all the same");
        let mut gone = group("example.org", "trading", &[]);
        gone.deleted = true;
        assert_eq!(facts.take(groups(gone), &|g| *g == key), Change::Altered);
        assert!(!facts.groups.contains_key(&key));
    }
}
