//! Fuzzes the framer: chunking changes nothing, and what it lets through can be scanned, edited
//! and scanned again.
//!
//! Owns no corpus. The first byte of the input chooses limits and the length of chunks.
#![no_main]

use bytes::Bytes;
use chancery_xml::{Element, Frame, FrameError, Framer, Limits, Splice, scan};
use libfuzzer_sys::fuzz_target;

const HEADER: &[u8] = b"<stream:stream xmlns='jabber:client' xmlns:q='urn:q' \
    xmlns:stream='http://etherx.jabber.org/streams' xml:lang='de'>";

fn run(limits: Limits, input: &[u8], chunk: usize) -> (Vec<Frame>, Option<FrameError>) {
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
    assert_eq!(
        again.as_ref(),
        Ok(element),
        "a framed element is self-contained"
    );
    let mut splice = Splice::new(element);
    for index in 0..element.header.children.len() {
        splice.remove_child(index);
    }
    splice
        .set_attr("from", Some("a@b/<'\"&>"))
        .set_attr("id", None)
        .ensure_ns("jabber:client");
    let bytes: Bytes = splice.append_child("<x xmlns='u'/>").finish();
    let spliced = scan(&bytes, limits)
        .expect("a spliced element is well-formed")
        .header;
    assert_eq!(spliced.from.as_deref(), Some("a@b/<'\"&>"));
    assert_eq!(spliced.id, None);
    assert!(spliced.declares_ns);
    assert_eq!(spliced.children.len(), 1);
    assert_eq!(spliced.has_text, element.header.has_text);
}

fuzz_target!(|data: &[u8]| {
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
    let whole = run(limits, &input, input.len().max(1));
    assert_eq!(
        whole,
        run(limits, &input, usize::from(choice >> 2) % 13 + 1)
    );
    if framed {
        for frame in &whole.0 {
            if let Frame::Element(element) = frame {
                edit(element, &Limits::internal());
            }
        }
    }
});
