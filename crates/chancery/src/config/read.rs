//! A TOML file read section by section, so that one mistake does not hide another. Owns places
//! (file and line), unknown keys with their nearest match, and the search for further mistakes
//! behind the first. Knows no section's meaning.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::nearest::nearest;

/// Problems reported of one file; a file with more is not a configuration.
const PROBLEMS: usize = 200;
/// Bytes of a configuration file.
const FILE_BYTES: u64 = 1024 * 1024;

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, on a line (0 = the file as a whole).
    File(PathBuf, usize),
    /// By a flag on the command line.
    Flag(&'static str),
    /// Nowhere: a default, or something that is missing.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Nowhere => write!(f, "configuration"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// A configuration file, of which sections are taken one by one.
pub struct Document<'i> {
    path: PathBuf,
    text: &'i str,
    table: DeTable<'i>,
    problems: Vec<Problem>,
}

/// One section as it was read: its value, and where its keys stand.
pub struct Section<T> {
    pub value: T,
    path: PathBuf,
    line: usize,
    keys: Vec<(String, usize)>,
}

impl<T> Section<T> {
    /// Was `key` said?
    pub fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(k, _)| k == key)
    }

    /// Where `key` (dotted for nested ones) was said, else the section, else nowhere.
    pub fn place(&self, key: &str) -> Place {
        let line = self
            .keys
            .iter()
            .find(|(k, _)| k == key)
            .map_or(self.line, |(_, line)| *line);
        if line == 0 {
            Place::Nowhere
        } else {
            Place::File(self.path.clone(), line)
        }
    }
}

/// The text of a configuration file.
pub fn load(path: &Path) -> Result<String, Problem> {
    let whole = |text: String| Problem {
        place: Place::File(path.to_owned(), 0),
        text,
    };
    let bytes = std::fs::metadata(path)
        .map_err(|e| whole(format!("cannot be read: {e}")))?
        .len();
    if bytes > FILE_BYTES {
        return Err(whole(format!("is longer than {FILE_BYTES} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| whole(format!("cannot be read: {e}")))
}

impl<'i> Document<'i> {
    /// Reads what can be read of `text`; what cannot is a problem each.
    pub fn parse(path: &Path, text: &'i str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self {
            path: path.to_owned(),
            text,
            table: table.into_inner(),
            problems: Vec::new(),
        };
        for error in errors {
            document.problem(error.span(), error.message().replace('\n', "; "));
        }
        document
    }

    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|b| *b == b'\n').count() + 1
    }

    fn problem(&mut self, span: Option<Range<usize>>, text: String) {
        if self.problems.len() < PROBLEMS {
            let line = span.map_or(0, |span| self.line(span.start));
            self.problems.push(Problem {
                place: Place::File(self.path.clone(), line),
                text,
            });
        }
    }

    /// Takes the section `name`; the default where it is absent or beyond repair.
    pub fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> Section<T> {
        let absent = Section {
            value: T::default(),
            path: self.path.clone(),
            line: 0,
            keys: vec![],
        };
        let Some((key, mut value)) = self.table.remove_entry(name) else {
            return absent;
        };
        let line = self.line(key.span().start);
        let mut keys = Vec::new();
        if let DeValue::Table(table) = value.get_ref() {
            self.note_keys(table, "", &mut keys);
        }
        let section = |value| Section {
            value,
            path: self.path.clone(),
            line,
            keys,
        };
        // Each turn takes one mistake out of the way of the next.
        let mut found = Vec::new();
        let read = loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(read) => break Some(read),
                Err(error) => error,
            };
            let span = error.span();
            found.push((span.clone(), explain(error.message(), &format!("[{name}]"))));
            let removed = match (span, value.get_mut()) {
                (Some(span), DeValue::Table(table)) => remove(table, &span),
                _ => false,
            };
            if !removed || found.len() >= PROBLEMS {
                break None;
            }
        };
        let section = section(read.unwrap_or_default());
        for (span, text) in found {
            let span = span.or(Some(key.span()));
            self.problem(span, text);
        }
        section
    }

    fn note_keys(&self, table: &DeTable<'_>, prefix: &str, keys: &mut Vec<(String, usize)>) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            keys.push((name.clone(), self.line(key.span().start)));
            if let DeValue::Table(inner) = value.get_ref() {
                self.note_keys(inner, &format!("{name}."), keys);
            }
        }
    }

    /// Everything wrong so far, sections that nobody took included, in the file's order.
    pub fn finish(mut self, known: &[&str]) -> Vec<Problem> {
        let left: Vec<_> = self
            .table
            .iter()
            .map(|(key, _)| (key.span(), key.get_ref().to_string()))
            .collect();
        for (span, name) in left {
            let text = unknown("section", &name, known);
            self.problem(Some(span), text);
        }
        self.problems.sort();
        self.problems
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end.max(b.start + 1) && b.start < a.end.max(a.start + 1)
}

/// Removes the innermost entry that `span` is about.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let mut about = None;
    for (key, value) in table.iter_mut() {
        if let DeValue::Table(inner) = value.get_mut()
            && remove(inner, span)
        {
            return true;
        }
        if overlap(&key.span(), span) || overlap(&value.span(), span) {
            about = Some(key.get_ref().to_string());
        }
    }
    about.is_some_and(|key| table.remove(key.as_str()).is_some())
}

/// Serde's words made the reader's.
fn explain(message: &str, section: &str) -> String {
    let message = message.replace('\n', "; ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return format!("{section}: {message}");
    };
    let mut quoted = rest.split('`');
    let name = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    unknown(&format!("key in {section}"), name, &known)
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {what} `{name}`, did you mean `{near}`?"),
        None if known.is_empty() => format!("unknown {what} `{name}`"),
        None => format!("unknown {what} `{name}`, known are {}", known.join(", ")),
    }
}

/// The same sort of message for a value of a closed list.
pub fn unknown_value(what: &str, name: &str, known: &[&str]) -> String {
    unknown(what, name, known)
}
