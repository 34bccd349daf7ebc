//! A verdict in words, for officers. It refuses to decide: it asks the decider for its reason.

use chancery_api::policy::{ExplainResponse, Explanation};
use chancery_api::{Decision, Kind};

use crate::decider::{Decider, Reason};
use crate::file::{Action, Direction, WallKind};

/// Every kind of stanza, as a request where there are several.
pub(crate) fn explain(decider: &Decider, from: &str, to: &str) -> ExplainResponse {
    let kinds = [
        (Kind::Message, "chat"),
        (Kind::Presence, ""),
        (Kind::Iq, "get"),
    ];
    let kinds = kinds.into_iter().map(|(kind, type_)| {
        let (reason, allowed) = decider.reason(from, to, kind, type_);
        let verdict = decider.verdict(reason, allowed, kind);
        let mut because = words(decider, reason, from, to);
        if kind == Kind::Iq
            && verdict.decision() == Decision::Deny
            && answer_alone(decider, from, to)
        {
            because.push_str(": the answer to a request could not come back");
        }
        Explanation {
            kind: kind.into(),
            verdict: Some(verdict),
            because,
        }
    });
    ExplainResponse {
        kinds: kinds.collect(),
    }
}

/// Whether an IQ from the one to the other would pass if it needed no answer.
fn answer_alone(decider: &Decider, from: &str, to: &str) -> bool {
    decider.reason(from, to, Kind::Iq, "result").1
}

fn words(decider: &Decider, reason: Reason, from: &str, to: &str) -> String {
    let policy = decider.policy();
    match reason {
        Reason::NoKind => "no kind of stanza".into(),
        Reason::Sender => format!("{from} is not an active account here"),
        Reason::NoFederation => format!("the domain of {to} is not hosted here"),
        Reason::Server => format!("{to} is the server itself"),
        Reason::Own => "both are the same account".into(),
        Reason::Absent => format!("{to} does not exist"),
        Reason::Disabled => format!("{to} is disabled"),
        Reason::Wall(index) => policy.walls.get(index).map_or_else(String::new, |wall| {
            let kind = match wall.kind {
                WallKind::Open => "open",
                WallKind::Concealed => "concealed",
            };
            let way = match wall.direction {
                Direction::Both => format!("between {} and {}", wall.first, wall.second),
                Direction::Forward => format!("from {} to {}", wall.first, wall.second),
            };
            let text = if wall.text.is_empty() {
                String::new()
            } else {
                format!(" ({})", wall.text)
            };
            format!("{kind} wall {:?} {way}{text}", wall.name)
        }),
        Reason::Rule(index) => policy.rules.get(index).map_or_else(String::new, |rule| {
            let action = match rule.action {
                Action::Allow => "allows",
                Action::Deny => "denies",
            };
            let text = if rule.text.is_empty() {
                String::new()
            } else {
                format!(" ({})", rule.text)
            };
            format!("rule {:?} {action} it{text}", rule.name)
        }),
        Reason::Default => match policy.default {
            Action::Allow => "no wall and no rule speaks of it, and the default is allow".into(),
            Action::Deny => "no wall and no rule speaks of it, and the default is deny".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::sync::Arc;

    use super::*;
    use crate::facts::tests::facts;
    use crate::file::check;

    #[test]
    fn reasons_are_put_in_words() {
        let toml = "[[wall]]\nname = \"w\"\nbetween = [\"research\", \"trading\"]\n\
                    direction = \"forward\"\ntext = \"rule 12.3\"\n\
                    [[rule]]\nname = \"quiet\"\nfrom = \"carl@example.org\"\nto = \"*\"\n\
                    action = \"deny\"\nkinds = \"presence\"\n";
        let policy = Arc::new(check(toml, Some(&facts())).unwrap());
        let decider = Decider::compile(3, policy, &facts());
        let because = |from: &str, to: &str| -> Vec<String> {
            explain(&decider, from, to)
                .kinds
                .into_iter()
                .map(|kind| kind.because)
                .collect()
        };
        let wall = "open wall \"w\" from research to trading (rule 12.3)";
        let default = "no wall and no rule speaks of it, and the default is allow";
        assert_eq!(because("rita@example.org", "tom@example.org"), [wall; 3]);
        assert_eq!(
            because("tom@example.org", "rita@example.org"),
            [
                default.to_owned(),
                default.to_owned(),
                format!("{wall}: the answer to a request could not come back"),
            ]
        );
        assert_eq!(
            because("carl@example.org", "tom@example.org"),
            [default, "rule \"quiet\" denies it", default]
        );
        assert_eq!(
            because("rita@example.org", "x@example.org"),
            ["x@example.org does not exist"; 3]
        );
        let kinds = explain(&decider, "rita@example.org", "tom@example.org").kinds;
        assert_eq!(kinds[0].kind(), Kind::Message);
        assert_eq!(kinds[0].verdict.as_ref().unwrap().rule_id, "wall:w");
    }
}
