//! What the gateway's spans say, in words of its own: nothing that a client wrote gets into a
//! trace, so what it wrote is matched against what there is. Owns no span.

use chancery_api::Kind;
use chancery_runtime::trace::Span;
use chancery_xml::Element;

use crate::pipeline::answer::End;

/// The first span of a stanza's trace.
pub(crate) const STANZA: &str = "gateway.stanza";
/// A question to policy, asked again included.
pub(crate) const DECIDE: &str = "policy.decide";
/// From the submission to the log's answer.
pub(crate) const APPEND: &str = "archive.append";
/// From the submission to the answer of the presence service.
pub(crate) const PUBLISH: &str = "presence.publish";
/// What came up is written for a session.
pub(crate) const DELIVER: &str = "gateway.deliver";

/// Says what was read.
pub(crate) fn describe(span: &mut Span, element: &Element) {
    if span.is_on() {
        span.set("kind", word(&element.header.name, &KINDS));
        let type_ = element.header.type_.as_deref().unwrap_or_default();
        span.set("type", word(type_, &TYPES));
        span.set("bytes", element.bytes.len() as u64);
    }
}

/// Says what became of it.
pub(crate) fn conclude(span: &mut Span, end: &End) {
    let outcome = match end {
        End::Silent => "settled",
        End::Bounce(_) => "bounced",
        End::Stream(_) => "unknown",
        End::Late => "late",
    };
    span.set("outcome", outcome);
}

/// The word for a kind.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Message => "message",
        Kind::Presence => "presence",
        Kind::Iq => "iq",
        Kind::Unspecified => OTHER,
    }
}

const OTHER: &str = "other";
const KINDS: [&str; 3] = ["message", "presence", "iq"];
/// RFC 6121 §4.7.1 and §5.2.2, RFC 6120 §8.2.3; the first stands for none.
const TYPES: [&str; 15] = [
    "",
    "chat",
    "error",
    "groupchat",
    "headline",
    "normal",
    "get",
    "set",
    "result",
    "unavailable",
    "subscribe",
    "subscribed",
    "unsubscribe",
    "unsubscribed",
    "probe",
];

fn word<const N: usize>(text: &str, known: &[&'static str; N]) -> &'static str {
    known
        .iter()
        .find(|known| **known == text)
        .copied()
        .unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_word_of_the_standard_is_not_said() {
        assert_eq!(word("chat", &TYPES), "chat");
        assert_eq!(word("", &TYPES), "");
        assert_eq!(word("alice@a.test", &TYPES), OTHER);
        assert_eq!(word("Message", &KINDS), OTHER);
    }
}
