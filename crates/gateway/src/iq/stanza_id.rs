//! Stanza ids (XEP-0359) as something to advertise: forged ones are removed by the pipeline, the
//! true one is added in `session/deliver.rs`.

use chancery_xmpp::ns;

use super::{Manifest, Registrar, Scope, Specification};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "stanza_id",
        specifications: &[Specification {
            name: "XEP-0359",
            version: "0.7.0",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.disco(Scope::Server, ns::SID);
    registrar.disco(Scope::Account, ns::SID);
}
