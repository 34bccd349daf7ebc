//! Block lists (XEP-0191) as this gateway follows them from the roster service, and the screening of
//! stanzas by them. Held whole, so that no stanza waits for another service (ADR 17).
//!
//! Refuses to change a list. A gateway that has not heard of the lists for the lease has none, and
//! lets nothing pass.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chancery_api::roster::{BlockList, WatchConfirm, WatchDown, WatchHello, watch_down};
use chancery_api::{Cx, Decision, Denial, Link, Verdict, roster};
use chancery_xmpp::jid::bare;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::attach::{OPEN_LIMIT, REOPEN_FIRST, REOPEN_LAST};
use crate::colleagues;
use crate::pipeline::decide::{Question, Undecided, allows};
use crate::service::Gateway;

/// Lists that were not heard of for so long are not relied on: sessions chat on while the roster
/// service is away, up to this.
pub(crate) const LEASE: Duration = Duration::from_secs(300);
/// A sign of life comes each second; a stream that is silent for so long is lost.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// Rules under which the evidence has what was screened.
const BY_RECIPIENT: &str = "block:recipient";
const BY_SENDER: &str = "block:sender";

type List = HashSet<Box<str>>;

/// See the module.
#[derive(Default)]
pub(crate) struct Blocks(RwLock<Held>);

#[derive(Default)]
struct Held {
    lists: HashMap<Box<str>, List>,
    /// When the lists were last known to be whole.
    heard: Option<Instant>,
}

impl Blocks {
    /// Whole, and heard of within the lease?
    pub(crate) fn is_followed(&self, now: Instant) -> bool {
        self.0.read().is_followed(now)
    }

    /// Denies, of what policy allows, what somebody has blocked. A wall comes first: of one that is
    /// concealed nothing shows, whoever has blocked whom.
    pub(crate) fn screen(
        &self,
        question: &Question,
        verdicts: &mut [Verdict],
        now: Instant,
    ) -> Result<(), Undecided> {
        let held = self.0.read();
        if !held.is_followed(now) {
            return Err(Undecided);
        }
        if held.lists.is_empty() {
            return Ok(());
        }
        for (to, verdict) in question.to.iter().zip(verdicts) {
            if allows(verdict)
                && let Some((denial, rule)) = held.blocked(&question.from, to)
            {
                verdict.decision = Decision::Deny.into();
                verdict.denial = denial.into();
                verdict.rule_id = rule.to_owned();
            }
        }
        Ok(())
    }

    fn heard(&self, now: Instant) {
        self.0.write().heard = Some(now);
    }

    fn replace(&self, lists: HashMap<Box<str>, List>, now: Instant) {
        *self.0.write() = Held {
            lists,
            heard: Some(now),
        };
    }

    /// Takes over a list. Gives what is new on it or gone.
    fn change(&self, list: BlockList) -> List {
        let mut held = self.0.write();
        let now: List = list.jids.into_iter().map(Into::into).collect();
        let before = match now.is_empty() {
            true => held.lists.remove(&*list.owner),
            false => held.lists.insert(list.owner.into(), now.clone()),
        };
        before
            .unwrap_or_default()
            .symmetric_difference(&now)
            .cloned()
            .collect()
    }
}

impl Held {
    fn is_followed(&self, now: Instant) -> bool {
        self.heard.is_some_and(|at| at + LEASE > now)
    }

    /// Who of the two has blocked the other. Nobody blocks the own account.
    fn blocked(&self, from: &str, to: &str) -> Option<(Denial, &'static str)> {
        let (sender, recipient) = (bare(from), bare(to));
        if sender == recipient {
            return None;
        }
        let lists = |owner: &str, other: &str| {
            let list = self.lists.get(owner);
            list.is_some_and(|list| matches(list, other))
        };
        if lists(sender, to) {
            // XEP-0191 §3.2
            Some((Denial::Blocked, BY_SENDER))
        } else if lists(recipient, from) {
            Some((Denial::ServiceUnavailable, BY_RECIPIENT))
        } else {
            None
        }
    }
}

/// XEP-0191 §2: the full JID, the bare one, the domain with its resource, the domain.
fn matches(list: &List, jid: &str) -> bool {
    let bare = bare(jid);
    let domain = bare.split_once('@').map_or(bare, |(_, domain)| domain);
    list.contains(jid) || list.contains(bare) || list.contains(domain)
}

impl Gateway {
    /// A verdict for each target, in order: policy's, and the block lists' where it allows.
    pub(crate) async fn decide(&self, question: &Question) -> Result<Vec<Verdict>, Undecided> {
        let mut verdicts = self.policy.decide(question).await?;
        self.blocks
            .screen(question, &mut verdicts, self.clock.monotonic())?;
        Ok(verdicts)
    }

    /// The verdict for the only target.
    pub(crate) async fn decide_one(&self, question: &Question) -> Result<Verdict, Undecided> {
        self.decide(question).await?.pop().ok_or(Undecided)
    }
}

/// Follows the block lists, for ever.
pub(crate) async fn follow_blocks(gateway: Arc<Gateway>) {
    let mut pause = REOPEN_FIRST;
    loop {
        let opened = tokio::time::timeout(OPEN_LIMIT, gateway.roster.watch(&Cx::local())).await;
        if let Ok(Ok(stream)) = opened {
            if read(&gateway, stream).await {
                pause = REOPEN_FIRST;
            }
            tracing::info!("the block lists are out of reach");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_LAST);
    }
}

async fn read(gateway: &Gateway, mut stream: Link<WatchDown, roster::WatchUp>) -> bool {
    use watch_down::Item;
    let down = |item| WatchDown { item: Some(item) };
    let hello = WatchHello {
        follower: format!("gateway-{}", gateway.name),
    };
    if stream.send(down(Item::Hello(hello))).await.is_err() {
        return false;
    }
    let mut snapshot: Option<HashMap<Box<str>, List>> = None;
    let mut heard = false;
    while let Ok(Some(up)) = tokio::time::timeout(SILENCE_LIMIT, stream.recv()).await {
        heard = true;
        if up.snapshot {
            let begun = snapshot.get_or_insert_default();
            for list in up.lists {
                let jids = list.jids.into_iter().map(Into::into);
                begun.entry(list.owner.into()).or_default().extend(jids);
            }
        } else {
            for list in up.lists {
                let owner = list.owner.clone();
                let changed = gateway.blocks.change(list);
                let changed: Vec<&str> = changed.iter().map(AsRef::as_ref).collect();
                let moved = gateway.colleagues.concerned(&owner, &changed);
                colleagues::tell(gateway, moved.into_iter().collect());
            }
        }
        if !up.complete {
            continue;
        }
        let now = gateway.clock.monotonic();
        match snapshot.take() {
            Some(whole) => gateway.blocks.replace(whole, now),
            None => gateway.blocks.heard(now),
        }
        let confirm = WatchConfirm {
            version: up.version,
        };
        if stream.send(down(Item::Confirm(confirm))).await.is_err() {
            break;
        }
    }
    heard
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use chancery_api::Kind;

    use super::*;

    fn held(pairs: &[(&str, &str)]) -> Held {
        let mut held = Held::default();
        for (owner, jid) in pairs {
            let list = held.lists.entry((*owner).into()).or_default();
            list.insert((*jid).into());
        }
        held
    }

    #[test]
    fn every_form_of_a_jid_matches_what_it_means() {
        for (listed, from, blocked) in [
            ("b@x/r", "b@x/r", true),
            ("b@x/r", "b@x/s", false),
            ("b@x/r", "b@x", false),
            ("b@x", "b@x/r", true),
            ("b@x", "b@x", true),
            ("b@x", "bb@x", false),
            ("x", "b@x/r", true),
            ("x", "x", true),
            ("x", "x/r", true),
            ("x", "b@x.y", false),
            ("x/r", "x/r", true),
            ("x/r", "x/s", false),
            ("x/r", "b@x/r", false),
        ] {
            let held = held(&[("a@y", listed)]);
            let recipient = held.blocked(from, "a@y/1").map(|(_, rule)| rule);
            assert_eq!(
                recipient,
                blocked.then_some(BY_RECIPIENT),
                "{listed} {from}"
            );
            let sender = held.blocked("a@y/1", from).map(|(_, rule)| rule);
            assert_eq!(sender, blocked.then_some(BY_SENDER), "{listed} {from}");
        }
    }

    #[test]
    fn nobody_blocks_themselves() {
        for listed in ["a@y", "y", "a@y/2"] {
            assert_eq!(held(&[("a@y", listed)]).blocked("a@y/1", "a@y/2"), None);
        }
    }

    #[test]
    fn nothing_passes_without_lists_and_a_denial_of_policy_stays() {
        let blocks = Blocks::default();
        let now = Instant::now();
        let question = Question {
            from: "a@y/1".into(),
            to: vec!["b@x".into(), "c@x".into()],
            kind: Kind::Message,
            type_: String::new(),
            trace: None,
        };
        let allow = Verdict {
            decision: Decision::Allow.into(),
            ..Verdict::default()
        };
        let deny = Verdict {
            decision: Decision::Deny.into(),
            denial: Denial::PolicyViolation.into(),
            ..Verdict::default()
        };
        let mut verdicts = vec![allow.clone(), deny.clone()];
        assert!(blocks.screen(&question, &mut verdicts, now).is_err());
        let jids = vec!["b@x".to_owned(), "c@x".to_owned()];
        blocks.replace(HashMap::new(), now);
        blocks.change(BlockList {
            owner: "a@y".into(),
            jids,
        });
        blocks.screen(&question, &mut verdicts, now).unwrap();
        assert_eq!(verdicts[0].denial(), Denial::Blocked);
        assert_eq!(verdicts[1], deny);
        let late = now + LEASE;
        assert!(blocks.screen(&question, &mut verdicts, late).is_err());
        blocks.heard(late);
        assert!(blocks.screen(&question, &mut verdicts, late).is_ok());
    }
}
