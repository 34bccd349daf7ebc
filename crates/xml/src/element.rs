//! One complete top-level element: its bytes, and the header that decisions need.
//!
//! Refuses to be a tree: two levels of names, attributes and places, the rest stays bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::write::unescape_text;

/// A complete, self-contained top-level element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// As received, plus prefixes and `xml:lang` that only the stream's opening tag declared.
    pub bytes: Bytes,
    pub header: Header,
}

/// What is known of a top-level element without a tree. Values are unescaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Local name.
    pub name: Box<str>,
    pub ns: Arc<str>,
    pub to: Option<Box<str>>,
    pub from: Option<Box<str>>,
    pub id: Option<Box<str>>,
    pub type_: Option<Box<str>>,
    /// `xml:lang` of the element or else of the stream.
    pub lang: Option<Box<str>>,
    /// All other attributes, namespace declarations apart.
    pub attrs: Vec<Attr>,
    pub children: Vec<Child>,
    /// Character data directly inside the root, white space too.
    pub has_text: bool,
    /// The root declares a default namespace; otherwise unprefixed names inherit the stream's.
    pub declares_ns: bool,
    pub(crate) spans: Spans,
}

/// Places in the bytes that splice needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans {
    /// Behind the root's name.
    pub(crate) name_end: u32,
    /// Behind the root's opening tag, its `>` included.
    pub(crate) open_end: u32,
    /// Before the root's closing tag; equal to the length when there is none.
    pub(crate) content_end: u32,
    pub(crate) self_closing: bool,
    /// `to from id type xml:lang`, each from the white space before it.
    pub(crate) known: [Option<(u32, u32)>; 5],
}

/// An attribute of an element; `ns` is there when its name had a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ns: Option<Arc<str>>,
    pub name: Box<str>,
    pub value: Box<str>,
}

/// A child or grandchild of the top-level element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    pub ns: Arc<str>,
    pub name: Box<str>,
    /// Place in the element's bytes, from `<` to behind the last `>`.
    pub span: Range<u32>,
    /// All attributes, namespace declarations apart.
    pub attrs: Vec<Attr>,
    /// Character data directly inside, white space too.
    pub has_text: bool,
    pub has_elements: bool,
    /// Elements inside, for children of the top-level element; empty below.
    pub children: Vec<Child>,
}

impl Element {
    pub fn is(&self, name: &str, ns: &str) -> bool {
        &*self.header.name == name && &*self.header.ns == ns
    }

    /// The first child with this name and namespace.
    pub fn child(&self, name: &str, ns: &str) -> Option<&Child> {
        self.header.children.iter().find(|child| child.is(name, ns))
    }

    /// The child as it stands; prefixes it uses may be declared on the root.
    pub fn child_bytes(&self, child: &Child) -> &[u8] {
        self.bytes
            .get(child.span.start as usize..child.span.end as usize)
            .unwrap_or_default()
    }

    /// Character data directly inside the root.
    pub fn text(&self) -> String {
        let spans = &self.header.spans;
        if spans.self_closing {
            return String::new();
        }
        self.text_between(spans.open_end, spans.content_end, &self.header.children)
    }

    /// Character data directly inside a child.
    pub fn child_text(&self, child: &Child) -> String {
        if !child.has_text {
            return String::new();
        }
        let raw = self.child_bytes(child);
        // validated: quotes are the only place where an opening tag may hold a `>`
        let mut quote = None;
        let open = raw.iter().position(|&b| match (quote, b) {
            (Some(q), b) if q == b => {
                quote = None;
                false
            }
            (None, b'"' | b'\'') => {
                quote = Some(b);
                false
            }
            (None, b'>') => true,
            _ => false,
        });
        let Some(close) = memchr::memrchr(b'<', raw) else {
            return String::new();
        };
        let start = child.span.start + offset(open.map_or(0, |at| at + 1));
        let end = child.span.start + offset(close);
        if child.has_elements && child.children.is_empty() {
            return String::new(); // a grandchild with elements of its own: not looked into
        }
        self.text_between(start, end, &child.children)
    }

    fn text_between(&self, start: u32, end: u32, without: &[Child]) -> String {
        let mut out = String::new();
        let mut at = start;
        for child in without {
            out.push_str(&self.unescaped(at, child.span.start));
            at = child.span.end;
        }
        out.push_str(&self.unescaped(at, end));
        out
    }

    fn unescaped(&self, start: u32, end: u32) -> String {
        let raw = self
            .bytes
            .get(start as usize..end as usize)
            .unwrap_or_default();
        unescape_text(std::str::from_utf8(raw).unwrap_or_default()).into_owned()
    }
}

impl Header {
    /// Another unprefixed attribute of the root, such as `mechanism` or `h`.
    pub fn attr(&self, name: &str) -> Option<&str> {
        find(&self.attrs, name)
    }
}

impl Child {
    pub fn is(&self, name: &str, ns: &str) -> bool {
        &*self.name == name && &*self.ns == ns
    }

    /// An unprefixed attribute.
    pub fn attr(&self, name: &str) -> Option<&str> {
        find(&self.attrs, name)
    }
}

fn find<'a>(attrs: &'a [Attr], name: &str) -> Option<&'a str> {
    attrs
        .iter()
        .find(|attr| attr.ns.is_none() && &*attr.name == name)
        .map(|attr| &*attr.value)
}

/// Offsets fit: the cap on a frame is a `u32`.
pub(crate) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
