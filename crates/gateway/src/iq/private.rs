//! Private XML (XEP-0049). It never leaves the account: nobody else can read it, hence it is not
//! recorded. To anybody else's address it is a request like any other that nobody answers.

use bytes::Bytes;
use chancery_api::Code;
use chancery_api::pubsub::{GetPrivateRequest, PrivateElement, SetPrivateRequest};
use chancery_xml::{Child, alone};
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "private",
        specifications: &[Specification {
            name: "XEP-0049",
            version: "1.2",
            status: "complete; not recorded, because nobody else can read it",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let handler = Handler::ask(Verb::Any, |request| run(request).boxed());
    registrar.handle(Scope::Account, ns::PRIVATE, "query", handler);
    registrar.disco(Scope::Server, ns::PRIVATE);
    registrar.disco(Scope::Account, ns::PRIVATE);
}

async fn run(request: Request) -> Answer {
    let query = request
        .payload()
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    if query.children.is_empty() {
        // §Elements: a get says what it wants, a set what it has.
        let condition = if request.is_set() {
            Condition::NotAcceptable
        } else {
            Condition::BadRequest
        };
        return Err(StanzaError::new(condition));
    }
    let one_ns = query.children.windows(2).all(|pair| match pair {
        [a, b] => a.ns == b.ns,
        _ => true,
    });
    let alien = query.children.iter().any(|child| reserved(&child.ns));
    if !one_ns || alien || (!request.is_set() && query.children.len() > 1) {
        return Err(StanzaError::new(Condition::NotAcceptable));
    }
    if request.is_set() {
        set(&request, query).await
    } else {
        get(&request, query).await
    }
}

/// Reserved: what the server keeps elsewhere, so that a client would not find it again. The standard
/// leaves the list to the server.
fn reserved(ns: &str) -> bool {
    ns.is_empty()
        || [ns::VCARD, ns::CLIENT, ns::SERVER].contains(&ns)
        || ns.starts_with("jabber:iq:")
}

async fn get(request: &Request, query: &Child) -> Answer {
    let Some(wanted) = query.children.first() else {
        return Err(StanzaError::new(Condition::BadRequest));
    };
    let ask = GetPrivateRequest {
        owner: request.identity.account.to_string(),
        ns: wanted.ns.to_string(),
        name: wanted.name.to_string(),
    };
    let (cx, _span) = request.cx("pubsub.get_private");
    let got = request.gateway.pubsub.get_private(&cx, ask).await;
    let got = got.map_err(|error| answer::api_error(&error))?;
    // Nothing there is what was asked for, empty.
    let xml = got
        .xml
        .unwrap_or_else(|| alone(&request.element, &[query], wanted));
    let xml =
        std::str::from_utf8(&xml).map_err(|_| StanzaError::new(Condition::InternalServerError))?;
    Ok(format!("<query xmlns='{}'>{xml}</query>", ns::PRIVATE))
}

async fn set(request: &Request, query: &Child) -> Answer {
    let element = |child: &Child| PrivateElement {
        ns: child.ns.to_string(),
        name: child.name.to_string(),
        xml: if says_nothing(child) {
            Bytes::new()
        } else {
            alone(&request.element, &[query], child)
        },
    };
    let ask = SetPrivateRequest {
        owner: request.identity.account.to_string(),
        elements: query.children.iter().map(element).collect(),
    };
    let (cx, _span) = request.cx("pubsub.set_private");
    match request.gateway.pubsub.set_private(&cx, ask).await {
        Ok(_) => Ok(String::new()),
        // Too long.
        Err(error) if error.code == Code::Invalid => {
            Err(StanzaError::new(Condition::NotAcceptable))
        }
        Err(error) => Err(answer::api_error(&error)),
    }
}

/// Reads the same as if it had never been kept, so it is not.
fn says_nothing(child: &Child) -> bool {
    child.attrs.is_empty() && !child.has_text && !child.has_elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_namespaces() {
        for (ns, expected) in [
            ("", true),
            ("vcard-temp", true),
            ("jabber:iq:private", true),
            ("jabber:client", true),
            ("jabber:iq:roster", true),
            ("jabber:x:oob", false),
            ("storage:bookmarks", false),
            ("exodus:prefs", false),
            ("urn:x", false),
        ] {
            assert_eq!(reserved(ns), expected, "{ns}");
        }
    }
}
