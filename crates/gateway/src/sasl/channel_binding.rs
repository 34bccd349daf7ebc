//! Channel bindings: `tls-exporter` (RFC 9266) and `tls-server-end-point` (RFC 5929 §4), which
//! XEP-0440 wants beside it. Refuses `tls-unique`: TLS 1.3 has none.

use aws_lc_rs::digest;
use rustls::ServerConnection;
use x509_parser::prelude::X509Certificate;
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// Registered name of the exporter binding.
pub const EXPORTER: &str = "tls-exporter";
/// Registered name of the certificate binding.
pub const END_POINT: &str = "tls-server-end-point";

/// RFC 9266 §3.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
const EXPORTER_BYTES: usize = 32;

/// What one connection can be bound by.
#[derive(Clone, Debug, Default)]
pub struct ChannelBindings {
    exporter: Option<[u8; EXPORTER_BYTES]>,
    end_point: Option<Box<[u8]>>,
}

impl ChannelBindings {
    /// Those of a connection whose handshake is done, and whose client saw the certificate with
    /// this hash.
    pub fn of(session: &ServerConnection, end_point: Option<&[u8]>) -> Self {
        // TLS 1.2 without the extended master secret is refused in the handshake. The context is
        // the zero-length string, which in TLS 1.2 differs from none.
        let exporter = session
            .export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, Some(b""))
            .ok();
        Self {
            exporter,
            end_point: end_point.map(Into::into),
        }
    }

    /// The names to be offered, the stronger first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let exporter = self.exporter.is_some().then_some(EXPORTER);
        exporter
            .into_iter()
            .chain(self.end_point.is_some().then_some(END_POINT))
    }

    /// The data of one of them.
    pub fn data(&self, name: &str) -> Option<&[u8]> {
        match name {
            EXPORTER => self.exporter.as_ref().map(<[u8; EXPORTER_BYTES]>::as_slice),
            END_POINT => self.end_point.as_deref(),
            _ => None,
        }
    }

    /// Whether there is one at all, and so the -PLUS mechanisms.
    pub fn any(&self) -> bool {
        self.exporter.is_some() || self.end_point.is_some()
    }

    #[cfg(test)]
    pub(crate) fn for_test(exporter: Option<[u8; 32]>, end_point: Option<&[u8]>) -> Self {
        Self {
            exporter,
            end_point: end_point.map(Into::into),
        }
    }
}

/// RFC 5929 §4.1: the certificate's hash under the hash of its own signature, SHA-256 in place of
/// MD5 and SHA-1. Undefined where the signature has none of its own, as Ed25519: not offered then.
pub fn end_point_hash(der: &[u8], certificate: &X509Certificate<'_>) -> Option<Box<[u8]>> {
    let identifier = &certificate.signature_algorithm;
    let oid = match SignatureAlgorithm::try_from(identifier) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => {
            parameters.hash_algorithm_oid().to_id_string()
        }
        _ => identifier.algorithm.to_id_string(),
    };
    let algorithm = match oid.as_str() {
        // md5, sha1 and sha256: with RSA, with ECDSA, and as the hash of RSASSA-PSS
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.3.14.3.2.26"
        | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            &digest::SHA384
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            &digest::SHA512
        }
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            &digest::SHA224
        }
        _ => return None,
    };
    Some(digest::digest(algorithm, der).as_ref().into())
}
