//! The grammar of a policy file: what it accepts, and every complaint it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::facts::tests::facts;
use crate::file::{BUILT_IN, check};

const GOOD: &str = r#"
default = "deny"

[groups]
board = ["carl@Example.org", "domain:lab.example"]
alone = "tom@example.org"

[[wall]]
name = "research-trading"
between = ["research", "group:trading@example.org"]
direction = "forward"
kind = "concealed"
text = "rule 12.3"

[[wall]]
name = "board"
between = ["board", "chemists@lab.example"]

[[rule]]
name = "staff"
from = "*"
to = ["group:board", "rita@example.org", "domain:lab.example", "research"]
action = "allow"
kinds = ["message", "iq"]

[[rule]]
name = "no"
from = ["*"]
to = "*"
action = "deny"
text = "ask the desk"
"#;

#[test]
fn a_good_file_is_read_as_written() {
    let policy = check(GOOD, Some(&facts())).unwrap();
    assert_eq!(policy.default, Action::Deny);
    assert_eq!(
        policy.groups["board"],
        [
            Member::Account("carl@example.org".into()),
            Member::Domain("lab.example".into())
        ]
    );
    assert_eq!(
        policy.groups["alone"],
        [Member::Account("tom@example.org".into())]
    );
    let directory = |domain: Option<&str>, group: &str| GroupRef::Directory {
        domain: domain.map(Into::into),
        group: group.into(),
    };
    assert_eq!(
        policy.walls[0],
        Wall {
            name: "research-trading".into(),
            first: directory(None, "research"),
            second: directory(Some("example.org"), "trading"),
            direction: Direction::Forward,
            kind: WallKind::Concealed,
            text: "rule 12.3".into(),
        }
    );
    assert_eq!(policy.walls[1].first, GroupRef::Policy("board".into()));
    assert_eq!(
        (policy.walls[1].direction, policy.walls[1].kind),
        (Direction::Both, WallKind::Open)
    );
    assert_eq!(policy.rules[0].from, [Selector::Anybody]);
    assert_eq!(
        policy.rules[0].to,
        [
            Selector::Group(GroupRef::Policy("board".into())),
            Selector::Account("rita@example.org".into()),
            Selector::Domain("lab.example".into()),
            Selector::Group(directory(None, "research")),
        ]
    );
    assert_eq!(
        policy.rules[0].kinds,
        Kinds {
            message: true,
            presence: false,
            iq: true
        }
    );
    assert_eq!(policy.rules[1].kinds, Kinds::ALL);
    assert!(
        check(GOOD, None).is_ok(),
        "also without a directory at hand"
    );
    assert!(check(BUILT_IN, Some(&Facts::default())).is_ok());
    assert!(check("", None).unwrap().walls.is_empty());
}

const BAD: &str = r#"defalt = "allow"
default = "alow"
[groups]
research = ["rita@example.org"]
"a@b" = ["x"]
board = ["not a jid@@", 7, "carl@nowhere.example", "carl@exmple.org"]
[[wall]]
name = "one"
between = ["reserch", "trading"]
directon = "both"
kind = "hidden"
[[wall]]
name = "one"
between = ["research", "trading", "board"]
direction = 3
[[wall]]
text = 5
[[wall]]
name = "one"
between = ["trading@nowhere.example", "trading"]
[[wall]]
name = "two"
between = ["trading", "trading"]
text = "bell\u0007"
[[wall]]
name = "two"
between = ["trading", "board"]
[[rule]]
name = " padded"
from = []
to = "domain:rita@example.org"
action = "permit"
kinds = ["messages", "iq"]
[[rule]]
name = "r"
from = true
to = "group:"
action = "allow"
text = "never shown"
"#;

#[test]
fn every_problem_is_named_at_once_with_its_line() {
    let problems = check(BAD, Some(&facts())).unwrap_err();
    let found: Vec<String> = problems
        .iter()
        .map(|p| format!("{}: {}", p.line, p.problem))
        .collect();
    let expected = EXPECTED.trim().lines().collect::<Vec<_>>();
    assert_eq!(found, expected, "\n{}\n", found.join("\n"));
}

const EXPECTED: &str = include_str!("reader_tests.expected");

#[test]
fn broken_toml_is_named_with_its_line() {
    let problems = check(
        "default = \"allow\"\n[[wall]\nname = 3\nkind = nope\n",
        None,
    )
    .unwrap_err();
    assert_eq!(problems[0].line, 2, "{problems:?}");
    let problems = check("default = \"allow\"\ndefault = \"deny\"\n", None).unwrap_err();
    assert_eq!(problems[0].line, 2, "{problems:?}");
}

#[test]
fn sizes_are_bounded() {
    let huge = format!("# {}", "x".repeat(FILE_BYTES));
    assert_eq!(check(&huge, None).unwrap_err().len(), 1);
    let walls = |count: usize| {
        (0..count).fold(String::new(), |mut text, n| {
            text.push_str(&format!(
                "[[wall]]\nname = \"{n}\"\nbetween = [\"a\", \"b\"]\n"
            ));
            text
        })
    };
    assert_eq!(
        check(&walls(WALLS_LIMIT), None).unwrap().walls.len(),
        WALLS_LIMIT
    );
    assert!(check(&walls(WALLS_LIMIT + 1), None).is_err());
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(check(&deep, None).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_check_panic(text in "[\\[\\]a-z@:*\"=,. \n#']{0,200}") {
        let _ = check(&text, Some(&facts()));
    }
}
