//! What an operator may set of the log, with the limits of every value. Refuses to know where the
//! data directory is: the binary says that.

use std::fmt;

use serde::Deserialize;

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Open entries that one mailbox may hold; a further message to it is refused.
    pub mailbox_entries: u32,
    /// Mebibytes of open entries that one mailbox may hold.
    pub mailbox_mib: u32,
    /// Days after which an open entry is closed; the evidence stays.
    pub entry_expiry_days: u32,
    /// Threads that read back what is no longer in memory.
    pub readers: u32,
    /// Who says what people find in their own archives; the evidence has everything.
    pub preferences: PreferencesBy,
}

/// Who says what people find in their own archives.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferencesBy {
    /// Each for the own archive (XEP-0441).
    #[default]
    User,
    /// The administrator: everything, for everybody.
    Locked,
}

/// As TOML has it: that is how a configuration is shown.
impl fmt::Debug for PreferencesBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::User => "user",
            Self::Locked => "locked",
        };
        write!(f, "{name:?}")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mailbox_entries: 10_000,
            mailbox_mib: 64,
            entry_expiry_days: 30,
            readers: 2,
            preferences: PreferencesBy::User,
        }
    }
}

impl Config {
    /// Every value out of its range, by field.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |field, value: u32, low: u32, high: u32| {
            if !(low..=high).contains(&value) {
                problems.push((field, format!("{value} is not between {low} and {high}")));
            }
        };
        check("mailbox_entries", self.mailbox_entries, 1, 10_000);
        check("mailbox_mib", self.mailbox_mib, 1, 1_024);
        check("entry_expiry_days", self.entry_expiry_days, 1, 3_650);
        check("readers", self.readers, 1, 16);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_value_out_of_range() {
        assert!(Config::default().problems().is_empty());
        let bad = Config {
            mailbox_entries: 0,
            readers: 99,
            ..Config::default()
        };
        let fields: Vec<_> = bad.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["mailbox_entries", "readers"]);
    }
}
