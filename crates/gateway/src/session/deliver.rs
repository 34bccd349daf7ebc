//! The bytes that go out for what came up: the original, a carbon, a roster push, a presence.
//!
//! Pure. Works on the ends of a serialised stanza, without a scan: what comes up was validated
//! when it came in. Refuses to decide who gets it.

use std::sync::OnceLock;

use bytes::Bytes;
use chancery_api::Kind;
use chancery_api::archive::{Deliver, Form, Target};
use chancery_xml::{Limits, Splice, escape_attr, push_attr, scan};
use chancery_xmpp::carbons::{self, Direction};

/// One `Deliver` for several sessions of this gateway, and the forms built from it so far.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) up: Deliver,
    /// The original for its owner: most often one form for all targets.
    original: OnceLock<(Box<str>, bool, Bytes)>,
}

/// One presence stanza for several sessions of this gateway.
#[derive(Debug)]
pub(crate) struct PresenceUp {
    pub(crate) from: String,
    pub(crate) payload: Bytes,
    pub(crate) policy_version: u64,
    pub(crate) unavailable: bool,
    /// Set when it was addressed rather than broadcast.
    pub(crate) to: String,
    /// The trace that it belongs to; empty when it is not followed.
    pub(crate) traceparent: String,
}

/// Whom a form is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    /// Own bare JID.
    pub(crate) bare: &'a str,
    /// Own full JID.
    pub(crate) full: &'a str,
    /// Own domain.
    pub(crate) domain: &'a str,
}

impl Delivered {
    pub(crate) fn new(up: Deliver) -> Self {
        Self {
            up,
            original: OnceLock::new(),
        }
    }

    /// The bytes for one target.
    pub(crate) fn form(&self, target: &Target, reader: Reader<'_>) -> Option<Bytes> {
        match target.form() {
            Form::Original => {
                let built = self.original.get_or_init(|| {
                    (
                        reader.bare.into(),
                        target.delayed,
                        self.annotated(target, reader),
                    )
                });
                if &*built.0 == reader.bare && built.1 == target.delayed {
                    return Some(built.2.clone());
                }
                Some(self.annotated(target, reader))
            }
            Form::CarbonReceived => self.carbon(Direction::Received, target, reader),
            Form::CarbonSent => self.carbon(Direction::Sent, target, reader),
            Form::Push | Form::Blocks => self.push(reader),
            Form::Notice | Form::Unspecified => None,
        }
    }

    /// A copy holds the message as its archive has it; how late it is, the wrapper says.
    fn carbon(&self, side: Direction, target: &Target, reader: Reader<'_>) -> Option<Bytes> {
        let inner = self.annotated(
            &Target {
                delayed: false,
                ..*target
            },
            reader,
        );
        let element = scan(&inner, &Limits::after_auth()).ok()?;
        let stamp = target.delayed.then(|| stamp(self.up.stamp_ms));
        Some(carbons::wrap(
            side,
            &element,
            reader.bare,
            reader.full,
            stamp.as_deref(),
        ))
    }

    /// The original with what XEP-0359 and XEP-0203 add. Only messages have a stanza id: another
    /// child in an IQ would change its meaning.
    fn annotated(&self, target: &Target, reader: Reader<'_>) -> Bytes {
        let message = self.up.kind() == Kind::Message;
        let mut added = String::new();
        if message && self.up.number > 0 {
            added.push_str("<stanza-id xmlns='urn:xmpp:sid:0'");
            push_attr(&mut added, "by", reader.bare);
            push_attr(&mut added, "id", &self.up.archive_id);
            added.push_str("/>");
        }
        if message && target.delayed {
            added.push_str("<delay xmlns='urn:xmpp:delay'");
            push_attr(&mut added, "from", reader.domain);
            push_attr(&mut added, "stamp", &stamp(self.up.stamp_ms));
            added.push_str("/>");
        }
        if added.is_empty() {
            return self.up.payload.clone();
        }
        append_child(&self.up.payload, &added)
    }

    /// A roster push is addressed to the session (RFC 6121 §2.1.6).
    fn push(&self, reader: Reader<'_>) -> Option<Bytes> {
        let element = scan(&self.up.payload, &Limits::after_auth()).ok()?;
        Some(
            Splice::new(&element)
                .set_attr("to", Some(reader.full))
                .finish(),
        )
    }
}

impl PresenceUp {
    /// The stanza for one session: broadcasts are addressed to its bare JID (RFC 6121 §4.2.2).
    pub(crate) fn form(&self, reader: Reader<'_>) -> Bytes {
        let to = if self.to.is_empty() {
            reader.bare
        } else {
            &self.to
        };
        insert_to(&self.payload, to)
    }
}

/// Adds raw XML behind the last child of a well-formed element without a scan: such an element ends
/// either with its own end tag or, having no content, with `/>`.
pub(crate) fn append_child(stanza: &[u8], child: &str) -> Bytes {
    let mut out = Vec::with_capacity(stanza.len() + child.len() + 16);
    if let Some(open) = stanza.strip_suffix(b"/>") {
        out.extend_from_slice(open);
        out.push(b'>');
        out.extend_from_slice(child.as_bytes());
        out.extend_from_slice(b"</");
        out.extend_from_slice(root_name(stanza));
        out.push(b'>');
    } else {
        let end = stanza
            .iter()
            .rposition(|b| *b == b'<')
            .unwrap_or(stanza.len());
        out.extend_from_slice(&stanza[..end]);
        out.extend_from_slice(child.as_bytes());
        out.extend_from_slice(&stanza[end..]);
    }
    Bytes::from(out)
}

/// Writes `to` into the opening tag of an element that has none.
pub(crate) fn insert_to(stanza: &[u8], to: &str) -> Bytes {
    let at = 1 + root_name(stanza).len();
    if stanza.len() < at {
        return Bytes::copy_from_slice(stanza);
    }
    let mut attribute = String::with_capacity(to.len() + 8);
    attribute.push_str(" to='");
    escape_attr(&mut attribute, to);
    attribute.push('\'');
    let mut out = Vec::with_capacity(stanza.len() + attribute.len());
    out.extend_from_slice(&stanza[..at]);
    out.extend_from_slice(attribute.as_bytes());
    out.extend_from_slice(&stanza[at..]);
    Bytes::from(out)
}

fn root_name(stanza: &[u8]) -> &[u8] {
    let name = stanza.get(1..).unwrap_or_default();
    let end = name
        .iter()
        .position(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b'/' | b'>'))
        .unwrap_or(name.len());
    &name[..end]
}

/// XEP-0082 DateTime in UTC with milliseconds.
pub(crate) fn stamp(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date in the proleptic Gregorian calendar, with years that start in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        unix_ms.rem_euclid(1000)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const READER: Reader<'_> = Reader {
        bare: "bob@a.test",
        full: "bob@a.test/phone",
        domain: "a.test",
    };

    fn delivered(payload: &str, kind: Kind, number: u64) -> Delivered {
        Delivered::new(Deliver {
            number,
            archive_id: "f<1".into(),
            kind: kind.into(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            stamp_ms: 1_709_251_199_042,
            ..Deliver::default()
        })
    }

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn original_has_the_stanza_id_inside() {
        let up = delivered("<message><body>x</body></message>", Kind::Message, 3);
        let target = Target {
            form: Form::Original.into(),
            ..Target::default()
        };
        let built = up.form(&target, READER).unwrap();
        assert_eq!(
            text(&built),
            "<message><body>x</body><stanza-id xmlns='urn:xmpp:sid:0' by='bob@a.test' id='f&lt;1'/></message>"
        );
        // shared with the next session of the same owner
        let again = up
            .form(
                &target,
                Reader {
                    full: "bob@a.test/desk",
                    ..READER
                },
            )
            .unwrap();
        assert_eq!(built.as_ptr(), again.as_ptr());
        // and never with another owner
        let other = up
            .form(
                &target,
                Reader {
                    bare: "eve@a.test",
                    ..READER
                },
            )
            .unwrap();
        assert!(text(&other).contains("by='eve@a.test'"));
    }

    #[test]
    fn delayed_says_when() {
        let up = delivered("<message/>", Kind::Message, 0);
        let target = Target {
            form: Form::Original.into(),
            delayed: true,
            ..Target::default()
        };
        assert_eq!(
            text(&up.form(&target, READER).unwrap()),
            "<message><delay xmlns='urn:xmpp:delay' from='a.test' stamp='2024-02-29T23:59:59.042Z'/></message>"
        );
    }

    #[test]
    fn an_iq_stays_as_it_is() {
        let up = delivered("<iq id='1'><x xmlns='u'/></iq>", Kind::Iq, 9);
        let target = Target {
            form: Form::Original.into(),
            ..Target::default()
        };
        assert_eq!(
            text(&up.form(&target, READER).unwrap()),
            "<iq id='1'><x xmlns='u'/></iq>"
        );
    }

    #[test]
    fn a_carbon_holds_the_annotated_message() {
        let up = delivered(
            "<message xmlns='jabber:client' to='c@a.test'/>",
            Kind::Message,
            4,
        );
        let target = Target {
            form: Form::CarbonSent.into(),
            ..Target::default()
        };
        let built = up.form(&target, READER).unwrap();
        let built = text(&built);
        assert!(built.contains("<sent xmlns='urn:xmpp:carbons:2'>"));
        assert!(built.contains("to='bob@a.test/phone'"));
        let sid = built.find("<stanza-id").unwrap();
        assert!(sid < built.find("</forwarded>").unwrap());
    }

    #[test]
    fn a_push_is_addressed_to_the_session() {
        let up = delivered("<iq xmlns='jabber:client' type='set' id='p'/>", Kind::Iq, 0);
        let target = Target {
            form: Form::Push.into(),
            ..Target::default()
        };
        let built = up.form(&target, READER).unwrap();
        assert!(text(&built).contains("to='bob@a.test/phone'"));
    }

    #[test]
    fn presence_gets_its_address() {
        assert_eq!(
            insert_to(b"<presence/>", "a'b@x"),
            "<presence to='a&apos;b@x'/>"
        );
        assert_eq!(
            insert_to(b"<presence from='x'/>", "b@x"),
            "<presence to='b@x' from='x'/>"
        );
    }

    #[test]
    fn stamps() {
        assert_eq!(stamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(stamp(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(stamp(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(stamp(1_798_761_599_999), "2026-12-31T23:59:59.999Z");
    }
}
