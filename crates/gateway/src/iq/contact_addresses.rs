//! Contact addresses (XEP-0157) as a feature: the form that `disco.rs` shows of a domain, from
//! `contacts.rs`. There is nothing to ask for and nothing to advertise.

use super::{Manifest, Registrar, Specification};

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "contact_addresses",
        specifications: &[Specification {
            name: "XEP-0157",
            version: "1.1.1",
            status: "complete",
        }],
    }
}

/// What a domain shows is its configuration's affair.
pub(crate) fn register(_: &mut Registrar) {}
