//! A policy as its author means it, checked. Owns the vocabulary (groups, walls, rules) and the one
//! entry to it, [`check`]; reading the TOML is `reader.rs`. It refuses to decide anything.

use std::collections::BTreeMap;

use chancery_api::policy::Problem;

use crate::facts::{Facts, GroupKey};
use crate::reader;

/// Bytes of a policy file.
pub const FILE_BYTES: usize = 1024 * 1024;
/// Walls of a policy.
pub const WALLS_LIMIT: usize = 1_000;
/// Rules of a policy.
pub const RULES_LIMIT: usize = 2_000;
/// Groups that a policy names itself.
pub const GROUPS_LIMIT: usize = 1_000;
/// Bytes of a name of a wall, rule or group.
pub const NAME_BYTES: usize = 64;
/// Bytes of a text that senders see.
pub const TEXT_BYTES: usize = 1_024;

/// The policy in force before anybody applied one.
pub const BUILT_IN: &str = "# Built in: everybody of the hosted domains may write to everybody there.\n\
                            default = \"allow\"\n";

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// What holds where no wall and no rule speaks.
    pub default: Action,
    /// Groups in addition to the directory's.
    pub groups: BTreeMap<String, Vec<Member>>,
    /// Win over every rule.
    pub walls: Vec<Wall>,
    /// The first that matches decides.
    pub rules: Vec<Rule>,
}

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// A member of a group that the policy names itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// A bare JID.
    Account(String),
    /// Every account of a domain.
    Domain(String),
}

/// A group that a wall or a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupRef {
    /// Of this policy.
    Policy(String),
    /// Of the directory; without a domain of the default one.
    Directory {
        /// The hosted domain, if written.
        domain: Option<String>,
        /// The group's name.
        group: String,
    },
}

impl GroupRef {
    /// The directory's group, if it is one.
    pub fn key(&self, facts: &Facts) -> Option<GroupKey> {
        match self {
            Self::Policy(_) => None,
            Self::Directory { domain, group } => {
                let domain = domain.as_deref().unwrap_or_else(|| facts.default_domain());
                Some(GroupKey::new(domain, group))
            }
        }
    }
}

impl std::fmt::Display for GroupRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(name)
            | Self::Directory {
                domain: None,
                group: name,
            } => f.write_str(name),
            Self::Directory {
                domain: Some(domain),
                group,
            } => write!(f, "{group}@{domain}"),
        }
    }
}

/// Two groups that may not talk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wall {
    /// Goes into evidence as `wall:NAME`.
    pub name: String,
    /// One side.
    pub first: GroupRef,
    /// The other side.
    pub second: GroupRef,
    /// Who of them may not write.
    pub direction: Direction,
    /// What the sender of a message sees.
    pub kind: WallKind,
    /// What an open wall tells the sender of a message; `explain` shows it for both.
    pub text: String,
}

/// Which way a wall stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Neither side may write to the other.
    Both,
    /// The first may not write to the second.
    Forward,
}

/// How a wall looks to the sender of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WallKind {
    /// `policy-violation` with the author's text.
    Open,
    /// As if the other side did not exist.
    Concealed,
}

/// Who may, or may not, write to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Goes into evidence as `rule:NAME`.
    pub name: String,
    /// Senders.
    pub from: Vec<Selector>,
    /// Recipients.
    pub to: Vec<Selector>,
    /// What holds between them.
    pub action: Action,
    /// The kinds of stanza it holds for.
    pub kinds: Kinds,
    /// Told to the sender of a message that is denied.
    pub text: String,
}

/// Whom one side of a rule means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// `*`: every account.
    Anybody,
    /// `NAME`, `group:NAME` or `group:NAME@DOMAIN`.
    Group(GroupRef),
    /// `user@domain`.
    Account(String),
    /// `domain:DOMAIN`.
    Domain(String),
}

/// A set of kinds of stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// Messages.
    pub message: bool,
    /// Presence.
    pub presence: bool,
    /// IQs.
    pub iq: bool,
}

impl Kinds {
    /// Every kind.
    pub const ALL: Self = Self {
        message: true,
        presence: true,
        iq: true,
    };
}

/// Checks a policy file and names every problem at once. With facts also what it names is looked
/// up: groups, domains. Without (no directory at hand) only what stands in the file is checked.
pub fn check(text: &str, facts: Option<&Facts>) -> Result<PolicyFile, Vec<Problem>> {
    reader::read(text, facts)
}
