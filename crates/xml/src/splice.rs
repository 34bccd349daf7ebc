//! Edits an element by the places of its parts: stamps addresses, removes and adds children.
//!
//! Everything not edited stays as received, byte for byte. Refuses to know why.

use bytes::Bytes;

use crate::element::Element;
use crate::write::push_attr;

/// Attributes of a stanza that the server may set, in the order of the header's places.
const KNOWN: [&str; 5] = ["to", "from", "id", "type", "xml:lang"];

/// Edits of one element, applied by [`Splice::finish`].
#[derive(Debug)]
pub struct Splice<'a> {
    element: &'a Element,
    attrs: [Option<Option<Box<str>>>; 5],
    removed: Vec<usize>,
    appended: Vec<u8>,
    ns: Option<Box<str>>,
}

/// Replaces a place by other bytes.
struct Edit {
    start: usize,
    end: usize,
    with: Vec<u8>,
}

impl<'a> Splice<'a> {
    pub fn new(element: &'a Element) -> Self {
        Self {
            element,
            attrs: Default::default(),
            removed: Vec::new(),
            appended: Vec::new(),
            ns: None,
        }
    }

    /// Sets or, with `None`, removes one of `to`, `from`, `id`, `type` and `xml:lang` of the root.
    ///
    /// Leaves the attribute as written when it has that value already. Any other name is ignored:
    /// the server has no business with it.
    pub fn set_attr(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        if let Some(at) = KNOWN.iter().position(|known| *known == name) {
            let header = &self.element.header;
            let present = header.spans.known[at].is_some();
            let current = match at {
                0 => &header.to,
                1 => &header.from,
                2 => &header.id,
                3 => &header.type_,
                _ => &header.lang,
            };
            let same = match value {
                None => !present,
                Some(value) => present && current.as_deref() == Some(value),
            };
            self.attrs[at] = (!same).then(|| value.map(Box::from));
        }
        self
    }

    /// Removes the child at this index of the header's children.
    pub fn remove_child(&mut self, index: usize) -> &mut Self {
        if !self.removed.contains(&index) {
            self.removed.push(index);
        }
        self
    }

    /// Adds raw XML behind the last child. It must declare its own namespaces.
    pub fn append_child(&mut self, raw: impl AsRef<[u8]>) -> &mut Self {
        self.appended.extend_from_slice(raw.as_ref());
        self
    }

    /// Writes `xmlns` on the root when it declares none, for a place with another default.
    pub fn ensure_ns(&mut self, ns: &str) -> &mut Self {
        self.ns = (!self.element.header.declares_ns).then(|| ns.into());
        self
    }

    /// The edited element.
    pub fn finish(&self) -> Bytes {
        let bytes = &self.element.bytes;
        let edits = self.edits();
        if edits.is_empty() {
            return bytes.clone();
        }
        let added: usize = edits.iter().map(|edit| edit.with.len()).sum();
        let mut out = Vec::with_capacity(bytes.len() + added);
        let mut at = 0;
        for edit in &edits {
            out.extend_from_slice(bytes.get(at..edit.start).unwrap_or_default());
            out.extend_from_slice(&edit.with);
            at = edit.end;
        }
        out.extend_from_slice(bytes.get(at..).unwrap_or_default());
        Bytes::from(out)
    }

    /// All edits in order of place.
    fn edits(&self) -> Vec<Edit> {
        let header = &self.element.header;
        let spans = &header.spans;
        let mut edits = Vec::with_capacity(4);
        let mut fresh = String::new();
        if let Some(ns) = &self.ns {
            push_attr(&mut fresh, "xmlns", ns);
        }
        for (at, change) in self.attrs.iter().enumerate() {
            let Some(value) = change else { continue };
            let mut with = String::new();
            if let Some(value) = value {
                push_attr(&mut with, KNOWN[at], value);
            }
            match spans.known[at] {
                Some((start, end)) => edits.push(edit(start, end, with.into_bytes())),
                None => fresh.push_str(&with),
            }
        }
        if !fresh.is_empty() {
            edits.push(edit(spans.name_end, spans.name_end, fresh.into_bytes()));
        }
        for child in self
            .removed
            .iter()
            .filter_map(|&index| header.children.get(index))
        {
            edits.push(edit(child.span.start, child.span.end, Vec::new()));
        }
        if !self.appended.is_empty() {
            edits.push(self.append());
        }
        // stable: what is inserted at the end of the name stays before an attribute there
        edits.sort_by_key(|edit| (edit.start, edit.end));
        edits
    }

    fn append(&self) -> Edit {
        let spans = &self.element.header.spans;
        if !spans.self_closing {
            return edit(spans.content_end, spans.content_end, self.appended.clone());
        }
        let name = self
            .element
            .bytes
            .get(1..spans.name_end as usize)
            .unwrap_or_default();
        let mut with = Vec::with_capacity(self.appended.len() + name.len() + 4);
        with.push(b'>');
        with.extend_from_slice(&self.appended);
        with.extend_from_slice(b"</");
        with.extend_from_slice(name);
        with.push(b'>');
        edit(spans.open_end - 2, spans.open_end, with)
    }
}

fn edit(start: u32, end: u32, with: Vec<u8>) -> Edit {
    Edit {
        start: start as usize,
        end: end as usize,
        with,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Limits, scan};

    fn element(xml: &str) -> Element {
        scan(
            &Bytes::copy_from_slice(xml.as_bytes()),
            &Limits::after_auth(),
        )
        .unwrap()
    }

    fn check(xml: &str, edit: impl FnOnce(&mut Splice), expected: &str) {
        let element = element(xml);
        let mut splice = Splice::new(&element);
        edit(&mut splice);
        assert_eq!(std::str::from_utf8(&splice.finish()).unwrap(), expected);
    }

    #[test]
    fn stamps_from_over_whatever_was_there() {
        let from = |s: &mut Splice| {
            s.set_attr("from", Some("a@b/c'd"));
        };
        check("<iq/>", from, "<iq from='a@b/c&apos;d'/>");
        check(
            "<iq \n from = \"x\" id='1'/>",
            from,
            "<iq from='a@b/c&apos;d' id='1'/>",
        );
        check(
            "<iq p:from='x' xmlns:p='u'/>",
            from,
            "<iq from='a@b/c&apos;d' p:from='x' xmlns:p='u'/>",
        );
    }

    #[test]
    fn leaves_equal_values_as_written() {
        check(
            "<iq from='a&#64;b'/>",
            |s| {
                s.set_attr("from", Some("a@b")).set_attr("to", None);
            },
            "<iq from='a&#64;b'/>",
        );
    }

    #[test]
    fn removes_and_appends_children() {
        check(
            "<message id='1'><a/><b>x</b><a/></message>",
            |s| {
                s.remove_child(0)
                    .remove_child(2)
                    .append_child("<z/>")
                    .set_attr("id", None);
            },
            "<message><b>x</b><z/></message>",
        );
        check(
            "<c:message xmlns:c='jabber:client'/>",
            |s| {
                s.append_child("<z/>").ensure_ns("jabber:client");
            },
            "<c:message xmlns='jabber:client' xmlns:c='jabber:client'><z/></c:message>",
        );
        check(
            "<m ></m >",
            |s| {
                s.append_child("<z/>");
            },
            "<m ><z/></m >",
        );
    }

    #[test]
    fn writes_the_namespace_only_where_none_is_declared() {
        let ensure = |s: &mut Splice| {
            s.ensure_ns("jabber:client");
        };
        check("<message/>", ensure, "<message xmlns='jabber:client'/>");
        check(
            "<message xmlns=\"jabber:client\"/>",
            ensure,
            "<message xmlns=\"jabber:client\"/>",
        );
    }
}
