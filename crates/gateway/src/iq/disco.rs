//! Service discovery (XEP-0030) of the domain and of the own account.

use chancery_xml::push_attr;
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;

use super::caps::NODE;
use super::commands;
use super::version::NAME;
use super::{Answer, Handler, Handlers, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::contacts::Contacts;

/// Category, type and name of the server's identity.
pub(crate) const SERVER: (&str, &str, &str) = ("server", "im", NAME);
/// The same of an account (RFC 6121 has none; XEP-0030 §10).
const ACCOUNT: (&str, &str, &str) = ("account", "registered", "");

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "disco",
        specifications: &[Specification {
            name: "XEP-0030",
            version: "2.5.0",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.handle(
        Scope::Server,
        ns::DISCO_INFO,
        "query",
        Handler::ask(Verb::Get, |request| server_info(request).boxed()),
    );
    registrar.handle(
        Scope::Account,
        ns::DISCO_INFO,
        "query",
        Handler::now(Verb::Get, account_info),
    );
    registrar.handle(
        Scope::Server,
        ns::DISCO_ITEMS,
        "query",
        Handler::ask(Verb::Get, |request| server_items(request).boxed()),
    );
    registrar.handle(
        Scope::Account,
        ns::DISCO_ITEMS,
        "query",
        Handler::now(Verb::Get, items),
    );
    for scope in [Scope::Server, Scope::Account] {
        registrar.disco(scope, ns::DISCO_INFO);
        registrar.disco(scope, ns::DISCO_ITEMS);
    }
}

async fn server_info(request: Request) -> Answer {
    let node = node(&request);
    let handlers = &request.gateway.handlers;
    let contacts = handlers.contacts(request.domain());
    // XEP-0115 §6.2: the node of our own capabilities.
    let own = format!("{NODE}#{}", handlers.caps(request.domain()));
    let commands = handlers.has_commands(request.domain());
    match node {
        None => Ok(info(handlers, Scope::Server, None, contacts, commands)),
        Some(node) if node == own => Ok(info(
            handlers,
            Scope::Server,
            Some(&own),
            contacts,
            commands,
        )),
        Some(node) => match commands::info(&request, &node).await {
            Some(answer) if commands => answer,
            _ => Err(StanzaError::new(Condition::ItemNotFound)),
        },
    }
}

fn account_info(request: &Request) -> Answer {
    match node(request) {
        None => Ok(info(
            &request.gateway.handlers,
            Scope::Account,
            None,
            None,
            false,
        )),
        Some(_) => Err(StanzaError::new(Condition::ItemNotFound)),
    }
}

/// The domain has nothing but its commands (XEP-0050 §2.1).
async fn server_items(request: Request) -> Answer {
    let commands = request.gateway.handlers.has_commands(request.domain());
    match node(&request) {
        Some(node) if commands && node == ns::COMMANDS => commands::items(&request).await,
        _ => items(&request),
    }
}

/// Neither the domain nor an account has items yet.
fn items(request: &Request) -> Answer {
    match node(request) {
        None => Ok(format!("<query xmlns='{}'/>", ns::DISCO_ITEMS)),
        Some(_) => Err(StanzaError::new(Condition::ItemNotFound)),
    }
}

fn node(request: &Request) -> Option<String> {
    request.payload()?.attr("node").map(str::to_owned)
}

fn info(
    handlers: &Handlers,
    scope: Scope,
    node: Option<&str>,
    contacts: Option<&Contacts>,
    commands: bool,
) -> String {
    let (category, type_, name) = match scope {
        Scope::Server => SERVER,
        Scope::Account | Scope::Other => ACCOUNT,
    };
    let mut out = String::with_capacity(1024);
    out.push_str("<query");
    push_attr(&mut out, "xmlns", ns::DISCO_INFO);
    if let Some(node) = node {
        push_attr(&mut out, "node", node);
    }
    out.push_str("><identity");
    push_attr(&mut out, "category", category);
    push_attr(&mut out, "type", type_);
    if !name.is_empty() {
        push_attr(&mut out, "name", name);
    }
    out.push_str("/>");
    let own = commands.then_some(ns::COMMANDS);
    for feature in handlers.features(scope).chain(own) {
        out.push_str("<feature");
        push_attr(&mut out, "var", feature);
        out.push_str("/>");
    }
    if let Some(contacts) = contacts {
        contacts.write(&mut out);
    }
    out.push_str("</query>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_shows_what_is_registered() {
        let handlers = Handlers::standard();
        let info = info(&handlers, Scope::Server, Some("n"), None, false);
        for feature in [
            ns::PING,
            ns::TIME,
            ns::VERSION,
            ns::CARBONS,
            ns::DISCO_INFO,
            ns::CAPS,
        ] {
            assert_eq!(
                info.matches(&format!("var='{feature}'")).count(),
                1,
                "{feature}"
            );
        }
        assert!(info.contains("category='server' type='im'"));
        assert!(info.contains("node='n'"));
    }
}
