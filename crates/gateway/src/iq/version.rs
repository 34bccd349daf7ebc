//! Software version (XEP-0092). Says nothing of the operating system.

use chancery_xmpp::ns;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};

/// What we are called.
pub(crate) const NAME: &str = "Chancery";

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "version",
        specifications: &[Specification {
            name: "XEP-0092",
            version: "1.1",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.handle(
        Scope::Server,
        ns::VERSION,
        "query",
        Handler::now(Verb::Get, tell),
    );
    registrar.disco(Scope::Server, ns::VERSION);
}

fn tell(_: &Request) -> Answer {
    let (ns, version) = (ns::VERSION, env!("CARGO_PKG_VERSION"));
    Ok(format!(
        "<query xmlns='{ns}'><name>{NAME}</name><version>{version}</version></query>"
    ))
}
