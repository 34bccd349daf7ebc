//! Every wall, rule, kind and direction as tables; precedence; what an absent account looks like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::facts::tests::facts;
use crate::file::check;

const RITA: &str = "rita@example.org";
const TOM: &str = "tom@example.org";
const CARL: &str = "carl@example.org";
const LENA: &str = "lena@lab.example";
const DORA: &str = "dora@example.org";
const GHOST: &str = "ghost@example.org";

fn decider(toml: &str) -> Decider {
    let policy = check(toml, Some(&facts())).unwrap();
    Decider::compile(9, Arc::new(policy), &facts())
}

fn wall(direction: &str, kind: &str) -> String {
    format!(
        "[[wall]]\nname = \"w\"\nbetween = [\"research\", \"trading\"]\n\
         direction = \"{direction}\"\nkind = \"{kind}\"\ntext = \"no\"\n"
    )
}

/// `allow`, or the denial in short, with the rule.
fn short(verdict: &Verdict) -> String {
    let word = match (verdict.decision(), verdict.denial()) {
        (Decision::Allow, Denial::Unspecified) => "allow",
        (Decision::Deny, Denial::PolicyViolation) => "violation",
        (Decision::Deny, Denial::ServiceUnavailable) => "unavailable",
        (Decision::Deny, Denial::RemoteServerNotFound) => "not-found",
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict.policy_version, 9);
    let text = if verdict.text.is_empty() {
        String::new()
    } else {
        format!(" {:?}", verdict.text)
    };
    format!("{word} {}{text}", verdict.rule_id)
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Message, "chat"),
    (Kind::Presence, ""),
    (Kind::Iq, "get"),
    (Kind::Iq, "result"),
];

fn table(decider: &Decider, from: &str, to: &str) -> [String; 4] {
    KINDS.map(|(kind, type_)| short(&decider.decide(from, to, kind, type_)))
}

#[test]
fn walls_by_kind_direction_and_looks() {
    let denied_open = [
        "violation wall:w \"no\"",
        "unavailable wall:w",
        "unavailable wall:w",
        "unavailable wall:w",
    ];
    let denied_concealed = ["unavailable wall:w"; 4];
    let free = ["allow default"; 4];
    // Against the direction everything passes but a request, whose answer could not.
    let against = [
        "allow default",
        "allow default",
        "unavailable wall:w",
        "allow default",
    ];
    for (direction, kind, forward, back) in [
        ("both", "open", denied_open, denied_open),
        ("forward", "open", denied_open, against),
        ("both", "concealed", denied_concealed, denied_concealed),
        ("forward", "concealed", denied_concealed, against),
    ] {
        let decider = decider(&wall(direction, kind));
        for (from, to, expected) in [
            (RITA, TOM, forward),
            ("rita@example.org/phone", "tom@example.org/desk", forward),
            (TOM, RITA, back),
            (RITA, CARL, free),
            (CARL, TOM, free),
            (LENA, RITA, free),
        ] {
            assert_eq!(
                table(&decider, from, to),
                expected,
                "{direction} {kind} {from} {to}"
            );
        }
    }
}

#[test]
fn rules_by_kind_and_first_match() {
    let decider = decider(
        r#"
        default = "deny"
        [groups]
        desk = ["carl@example.org", "domain:lab.example"]
        [[rule]]
        name = "quiet"
        from = "desk"
        to = "rita@example.org"
        action = "deny"
        kinds = "presence"
        text = "quiet please"
        [[rule]]
        name = "desk"
        from = ["desk", "research"]
        to = ["desk", "research"]
        action = "allow"
        [[rule]]
        name = "one-way"
        from = "*"
        to = "domain:lab.example"
        action = "allow"
        kinds = ["message", "iq"]
        [[rule]]
        name = "said"
        from = "trading"
        to = "research"
        action = "deny"
        text = "ask compliance"
        "#,
    );
    let denied = [
        "violation default",
        "unavailable default",
        "unavailable default",
        "unavailable default",
    ];
    for (from, to, expected) in [
        (
            CARL,
            RITA,
            [
                "allow rule:desk",
                "unavailable rule:quiet",
                "allow rule:desk",
                "allow rule:desk",
            ],
        ),
        (RITA, CARL, ["allow rule:desk"; 4]),
        (LENA, CARL, ["allow rule:desk"; 4]),
        (TOM, CARL, denied),
        // A request, whose answer the default would stop.
        (
            TOM,
            LENA,
            [
                "allow rule:one-way",
                "unavailable default",
                "unavailable default",
                "allow rule:one-way",
            ],
        ),
        (LENA, TOM, denied),
        (
            TOM,
            RITA,
            [
                "violation rule:said \"ask compliance\"",
                "unavailable rule:said",
                "unavailable rule:said",
                "unavailable rule:said",
            ],
        ),
    ] {
        assert_eq!(table(&decider, from, to), expected, "{from} {to}");
    }
}

#[test]
fn walls_win_over_rules_and_concealed_over_open() {
    let toml = format!(
        "{}[[wall]]\nname = \"hidden\"\nbetween = [\"trading\", \"research\"]\nkind = \"concealed\"\n\
         [[rule]]\nname = \"all\"\nfrom = \"*\"\nto = \"*\"\naction = \"allow\"\n",
        wall("both", "open")
    );
    let decider = decider(&toml);
    assert_eq!(table(&decider, RITA, TOM), ["unavailable wall:hidden"; 4]);
    assert_eq!(table(&decider, RITA, CARL), ["allow rule:all"; 4]);
}

#[test]
fn who_is_nobody_here_neither_sends_nor_receives() {
    let decider = decider(&wall("both", "open"));
    for (from, to, expected) in [
        (GHOST, RITA, "unavailable sender"),
        (DORA, RITA, "unavailable sender"),
        (DORA, DORA, "unavailable sender"),
        ("example.org", RITA, "unavailable sender"),
        ("", RITA, "unavailable sender"),
        (RITA, "x@elsewhere.example", "not-found no-federation"),
        (RITA, "elsewhere.example", "not-found no-federation"),
        (RITA, "", "not-found no-federation"),
        (RITA, "example.org", "allow server"),
        (RITA, "lab.example/x", "allow server"),
        (RITA, RITA, "allow self"),
        ("rita@example.org/a", "rita@example.org/b", "allow self"),
        (CARL, GHOST, "unavailable absent"),
        (CARL, DORA, "unavailable disabled"),
        (
            RITA,
            "tom@example.org@example.org",
            "not-found no-federation",
        ),
    ] {
        assert_eq!(table(&decider, from, to), [expected; 4], "{from} {to}");
    }
    let no_kind = decider.decide(RITA, CARL, Kind::Unspecified, "");
    assert_eq!(short(&no_kind), "unavailable no-kind");
}

#[test]
fn absent_disabled_and_concealed_look_the_same() {
    let decider = decider(&wall("both", "concealed"));
    for (kind, type_) in KINDS {
        let looks = |to| {
            let verdict = decider.decide(RITA, to, kind, type_);
            (
                verdict.decision,
                verdict.denial,
                verdict.text,
                verdict.policy_version,
            )
        };
        let absent = looks("nobody@example.org");
        assert_eq!(absent.1, i32::from(Denial::ServiceUnavailable));
        for to in [TOM, DORA, GHOST, "tom@example.org/res"] {
            assert_eq!(looks(to), absent, "{to} {kind:?}");
        }
    }
}

#[test]
fn a_wall_within_one_group_leaves_the_own_account_alone() {
    let decider = decider(
        "[groups]\nall = \"domain:example.org\"\n[[wall]]\nname = \"w\"\nbetween = [\"all\", \"all\"]\n",
    );
    assert_eq!(
        short(&decider.decide(RITA, CARL, Kind::Message, "")),
        "violation wall:w"
    );
    assert_eq!(
        short(&decider.decide(RITA, "rita@example.org/x", Kind::Message, "")),
        "allow self"
    );
    assert_eq!(
        short(&decider.decide(RITA, LENA, Kind::Message, "")),
        "allow default"
    );
}

#[test]
fn more_positions_than_fit_in_a_word() {
    let mut toml = String::new();
    for n in 0..150 {
        toml.push_str(&format!(
            "[[rule]]\nname = \"{n}\"\nfrom = \"lena@lab.example\"\nto = \"x{n}@example.org\"\naction = \"deny\"\n"
        ));
    }
    toml.push_str("[[rule]]\nname = \"last\"\nfrom = \"*\"\nto = \"*\"\naction = \"deny\"\n");
    let decider = decider(&toml);
    assert_eq!(
        short(&decider.decide(LENA, RITA, Kind::Message, "")),
        "violation rule:last"
    );
}

#[test]
fn a_group_that_is_gone_matches_nobody() {
    let policy = Arc::new(check(&wall("both", "open"), Some(&facts())).unwrap());
    let mut later = facts();
    later.groups.clear();
    let decider = Decider::compile(9, Arc::clone(&policy), &later);
    assert_eq!(
        short(&decider.decide(RITA, TOM, Kind::Message, "")),
        "allow default"
    );
    let key = |group| GroupKey::new("example.org", group);
    assert_eq!(
        named_groups(&policy, &facts()),
        [key("research"), key("trading")].into()
    );
}

proptest! {
    #[test]
    fn no_jid_makes_it_panic_or_pass_unknown(from in ".{0,40}", to in ".{0,40}", kind in 0..4i32, type_ in ".{0,8}") {
        let decider = decider(&wall("forward", "concealed"));
        let kind = Kind::try_from(kind).unwrap();
        for (from, to) in [(from.as_str(), to.as_str()), (RITA, &to), (&from, RITA)] {
            let verdict = decider.decide(from, to, kind, &type_);
            let known = |jid: &str| facts().accounts.contains_key(bare(jid));
            if verdict.decision() == Decision::Allow {
                prop_assert!(known(from));
            }
        }
    }
}
