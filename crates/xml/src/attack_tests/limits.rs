//! Hostile sizes and their right answer: the rows B1 to B7.

use super::{HDR, frames, not_a_header, one, refused};
use crate::{Frame, FrameError, Framer, Limit, Limits, Splice, scan};

#[test]
fn b1_size_ends_the_stream_and_memory_stays_bounded() {
    let cap = Limits::after_auth().stanza_bytes as usize;
    let fits = |extra: usize| {
        let around = "<message><body></body></message>".len();
        format!(
            "<message><body>{}</body></message>",
            "x".repeat(cap - around + extra)
        )
    };
    assert_eq!(one(fits(0)).bytes.len(), cap);
    refused(fits(1), FrameError::PolicyViolation(Limit::StanzaBytes));

    let mut framer = Framer::new(Limits::after_auth());
    framer.push(HDR.as_bytes());
    framer.next().unwrap();
    framer.push(b"<message><body>");
    let chunk = [b'x'; 16 * 1024];
    let mut most = 0;
    let error = loop {
        framer.push(&chunk);
        match framer.next() {
            Ok(None) => most = most.max(framer.pending_bytes()),
            other => break other,
        }
    };
    assert_eq!(error, Err(FrameError::PolicyViolation(Limit::StanzaBytes)));
    assert!(most <= 2 * cap, "{most}");
    framer.push(&chunk);
    assert_eq!(framer.pending_bytes(), 0);
}

#[test]
fn b2_little_before_authentication() {
    let long = HDR.replace("example.test", &"x".repeat(8193));
    let error = frames(Limits::before_auth(), long.as_bytes()).unwrap_err();
    assert_eq!(error.condition(), "policy-violation");
    let spaces = HDR.replace(" to=", &format!("{}to=", " ".repeat(8193)));
    not_a_header(spaces, FrameError::PolicyViolation(Limit::HeaderBytes));
    let many: String = (0..200).map(|i| format!(" xmlns:a{i}='u'")).collect();
    let spaced = HDR.replace(" to=", &format!("{many} to="));
    not_a_header(spaced, FrameError::PolicyViolation(Limit::Namespaces));
    let elements = format!("{HDR}<auth>{}", "<a/>".repeat(32));
    not_a_header(elements, FrameError::PolicyViolation(Limit::Elements));
}

#[test]
fn b3_b4_attributes_are_counted_before_they_are_kept() {
    let attributes: String = (0..29_000).map(|i| format!(" a{i}=''")).collect();
    refused(
        format!("<message{attributes}>"),
        FrameError::PolicyViolation(Limit::Attributes),
    );
    let declarations: String = (0..20_000).map(|i| format!(" xmlns:a{i}='u'")).collect();
    refused(
        format!("<iq{declarations}>"),
        FrameError::PolicyViolation(Limit::Namespaces),
    );
    let nested: String = (0..40)
        .map(|i| format!("<a xmlns:a{i}='u' xmlns:b{i}='u'>"))
        .collect();
    let closed = format!("<iq>{nested}{}</iq>", "</a>".repeat(40));
    refused(closed, FrameError::PolicyViolation(Limit::Namespaces));
    let allowed: String = (0..64).map(|i| format!(" a{i}=''")).collect();
    one(format!("<message{allowed}/>"));
    refused(
        format!("<message{allowed} z=''/>"),
        FrameError::PolicyViolation(Limit::Attributes),
    );
    // names that only begin like a declaration are attributes
    let alike: String = (0..64).map(|i| format!(" xmlnsa{i}=''")).collect();
    one(format!("<message{alike}/>"));
}

#[test]
fn b5_depth_is_counted_while_bytes_arrive() {
    refused(
        format!("<message>{}", "<a>".repeat(80_000)),
        FrameError::PolicyViolation(Limit::Depth),
    );
    let deep = |n: usize| format!("<message>{}{}</message>", "<a>".repeat(n), "</a>".repeat(n));
    one(deep(63));
    refused(deep(64), FrameError::PolicyViolation(Limit::Depth));
}

#[test]
fn b7_everything_else_is_counted_too() {
    let many = format!("<message>{}</message>", "<x/>".repeat(60_000));
    refused(many, FrameError::PolicyViolation(Limit::Elements));
    let long = "x".repeat(200 * 1024);
    refused(
        format!("<{long}/>"),
        FrameError::PolicyViolation(Limit::NameBytes),
    );
    refused(
        format!("<message {long}=''/>"),
        FrameError::PolicyViolation(Limit::NameBytes),
    );
    refused(
        format!("<message></{long}>"),
        FrameError::PolicyViolation(Limit::NameBytes),
    );
    refused(
        format!("<message a='{long}'/>"),
        FrameError::PolicyViolation(Limit::ValueBytes),
    );
    refused(
        format!("<message xmlns='{long}'/>"),
        FrameError::PolicyViolation(Limit::ValueBytes),
    );
}

#[test]
fn what_is_at_the_limit_is_still_read_inside() {
    let header = HDR.replace(" to=", " xml:lang='de' xmlns:x='urn:x' to=");
    let attributes: String = (0..64).map(|i| format!(" a{i}=''")).collect();
    let names: String = (0..32).map(|i| format!(" xmlns:n{i}='u'")).collect();
    let deep = format!("{}{}", "<a>".repeat(63), "</a>".repeat(63));
    let input = format!("{header}<message{attributes}{names}><x:y/>{deep}</message>");
    let all = frames(Limits::after_auth(), input.as_bytes()).unwrap();
    let Frame::Element(element) = &all[1] else {
        panic!("{all:?}")
    };
    let value = "\"".repeat(Limits::after_auth().value_bytes as usize);
    let bytes = Splice::new(element)
        .set_attr("id", Some(&value))
        .append_child("<z/>")
        .finish();
    assert!(scan(&bytes, &Limits::after_auth()).is_err());
    assert_eq!(
        scan(&bytes, &Limits::internal())
            .unwrap()
            .header
            .id
            .as_deref(),
        Some(&*value)
    );
    let lang = HDR.replace(" to=", &format!(" xml:lang='{}' to=", "x".repeat(65)));
    not_a_header(lang, FrameError::PolicyViolation(Limit::ValueBytes));
}
