//! Service discovery (XEP-0030) of the domain, of the own account, and of others' accounts. Of these
//! only who may view their presence hears (§8): for everybody else it is as if there were nobody.

use chancery_xml::push_attr;
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;

use super::caps::NODE;
use super::commands;
use super::version::NAME;
use super::{
    Answer, Handler, Handlers, Manifest, Registrar, Request, Scope, Specification, Verb, viewers,
};
use crate::contacts::Contacts;
use crate::pipeline::answer;

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
            status: "complete; of others' accounts for who may view their presence, without resources",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let server_info = Handler::ask(Verb::Get, |request| server_info(request).boxed());
    let other_info = Handler::ask(Verb::Get, |request| other_info(request).boxed());
    let server_items = Handler::ask(Verb::Get, |request| server_items(request).boxed());
    let other_items = Handler::ask(Verb::Get, |request| other_items(request).boxed());
    for (scope, info, items) in [
        (Scope::Server, server_info, server_items),
        (
            Scope::Account,
            Handler::now(Verb::Get, account_info),
            Handler::now(Verb::Get, items),
        ),
        (Scope::Other, other_info, other_items.absent(no_items)),
    ] {
        registrar.handle(scope, ns::DISCO_INFO, "query", info);
        registrar.handle(scope, ns::DISCO_ITEMS, "query", items);
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
            request.scope,
            None,
            None,
            false,
        )),
        Some(_) => Err(StanzaError::new(Condition::ItemNotFound)),
    }
}

/// XEP-0030 §8: who may not view the presence hears what is said of an account that is not there.
async fn other_info(request: Request) -> Answer {
    let Some(owner) = request.to.as_ref().map(ToString::to_string) else {
        return Err(answer::absent());
    };
    match viewers::has(&request, &owner).await? {
        true => account_info(&request),
        false => Err(answer::absent()),
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

/// XEP-0030 §8. Sessions are not told as items: presence is how one hears of them.
async fn other_items(request: Request) -> Answer {
    let Some(owner) = request.to.as_ref().map(ToString::to_string) else {
        return Err(answer::absent());
    };
    match viewers::has(&request, &owner).await? {
        true => items(&request),
        false => no_items(&request),
    }
}

/// Neither the domain nor an account has items yet.
fn items(request: &Request) -> Answer {
    match node(request) {
        None => no_items(request),
        Some(_) => Err(StanzaError::new(Condition::ItemNotFound)),
    }
}

/// XEP-0030 §8: also of an account that is not there, whatever the node. RFC 6121 §8.5.1 wants an error of
/// every IQ to nobody; the rule for this one is the narrower, and no answer tells who is there.
fn no_items(request: &Request) -> Answer {
    let mut out = String::from("<query");
    push_attr(&mut out, "xmlns", ns::DISCO_ITEMS);
    if let Some(node) = node(request) {
        push_attr(&mut out, "node", &node);
    }
    out.push_str("/>");
    Ok(out)
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
    use crate::config::Config;

    #[test]
    fn others_accounts_show_what_is_answered_on_their_behalf() {
        let shown = |off: &[&str]| {
            let handlers = Handlers::new(&Config {
                features_off: off.iter().map(|name| (*name).to_owned()).collect(),
                ..Config::default()
            });
            let info = info(&handlers, Scope::Other, None, None, false);
            assert!(info.contains("category='account' type='registered'/>"));
            let features = info.split("var='").skip(1);
            let features = features.filter_map(|rest| rest.split('\'').next());
            features.map(str::to_owned).collect::<Vec<_>>()
        };
        let always = [ns::DISCO_INFO, ns::DISCO_ITEMS];
        assert_eq!(shown(&["vcard", "last"]), always);
        assert_eq!(shown(&[]), [always[0], always[1], ns::LAST, ns::VCARD]);
    }

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
