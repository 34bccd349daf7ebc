//! Namespaces in scope, and what XML namespaces demand beyond what `rxml`'s raw parser checks:
//! bound prefixes, unique attributes, reserved names.
//!
//! Refuses to know positions: `scan` keeps those.

use std::sync::{Arc, LazyLock};

use rxml::NcName;

use crate::error::FrameError;
use crate::limits::{Limit, Limits};

/// Content namespace of client streams (RFC 6120 §4.8.2).
pub const NS_CLIENT: &str = "jabber:client";
/// Namespace of the stream element (RFC 6120 §4.8.1).
pub const NS_STREAMS: &str = "http://etherx.jabber.org/streams";
/// Namespace of `xml:lang`.
pub const NS_XML: &str = rxml::XMLNS_XML;

static CLIENT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(NS_CLIENT));
static STREAMS: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(NS_STREAMS));
static XML: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(NS_XML));
static NONE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// Shares the allocation of names that every stream uses.
pub(crate) fn intern(uri: &str) -> Arc<str> {
    match uri {
        NS_CLIENT => CLIENT.clone(),
        NS_STREAMS => STREAMS.clone(),
        "" => NONE.clone(),
        _ => Arc::from(uri),
    }
}

/// What the stream's opening tag put in scope for every stanza.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) default_ns: Arc<str>,
    pub(crate) prefixes: Box<[(NcName, Arc<str>)]>,
    pub(crate) lang: Option<Box<str>>,
}

impl Scope {
    pub(crate) fn client() -> Self {
        Self {
            default_ns: CLIENT.clone(),
            prefixes: Box::default(),
            lang: None,
        }
    }
}

/// One attribute as `rxml` reports it, with its place.
#[derive(Debug)]
pub(crate) struct RawAttr {
    pub(crate) prefix: Option<NcName>,
    pub(crate) local: NcName,
    pub(crate) value: String,
    /// From the white space before the name to behind the closing quote.
    pub(crate) span: (u32, u32),
    /// Filled by [`Names::open`]; the namespace of a prefixed attribute.
    pub(crate) ns: Option<Arc<str>>,
}

impl RawAttr {
    pub(crate) fn is_declaration(&self) -> bool {
        match &self.prefix {
            None => self.local == "xmlns",
            Some(prefix) => prefix == "xmlns",
        }
    }

    pub(crate) fn is_lang(&self) -> bool {
        self.local == "lang" && self.prefix.as_ref().is_some_and(|prefix| prefix == "xml")
    }
}

struct Level {
    default_ns: Arc<str>,
    /// How many bindings were in scope outside.
    bindings: usize,
}

/// Namespaces in scope while walking one element.
pub(crate) struct Names<'a> {
    scope: &'a Scope,
    bindings: Vec<(NcName, Arc<str>)>,
    levels: Vec<Level>,
    /// Indices into `scope.prefixes` of what was used from the stream.
    pub(crate) inherited: Vec<usize>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(scope: &'a Scope) -> Self {
        Self {
            scope,
            bindings: Vec::new(),
            levels: Vec::new(),
            inherited: Vec::new(),
        }
    }

    /// Enters an element: takes its declarations, resolves its attributes, returns its namespace.
    pub(crate) fn open(
        &mut self,
        prefix: Option<&NcName>,
        attrs: &mut [RawAttr],
        limits: &Limits,
    ) -> Result<Arc<str>, FrameError> {
        unique_as_written(attrs)?;
        let outer = self
            .levels
            .last()
            .map_or(&self.scope.default_ns, |level| &level.default_ns);
        let mut level = Level {
            default_ns: outer.clone(),
            bindings: self.bindings.len(),
        };
        for attr in attrs.iter_mut().filter(|attr| attr.is_declaration()) {
            // rxml guards the xml namespace and empty prefixes, not this name
            if attr.value == rxml::XMLNS_XMLNS {
                return Err(FrameError::NotWellFormed);
            }
            if attr.prefix.is_none() {
                level.default_ns = intern(&attr.value);
            } else if attr.local != "xml" {
                self.bindings
                    .push((attr.local.clone(), intern(&attr.value)));
            }
        }
        if self.bindings.len() + self.scope.prefixes.len() > limits.namespaces_in_scope as usize {
            return Err(FrameError::PolicyViolation(Limit::Namespaces));
        }
        let default_ns = level.default_ns.clone();
        self.levels.push(level);
        let ns = match prefix {
            None => default_ns,
            Some(prefix) => self.resolve(prefix)?,
        };
        for attr in attrs.iter_mut().filter(|attr| !attr.is_declaration()) {
            if let Some(prefix) = &attr.prefix {
                attr.ns = Some(self.resolve(prefix)?);
            }
        }
        unique_as_resolved(attrs)?;
        Ok(ns)
    }

    /// Leaves the element entered last.
    pub(crate) fn close(&mut self) {
        if let Some(level) = self.levels.pop() {
            self.bindings.truncate(level.bindings);
        }
    }

    /// What the outermost element put in scope, as scope for what follows inside it.
    pub(crate) fn into_scope(self, lang: Option<Box<str>>) -> Scope {
        let default_ns = self
            .levels
            .first()
            .map_or_else(|| intern(""), |level| level.default_ns.clone());
        Scope {
            default_ns,
            prefixes: self.bindings.into_boxed_slice(),
            lang,
        }
    }

    fn resolve(&mut self, prefix: &NcName) -> Result<Arc<str>, FrameError> {
        if let Some((_, uri)) = self.bindings.iter().rev().find(|(name, _)| name == prefix) {
            return Ok(uri.clone());
        }
        if prefix == "xml" {
            return Ok(XML.clone());
        }
        let inherited = self
            .scope
            .prefixes
            .iter()
            .position(|(name, _)| name == prefix);
        let at = inherited.ok_or(FrameError::NotWellFormed)?;
        if !self.inherited.contains(&at) {
            self.inherited.push(at);
        }
        Ok(self.scope.prefixes[at].1.clone())
    }
}

/// XML 1.0 §3.1, unique attribute names. Quadratic, bounded by the caps on attributes.
fn unique_as_written(attrs: &[RawAttr]) -> Result<(), FrameError> {
    for (at, attr) in attrs.iter().enumerate() {
        let same = |other: &RawAttr| other.local == attr.local && other.prefix == attr.prefix;
        if attrs[..at].iter().any(same) {
            return Err(FrameError::NotWellFormed);
        }
    }
    Ok(())
}

/// XML namespaces §6.3: the same name through two prefixes.
fn unique_as_resolved(attrs: &[RawAttr]) -> Result<(), FrameError> {
    for (at, attr) in attrs
        .iter()
        .enumerate()
        .filter(|(_, attr)| attr.ns.is_some())
    {
        if attrs[..at]
            .iter()
            .any(|other| other.ns == attr.ns && other.local == attr.local)
        {
            return Err(FrameError::NotWellFormed);
        }
    }
    Ok(())
}
