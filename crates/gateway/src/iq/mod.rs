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
mod features;
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
mod viewers;

use std::sync::Arc;

use bytes::Bytes;
use chancery_api::Cx;
use chancery_api::archive::AppendItem;
use chancery_runtime::trace::{Span, TraceContext};
use chancery_xml::{Element, push_attr};
use chancery_xmpp::{Condition, Jid, StanzaError};
use futures_util::future::BoxFuture;

use crate::pipeline::answer;
use crate::service::Gateway;
use crate::session::identity::{Change, Identity};
use crate::session::outgoing::{Answered, Source};
use crate::session::window::Handled;
use tokio::sync::OwnedSemaphorePermit;

pub use features::{CORE, advertised, manifests, markdown, optional};
pub(crate) use features::{Handlers, Registrar};
pub use standards::{Standard, standards};

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
    /// What it answers on behalf of an account that is not there, or must look so.
    absence: fn(&Request) -> Answer,
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
            absence: nobody,
            run: Run::Now(run),
        }
    }

    /// Handles by asking a service.
    pub(crate) const fn ask(verb: Verb, run: fn(Request) -> BoxFuture<'static, Answer>) -> Self {
        Self {
            verb,
            change: None,
            publishes: false,
            absence: nobody,
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
            absence: nobody,
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

    /// The same, with a word of its own for an account that is not there.
    pub(crate) const fn absent(mut self, absence: fn(&Request) -> Answer) -> Self {
        self.absence = absence;
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

/// RFC 6121 §8.5.1
fn nobody(_: &Request) -> Answer {
    Err(answer::absent())
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
    let denied = match denied {
        Some(error) if request.scope != Scope::Other => return Err(error),
        Some(error) if error == answer::absent() => Some((handler.absence)(&request)),
        other => other.map(Err),
    };
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
        Some(denied) if !matches!(&answered, Err(said) if *said == answer::outage()) => {
            denied.map(Outcome::Answer)
        }
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
