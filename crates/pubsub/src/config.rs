//! The service's part of the configuration: its limits. It refuses to know where the data lives
//! (wiring does).

use serde::Deserialize;

/// The most that the limits in bytes may be set to: an element has to fit into one stanza.
pub const BYTES_MAX: usize = 1024 * 1024;
/// The most that `private_elements` may be set to.
pub const ELEMENTS_MAX: usize = 10_000;

/// How much one account may keep.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Elements of private XML of one account, 1 to 10000.
    pub private_elements: usize,
    /// Bytes of one of them, 1024 to 1048576.
    pub private_bytes: usize,
    /// Bytes of a vCard, its picture included, 1024 to 1048576.
    pub vcard_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            private_elements: 100,
            private_bytes: 64 * 1024,
            // A stanza has 256 KiB, and room for what is around it.
            vcard_bytes: 248 * 1024,
        }
    }
}

impl Config {
    /// Every problem, with the field it is in.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (field, value, least, most) in [
            ("private_elements", self.private_elements, 1, ELEMENTS_MAX),
            ("private_bytes", self.private_bytes, 1024, BYTES_MAX),
            ("vcard_bytes", self.vcard_bytes, 1024, BYTES_MAX),
        ] {
            if !(least..=most).contains(&value) {
                problems.push((field, format!("must be {least} to {most}, is {value}")));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_others_are_named() {
        assert!(Config::default().problems().is_empty());
        let bad = Config {
            private_elements: 0,
            private_bytes: 1,
            vcard_bytes: BYTES_MAX + 1,
        };
        let fields: Vec<_> = bad.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["private_elements", "private_bytes", "vcard_bytes"]);
    }
}
