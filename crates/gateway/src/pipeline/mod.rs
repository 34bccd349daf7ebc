//! The way of an inbound stanza: what is checked, in which order, and what becomes of it.
//!
//! [`modules`] is the order; [`decide`] and [`record`] are the two questions asked of others;
//! [`answer`] turns what came of them into replies. Owns no queue: the session's window does.

pub(crate) mod answer;
pub(crate) mod decide;
pub(crate) mod filters;
pub(crate) mod modules;
pub(crate) mod record;

use chancery_xml::Element;
use chancery_xmpp::subscription::Act;
use chancery_xmpp::{StanzaError, StanzaHeader, StreamError};

use crate::iq::{Handler, Handlers, Scope};
use crate::session::identity::Identity;

/// What the filters may look at.
#[derive(Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) identity: &'a Identity,
    /// The hosted domains.
    pub(crate) domains: &'a [String],
    pub(crate) handlers: &'a Handlers,
}

/// One stanza on its way through the filters.
pub(crate) struct Inbound<'a> {
    pub(crate) ground: Ground<'a>,
    pub(crate) element: Element,
    /// There from the filter `header` on.
    pub(crate) header: Option<StanzaHeader>,
    /// Children that are taken out, by index.
    pub(crate) removed: Vec<usize>,
}

/// What a filter says.
pub(crate) enum Flow {
    /// The next filter.
    Pass,
    /// Handled and counted; no answer.
    Done,
    /// Answered with an error, if it may be answered.
    Bounce(StanzaError),
    /// The stream ends.
    End(StreamError),
    /// Goes on in the session's window.
    Take(Work),
}

/// What the window does with a stanza.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// An IQ that the server answers.
    Handle(Handler, Scope),
    /// The session's own presence, a broadcast.
    OwnPresence,
    /// Presence addressed to somebody.
    DirectedPresence,
    /// A stanza of the subscription handshake.
    Subscription(Act),
    /// Decided, recorded or passed through the shard, delivered.
    Route,
}

impl Ground<'_> {
    /// Is this domainpart ours?
    pub(crate) fn is_local(&self, domain: &str) -> bool {
        self.domains.iter().any(|hosted| hosted == domain)
    }
}
