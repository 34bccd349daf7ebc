//! What is wrong with a policy file, each with its line, all at once. Owns the list, its bound and
//! the search for the nearest name; it refuses to know what a policy means.

use std::ops::Range;

use chancery_api::policy::Problem;

/// Problems that one check names; what lies beyond is summed up in one line.
pub(crate) const PROBLEMS_LIMIT: usize = 100;
/// Characters of a name that are compared when the nearest one is looked for.
const NAME_CHARS: usize = 64;

/// The problems of one text.
pub(crate) struct Problems<'a> {
    text: &'a str,
    found: Vec<(usize, String)>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// A problem at a span of the text.
    pub(crate) fn at(&mut self, span: &Range<usize>, problem: impl Into<String>) {
        self.found.push((span.start, problem.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// In the order of the text.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        self.found.sort();
        self.found.dedup();
        let beyond = self.found.len().saturating_sub(PROBLEMS_LIMIT);
        self.found.truncate(PROBLEMS_LIMIT);
        let mut lines = LineCounter {
            text: self.text,
            offset: 0,
            line: 1,
        };
        let mut problems: Vec<Problem> = self
            .found
            .into_iter()
            .map(|(offset, problem)| Problem {
                line: lines.line_of(offset),
                problem,
            })
            .collect();
        if beyond > 0 {
            let line = problems.last().map_or(1, |problem| problem.line);
            problems.push(Problem {
                line,
                problem: format!("and {beyond} further problems"),
            });
        }
        problems
    }
}

/// Lines of rising offsets, in one pass.
struct LineCounter<'a> {
    text: &'a str,
    offset: usize,
    line: u32,
}

impl LineCounter<'_> {
    fn line_of(&mut self, offset: usize) -> u32 {
        let end = offset.min(self.text.len());
        let passed = self
            .text
            .as_bytes()
            .get(self.offset..end)
            .unwrap_or_default();
        let breaks = passed.iter().filter(|byte| **byte == b'\n').count();
        self.line = self
            .line
            .saturating_add(u32::try_from(breaks).unwrap_or(u32::MAX));
        self.offset = end.max(self.offset);
        self.line
    }
}

/// `, did you mean …?` for the known name nearest to `name`; empty when none is near.
pub(crate) fn did_you_mean<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 3)
        .min()
        .map_or_else(String::new, |(_, candidate)| {
            format!(", did you mean {candidate:?}?")
        })
}

/// Levenshtein distance over the first characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(NAME_CHARS).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(NAME_CHARS).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("direction", "dirction", 1),
            ("between", "betwen", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let known = ["between", "direction", "kind"];
        assert_eq!(did_you_mean("betwen", known), ", did you mean \"between\"?");
        assert_eq!(did_you_mean("zebra-crossing", known), "");
    }

    #[test]
    fn problems_come_in_order_with_lines_and_bounded() {
        let text = "a\nb\nc\n";
        let mut problems = Problems::new(text);
        problems.at(&(4..5), "late");
        problems.at(&(0..1), "early");
        problems.at(&(99..99), "beyond the end");
        let lines: Vec<_> = problems
            .finish()
            .into_iter()
            .map(|p| (p.line, p.problem))
            .collect();
        assert_eq!(
            lines,
            [
                (1, "early".into()),
                (3, "late".into()),
                (4, "beyond the end".into())
            ]
        );
        let mut many = Problems::new(text);
        for n in 0..PROBLEMS_LIMIT + 7 {
            many.at(&(0..1), format!("{n:04}"));
        }
        let many = many.finish();
        assert_eq!(many.len(), PROBLEMS_LIMIT + 1);
        assert_eq!(many[PROBLEMS_LIMIT].problem, "and 7 further problems");
    }
}
