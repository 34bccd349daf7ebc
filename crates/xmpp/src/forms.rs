//! Data forms (XEP-0004) as they are submitted, with the type that XEP-0068 asks for. Refuses to
//! know what the fields mean.

use minidom::Element;

use crate::error::{Condition, StanzaError};
use crate::ns;

/// Fields of one form.
const FIELDS_MAX: usize = 64;

/// A field of a submitted form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub values: Vec<String>,
}

impl Field {
    /// Its only value; a field of one line has no more.
    pub fn single(self) -> Result<Option<String>, StanzaError> {
        let mut values = self.values.into_iter();
        let first = values.next();
        match values.next() {
            Some(_) => Err(StanzaError::new(Condition::BadRequest)),
            None => Ok(first),
        }
    }
}

/// The fields of a submitted form of this type, `FORM_TYPE` apart; each name is there once.
pub fn submitted(form: &Element, form_type: &str) -> Result<Vec<Field>, StanzaError> {
    let bad = || StanzaError::new(Condition::BadRequest);
    if !form.is("x", ns::DATA_FORMS) || form.attr("type") != Some("submit") {
        return Err(bad());
    }
    let mut fields: Vec<Field> = Vec::new();
    for field in form
        .children()
        .filter(|child| child.is("field", ns::DATA_FORMS))
    {
        let name = field.attr("var").filter(|name| !name.is_empty());
        let name = name.ok_or_else(bad)?;
        if fields.len() == FIELDS_MAX || fields.iter().any(|other| other.name == name) {
            return Err(bad());
        }
        let values = field
            .children()
            .filter(|child| child.is("value", ns::DATA_FORMS))
            .map(Element::text)
            .collect();
        fields.push(Field {
            name: name.to_owned(),
            values,
        });
    }
    // XEP-0068 §3: the type says what the names mean.
    let at = fields.iter().position(|field| field.name == "FORM_TYPE");
    let of = fields.swap_remove(at.ok_or_else(bad)?);
    if of.values != [form_type] {
        return Err(bad());
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(type_: &str, inner: &str) -> Result<Vec<(String, Vec<String>)>, Condition> {
        let form = format!("<x xmlns='jabber:x:data' type='{type_}'>{inner}</x>");
        let fields = submitted(&form.parse().unwrap(), "urn:t").map_err(|error| error.condition)?;
        Ok(fields.into_iter().map(|f| (f.name, f.values)).collect())
    }

    const TYPE: &str = "<field var='FORM_TYPE'><value>urn:t</value></field>";

    #[test]
    fn fields_come_with_their_values() {
        let inner = format!(
            "<title>t</title>{TYPE}<field var='a'><value>1</value><value/></field><field var='b'/>"
        );
        let expected = [
            ("b".to_owned(), vec![]),
            ("a".to_owned(), vec!["1".to_owned(), String::new()]),
        ];
        assert_eq!(read("submit", &inner).unwrap(), expected);
    }

    #[test]
    fn another_form_is_refused() {
        for (type_, inner) in [
            ("form", TYPE),
            ("submit", ""),
            (
                "submit",
                "<field var='FORM_TYPE'><value>urn:u</value></field>",
            ),
            ("submit", "<field var='FORM_TYPE'/>"),
        ] {
            assert_eq!(read(type_, inner), Err(Condition::BadRequest), "{inner}");
        }
        for more in ["<field/>", "<field var='a'/><field var='a'/>", TYPE] {
            let inner = format!("{TYPE}{more}");
            assert_eq!(
                read("submit", &inner),
                Err(Condition::BadRequest),
                "{inner}"
            );
        }
        let many: String = (0..FIELDS_MAX)
            .map(|n| format!("<field var='f{n}'/>"))
            .collect();
        let inner = format!("{TYPE}{many}");
        assert_eq!(read("submit", &inner), Err(Condition::BadRequest));
    }

    #[test]
    fn one_line_has_one_value() {
        let field = |values: &[&str]| Field {
            name: "n".into(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        assert_eq!(field(&[]).single().unwrap(), None);
        assert_eq!(field(&["a"]).single().unwrap().as_deref(), Some("a"));
        assert!(field(&["a", "b"]).single().is_err());
    }
}
