//! The opening tag of a stream, as data.
//!
//! Refuses to judge its values: hosts, versions and content namespaces are the gateway's business.

use std::sync::Arc;

use rxml::NcName;

use crate::error::FrameError;
use crate::limits::{Limit, Limits};
use crate::names::{NS_STREAMS, Scope};
use crate::scan::{OpeningTag, opening_tag};

/// Longest `xml:lang` of a stream: it is written onto every stanza, and BCP 47 §4.4.1 needs 35.
const LANG_BYTES_MAX: usize = 64;

/// What the peer's opening tag says (RFC 6120 §4.7). Values are unescaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Namespace of the root element; [`StreamHeader::check`] judges it.
    pub ns: Arc<str>,
    /// Local name of the root element.
    pub name: Box<str>,
    pub prefix: Option<Box<str>>,
    /// Default namespace that the stanzas inherit, empty if there is none (RFC 6120 §4.8.2).
    pub default_ns: Arc<str>,
    pub to: Option<Box<str>>,
    pub from: Option<Box<str>>,
    pub id: Option<Box<str>>,
    pub version: Option<Box<str>>,
    pub lang: Option<Box<str>>,
}

impl StreamHeader {
    /// Whether the root is `stream` in the streams namespace, under a prefix.
    pub fn check(&self) -> Result<(), FrameError> {
        if &*self.ns != NS_STREAMS {
            return Err(FrameError::InvalidNamespace); // RFC 6120 §4.9.3.10
        }
        if self.prefix.is_none() {
            return Err(FrameError::BadNamespacePrefix); // RFC 6120 §4.8.5
        }
        if &*self.name != "stream" {
            return Err(FrameError::BadFormat);
        }
        Ok(())
    }
}

/// Reads the opening tag; also returns its name as written and what it puts in scope.
pub(crate) fn read(
    bytes: &[u8],
    limits: &Limits,
) -> Result<(StreamHeader, Box<str>, Scope), FrameError> {
    let OpeningTag { ns, tag, scope } = opening_tag(bytes, limits)?;
    if scope
        .lang
        .as_deref()
        .is_some_and(|lang| lang.len() > LANG_BYTES_MAX)
    {
        return Err(FrameError::PolicyViolation(Limit::ValueBytes));
    }
    let mut header = StreamHeader {
        ns,
        name: tag.local.as_str().into(),
        prefix: tag.prefix.as_ref().map(|prefix| prefix.as_str().into()),
        default_ns: scope.default_ns.clone(),
        to: None,
        from: None,
        id: None,
        version: None,
        lang: scope.lang.clone(),
    };
    let name = written(tag.prefix.as_ref(), &tag.local);
    for attr in tag.attrs.into_iter().filter(|attr| attr.prefix.is_none()) {
        let field = match attr.local.as_str() {
            "to" => &mut header.to,
            "from" => &mut header.from,
            "id" => &mut header.id,
            "version" => &mut header.version,
            _ => continue,
        };
        *field = Some(attr.value.into_boxed_str());
    }
    Ok((header, name, scope))
}

fn written(prefix: Option<&NcName>, local: &NcName) -> Box<str> {
    match prefix {
        Some(prefix) => format!("{prefix}:{local}").into_boxed_str(),
        None => local.as_str().into(),
    }
}
