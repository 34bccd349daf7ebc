//! The session of RFC 3921 §3, which means nothing any more.
//!
//! COMPAT(clients from before RFC 6121): they ask for it and wait for the answer.

use chancery_xmpp::ns;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "session",
        specifications: &[Specification {
            name: "RFC 3921",
            version: "",
            status: "partial: the session feature",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.stream_feature(&format!(
        "<session xmlns='{}'><optional/></session>",
        ns::SESSION
    ));
    for scope in [Scope::Server, Scope::Account] {
        registrar.handle(
            scope,
            ns::SESSION,
            "session",
            Handler::now(Verb::Set, establish),
        );
    }
}

fn establish(_: &Request) -> Answer {
    Ok(String::new())
}
