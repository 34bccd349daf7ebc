//! The caps on what one stream may send: the numbers, and the names of what was exceeded.
//!
//! Owns no enforcement: `lexer` counts while bytes arrive, `names` counts what is in scope.

use std::fmt;

/// Caps for one stream. Exceeding any of them ends the stream with `policy-violation`
/// (RFC 6120 §4.9.3.14, §13.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one top-level element.
    pub stanza_bytes: u32,
    /// Bytes of the XML declaration and the opening tag of the stream.
    pub header_bytes: u32,
    /// Nesting inside one top-level element, itself included.
    pub depth: u32,
    /// Elements in one top-level element, itself included.
    pub elements: u32,
    /// Attributes of one element, namespace declarations apart.
    pub attributes: u32,
    /// Namespace declarations of one element.
    pub namespaces: u32,
    /// Namespace prefixes in scope at any place; bounds the cost of resolving a name.
    pub namespaces_in_scope: u32,
    /// Bytes of an element's or attribute's name, prefix included.
    pub name_bytes: u32,
    /// Bytes of one attribute value as written.
    pub value_bytes: u32,
}

impl Limits {
    /// For a peer that has not shown who it is: room for SASL, nothing else.
    pub const fn before_auth() -> Self {
        Self {
            stanza_bytes: 8 * 1024,
            header_bytes: 8 * 1024,
            depth: 8,
            elements: 32,
            attributes: 32,
            namespaces: 16,
            namespaces_in_scope: 32,
            name_bytes: 256,
            value_bytes: 4 * 1024,
        }
    }

    /// For an authenticated peer.
    pub const fn after_auth() -> Self {
        Self {
            stanza_bytes: 256 * 1024,
            header_bytes: 8 * 1024,
            depth: 64,
            elements: 4096,
            attributes: 64,
            namespaces: 32,
            namespaces_in_scope: 64,
            name_bytes: 1024,
            value_bytes: 8 * 1024,
        }
    }

    /// For what an authenticated peer sent and we have edited since: room for what splice,
    /// wrappers and escaping add, so that no stanza once accepted is refused between services.
    pub const fn internal() -> Self {
        Self {
            stanza_bytes: 1024 * 1024,
            header_bytes: 8 * 1024,
            depth: 64 + 8,
            elements: 4096 + 64,
            attributes: 64 + 16,
            namespaces: 32 + 64,
            namespaces_in_scope: 64 + 32,
            name_bytes: 1024,
            // one character becomes at most six
            value_bytes: 6 * 8 * 1024,
        }
    }
}

/// Which cap was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    StanzaBytes,
    HeaderBytes,
    Depth,
    Elements,
    Attributes,
    Namespaces,
    NameBytes,
    ValueBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StanzaBytes => "stanza size",
            Self::HeaderBytes => "stream header size",
            Self::Depth => "nesting depth",
            Self::Elements => "number of elements",
            Self::Attributes => "number of attributes",
            Self::Namespaces => "number of namespace declarations",
            Self::NameBytes => "length of a name",
            Self::ValueBytes => "length of an attribute value",
        })
    }
}
