//! Entity capabilities (XEP-0115) of the server itself, as a feature of the stream (§6.2).

use aws_lc_rs::digest;
use chancery_xml::push_attr;
use chancery_xmpp::caps::{Identity, verification};
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

/// Computes the verification string of everything registered, and advertises it.
pub(crate) fn own(registrar: &mut Registrar) -> String {
    registrar.disco(Scope::Server, ns::CAPS);
    registrar.disco.sort_unstable();
    let features: Vec<&str> = registrar
        .disco
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
    let ver = verification(&[identity], &features, &[], &sha1);
    let mut out = String::from("<c");
    for (name, value) in [
        ("xmlns", ns::CAPS),
        ("hash", "sha-1"),
        ("node", NODE),
        ("ver", ver.as_str()),
    ] {
        push_attr(&mut out, name, value);
    }
    out.push_str("/>");
    registrar.stream_feature(&out);
    ver
}

/// The hash that the specification names; it protects nothing here.
fn sha1(input: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, input).as_ref());
    out
}
