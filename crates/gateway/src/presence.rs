//! A session's own presence: decided for all who may hear of it, recorded where it carries text,
//! told to the shard, then published; and presence addressed to somebody.
//!
//! Owns the order of these steps. Who is told of what stays with the presence service; what cannot
//! be published now is owed, and the session tries again.

mod amend;
mod audience;
mod owed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{AppendItem, Outcome};
use chancery_api::presence::{Act, PublishItem};
use chancery_api::{Denial, Kind, Verdict};
use chancery_runtime::trace::TraceContext;
use chancery_xml::{Element, push_attr};
use chancery_xmpp::stanza::{PresenceType, StanzaType};
use chancery_xmpp::{Condition, StanzaError, StanzaHeader, exempt, ns};

use crate::iq::last;
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, Undecided, allows};
use crate::pipeline::record::{Key, stamped};
use crate::service::Gateway;
use crate::session::identity::{Change, Identity};
use crate::session::outgoing::Source;
use crate::session::window::Handled;
use crate::subscription;
use crate::trace;

use audience::audience;
pub(crate) use audience::{Audience, PROBE_PAUSE};
pub(crate) use owed::{Owed, Why};

/// The presence service answers by then.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// Addresses of one broadcast; a longer list is cut, and said so in the log.
const TARGETS: usize = 15_000;

/// A presence broadcast of a session.
#[derive(Debug)]
pub(crate) struct Own {
    /// With the true `from`, without `to`.
    payload: Bytes,
    /// As received, where something was taken out.
    received: Bytes,
    id: String,
    available: bool,
    priority: i8,
    /// What an `unavailable` says of itself.
    status: String,
    /// Carries something that has to be recorded.
    has_content: bool,
    key: Key,
    /// Its record is in the log.
    recorded: AtomicBool,
    /// The trace of the stanza that said it, when it is followed.
    trace: Option<TraceContext>,
    /// The shard was asked to record it once: a further time needs a key of its own, because
    /// later stanzas may have passed it.
    asked: AtomicBool,
}

/// Something that is needed is out of reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Away;

impl From<Undecided> for Away {
    fn from(_: Undecided) -> Self {
        Self
    }
}

impl Own {
    /// A broadcast as the client sent it.
    pub(crate) fn read(
        identity: &Identity,
        element: &Element,
        header: &StanzaHeader,
        removed: &[usize],
        key: Key,
    ) -> Self {
        Self {
            payload: stamped(element, identity, removed),
            received: if removed.is_empty() {
                Bytes::new()
            } else {
                element.bytes.clone()
            },
            id: header.id.as_deref().unwrap_or_default().to_owned(),
            available: header.type_ == StanzaType::Presence(PresenceType::Available),
            priority: header.priority,
            status: said_status(element),
            has_content: !(removed.is_empty() && exempt::is_exempt(element, header)),
            key,
            recorded: AtomicBool::new(false),
            trace: None,
            asked: AtomicBool::new(false),
        }
    }

    /// The same, of a stanza that is followed.
    pub(crate) fn followed(mut self, trace: Option<TraceContext>) -> Self {
        self.trace = trace;
        self
    }

    pub(crate) fn is_available(&self) -> bool {
        self.available
    }

    fn type_(&self) -> &'static str {
        if self.available { "" } else { "unavailable" }
    }

    fn item(&self, gateway: &Gateway, identity: &Identity, verdict: Verdict) -> AppendItem {
        let key = if self.asked.swap(true, Ordering::Relaxed) {
            Key {
                sm_id: gateway.ids.id(),
                count: 1,
            }
        } else {
            self.key
        };
        AppendItem {
            sm_id: Bytes::copy_from_slice(&key.sm_id),
            count: key.count,
            gateway: gateway.name.to_string(),
            session: identity.number,
            from: identity.full.to_string(),
            to: identity.account.to_string(),
            kind: Kind::Presence.into(),
            r#type: self.type_().to_owned(),
            id: self.id.clone(),
            payload: self.payload.clone(),
            received: self.received.clone(),
            verdict: Some(verdict),
            ..AppendItem::default()
        }
    }
}

/// Publishes; what cannot be published is owed. Without a presence of its own a session may still
/// have sent directed ones.
pub(crate) async fn publish(
    gateway: Arc<Gateway>,
    identity: Arc<Identity>,
    own: Option<Arc<Own>>,
    why: Why,
) -> Handled {
    let said = own.as_deref();
    let mut page = Vec::new();
    let done = match (said, why) {
        (Some(own), Why::Changed) if !own.available => unavailable(&gateway, &identity, own).await,
        (Some(own), Why::Changed) => available(&gateway, &identity, own).await,
        (None, Why::Changed) => Ok(()),
        (own, Why::Refresh) => again(&gateway, &identity, own, Act::Refresh).await,
        (own, Why::Roster) => roster_changed(&gateway, &identity, own).await,
        (own, Why::Resync) => again(&gateway, &identity, own, Act::Resync).await,
        (own, Why::Colleagues) => {
            let (pushes, done) = amend::moved(&gateway, &identity, own).await;
            page = pushes.into_iter().map(Source::Roster).collect();
            done
        }
        (_, Why::Probe) => audience::probe(&gateway, &identity, None).await,
    };
    let probes = || !identity.followed.lock().probe.is_empty();
    Handled {
        reply: None,
        owed: match done {
            Err(Away) => Some(why),
            Ok(()) => probes().then_some(Why::Probe),
        },
        page,
    }
}

/// Those of whom policy allows that they hear, and the verdict for the own account.
async fn allowed(
    gateway: &Gateway,
    identity: &Identity,
    others: impl Iterator<Item = String>,
    trace: Option<TraceContext>,
) -> Result<(Vec<String>, Verdict), Away> {
    // RFC 6121 §4.2.2: the own resources hear too; the presence service sees to it. They are asked
    // about first, so that there is a verdict for the record.
    let mut to = vec![identity.account.to_string()];
    to.extend(others.filter(|jid| **jid != *identity.account));
    if to.len() > TARGETS {
        tracing::warn!(targets = to.len(), "a presence broadcast was cut");
        to.truncate(TARGETS);
    }
    let question = question(identity, to, "", trace);
    let verdicts = gateway.decide(&question).await?;
    let own = verdicts.first().cloned().ok_or(Away)?;
    let asked = question.to.into_iter().zip(&verdicts).skip(1);
    let targets = asked
        .filter(|(_, verdict)| allows(verdict))
        .map(|(target, _)| target)
        .collect();
    Ok((targets, own))
}

async fn available(gateway: &Gateway, identity: &Identity, own: &Own) -> Result<(), Away> {
    let audience = audience(gateway, identity, own.trace).await?;
    let others = audience.hearers(&identity.account);
    let (targets, verdict) = allowed(gateway, identity, others, own.trace).await?;
    let policy_version = verdict.policy_version;
    record(gateway, identity, own, verdict).await?;
    gateway
        .update(identity, Change::Presence(Some(own.priority)))
        .await
        .map_err(|_| Away)?;
    if !identity.followed.lock().probed {
        subscription::requests(gateway, identity).await?;
    }
    let item = PublishItem {
        payload: own.payload.clone(),
        priority: own.priority.into(),
        targets,
        policy_version,
        ..said(gateway, identity, Act::Available)
    };
    send(gateway, item, own.trace).await?;
    identity.followed.lock().shown = Some(audience.clone());
    if !identity.followed.lock().probed {
        // RFC 6121 §4.3: whom the user hears, and the own resources.
        identity.followed.lock().probe = audience.heard(&identity.account);
        audience::probe(gateway, identity, own.trace).await?;
        identity.followed.lock().probed = true;
    }
    Ok(())
}

/// Whoever hears since then is shown it, whoever does not any more sees it go. A change of names
/// alone asks nobody.
async fn roster_changed(
    gateway: &Gateway,
    identity: &Identity,
    own: Option<&Own>,
) -> Result<(), Away> {
    if !own.is_some_and(|own| own.available) {
        return Ok(());
    }
    let audience = audience(gateway, identity, None).await?;
    let shown = identity.followed.lock().shown.clone();
    if shown.is_some_and(|shown| shown.own.from == audience.own.from) {
        return Ok(());
    }
    again(gateway, identity, own, Act::Refresh).await
}

/// The same presence again: for a newer policy, or for a service that lost its state.
async fn again(
    gateway: &Gateway,
    identity: &Identity,
    own: Option<&Own>,
    act: Act,
) -> Result<(), Away> {
    let own = own.filter(|own| own.available);
    let directed = identity.followed.lock().directed();
    // A service that lost its state is told who has seen the session: who is to see it besides, sees it
    // for another reason, and not in silence.
    let seen = identity.followed.lock().shown.clone();
    let heard_by = match own {
        Some(_) if act == Act::Resync && seen.is_some() => seen,
        Some(_) => Some(audience(gateway, identity, None).await?),
        None => None,
    };
    let account = &*identity.account;
    let contacts = heard_by
        .iter()
        .flat_map(|heard_by| heard_by.hearers(account));
    let others = contacts.chain(directed);
    let (targets, verdict) = allowed(gateway, identity, others, None).await?;
    let item = PublishItem {
        payload: own.map(|own| own.payload.clone()).unwrap_or_default(),
        priority: own.map_or(0, |own| own.priority.into()),
        targets,
        policy_version: verdict.policy_version,
        ..said(gateway, identity, act)
    };
    send(gateway, item, None).await?;
    if heard_by.is_some() {
        // Else who saw it is forgotten only when they have heard of the end.
        identity.followed.lock().shown = heard_by;
    }
    Ok(())
}

/// `unavailable` to those who saw us needs no verdict; its text does, for the record.
async fn unavailable(gateway: &Gateway, identity: &Identity, own: &Own) -> Result<(), Away> {
    if !gateway.departed.may_tell(gateway.clock.monotonic()) {
        // Nothing is delivered to it any more; it is said when everybody can hear it.
        let update = gateway.update(identity, Change::Presence(None)).await;
        return Err(update.map_or(Away, |()| Away));
    }
    let mut payload = own.payload.clone();
    let mut status = own.status.as_str();
    if own.has_content {
        let to = vec![identity.account.to_string()];
        let question = question(identity, to, own.type_(), own.trace);
        let recorded = match gateway.decide_one(&question).await {
            Ok(verdict) => record(gateway, identity, own, verdict).await,
            Err(undecided) => Err(undecided.into()),
        };
        if recorded.is_err() {
            // That the session is gone must not wait; what cannot be recorded is not said.
            payload = gone_payload(identity);
            status = "";
        }
    }
    gateway
        .update(identity, Change::Presence(None))
        .await
        .map_err(|_| Away)?;
    {
        let mut followed = identity.followed.lock();
        followed.probed = false;
        followed.probe.clear();
    }
    let targets = if gateway.departed.was_away() {
        seen_by(gateway, identity).await?
    } else {
        identity.followed.lock().directed()
    };
    let item = PublishItem {
        payload,
        targets,
        ..said(gateway, identity, Act::Unavailable)
    };
    send(gateway, item, own.trace).await?;
    {
        let mut followed = identity.followed.lock();
        followed.shown = None;
        followed.directed.clear();
    }
    last::note(gateway, identity, status).await;
    Ok(())
}

/// Presence addressed to one JID: decided, recorded where it carries text, then handed to the
/// presence service.
pub(crate) async fn directed(
    gateway: Arc<Gateway>,
    identity: Arc<Identity>,
    element: Element,
    mut item: AppendItem,
    trace: Option<TraceContext>,
) -> Handled {
    let question = question(&identity, vec![item.to.clone()], &item.r#type, trace);
    let outage = || Handled {
        reply: answer::outage().reply(&element, None, Some(&identity.full)),
        owed: None,
        ..Handled::default()
    };
    let Ok(verdict) = gateway.decide_one(&question).await else {
        return outage();
    };
    gateway.permits.ruled(allows(&verdict));
    if !item.ephemeral {
        item.verdict = Some(verdict.clone());
        if append(&gateway, item.clone(), trace).await.is_err() {
            return outage();
        }
    }
    if !allows(&verdict) {
        // Looks as if the other were absent: presence to nobody is dropped (RFC 6121 §8.5.1). Whom
        // one has blocked oneself, one is told (XEP-0191 §3.2).
        let told = verdict.denial() == Denial::Blocked;
        let error = told.then(|| answer::denied(&verdict));
        return Handled {
            reply: error.and_then(|error| error.reply(&element, None, Some(&identity.full))),
            ..Handled::default()
        };
    }
    if !identity
        .followed
        .lock()
        .direct(&item.to, item.r#type == "unavailable")
    {
        return Handled {
            reply: StanzaError::new(Condition::ResourceConstraint).reply(
                &element,
                None,
                Some(&identity.full),
            ),
            owed: None,
            ..Handled::default()
        };
    }
    let publish = PublishItem {
        payload: chancery_xml::Splice::new(&element)
            .set_attr("from", Some(&identity.full))
            .set_attr("to", None)
            .ensure_ns(ns::CLIENT)
            .finish(),
        targets: vec![item.to],
        policy_version: verdict.policy_version,
        unavailable: item.r#type == "unavailable",
        ..said(&gateway, &identity, Act::Directed)
    };
    match send(&gateway, publish, trace).await {
        Ok(()) => Handled::default(),
        Err(Away) => outage(),
    }
}

/// The text of an `unavailable`, the first one where there are several.
fn said_status(element: &Element) -> String {
    if element.header.type_.as_deref() != Some("unavailable") {
        return String::new();
    }
    let status = element.child("status", ns::CLIENT);
    status.map_or_else(String::new, |status| element.child_text(status))
}

/// The session is gone without a word. While the presence service does not know who is there, that is
/// kept until it does.
pub(crate) async fn gone(gateway: &Gateway, identity: &Arc<Identity>) {
    let targets = identity.followed.lock().directed();
    if !gateway.departed.may_tell(gateway.clock.monotonic())
        || ended(gateway, identity, targets).await.is_err()
    {
        gateway.departed.keep(Arc::clone(identity));
    }
}

/// The same, later: a presence service that has lost its state is told who saw the session.
pub(crate) async fn departed(gateway: &Gateway, identity: &Identity) -> Result<(), Away> {
    let targets = seen_by(gateway, identity).await?;
    ended(gateway, identity, targets).await
}

/// Everybody who was shown this session. Whoever was behind a wall has seen nothing, and hears of no end.
async fn seen_by(gateway: &Gateway, identity: &Identity) -> Result<Vec<String>, Away> {
    let (shown, mut targets) = {
        let followed = identity.followed.lock();
        (followed.shown.clone(), followed.directed())
    };
    if let Some(shown) = shown {
        let others = shown.hearers(&identity.account);
        let (contacts, _) = allowed(gateway, identity, others, None).await?;
        targets.extend(contacts);
        targets.push(identity.account.to_string());
    }
    Ok(targets)
}

async fn ended(gateway: &Gateway, identity: &Identity, targets: Vec<String>) -> Result<(), Away> {
    let item = PublishItem {
        payload: gone_payload(identity),
        targets,
        ..said(gateway, identity, Act::Unavailable)
    };
    send(gateway, item, None).await
}

fn gone_payload(identity: &Identity) -> Bytes {
    let mut out = String::with_capacity(128);
    out.push_str("<presence");
    push_attr(&mut out, "xmlns", ns::CLIENT);
    push_attr(&mut out, "type", "unavailable");
    push_attr(&mut out, "from", &identity.full);
    out.push_str("/>");
    Bytes::from(out)
}

/// Presence with text is in the log before anybody hears of it.
async fn record(
    gateway: &Gateway,
    identity: &Identity,
    own: &Own,
    verdict: Verdict,
) -> Result<(), Away> {
    if !own.has_content || own.recorded.load(Ordering::Relaxed) {
        return Ok(());
    }
    gateway.permits.ruled(allows(&verdict));
    append(gateway, own.item(gateway, identity, verdict), own.trace).await?;
    own.recorded.store(true, Ordering::Relaxed);
    Ok(())
}

pub(crate) async fn append(
    gateway: &Gateway,
    mut item: AppendItem,
    trace: Option<TraceContext>,
) -> Result<(), Away> {
    let span = gateway.tracer.calls(trace::APPEND, trace);
    item.traceparent = span.traceparent();
    let answered = gateway.append.call(item).await.map_err(|_| Away)?;
    match answered.outcome() {
        Outcome::Committed | Outcome::Gone | Outcome::Full => {
            if answered.number > 0 {
                gateway.permits.recorded();
            }
            Ok(())
        }
        _ => Err(Away),
    }
}

fn question(
    identity: &Identity,
    to: Vec<String>,
    type_: &str,
    trace: Option<TraceContext>,
) -> Question {
    let from = identity.full.to_string();
    Question {
        from,
        to,
        kind: Kind::Presence,
        type_: type_.to_owned(),
        trace,
    }
}

fn said(gateway: &Gateway, identity: &Identity, act: Act) -> PublishItem {
    PublishItem {
        act: act.into(),
        gateway: gateway.name.to_string(),
        session: identity.number,
        from: identity.full.to_string(),
        ..PublishItem::default()
    }
}

async fn send(
    gateway: &Gateway,
    mut item: PublishItem,
    trace: Option<TraceContext>,
) -> Result<(), Away> {
    let span = gateway.tracer.calls(trace::PUBLISH, trace);
    item.traceparent = span.traceparent();
    match tokio::time::timeout(PUBLISH_LIMIT, gateway.publish.call(item)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Away),
    }
}
