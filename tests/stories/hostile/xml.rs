//! Rows A1 to A19 and B1 to B7: what is not XML as RFC 6120 §11 has it, and what is too much of it.
//!
//! proves: RFC 6120 §4, RFC 6120 §11

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chancery_testkit::matching::parse;
use chancery_testkit::server::{PASSWORD, Server, Shape};
use chancery_testkit::wire::{Wire, header};
use chancery_xml::Element;

use super::sasl::{auth, say};
use super::{DOMAIN, Place, after_header, check, header_with, row, undisturbed, witness};
use crate::play::play;

const PARSE: &[&str] = &["not-well-formed", "bad-format"];
const RESTRICTED: &[&str] = &["restricted-xml", "not-well-formed", "bad-format"];
const ENCODING: &[&str] = &["unsupported-encoding", "not-well-formed", "bad-format"];
const OTHER_NS: &[&str] = &["invalid-namespace", "unsupported-stanza-type"];
const TOO_MUCH: &[&str] = &["policy-violation"];

#[test]
fn before_the_header() {
    play(Shape::One, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let outside = std::net::TcpListener::bind("127.0.0.1:0")?;
        outside.set_nonblocking(true)?;
        let mut dtd = String::from("<!DOCTYPE s [<!ENTITY a \"ha\">");
        for level in 'b'..='k' {
            let one = char::from(u8::try_from(u32::from(level) - 1)?);
            dtd.push_str(&format!("<!ENTITY {level} \"&{one};&{one};&{one};\">"));
        }
        dtd.push_str("]>");
        let hdr = header(DOMAIN);
        let external = format!("<!DOCTYPE s SYSTEM \"http://{}/x\">", outside.local_addr()?);
        let utf16: Vec<u8> = hdr.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let bom = [&[0xff, 0xfe][..], &utf16].concat();
        let hello = [&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3][..], &[0; 64]].concat();
        let body = &hdr["<?xml version='1.0'?>".len()..];
        let streams = "http://etherx.jabber.org/streams";
        let rows = [
            row("A1", format!("{dtd}{hdr}&k;"), RESTRICTED),
            row(
                "A1 behind the declaration",
                format!("<?xml version='1.0'?>{dtd}{body}"),
                RESTRICTED,
            ),
            row("A2", format!("{external}{hdr}"), RESTRICTED),
            row(
                "A15 declared",
                hdr.replace("'1.0'?>", "'1.0' encoding='UTF-16'?>"),
                ENCODING,
            ),
            row("A15 byte order mark", bom, ENCODING),
            row("A15 behind a space", format!(" {hdr}"), RESTRICTED),
            row("A16 http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", PARSE),
            row("A16 tls", hello, PARSE),
            row("A16 nul", vec![0; 64], PARSE),
            row(
                "A19 0.9",
                hdr.replace("version='1.0'>", "version='0.9'>"),
                &["unsupported-version"],
            ),
            row(
                "A19 none",
                hdr.replace(" version='1.0'>", ">"),
                &["unsupported-version"],
            ),
            row(
                "A19 1.0.0",
                hdr.replace("version='1.0'>", "version='1.0.0'>"),
                &["unsupported-version"],
            ),
            row(
                "A19 server",
                hdr.replace("jabber:client", "jabber:server"),
                &["invalid-namespace"],
            ),
            row(
                "A19 streams",
                hdr.replace(streams, "urn:x"),
                &["invalid-namespace", "bad-format"],
            ),
            row(
                "A19 no to",
                hdr.replace(" to='example.test'", ""),
                &["improper-addressing", "host-unknown"],
            ),
            row(
                "A19 unknown to",
                hdr.replace("example.test", "elsewhere.test"),
                &["host-unknown"],
            ),
            row(
                "A19 other root",
                "<x xmlns='jabber:client'>",
                &["invalid-namespace", "bad-format", "not-well-formed"],
            ),
            row(
                "B2 attribute",
                header_with(&format!(
                    "xmlns='jabber:client' to='{DOMAIN}' version='1.0' x='{}'",
                    "a".repeat(8193)
                )),
                TOO_MUCH,
            ),
            row(
                "B2 elements",
                after_header(&format!("<a xmlns='urn:x'>{}</a>", "<b/>".repeat(33))),
                TOO_MUCH,
            ),
            row(
                "B2 namespaces",
                after_header(&format!(
                    "<a{}/>",
                    numbered(200, |n| format!(" xmlns:n{n}='u'"))
                )),
                TOO_MUCH,
            ),
            row(
                "B3 before auth",
                after_header(&format!(
                    "<message{}",
                    numbered(29_000, |n| format!(" a{n}=''"))
                )),
                TOO_MUCH,
            ),
            row(
                "D12 message",
                after_header("<message to='bob@example.test'><body>x</body></message>"),
                &["not-authorized", "policy-violation"],
            ),
            row(
                "C3 bind",
                after_header(
                    "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
                ),
                &["not-authorized", "policy-violation"],
            ),
        ];
        check(server, Place::First, &rows).await?;
        ensure!(outside.accept().is_err(), "A2: the server looked outside");
        // A16: and not much is said.
        let wire = chancery_testkit::wire::Wire::plain(server.c2s[0]).await?;
        let said = wire.answer_to(&[0; 64]).await?;
        ensure!(said.len() <= 400, "A16: {} bytes", said.len());
        // A19: a newer version is answered with ours.
        let wire = chancery_testkit::wire::Wire::plain(server.c2s[0]).await?;
        let newer = hdr.replace("version='1.0'>", "version='99.0'>") + "</stream:stream>";
        let said = wire.answer_to(newer.as_bytes()).await?;
        ensure!(
            said.contains("version='1.0'") && !said.contains("stream:error"),
            "A19: {said}"
        );
        undisturbed(&mut bob).await
    });
}

#[test]
fn in_a_session_in_one() {
    in_a_session(Shape::One);
}

#[test]
fn in_a_session_in_many() {
    in_a_session(Shape::Many);
}

fn in_a_session(shape: Shape) {
    play(shape, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let message = |inner: &str| format!("<message to='bob@{DOMAIN}'>{inner}</message>");
        let bytes = |inside: &[u8]| {
            let start = format!("<message to='bob@{DOMAIN}'><body>");
            [start.as_bytes(), inside, b"</body></message>"].concat()
        };
        let rows = [
            row(
                "A3",
                message("<!DOCTYPE s [<!ENTITY a 'b'>]><body>&a;</body>"),
                RESTRICTED,
            ),
            row(
                "A3 between",
                "<!DOCTYPE s SYSTEM 'x'><presence/>",
                RESTRICTED,
            ),
            row(
                "A4 comment",
                message("<!-- c --><body>x</body>"),
                RESTRICTED,
            ),
            row("A4 instruction", "<?pi x?><presence/>", RESTRICTED),
            row("A4 cdata end", message("<body>]]></body>"), PARSE),
            row("A5 nbsp", message("<body>&nbsp;</body>"), RESTRICTED),
            row("A5 0", message("<body>&#0;</body>"), RESTRICTED),
            row("A5 8", message("<body>&#8;</body>"), RESTRICTED),
            row("A5 fffe", message("<body>&#xFFFE;</body>"), RESTRICTED),
            row("A5 d800", message("<body>&#xD800;</body>"), RESTRICTED),
            row("A5 raw 8", bytes(b"\x08"), PARSE),
            row("A6 c0bc", bytes(b"\xC0\xBC"), ENCODING),
            row("A6 e080bc", bytes(b"\xE0\x80\xBC"), ENCODING),
            row("A6 eda080", bytes(b"\xED\xA0\x80"), ENCODING),
            row("A6 f4908080", bytes(b"\xF4\x90\x80\x80"), ENCODING),
            row("A6 80", bytes(b"\x80"), ENCODING),
            row(
                "A9 newline",
                "<message xmlns='jabber:client&#10;message' to='bob@example.test'><body>x</body></message>",
                OTHER_NS,
            ),
            row(
                "A9 control",
                "<message xmlns='jabber:client\x01message' to='bob@example.test'/>",
                PARSE,
            ),
            row(
                "A9 control in a child",
                message("<x xmlns='jabber:client\x01message'/><body>x</body>"),
                PARSE,
            ),
            row(
                "A9 hash",
                "<message xmlns='jabber:client#' to='bob@example.test'><body>x</body></message>",
                OTHER_NS,
            ),
            row(
                "A9 server",
                "<message xmlns='jabber:server' to='bob@example.test'><body>x</body></message>",
                OTHER_NS,
            ),
            row(
                "A14 twice",
                "<message to='bob@example.test' to='bob@example.test'/>",
                PARSE,
            ),
            row(
                "A14 two prefixes",
                message("<x xmlns:p='u' xmlns:q='u' p:k='1' q:k='2'/>"),
                PARSE,
            ),
            row("A14 empty", message("<x xmlns:p=''/>"), PARSE),
            row("A14 xml", message("<x xmlns:xml='urn:x'/>"), PARSE),
            row("A14 unbound", message("<p:x/>"), PARSE),
            row(
                "A14 xmlns twice",
                message("<x xmlns='a' xmlns='b'/>"),
                PARSE,
            ),
            row(
                "A14 xmlns as default",
                message("<x xmlns='http://www.w3.org/2000/xmlns/'/>"),
                PARSE,
            ),
            row(
                "A15 later",
                "<?xml version='1.0' encoding='UTF-16'?><presence/>",
                ENCODING_OR_RESTRICTED,
            ),
            row("A17 unopened", "</message>text<message/>", PARSE_OR_XML),
            row("A17 text", "<presence/>text<presence/>", PARSE_OR_XML),
            row(
                "A17 foreign",
                "<foo xmlns='urn:x'/>",
                &["unsupported-stanza-type"],
            ),
            row("A17 second header", header(DOMAIN), RESTRICTED_OR_FORMAT),
            row(
                "E1 another",
                "<message from='bob@example.test/b' to='bob@example.test'><body>x</body></message>",
                &["invalid-from"],
            ),
            row(
                "E1 another iq",
                "<iq from='alice@example.test/r' to='bob@example.test/b' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
                &["invalid-from"],
            ),
            row(
                "B1 too long",
                message(&format!("<body>{}</body>", "x".repeat(256 * 1024 + 1))),
                TOO_MUCH,
            ),
            row(
                "B17",
                "<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>",
                &["unsupported-stanza-type"],
            ),
            row(
                "B19 id of a mebibyte",
                format!(
                    "<iq type='set' id='1'><query xmlns='urn:xmpp:mam:2'><set xmlns='http://jabber.org/protocol/rsm'><before>{}</before></set></query></iq>",
                    "x".repeat(1024 * 1024)
                ),
                TOO_MUCH,
            ),
            row(
                "B3 attributes",
                format!("<message{}/>", numbered(29_000, |n| format!(" a{n}=''"))),
                TOO_MUCH,
            ),
            row(
                "B4 namespaces",
                format!("<iq{}/>", numbered(20_000, |n| format!(" xmlns:a{n}='u'"))),
                TOO_MUCH,
            ),
            row("B5 open", message_open(&"<a>".repeat(80_000)), TOO_MUCH),
            row(
                "B5 closed",
                message(&format!("{}{}", "<a>".repeat(65), "</a>".repeat(65))),
                TOO_MUCH,
            ),
            row("B7 elements", message(&"<x/>".repeat(60_000)), TOO_MUCH),
            row(
                "B7 name",
                message_open(&format!("<{}/>", "n".repeat(200 * 1024))),
                TOO_MUCH,
            ),
            row(
                "B7 attribute",
                message_open(&format!("<x {}='1'/>", "n".repeat(200 * 1024))),
                TOO_MUCH,
            ),
            row(
                "B7 value",
                message_open(&format!("<x a='{}'/>", "v".repeat(200 * 1024))),
                TOO_MUCH,
            ),
            row(
                "B7 namespace",
                message_open(&format!("<x xmlns='{}'/>", "v".repeat(200 * 1024))),
                TOO_MUCH,
            ),
        ];
        check(server, Place::Session, &rows).await?;
        undisturbed(&mut bob).await
    });
}

const ENCODING_OR_RESTRICTED: &[&str] = &[
    "unsupported-encoding",
    "restricted-xml",
    "not-well-formed",
    "bad-format",
];
const PARSE_OR_XML: &[&str] = &["not-well-formed", "bad-format", "invalid-xml"];
const RESTRICTED_OR_FORMAT: &[&str] = &[
    "restricted-xml",
    "not-well-formed",
    "bad-format",
    "unsupported-stanza-type",
];

fn message_open(inner: &str) -> String {
    format!("<message to='bob@{DOMAIN}'>{inner}")
}

fn numbered(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect()
}

/// A8, A10, A12, J7: what only looks wrong arrives as it was meant.
#[test]
fn what_is_right_arrives_unchanged_in_one() {
    what_is_right_arrives_unchanged(Shape::One);
}

#[test]
fn what_is_right_arrives_unchanged_in_many() {
    what_is_right_arrives_unchanged(Shape::Many);
}

fn what_is_right_arrives_unchanged(shape: Shape) {
    play(shape, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let mut mallory = server.client("mallory", "m", 0).await?;
        // A8: every byte in a TLS record and a segment of its own.
        let text = format!(
            "<message to='bob@{DOMAIN}' id='a8'><body>x\u{1F642}\u{1D11E}y</body></message>"
        );
        for byte in text.as_bytes() {
            mallory.wire.send([*byte]).await?;
        }
        let got = bob.stanza().await?;
        let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
        let body = tree.get_child("body", "jabber:client").context("no body")?;
        ensure!(body.text() == "x\u{1F642}\u{1D11E}y", "A8: {}", body.text());
        // A10: an attribute's value never becomes markup, in any kind.
        let trick = "&quot;/&gt;&lt;message from='ceo@example.test'&gt;";
        let plain = "\"/><message from='ceo@example.test'>";
        let nick = trick.replace('\'', "&apos;");
        for stanza in [
            format!(
                "<message to='{0}' id=\"{trick}\"><body>x</body></message>",
                bob.jid
            ),
            format!(
                "<iq type='get' to='{0}' id=\"{trick}\"><query xmlns='jabber:iq:version'/></iq>",
                bob.jid
            ),
            format!("<presence to='{0}' id=\"{trick}\"/>", bob.jid),
            format!(
                "<message to='{0}' id='n'><nick xmlns='http://jabber.org/protocol/nick' v='{nick}'>{trick}</nick></message>",
                bob.jid
            ),
        ] {
            mallory.send(&stanza).await?;
            let got = bob.stanza().await?;
            let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
            ensure!(tree.attr("from") == Some(&mallory.jid), "A10: {stanza}");
            match tree.get_child("nick", "http://jabber.org/protocol/nick") {
                Some(nick) => ensure!(nick.text() == plain && nick.attr("v") == Some(plain)),
                None => ensure!(tree.attr("id") == Some(plain), "A10: {:?}", tree.attr("id")),
            }
        }
        // A12: a prefix is only a prefix.
        mallory
            .wire
            .send(format!(
                "<c:message xmlns:c='jabber:client' to='bob@{DOMAIN}' id='a12'><c:body>prefixed</c:body></c:message>"
            ))
            .await?;
        let got = bob.stanza().await?;
        let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
        ensure!(tree.is("message", "jabber:client"), "A12: {tree:?}");
        let body = tree
            .get_child("body", "jabber:client")
            .context("A12: no body")?;
        ensure!(body.text() == "prefixed" && tree.attr("from") == Some(&mallory.jid));
        // J7: bodies that others alter.
        for body in [
            "",
            " edge  spaces ",
            "a\n b\tc",
            "e\u{301}\u{FB01}\u{2028}",
            "\u{FFFD}\u{E000}\u{10FFFD}",
        ] {
            mallory
                .send(format!(
                    "<message to='bob@{DOMAIN}' id='j7' type='chat'><body>{body}</body></message>"
                ))
                .await?;
            let got = bob.stanza().await?;
            let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
            let back = tree
                .get_child("body", "jabber:client")
                .context("J7: no body")?
                .text();
            ensure!(back == body, "J7: {back:?} for {body:?}");
        }
        // The limit itself is allowed.
        let start = format!("<message to='bob@{DOMAIN}' id='limit'><body>");
        let room = 256 * 1024 - start.len() - "</body></message>".len();
        mallory
            .send(format!("{start}{}</body></message>", "x".repeat(room)))
            .await?;
        let got = bob.stanza().await?;
        ensure!(
            got.header.id.as_deref() == Some("limit"),
            "at the limit: {:?}",
            got.header
        );
        undisturbed(&mut bob).await
    });
}

/// XEP-0478: the limits that the rows above go over, and the one that is kept, are advertised.
#[test]
fn limits_are_advertised() {
    play(Shape::One, &["mallory"], async |server| {
        let says = |features: Element, bytes: u32| {
            let limits = "<limits xmlns='urn:xmpp:stream-limits:0'>";
            let wanted = format!("{limits}<max-bytes>{bytes}</max-bytes></limits>");
            let text = String::from_utf8_lossy(&features.bytes).into_owned();
            ensure!(text.contains(&wanted), "{bytes}: {text}");
            Ok(())
        };
        let mut wire = Wire::starttls(server.c2s[0], DOMAIN, server.trust(0)?).await?;
        wire.open(DOMAIN).await?;
        says(wire.element().await?, 16 * 1024)?;
        let (name, said) = say(&mut wire, &auth("PLAIN", format!("\0mallory\0{PASSWORD}"))).await?;
        ensure!(name == "success", "{name} {said}");
        wire.open(DOMAIN).await?;
        says(wire.element().await?, 256 * 1024)
    });
}

/// B1: an element that does not end costs no memory.
#[test]
fn an_endless_element_costs_no_memory() {
    play(Shape::One, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let endless = format!("<message a='{}", "x".repeat(64 * 1024 * 1024));
        let rows = [
            row("B1 endless", endless.clone(), TOO_MUCH),
            row("B1 endless body", message_open(&endless[12..]), TOO_MUCH),
        ];
        check(server, Place::Session, &rows).await?;
        let before = resident_kb(server)?;
        for _ in 0..4 {
            check(server, Place::Session, &rows).await?;
        }
        let rise = resident_kb(server)?.saturating_sub(before);
        ensure!(rise < 8 * 1024, "the server grew by {rise} KiB");
        undisturbed(&mut bob).await
    });
}

pub(crate) fn resident_kb(server: &Server) -> Result<u64> {
    // Freed memory is given back by the allocator in its own time.
    std::thread::sleep(Duration::from_millis(200));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid("gateway")?))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no figure")?
        .parse()?)
}
