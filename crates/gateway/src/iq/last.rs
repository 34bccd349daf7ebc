//! Last activity (XEP-0012): how long the server runs, and how long ago a colleague was last there.
//! The latter only for who is subscribed to that one's presence and may hear of it by policy; for
//! everybody else it looks as if there were nobody. To a full JID it is the client's to answer.

use chancery_api::Cx;
use chancery_api::presence::SessionsRequest;
use chancery_api::pubsub::{GetLastRequest, SetLastRequest};
use chancery_xml::{escape_text, push_attr};
use chancery_xmpp::ns;
use futures_util::FutureExt;
use std::time::Duration;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb, viewers};
use crate::pipeline::answer;
use crate::service::Gateway;
use crate::session::identity::Identity;

/// A session that ends waits no longer to be remembered.
const NOTE_LIMIT: Duration = Duration::from_secs(1);

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "last",
        specifications: &[Specification {
            name: "XEP-0012",
            version: "2.0",
            status: "complete; who may not know is answered as if nobody were there",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let uptime = Handler::now(Verb::Get, uptime);
    registrar.handle(Scope::Server, ns::LAST, "query", uptime);
    registrar.handle(
        Scope::Account,
        ns::LAST,
        "query",
        Handler::now(Verb::Get, own),
    );
    let other = Handler::ask(Verb::Get, |request| other(request).boxed());
    registrar.handle(Scope::Other, ns::LAST, "query", other);
    for scope in [Scope::Server, Scope::Account, Scope::Other] {
        registrar.disco(scope, ns::LAST);
    }
}

/// §Server: since this gateway started.
fn uptime(request: &Request) -> Answer {
    let started = i64::try_from(request.gateway.incarnation).unwrap_or(i64::MAX);
    let now = request.gateway.clock.now_unix_ms();
    Ok(write(seconds(started, now), ""))
}

/// Whoever asks is there.
fn own(_: &Request) -> Answer {
    Ok(write(0, ""))
}

async fn other(request: Request) -> Answer {
    let Some(owner) = request.to.as_ref().map(ToString::to_string) else {
        return Err(answer::absent());
    };
    let gateway = &request.gateway;
    let (cx, _span) = request.cx("last");
    // All three in any case: who may not know is answered no sooner than who may.
    let may_know = viewers::has(&request, &owner);
    let there = gateway.presence.sessions(
        &cx,
        SessionsRequest {
            of: owner.clone(),
            limit: 1,
        },
    );
    let last = GetLastRequest {
        owner: owner.clone(),
    };
    let last = gateway.pubsub.get_last(&cx, last);
    let (may_know, there, last) = futures_util::future::join3(may_know, there, last).await;
    let may_know = may_know?;
    let there = there.map_err(|error| answer::api_error(&error))?;
    let last = last.map_err(|error| answer::api_error(&error))?;
    // §Offline: only who may view the presence.
    if !may_know {
        return Err(answer::absent());
    }
    if !there.full_jids.is_empty() {
        return Ok(write(0, ""));
    }
    let Some(at_ms) = last.at_ms else {
        return Err(answer::absent());
    };
    let now = gateway.clock.now_unix_ms();
    Ok(write(seconds(at_ms, now), &last.status))
}

fn seconds(since_ms: i64, now_ms: i64) -> i64 {
    now_ms.saturating_sub(since_ms).max(0) / 1000
}

fn write(seconds: i64, status: &str) -> String {
    let mut out = String::from("<query");
    push_attr(&mut out, "xmlns", ns::LAST);
    push_attr(&mut out, "seconds", &seconds.to_string());
    if status.is_empty() {
        out.push_str("/>");
    } else {
        out.push('>');
        escape_text(&mut out, status);
        out.push_str("</query>");
    }
    out
}

/// A session is no longer available; `status` is what it said of it. Best effort: nothing hangs on it.
pub(crate) async fn note(gateway: &Gateway, identity: &Identity, status: &str) {
    let seen = SetLastRequest {
        owner: identity.account.to_string(),
        at_ms: gateway.clock.now_unix_ms(),
        status: status.to_owned(),
    };
    let cx = Cx::local().within(NOTE_LIMIT);
    let set = tokio::time::timeout(NOTE_LIMIT, gateway.pubsub.set_last(&cx, seen)).await;
    if !matches!(set, Ok(Ok(_))) {
        tracing::debug!("the end of a session was not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_and_never_negative() {
        assert_eq!(seconds(1_000, 2_999), 1);
        assert_eq!(seconds(5_000, 1_000), 0);
        assert_eq!(write(7, ""), "<query xmlns='jabber:iq:last' seconds='7'/>");
        assert_eq!(
            write(7, "a<b"),
            "<query xmlns='jabber:iq:last' seconds='7'>a&lt;b</query>"
        );
    }
}
