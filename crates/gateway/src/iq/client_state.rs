//! Client state (XEP-0352) as a feature of the stream; what it does is in `session/client_state.rs`.

use chancery_xmpp::ns;

use super::{Manifest, Registrar, Specification};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "client_state",
        specifications: &[Specification {
            name: "XEP-0352",
            version: "1.0.0",
            status: "complete: presence waits",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.stream_feature(&format!("<csi xmlns='{}'/>", ns::CSI));
}
