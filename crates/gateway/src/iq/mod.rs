//! IQs that the server answers: to itself, to the own account, and on behalf of other accounts; what
//! handles them, and what they make us advertise.
//!
//! One small file a feature; each declares itself by `manifest()` and `register()`. Requests to the
//! server or the own account are not routed and hence not decided. A request to another account is
//! decided first, and what others get to read is recorded before it takes effect (`admit.rs`).

mod administration;
mod admit;
pub(crate) mod bind;
pub(crate) mod blocking;
pub(crate) mod caps;
pub(crate) mod carbons;
pub(crate) mod client_state;
pub(crate) mod commands;
pub(crate) mod contact_addresses;
mod data_form;
pub(crate) mod disco;
pub(crate) mod last;
pub(crate) mod mam;
pub(crate) mod offline;
pub(crate) mod ping;
pub(crate) mod private;
pub(crate) mod register;
pub(crate) mod roster;
pub(crate) mod search;
pub(crate) mod session;
mod standards;
pub(crate) mod stanza_id;
pub(crate) mod stream_management;
pub(crate) mod time;
pub(crate) mod vcard;
pub(crate) mod version;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use chancery_api::Cx;
use chancery_api::archive::AppendItem;
use chancery_runtime::trace::{Span, TraceContext};
use chancery_xml::{Element, push_attr};
use chancery_xmpp::{Condition, Jid, StanzaError, ns};
use futures_util::future::BoxFuture;

use crate::config::Config;
use crate::contacts::Contacts;
use crate::pipeline::answer;
use crate::service::Gateway;
use crate::session::identity::{Change, Identity};
use crate::session::outgoing::{Answered, Source};
use crate::session::window::Handled;
use tokio::sync::OwnedSemaphorePermit;

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// A domain that we host.
    Server,
    /// The sender's own bare JID, or no address.
    Account,
    /// The bare JID of another account of a domain that we host. Decided first; a handler only reads.
    Other,
}

/// A specification and how much of it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specification {
    /// `XEP-0199`, `RFC 6121`.
    pub name: &'static str,
    /// The version implemented; empty for an RFC.
    pub version: &'static str,
    /// `complete` or `partial`, and what is missing.
    pub status: &'static str,
}

/// What a feature says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Manifest {
    /// The standard's name of the feature.
    pub name: &'static str,
    /// Where it is specified.
    pub specifications: &'static [Specification],
}

/// A request on its way to its handler.
pub(crate) struct Request {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) element: Element,
    pub(crate) scope: Scope,
    /// Whom it is for; `None` for the own account.
    pub(crate) to: Option<Jid>,
    /// What has to be decided, and recorded unless it is ephemeral, before it is handled.
    pub(crate) item: Option<Box<AppendItem>>,
    /// The trace that it belongs to, when it is followed.
    pub(crate) trace: Option<TraceContext>,
}

/// The payload of the result, empty for none; or the error.
pub(crate) type Answer = Result<String, StanzaError>;

/// How a request is handled.
#[derive(Clone, Copy)]
enum Run {
    /// At once, asking nobody.
    Now(fn(&Request) -> Answer),
    /// By asking a service.
    Ask(fn(Request) -> BoxFuture<'static, Answer>),
    /// By asking for a page, which comes before the answer.
    Page(fn(Request) -> BoxFuture<'static, PageAnswer>),
}

/// What comes before the answer, the payload of the result, and the turn that both take; or the error.
pub(crate) type PageAnswer = Result<Page, StanzaError>;

/// See [`PageAnswer`].
pub(crate) struct Page {
    pub(crate) before: Vec<Source>,
    pub(crate) payload: String,
    /// Without one there is nothing before the answer.
    pub(crate) turn: Option<OwnedSemaphorePermit>,
}

/// How a request ends.
enum Outcome {
    Answer(String),
    Page(Page),
}

/// What handles a request.
#[derive(Clone, Copy)]
pub(crate) struct Handler {
    /// Types that it handles.
    verb: Verb,
    /// A change of the session that its shard has to confirm before anything else happens.
    change: Option<fn(&Request) -> Option<Change>>,
    /// What a `set` says is for others to read: it is in the log before it takes effect.
    publishes: bool,
    run: Run,
}

/// Types of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `get`
    Get,
    /// `set`
    Set,
    /// Either.
    Any,
}

impl Handler {
    /// Handles at once.
    pub(crate) const fn now(verb: Verb, run: fn(&Request) -> Answer) -> Self {
        Self {
            verb,
            change: None,
            publishes: false,
            run: Run::Now(run),
        }
    }

    /// Handles by asking a service.
    pub(crate) const fn ask(verb: Verb, run: fn(Request) -> BoxFuture<'static, Answer>) -> Self {
        Self {
            verb,
            change: None,
            publishes: false,
            run: Run::Ask(run),
        }
    }

    /// Handles by asking for a page.
    pub(crate) const fn page(
        verb: Verb,
        run: fn(Request) -> BoxFuture<'static, PageAnswer>,
    ) -> Self {
        Self {
            verb,
            change: None,
            publishes: false,
            run: Run::Page(run),
        }
    }

    /// The same, behind a change of the session.
    pub(crate) const fn behind(mut self, change: fn(&Request) -> Option<Change>) -> Self {
        self.change = Some(change);
        self
    }

    /// The same, whose sets are recorded before they take effect.
    pub(crate) const fn publishing(mut self) -> Self {
        self.publishes = true;
        self
    }

    /// Does it handle this type?
    pub(crate) fn fits(&self, is_set: bool) -> bool {
        match self.verb {
            Verb::Any => true,
            Verb::Get => !is_set,
            Verb::Set => is_set,
        }
    }

    /// Are its sets recorded?
    pub(crate) fn publishes(&self) -> bool {
        self.publishes
    }
}

impl Request {
    /// What another service is asked with, and the span that asks.
    pub(crate) fn cx(&self, name: &'static str) -> (Cx, Span) {
        let span = self.gateway.tracer.calls(name, self.trace);
        (Cx::local().traced(span.traceparent()), span)
    }

    /// The domain that it is for, or in which the own account is.
    pub(crate) fn domain(&self) -> &str {
        self.to
            .as_ref()
            .map_or(&*self.identity.domain, |to| to.domain().as_str())
    }

    /// Of type `set`?
    pub(crate) fn is_set(&self) -> bool {
        self.element.header.type_.as_deref() == Some("set")
    }

    /// The payload; a request has exactly one.
    pub(crate) fn payload(&self) -> Option<&chancery_xml::Child> {
        self.element.header.children.first()
    }
}

/// Where features register.
#[derive(Default)]
pub(crate) struct Registrar {
    table: HashMap<(Scope, &'static str, &'static str), Handler>,
    disco: Vec<(Scope, &'static str)>,
    stream_features: String,
}

impl Registrar {
    /// Handles requests of a scope with this payload.
    pub(crate) fn handle(
        &mut self,
        scope: Scope,
        ns: &'static str,
        name: &'static str,
        handler: Handler,
    ) {
        self.table.insert((scope, ns, name), handler);
    }

    /// Advertises a feature in a scope (XEP-0030).
    pub(crate) fn disco(&mut self, scope: Scope, feature: &'static str) {
        self.disco.push((scope, feature));
    }

    /// Advertises a feature of the authenticated stream.
    pub(crate) fn stream_feature(&mut self, xml: &str) {
        self.stream_features.push_str(xml);
    }
}

pub use standards::{Standard, standards};

/// Features that cannot be switched off: the core of RFC 6120 and RFC 6121, and what the log does in
/// any case.
pub const CORE: &[&str] = &["bind", "roster", "disco", "offline", "stanza_id", "caps"];

type Feature = (fn() -> Manifest, fn(&mut Registrar));

/// All features, in the order in which the stream advertises them.
const FEATURES: &[Feature] = &[
    (bind::manifest, bind::register),
    (session::manifest, session::register),
    (stream_management::manifest, stream_management::register),
    (client_state::manifest, client_state::register),
    (roster::manifest, roster::register),
    (disco::manifest, disco::register),
    (version::manifest, version::register),
    (ping::manifest, ping::register),
    (time::manifest, time::register),
    (carbons::manifest, carbons::register),
    (private::manifest, private::register),
    (vcard::manifest, vcard::register),
    (last::manifest, last::register),
    (search::manifest, search::register),
    (offline::manifest, offline::register),
    (stanza_id::manifest, stanza_id::register),
    (register::manifest, register::register),
    (blocking::manifest, blocking::register),
    (mam::manifest, mam::register),
    (commands::manifest, commands::register),
    (contact_addresses::manifest, contact_addresses::register),
    (caps::manifest, caps::register),
];

/// What was registered, ready for use.
pub(crate) struct Handlers {
    table: HashMap<(Scope, &'static str, &'static str), Handler>,
    disco: Vec<(Scope, &'static str)>,
    stream_features: String,
    /// Names of the features that are switched off.
    off: Vec<String>,
    /// Verification string of a domain's capabilities that are like all others'.
    caps: String,
    /// Domains that show something of their own.
    shown: BTreeMap<String, Shown>,
}

/// What one domain shows beside the features.
struct Shown {
    contacts: Option<Contacts>,
    /// It has administrators, hence commands.
    commands: bool,
    caps: String,
}

impl Shown {
    fn of(domain: &str, config: &Config, disco: &[(Scope, &'static str)]) -> Self {
        let is_on = |feature: &str| !config.features_off.iter().any(|off| off == feature);
        let contacts = config.contacts.get(domain);
        let contacts = contacts.filter(|c| !c.is_empty() && is_on("contact_addresses"));
        let commands = config.administered.contains(domain) && is_on("commands");
        let mut disco = disco.to_vec();
        disco.extend(commands.then_some((Scope::Server, ns::COMMANDS)));
        let forms: Vec<_> = contacts.iter().map(|contacts| contacts.form()).collect();
        Self {
            caps: caps::own(&disco, &forms),
            contacts: contacts.cloned(),
            commands,
        }
    }
}

impl Handlers {
    /// Everything that is there by default.
    #[cfg(test)]
    pub(crate) fn standard() -> Self {
        Self::new(&Config::default())
    }

    /// Everything that is there, but for what is switched off.
    pub(crate) fn new(config: &Config) -> Self {
        let mut registrar = Registrar::default();
        for (manifest, register) in FEATURES {
            if !config
                .features_off
                .iter()
                .any(|name| name == manifest().name)
            {
                register(&mut registrar);
            }
        }
        registrar.disco.sort_unstable();
        registrar.disco.dedup();
        let Registrar {
            table,
            disco,
            stream_features,
            ..
        } = registrar;
        let domains = config.contacts.keys().chain(&config.administered);
        let shown = domains
            .map(|domain| (domain.clone(), Shown::of(domain, config, &disco)))
            .collect();
        Self {
            caps: caps::own(&disco, &[]),
            table,
            disco,
            stream_features,
            off: config.features_off.clone(),
            shown,
        }
    }

    /// Is this feature, by the name of its manifest, there?
    pub(crate) fn is_on(&self, feature: &str) -> bool {
        !self.off.iter().any(|name| name == feature)
    }

    /// What handles this payload.
    pub(crate) fn find(&self, scope: Scope, ns: &str, name: &str) -> Option<Handler> {
        // The table has names of the program's life; a look-up only borrows.
        self.table
            .get(&(scope, ns, name) as &(Scope, &str, &str))
            .copied()
    }

    /// Features of a scope, sorted.
    pub(crate) fn features(&self, scope: Scope) -> impl Iterator<Item = &'static str> + '_ {
        self.disco
            .iter()
            .filter(move |(of, _)| *of == scope)
            .map(|(_, feature)| *feature)
    }

    /// What was registered for the stream after authentication, with the domain's capabilities.
    pub(crate) fn stream_features(&self, domain: &str) -> String {
        let caps = caps::advertise(self.caps(domain));
        format!("{}{caps}", self.stream_features)
    }

    /// Verification string of a domain's capabilities (XEP-0115).
    pub(crate) fn caps(&self, domain: &str) -> &str {
        self.shown
            .get(domain)
            .map_or(&self.caps, |shown| &shown.caps)
    }

    /// Whom to write to about a domain.
    pub(crate) fn contacts(&self, domain: &str) -> Option<&Contacts> {
        self.shown.get(domain)?.contacts.as_ref()
    }

    /// Has the domain commands?
    pub(crate) fn has_commands(&self, domain: &str) -> bool {
        self.shown.get(domain).is_some_and(|shown| shown.commands)
    }

    /// The table, sorted, for the manual and its snapshot.
    pub(crate) fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self
            .table
            .iter()
            .map(|((scope, ns, name), handler)| {
                format!("{scope:?} {:?} {{{ns}}}{name}", handler.verb)
            })
            .collect();
        rows.sort();
        rows
    }
}

/// What every feature says of itself, for the table of supported specifications.
pub fn manifests() -> Vec<Manifest> {
    FEATURES.iter().map(|(manifest, _)| manifest()).collect()
}

/// Features that may be switched off in the configuration.
pub fn optional() -> impl Iterator<Item = &'static str> {
    let names = FEATURES.iter().map(|(manifest, _)| manifest().name);
    names.filter(|name| !CORE.contains(name))
}

/// What is advertised without the features that are `off`: namespaces in disco, of the server and of
/// accounts, and elements of the stream features.
pub fn advertised(off: &[String]) -> Vec<String> {
    let handlers = Handlers::new(&Config {
        features_off: off.to_vec(),
        ..Config::default()
    });
    let disco = handlers
        .disco
        .iter()
        .map(|(_, feature)| (*feature).to_owned());
    let stream = handlers
        .stream_features
        .split_inclusive('>')
        .map(str::to_owned);
    disco.chain(stream).collect()
}

/// The handler table for the manual.
pub fn markdown() -> String {
    let mut out = String::new();
    for row in Handlers::new(&Config::default()).rows() {
        out.push_str("- ");
        out.push_str(&row);
        out.push('\n');
    }
    out
}

/// Must nothing else happen until this request is over?
pub(crate) fn runs_alone(handler: &Handler, request: &Request) -> bool {
    let changes = handler
        .change
        .is_some_and(|change| change(request).is_some());
    // Under the key of the stanza, which has to reach the log in its order.
    changes || request.item.as_ref().is_some_and(|item| !item.ephemeral)
}

/// Runs a request.
pub(crate) async fn run(handler: Handler, request: Request) -> Handled {
    let gateway = Arc::clone(&request.gateway);
    let identity = Arc::clone(&request.identity);
    let element = request.element.clone();
    let outcome = answer(handler, request, &gateway, &identity).await;
    let mut handled = Handled::default();
    match outcome {
        Ok(Outcome::Answer(payload)) => {
            handled.reply = Some(result(&element, &identity.full, &payload));
        }
        Ok(Outcome::Page(page)) => {
            let bytes = result(&element, &identity.full, &page.payload);
            match page.turn {
                None => handled.reply = Some(bytes),
                Some(turn) => {
                    let answer = Answered { bytes, _turn: turn };
                    handled.page = page.before;
                    handled.page.push(Source::Answer(Arc::new(answer)));
                }
            }
        }
        Err(error) => {
            gateway.metrics.bounced(error.condition);
            handled.reply = error.reply(&element, None, Some(&identity.full));
        }
    }
    handled
}

async fn answer(
    handler: Handler,
    mut request: Request,
    gateway: &Gateway,
    identity: &Identity,
) -> Result<Outcome, StanzaError> {
    if !handler.fits(request.is_set()) {
        return Err(StanzaError::new(Condition::BadRequest));
    }
    let denied = match request.item.take() {
        Some(item) => admit::admit(gateway, *item, request.trace).await?,
        None => None,
    };
    let scope = request.scope;
    if let Some(error) = &denied
        && scope != Scope::Other
    {
        return Err(error.clone());
    }
    if let Some(change) = handler.change.and_then(|change| change(&request)) {
        gateway
            .update(identity, change)
            .await
            .map_err(|_| answer::outage())?;
    }
    let answered = match handler.run {
        Run::Now(run) => run(&request).map(Outcome::Answer),
        Run::Ask(run) => run(request).await.map(Outcome::Answer),
        Run::Page(run) => run(request).await.map(Outcome::Page),
    };
    match denied {
        // Whoever is absent or behind a wall is looked up all the same, and nothing of it is said:
        // neither time nor an outage tells them from others.
        Some(error) if !matches!(&answered, Err(said) if *said == answer::outage()) => Err(error),
        _ => answered,
    }
}

/// A result, from whom the request was for.
fn result(request: &Element, to: &str, payload: &str) -> Bytes {
    let mut out = String::with_capacity(payload.len() + 160);
    out.push_str("<iq type='result'");
    for (name, value) in [
        ("id", request.header.id.as_deref()),
        ("from", request.header.to.as_deref()),
        ("to", Some(to)),
    ] {
        if let Some(value) = value {
            push_attr(&mut out, name, value);
        }
    }
    if payload.is_empty() {
        out.push_str("/>");
    } else {
        out.push('>');
        out.push_str(payload);
        out.push_str("</iq>");
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_written_down() {
        let expected = [
            "Account Any {urn:ietf:params:xml:ns:xmpp-bind}bind",
            "Account Any {jabber:iq:roster}query",
            "Account Any {jabber:iq:private}query",
            "Account Any {jabber:iq:register}query",
            "Account Any {vcard-temp}vCard",
            "Account Get {jabber:iq:last}query",
            "Other Get {jabber:iq:last}query",
            "Other Get {vcard-temp}vCard",
            "Server Any {jabber:iq:search}query",
            "Server Set {http://jabber.org/protocol/commands}command",
            "Server Get {jabber:iq:last}query",
            "Server Any {jabber:iq:register}query",
            "Account Get {http://jabber.org/protocol/disco#info}query",
            "Account Get {http://jabber.org/protocol/disco#items}query",
            "Account Get {urn:xmpp:blocking}blocklist",
            "Account Any {urn:xmpp:mam:2}prefs",
            "Account Any {urn:xmpp:mam:2}query",
            "Account Get {urn:xmpp:mam:2}metadata",
            "Account Get {urn:xmpp:ping}ping",
            "Account Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Account Set {urn:xmpp:blocking}block",
            "Account Set {urn:xmpp:blocking}unblock",
            "Account Set {urn:xmpp:carbons:2}disable",
            "Account Set {urn:xmpp:carbons:2}enable",
            "Server Any {urn:ietf:params:xml:ns:xmpp-bind}bind",
            "Server Get {http://jabber.org/protocol/disco#info}query",
            "Server Get {http://jabber.org/protocol/disco#items}query",
            "Server Get {jabber:iq:version}query",
            "Server Get {urn:xmpp:blocking}blocklist",
            "Server Get {urn:xmpp:ping}ping",
            "Server Get {urn:xmpp:time}time",
            "Server Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Server Set {urn:xmpp:blocking}block",
            "Server Set {urn:xmpp:blocking}unblock",
            "Server Set {urn:xmpp:carbons:2}disable",
            "Server Set {urn:xmpp:carbons:2}enable",
        ];
        let mut expected: Vec<String> = expected.iter().map(|row| (*row).to_owned()).collect();
        expected.sort();
        assert_eq!(Handlers::standard().rows(), expected);
    }

    #[test]
    fn what_is_off_is_not_there() {
        let off = Handlers::new(&Config {
            features_off: vec!["search".to_owned()],
            ..Config::default()
        });
        let on = Handlers::standard();
        for (handlers, expected) in [(&off, false), (&on, true)] {
            let found = handlers.find(Scope::Server, ns::SEARCH, "query");
            assert_eq!(found.is_some(), expected);
            let shown = handlers.features(Scope::Server).any(|f| f == ns::SEARCH);
            assert_eq!(shown, expected);
            assert_eq!(handlers.is_on("search"), expected);
        }
        assert_ne!(off.caps("a.test"), on.caps("a.test"));
    }

    #[test]
    fn every_feature_names_its_specifications() {
        let manifests = manifests();
        assert!(manifests.iter().all(|m| !m.specifications.is_empty()));
        let names: std::collections::BTreeSet<_> = manifests.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), manifests.len());
    }

    #[test]
    fn the_stream_advertises_what_is_there() {
        let handlers = Handlers::standard();
        let features = handlers.stream_features("a.test");
        for part in [
            "xmpp-bind'",
            "xmpp-session'><optional/>",
            "urn:xmpp:sm:3",
            "urn:xmpp:csi:0",
            "rosterver",
            "hash='sha-1'",
        ] {
            assert!(features.contains(part), "{part} in {features}");
        }
        assert!(features.contains(handlers.caps("a.test")));
    }

    #[test]
    fn a_domain_with_contacts_has_capabilities_of_its_own() {
        let mut config = Config::default();
        let contacts = Contacts {
            abuse: vec!["mailto:a@b.test".into()],
            ..Contacts::default()
        };
        config.contacts.insert("b.test".into(), contacts);
        config.contacts.insert("c.test".into(), Contacts::default());
        let handlers = Handlers::new(&config);
        assert_ne!(handlers.caps("b.test"), handlers.caps("a.test"));
        assert_eq!(handlers.caps("c.test"), handlers.caps("a.test"));
        assert!(handlers.contacts("b.test").is_some());
        assert!(handlers.contacts("c.test").is_none());
        let features = handlers.stream_features("b.test");
        assert!(features.contains(handlers.caps("b.test")));
    }
}
