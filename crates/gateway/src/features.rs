//! Stream features (RFC 6120 §4.3.2): STARTTLS and nothing else in clear text, mechanisms and channel
//! bindings in TLS, then what the features of `iq/` have registered. In TLS each says what may be sent
//! at once (XEP-0478). Compression is never among them (XEP-0138).

use chancery_xmpp::ns;

use crate::sasl::Mechanism;
use crate::sasl::channel_binding::ChannelBindings;

/// In clear text: TLS is the only thing that can be negotiated (RFC 6120 §5.3.1).
pub fn before_tls() -> String {
    format!(
        "<stream:features><starttls xmlns='{}'><required/></starttls></stream:features>",
        ns::TLS
    )
}

/// In TLS, before authentication; an element may have so many bytes.
pub fn before_auth(bindings: &ChannelBindings, element_bytes: u32) -> String {
    let mut out = format!("<stream:features><mechanisms xmlns='{}'>", ns::SASL);
    for mechanism in Mechanism::offered(bindings) {
        out.push_str("<mechanism>");
        out.push_str(mechanism.name());
        out.push_str("</mechanism>");
    }
    out.push_str("</mechanisms>");
    if bindings.any() {
        // XEP-0440
        out.push_str("<sasl-channel-binding xmlns='");
        out.push_str(ns::SASL_CHANNEL_BINDING);
        out.push_str("'>");
        for name in bindings.names() {
            out.push_str("<channel-binding type='");
            out.push_str(name);
            out.push_str("'/>");
        }
        out.push_str("</sasl-channel-binding>");
    }
    out.push_str(&limits(element_bytes));
    out.push_str("</stream:features>");
    out
}

/// After authentication: what was `registered`; an element may have so many bytes.
pub fn after_auth(registered: &str, element_bytes: u32) -> String {
    let limits = limits(element_bytes);
    format!("<stream:features>{registered}{limits}</stream:features>")
}

/// XEP-0478. Silence has no limit of ours to be told: TCP probes the peer.
fn limits(element_bytes: u32) -> String {
    let ns = ns::STREAM_LIMITS;
    format!("<limits xmlns='{ns}'><max-bytes>{element_bytes}</max-bytes></limits>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_in_order_and_only_what_there_is() {
        let both = ChannelBindings::for_test(Some([1; 32]), Some(&[2; 32]));
        assert_eq!(
            before_auth(&both, 16384),
            "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
             <mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism>\
             <mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism>\
             <mechanism>PLAIN</mechanism></mechanisms>\
             <sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'>\
             <channel-binding type='tls-exporter'/><channel-binding type='tls-server-end-point'/>\
             </sasl-channel-binding><limits xmlns='urn:xmpp:stream-limits:0'>\
             <max-bytes>16384</max-bytes></limits></stream:features>"
        );
        let none = before_auth(&ChannelBindings::default(), 1);
        assert!(!none.contains("PLUS") && !none.contains("sasl-cb") && none.contains("PLAIN"));
        assert!(!before_tls().contains("mechanism") && before_tls().contains("<required/>"));
    }
}
