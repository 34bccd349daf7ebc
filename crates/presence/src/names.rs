//! [`Names`]: JIDs by number, each held once however many sessions were shown to it. [`Set`]: such
//! numbers, a bit each, so that a group of thousands costs each of its sessions little more than a bit a
//! member (ADR 19). It refuses to know whose they are.

use std::collections::HashMap;
use std::sync::Arc;

/// See the module. A number is in use until it is released as often as it was taken; then it may mean
/// another name.
#[derive(Debug, Default)]
pub struct Names {
    numbers: HashMap<Arc<str>, u32>,
    rows: Vec<Row>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Row {
    name: Arc<str>,
    uses: u32,
}

impl Names {
    /// The number of a name that is in use.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The number of a name, for one use.
    pub fn take(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            if let Some(row) = self.rows.get_mut(*number as usize) {
                row.uses = row.uses.saturating_add(1);
            }
            return *number;
        }
        let name: Arc<str> = name.into();
        let row = Row {
            name: Arc::clone(&name),
            uses: 1,
        };
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(free) = self.rows.get_mut(number as usize) {
                    *free = row;
                }
                number
            }
            None => {
                self.rows.push(row);
                u32::try_from(self.rows.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.numbers.insert(name, number);
        number
    }

    /// Ends one use of each.
    pub fn release(&mut self, numbers: impl Iterator<Item = u32>) {
        for number in numbers {
            let Some(row) = self.rows.get_mut(number as usize) else {
                continue;
            };
            row.uses = row.uses.saturating_sub(1);
            if row.uses == 0 && self.numbers.remove(&row.name).is_some() {
                row.name = Arc::default();
                self.free.push(number);
            }
        }
    }

    /// The names in a set, in its order.
    pub fn of<'a>(&'a self, set: &'a Set) -> impl Iterator<Item = &'a str> {
        let name = |number: u32| self.rows.get(number as usize).map(|row| &*row.name);
        set.iter()
            .map(move |number| name(number).unwrap_or_default())
    }

    /// How many names are in use.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// Numbers, in words of 64 bits; only words that have any are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted by the first.
    words: Vec<(u32, u64)>,
    len: usize,
}

impl Set {
    /// The set of these, and those that were there twice.
    pub fn of(mut numbers: Vec<u32>) -> (Self, Vec<u32>) {
        numbers.sort_unstable();
        let mut set = Self::default();
        let twice = numbers
            .into_iter()
            .filter(|number| !set.insert(*number))
            .collect();
        set.words.shrink_to_fit();
        (set, twice)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn has(&self, number: u32) -> bool {
        let (at, bit) = place(number);
        self.find(at)
            .is_ok_and(|at| self.words.get(at).is_some_and(|(_, word)| word & bit != 0))
    }

    /// False when it was there.
    pub fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = place(number);
        match self.find(word) {
            Ok(at) => {
                let Some((_, bits)) = self.words.get_mut(at) else {
                    return false;
                };
                if *bits & bit != 0 {
                    return false;
                }
                *bits |= bit;
            }
            Err(at) => self.words.insert(at, (word, bit)),
        }
        self.len += 1;
        true
    }

    /// False when it was not there.
    pub fn remove(&mut self, number: u32) -> bool {
        let (word, bit) = place(number);
        let Ok(at) = self.find(word) else {
            return false;
        };
        let Some((_, bits)) = self.words.get_mut(at) else {
            return false;
        };
        if *bits & bit == 0 {
            return false;
        }
        *bits &= !bit;
        if *bits == 0 {
            self.words.remove(at);
        }
        self.len -= 1;
        true
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().flat_map(|(word, bits)| {
            let set = (0..64).filter(move |n| bits & (1 << n) != 0);
            set.map(move |n| word * 64 + n)
        })
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<(u32, u64)>()
    }

    fn find(&self, word: u32) -> Result<usize, usize> {
        self.words.binary_search_by_key(&word, |(at, _)| *at)
    }
}

fn place(number: u32) -> (u32, u64) {
    (number / 64, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_number_is_free_when_nobody_uses_it() {
        let mut names = Names::default();
        let (a, b) = (names.take("a@x"), names.take("b@x"));
        assert_eq!(names.take("a@x"), a);
        assert_ne!(a, b);
        names.release([a].into_iter());
        assert_eq!(names.find("a@x"), Some(a));
        names.release([a].into_iter());
        assert_eq!((names.find("a@x"), names.len()), (None, 1));
        assert_eq!(names.take("c@x"), a, "taken again");
        let (set, twice) = Set::of(vec![a, b, a]);
        assert_eq!((set.len(), twice), (2, vec![a]));
        assert_eq!(names.of(&set).collect::<Vec<_>>(), ["c@x", "b@x"]);
        names.release(set.iter());
        assert_eq!(names.len(), 0);
        names.release([a, 99].into_iter());
        assert_eq!(names.len(), 0, "nothing to release");
    }

    proptest::proptest! {
        #[test]
        fn a_set_is_a_set(acts in proptest::collection::vec((0..300u32, proptest::bool::ANY), 0..200)) {
            let (mut set, mut model) = (Set::default(), BTreeSet::new());
            for (number, insert) in acts {
                let changed = if insert {
                    (set.insert(number), model.insert(number))
                } else {
                    (set.remove(number), model.remove(&number))
                };
                assert_eq!(changed.0, changed.1);
                assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
                assert_eq!(set.has(number), model.contains(&number));
            }
            assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            assert_eq!(Set::of(model.into_iter().collect()).0, set);
        }
    }
}
