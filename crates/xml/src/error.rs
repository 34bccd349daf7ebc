//! Why input was refused, in the words of RFC 6120 §4.9.3.
//!
//! Owns the mapping from `rxml`'s errors; refuses to own the writing of a stream error.

use crate::limits::Limit;

/// Input that ends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Comment, processing instruction, DTD, or entity beyond the five (RFC 6120 §11.1).
    #[error("restricted xml")]
    RestrictedXml,
    /// Violates XML or XML namespaces (RFC 6120 §4.9.3.13).
    #[error("not well-formed")]
    NotWellFormed,
    /// Anything but UTF-8 (RFC 6120 §11.6).
    #[error("encoding other than utf-8")]
    UnsupportedEncoding,
    /// Well-formed, yet no stanza: text between stanzas (RFC 6120 §4.9.3.1).
    #[error("text between stanzas")]
    BadFormat,
    /// The root is not in the streams namespace (RFC 6120 §4.9.3.10).
    #[error("invalid namespace")]
    InvalidNamespace,
    /// The root has no prefix where one is needed (RFC 6120 §4.9.3.2).
    #[error("bad namespace prefix")]
    BadNamespacePrefix,
    /// A cap was exceeded (RFC 6120 §4.9.3.14).
    #[error("limit exceeded: {0}")]
    PolicyViolation(Limit),
}

impl FrameError {
    /// Name of the stream error's condition element.
    pub fn condition(&self) -> &'static str {
        match self {
            Self::RestrictedXml => "restricted-xml",
            Self::NotWellFormed => "not-well-formed",
            Self::UnsupportedEncoding => "unsupported-encoding",
            Self::BadFormat => "bad-format",
            Self::InvalidNamespace => "invalid-namespace",
            Self::BadNamespacePrefix => "bad-namespace-prefix",
            Self::PolicyViolation(_) => "policy-violation",
        }
    }
}

impl From<rxml::Error> for FrameError {
    fn from(error: rxml::Error) -> Self {
        match error {
            rxml::Error::UndeclaredEntity => Self::RestrictedXml,
            // rxml tells its restrictions apart by text only; a test pins the two used here
            rxml::Error::RestrictedXml(what) if what.contains("encoding") => {
                Self::UnsupportedEncoding
            }
            rxml::Error::RestrictedXml(what) if what.contains("long name") => {
                Self::PolicyViolation(Limit::ValueBytes)
            }
            rxml::Error::RestrictedXml(_) => Self::RestrictedXml,
            _ => Self::NotWellFormed,
        }
    }
}
