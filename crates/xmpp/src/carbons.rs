//! The wrapper of a carbon copy (XEP-0280 §7, §8; XEP-0297).
//!
//! Refuses to decide who gets one: that is `routing`.

use bytes::Bytes;
use chancery_xml::{Element, Splice, push_attr};

use crate::ns;

/// Which side of the conversation is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Received,
    Sent,
}

/// Wraps a message for another session of the same account.
///
/// `stamp` is the time of a copy that comes late (XEP-0297 §3).
pub fn wrap(
    direction: Direction,
    original: &Element,
    own_bare: &str,
    to_full: &str,
    stamp: Option<&str>,
) -> Bytes {
    // inside a wrapper the stream's default namespace is another
    let inner = Splice::new(original).ensure_ns(ns::CLIENT).finish();
    let name = match direction {
        Direction::Received => "received",
        Direction::Sent => "sent",
    };
    let mut head = String::with_capacity(320);
    head.push_str("<message");
    // XEP-0280 §7: from the own bare JID, same type as the original
    push_attr(&mut head, "from", own_bare);
    push_attr(&mut head, "to", to_full);
    if let Some(type_) = &original.header.type_ {
        push_attr(&mut head, "type", type_);
    }
    head.push_str("><");
    head.push_str(name);
    push_attr(&mut head, "xmlns", ns::CARBONS);
    head.push_str("><forwarded");
    push_attr(&mut head, "xmlns", ns::FORWARD);
    head.push('>');
    if let Some(stamp) = stamp {
        head.push_str("<delay");
        push_attr(&mut head, "xmlns", ns::DELAY);
        push_attr(&mut head, "stamp", stamp);
        head.push_str("/>");
    }
    let tail = format!("</forwarded></{name}></message>");
    let mut out = Vec::with_capacity(head.len() + inner.len() + tail.len());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&inner);
    out.extend_from_slice(tail.as_bytes());
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use chancery_xml::{Limits, scan};

    #[test]
    fn the_original_is_inside_unchanged() {
        let raw = Bytes::from_static(
            b"<message from='b@y/r' to='a@x' type='chat'><body>x</body></message>",
        );
        let original = scan(&raw, &Limits::after_auth()).unwrap();
        let stamp = "2026-01-01T00:00:00Z";
        let wrapped = wrap(Direction::Received, &original, "a@x", "a@x/2", Some(stamp));
        let read = scan(&wrapped, &Limits::after_auth()).unwrap();
        assert_eq!(read.header.from.as_deref(), Some("a@x"));
        assert_eq!(read.header.to.as_deref(), Some("a@x/2"));
        assert_eq!(read.header.type_.as_deref(), Some("chat"));
        let received = &read.header.children[0];
        assert!(received.is("received", ns::CARBONS));
        assert!(received.children[0].is("forwarded", ns::FORWARD));
        let text = std::str::from_utf8(&wrapped).unwrap();
        assert!(text.contains(
            "stamp='2026-01-01T00:00:00Z'/><message xmlns='jabber:client' from='b@y/r' to='a@x' \
             type='chat'><body>x</body></message></forwarded>"
        ));
    }
}
