//! The way between scanned elements and the typed payloads of `xmpp-parsers`.
//!
//! Only for payloads that the server itself consumes or makes. Other people's stanzas never pass
//! through here: typed structs lose what they do not know.

use chancery_xml::Element;

use crate::error::{Condition, StanzaError};
use crate::ns;

pub use minidom;
pub use xmpp_parsers;

/// A tree of the whole element. The caps of the scan have bounded its depth and size.
pub fn tree(element: &Element) -> Result<minidom::Element, StanzaError> {
    minidom::Element::from_reader_with_prefixes(&element.bytes[..], ns::CLIENT.to_owned())
        .map_err(|_| StanzaError::new(Condition::BadRequest))
}

/// The child at this index as a typed payload; what does not fit is answered `bad-request`.
pub fn payload<T>(element: &Element, index: usize) -> Result<T, StanzaError>
where
    T: TryFrom<minidom::Element>,
{
    let mut root = tree(element)?;
    let child = root.take_contents_as_children().nth(index);
    let child = child.ok_or(Condition::BadRequest)?;
    T::try_from(child).map_err(|_| StanzaError::new(Condition::BadRequest))
}

/// A payload as XML that declares its own namespace.
pub fn write(payload: impl Into<minidom::Element>) -> String {
    String::from(&payload.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use chancery_xml::{Limits, scan};
    use xmpp_parsers::disco::DiscoInfoQuery;
    use xmpp_parsers::ping::Ping;

    fn element(xml: &'static str) -> Element {
        scan(&Bytes::from_static(xml.as_bytes()), &Limits::after_auth()).unwrap()
    }

    #[test]
    fn payloads_are_read_and_written() {
        let iq = element(
            "<iq type='get' id='1' xmlns:d='http://jabber.org/protocol/disco#info'><d:query node='n'/></iq>",
        );
        let query: DiscoInfoQuery = payload(&iq, 0).unwrap();
        assert_eq!(query.node.as_deref(), Some("n"));
        assert_eq!(
            payload::<Ping>(&iq, 0).unwrap_err().condition,
            Condition::BadRequest
        );
        assert_eq!(
            payload::<Ping>(&iq, 1).unwrap_err().condition,
            Condition::BadRequest
        );
        assert_eq!(write(Ping), "<ping xmlns='urn:xmpp:ping'/>");
    }
}
