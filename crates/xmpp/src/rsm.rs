//! Result set management (XEP-0059): what a client asks of a page, and what the page says of itself.
//! Refuses to know what is paged.

use chancery_xml::{escape_text, push_attr};
use minidom::Element;

use crate::error::{Condition, StanzaError};
use crate::ns;

/// What a client asks of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Items at most; larger numbers than this can hold ask for as many.
    pub max: Option<u32>,
    /// The page after this item.
    pub after: Option<String>,
    /// The page before this item; empty: the last page.
    pub before: Option<String>,
    /// The page at this place of the whole set (XEP-0059 §2.6).
    pub index: Option<u32>,
}

impl Request {
    /// Reads a `<set/>`.
    pub fn read(set: &Element) -> Result<Self, StanzaError> {
        let mut request = Self::default();
        for child in set.children().filter(|child| child.ns() == ns::RSM) {
            let text = child.text();
            let twice = match child.name() {
                "max" => request.max.replace(number(&text)?).is_some(),
                "index" => request.index.replace(number(&text)?).is_some(),
                "after" => request.after.replace(text).is_some(),
                "before" => request.before.replace(text).is_some(),
                _ => false,
            };
            if twice {
                return Err(StanzaError::new(Condition::BadRequest));
            }
        }
        // Before the first item is nothing: only `before` may be empty.
        if request.after.as_deref() == Some("") {
            request.after = None;
        }
        Ok(request)
    }

    /// Whether the page is looked for from its end.
    pub fn is_backward(&self) -> bool {
        self.before.is_some()
    }
}

/// Digits only: a sign, a point or an exponent is no number of items.
fn number(text: &str) -> Result<u32, StanzaError> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(StanzaError::new(Condition::BadRequest));
    }
    Ok(text.parse().unwrap_or(u32::MAX))
}

/// What a page says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page<'a> {
    pub first: Option<&'a str>,
    pub last: Option<&'a str>,
    /// Place of the first item in the whole set.
    pub index: Option<u64>,
    /// Items of the whole set.
    pub count: Option<u64>,
}

impl Page<'_> {
    /// Appends the `<set/>`.
    pub fn write(&self, out: &mut String) {
        out.push_str("<set");
        push_attr(out, "xmlns", ns::RSM);
        out.push('>');
        if let Some(first) = self.first {
            out.push_str("<first");
            if let Some(index) = self.index {
                push_attr(out, "index", &index.to_string());
            }
            out.push('>');
            escape_text(out, first);
            out.push_str("</first>");
        }
        if let Some(last) = self.last {
            out.push_str("<last>");
            escape_text(out, last);
            out.push_str("</last>");
        }
        if let Some(count) = self.count {
            out.push_str(&format!("<count>{count}</count>"));
        }
        out.push_str("</set>");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(inner: &str) -> Result<Request, Condition> {
        let set = format!("<set xmlns='{}'>{inner}</set>", ns::RSM);
        Request::read(&set.parse().unwrap()).map_err(|error| error.condition)
    }

    #[test]
    fn a_page_is_asked_for() {
        let all = "<max> 10 </max><after>a</after><before/><index>3</index><x xmlns='u'/>";
        let expected = Request {
            max: Some(10),
            after: Some("a".into()),
            before: Some(String::new()),
            index: Some(3),
        };
        assert_eq!(read(all), Ok(expected));
        assert_eq!(read(""), Ok(Request::default()));
        assert_eq!(read("<after/>"), Ok(Request::default()));
        assert!(read("<before/>").unwrap().is_backward());
        for (max, expected) in [("4294967295", u32::MAX), ("99999999999999999999", u32::MAX)] {
            let read = read(&format!("<max>{max}</max>")).unwrap();
            assert_eq!(read.max, Some(expected));
        }
    }

    #[test]
    fn what_is_no_number_or_said_twice_is_refused() {
        for inner in [
            "<max>-1</max>",
            "<max>1e9</max>",
            "<max>+1</max>",
            "<max>1.0</max>",
            "<max/>",
            "<index>x</index>",
            "<max>1</max><max>1</max>",
            "<after>a</after><after>b</after>",
        ] {
            assert_eq!(read(inner), Err(Condition::BadRequest), "{inner}");
        }
    }

    #[test]
    fn a_page_says_what_is_known() {
        let mut out = String::new();
        let page = Page {
            first: Some("a<"),
            last: Some("b"),
            index: Some(0),
            count: Some(7),
        };
        page.write(&mut out);
        assert_eq!(
            out,
            "<set xmlns='http://jabber.org/protocol/rsm'><first index='0'>a&lt;</first>\
             <last>b</last><count>7</count></set>"
        );
        out.clear();
        Page::default().write(&mut out);
        assert_eq!(out, "<set xmlns='http://jabber.org/protocol/rsm'></set>");
    }
}
