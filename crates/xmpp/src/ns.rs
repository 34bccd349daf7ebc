//! Namespace names, by the standard that defines them.
//!
//! Owns no logic.

macro_rules! namespaces {
    ($($(#[$doc:meta])* $name:ident = $uri:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $uri;)*

        /// All of them, by constant name.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),*];
    };
}

namespaces! {
    /// RFC 6120 §4.8.2
    CLIENT = "jabber:client";
    /// RFC 6120 §4.8.2
    SERVER = "jabber:server";
    /// RFC 6120 §4.8.1
    STREAMS = "http://etherx.jabber.org/streams";
    /// RFC 6120 §4.9.2
    STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams";
    /// RFC 6120 §8.3.2
    STANZA_ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas";
    /// RFC 6120 §5.4
    TLS = "urn:ietf:params:xml:ns:xmpp-tls";
    /// RFC 6120 §6.4
    SASL = "urn:ietf:params:xml:ns:xmpp-sasl";
    /// XEP-0440
    SASL_CHANNEL_BINDING = "urn:xmpp:sasl-cb:0";
    /// XEP-0388
    SASL2 = "urn:xmpp:sasl:2";
    /// XEP-0386
    BIND2 = "urn:xmpp:bind:0";
    /// RFC 6120 §7.4
    BIND = "urn:ietf:params:xml:ns:xmpp-bind";
    /// RFC 3921 §3
    SESSION = "urn:ietf:params:xml:ns:xmpp-session";
    /// RFC 6121 §2.1
    ROSTER = "jabber:iq:roster";
    /// RFC 6121 §2.6
    ROSTER_VERSIONING = "urn:xmpp:features:rosterver";
    /// RFC 6121 §3.4
    PRE_APPROVAL = "urn:xmpp:features:pre-approval";
    /// RFC 7395
    FRAMING = "urn:ietf:params:xml:ns:xmpp-framing";
    /// XML 1.0 §2.12
    XML = "http://www.w3.org/XML/1998/namespace";
    /// XEP-0004
    DATA_FORMS = "jabber:x:data";
    /// XEP-0012
    LAST = "jabber:iq:last";
    /// XEP-0030
    DISCO_INFO = "http://jabber.org/protocol/disco#info";
    /// XEP-0030
    DISCO_ITEMS = "http://jabber.org/protocol/disco#items";
    /// XEP-0045
    MUC = "http://jabber.org/protocol/muc";
    /// XEP-0045
    MUC_USER = "http://jabber.org/protocol/muc#user";
    /// XEP-0045
    MUC_ADMIN = "http://jabber.org/protocol/muc#admin";
    /// XEP-0045
    MUC_OWNER = "http://jabber.org/protocol/muc#owner";
    /// XEP-0047
    IBB = "http://jabber.org/protocol/ibb";
    /// XEP-0049
    PRIVATE = "jabber:iq:private";
    /// XEP-0050
    COMMANDS = "http://jabber.org/protocol/commands";
    /// XEP-0054
    VCARD = "vcard-temp";
    /// XEP-0055
    SEARCH = "jabber:iq:search";
    /// XEP-0059
    RSM = "http://jabber.org/protocol/rsm";
    /// XEP-0060
    PUBSUB = "http://jabber.org/protocol/pubsub";
    /// XEP-0060
    PUBSUB_EVENT = "http://jabber.org/protocol/pubsub#event";
    /// XEP-0060
    PUBSUB_OWNER = "http://jabber.org/protocol/pubsub#owner";
    /// XEP-0066
    OOB = "jabber:x:oob";
    /// XEP-0077
    REGISTER = "jabber:iq:register";
    /// XEP-0084
    AVATAR_METADATA = "urn:xmpp:avatar:metadata";
    /// XEP-0084
    AVATAR_DATA = "urn:xmpp:avatar:data";
    /// XEP-0085
    CHAT_STATES = "http://jabber.org/protocol/chatstates";
    /// XEP-0091
    LEGACY_DELAY = "jabber:x:delay";
    /// XEP-0092
    VERSION = "jabber:iq:version";
    /// XEP-0114
    COMPONENT = "jabber:component:accept";
    /// XEP-0115
    CAPS = "http://jabber.org/protocol/caps";
    /// XEP-0115
    CAPS_OPTIMIZE = "http://jabber.org/protocol/caps#optimize";
    /// XEP-0138
    COMPRESS = "http://jabber.org/protocol/compress";
    /// XEP-0153
    VCARD_UPDATE = "vcard-temp:x:update";
    /// XEP-0160
    OFFLINE = "msgoffline";
    /// XEP-0172
    NICK = "http://jabber.org/protocol/nick";
    /// XEP-0184
    RECEIPTS = "urn:xmpp:receipts";
    /// XEP-0191
    BLOCKING = "urn:xmpp:blocking";
    /// XEP-0191
    BLOCKING_ERRORS = "urn:xmpp:blocking:errors";
    /// XEP-0198
    SM = "urn:xmpp:sm:3";
    /// XEP-0199
    PING = "urn:xmpp:ping";
    /// XEP-0202
    TIME = "urn:xmpp:time";
    /// XEP-0203
    DELAY = "urn:xmpp:delay";
    /// XEP-0215
    EXTERNAL_SERVICES = "urn:xmpp:extdisco:2";
    /// XEP-0220
    DIALBACK = "jabber:server:dialback";
    /// XEP-0224
    ATTENTION = "urn:xmpp:attention:0";
    /// XEP-0249
    CONFERENCE = "jabber:x:conference";
    /// XEP-0280
    CARBONS = "urn:xmpp:carbons:2";
    /// XEP-0280
    CARBONS_RULES = "urn:xmpp:carbons:rules:0";
    /// XEP-0297
    FORWARD = "urn:xmpp:forward:0";
    /// XEP-0300
    HASHES = "urn:xmpp:hashes:2";
    /// XEP-0308
    CORRECTION = "urn:xmpp:message-correct:0";
    /// XEP-0313
    MAM = "urn:xmpp:mam:2";
    /// XEP-0319
    IDLE = "urn:xmpp:idle:1";
    /// XEP-0333
    MARKERS = "urn:xmpp:chat-markers:0";
    /// XEP-0334
    HINTS = "urn:xmpp:hints";
    /// XEP-0352
    CSI = "urn:xmpp:csi:0";
    /// XEP-0357
    PUSH = "urn:xmpp:push:0";
    /// XEP-0359
    SID = "urn:xmpp:sid:0";
    /// XEP-0363
    UPLOAD = "urn:xmpp:http:upload:0";
    /// XEP-0377
    REPORTING = "urn:xmpp:reporting:1";
    /// XEP-0380
    EME = "urn:xmpp:eme:0";
    /// XEP-0390
    CAPS2 = "urn:xmpp:caps";
    /// XEP-0402
    BOOKMARKS = "urn:xmpp:bookmarks:1";
    /// XEP-0410
    MUC_SELF_PING = "http://jabber.org/protocol/muc#self-ping-optimization";
    /// XEP-0421
    OCCUPANT_ID = "urn:xmpp:occupant-id:0";
    /// XEP-0424
    RETRACT = "urn:xmpp:message-retract:1";
    /// XEP-0444
    REACTIONS = "urn:xmpp:reactions:0";
    /// XEP-0461
    REPLY = "urn:xmpp:reply:0";
    /// XEP-0478
    STREAM_LIMITS = "urn:xmpp:stream-limits:0";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn no_namespace_is_named_twice() {
        for (at, (name, uri)) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|(_, other)| other != uri), "{name}");
        }
    }
}
