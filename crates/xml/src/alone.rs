//! A child cut out of its element so that it means the same alone: the namespaces that elements
//! around it declare are declared on it.
//!
//! Works on validated bytes. Refuses to change anything else: what was received is kept as written.

use bytes::Bytes;

use crate::element::{Child, Element};
use crate::names::NS_CLIENT;

/// The bytes of `child`, which is inside `ancestors` (outermost first, the root left out).
pub fn alone(element: &Element, ancestors: &[&Child], child: &Child) -> Bytes {
    let raw = element.child_bytes(child);
    let mut known: Vec<(&[u8], &[u8])> = declarations(raw);
    let own = known.len();
    let around = ancestors
        .iter()
        .rev()
        .map(|ancestor| element.child_bytes(ancestor))
        .chain([&element.bytes[..]]);
    for tag in around {
        for (name, value) in declarations(tag) {
            // The innermost declaration counts.
            if known.iter().all(|(other, _)| *other != name) {
                known.push((name, value));
            }
        }
    }
    let quoted = format!("'{NS_CLIENT}'");
    if known.iter().all(|(name, _)| *name != b"xmlns") {
        // What nobody declares is the stream's.
        known.push((b"xmlns", quoted.as_bytes()));
    }
    let name_end = raw
        .iter()
        .position(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b'>'))
        .unwrap_or(raw.len());
    let (head, tail) = raw.split_at(name_end);
    let mut out = Vec::with_capacity(raw.len() + 64);
    out.extend_from_slice(head);
    for (name, value) in known.split_off(own) {
        out.push(b' ');
        out.extend_from_slice(name);
        out.push(b'=');
        out.extend_from_slice(value);
    }
    out.extend_from_slice(tail);
    Bytes::from(out)
}

/// Namespace declarations of the opening tag that `raw` begins with: name, and value with quotes.
fn declarations(raw: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    let mut rest = raw;
    skip(&mut rest, |b| {
        !b.is_ascii_whitespace() && b != b'>' && b != b'/'
    });
    loop {
        skip(&mut rest, |b| b.is_ascii_whitespace());
        let name = skip(&mut rest, |b| {
            !b.is_ascii_whitespace() && !matches!(b, b'=' | b'>' | b'/')
        });
        if name.is_empty() {
            return found;
        }
        skip(&mut rest, |b| b.is_ascii_whitespace() || b == b'=');
        let Some(&quote) = rest.first() else {
            return found;
        };
        let Some(end) = rest.iter().skip(1).position(|b| *b == quote) else {
            return found;
        };
        let (value, after) = rest.split_at(end + 2);
        rest = after;
        if name == b"xmlns" || name.starts_with(b"xmlns:") {
            found.push((name, value));
        }
    }
}

/// Takes the bytes that fit from the front.
fn skip<'a>(rest: &mut &'a [u8], fits: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest.iter().position(|b| !fits(*b)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Limits, scan};

    /// The first grandchild, alone; and what it is read as then.
    fn cut(xml: &str) -> (String, Element) {
        let bytes = Bytes::copy_from_slice(xml.as_bytes());
        let element = scan(&bytes, &Limits::after_auth()).unwrap();
        let query = &element.header.children[0];
        let child = &query.children[0];
        let out = alone(&element, &[query], child);
        let again = scan(&out, &Limits::internal()).unwrap();
        assert_eq!(again.header.ns, child.ns, "{xml}");
        assert_eq!(again.header.name, child.name, "{xml}");
        (String::from_utf8(out.to_vec()).unwrap(), again)
    }

    #[test]
    fn what_is_declared_around_it_is_declared_on_it() {
        for (xml, expected) in [
            (
                "<iq xmlns='jabber:client'><q xmlns='u:q'><x xmlns='u:x'><y/></x></q></iq>",
                "<x xmlns='u:x'><y/></x>",
            ),
            // In the namespace of what is around it.
            (
                "<iq><q xmlns='u:q'><x>a</x></q></iq>",
                "<x xmlns='u:q'>a</x>",
            ),
            ("<iq><q xmlns='u:q'><x/></q></iq>", "<x xmlns='u:q'/>"),
            (
                "<iq xmlns:p='u:p'><q xmlns='u:q'><p:x a='>'><p:y/></p:x></q></iq>",
                "<p:x xmlns='u:q' xmlns:p='u:p' a='>'><p:y/></p:x>",
            ),
            // The innermost counts; other quotes and white space are kept.
            (
                "<iq xmlns:p='u:1'><q xmlns='u:q' xmlns:p = \"u:'2\" ><x xmlns:p='u:3' p:a='1'/></q></iq>",
                "<x xmlns='u:q' xmlns:p='u:3' p:a='1'/>",
            ),
            (
                "<iq xmlns:p='u:1'><q xmlns='u:q' xmlns:p = \"u:'2\" ><p:x/></q></iq>",
                "<p:x xmlns='u:q' xmlns:p=\"u:'2\"/>",
            ),
        ] {
            assert_eq!(cut(xml).0, expected, "{xml}");
        }
    }

    #[test]
    fn without_any_declaration_it_is_the_streams() {
        let (xml, again) = cut("<iq><p:q xmlns:p='u:p'><x/></p:q></iq>");
        assert_eq!(xml, "<x xmlns:p='u:p' xmlns='jabber:client'/>");
        assert!(again.is("x", NS_CLIENT));
    }

    #[test]
    fn a_child_of_the_root_has_no_ancestors_but_it() {
        let bytes = Bytes::from_static(b"<iq xmlns:p='u:p'><vCard xmlns='v'><p:a/></vCard></iq>");
        let element = scan(&bytes, &Limits::after_auth()).unwrap();
        let out = alone(&element, &[], &element.header.children[0]);
        assert_eq!(out, "<vCard xmlns:p='u:p' xmlns='v'><p:a/></vCard>");
    }
}
