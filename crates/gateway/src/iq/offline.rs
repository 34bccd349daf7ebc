//! Offline messages (XEP-0160) as something to advertise: they are the open entries of the mailbox,
//! which the archive hands to the next session that becomes available.

use chancery_xmpp::ns;

use super::{Manifest, Registrar, Scope, Specification};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "offline",
        specifications: &[
            Specification {
                name: "XEP-0160",
                version: "1.0.1",
                status: "complete",
            },
            Specification {
                name: "XEP-0203",
                version: "2.0",
                status: "complete",
            },
        ],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.disco(Scope::Server, ns::OFFLINE);
}
