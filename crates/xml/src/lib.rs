//! XML as XMPP streams use it: bytes in, one complete top-level element out, with the header that
//! routing needs; editing by spans instead of trees; every size capped while bytes arrive.
//!
//! Owns framing (RFC 6120 §4, §11), the limits, namespace resolution, splice and escaping. Refuses
//! to own the meaning of stanzas and streams: which host, version or payload is acceptable is
//! decided above.
//!
//! Two passes read each byte: [`lexer`] finds where an element ends and enforces every cap before
//! anything is allocated for it; [`scan`] then validates the complete element with `rxml` and
//! resolves namespaces. Where the two disagree the input is refused.

mod alone;
mod element;
mod error;
mod framer;
mod header;
mod lexer;
mod limits;
mod names;
mod scan;
mod splice;
mod write;

#[cfg(test)]
mod attack_tests;
#[cfg(test)]
mod property_tests;

pub use alone::alone;
pub use element::{Attr, Child, Element, Header};
pub use error::FrameError;
pub use framer::{Frame, Framer};
pub use header::StreamHeader;
pub use lexer::is_space;
pub use limits::{Limit, Limits};
pub use names::{NS_CLIENT, NS_STREAMS, NS_XML};
pub use scan::scan;
pub use splice::Splice;
pub use write::{escape_attr, escape_text, is_xml_char, push_attr};
