//! One change of a block list (XEP-0191): pure. It refuses to know what a JID in it matches.

use std::collections::BTreeSet;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    Block(Vec<String>),
    Unblock(Vec<String>),
    UnblockAll,
}

/// What it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The whole list now.
    Yes(Vec<String>),
    /// It was so already.
    No,
    /// More than one account may block.
    Full,
}

/// The list after a change; nothing is added when it would not all fit.
pub(super) fn listed(before: Vec<String>, listing: &Listing, limit: usize) -> Listed {
    let before: BTreeSet<String> = before.into_iter().collect();
    let mut now = before.clone();
    match listing {
        Listing::Block(jids) => now.extend(jids.iter().cloned()),
        Listing::Unblock(jids) => jids.iter().for_each(|jid| {
            now.remove(jid);
        }),
        Listing::UnblockAll => now.clear(),
    }
    if now == before {
        Listed::No
    } else if now.len() > limit && now.len() > before.len() {
        Listed::Full
    } else {
        Listed::Yes(now.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_changes_whole_or_not_at_all() {
        let list = |jids: &[&str]| jids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let block = |jids: &[&str]| Listing::Block(list(jids));
        let unblock = |jids: &[&str]| Listing::Unblock(list(jids));
        for (before, change, limit, after) in [
            (
                list(&[]),
                block(&["b", "a"]),
                2,
                Listed::Yes(list(&["a", "b"])),
            ),
            (list(&["a"]), block(&["a"]), 2, Listed::No),
            (list(&["a"]), block(&["b", "c"]), 2, Listed::Full),
            // A limit that was lowered takes nothing away.
            (list(&["a", "b", "c"]), block(&["a"]), 1, Listed::No),
            (
                list(&["a", "b", "c"]),
                unblock(&["a"]),
                1,
                Listed::Yes(list(&["b", "c"])),
            ),
            (list(&["a"]), unblock(&["x"]), 2, Listed::No),
            (
                list(&["a", "b"]),
                Listing::UnblockAll,
                2,
                Listed::Yes(list(&[])),
            ),
        ] {
            assert_eq!(
                listed(before.clone(), &change, limit),
                after,
                "{before:?} {change:?}"
            );
        }
    }
}
