//! Who hears a session and whom it hears: by the own subscriptions, and by groups of the directory. The
//! names are the roster's and the groups', shared by all sessions (ADR 19).
//!
//! Refuses to decide: policy is asked about each before anything is shown.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::Cx;
use chancery_api::presence::{Act, PublishItem};
use chancery_api::roster::{SubscriptionsRequest, SubscriptionsResponse};
use chancery_runtime::trace::TraceContext;

use super::{Away, said, send};
use crate::colleagues::Circle;
use crate::service::Gateway;
use crate::session::identity::{Identity, Kept};

/// So many are asked for their presence at once, further ones when what came is written: even with several
/// sessions each they do not fill an inbox.
const PROBED: usize = 250;
/// Before the next are asked.
pub(crate) const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// Subscriptions are asked for again after so long: the push that told of a change may have been lost.
const KEPT_FRESH: Duration = Duration::from_secs(60);
/// They hold for so long from when the roster service did not answer.
const KEPT_LEASE: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Audience {
    pub(crate) own: Arc<SubscriptionsResponse>,
    pub(crate) circle: Circle,
}

impl Audience {
    /// Who hears `account`, each once.
    pub(crate) fn hearers<'a>(&'a self, account: &'a str) -> impl Iterator<Item = String> + 'a {
        let own = self.own.from.iter().filter(|jid| !self.circle.has(jid));
        let colleagues = self.circle.names(account).map(ToString::to_string);
        own.cloned().chain(colleagues)
    }

    /// Of these, who hears.
    pub(crate) fn hear<'a>(&self, jids: impl Iterator<Item = &'a str>) -> Vec<String> {
        let own: HashSet<&str> = self.own.from.iter().map(String::as_str).collect();
        let hears = |jid: &&str| own.contains(jid) || self.circle.has(jid);
        jids.filter(hears).map(str::to_owned).collect()
    }

    /// Whom `account` hears, itself first to be asked.
    pub(crate) fn heard(&self, account: &str) -> Vec<Arc<str>> {
        let own = self.own.to.iter().filter(|jid| !self.circle.has(jid));
        let mut heard: Vec<Arc<str>> = self.circle.names(account).cloned().collect();
        heard.extend(own.map(|jid| Arc::from(jid.as_str())));
        heard.push(account.into());
        heard
    }
}

/// The audience as it is now.
pub(super) async fn audience(
    gateway: &Gateway,
    identity: &Identity,
    trace: Option<TraceContext>,
) -> Result<Audience, Away> {
    let own = subscriptions(gateway, identity, trace).await?;
    let circle = gateway.colleagues.of(&identity.account);
    Ok(Audience { own, circle })
}

/// Asks the next for their presence (RFC 6121 §4.3). What comes back is decided before it is written.
pub(super) async fn probe(
    gateway: &Gateway,
    identity: &Identity,
    trace: Option<TraceContext>,
) -> Result<(), Away> {
    let asked = {
        let mut followed = identity.followed.lock();
        let rest = followed.probe.len().saturating_sub(PROBED);
        followed.probe.split_off(rest)
    };
    if asked.is_empty() {
        return Ok(());
    }
    let item = PublishItem {
        targets: asked.iter().map(ToString::to_string).collect(),
        ..said(gateway, identity, Act::Probe)
    };
    let sent = send(gateway, item, trace).await;
    let mut followed = identity.followed.lock();
    if sent.is_err() {
        followed.probe.extend(asked);
    } else if followed.probe.is_empty() {
        followed.probe = Vec::new();
    }
    sent
}

/// As kept, or as the roster service has them. Without it, what was kept holds for a while longer.
async fn subscriptions(
    gateway: &Gateway,
    identity: &Identity,
    trace: Option<TraceContext>,
) -> Result<Arc<SubscriptionsResponse>, Away> {
    let now = gateway.clock.monotonic();
    let changes = {
        let followed = identity.followed.lock();
        if let Some(kept) = &followed.subscriptions
            && now.duration_since(kept.at) < KEPT_FRESH
        {
            return Ok(Arc::clone(&kept.answer));
        }
        followed.roster_changes
    };
    let request = SubscriptionsRequest {
        owner: identity.account.to_string(),
    };
    let span = gateway.tracer.calls("roster.subscriptions", trace);
    let cx = Cx::local().traced(span.traceparent());
    let answer = gateway.roster.subscriptions(&cx, request).await;
    let mut followed = identity.followed.lock();
    let Ok(answer) = answer else {
        let kept = followed.subscriptions.as_mut().ok_or(Away)?;
        let since = *kept.unanswered.get_or_insert(now);
        let holds = now.duration_since(since) < KEPT_LEASE;
        return holds.then(|| Arc::clone(&kept.answer)).ok_or(Away);
    };
    let answer = Arc::new(answer);
    if followed.roster_changes == changes {
        followed.subscriptions = Some(Kept {
            answer: Arc::clone(&answer),
            at: now,
            unanswered: None,
        });
    }
    Ok(answer)
}
