//! The roster's part of the configuration: its limits. It refuses to know where the data lives
//! (wiring does).

use serde::Deserialize;

/// The most that `items` may be set to: a whole roster has to fit into one message.
pub const ITEMS_MAX: usize = 10_000;
/// The most that `groups` may be set to.
pub const GROUPS_MAX: usize = 256;
/// The most that `blocks` may be set to: every gateway holds all lists.
pub const BLOCKS_MAX: usize = 10_000;

/// How large a roster may grow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Items of one roster, 1 to 10000.
    pub items: usize,
    /// Groups of one item, 0 to 256.
    pub groups: usize,
    /// JIDs that one account may block, 0 to 10000.
    pub blocks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            items: 5_000,
            groups: 64,
            blocks: 1_000,
        }
    }
}

impl Config {
    /// Every problem, with the field it is in.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(1..=ITEMS_MAX).contains(&self.items) {
            problems.push((
                "items",
                format!("must be 1 to {ITEMS_MAX}, is {}", self.items),
            ));
        }
        if self.groups > GROUPS_MAX {
            let text = format!("must be at most {GROUPS_MAX}, is {}", self.groups);
            problems.push(("groups", text));
        }
        if self.blocks > BLOCKS_MAX {
            let text = format!("must be at most {BLOCKS_MAX}, is {}", self.blocks);
            problems.push(("blocks", text));
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
            items: 0,
            groups: 1_000,
            blocks: 20_000,
        };
        let fields: Vec<_> = bad.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["items", "groups", "blocks"]);
    }
}
