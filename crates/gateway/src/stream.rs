//! Stream headers: ours, and what is wrong with the client's (RFC 6120 §4.7, §4.9.3).
//!
//! Refuses to read from a socket; which error is written when is negotiation's affair.

use jid::BareJid;

use chancery_xml::{NS_CLIENT, NS_STREAMS, StreamHeader, escape_attr, push_attr};
use chancery_xmpp::{StreamCondition, StreamError, jid as addresses};

/// The closing tag of a stream.
pub const CLOSE: &str = "</stream:stream>";
/// The language of our texts (RFC 6120 §4.7.4).
const OUR_LANG: &str = "en";
/// Bytes of a language tag that is remembered; a longer one counts as absent.
const LANG_BYTES: usize = 35;

/// What our stream header says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// The domain; absent only when no domain is known.
    pub from: Option<&'a str>,
    /// The client's bare JID, if it named one.
    pub to: Option<&'a str>,
    /// The stream id.
    pub id: Option<&'a str>,
}

/// Our stream header. The version is ours, 1.0, whatever newer one the client has (§4.7.5).
pub fn write_header(opening: &Opening<'_>) -> String {
    let mut out = String::with_capacity(256);
    out.push_str("<?xml version='1.0'?><stream:stream xmlns='");
    out.push_str(NS_CLIENT);
    out.push_str("' xmlns:stream='");
    out.push_str(NS_STREAMS);
    out.push('\'');
    for (name, value) in [
        ("id", opening.id),
        ("from", opening.from),
        ("to", opening.to),
    ] {
        if let Some(value) = value {
            push_attr(&mut out, name, value);
        }
    }
    out.push_str(" version='1.0' xml:lang='");
    escape_attr(&mut out, OUR_LANG);
    out.push_str("'>");
    out
}

/// A client's header that is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The hosted domain that it is for.
    pub domain: String,
    /// Who the client says it is; unproven before SASL.
    pub from: Option<BareJid>,
    /// The stream's language.
    pub lang: Option<Box<str>>,
}

/// Checks a client's header against the hosted domains.
pub fn check(header: &StreamHeader, hosted: &[String]) -> Result<Checked, StreamError> {
    header.check()?;
    if &*header.default_ns != NS_CLIENT {
        // §4.9.3.10; jabber:server belongs to another port.
        return Err(StreamError::new(StreamCondition::InvalidNamespace));
    }
    if !version_is_supported(header.version.as_deref()) {
        return Err(StreamError::new(StreamCondition::UnsupportedVersion)); // §4.9.3.25
    }
    let Some(to) = header.to.as_deref() else {
        return Err(StreamError::new(StreamCondition::ImproperAddressing)); // §4.9.3.7
    };
    let Ok(domain) = addresses::parse_domain(to) else {
        return Err(StreamError::new(StreamCondition::HostUnknown));
    };
    if !hosted.contains(&domain) {
        return Err(StreamError::new(StreamCondition::HostUnknown)); // §4.9.3.6
    }
    // Before SASL it proves nothing (§4.7.1), so a malformed one is only not answered.
    let from = header
        .from
        .as_deref()
        .and_then(|from| addresses::parse(from).ok());
    let from = from.map(|jid| jid.to_bare());
    let lang = header.lang.clone().filter(|lang| lang.len() <= LANG_BYTES);
    Ok(Checked { domain, from, lang })
}

/// §4.7.5: two numbers, compared as such. A higher minor or major version is answered with ours;
/// none at all means 0.9, which has neither STARTTLS nor SASL.
fn version_is_supported(version: Option<&str>) -> bool {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    version
        .and_then(|version| version.split_once('.'))
        .and_then(|(major, minor)| Some((number(major)?, number(minor)?)))
        .is_some_and(|(major, _)| major >= 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use chancery_xml::{Frame, Framer, Limits};

    use super::*;

    fn checked(header: &str) -> Result<Checked, String> {
        let mut framer = Framer::new(Limits::before_auth());
        framer.push(header.as_bytes());
        let Some(Frame::Open(header)) = framer.next().unwrap() else {
            panic!("no header")
        };
        let hosted = ["example.test".to_owned()];
        check(&header, &hosted).map_err(|error| error.write())
    }

    fn header(default_ns: &str, rest: &str) -> String {
        format!("<stream:stream xmlns='{default_ns}' xmlns:stream='{NS_STREAMS}' {rest}>")
    }

    fn condition(header: &str) -> String {
        let error = checked(header).unwrap_err();
        let rest = error.split_once("<stream:error>").unwrap().1;
        rest.trim_start_matches('<')
            .split([' ', '/', '>'])
            .next()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_header_in_order() {
        let text = header(
            NS_CLIENT,
            "to='EXAMPLE.test' from='Alice@example.test/x' version='1.0' xml:lang='de'",
        );
        let checked = checked(&text).unwrap();
        assert_eq!(checked.domain, "example.test");
        assert_eq!(checked.from.unwrap().as_str(), "alice@example.test");
        assert_eq!(checked.lang.as_deref(), Some("de"));
    }

    #[test]
    fn attack_a19_headers_out_of_order() {
        for version in [
            "version='0.9'",
            "",
            "version='1.0.0'",
            "version=''",
            "version='1'",
            "version='+1.0'",
            "version='1. 0'",
        ] {
            let text = header(NS_CLIENT, &format!("to='example.test' {version}"));
            assert_eq!(condition(&text), "unsupported-version", "{version}");
        }
        for version in ["1.0", "1.1", "99.0", "99999999999999999999999.0", "01.0"] {
            let text = header(NS_CLIENT, &format!("to='example.test' version='{version}'"));
            assert!(checked(&text).is_ok(), "{version}");
        }
        for ns in ["jabber:server", "urn:x", ""] {
            let text = header(ns, "to='example.test' version='1.0'");
            assert_eq!(condition(&text), "invalid-namespace", "{ns}");
        }
        assert_eq!(
            condition(&header(NS_CLIENT, "version='1.0'")),
            "improper-addressing"
        );
        for to in [
            "other.test",
            "",
            "a@example.test",
            "example.test.evil",
            "127.0.0.1",
            "example.test/x",
        ] {
            let text = header(NS_CLIENT, &format!("to='{to}' version='1.0'"));
            assert_eq!(condition(&text), "host-unknown", "{to}");
        }
        let text =
            "<x:stream xmlns='jabber:client' xmlns:x='urn:x' to='example.test' version='1.0'>";
        assert_eq!(condition(text), "invalid-namespace");
    }

    #[test]
    fn our_header_escapes_what_it_repeats() {
        let header = write_header(&Opening {
            from: Some("example.test"),
            to: Some("a'b@example.test"),
            id: Some("1"),
        });
        assert!(!header.contains("a'b"));
        let mut framer = Framer::new(Limits::before_auth());
        framer.push(header.as_bytes());
        let Some(Frame::Open(header)) = framer.next().unwrap() else {
            panic!("no header")
        };
        assert_eq!(header.to.as_deref(), Some("a'b@example.test"));
        assert_eq!(header.version.as_deref(), Some("1.0"));
        header.check().unwrap();
    }
}
