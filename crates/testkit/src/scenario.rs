//! The scenario language: plain text dialogues between people's clients and a server.
//!
//! `docs/develop/scenarios.md` describes it. Owns parsing; running is [`crate::runner`]'s.

use anyhow::{Context, Result, bail};

use crate::server::Shape;

/// A dialogue.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// First line, what it shows.
    pub title: String,
    /// Standards that it proves, by their names in the table of standards.
    pub proves: Vec<String>,
    /// Wirings it runs in.
    pub shapes: Vec<Shape>,
    /// Accounts made first; they know each other unless `strangers`.
    pub accounts: Vec<String>,
    /// Whether the accounts are in each other's rosters.
    pub strangers: bool,
    /// Groups and their members.
    pub groups: Vec<(String, Vec<String>)>,
    /// Hosted domains, if not the usual one.
    pub domains: Vec<String>,
    /// More configuration.
    pub config: String,
    /// Log complaints that are expected.
    pub complaints: Vec<String>,
    /// What happens.
    pub steps: Vec<Step>,
}

/// One step, and the line it stands on.
#[derive(Debug, Clone)]
pub struct Step {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is done.
    pub action: Action,
}

/// What a step does. `who` is `user/resource`.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Logs in.
    Connect { who: String, options: Vec<String> },
    /// Logging in fails with this SASL condition.
    Refused {
        who: String,
        options: Vec<String>,
        condition: String,
    },
    /// Sends stanzas or other top-level elements.
    Sends { who: String, xml: String },
    /// Receives exactly these next; in any order with `any_order`.
    Receives {
        who: String,
        xml: Vec<String>,
        any_order: bool,
        without: Vec<String>,
    },
    /// Receives this sooner or later; what comes before it is not looked at.
    Awaits { who: String, xml: String },
    /// Authenticates, asks to resume the session of `whose` (or an id) and reads this answer; goes
    /// on with that session when it is `<resumed/>`, and binds when it is `<failed/>`.
    Resumes {
        who: String,
        whose: String,
        options: Vec<String>,
        xml: String,
    },
    /// Receives nothing up to a marker sent now.
    Nothing { who: String },
    /// Throws away what has come up to a marker sent now.
    Skips { who: String },
    /// The server ends the stream, with this stream error if one is named.
    Closed {
        who: String,
        condition: Option<String>,
    },
    /// Closes the stream.
    Disconnect { who: String },
    /// Drops the TCP connection without a word.
    Drop { who: String },
    /// Waits until everything sent is acknowledged (XEP-0198).
    Settled { who: String },
    /// Runs the command line; with `fails` it must fail.
    Admin {
        arguments: Vec<String>,
        input: String,
        fails: bool,
        prints: Option<String>,
    },
    /// kill -9 a process.
    Kill { role: String },
    /// Starts it again.
    Start { role: String },
    /// Stops everything gracefully and starts it again.
    Restart,
    /// Export, verify, and count of records that contain a text.
    Record { text: String, count: usize },
}

impl Scenario {
    /// Whether it can be aimed at a server that is not ours: nothing but clients in it.
    pub fn is_universal(&self) -> bool {
        let ours = |step: &Step| {
            matches!(
                step.action,
                Action::Admin { .. } | Action::Kill { .. } | Action::Start { .. } | Action::Restart
            )
        };
        self.groups.is_empty()
            && self.domains.is_empty()
            && self.config.is_empty()
            && !self.steps.iter().any(ours)
    }
}

/// Parses a file.
pub fn parse(text: &str) -> Result<Scenario> {
    let mut scenario = Scenario {
        title: String::new(),
        proves: vec![],
        shapes: vec![Shape::One, Shape::Many],
        accounts: vec![],
        strangers: false,
        groups: vec![],
        domains: vec![],
        config: String::new(),
        complaints: vec![],
        steps: vec![],
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim_end();
        let number = at + 1;
        at += 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(char::is_whitespace) {
            bail!("line {number}: an indented block without a step");
        }
        let mut block = Vec::new();
        while at < lines.len()
            && (lines[at].starts_with(char::is_whitespace) || lines[at].is_empty())
        {
            block.push(lines[at]);
            at += 1;
        }
        let block = dedent(&block);
        take(&mut scenario, line, &block, number).with_context(|| format!("line {number}"))?;
    }
    if scenario.title.is_empty() {
        bail!("no title");
    }
    Ok(scenario)
}

fn dedent(lines: &[&str]) -> String {
    let indent = lines
        .iter()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    let stripped: Vec<&str> = lines
        .iter()
        .map(|line| line.get(indent..).unwrap_or("").trim_end())
        .collect();
    stripped.join("\n").trim_end().to_owned()
}

fn take(scenario: &mut Scenario, line: &str, block: &str, number: usize) -> Result<()> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    if let Some((key, value)) = line.split_once(':')
        && !key.contains(' ')
    {
        return header(scenario, key, value.trim(), block);
    }
    let rest = || words[2..].to_vec();
    let action = match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("kill", Some(role)) => Action::Kill { role: role.into() },
        ("start", Some(role)) => Action::Start { role: role.into() },
        ("restart", None) => Action::Restart,
        ("record", Some(count)) => Action::Record {
            count: count.parse()?,
            text: words[2..].join(" "),
        },
        ("admin" | "admin-fails", Some(_)) => {
            let (arguments, prints) = match line.split_once(" prints ") {
                Some((command, text)) => (command, Some(text.to_owned())),
                None => (line, None),
            };
            Action::Admin {
                arguments: arguments
                    .split_whitespace()
                    .skip(1)
                    .map(str::to_owned)
                    .collect(),
                input: block.to_owned(),
                fails: words[0] == "admin-fails",
                prints,
            }
        }
        (who, Some("connects")) => Action::Connect {
            who: who.into(),
            options: rest(),
        },
        (who, Some("refused")) => Action::Refused {
            who: who.into(),
            condition: words.get(2).context("which condition?")?.clone(),
            options: words[3..].to_vec(),
        },
        (who, Some("sends")) => Action::Sends {
            who: who.into(),
            xml: block.into(),
        },
        (who, Some("receives")) => receives(who, &rest(), block)?,
        (who, Some("awaits")) => {
            let mut all = split_elements(block)?;
            if all.len() != 1 {
                bail!("awaits one element, not {}", all.len());
            }
            Action::Awaits {
                who: who.into(),
                xml: all.remove(0),
            }
        }
        (who, Some("resumes")) => Action::Resumes {
            who: who.into(),
            whose: words.get(2).context("whose session?")?.clone(),
            options: words[3..].to_vec(),
            xml: block.into(),
        },
        (who, Some("skips")) => Action::Skips { who: who.into() },
        (who, Some("closed")) => Action::Closed {
            who: who.into(),
            condition: words.get(2).cloned(),
        },
        (who, Some("disconnects")) => Action::Disconnect { who: who.into() },
        (who, Some("drops")) => Action::Drop { who: who.into() },
        (who, Some("settled")) => Action::Settled { who: who.into() },
        _ => bail!("unknown step: {line}"),
    };
    scenario.steps.push(Step {
        line: number,
        action,
    });
    Ok(())
}

fn receives(who: &str, options: &[String], block: &str) -> Result<Action> {
    if options.first().is_some_and(|word| word == "nothing") {
        return Ok(Action::Nothing { who: who.into() });
    }
    let mut without = Vec::new();
    let mut any_order = false;
    for option in options {
        match option.split_once('=') {
            Some(("without", name)) => without.push(name.to_owned()),
            None if option == "any-order" => any_order = true,
            _ => bail!("unknown option {option}"),
        }
    }
    let xml = split_elements(block)?;
    if xml.is_empty() {
        bail!("receives what?");
    }
    Ok(Action::Receives {
        who: who.into(),
        xml,
        any_order,
        without,
    })
}

/// Top-level elements of a block: each starts on a line of its own, unindented.
fn split_elements(block: &str) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    for line in block.lines() {
        if line.starts_with('<') && !line.starts_with("</") {
            all.push(line.to_owned());
        } else if let Some(last) = all.last_mut() {
            last.push('\n');
            last.push_str(line);
        } else if !line.trim().is_empty() {
            bail!("expected an element: {line}");
        }
    }
    Ok(all)
}

fn header(scenario: &mut Scenario, key: &str, value: &str, block: &str) -> Result<()> {
    let words = || {
        value
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    match key {
        "title" => scenario.title = value.into(),
        "proves" => scenario.proves = value.split(',').map(|s| s.trim().to_owned()).collect(),
        "shapes" => {
            scenario.shapes = words()
                .iter()
                .map(|word| match word.as_str() {
                    "one" => Ok(Shape::One),
                    "many" => Ok(Shape::Many),
                    other => bail!("unknown shape {other}"),
                })
                .collect::<Result<_>>()?;
        }
        "accounts" => scenario.accounts = words(),
        "strangers" => {
            scenario.accounts = words();
            scenario.strangers = true;
        }
        "domains" => scenario.domains = words(),
        "group" => {
            let mut words = words();
            let name = words.remove(0);
            scenario.groups.push((name, words));
        }
        "config" => scenario.config = block.into(),
        "complaints" => scenario.complaints.push(value.into()),
        other => bail!("unknown header {other}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialogue_is_read() {
        let scenario = parse(
            "title: hello\naccounts: alice bob\ngroup: red alice\n\n\
             alice/a connects sm gw2\nalice/a sends\n  <message to='bob'>\n    <body>x</body>\n  </message>\n\
             bob/b receives any-order without=delay\n  <message/>\n  <presence/>\n\
             bob/b receives nothing\nadmin policy apply -\n  default = \"deny\"\nadmin-fails verify x prints bad\n",
        )
        .unwrap();
        assert_eq!(scenario.accounts, ["alice", "bob"]);
        assert_eq!(
            scenario.groups,
            [("red".to_owned(), vec!["alice".to_owned()])]
        );
        assert_eq!(scenario.steps.len(), 6);
        assert_eq!(
            scenario.steps[1].action,
            Action::Sends {
                who: "alice/a".into(),
                xml: "<message to='bob'>\n  <body>x</body>\n</message>".into()
            }
        );
        let Action::Receives {
            xml,
            any_order,
            without,
            ..
        } = &scenario.steps[2].action
        else {
            panic!("not receives");
        };
        assert_eq!((xml.len(), *any_order, without.len()), (2, true, 1));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let error = format!("{:#}", parse("title: x\nalice/a shouts\n").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
    }
}
