//! Message carbons (XEP-0280): switching them on and off. Who gets a copy is the shard's affair,
//! which has confirmed the switch before it is answered; the copies are made in
//! `session/deliver.rs`.

use chancery_xmpp::ns;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::session::identity::Change;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "carbons",
        specifications: &[Specification {
            name: "XEP-0280",
            version: "1.0.1",
            status: "complete; `private` stays in what is delivered",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let enable = Handler::now(Verb::Set, done).behind(|_| Some(Change::Carbons(true)));
    let disable = Handler::now(Verb::Set, done).behind(|_| Some(Change::Carbons(false)));
    // Clients send it to either.
    for scope in [Scope::Server, Scope::Account] {
        registrar.handle(scope, ns::CARBONS, "enable", enable);
        registrar.handle(scope, ns::CARBONS, "disable", disable);
        registrar.disco(scope, ns::CARBONS);
    }
}

fn done(_: &Request) -> Answer {
    Ok(String::new())
}
