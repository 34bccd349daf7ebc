//! What a session's client has been told of colleagues: whole rosters and pushes, made of the own
//! items and of the groups that the directory shows, without those whom policy hides.
//!
//! Owns the version that stands for such a list, and knows where the client has missed something of it.
//! Refuses to own items (the roster service does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use chancery_api::roster::{GetRequest, GetResponse, Item, Subscription};
use chancery_api::{Cx, Denial, Kind};
use chancery_runtime::trace::TraceContext;
use chancery_xml::{Limits, push_attr, scan};
use chancery_xmpp::ns;

use super::{Circle, Pending, Shift};
use crate::iq::roster::write_item;
use crate::pipeline::decide::{Question, Undecided, allows};
use crate::presence::Away;
use crate::service::Gateway;
use crate::session::identity::Identity;

/// Colleagues of one change that are pushed; of more the client learns when it asks for the roster.
pub(crate) const PUSHED_LIMIT: usize = 16;

/// Behind what is no version of any list.
const NO_VERSION: &str = "?";

/// What a client that asked for the roster holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Of the roster service: what it says up to here is in the client's roster, or on its way there.
    own: u64,
    /// The client has missed something: it holds no version that there is, and gets all when it asks again
    /// (RFC 6121 §2.6.2).
    gap: bool,
    /// Of the table of groups: what it says up to here is in the client's roster.
    version: u64,
    /// Of the colleagues in it.
    sum: u128,
    /// Colleagues that are not in it: hidden, or not pushed. Sorted.
    untold: Arc<[Arc<str>]>,
}

impl Told {
    fn has_untold(&self, jid: &str) -> bool {
        let found = self.untold.binary_search_by(|known| (**known).cmp(jid));
        found.is_ok()
    }

    /// What of this the client's roster has not in it.
    fn news<'s>(&self, shifts: &'s [Arc<Shift>]) -> Vec<&'s Shift> {
        let new = |shift: &&Shift| shift.version().is_some_and(|of| of > self.version);
        shifts.iter().map(AsRef::as_ref).filter(new).collect()
    }

    /// All who are untold when those who joined are not pushed.
    fn with_joined(&self, news: &[&Shift]) -> Vec<Arc<str>> {
        let mut untold: BTreeSet<Arc<str>> = self.untold.iter().cloned().collect();
        for shift in news {
            if let Shift::Joined(_, _, jids) = shift {
                untold.extend(jids.iter().cloned());
            }
        }
        untold.into_iter().collect()
    }

    /// The client gets the whole of this version of the roster service.
    pub(crate) fn begin(&mut self, version: &str) {
        self.own = version.parse().unwrap_or_default();
    }

    /// A push of the roster service has come: each has the next version, or one before it was lost. Gives
    /// whether it has: one that is late may say what is no longer so.
    pub(crate) fn hear(&mut self, version: &str) -> bool {
        let version = version.parse().unwrap_or_default();
        let next = self.own.saturating_add(1);
        self.gap |= version > next;
        self.own = self.own.max(version);
        version == next
    }

    /// Does the version say more than the roster service's number?
    pub(crate) fn has_any(&self) -> bool {
        self.sum != 0 || self.gap
    }

    fn set_untold(&mut self, jid: &str, untold: bool) {
        let mut all = self.untold.to_vec();
        match all.binary_search_by(|known| (**known).cmp(jid)) {
            Err(at) if untold => all.insert(at, jid.into()),
            Ok(at) if !untold => drop(all.remove(at)),
            _ => return,
        }
        self.untold = all.into();
    }

    fn add(&mut self, jid: &str, label: &str) {
        self.sum = self.sum.wrapping_add(mark(jid, label));
    }

    fn take(&mut self, jid: &str, label: &str) {
        self.sum = self.sum.wrapping_sub(mark(jid, label));
    }

    /// Stands for what the client holds once nothing is on its way to it: the roster service's number, and
    /// what colleagues add.
    pub(crate) fn version(&self) -> String {
        let mut version = self.own.to_string();
        if self.sum != 0 {
            version.push_str(&format!("-{:032x}", self.sum));
        }
        if self.gap {
            version.push_str(NO_VERSION);
        }
        version
    }
}

/// Of a colleague by one group. A version adds these, so that one who comes or goes changes it without
/// a look at all others; what is hidden is not in it.
fn mark(jid: &str, label: &str) -> u128 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(jid.as_bytes());
    context.update(&[0]);
    context.update(label.as_bytes());
    let hash = context.finish();
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    u128::from_be_bytes(bytes)
}

/// Of these, those that the account may know of: to whom it may write, or is told why not. Who is behind
/// a concealed wall is hidden as one who is not there.
pub(crate) async fn visible(
    gateway: &Gateway,
    identity: &Identity,
    jids: Vec<String>,
    trace: Option<TraceContext>,
) -> Result<BTreeSet<String>, Undecided> {
    let question = Question {
        from: identity.full.to_string(),
        to: jids,
        kind: Kind::Message,
        type_: String::new(),
        trace,
    };
    let verdicts = gateway.policy.decide(&question).await?;
    let asked = question.to.into_iter().zip(&verdicts);
    let seen = asked.filter(|(_, v)| allows(v) || v.denial() == Denial::PolicyViolation);
    Ok(seen.map(|(jid, _)| jid).collect())
}

/// A colleague, and one that the account may know of? Who has any is asked about in the same way
/// whether there is such a colleague, one who is hidden, or nobody: time does not tell.
pub(crate) async fn is_colleague(
    gateway: &Gateway,
    identity: &Identity,
    jid: &str,
    trace: Option<TraceContext>,
) -> Result<bool, Undecided> {
    let circle = gateway.colleagues.of(&identity.account);
    if circle.is_empty() {
        return Ok(false);
    }
    let seen = visible(gateway, identity, vec![jid.to_owned()], trace).await?;
    Ok(!seen.is_empty() && circle.has(jid))
}

/// The own items with the colleagues, and what of that the client is told.
pub(crate) async fn whole(
    gateway: &Gateway,
    identity: &Identity,
    circle: &Circle,
    own: Vec<Item>,
    trace: Option<TraceContext>,
) -> Result<(Vec<Item>, Told), Undecided> {
    let names: Vec<String> = circle
        .names(&identity.account)
        .map(ToString::to_string)
        .collect();
    let seen = visible(gateway, identity, names, trace).await?;
    let hidden = circle.names(&identity.account);
    let mut hidden: Vec<Arc<str>> = hidden
        .filter(|jid| !seen.contains(&***jid))
        .cloned()
        .collect();
    hidden.sort_unstable();
    let mut told = Told {
        version: circle.version,
        untold: gateway.colleagues.share(hidden),
        ..Told::default()
    };
    Ok((merged(own, circle, &seen, &mut told), told))
}

fn merged(own: Vec<Item>, circle: &Circle, seen: &BTreeSet<String>, told: &mut Told) -> Vec<Item> {
    let own = own.into_iter().map(|item| (item.jid.clone(), item));
    let mut items: BTreeMap<String, Item> = own.collect();
    for jid in seen {
        let item = as_colleague(items.remove(jid), jid, circle);
        items.insert(jid.clone(), item);
        circle.labels(jid).for_each(|label| told.add(jid, label));
    }
    // What only names a colleague is nothing without one.
    items.into_values().filter(|item| !item.colleague).collect()
}

/// The item of a colleague: heard both ways, in the groups of the directory and those of the owner.
fn as_colleague(own: Option<Item>, jid: &str, circle: &Circle) -> Item {
    let own = own.unwrap_or_default();
    let mut groups = own.groups;
    groups.extend(circle.labels(jid).map(str::to_owned));
    groups.sort_unstable();
    groups.dedup();
    Item {
        jid: jid.to_owned(),
        name: own.name,
        subscription: Subscription::Both.into(),
        groups,
        ..Item::default()
    }
}

/// Pushes for own items that have changed, and for colleagues who have shifted, one for each; none to a
/// client that has not asked for the roster. A larger shift is not pushed: the version tells when the
/// client asks again.
pub(crate) async fn pushes(
    gateway: &Gateway,
    identity: &Identity,
    moved: &Pending,
) -> Result<Vec<Bytes>, Away> {
    let Some(mut told) = identity.followed.lock().roster.as_deref().cloned() else {
        return Ok(Vec::new());
    };
    let untold = Arc::clone(&told.untold);
    let mut news = told.news(&moved.shifts);
    let newest = news.iter().filter_map(|shift| shift.version());
    let newest = newest.fold(told.version, u64::max);
    let mut jids: BTreeSet<&str> = news
        .iter()
        .flat_map(|shift| shift.jids())
        .map(AsRef::as_ref)
        .filter(|jid| **jid != *identity.account)
        .collect();
    if jids.len() > PUSHED_LIMIT {
        told.untold = told.with_joined(&news).into();
        jids.clear();
        news.clear();
    }
    jids.extend(moved.items.iter().map(AsRef::as_ref));
    let mut pushed = Vec::new();
    if !jids.is_empty() {
        let ask = GetRequest {
            owner: identity.account.to_string(),
            known_version: None,
        };
        let own = gateway.roster.get(&Cx::local(), ask).await;
        let own = own.map_err(|_| Away)?;
        let names = jids.iter().map(ToString::to_string).collect();
        let seen = visible(gateway, identity, names, None).await?;
        let circle = gateway.colleagues.of(&identity.account);
        let more = {
            let followed = identity.followed.lock();
            if let Some(now) = &followed.roster {
                (told.own, told.gap) = (now.own, now.gap);
            }
            !followed.moved.items.is_empty()
        };
        let mut left: BTreeSet<&str> = moved.items.iter().map(AsRef::as_ref).collect();
        for jid in jids {
            let may = seen.contains(jid);
            let changed = left.remove(jid);
            if tell(&mut told, &news, (jid, may, changed), &circle) {
                let now = (may && circle.has(jid)).then_some(&circle);
                let item = item(&own, jid, now);
                let whole = left.is_empty() && !more;
                pushed.push(push(gateway, identity, &told, whole, &item));
            }
        }
    }
    if !Arc::ptr_eq(&untold, &told.untold) {
        told.untold = gateway.colleagues.share(told.untold.to_vec());
    }
    told.version = newest;
    identity.followed.lock().roster = Some(Box::new(told));
    Ok(pushed)
}

/// Too much has shifted to be followed: the client has not been told of anybody for sure, and what it
/// holds is no version that there is.
pub(crate) fn lost(gateway: &Gateway, identity: &Identity) {
    let circle = gateway.colleagues.of(&identity.account);
    let mut names: Vec<Arc<str>> = circle.names(&identity.account).cloned().collect();
    names.sort_unstable();
    let mut followed = identity.followed.lock();
    if let Some(told) = &mut followed.roster {
        told.version = circle.version;
        told.gap = true;
        told.untold = gateway.colleagues.share(names);
    }
}

/// Makes the version what it is with this colleague, of whom the client `may` know or not, and whose own
/// item has `changed` or not. False when the client has not heard of him, and does not now.
fn tell(
    told: &mut Told,
    news: &[&Shift],
    (jid, may, changed): (&str, bool, bool),
    circle: &Circle,
) -> bool {
    let about = |jids: &[Arc<str>]| jids.iter().any(|other| **other == *jid);
    let joins = |shift: &&Shift| matches!(shift, Shift::Joined(_, _, jids) if about(jids));
    let joins = news.iter().any(joins);
    let there = circle.has(jid);
    if told.has_untold(jid) {
        if may && there {
            circle.labels(jid).for_each(|label| told.add(jid, label));
        }
        if may || !there {
            told.set_untold(jid, false);
        }
        return changed || (may && there);
    }
    if joins && !may {
        if there {
            told.set_untold(jid, true);
        }
        return changed;
    }
    for shift in news {
        match shift {
            Shift::Joined(_, label, jids) if about(jids) => told.add(jid, label),
            Shift::Left(_, label, jids) if about(jids) => told.take(jid, label),
            _ => {}
        }
    }
    if there && !may {
        // Hidden since: he goes, though he is in another group, or there under another name.
        circle.labels(jid).for_each(|label| told.take(jid, label));
        told.set_untold(jid, true);
    }
    true
}

/// The item for a push: of a colleague, else what is beneath, else a removal.
fn item(own: &GetResponse, jid: &str, circle: Option<&Circle>) -> Item {
    let beneath = own.items.iter().find(|item| item.jid == jid).cloned();
    if let Some(circle) = circle {
        return as_colleague(beneath, jid, circle);
    }
    beneath
        .filter(|item| !item.colleague)
        .unwrap_or_else(|| Item {
            jid: jid.to_owned(),
            subscription: Subscription::Remove.into(),
            ..Item::default()
        })
}

/// A push to this session (RFC 6121 §2.1.6). Its version is one only where with it the client has the
/// `whole` of what that stands for: a stream may end between two pushes.
fn push(gateway: &Gateway, identity: &Identity, told: &Told, whole: bool, item: &Item) -> Bytes {
    let mut version = told.version();
    if !whole && !told.gap {
        version.push_str(NO_VERSION);
    }
    let mut out = String::with_capacity(256);
    out.push_str("<iq");
    push_attr(&mut out, "xmlns", ns::CLIENT);
    push_attr(&mut out, "type", "set");
    push_attr(&mut out, "id", &format!("push-{}", gateway.ids.token()));
    push_attr(&mut out, "from", &identity.account);
    push_attr(&mut out, "to", &identity.full);
    out.push_str("><query");
    push_attr(&mut out, "xmlns", ns::ROSTER);
    push_attr(&mut out, "ver", &version);
    out.push('>');
    write_item(&mut out, item);
    out.push_str("</query></iq>");
    out.into()
}

/// Whom a push of the roster service is about, and its version.
pub(crate) fn pushed(push: &Bytes) -> Option<(String, String)> {
    let element = scan(push, &Limits::after_auth()).ok()?;
    let query = element.child("query", ns::ROSTER)?;
    let jid = query.children.first()?.attr("jid")?;
    Some((jid.to_owned(), query.attr("ver")?.to_owned()))
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;
