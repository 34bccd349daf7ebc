//! The three families of errors that peers see: stream errors, SASL failures, stanza errors.
//!
//! Owns their names, default types and written form. Refuses to decide when they are sent.

use std::borrow::Cow;

use bytes::Bytes;
use chancery_xml::{Element, FrameError, escape_text, push_attr};

use crate::jid::JidError;
use crate::ns;

macro_rules! conditions {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Name of the element that stands for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The condition with this element name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|condition| condition.as_str() == name)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

conditions! {
    /// RFC 6120 §4.9.3.
    StreamCondition {
        BadFormat = "bad-format",
        BadNamespacePrefix = "bad-namespace-prefix",
        Conflict = "conflict",
        ConnectionTimeout = "connection-timeout",
        HostGone = "host-gone",
        HostUnknown = "host-unknown",
        ImproperAddressing = "improper-addressing",
        InternalServerError = "internal-server-error",
        InvalidFrom = "invalid-from",
        InvalidNamespace = "invalid-namespace",
        InvalidXml = "invalid-xml",
        NotAuthorized = "not-authorized",
        NotWellFormed = "not-well-formed",
        PolicyViolation = "policy-violation",
        RemoteConnectionFailed = "remote-connection-failed",
        Reset = "reset",
        ResourceConstraint = "resource-constraint",
        RestrictedXml = "restricted-xml",
        SeeOtherHost = "see-other-host",
        SystemShutdown = "system-shutdown",
        UndefinedCondition = "undefined-condition",
        UnsupportedEncoding = "unsupported-encoding",
        UnsupportedFeature = "unsupported-feature",
        UnsupportedStanzaType = "unsupported-stanza-type",
        UnsupportedVersion = "unsupported-version",
    }
}

conditions! {
    /// RFC 6120 §6.5.
    SaslFailure {
        Aborted = "aborted",
        AccountDisabled = "account-disabled",
        CredentialsExpired = "credentials-expired",
        EncryptionRequired = "encryption-required",
        IncorrectEncoding = "incorrect-encoding",
        InvalidAuthzid = "invalid-authzid",
        InvalidMechanism = "invalid-mechanism",
        MalformedRequest = "malformed-request",
        MechanismTooWeak = "mechanism-too-weak",
        NotAuthorized = "not-authorized",
        TemporaryAuthFailure = "temporary-auth-failure",
    }
}

conditions! {
    /// RFC 6120 §8.3.3.
    Condition {
        BadRequest = "bad-request",
        Conflict = "conflict",
        FeatureNotImplemented = "feature-not-implemented",
        Forbidden = "forbidden",
        Gone = "gone",
        InternalServerError = "internal-server-error",
        ItemNotFound = "item-not-found",
        JidMalformed = "jid-malformed",
        NotAcceptable = "not-acceptable",
        NotAllowed = "not-allowed",
        NotAuthorized = "not-authorized",
        PolicyViolation = "policy-violation",
        RecipientUnavailable = "recipient-unavailable",
        Redirect = "redirect",
        RegistrationRequired = "registration-required",
        RemoteServerNotFound = "remote-server-not-found",
        RemoteServerTimeout = "remote-server-timeout",
        ResourceConstraint = "resource-constraint",
        ServiceUnavailable = "service-unavailable",
        SubscriptionRequired = "subscription-required",
        UndefinedCondition = "undefined-condition",
        UnexpectedRequest = "unexpected-request",
    }
}

conditions! {
    /// What the sender may do about a stanza error (RFC 6120 §8.3.2).
    ErrorType {
        Auth = "auth",
        Cancel = "cancel",
        Continue = "continue",
        Modify = "modify",
        Wait = "wait",
    }
}

impl Condition {
    /// The type that RFC 6120 §8.3.3 recommends.
    pub const fn default_type(self) -> ErrorType {
        match self {
            Self::Forbidden
            | Self::NotAuthorized
            | Self::RegistrationRequired
            | Self::SubscriptionRequired => ErrorType::Auth,
            Self::BadRequest
            | Self::JidMalformed
            | Self::NotAcceptable
            | Self::PolicyViolation
            | Self::Redirect => ErrorType::Modify,
            Self::RecipientUnavailable
            | Self::RemoteServerTimeout
            | Self::ResourceConstraint
            | Self::UnexpectedRequest => ErrorType::Wait,
            Self::Conflict
            | Self::FeatureNotImplemented
            | Self::Gone
            | Self::InternalServerError
            | Self::ItemNotFound
            | Self::NotAllowed
            | Self::RemoteServerNotFound
            | Self::ServiceUnavailable
            | Self::UndefinedCondition => ErrorType::Cancel,
        }
    }
}

/// An error that ends a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream error: {condition}")]
pub struct StreamError {
    pub condition: StreamCondition,
    pub text: Option<Cow<'static, str>>,
    /// Namespace and name of an application-specific child (RFC 6120 §4.9.4).
    pub app: Option<(&'static str, &'static str)>,
}

impl StreamError {
    pub const fn new(condition: StreamCondition) -> Self {
        Self {
            condition,
            text: None,
            app: None,
        }
    }

    pub fn with_text(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.text = Some(text.into());
        self
    }

    pub fn with_app(mut self, ns: &'static str, name: &'static str) -> Self {
        self.app = Some((ns, name));
        self
    }

    /// The error element for an open stream whose prefix `stream` is bound; the caller closes it.
    pub fn write(&self) -> String {
        let mut out = String::from("<stream:error>");
        write_children(
            &mut out,
            self.condition.as_str(),
            ns::STREAM_ERRORS,
            self.text.as_deref(),
        );
        if let Some((ns, name)) = self.app {
            write_empty(&mut out, name, ns);
        }
        out.push_str("</stream:error>");
        out
    }
}

impl From<StreamCondition> for StreamError {
    fn from(condition: StreamCondition) -> Self {
        Self::new(condition)
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> Self {
        let condition = match error {
            FrameError::RestrictedXml => StreamCondition::RestrictedXml,
            FrameError::NotWellFormed => StreamCondition::NotWellFormed,
            FrameError::UnsupportedEncoding => StreamCondition::UnsupportedEncoding,
            FrameError::BadFormat => StreamCondition::BadFormat,
            FrameError::InvalidNamespace => StreamCondition::InvalidNamespace,
            FrameError::BadNamespacePrefix => StreamCondition::BadNamespacePrefix,
            FrameError::PolicyViolation(limit) => {
                return Self::new(StreamCondition::PolicyViolation)
                    .with_text(format!("limit exceeded: {limit}"));
            }
        };
        Self::new(condition)
    }
}

impl SaslFailure {
    pub const fn condition(self) -> &'static str {
        self.as_str()
    }

    /// The failure element (RFC 6120 §6.4.5).
    pub fn write(self) -> String {
        format!(
            "<failure xmlns='{}'><{}/></failure>",
            ns::SASL,
            self.as_str()
        )
    }
}

impl std::error::Error for SaslFailure {}

/// An error that answers one stanza.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stanza error: {condition}")]
pub struct StanzaError {
    pub type_: ErrorType,
    pub condition: Condition,
    pub text: Option<Box<str>>,
    /// Namespace and name of an application-specific child (RFC 6120 §8.3.4).
    pub app: Option<(Cow<'static, str>, Cow<'static, str>)>,
}

impl StanzaError {
    /// With the type that RFC 6120 §8.3.3 recommends.
    pub const fn new(condition: Condition) -> Self {
        Self {
            type_: condition.default_type(),
            condition,
            text: None,
            app: None,
        }
    }

    pub fn with_type(mut self, type_: ErrorType) -> Self {
        self.type_ = type_;
        self
    }

    pub fn with_text(mut self, text: impl Into<Box<str>>) -> Self {
        self.text = Some(text.into());
        self
    }

    pub fn with_app(
        mut self,
        ns: impl Into<Cow<'static, str>>,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.app = Some((ns.into(), name.into()));
        self
    }

    /// Appends the `<error/>` element.
    pub fn write(&self, out: &mut String) {
        out.push_str("<error");
        push_attr(out, "type", self.type_.as_str());
        out.push('>');
        write_children(
            out,
            self.condition.as_str(),
            ns::STANZA_ERRORS,
            self.text.as_deref(),
        );
        if let Some((ns, name)) = &self.app {
            write_empty(out, name, ns);
        }
        out.push_str("</error>");
    }

    /// The answer to a stanza, in the stream's default namespace, or `None` when there must be
    /// none: to an error, and to the result of an IQ (RFC 6120 §8.3.1, §8.2.3).
    ///
    /// Addresses not given are taken from the original, swapped.
    pub fn reply(&self, original: &Element, from: Option<&str>, to: Option<&str>) -> Option<Bytes> {
        let header = &original.header;
        let name = match &*header.name {
            name @ ("message" | "presence" | "iq") => name,
            _ => return None,
        };
        match header.type_.as_deref() {
            Some("error") => return None,
            Some("result") if name == "iq" => return None,
            _ => {}
        }
        let mut out = String::with_capacity(256);
        out.push('<');
        out.push_str(name);
        push_attr(&mut out, "type", "error");
        let attrs = [
            ("from", from.or(header.to.as_deref())),
            ("to", to.or(header.from.as_deref())),
            ("id", header.id.as_deref()),
        ];
        for (name, value) in attrs {
            if let Some(value) = value {
                push_attr(&mut out, name, value);
            }
        }
        out.push('>');
        self.write(&mut out);
        out.push_str("</");
        out.push_str(name);
        out.push('>');
        Some(Bytes::from(out))
    }
}

impl From<Condition> for StanzaError {
    fn from(condition: Condition) -> Self {
        Self::new(condition)
    }
}

impl From<JidError> for StanzaError {
    fn from(_: JidError) -> Self {
        Self::new(Condition::JidMalformed)
    }
}

fn write_children(out: &mut String, condition: &str, ns: &str, text: Option<&str>) {
    write_empty(out, condition, ns);
    if let Some(text) = text {
        out.push_str("<text");
        push_attr(out, "xmlns", ns);
        push_attr(out, "xml:lang", "en");
        out.push('>');
        escape_text(out, text);
        out.push_str("</text>");
    }
}

fn write_empty(out: &mut String, name: &str, ns: &str) {
    out.push('<');
    out.push_str(name);
    push_attr(out, "xmlns", ns);
    out.push_str("/>");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use chancery_xml::{Limits, scan};

    fn element(xml: &str) -> Element {
        scan(
            &Bytes::copy_from_slice(xml.as_bytes()),
            &Limits::after_auth(),
        )
        .unwrap()
    }

    #[test]
    fn a_reply_swaps_addresses_and_keeps_the_id() {
        let original = element("<message from='a@x/r' to='b@y' id='&lt;1'><body/></message>");
        let error = StanzaError::new(Condition::PolicyViolation)
            .with_text("no & never")
            .with_app("urn:x", "wall");
        let reply =
            element(std::str::from_utf8(&error.reply(&original, None, None).unwrap()).unwrap());
        let header = &reply.header;
        assert_eq!(
            (header.from.as_deref(), header.to.as_deref()),
            (Some("b@y"), Some("a@x/r"))
        );
        assert_eq!(
            (header.id.as_deref(), header.type_.as_deref()),
            (Some("<1"), Some("error"))
        );
        let child = &header.children[0];
        assert_eq!(child.attr("type"), Some("modify"));
        assert!(child.children[0].is("policy-violation", ns::STANZA_ERRORS));
        assert!(child.children[1].is("text", ns::STANZA_ERRORS));
        assert!(child.children[2].is("wall", "urn:x"));
        assert_eq!(reply.child_text(&child.children[1]), "no & never");
        let given = error.reply(&original, Some("c@z"), Some("d@w")).unwrap();
        let given = element(std::str::from_utf8(&given).unwrap()).header;
        assert_eq!(
            (given.from.as_deref(), given.to.as_deref()),
            (Some("c@z"), Some("d@w"))
        );
    }

    #[test]
    fn errors_and_results_are_never_answered() {
        let error = StanzaError::new(Condition::ServiceUnavailable);
        for xml in [
            "<message type='error'/>",
            "<presence type='error'/>",
            "<iq type='error' id='1'/>",
            "<iq type='result' id='1'/>",
            "<r xmlns='urn:xmpp:sm:3'/>",
        ] {
            assert_eq!(error.reply(&element(xml), None, None), None, "{xml}");
        }
        for xml in [
            "<message type='result'/>",
            "<presence/>",
            "<iq type='foo'/>",
        ] {
            assert!(error.reply(&element(xml), None, None).is_some(), "{xml}");
        }
    }

    #[test]
    fn stream_errors_are_written_with_their_namespace() {
        let error = StreamError::from(FrameError::PolicyViolation(chancery_xml::Limit::Depth));
        let xml = error
            .write()
            .replacen("<stream:error", "<stream:error xmlns:stream='s'", 1);
        let read = element(&xml);
        assert!(read.is("error", "s"));
        assert!(read.header.children[0].is("policy-violation", ns::STREAM_ERRORS));
        assert_eq!(
            read.child_text(&read.header.children[1]),
            "limit exceeded: nesting depth"
        );
    }

    #[test]
    fn names_are_found_again() {
        for condition in Condition::ALL {
            assert_eq!(Condition::from_name(condition.as_str()), Some(*condition));
        }
        assert_eq!(Condition::ALL.len(), 22);
        assert_eq!(StreamCondition::ALL.len(), 25);
        assert_eq!(SaslFailure::ALL.len(), 11);
        assert_eq!(Condition::from_name("payment-required"), None);
        assert_eq!(
            SaslFailure::NotAuthorized.write(),
            "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>"
        );
    }
}
