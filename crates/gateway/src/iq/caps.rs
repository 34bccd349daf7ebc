//! Entity capabilities (XEP-0115) of the server itself, as a feature of the stream (§6.2).

use aws_lc_rs::digest;
use chancery_xml::push_attr;
use chancery_xmpp::caps::{Form, Identity, verification};
use chancery_xmpp::ns;

use super::disco::SERVER;
use super::{Manifest, Registrar, Scope, Specification};

/// Names the software, in front of the verification string.
pub(crate) const NODE: &str = "urn:chancery:server";

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "caps",
        specifications: &[Specification {
            name: "XEP-0115",
            version: "1.6.0",
            status: "complete",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    registrar.disco(Scope::Server, ns::CAPS);
}

/// The verification string of what a domain shows: features, and the forms that are its own.
pub(crate) fn own(disco: &[(Scope, &'static str)], forms: &[Form<'_>]) -> String {
    let features: Vec<&str> = disco
        .iter()
        .filter(|(scope, _)| *scope == Scope::Server)
        .map(|(_, feature)| *feature)
        .collect();
    let identity = Identity {
        category: SERVER.0,
        type_: SERVER.1,
        lang: "",
        name: SERVER.2,
    };
    verification(&[identity], &features, forms, &sha1)
}

/// The feature of the stream.
pub(crate) fn advertise(ver: &str) -> String {
    let mut out = String::from("<c");
    for (name, value) in [
        ("xmlns", ns::CAPS),
        ("hash", "sha-1"),
        ("node", NODE),
        ("ver", ver),
    ] {
        push_attr(&mut out, name, value);
    }
    out.push_str("/>");
    out
}

/// The hash that the specification names; it protects nothing here.
fn sha1(input: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, input).as_ref());
    out
}
