//! Hostile input and its right answer: the rows A1 to A19 that concern XML.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod limits;

use bytes::Bytes;

use crate::{Element, Frame, FrameError, Framer, Limits, Splice, scan};

const HDR: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='example.test' version='1.0'>";

fn frames(limits: Limits, input: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut framer = Framer::new(limits);
    framer.push(input);
    let mut frames = Vec::new();
    while let Some(frame) = framer.next()? {
        frames.push(frame);
    }
    Ok(frames)
}

/// Frames behind a valid stream header, the header's own frame left out.
fn inside(input: impl AsRef<[u8]>) -> Result<Vec<Frame>, FrameError> {
    let mut all = HDR.as_bytes().to_vec();
    all.extend_from_slice(input.as_ref());
    Ok(frames(Limits::after_auth(), &all)?.split_off(1))
}

fn one(input: impl AsRef<[u8]>) -> Element {
    let mut frames = inside(input).unwrap();
    assert_eq!(frames.len(), 1, "{frames:?}");
    match frames.pop() {
        Some(Frame::Element(element)) => element,
        other => panic!("{other:?}"),
    }
}

fn refused(input: impl AsRef<[u8]>, error: FrameError) {
    let input = input.as_ref();
    let shown = String::from_utf8_lossy(&input[..input.len().min(80)]);
    assert_eq!(inside(input), Err(error), "{shown}");
}

fn not_a_header(input: impl AsRef<[u8]>, error: FrameError) {
    let input = input.as_ref();
    assert_eq!(
        frames(Limits::before_auth(), input),
        Err(error),
        "{input:?}"
    );
}

#[test]
fn a1_a2_a3_no_document_types() {
    let bomb = "<!DOCTYPE s [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]>";
    not_a_header(format!("{bomb}{HDR}&b;"), FrameError::RestrictedXml);
    let remote = format!("<?xml version='1.0'?><!DOCTYPE s SYSTEM \"http://oob.test/x\">{HDR}");
    not_a_header(remote, FrameError::RestrictedXml);
    refused(bomb, FrameError::RestrictedXml);
    refused(
        format!("<message>{bomb}</message>"),
        FrameError::RestrictedXml,
    );
}

#[test]
fn a4_no_comments_no_instructions() {
    refused(
        "<message><!-- c --><body>x</body></message>",
        FrameError::RestrictedXml,
    );
    refused("<!-- c -->", FrameError::RestrictedXml);
    refused("<?pi x?>", FrameError::RestrictedXml);
    refused("<message><?pi x?></message>", FrameError::RestrictedXml);
    not_a_header("<?xml-stylesheet href='x'?><a/>", FrameError::RestrictedXml);
}

#[test]
fn a5_no_foreign_entities_no_illegal_references() {
    refused(
        "<message><body>&nbsp;</body></message>",
        FrameError::RestrictedXml,
    );
    refused("<message to='&nbsp;'/>", FrameError::RestrictedXml);
    for reference in [
        "&#0;",
        "&#8;",
        "&#xFFFE;",
        "&#xD800;",
        "&#x110000;",
        "&;",
        "&#;",
        "& ",
    ] {
        refused(
            format!("<message><body>{reference}</body></message>"),
            FrameError::NotWellFormed,
        );
        refused(
            format!("<message to='{reference}'/>"),
            FrameError::NotWellFormed,
        );
    }
    let amp = one("<message><body>&amp;&lt;&gt;&apos;&quot;&#65;&#x42;</body></message>");
    assert_eq!(amp.child_text(&amp.header.children[0]), "&<>'\"AB");
}

#[test]
fn a6_no_invalid_utf8_anywhere() {
    let bad: [&[u8]; 6] = [
        b"\xC0\xBC",
        b"\xE0\x80\xBC",
        b"\xED\xA0\x80",
        b"\xF4\x90\x80\x80",
        b"\x80",
        b"\xEF\xBF\xBE", // U+FFFE is no XML character
    ];
    for bytes in bad {
        for (before, after) in [
            ("<message><body>", "</body></message>"),
            ("<message to='", "'/>"),
            ("<message><a", "/></message>"),
            ("<message a", "=''/>"),
            ("<message><a><![CDATA[", "]]></a></message>"),
        ] {
            refused(
                [before.as_bytes(), bytes, after.as_bytes()].concat(),
                FrameError::NotWellFormed,
            );
        }
    }
    refused(b"<message>\x01</message>", FrameError::NotWellFormed);
}

#[test]
fn a8_split_characters_are_put_together() {
    let stanza = "<message><body>\u{1F600}\u{e9}</body></message>";
    let mut framer = Framer::new(Limits::after_auth());
    let mut got = Vec::new();
    for byte in [HDR, stanza].concat().bytes() {
        framer.push(&[byte]);
        got.extend(framer.next().unwrap());
    }
    let Some(Frame::Element(element)) = got.pop() else {
        panic!("{got:?}")
    };
    assert_eq!(element.bytes, stanza);
}

#[test]
fn a9_a_namespace_is_compared_whole() {
    let ns = |value: &str| one(format!("<message xmlns='{value}'/>")).header.ns;
    assert_eq!(&*ns("jabber:client&#10;message"), "jabber:client\nmessage");
    assert_eq!(&*ns("jabber:client#"), "jabber:client#");
    assert_eq!(&*ns("jabber:&#99;lient"), "jabber:client");
    refused(
        "<message xmlns='jabber:client\x01message'/>",
        FrameError::NotWellFormed,
    );
}

#[test]
fn a10_values_cannot_break_out() {
    let raw = "<message id=\"&quot;/&gt;&lt;message from='ceo@example.test'&gt;\"/>";
    let element = one(raw);
    let id = "\"/><message from='ceo@example.test'>";
    assert_eq!(element.header.id.as_deref(), Some(id));
    let moved = scan(&Bytes::from_static(b"<iq/>"), &Limits::after_auth()).unwrap();
    let bytes = Splice::new(&moved).set_attr("id", Some(id)).finish();
    assert_eq!(
        scan(&bytes, &Limits::after_auth())
            .unwrap()
            .header
            .id
            .as_deref(),
        Some(id)
    );
}

#[test]
fn a12_a_prefixed_stanza_is_a_stanza() {
    let element =
        one("<c:message xmlns:c='jabber:client' to='a@x'><c:body>x</c:body><body/></c:message>");
    assert!(element.is("message", "jabber:client"));
    assert_eq!(element.header.to.as_deref(), Some("a@x"));
    assert!(element.header.children[0].is("body", "jabber:client"));
    assert!(element.header.children[1].is("body", "jabber:client"));
    assert!(!element.header.declares_ns);
}

#[test]
fn a14_names_are_unique_bound_and_not_reserved() {
    for input in [
        "<message to='a@x' to='b@x'/>",
        "<message to='a@x' xmlns:p='u' xmlns:p='u'/>",
        "<message xmlns='jabber:client' xmlns='jabber:client'/>",
        "<message xmlns:p='u' xmlns:q='u' p:k='' q:k=''/>",
        "<message xmlns:p='u'><a xmlns:q='u' q:k='' p:k=''/></message>",
        "<message xmlns:p=''/>",
        "<message xmlns:xml='urn:x'/>",
        "<message xmlns:p='http://www.w3.org/XML/1998/namespace'/>",
        "<message xmlns='http://www.w3.org/XML/1998/namespace'/>",
        "<message xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<message xmlns:p='http://www.w3.org/2000/xmlns/'/>",
        "<message xmlns:xmlns='u'/>",
        "<xmlns:message/>",
        "<p:message/>",
        "<message p:k=''/>",
        "<message><a xmlns:p='u'/><p:b/></message>",
        "<a:b:c xmlns:a='u'/>",
        "<:a/>",
        "<a:/>",
        "<message a:1b='' xmlns:a='u'/>",
        "<1a/>",
        "<message></iq>",
        "<message><a></message></a>",
        "<message a/>",
        "<message a=b/>",
        "<message a='1'b='2'/>",
        "<message a='<'/>",
        "<message>]]></message>",
        "<message/ >",
        "< message/>",
        "<message><![cdata[x]]></message>"
            .replace("[cdata[", "[CDATA [")
            .as_str(),
    ] {
        let error = inside(input).expect_err(input);
        assert!(
            matches!(error, FrameError::NotWellFormed | FrameError::RestrictedXml),
            "{input}: {error:?}"
        );
    }
    // the same attribute in no namespace and in one, and a rebound prefix, are fine
    one("<message k='' xmlns:p='u' p:k=''><a xmlns:p='v' p:k=''/></message>");
    one("<message xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:lang='de'/>");
}

#[test]
fn a15_utf8_only_and_the_declaration_first() {
    let utf16 = "<?xml version='1.0' encoding='UTF-16'?>";
    let stream = HDR.trim_start_matches("<?xml version='1.0'?>");
    not_a_header(format!("{utf16}{stream}"), FrameError::UnsupportedEncoding);
    not_a_header(b"\xFF\xFE<\0?\0", FrameError::UnsupportedEncoding);
    not_a_header(b"\xFE\xFF\0<\0?", FrameError::UnsupportedEncoding);
    not_a_header(format!(" {HDR}"), FrameError::NotWellFormed);
    not_a_header(
        format!("<?xml version='1.1'?>{stream}"),
        FrameError::RestrictedXml,
    );
    not_a_header(
        format!("<?xml version='1.0'?>text{stream}"),
        FrameError::NotWellFormed,
    );
    refused(HDR, FrameError::NotWellFormed);
    refused(
        "<message><?xml version='1.0'?></message>",
        FrameError::NotWellFormed,
    );
    let declared = format!("<?xml version=\"1.0\" encoding='utf-8' ?>\r\n{stream}");
    assert_eq!(
        frames(Limits::before_auth(), declared.as_bytes())
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        frames(Limits::before_auth(), format!("\n {stream}").as_bytes())
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a16_other_protocols_fail_at_the_first_byte() {
    for input in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01",
        &[0; 64],
    ] {
        not_a_header(input, FrameError::NotWellFormed);
        not_a_header(&input[..1], FrameError::NotWellFormed);
    }
}

#[test]
fn a17_only_elements_between_elements() {
    refused("<message></message>text<message/>", FrameError::BadFormat);
    refused("</message>text<message/>", FrameError::NotWellFormed);
    refused("<message/><![CDATA[x]]>", FrameError::RestrictedXml);
    let foreign = one("<foo xmlns='urn:x'/>");
    assert!(foreign.is("foo", "urn:x"));
    assert_eq!(inside(" \r\n\t").unwrap(), []);
    assert_eq!(inside("</stream:stream >").unwrap(), [Frame::Close]);
    refused("</stream:stream><message/>", FrameError::NotWellFormed);
    refused("</stream>", FrameError::NotWellFormed);
}

#[test]
fn a19_the_header_is_told_not_judged() {
    let open = |input: &str| match frames(Limits::before_auth(), input.as_bytes())
        .map(|mut f| f.remove(0))
    {
        Ok(Frame::Open(header)) => header,
        other => panic!("{other:?}"),
    };
    let header = open(HDR);
    assert_eq!(header.check(), Ok(()));
    assert_eq!(header.version.as_deref(), Some("1.0"));
    assert_eq!(header.to.as_deref(), Some("example.test"));
    assert_eq!(&*header.default_ns, "jabber:client");
    let header = open(
        &HDR.replace("jabber:client", "jabber:server")
            .replace("version='1.0'>", "xml:lang='de'>"),
    );
    assert_eq!(&*header.default_ns, "jabber:server");
    assert_eq!((header.version, header.lang.as_deref()), (None, Some("de")));
    let strange = open(&HDR.replace("etherx.jabber.org", "etherx.jabber.example"));
    assert_eq!(strange.check(), Err(FrameError::InvalidNamespace));
    let plain = open("<stream xmlns='http://etherx.jabber.org/streams'>");
    assert_eq!(plain.check(), Err(FrameError::BadNamespacePrefix));
    let other = open("<s:open xmlns:s='http://etherx.jabber.org/streams'>");
    assert_eq!(other.check(), Err(FrameError::BadFormat));
    let unbound = frames(
        Limits::before_auth(),
        b"<stream:stream xmlns='jabber:client'>",
    );
    assert_eq!(unbound, Err(FrameError::NotWellFormed));
}

#[test]
fn what_the_stream_declared_is_written_onto_the_stanza() {
    let header = HDR.replace(" to=", " xml:lang='d&apos;e' xmlns:x='urn:x&amp;y' to=");
    let stanza = "<message to='a'><x:y a='1'><z>1</z></x:y><b/></message>";
    let all = frames(Limits::after_auth(), [&header, stanza].concat().as_bytes()).unwrap();
    let Frame::Element(element) = &all[1] else {
        panic!("{all:?}")
    };
    let expected = "<message xmlns:x='urn:x&amp;y' xml:lang='d&apos;e' to='a'>\
        <x:y a='1'><z>1</z></x:y><b/></message>";
    assert_eq!(element.bytes, expected);
    assert_eq!(element.header.lang.as_deref(), Some("d'e"));
    assert_eq!(element.child_bytes(&element.header.children[1]), b"<b/>");
    // every place is right: the same scan of the result agrees
    assert_eq!(
        *element,
        scan(&element.bytes, &Limits::after_auth()).unwrap()
    );
    let cut = Splice::new(element)
        .set_attr("xml:lang", None)
        .set_attr("to", Some("b"))
        .remove_child(0)
        .finish();
    assert_eq!(cut, "<message xmlns:x='urn:x&amp;y' to='b'><b/></message>");
    // an own language wins, and nonzas are left alone
    let own = frames(
        Limits::after_auth(),
        [&header, "<iq xml:lang='en'/><r xmlns='u'/>"]
            .concat()
            .as_bytes(),
    )
    .unwrap();
    let Frame::Element(iq) = &own[1] else {
        panic!("{own:?}")
    };
    assert_eq!(iq.bytes, "<iq xml:lang='en'/>");
    let Frame::Element(r) = &own[2] else {
        panic!("{own:?}")
    };
    assert_eq!(r.bytes, "<r xmlns='u'/>");
}

#[test]
fn a_restart_keeps_what_was_pipelined_and_an_idle_framer_holds_nothing() {
    let mut framer = Framer::new(Limits::before_auth());
    framer.push([HDR, "<auth/>", HDR, "<iq/>  "].concat().as_bytes());
    assert!(matches!(framer.next(), Ok(Some(Frame::Open(_)))));
    assert!(matches!(framer.next(), Ok(Some(Frame::Element(_)))));
    framer.reset();
    assert_eq!(framer.buffered(), HDR.len() + 7);
    assert!(matches!(framer.next(), Ok(Some(Frame::Open(_)))));
    assert!(matches!(framer.next(), Ok(Some(Frame::Element(_)))));
    assert_eq!(framer.next(), Ok(None));
    assert_eq!(framer.pending_bytes(), 0);
    framer.push(b"<iq");
    assert_eq!(framer.next(), Ok(None));
    assert_eq!(framer.discard(), 3);
}

#[test]
fn a_line_that_ends_before_a_restart_is_no_part_of_the_new_stream() {
    for end in ["", "\n", "\r\n\t"] {
        let mut framer = Framer::new(Limits::before_auth());
        framer.push([HDR, "<auth/>", end].concat().as_bytes());
        assert!(matches!(framer.next(), Ok(Some(Frame::Open(_)))));
        assert!(matches!(framer.next(), Ok(Some(Frame::Element(_)))));
        framer.reset();
        framer.push(b" \n");
        assert_eq!(framer.next(), Ok(None));
        framer.push(HDR.as_bytes());
        assert!(matches!(framer.next(), Ok(Some(Frame::Open(_)))));
    }
    // Before the first stream it is what XML 1.0 §2.8 says it is.
    let mut framer = Framer::new(Limits::before_auth());
    framer.push(["\n", HDR].concat().as_bytes());
    assert!(framer.next().is_err());
}

#[test]
fn text_and_flags() {
    let element = one("<auth mechanism='X'>a&amp;<b> </b>c<![CDATA[<]]></auth>");
    assert_eq!(element.text(), "a&c<");
    assert_eq!(element.header.attr("mechanism"), Some("X"));
    assert!(element.header.has_text && element.header.children[0].has_text);
    let deep = one("<iq><a q='&gt;' r=\">\">t<b><c/></b>u</a></iq>");
    let a = &deep.header.children[0];
    assert!(a.has_elements && a.children[0].has_elements && a.children[0].children.is_empty());
    assert_eq!(deep.child_text(a), "tu");
    assert_eq!(deep.child_bytes(&a.children[0]), b"<b><c/></b>");
    assert!(!deep.header.has_text);
}
