//! Data forms (XEP-0004), as far as the server's own features ask for something and answer: written
//! as a form or a result, read when submitted. Owns nothing of what a field means.

use bytes::Bytes;
use chancery_xml::{Child, Element, Limits, alone, escape_text, push_attr, scan};
use chancery_xmpp::{Condition, ns};

/// Values of one submitted form.
const VALUES: usize = 1_000;

/// A field that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) var: &'static str,
    pub(crate) label: &'static str,
    /// The standard's name of its type (§3.3).
    pub(crate) type_: &'static str,
    pub(crate) required: bool,
    /// What can be chosen, where it is a list.
    pub(crate) options: &'static [&'static str],
}

impl Field {
    /// A field that has to be filled in.
    pub(crate) const fn required(
        var: &'static str,
        label: &'static str,
        type_: &'static str,
    ) -> Self {
        Self {
            var,
            label,
            type_,
            required: true,
            options: &[],
        }
    }

    /// One that may be left out.
    pub(crate) const fn optional(
        var: &'static str,
        label: &'static str,
        type_: &'static str,
    ) -> Self {
        Self {
            required: false,
            ..Self::required(var, label, type_)
        }
    }

    /// The same, with a choice.
    pub(crate) const fn of(mut self, options: &'static [&'static str]) -> Self {
        self.options = options;
        self
    }
}

/// Appends a form to fill in.
pub(crate) fn write(
    out: &mut String,
    form_type: &str,
    title: &str,
    instructions: &str,
    fields: &[Field],
) {
    out.push_str(&format!(
        "<x xmlns='{}' type='form'><title>",
        ns::DATA_FORMS
    ));
    escape_text(out, title);
    out.push_str("</title><instructions>");
    escape_text(out, instructions);
    out.push_str("</instructions>");
    hidden(out, form_type);
    for field in fields {
        out.push_str("<field");
        push_attr(out, "var", field.var);
        push_attr(out, "type", field.type_);
        push_attr(out, "label", field.label);
        if !field.required && field.options.is_empty() {
            out.push_str("/>");
            continue;
        }
        out.push('>');
        if field.required {
            out.push_str("<required/>");
        }
        for option in field.options {
            out.push_str("<option");
            push_attr(out, "label", option);
            out.push_str("><value>");
            escape_text(out, option);
            out.push_str("</value></option>");
        }
        out.push_str("</field>");
    }
    out.push_str("</x>");
}

/// Appends one field with its values.
pub(crate) fn value(out: &mut String, var: &str, type_: Option<&str>, values: &[String]) {
    out.push_str("<field");
    push_attr(out, "var", var);
    if let Some(type_) = type_ {
        push_attr(out, "type", type_);
    }
    out.push('>');
    for value in values {
        out.push_str("<value>");
        escape_text(out, value);
        out.push_str("</value>");
    }
    out.push_str("</field>");
}

/// Appends the FORM_TYPE (XEP-0068).
pub(crate) fn hidden(out: &mut String, form_type: &str) {
    out.push_str("<field var='FORM_TYPE' type='hidden'><value>");
    escape_text(out, form_type);
    out.push_str("</value></field>");
}

/// What was filled in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Submitted {
    fields: Vec<(String, Vec<String>)>,
    /// The person changed their mind.
    pub(crate) cancelled: bool,
}

impl Submitted {
    /// The form inside `parent`, a payload scanned as a whole; `None` when there is none.
    pub(crate) fn read(parent: &Element, form_type: &str) -> Option<Result<Self, Condition>> {
        let form = parent.child("x", ns::DATA_FORMS)?;
        let read = match form.attr("type") {
            Some("submit") => fields(parent, form),
            Some("cancel") => {
                return Some(Ok(Self {
                    cancelled: true,
                    ..Self::default()
                }));
            }
            _ => Err(Condition::BadRequest),
        };
        let submitted = read.map(|fields| Self {
            fields,
            cancelled: false,
        });
        // XEP-0068: of another kind than was asked for.
        let alien = submitted.as_ref().is_ok_and(|submitted| {
            submitted
                .one("FORM_TYPE")
                .is_some_and(|said| said != form_type)
        });
        Some(if alien {
            Err(Condition::BadRequest)
        } else {
            submitted
        })
    }

    /// All values of a field, without empty ones.
    pub(crate) fn all(&self, var: &str) -> Vec<String> {
        let mine = self.fields.iter().filter(|(name, _)| name == var);
        let values = mine.flat_map(|(_, values)| values.iter().cloned());
        values.filter(|value| !value.trim().is_empty()).collect()
    }

    /// The first of them.
    pub(crate) fn one(&self, var: &str) -> Option<String> {
        self.all(var).into_iter().next()
    }

    /// Lines of a text, empty ones too.
    pub(crate) fn lines(&self, var: &str) -> String {
        let mine = self.fields.iter().find(|(name, _)| name == var);
        mine.map_or_else(String::new, |(_, values)| values.join("\n"))
    }

    /// Is any of these fields filled in?
    pub(crate) fn has_any(&self, vars: &[&str]) -> bool {
        vars.iter().any(|var| !self.all(var).is_empty())
    }
}

/// A scan shows two levels: a form lies one deeper, its values two.
fn fields(parent: &Element, form: &Child) -> Result<Vec<(String, Vec<String>)>, Condition> {
    let form = deeper(parent, form)?;
    let mut all = Vec::new();
    let mut count = 0;
    for field in &form.header.children {
        let (true, Some(var)) = (field.is("field", ns::DATA_FORMS), field.attr("var")) else {
            continue;
        };
        let inside = deeper(&form, field)?;
        let values: Vec<String> = inside
            .header
            .children
            .iter()
            .filter(|child| child.is("value", ns::DATA_FORMS))
            .map(|child| inside.child_text(child))
            .collect();
        count += values.len();
        if count > VALUES {
            return Err(Condition::NotAcceptable);
        }
        all.push((var.to_owned(), values));
    }
    Ok(all)
}

/// A child as an element of its own.
pub(crate) fn deeper(parent: &Element, child: &Child) -> Result<Element, Condition> {
    let bytes: Bytes = alone(parent, &[], child);
    scan(&bytes, &Limits::internal()).map_err(|_| Condition::BadRequest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(form: &str) -> Option<Result<Submitted, Condition>> {
        let xml = format!("<query xmlns='u:q'>{form}</query>");
        let parent = scan(&Bytes::from(xml), &Limits::internal()).unwrap();
        Submitted::read(&parent, "u:form")
    }

    #[test]
    fn values_are_read_by_field() {
        let form = "<x xmlns='jabber:x:data' type='submit'>\
                    <field var='FORM_TYPE' type='hidden'><value>u:form</value></field>\
                    <field var='a'><value>1 &amp; 2</value></field>\
                    <field var='b'><value>x</value><value/><value>y</value></field>\
                    <field><value>nameless</value></field></x>";
        let submitted = read(form).unwrap().unwrap();
        assert_eq!(submitted.one("a").as_deref(), Some("1 & 2"));
        assert_eq!(submitted.all("b"), ["x", "y"]);
        assert_eq!(submitted.lines("b"), "x\n\ny");
        assert_eq!(submitted.one("c"), None);
        assert!(submitted.has_any(&["c", "a"]) && !submitted.has_any(&["c"]));
    }

    #[test]
    fn what_is_not_submitted_is_not_read() {
        assert!(read("").is_none());
        assert!(read("<x xmlns='u:other' type='submit'/>").is_none());
        let of = |form: &str| read(form).unwrap().map(|s| s.cancelled);
        assert_eq!(of("<x xmlns='jabber:x:data' type='submit'/>"), Ok(false));
        assert_eq!(of("<x xmlns='jabber:x:data' type='cancel'/>"), Ok(true));
        for form in [
            "<x xmlns='jabber:x:data' type='form'/>",
            "<x xmlns='jabber:x:data'/>",
            "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>u:x</value></field></x>",
        ] {
            assert_eq!(of(form), Err(Condition::BadRequest), "{form}");
        }
        let many = format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='a'>{}</field></x>",
            "<value>1</value>".repeat(VALUES + 1)
        );
        assert_eq!(of(&many), Err(Condition::NotAcceptable));
    }

    #[test]
    fn a_form_is_written() {
        let mut out = String::new();
        let fields = [
            Field::required("a", "A & a", "text-single"),
            Field::optional("b", "B", "list-single").of(&["1", "2"]),
            Field::optional("c", "C", "jid-multi"),
        ];
        write(&mut out, "u:form", "T", "I", &fields);
        assert_eq!(
            out,
            "<x xmlns='jabber:x:data' type='form'><title>T</title><instructions>I</instructions>\
             <field var='FORM_TYPE' type='hidden'><value>u:form</value></field>\
             <field var='a' type='text-single' label='A &amp; a'><required/></field>\
             <field var='b' type='list-single' label='B'><option label='1'><value>1</value></option>\
             <option label='2'><value>2</value></option></field>\
             <field var='c' type='jid-multi' label='C'/></x>"
        );
    }
}
