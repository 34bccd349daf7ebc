//! Resource binding (RFC 6120 §7) as a feature of the stream. The bind itself is in
//! `session/bind.rs`; here is what a second one is told.

use chancery_xmpp::{Condition, StanzaError, ns};

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "bind",
        specifications: &[Specification {
            name: "RFC 6120 §7",
            version: "",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.stream_feature(&format!("<bind xmlns='{}'/>", ns::BIND));
    for scope in [Scope::Server, Scope::Account] {
        registrar.handle(scope, ns::BIND, "bind", Handler::now(Verb::Any, again));
    }
}

/// RFC 6120 §7.6.2.2: one session a stream.
fn again(_: &Request) -> Answer {
    Err(StanzaError::new(Condition::NotAllowed))
}
