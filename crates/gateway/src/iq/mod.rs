//! IQs to the server or the own account: what handles them, and what they make us advertise.
//!
//! One small file a feature; each declares itself by `manifest()` and `register()`. Handlers are
//! not routed and hence not decided. Refuses requests to anybody else.

pub(crate) mod bind;
pub(crate) mod caps;
pub(crate) mod carbons;
pub(crate) mod client_state;
pub(crate) mod disco;
pub(crate) mod mam;
pub(crate) mod offline;
pub(crate) mod ping;
pub(crate) mod register;
pub(crate) mod roster;
pub(crate) mod session;
pub(crate) mod stanza_id;
pub(crate) mod stream_management;
pub(crate) mod time;
pub(crate) mod version;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use chancery_api::Cx;
use chancery_runtime::trace::{Span, TraceContext};
use chancery_xml::{Element, push_attr};
use chancery_xmpp::{Condition, StanzaError};
use futures_util::future::BoxFuture;

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
            run: Run::Now(run),
        }
    }

    /// Handles by asking a service.
    pub(crate) const fn ask(verb: Verb, run: fn(Request) -> BoxFuture<'static, Answer>) -> Self {
        Self {
            verb,
            change: None,
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
            run: Run::Page(run),
        }
    }

    /// The same, behind a change of the session.
    pub(crate) const fn behind(mut self, change: fn(&Request) -> Option<Change>) -> Self {
        self.change = Some(change);
        self
    }
}

impl Request {
    /// What another service is asked with, and the span that asks.
    pub(crate) fn cx(&self, name: &'static str) -> (Cx, Span) {
        let span = self.gateway.tracer.calls(name, self.trace);
        (Cx::local().traced(span.traceparent()), span)
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
    (offline::manifest, offline::register),
    (stanza_id::manifest, stanza_id::register),
    (register::manifest, register::register),
    (mam::manifest, mam::register),
];

/// What was registered, ready for use.
pub(crate) struct Handlers {
    table: HashMap<(Scope, &'static str, &'static str), Handler>,
    disco: Vec<(Scope, &'static str)>,
    stream_features: String,
    /// Verification string of the server's own capabilities.
    pub(crate) caps: String,
}

impl Handlers {
    /// Everything that is there.
    pub(crate) fn standard() -> Self {
        let mut registrar = Registrar::default();
        for (_, register) in FEATURES {
            register(&mut registrar);
        }
        registrar.disco.sort_unstable();
        registrar.disco.dedup();
        let caps = caps::own(&mut registrar);
        let Registrar {
            table,
            disco,
            stream_features,
        } = registrar;
        Self {
            table,
            disco,
            stream_features,
            caps,
        }
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

    /// What was registered for the stream after authentication.
    pub(crate) fn stream_features(&self) -> &str {
        &self.stream_features
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
    FEATURES
        .iter()
        .map(|(manifest, _)| manifest())
        .chain([caps::manifest()])
        .collect()
}

/// The handler table for the manual.
pub fn markdown() -> String {
    let mut out = String::new();
    for row in Handlers::standard().rows() {
        out.push_str("- ");
        out.push_str(&row);
        out.push('\n');
    }
    out
}

/// Must nothing else happen until this request is over?
pub(crate) fn runs_alone(handler: &Handler, request: &Request) -> bool {
    handler
        .change
        .is_some_and(|change| change(request).is_some())
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
                    let outage = answer::outage().reply(&element, None, Some(&identity.full));
                    let answer = Answered {
                        bytes,
                        outage: outage.unwrap_or_default(),
                        _turn: turn,
                    };
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
    request: Request,
    gateway: &Gateway,
    identity: &Identity,
) -> Result<Outcome, StanzaError> {
    let fits = match handler.verb {
        Verb::Any => true,
        Verb::Get => !request.is_set(),
        Verb::Set => request.is_set(),
    };
    if !fits {
        return Err(StanzaError::new(Condition::BadRequest));
    }
    if let Some(change) = handler.change.and_then(|change| change(&request)) {
        gateway
            .update(identity, change)
            .await
            .map_err(|_| answer::outage())?;
    }
    match handler.run {
        Run::Now(run) => run(&request).map(Outcome::Answer),
        Run::Ask(run) => run(request).await.map(Outcome::Answer),
        Run::Page(run) => run(request).await.map(Outcome::Page),
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
            "Account Any {jabber:iq:register}query",
            "Server Any {jabber:iq:register}query",
            "Account Get {http://jabber.org/protocol/disco#info}query",
            "Account Get {http://jabber.org/protocol/disco#items}query",
            "Account Any {urn:xmpp:mam:2}prefs",
            "Account Any {urn:xmpp:mam:2}query",
            "Account Get {urn:xmpp:mam:2}metadata",
            "Account Get {urn:xmpp:ping}ping",
            "Account Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Account Set {urn:xmpp:carbons:2}disable",
            "Account Set {urn:xmpp:carbons:2}enable",
            "Server Any {urn:ietf:params:xml:ns:xmpp-bind}bind",
            "Server Get {http://jabber.org/protocol/disco#info}query",
            "Server Get {http://jabber.org/protocol/disco#items}query",
            "Server Get {jabber:iq:version}query",
            "Server Get {urn:xmpp:ping}ping",
            "Server Get {urn:xmpp:time}time",
            "Server Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Server Set {urn:xmpp:carbons:2}disable",
            "Server Set {urn:xmpp:carbons:2}enable",
        ];
        let mut expected: Vec<String> = expected.iter().map(|row| (*row).to_owned()).collect();
        expected.sort();
        assert_eq!(Handlers::standard().rows(), expected);
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
        let features = handlers.stream_features();
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
        assert!(features.contains(&handlers.caps));
    }
}
