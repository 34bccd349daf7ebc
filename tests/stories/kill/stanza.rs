//! What a probe looks at in a stanza: text, not trees, so that nothing is mended on the way.

use chancery_xml::Element;

/// An element as text.
pub(super) fn text(element: &Element) -> String {
    String::from_utf8_lossy(&element.bytes).into_owned()
}

/// The message inside a carbon (XEP-0280), or the message itself.
pub(super) fn unwrapped(stanza: &str) -> &str {
    let Some(at) = stanza.find("<forwarded") else {
        return stanza;
    };
    let inner = &stanza[at..];
    let from = inner.find("<message").unwrap_or_default();
    let to = inner
        .find("</message>")
        .map_or(inner.len(), |end| end + "</message>".len());
    &inner[from..to]
}

/// An attribute of the first element that opens like this.
pub(super) fn attribute(stanza: &str, opening: &str, name: &str) -> Option<String> {
    let tag = stanza.split_once(opening)?.1.split('>').next()?;
    for quote in ['\'', '"'] {
        if let Some((_, rest)) = tag.split_once(&format!(" {name}={quote}")) {
            return rest.split(quote).next().map(str::to_owned);
        }
    }
    None
}

/// Condition and type of a stanza error.
pub(super) fn condition(element: &Element) -> (String, String) {
    let error = element
        .header
        .children
        .iter()
        .find(|child| &*child.name == "error");
    let Some(error) = error else {
        return (String::new(), String::new());
    };
    let condition = error
        .children
        .iter()
        .map(|child| child.name.to_string())
        .next();
    let kind = error
        .attrs
        .iter()
        .find(|a| &*a.name == "type")
        .map(|a| a.value.to_string());
    (condition.unwrap_or_default(), kind.unwrap_or_default())
}
