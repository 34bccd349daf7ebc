//! What the fuzz targets call, one function a target: whatever the bytes are, they are read within the
//! limits or refused, and what was read can be written and read again.
//!
//! The stable runner of the corpus (`tests/stories/corpus.rs`) includes this file and calls the same
//! functions. Owns no corpus.

use bytes::Bytes;
use chancery_gateway::sasl::{plain, scram};
use chancery_xml::{Element, Frame, FrameError, Framer, Limits, Splice, scan};
use chancery_xmpp::mam::{self, Preferences, Query};
use chancery_xmpp::stanza::{StanzaHeader, kind_of};
use chancery_xmpp::strip::strip;
use chancery_xmpp::{Condition, StanzaError, datetime, exempt, forms, jid, ns, rsm, tree};

/// A fuzz target: its name, and what it calls.
pub type Target = (&'static str, fn(&[u8]));

/// All targets; each has a file in `fuzz_targets` and a directory in `corpus`.
pub const TARGETS: &[Target] = &[
    ("archive_query", archive_query),
    ("jid", jid),
    ("sasl", sasl),
    ("stanza", stanza),
    ("stream", stream),
];

const HEADER: &[u8] = b"<stream:stream xmlns='jabber:client' xmlns:q='urn:q' \
    xmlns:stream='http://etherx.jabber.org/streams' xml:lang='de'>";

/// A stream, its header and its frames: chunking changes nothing, and what is let through can be
/// scanned, edited and scanned again. The first byte chooses limits, length of chunks, and whether a
/// header of ours comes first.
pub fn stream(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    let limits = if choice & 1 == 0 {
        Limits::after_auth()
    } else {
        Limits::before_auth()
    };
    let framed = choice & 2 == 0;
    let input = if framed {
        [HEADER, rest].concat()
    } else {
        rest.to_vec()
    };
    let whole = frames(limits, &input, input.len().max(1));
    let chunk = usize::from(choice >> 2) % 13 + 1;
    assert_eq!(whole, frames(limits, &input, chunk), "chunks of {chunk}");
    for frame in &whole.0 {
        match frame {
            Frame::Open(header) => {
                let _ = header.check();
            }
            Frame::Element(element) if framed => edit(element, &Limits::internal()),
            Frame::Element(_) | Frame::Close => {}
        }
    }
}

fn frames(limits: Limits, input: &[u8], chunk: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut framer = Framer::new(limits);
    let mut frames = Vec::new();
    for bytes in input.chunks(chunk) {
        framer.push(bytes);
        loop {
            match framer.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn edit(element: &Element, limits: &Limits) {
    let again = scan(&element.bytes, limits);
    assert_eq!(again.as_ref(), Ok(element), "a framed element stands alone");
    let mut splice = Splice::new(element);
    for index in 0..element.header.children.len() {
        splice.remove_child(index);
    }
    splice
        .set_attr("from", Some("a@b/<'\"&>"))
        .set_attr("id", None)
        .ensure_ns("jabber:client");
    let bytes = splice.append_child("<x xmlns='u'/>").finish();
    let spliced = scan(&bytes, limits)
        .expect("a spliced element is well-formed")
        .header;
    assert_eq!(spliced.from.as_deref(), Some("a@b/<'\"&>"));
    assert_eq!(spliced.id, None);
    assert!(spliced.declares_ns);
    assert_eq!(spliced.children.len(), 1);
    assert_eq!(spliced.has_text, element.header.has_text);
}

/// One stanza of a client: its header, what only a server may say in it, whether it is content, and
/// the answer to it.
pub fn stanza(data: &[u8]) {
    let Ok(element) = scan(&Bytes::copy_from_slice(data), &Limits::after_auth()) else {
        return;
    };
    let local = |domain: &str| domain == "example.test";
    let removed = strip(&element, &local);
    let header = match StanzaHeader::read(&element) {
        Ok(header) => header,
        Err(error) => {
            assert!(matches!(
                error.condition,
                Condition::BadRequest | Condition::JidMalformed
            ));
            return;
        }
    };
    assert_eq!(kind_of(&element), Some(header.kind()));
    if exempt::is_exempt(&element, &header) {
        assert!(!header.has_body && !header.has_status && !element.header.has_text);
        assert!(!header.is_kept());
    }
    if let Ok(removed) = removed {
        let mut splice = Splice::new(&element);
        for index in &removed {
            splice.remove_child(*index);
        }
        let bytes = splice
            .set_attr("from", Some("alice@example.test/<&>"))
            .ensure_ns(ns::CLIENT)
            .finish();
        let again = scan(&bytes, &Limits::internal()).expect("a stripped stanza is well-formed");
        assert_eq!(strip(&again, &local), Ok(Vec::new()), "stripped at once");
        assert_eq!(again.header.from.as_deref(), Some("alice@example.test/<&>"));
        let left = element.header.children.len() - removed.len();
        assert_eq!(again.header.children.len(), left);
        let kept = StanzaHeader::read(&again).expect("a stripped stanza is a stanza");
        if removed.is_empty() {
            let from = header.from.clone();
            assert_eq!(StanzaHeader { from, ..kept }, header);
        }
    }
    answered(&element);
}

fn answered(element: &Element) {
    let reply = StanzaError::new(Condition::ServiceUnavailable).reply(element, None, None);
    if let Some(reply) = reply {
        let reply = scan(&reply, &Limits::internal()).expect("an answer is well-formed");
        assert_eq!(reply.header.to, element.header.from);
        assert_eq!(reply.header.id, element.header.id);
        let again = StanzaError::new(Condition::BadRequest).reply(&reply, None, None);
        assert_eq!(again, None, "an answer is never answered");
    }
}

/// PLAIN, or SCRAM's two messages with a line end between them. Nobody knows the keys, so the second
/// one never succeeds. The first byte chooses.
pub fn sasl(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    if choice & 1 == 0 {
        if let Ok(message) = plain::parse(rest) {
            assert!(!message.username.is_empty() && !message.password.is_empty());
            let parts = [message.authzid, message.username, message.password];
            assert_eq!(parts.join("\0").as_bytes(), rest);
        }
        return;
    }
    let hash = if choice & 2 == 0 {
        scram::Hash::Sha256
    } else {
        scram::Hash::Sha1
    };
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (first, last) = rest.split_at(end.unwrap_or(rest.len()));
    let Ok(first) = scram::ClientFirst::parse(first) else {
        return;
    };
    assert!(!first.username.is_empty() && first.username.len() <= 1023);
    let keys = scram::Keys {
        hash,
        salt: vec![1; 16],
        iterations: 4096,
        stored_key: vec![2; hash.output_bytes()],
        server_key: vec![3; hash.output_bytes()],
    };
    let (exchange, challenge) = scram::Exchange::challenge(first, keys, "server", b"channel");
    assert!(challenge.starts_with("r=") && challenge.ends_with(",i=4096"));
    assert!(exchange.finish(last.get(1..).unwrap_or_default()).is_err());
}

/// An address: its normal form is one, and it is no longer than addresses are.
pub fn jid(data: &[u8]) {
    let Ok(raw) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(jid) = jid::parse(raw) else {
        return;
    };
    assert_eq!(jid::parse(jid.as_str()).as_ref(), Ok(&jid));
    assert!(jid.as_str().len() <= jid::JID_BYTES_MAX);
    let domain = jid.domain().as_str();
    assert!(!jid::is_ip_literal(domain) && !domain.ends_with('.'));
    assert_eq!(jid::parse_full(raw).is_ok(), jid.is_full());
    assert_eq!(jid::parse_bare(raw).is_ok(), !jid.is_full());
}

/// What a client says to its archive: queries with their forms and pages (XEP-0313, XEP-0004,
/// XEP-0059), times (XEP-0082) and preferences (XEP-0441).
pub fn archive_query(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = datetime::parse(text);
    }
    let Ok(element) = scan(&Bytes::copy_from_slice(data), &Limits::after_auth()) else {
        return;
    };
    let Ok(root) = tree::tree(&element) else {
        return;
    };
    for child in std::iter::once(&root).chain(root.children()) {
        let _ = rsm::Request::read(child);
        let _ = Preferences::read(child);
        let _ = forms::submitted(child, ns::MAM);
        if let Ok(query) = Query::read(child) {
            assert!(query.ids.len() <= mam::IDS_MAX);
            assert!(query.page.index.is_none_or(|index| index == 0));
            assert_ne!(query.page.after.as_deref(), Some(""));
        }
    }
}
