//! Subscription stanzas of a client (RFC 6121 §3): decided, recorded where they carry content, then
//! handed to the roster service, which owns both sides' states and tells their sessions.
//!
//! Owns the order of these steps. Refuses to know the tables, and to deliver anything itself.

use std::sync::Arc;

use bytes::Bytes;
use chancery_api::archive::AppendItem;
use chancery_api::roster::{HandshakeRequest, RequestsRequest, SubscriptionAct};
use chancery_api::{Cx, Denial, Kind, Verdict};
use chancery_runtime::trace::TraceContext;
use chancery_xml::{Element, Splice};
use chancery_xmpp::jid::bare;
use chancery_xmpp::subscription::Act;
use chancery_xmpp::{Condition, StanzaError, ns};

use crate::colleagues::told;
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, Undecided, allows};
use crate::presence::{Away, append};
use crate::service::Gateway;
use crate::session::identity::Identity;
use crate::session::window::Handled;

/// One stanza of the handshake, as it came in.
pub(crate) struct Said {
    pub(crate) act: Act,
    pub(crate) element: Element,
    /// Children that only a server may write.
    pub(crate) removed: Vec<usize>,
    pub(crate) item: AppendItem,
    pub(crate) trace: Option<TraceContext>,
}

/// Takes it to its end.
pub(crate) async fn handshake(
    gateway: Arc<Gateway>,
    identity: Arc<Identity>,
    said: Said,
) -> Handled {
    let reply = match take(&gateway, &identity, &said).await {
        Ok(()) => None,
        Err(error) => error.reply(&said.element, None, Some(&identity.full)),
    };
    Handled {
        reply,
        ..Handled::default()
    }
}

async fn take(gateway: &Gateway, identity: &Identity, said: &Said) -> Result<(), StanzaError> {
    let peer = bare(&said.item.to);
    if peer == &*identity.account {
        // Nobody subscribes to themselves; nor to nobody (RFC 6121 §3.1.1).
        return Err(StanzaError::new(Condition::BadRequest));
    }
    let verdict = ask(gateway, (&identity.full, peer), said.act, said.trace).await?;
    gateway.permits.ruled(allows(&verdict));
    let payload = stamped(said, identity, peer);
    if !said.item.ephemeral {
        let item = AppendItem {
            to: peer.to_owned(),
            payload: payload.clone(),
            verdict: Some(verdict.clone()),
            ..said.item.clone()
        };
        append(gateway, item, said.trace)
            .await
            .map_err(|Away| answer::outage())?;
    }
    if !allows(&verdict)
        && matches!(
            verdict.denial(),
            Denial::RemoteServerNotFound | Denial::Blocked
        )
    {
        return Err(answer::denied(&verdict));
    }
    // Colleagues hear each other by a group, whatever they say; in that state nothing that is said is
    // answered (RFC 6121 appendix A).
    let colleague = told::is_colleague(gateway, identity, peer, said.trace).await;
    if colleague.map_err(|Undecided| answer::outage())? {
        return Ok(());
    }
    // Whoever is not heard is as one who is not there: silence (RFC 6121 §8.5.1), and the own
    // side changes all the same.
    let heard = allows(&verdict);
    let answers = heard && said.act == Act::Subscribe && {
        let back = ask(
            gateway,
            (peer, &identity.account),
            Act::Subscribed,
            said.trace,
        )
        .await?;
        allows(&back)
    };
    let request = HandshakeRequest {
        owner: identity.account.to_string(),
        peer: peer.to_owned(),
        act: wire(said.act).into(),
        payload,
        heard,
        answers,
        policy_version: verdict.policy_version,
    };
    let span = gateway.tracer.calls("roster.handshake", said.trace);
    let cx = Cx::local().traced(span.traceparent());
    match gateway.roster.handshake(&cx, request).await {
        Ok(_) => Ok(()),
        Err(error) => Err(answer::api_error(&error)),
    }
}

/// What policy says of one stanza between two people.
pub(crate) async fn ask(
    gateway: &Gateway,
    (from, to): (&str, &str),
    act: Act,
    trace: Option<TraceContext>,
) -> Result<Verdict, StanzaError> {
    let question = Question {
        from: from.to_owned(),
        to: vec![to.to_owned()],
        kind: Kind::Presence,
        type_: act.as_str().to_owned(),
        trace,
    };
    let verdict = gateway.decide_one(&question).await;
    verdict.map_err(|Undecided| answer::outage())
}

/// Hands the session the requests that wait for its user's answer.
pub(crate) async fn requests(gateway: &Gateway, identity: &Identity) -> Result<(), Away> {
    let request = RequestsRequest {
        session: identity.full.to_string(),
    };
    match gateway.roster.requests(&Cx::local(), request).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Away),
    }
}

/// RFC 6121 §3.1.2: between bare JIDs, whatever the client wrote.
fn stamped(said: &Said, identity: &Identity, peer: &str) -> Bytes {
    let mut splice = Splice::new(&said.element);
    splice
        .set_attr("from", Some(&identity.account))
        .set_attr("to", Some(peer))
        .ensure_ns(ns::CLIENT);
    for index in &said.removed {
        splice.remove_child(*index);
    }
    splice.finish()
}

fn wire(act: Act) -> SubscriptionAct {
    match act {
        Act::Subscribe => SubscriptionAct::Subscribe,
        Act::Subscribed => SubscriptionAct::Subscribed,
        Act::Unsubscribe => SubscriptionAct::Unsubscribe,
        Act::Unsubscribed => SubscriptionAct::Unsubscribed,
    }
}
