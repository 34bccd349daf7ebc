//! Policy and directory facts, compiled: who may send what to whom, in a few hash look-ups. Owns the
//! order of reasons and how each looks to the sender; immutable, it refuses to know when it is in
//! force.
//!
//! Walls and rules become *positions* in one order of precedence: concealed walls, open walls, rules
//! as written. Each account knows the positions on whose sending side it stands, and those on whose
//! receiving side; what decides is the lowest bit that both have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chancery_api::{Decision, Denial, Kind, Verdict};
use chancery_xmpp::jid::{bare, domain};

use crate::facts::{Facts, GroupKey};
use crate::file::{Action, Direction, GroupRef, Member, PolicyFile, Selector, WallKind};

/// Positions of one side; words of 64.
type Bits = Box<[u64]>;

/// What is in force at one version.
#[derive(Debug)]
pub struct Decider {
    version: u64,
    policy: Arc<PolicyFile>,
    positions: Vec<Position>,
    /// By [`kind_index`]: the positions that speak of the kind.
    by_kind: [Bits; 3],
    domains: Vec<Box<str>>,
    accounts: HashMap<Arc<str>, Account>,
    classes: Vec<Sides>,
}

/// Index into the policy's walls or rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Wall(usize),
    Rule(usize),
}

#[derive(Debug, Clone, Copy)]
struct Account {
    active: bool,
    class: u32,
}

/// On which side of which positions an account stands; accounts alike share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sides {
    sending: Bits,
    receiving: Bits,
}

/// Why a verdict is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The stanza is of no kind that policy knows.
    NoKind,
    /// The sender is no active account of this deployment.
    Sender,
    /// The recipient's domain is not hosted here.
    NoFederation,
    /// To the hosted domain itself.
    Server,
    /// To the sender's own account.
    Own,
    /// The recipient does not exist.
    Absent,
    /// The recipient is disabled.
    Disabled,
    /// A wall of the policy, by index.
    Wall(usize),
    /// A rule of the policy, by index.
    Rule(usize),
    /// No wall and no rule speaks of the two.
    Default,
}

impl Decider {
    /// Compiles. What a wall or rule names that the facts do not have matches nobody.
    pub fn compile(version: u64, policy: Arc<PolicyFile>, facts: &Facts) -> Self {
        let compiled = Compiler::new(&policy, facts);
        let mut classes: HashMap<Sides, u32> = HashMap::new();
        let mut accounts = HashMap::with_capacity(facts.accounts.len());
        for (jid, active) in &facts.accounts {
            let sides = compiled.sides(jid);
            let next = u32::try_from(classes.len()).unwrap_or(u32::MAX);
            let class = *classes.entry(sides).or_insert(next);
            accounts.insert(
                Arc::clone(jid),
                Account {
                    active: *active,
                    class,
                },
            );
        }
        let mut ordered: Vec<(Sides, u32)> = classes.into_iter().collect();
        ordered.sort_by_key(|(_, class)| *class);
        Self {
            version,
            positions: compiled
                .positions
                .iter()
                .map(|(position, ..)| *position)
                .collect(),
            by_kind: compiled.by_kind(),
            domains: facts
                .domains
                .iter()
                .map(|domain| domain.as_str().into())
                .collect(),
            accounts,
            classes: ordered.into_iter().map(|(sides, _)| sides).collect(),
            policy,
        }
    }

    /// The version that its verdicts carry.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The policy it was compiled from.
    pub fn policy(&self) -> &Arc<PolicyFile> {
        &self.policy
    }

    /// One verdict. `from` and `to` are normalised JIDs; anything else is nobody.
    pub fn decide(&self, from: &str, to: &str, kind: Kind, type_: &str) -> Verdict {
        let (reason, allowed) = self.reason(from, to, kind, type_);
        self.verdict(reason, allowed, kind)
    }

    /// Why, and whether it may pass.
    pub fn reason(&self, from: &str, to: &str, kind: Kind, type_: &str) -> (Reason, bool) {
        let Some(kind_at) = kind_index(kind) else {
            return (Reason::NoKind, false);
        };
        let (from, to) = (bare(from), bare(to));
        let Some(sender) = self.accounts.get(from).filter(|account| account.active) else {
            return (Reason::Sender, false);
        };
        if from == to {
            return (Reason::Own, true);
        }
        let domain = domain(to);
        if !self.domains.iter().any(|hosted| &**hosted == domain) {
            return (Reason::NoFederation, false);
        }
        if domain == to {
            return (Reason::Server, true);
        }
        // An absent recipient takes the same way as a walled one, so that time tells nothing either.
        let recipient = self.accounts.get(to);
        let class = recipient.unwrap_or(sender).class;
        let mut verdict = self.between(sender.class, class, kind_at);
        // RFC 6120 §8.2.3: a request has to be answered. One whose answer may not come back is
        // refused at once, in place of a sender that waits for nothing.
        if verdict.1 && kind == Kind::Iq && matches!(type_, "get" | "set") {
            let back = self.between(class, sender.class, kind_at);
            if !back.1 {
                verdict = back;
            }
        }
        match recipient {
            None => (Reason::Absent, false),
            Some(account) if !account.active => (Reason::Disabled, false),
            Some(_) => verdict,
        }
    }

    /// The verdict that a reason becomes.
    pub fn verdict(&self, reason: Reason, allowed: bool, kind: Kind) -> Verdict {
        let (rule_id, text, open) = match reason {
            Reason::NoKind => ("no-kind".to_owned(), "", false),
            Reason::Sender => ("sender".to_owned(), "", false),
            Reason::NoFederation => ("no-federation".to_owned(), "", false),
            Reason::Server => ("server".to_owned(), "", false),
            Reason::Own => ("self".to_owned(), "", false),
            Reason::Absent => ("absent".to_owned(), "", false),
            Reason::Disabled => ("disabled".to_owned(), "", false),
            Reason::Wall(index) => self.policy.walls.get(index).map_or_else(
                || ("wall".to_owned(), "", false),
                |wall| {
                    let open = wall.kind == WallKind::Open;
                    (format!("wall:{}", wall.name), wall.text.as_str(), open)
                },
            ),
            Reason::Rule(index) => self.policy.rules.get(index).map_or_else(
                || ("rule".to_owned(), "", false),
                |rule| (format!("rule:{}", rule.name), rule.text.as_str(), true),
            ),
            Reason::Default => ("default".to_owned(), "", true),
        };
        let mut verdict = Verdict {
            decision: Decision::Allow.into(),
            policy_version: self.version,
            rule_id,
            denial: Denial::Unspecified.into(),
            text: String::new(),
        };
        if !allowed {
            let denial = match reason {
                Reason::NoFederation => Denial::RemoteServerNotFound,
                // Only a message tells of a wall, and only of an open one; everything else looks
                // as if the other were absent.
                _ if open && kind == Kind::Message => {
                    verdict.text = text.to_owned();
                    Denial::PolicyViolation
                }
                _ => Denial::ServiceUnavailable,
            };
            verdict.decision = Decision::Deny.into();
            verdict.denial = denial.into();
        }
        verdict
    }

    fn between(&self, from: u32, to: u32, kind_at: usize) -> (Reason, bool) {
        let (Some(from), Some(to)) = (self.class(from), self.class(to)) else {
            // Cannot be: every account has a class. Deny all the same.
            return (Reason::Default, false);
        };
        let speaking = self.by_kind.get(kind_at).map_or(&[][..], |bits| &**bits);
        let words = from.sending.iter().zip(&to.receiving).zip(speaking);
        for (n, ((sending, receiving), speaking)) in words.enumerate() {
            let both = sending & receiving & speaking;
            if both != 0 {
                let at = n * 64 + both.trailing_zeros() as usize;
                return match self.positions.get(at) {
                    Some(Position::Wall(wall)) => (Reason::Wall(*wall), false),
                    Some(Position::Rule(rule)) => {
                        let action = self.policy.rules.get(*rule).map(|rule| rule.action);
                        (Reason::Rule(*rule), action == Some(Action::Allow))
                    }
                    None => (Reason::Default, false),
                };
            }
        }
        (Reason::Default, self.policy.default == Action::Allow)
    }

    fn class(&self, class: u32) -> Option<&Sides> {
        self.classes.get(usize::try_from(class).ok()?)
    }
}

fn kind_index(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Unspecified => None,
        Kind::Message => Some(0),
        Kind::Presence => Some(1),
        Kind::Iq => Some(2),
    }
}

/// A position with who sends and who receives under it.
type Sided<'p> = (Position, Vec<Party<'p>>, Vec<Party<'p>>);

/// Whom a side means, before it is looked up.
#[derive(Clone, Copy)]
enum Party<'p> {
    Anybody,
    Group(&'p GroupRef),
    Account(&'p str),
    Domain(&'p str),
}

struct Compiler<'p> {
    policy: &'p PolicyFile,
    positions: Vec<Sided<'p>>,
    words: usize,
    anybody: Sides,
    by_domain: HashMap<&'p str, Sides>,
    by_account: HashMap<&'p str, Sides>,
}

impl<'p> Compiler<'p> {
    fn new(policy: &'p PolicyFile, facts: &'p Facts) -> Self {
        let positions = ordered(policy);
        let words = positions.len().div_ceil(64);
        let mut compiler = Self {
            policy,
            positions: Vec::new(),
            words,
            anybody: Sides::none(words),
            by_domain: HashMap::new(),
            by_account: HashMap::new(),
        };
        for (at, (_, senders, receivers)) in positions.iter().enumerate() {
            for party in senders {
                compiler.mark(*party, at, true, facts);
            }
            for party in receivers {
                compiler.mark(*party, at, false, facts);
            }
        }
        compiler.positions = positions;
        compiler
    }

    fn mark(&mut self, party: Party<'p>, at: usize, sending: bool, facts: &'p Facts) {
        let words = self.words;
        match party {
            Party::Anybody => self.anybody.mark(at, sending),
            Party::Account(jid) => sides_of(&mut self.by_account, jid, words).mark(at, sending),
            Party::Domain(domain) => sides_of(&mut self.by_domain, domain, words).mark(at, sending),
            Party::Group(GroupRef::Policy(name)) => {
                for member in self.policy.groups.get(name).into_iter().flatten() {
                    let party = match member {
                        Member::Account(jid) => Party::Account(jid),
                        Member::Domain(domain) => Party::Domain(domain),
                    };
                    self.mark(party, at, sending, facts);
                }
            }
            Party::Group(group) => {
                let members = group.key(facts).and_then(|key| facts.groups.get(&key));
                for jid in members.into_iter().flatten() {
                    sides_of(&mut self.by_account, jid, words).mark(at, sending);
                }
            }
        }
    }

    fn sides(&self, jid: &str) -> Sides {
        let mut sides = self.anybody.clone();
        for more in [self.by_account.get(jid), self.by_domain.get(domain(jid))] {
            sides.join(more);
        }
        sides
    }

    fn by_kind(&self) -> [Bits; 3] {
        let mut by_kind = [
            no_bits(self.words),
            no_bits(self.words),
            no_bits(self.words),
        ];
        let [message, presence, iq] = &mut by_kind;
        for (at, (position, ..)) in self.positions.iter().enumerate() {
            let kinds = match position {
                Position::Wall(_) => crate::file::Kinds::ALL,
                Position::Rule(rule) => match self.policy.rules.get(*rule) {
                    Some(rule) => rule.kinds,
                    None => continue,
                },
            };
            for (speaks, bits) in [
                (kinds.message, &mut *message),
                (kinds.presence, &mut *presence),
                (kinds.iq, &mut *iq),
            ] {
                if speaks {
                    set(bits, at);
                }
            }
        }
        by_kind
    }
}

/// Walls and rules in the order in which they win.
fn ordered(policy: &PolicyFile) -> Vec<Sided<'_>> {
    let mut positions = Vec::new();
    // A concealed wall comes before an open one between the same two: it must not be told of.
    for kind in [WallKind::Concealed, WallKind::Open] {
        for (index, wall) in policy
            .walls
            .iter()
            .enumerate()
            .filter(|(_, wall)| wall.kind == kind)
        {
            let (first, second) = (
                vec![Party::Group(&wall.first)],
                vec![Party::Group(&wall.second)],
            );
            if wall.direction == Direction::Both {
                positions.push((Position::Wall(index), second.clone(), first.clone()));
            }
            positions.push((Position::Wall(index), first, second));
        }
    }
    for (index, rule) in policy.rules.iter().enumerate() {
        let (from, to) = (rule.from.iter().map(party), rule.to.iter().map(party));
        positions.push((Position::Rule(index), from.collect(), to.collect()));
    }
    positions
}

fn party(selector: &Selector) -> Party<'_> {
    match selector {
        Selector::Anybody => Party::Anybody,
        Selector::Group(group) => Party::Group(group),
        Selector::Account(jid) => Party::Account(jid),
        Selector::Domain(domain) => Party::Domain(domain),
    }
}

/// The directory's groups whose change can alter a verdict.
pub fn named_groups(policy: &PolicyFile, facts: &Facts) -> BTreeSet<GroupKey> {
    let walls = policy
        .walls
        .iter()
        .flat_map(|wall| [&wall.first, &wall.second]);
    let selectors = policy
        .rules
        .iter()
        .flat_map(|rule| rule.from.iter().chain(&rule.to));
    let rules = selectors.filter_map(|selector| match selector {
        Selector::Group(group) => Some(group),
        Selector::Anybody | Selector::Account(_) | Selector::Domain(_) => None,
    });
    walls
        .chain(rules)
        .filter_map(|group| group.key(facts))
        .collect()
}

fn sides_of<'m, 'p>(
    map: &'m mut HashMap<&'p str, Sides>,
    key: &'p str,
    words: usize,
) -> &'m mut Sides {
    map.entry(key).or_insert_with(|| Sides::none(words))
}

fn no_bits(words: usize) -> Bits {
    vec![0; words].into_boxed_slice()
}

fn set(bits: &mut Bits, at: usize) {
    if let Some(word) = bits.get_mut(at / 64) {
        *word |= 1 << (at % 64);
    }
}

impl Sides {
    fn none(words: usize) -> Self {
        Self {
            sending: no_bits(words),
            receiving: no_bits(words),
        }
    }

    fn mark(&mut self, at: usize, sending: bool) {
        set(
            if sending {
                &mut self.sending
            } else {
                &mut self.receiving
            },
            at,
        );
    }

    fn join(&mut self, more: Option<&Self>) {
        let Some(more) = more else { return };
        let pairs = self.sending.iter_mut().zip(&more.sending);
        for (mine, other) in pairs.chain(self.receiving.iter_mut().zip(&more.receiving)) {
            *mine |= other;
        }
    }
}

#[cfg(test)]
#[path = "decider_tests.rs"]
mod tests;
