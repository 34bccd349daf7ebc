//! Escaping of text and attribute values.
//!
//! What it writes is always legal XML 1.0: characters that XML cannot carry become U+FFFD.

use std::borrow::Cow;

/// Whether XML 1.0 can carry this character (§2.2, production 2).
pub fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Appends `text` as character data.
pub fn escape_text(out: &mut String, text: &str) {
    escape(out, text, &TEXT, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        // a literal CR would be read back as LF (XML 1.0 §2.11)
        '\r' => Some("&#13;"),
        _ => None,
    });
}

/// Appends `value` so that it can stand between quotes of either kind.
pub fn escape_attr(out: &mut String, value: &str) {
    escape(out, value, &ATTR, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\'' => Some("&apos;"),
        '"' => Some("&quot;"),
        // literal white space would be normalised to a space (XML 1.0 §3.3.3)
        '\t' => Some("&#9;"),
        '\n' => Some("&#10;"),
        '\r' => Some("&#13;"),
        _ => None,
    });
}

/// Bytes that are copied as they are, whatever they belong to: all but those that `looked_at` names,
/// control characters, and the first of U+F000 to U+FFFF, two of which XML cannot carry.
const fn copied(looked_at: &[u8]) -> [bool; 256] {
    let mut table = [true; 256];
    let mut at = 0;
    while at < 0x20 {
        table[at] = false;
        at += 1;
    }
    table[0xef] = false;
    at = 0;
    while at < looked_at.len() {
        table[looked_at[at] as usize] = false;
        at += 1;
    }
    table
}

static TEXT: [bool; 256] = copied(b"&<>");
static ATTR: [bool; 256] = copied(b"&<>'\"");

/// Appends ` name='value'`.
pub fn push_attr(out: &mut String, name: &str, value: &str) {
    out.push(' ');
    out.push_str(name);
    out.push_str("='");
    escape_attr(out, value);
    out.push('\'');
}

fn escape(
    out: &mut String,
    text: &str,
    copied: &[bool; 256],
    entity: impl Fn(char) -> Option<&'static str>,
) {
    let (mut from, mut at) = (0, 0);
    let needs_look = |byte: &u8| !copied[usize::from(*byte)];
    while let Some(found) = text.as_bytes()[at..].iter().position(needs_look) {
        let start = at + found;
        // Only first bytes of characters are looked at.
        let Some(c) = text[start..].chars().next() else {
            break;
        };
        at = start + c.len_utf8();
        let replacement = match entity(c) {
            Some(entity) => entity,
            None if is_xml_char(c) => continue,
            None => "\u{fffd}",
        };
        out.push_str(&text[from..start]);
        out.push_str(replacement);
        from = at;
    }
    out.push_str(&text[from..]);
}

/// Undoes references, CDATA sections and line ends in validated character data.
///
/// Markup of child elements must have been cut out by the caller.
pub(crate) fn unescape_text(raw: &str) -> Cow<'_, str> {
    if memchr::memchr3(b'&', b'<', b'\r', raw.as_bytes()).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr3(b'&', b'<', b'\r', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(cdata) = rest.strip_prefix("<![CDATA[") {
            let end = cdata.find("]]>").unwrap_or(cdata.len());
            push_normalised(&mut out, &cdata[..end]);
            rest = cdata.get(end + 3..).unwrap_or("");
        } else if let Some(after) = rest.strip_prefix('\r') {
            out.push('\n');
            rest = after.strip_prefix('\n').unwrap_or(after);
        } else if let Some((name, after)) = rest[1..].split_once(';') {
            out.extend(reference(name));
            rest = after;
        } else {
            break; // cannot be in validated input
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn push_normalised(out: &mut String, cdata: &str) {
    let mut parts = cdata.split("\r\n");
    out.extend(parts.next().map(|part| part.replace('\r', "\n")));
    for part in parts {
        out.push('\n');
        out.push_str(&part.replace('\r', "\n"));
    }
}

fn reference(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "apos" => Some('\''),
        "quot" => Some('"'),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_a_parser_would_change() {
        let mut out = String::new();
        escape_attr(&mut out, "a<b>&'\"\t\n\r\u{1}z");
        assert_eq!(out, "a&lt;b&gt;&amp;&apos;&quot;&#9;&#10;&#13;\u{fffd}z");
        out.clear();
        escape_text(&mut out, "a<]]>&\r\n'");
        assert_eq!(out, "a&lt;]]&gt;&amp;&#13;\n'");
    }

    #[test]
    fn unescapes_every_construct_of_character_data() {
        let raw = "a&amp;b&#65;&#x1F600;\r\nc\rd<![CDATA[<&amp;\r\n\r]]>e";
        assert_eq!(unescape_text(raw), "a&bA\u{1F600}\nc\nd<&amp;\n\ne");
        assert!(matches!(unescape_text("plain"), Cow::Borrowed(_)));
    }
}
