//! Whom to write to about a domain (XEP-0157): addresses by role, as the configuration has them, and
//! the form that service discovery shows. Refuses to write to anybody.

use chancery_xml::{escape_text, push_attr};
use chancery_xmpp::caps::Form;
use chancery_xmpp::ns;
use serde::{Deserialize, Serialize};

/// Addresses of one role.
const ADDRESSES: usize = 16;
/// Bytes of one address.
const ADDRESS_BYTES: usize = 1023;
/// Value of the form's FORM_TYPE.
const FORM_TYPE: &str = "http://jabber.org/network/serverinfo";

/// Addresses of one domain, by role: URIs such as `mailto:abuse@example.org`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contacts {
    /// For reports of abuse.
    pub abuse: Vec<String>,
    /// For the administrators.
    pub admin: Vec<String>,
    /// For what people think of the service.
    pub feedback: Vec<String>,
    /// For those who want to buy.
    pub sales: Vec<String>,
    /// For reports of weaknesses.
    pub security: Vec<String>,
    /// Where the state of the service is told.
    pub status: Vec<String>,
    /// For help.
    pub support: Vec<String>,
}

impl Contacts {
    /// The roles, by the form's fields, in the fields' order.
    fn fields(&self) -> [(&'static str, &'static str, &[String]); 7] {
        [
            ("abuse", "abuse-addresses", &self.abuse),
            ("admin", "admin-addresses", &self.admin),
            ("feedback", "feedback-addresses", &self.feedback),
            ("sales", "sales-addresses", &self.sales),
            ("security", "security-addresses", &self.security),
            ("status", "status-addresses", &self.status),
            ("support", "support-addresses", &self.support),
        ]
    }

    /// Says nothing?
    pub fn is_empty(&self) -> bool {
        self.fields().iter().all(|(_, _, values)| values.is_empty())
    }

    /// Every problem, with the role it is in.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (role, _, values) in self.fields() {
            if values.len() > ADDRESSES {
                problems.push((role, format!("has more than {ADDRESSES} addresses")));
            }
            for value in values.iter().filter(|value| !is_uri(value)) {
                let text = format!("`{value}` is no URI; expected e.g. mailto:{role}@example.org");
                problems.push((role, text));
            }
        }
        problems
    }

    /// As a part of the capabilities' verification string.
    pub(crate) fn form(&self) -> Form<'_> {
        let mut fields = Vec::new();
        for (_, field, values) in self.fields() {
            if !values.is_empty() {
                fields.push((field, values.iter().map(String::as_str).collect()));
            }
        }
        Form {
            form_type: FORM_TYPE,
            fields,
        }
    }

    /// The form (XEP-0128).
    pub(crate) fn write(&self, out: &mut String) {
        out.push_str("<x");
        push_attr(out, "xmlns", ns::DATA_FORMS);
        push_attr(out, "type", "result");
        out.push_str("><field var='FORM_TYPE' type='hidden'><value>");
        out.push_str(FORM_TYPE);
        out.push_str("</value></field>");
        for (_, field, values) in self.fields() {
            if values.is_empty() {
                continue;
            }
            out.push_str("<field");
            push_attr(out, "var", field);
            push_attr(out, "type", "list-multi");
            out.push('>');
            for value in values {
                out.push_str("<value>");
                escape_text(out, value);
                out.push_str("</value>");
            }
            out.push_str("</field>");
        }
        out.push_str("</x>");
    }
}

/// A scheme, and something behind it (RFC 3986 §3).
fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic())
        && scheme.bytes().all(legal)
        && !rest.is_empty()
        && text.len() <= ADDRESS_BYTES
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_uris() {
        for (text, expected) in [
            ("mailto:abuse@example.org", true),
            ("xmpp:help@example.org?message", true),
            ("https://status.example.org/", true),
            ("abuse@example.org", false),
            ("mailto:", false),
            (":x", false),
            ("1a:x", false),
            ("mailto:a b@example.org", false),
            ("mailto:a\n@example.org", false),
            ("", false),
        ] {
            assert_eq!(is_uri(text), expected, "{text:?}");
        }
        assert!(!is_uri(&format!("mailto:{}", "x".repeat(ADDRESS_BYTES))));
    }

    #[test]
    fn the_form_has_what_is_there_and_escapes_it() {
        assert!(Contacts::default().is_empty());
        let contacts = Contacts {
            abuse: vec!["mailto:a@b?x=1&y='2'".into(), "xmpp:a@b".into()],
            support: vec!["https://x/<y>".into()],
            ..Contacts::default()
        };
        let mut out = String::new();
        contacts.write(&mut out);
        assert_eq!(
            out,
            "<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='hidden'>\
             <value>http://jabber.org/network/serverinfo</value></field>\
             <field var='abuse-addresses' type='list-multi'>\
             <value>mailto:a@b?x=1&amp;y='2'</value><value>xmpp:a@b</value></field>\
             <field var='support-addresses' type='list-multi'>\
             <value>https://x/&lt;y&gt;</value></field></x>"
        );
        let form = contacts.form();
        assert_eq!(form.fields.len(), 2);
        assert_eq!(form.fields[0].1.len(), 2);
    }

    #[test]
    fn problems_name_their_role() {
        let contacts = Contacts {
            sales: vec!["nobody".into()],
            status: vec!["http://x".into(); ADDRESSES + 1],
            ..Contacts::default()
        };
        let roles: Vec<_> = contacts.problems().into_iter().map(|(r, _)| r).collect();
        assert_eq!(roles, ["sales", "status"]);
    }
}
