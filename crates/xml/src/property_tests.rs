//! Properties: chunking changes nothing, splice and scan agree, nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Frame, FrameError, Framer, Limits, Splice, alone, is_xml_char, scan};

fn small() -> Limits {
    Limits {
        stanza_bytes: 200,
        header_bytes: 200,
        depth: 4,
        elements: 6,
        attributes: 4,
        namespaces: 3,
        namespaces_in_scope: 6,
        name_bytes: 16,
        value_bytes: 48,
    }
}

/// Frames up to the end or the first error.
fn run(limits: Limits, input: &[u8], cuts: &[usize]) -> (Vec<Frame>, Option<FrameError>) {
    let mut framer = Framer::new(limits);
    let mut frames = Vec::new();
    let mut at = 0;
    for &cut in cuts.iter().chain(std::iter::once(&input.len())) {
        let to = (at + cut).min(input.len());
        framer.push(&input[at..to]);
        at = to;
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

const HDR: &str = "<stream:stream xmlns='jabber:client' xmlns:q='urn:q' \
    xmlns:stream='http://etherx.jabber.org/streams' xml:lang='de'>";

/// Pieces that make interesting XML more often than bytes do.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&'static str> = vec![
        "<message",
        "<iq",
        "<q:a",
        "<x",
        "</message>",
        "</iq>",
        "</q:a>",
        "</x>",
        "/>",
        ">",
        "<",
        "&",
        ";",
        " to='a'",
        " id=\"&lt;\"",
        " xmlns='u'",
        " xmlns:p='u'",
        " p:k=''",
        " k='",
        "'",
        "\"",
        "=",
        " ",
        "text",
        "&amp;",
        "&#65;",
        "&x;",
        "<![CDATA[",
        "]]>",
        "]",
        "<!--",
        "-->",
        "<?xml version='1.0'?>",
        "<?",
        "\r",
        "\n",
        "\u{e9}",
        "\u{1F600}",
        "</stream:stream>",
        HDR,
        " xml:lang='x'",
        "/",
    ];
    prop_oneof![
        20 => proptest::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..4),
    ]
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), vec(piece(), 0..24)).prop_map(|(header, pieces)| {
        let mut out = if header {
            HDR.as_bytes().to_vec()
        } else {
            Vec::new()
        };
        out.extend(pieces.concat());
        out
    })
}

fn legal() -> impl Strategy<Value = String> {
    vec(
        prop_oneof![
            any::<char>().prop_map(|c| if is_xml_char(c) { c } else { '\u{e9}' }),
            proptest::sample::select(vec![
                '<', '>', '&', '\'', '"', '\r', '\n', '\t', ' ', ']', ';'
            ]),
        ],
        0..24,
    )
    .prop_map(String::from_iter)
}

/// A well-formed stanza with every kind of construct.
fn stanza() -> impl Strategy<Value = String> {
    let attr = |name: &'static str| {
        prop_oneof![
            Just(String::new()),
            legal().prop_map(move |value| {
                let mut out = String::new();
                crate::push_attr(&mut out, name, &value);
                out
            })
        ]
    };
    let text = prop_oneof![
        Just(String::new()),
        Just("<![CDATA[<&>]]>".to_owned()),
        legal().prop_map(|text| {
            let mut out = String::new();
            crate::escape_text(&mut out, &text);
            out
        })
    ];
    let leaf = (attr("k"), text.clone()).prop_map(|(k, text)| format!("<x{k}>{text}</x>"));
    let node = leaf.prop_recursive(3, 8, 3, move |inner| {
        (attr("k"), vec(inner, 0..3)).prop_map(|(k, inner)| {
            if inner.is_empty() {
                format!("<p:y xmlns:p='u'{k} p:k='1'/>")
            } else {
                format!("<q:z{k}>{}</q:z>", inner.concat())
            }
        })
    });
    (
        attr("to"),
        attr("id"),
        attr("xml:lang"),
        vec(node, 0..4),
        text,
    )
        .prop_map(|(to, id, lang, children, text)| {
            let children = children.concat();
            if children.is_empty() && text.is_empty() {
                format!("<message{to}{id}{lang}/>")
            } else {
                format!("<message{to}\n{id}{lang}>{text}{children}</message>")
            }
        })
}

/// A stream as `rxml`'s own namespace-aware parser judges it: our oracle.
fn oracle(input: &str) -> bool {
    use rxml::Parse;
    let mut rest = input.as_bytes();
    rxml::Parser::new().parse_all(&mut rest, true, drop).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunking_changes_nothing(input in soup(), cuts in vec(0usize..9, 0..60)) {
        for limits in [small(), Limits::after_auth()] {
            let whole = run(limits, &input, &[]);
            let parts = run(limits, &input, &cuts);
            prop_assert_eq!(&whole, &parts);
            let bytewise = run(limits, &input, &vec![1; input.len()]);
            prop_assert_eq!(&whole, &bytewise);
        }
    }

    #[test]
    fn what_is_framed_is_self_contained(input in soup()) {
        for frame in run(Limits::after_auth(), &input, &[]).0 {
            if let Frame::Element(element) = frame
                && run(Limits::after_auth(), HDR.as_bytes(), &[]).1.is_none()
            {
                let again = scan(&element.bytes, &Limits::internal());
                if input.starts_with(HDR.as_bytes()) {
                    prop_assert_eq!(again.as_ref(), Ok(&element));
                }
                // removing all children and appending one leaves one element
                let mut splice = Splice::new(&element);
                (0..element.header.children.len()).for_each(|i| { splice.remove_child(i); });
                let bytes = splice.append_child("<w xmlns='w'/>").set_attr("from", Some("f")).finish();
                let spliced = scan(&bytes, &Limits::internal()).unwrap();
                prop_assert_eq!(spliced.header.children.len(), 1);
                prop_assert!(spliced.header.children[0].is("w", "w"));
                prop_assert_eq!(spliced.header.from.as_deref(), Some("f"));
            }
        }
    }

    #[test]
    fn stanzas_are_read_as_written(stanza in stanza()) {
        let input = format!("{HDR}{stanza}");
        let (frames, error) = run(Limits::after_auth(), input.as_bytes(), &[]);
        prop_assert_eq!(error, None);
        let Some(Frame::Element(element)) = frames.get(1) else { panic!("{frames:?}") };
        let again = scan(&element.bytes, &Limits::internal());
        prop_assert_eq!(again.as_ref(), Ok(element));
        prop_assert_eq!(Splice::new(element).finish(), &element.bytes);
    }

    #[test]
    fn a_set_attribute_is_read_back(
        stanza in stanza(), value in legal(), at in 0usize..5, other in proptest::option::of(legal())
    ) {
        let names = ["to", "from", "id", "type", "xml:lang"];
        let input = format!("{HDR}{stanza}");
        let (frames, _) = run(Limits::after_auth(), input.as_bytes(), &[]);
        let Some(Frame::Element(element)) = frames.get(1) else { panic!("{frames:?}") };
        let bytes = Splice::new(element)
            .set_attr(names[at], Some(&value))
            .set_attr(names[(at + 1) % 5], other.as_deref())
            .finish();
        let read = scan(&bytes, &Limits::internal()).unwrap().header;
        let values = [&read.to, &read.from, &read.id, &read.type_, &read.lang];
        prop_assert_eq!(values[at].as_deref(), Some(&*value));
        prop_assert_eq!(values[(at + 1) % 5].as_deref(), other.as_deref());
        prop_assert_eq!(&read.children.len(), &element.header.children.len());
    }

    #[test]
    fn text_is_read_back(text in legal()) {
        let mut xml = "<a><b>".to_owned();
        crate::escape_text(&mut xml, &text);
        xml.push_str("</b></a>");
        let element = scan(&Bytes::from(xml), &Limits::after_auth()).unwrap();
        prop_assert_eq!(element.child_text(&element.header.children[0]), text);
    }

    #[test]
    fn the_oracle_agrees(stanza in stanza(), at in any::<proptest::sample::Index>(), other in "[ -~]?") {
        // one character replaced or removed, or none
        let mut chars: Vec<String> = stanza.chars().map(String::from).collect();
        let at = at.index(chars.len() + 1);
        if at < chars.len() {
            chars[at] = other;
        }
        let input = format!("{HDR}{}</stream:stream>", chars.concat());
        let (frames, error) = run(Limits::after_auth(), input.as_bytes(), &[]);
        if oracle(&input) {
            // ours alone: no text between stanzas
            let strict = matches!(error, Some(FrameError::BadFormat | FrameError::RestrictedXml));
            prop_assert!(strict || frames.last() == Some(&Frame::Close), "{input} {error:?}");
        } else {
            prop_assert!(error.is_some() || frames.last() != Some(&Frame::Close), "{input}");
        }
    }

    #[test]
    fn bytes_never_panic(input in vec(any::<u8>(), 0..200), cuts in vec(0usize..9, 0..9)) {
        run(Limits::before_auth(), &input, &cuts);
        let _ = scan(&Bytes::from(input), &Limits::before_auth());
    }
}

/// Declarations and attributes of one opening tag, from which names take their prefixes.
fn tag(name: &'static str) -> impl Strategy<Value = (String, String)> {
    let default = proptest::sample::select(vec!["", " xmlns='u:1'", " xmlns = \"u:2\""]);
    let prefixed = proptest::sample::select(vec![
        "",
        " xmlns:p='u:3'",
        " xmlns:p=\"u:'4\" xmlns:r='u:5'",
    ]);
    let attr = proptest::sample::select(vec!["", " k='>'", " p:k='v' k=\"&lt;\"", " r:k='/>'"]);
    let prefix = proptest::sample::select(vec!["", "p:", "r:"]);
    (default, prefixed, attr, prefix).prop_map(move |(default, prefixed, attr, prefix)| {
        let name = format!("{prefix}{name}");
        (format!("<{name}{attr}{default}{prefixed}"), name)
    })
}

proptest! {
    /// Whatever is declared where: a child that is cut out is read as it was read inside.
    #[test]
    fn a_child_means_the_same_alone(
        root in tag("a"), query in tag("b"), child in tag("c"), inner in tag("d"),
        text in proptest::sample::select(vec!["", "t &amp; t", "<![CDATA[<x>]]>"]),
    ) {
        let xml = format!(
            "{}>{}>{}>{text}{}/></{}></{}></{}>",
            root.0, query.0, child.0, inner.0, child.1, query.1, root.1
        );
        let Ok(whole) = scan(&Bytes::from(xml), &Limits::after_auth()) else {
            return Ok(());
        };
        let query = &whole.header.children[0];
        let child = &query.children[0];
        let out = alone(&whole, &[query], child);
        let again = scan(&out, &Limits::internal()).expect("well-formed alone");
        prop_assert_eq!(&again.header.ns, &child.ns);
        prop_assert_eq!(&again.header.name, &child.name);
        prop_assert_eq!(again.header.children.len(), 1);
        // Its own inside, read as the first level of a whole: the same as read by cutting twice.
        let once = alone(&whole, &[], query);
        let once = scan(&once, &Limits::internal()).expect("well-formed alone");
        let twice = &once.header.children[0];
        prop_assert_eq!(&twice.children[0].ns, &again.header.children[0].ns);
        prop_assert_eq!(&twice.children[0].attrs, &again.header.children[0].attrs);
        prop_assert_eq!(&twice.attrs, &child.attrs);
    }
}
