//! Entity time (XEP-0202). The server lives in UTC.

use chancery_xmpp::ns;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::session::deliver::stamp;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "time",
        specifications: &[Specification {
            name: "XEP-0202",
            version: "2.0",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.handle(
        Scope::Server,
        ns::TIME,
        "time",
        Handler::now(Verb::Get, tell),
    );
    registrar.disco(Scope::Server, ns::TIME);
}

fn tell(request: &Request) -> Answer {
    let utc = stamp(request.gateway.clock.now_unix_ms());
    let ns = ns::TIME;
    Ok(format!(
        "<time xmlns='{ns}'><tzo>+00:00</tzo><utc>{utc}</utc></time>"
    ))
}
