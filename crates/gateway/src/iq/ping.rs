//! Ping (XEP-0199): is anybody there?

use chancery_xmpp::ns;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "ping",
        specifications: &[Specification {
            name: "XEP-0199",
            version: "2.0.1",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    for scope in [Scope::Server, Scope::Account] {
        registrar.handle(scope, ns::PING, "ping", Handler::now(Verb::Get, pong));
        registrar.disco(scope, ns::PING);
    }
}

fn pong(_: &Request) -> Answer {
    Ok(String::new())
}
