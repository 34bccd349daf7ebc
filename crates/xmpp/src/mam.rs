//! The archive's protocol (XEP-0313, XEP-0441) as XML: queries and preferences read, results and
//! answers written. Refuses to know any archive.

use chancery_xml::{escape_text, push_attr};
use minidom::Element;

use crate::error::{Condition, StanzaError};
use crate::jid::{self, Jid};
use crate::rsm::{self, Page};
use crate::{datetime, forms, ns};

/// XEP-0313 §7: fields by id, flipped pages, metadata.
pub const EXTENDED: &str = "urn:xmpp:mam:2#extended";
/// XEP-0313 §7: `include-groupchat` is understood.
pub const GROUPCHAT_FIELD: &str = "urn:xmpp:mam:2#groupchat-field";
/// Ids that one query may name.
pub const IDS_MAX: usize = 250;
/// Longest id of a query, of the client or of an archive.
const ID_BYTES_MAX: usize = 1024;
/// Addresses that preferences may name.
const PREFERENCES_MAX: usize = 1_000;

/// A query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The client's name for it.
    pub queryid: Option<String>,
    pub with: Option<Jid>,
    /// Milliseconds since 1970, both inclusive.
    pub start_ms: Option<i64>,
    pub end_ms: Option<i64>,
    pub after_id: Option<String>,
    pub before_id: Option<String>,
    pub ids: Vec<String>,
    pub include_groupchat: Option<bool>,
    /// The page is sent from its end.
    pub flip_page: bool,
    pub page: rsm::Request,
}

fn bad() -> StanzaError {
    StanzaError::new(Condition::BadRequest)
}

impl Query {
    /// Reads a `<query/>` of type set.
    pub fn read(element: &Element) -> Result<Self, StanzaError> {
        // The nodes of XEP-0442 are not those of a user.
        if element.attr("node").is_some() {
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        let mut query = Self {
            queryid: element.attr("queryid").map(str::to_owned),
            ..Self::default()
        };
        if query
            .queryid
            .as_ref()
            .is_some_and(|id| id.len() > ID_BYTES_MAX)
        {
            return Err(bad());
        }
        let (mut forms, mut sets) = (0, 0);
        for child in element.children() {
            if child.is("x", ns::DATA_FORMS) {
                forms += 1;
                for field in forms::submitted(child, ns::MAM)? {
                    query.field(field)?;
                }
            } else if child.is("set", ns::RSM) {
                sets += 1;
                query.page = rsm::Request::read(child)?;
            } else if child.is("flip-page", ns::MAM) {
                query.flip_page = true;
            }
        }
        if forms > 1 || sets > 1 {
            return Err(bad());
        }
        // XEP-0059 §2.6 lets an archive without numbered places say so.
        if query.page.index.is_some_and(|index| index > 0) {
            return Err(StanzaError::new(Condition::FeatureNotImplemented));
        }
        if query.named().any(|id| id.len() > ID_BYTES_MAX) {
            return Err(StanzaError::new(Condition::ItemNotFound));
        }
        Ok(query)
    }

    /// All ids of entries that it names.
    fn named(&self) -> impl Iterator<Item = &String> {
        let one = [
            &self.after_id,
            &self.before_id,
            &self.page.after,
            &self.page.before,
        ];
        one.into_iter().flatten().chain(&self.ids)
    }

    fn field(&mut self, field: forms::Field) -> Result<(), StanzaError> {
        match &*field.name {
            "with" => {
                self.with = filled(field)?.map(|with| jid::parse(&with)).transpose()?;
            }
            "start" => self.start_ms = time(filled(field)?)?,
            "end" => self.end_ms = time(filled(field)?)?,
            "after-id" => self.after_id = filled(field)?,
            "before-id" => self.before_id = filled(field)?,
            "ids" => {
                if field.values.len() > IDS_MAX {
                    return Err(bad());
                }
                self.ids = field.values;
            }
            "include-groupchat" => {
                self.include_groupchat = match filled(field)?.as_deref() {
                    None => None,
                    Some("true" | "1") => Some(true),
                    Some("false" | "0") => Some(false),
                    Some(_) => return Err(bad()),
                };
            }
            // XEP-0313 §4.1.5
            _ => return Err(StanzaError::new(Condition::FeatureNotImplemented)),
        }
        Ok(())
    }
}

/// The only value of a field; an empty one was not filled in.
fn filled(field: forms::Field) -> Result<Option<String>, StanzaError> {
    Ok(field.single()?.filter(|value| !value.is_empty()))
}

fn time(text: Option<String>) -> Result<Option<i64>, StanzaError> {
    text.map(|text| datetime::parse(text.trim()).ok_or_else(bad))
        .transpose()
}

/// The form of all fields that a query may have (XEP-0313 §4.1.5), in its `<query/>`.
pub fn form() -> String {
    let mut out = format!(
        "<query xmlns='{}'><x xmlns='{}' type='form'>\
         <field type='hidden' var='FORM_TYPE'><value>{}</value></field>",
        ns::MAM,
        ns::DATA_FORMS,
        ns::MAM
    );
    for (type_, name) in [
        ("jid-single", "with"),
        ("text-single", "start"),
        ("text-single", "end"),
        ("text-single", "before-id"),
        ("text-single", "after-id"),
    ] {
        out.push_str(&format!("<field type='{type_}' var='{name}'/>"));
    }
    // XEP-0122: any id will do, and there are too many to list.
    out.push_str(
        "<field type='list-multi' var='ids'>\
         <validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='xs:string'>\
         <open/></validate></field>\
         <field type='boolean' var='include-groupchat'/></x></query>",
    );
    out
}

/// A message of the archive on its way to whoever asked.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The account, and the session that asked.
    pub from: &'a str,
    pub to: &'a str,
    pub queryid: Option<&'a str>,
    pub id: &'a str,
    /// XEP-0082.
    pub stamp: &'a str,
    /// The message, which declares its own namespace.
    pub message: &'a [u8],
}

impl Found<'_> {
    /// The result (XEP-0313 §4.2, XEP-0297).
    pub fn write(&self) -> Vec<u8> {
        let mut head = String::with_capacity(384 + self.message.len());
        head.push_str("<message");
        push_attr(&mut head, "from", self.from);
        push_attr(&mut head, "to", self.to);
        head.push_str("><result xmlns='urn:xmpp:mam:2'");
        if let Some(queryid) = self.queryid {
            push_attr(&mut head, "queryid", queryid);
        }
        push_attr(&mut head, "id", self.id);
        head.push_str("><forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay'");
        push_attr(&mut head, "stamp", self.stamp);
        head.push_str("/>");
        let mut out = head.into_bytes();
        out.extend_from_slice(self.message);
        out.extend_from_slice(b"</forwarded></result></message>");
        out
    }
}

/// The end of a page (XEP-0313 §4.3).
pub fn fin(complete: bool, page: &Page<'_>) -> String {
    let mut out = String::with_capacity(256);
    out.push_str("<fin xmlns='urn:xmpp:mam:2'");
    if complete {
        out.push_str(" complete='true'");
    }
    out.push('>');
    page.write(&mut out);
    out.push_str("</fin>");
    out
}

/// The first and the last message of an archive, each by id and time (XEP-0313 §5).
pub fn metadata(ends: Option<[(&str, &str); 2]>) -> String {
    let mut out = String::from("<metadata xmlns='urn:xmpp:mam:2'>");
    for (name, (id, stamp)) in ["start", "end"].into_iter().zip(ends.into_iter().flatten()) {
        out.push('<');
        out.push_str(name);
        push_attr(&mut out, "id", id);
        push_attr(&mut out, "timestamp", stamp);
        out.push_str("/>");
    }
    out.push_str("</metadata>");
    out
}

/// Whom the archive keeps by default (XEP-0441 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    Always,
    Never,
    Roster,
}

/// Preferences (XEP-0441).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preferences {
    pub default: Fallback,
    pub always: Vec<Jid>,
    pub never: Vec<Jid>,
}

impl Preferences {
    /// Reads a `<prefs/>` of type set.
    pub fn read(element: &Element) -> Result<Self, StanzaError> {
        let default = match element.attr("default") {
            Some("always") => Fallback::Always,
            Some("never") => Fallback::Never,
            Some("roster") => Fallback::Roster,
            _ => return Err(bad()),
        };
        let list = |name: &str| -> Result<Vec<Jid>, StanzaError> {
            let lists = element.children().filter(|child| child.is(name, ns::MAM));
            let jids = lists.flat_map(|list| list.children().filter(|c| c.is("jid", ns::MAM)));
            let mut out = Vec::new();
            for jid in jids {
                if out.len() == PREFERENCES_MAX {
                    return Err(bad());
                }
                out.push(jid::parse(jid.text().trim())?);
            }
            Ok(out)
        };
        Ok(Self {
            default,
            always: list("always")?,
            never: list("never")?,
        })
    }
}

/// Preferences as they are answered; the addresses as stored.
pub fn preferences(default: &str, always: &[String], never: &[String]) -> String {
    let mut out = String::from("<prefs xmlns='urn:xmpp:mam:2'");
    push_attr(&mut out, "default", default);
    out.push('>');
    for (name, jids) in [("always", always), ("never", never)] {
        out.push_str(&format!("<{name}>"));
        for jid in jids {
            out.push_str("<jid>");
            escape_text(&mut out, jid);
            out.push_str("</jid>");
        }
        out.push_str(&format!("</{name}>"));
    }
    out.push_str("</prefs>");
    out
}

#[cfg(test)]
#[path = "mam_tests.rs"]
mod tests;
