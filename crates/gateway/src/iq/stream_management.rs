//! Stream management (XEP-0198) as a feature of the stream; what it does is in
//! `session/nonzas.rs` and `session/stream_management.rs`.

use chancery_xmpp::ns;

use super::{Manifest, Registrar, Specification};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "stream_management",
        specifications: &[Specification {
            name: "XEP-0198",
            version: "1.6.3",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.stream_feature(&format!("<sm xmlns='{}'/>", ns::SM));
}
