//! Does an element that came in match what a scenario expects? Subset matching with captures.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use minidom::{Element, Node};

/// Captured values, by name; filled by `{=name}`, used by `{name}`.
pub type Captures = BTreeMap<String, String>;

/// Parses one stanza; the default namespace is jabber:client where none is declared.
pub fn parse(text: &str) -> Result<Element> {
    let text = text.trim();
    let end = text
        .char_indices()
        .skip(1)
        .find(|(_, c)| c.is_whitespace() || *c == '>' || *c == '/')
        .map_or(text.len(), |(i, _)| i);
    let tag_end = text.find('>').unwrap_or(text.len());
    let root = &text[..tag_end];
    let declared = root.contains(" xmlns=") || root.contains("\nxmlns=");
    let whole = if declared || text[..end].contains(':') {
        text.to_owned()
    } else {
        format!("{} xmlns='jabber:client'{}", &text[..end], &text[end..])
    };
    whole.parse().with_context(|| format!("not XML: {text}"))
}

/// Why `got` does not match `wanted`, if so. Attributes, children and text that `wanted` does not
/// name are not looked at; `*` stands for anything.
pub fn differs(wanted: &Element, got: &Element, captures: &mut Captures) -> Option<String> {
    if wanted.name() != got.name() || wanted.ns() != got.ns() {
        return Some(format!(
            "expected <{} xmlns='{}'/>, got <{} xmlns='{}'/>",
            wanted.name(),
            wanted.ns(),
            got.name(),
            got.ns()
        ));
    }
    for ((_, name), value) in wanted.attrs() {
        let given = got.attr(name.as_str());
        if value.as_str() == "{absent}" {
            if given.is_some() {
                return Some(format!("attribute {name} is there"));
            }
            continue;
        }
        let Some(given) = given else {
            return Some(format!("attribute {name} is missing"));
        };
        if let Some(reason) = value_differs(value, given, captures) {
            return Some(format!("attribute {name}: {reason}"));
        }
    }
    let text = text_of(wanted);
    if !text.trim().is_empty()
        && let Some(reason) = value_differs(&text, &text_of(got), captures)
    {
        return Some(format!("text of <{}/>: {reason}", wanted.name()));
    }
    let mut free: Vec<&Element> = got.children().collect();
    for child in wanted.children() {
        let mut reasons = Vec::new();
        let found = free.iter().position(|candidate| {
            let mut trial = captures.clone();
            match differs(child, candidate, &mut trial) {
                None => {
                    *captures = trial;
                    true
                }
                Some(reason) => {
                    reasons.push(reason);
                    false
                }
            }
        });
        let Some(at) = found else {
            return Some(format!(
                "no child <{}/>: {}",
                child.name(),
                reasons.join("; ")
            ));
        };
        free.remove(at);
    }
    None
}

fn text_of(element: &Element) -> String {
    element
        .nodes()
        .filter_map(|node| match node {
            Node::Text(text) => Some(text.as_str()),
            Node::Element(_) => None,
        })
        .collect()
}

fn value_differs(wanted: &str, given: &str, captures: &mut Captures) -> Option<String> {
    if wanted.trim() == "*" {
        return None;
    }
    if let Some(name) = wanted
        .trim()
        .strip_prefix("{=")
        .and_then(|w| w.strip_suffix('}'))
    {
        captures.insert(name.to_owned(), given.to_owned());
        return None;
    }
    let wanted = substitute(wanted, captures);
    (wanted != given).then(|| format!("expected {wanted:?}, got {given:?}"))
}

/// Replaces `{name}` by what was captured under it; an unknown name stays as it is.
pub fn substitute(text: &str, captures: &Captures) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let known = from.find('}').and_then(|close| {
            captures
                .get(&from[1..close])
                .map(|value| (value, &from[close + 1..]))
        });
        match known {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('{');
                rest = &from[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: &str, got: &str) -> Option<String> {
        differs(
            &parse(wanted).unwrap(),
            &parse(got).unwrap(),
            &mut Captures::new(),
        )
    }

    #[test]
    fn a_subset_matches_and_anything_else_does_not() {
        let got = "<message from='a' type='chat'><body>hi</body><x xmlns='y' k='v'/></message>";
        assert_eq!(
            check("<message type='chat'><body>hi</body></message>", got),
            None
        );
        assert_eq!(check("<message><x xmlns='y' k='*'/></message>", got), None);
        assert!(check("<message><body>ho</body></message>", got).is_some());
        assert!(check("<message to='b'/>", got).is_some());
        assert!(check("<message type='{absent}'/>", got).is_some());
        assert!(check("<iq/>", got).is_some());
    }

    #[test]
    fn captures_are_used_later() {
        let mut captures = Captures::new();
        let wanted = parse("<message id='{=id}'/>").unwrap();
        let got = parse("<message id='77'/>").unwrap();
        assert_eq!(differs(&wanted, &got, &mut captures), None);
        assert_eq!(substitute("x{id}y{none}", &captures), "x77y{none}");
    }
}
