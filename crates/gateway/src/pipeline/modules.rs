//! The order in which an inbound stanza is handled, in one list. Read it from the top.
//!
//! A filter looks at one stanza and says what next; a stage belongs to the session's window, where
//! stanzas wait for others. A change of order is a change of this list, and of its snapshot.

use super::filters;
use super::{Flow, Inbound, Work};

/// What handles the stanza at a place of the list.
pub(crate) enum Run {
    /// At once, in the session's task.
    Filter(for<'a, 'b> fn(&'a mut Inbound<'b>) -> Flow),
    /// In the session's window; see `session/window.rs`.
    Stage,
}

/// One place of the list.
pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Why it stands here.
    pub(crate) why: &'static str,
    /// What its own failure means for the stanza.
    pub(crate) on_failure: &'static str,
    pub(crate) run: Run,
}

const fn filter(
    name: &'static str,
    run: for<'a, 'b> fn(&'a mut Inbound<'b>) -> Flow,
    why: &'static str,
) -> Module {
    Module {
        name,
        why,
        on_failure: "cannot fail",
        run: Run::Filter(run),
    }
}

const fn stage(name: &'static str, on_failure: &'static str, why: &'static str) -> Module {
    Module {
        name,
        why,
        on_failure,
        run: Run::Stage,
    }
}

/// See the module.
pub(crate) const MODULES: &[Module] = &[
    filter(
        "kind",
        filters::kind,
        "only message, presence and iq are stanzas",
    ),
    filter(
        "header",
        filters::header,
        "everything below reads the header, nothing reads a tree",
    ),
    filter(
        "sender",
        filters::sender,
        "nobody speaks for another, not even to be told so",
    ),
    filter(
        "forgeries",
        filters::forgeries,
        "what only a server may say goes before anyone sees it",
    ),
    filter(
        "presence",
        filters::presence,
        "own and addressed presence take another road than the log's",
    ),
    filter(
        "handlers",
        filters::handlers,
        "what is for the server or the own account is not routed, so not decided",
    ),
    filter("route", filters::route, "all the rest goes to somebody"),
    stage(
        "decide",
        "bounce resource-constraint/wait",
        "policy speaks before the log, the log holds its verdict; up to 64 ahead",
    ),
    stage(
        "record",
        "bounce, or end the stream if the outcome is unknown",
        "in the order of the stanzas, committed before anybody sees it",
    ),
    stage(
        "answer",
        "cannot fail",
        "errors go back, and the stanza counts as handled (XEP-0198), in order",
    ),
];

/// Runs the filters.
pub(crate) fn run(inbound: &mut Inbound<'_>) -> Flow {
    for module in MODULES {
        if let Run::Filter(filter) = &module.run {
            match filter(inbound) {
                Flow::Pass => {}
                flow => return flow,
            }
        }
    }
    Flow::Take(Work::Route)
}

/// The list for the manual and its snapshot.
pub fn markdown() -> String {
    let mut out =
        String::from("| | step | where | on its own failure | why here |\n|---|---|---|---|---|\n");
    for (at, module) in MODULES.iter().enumerate() {
        let place = match module.run {
            Run::Filter(_) => "filter",
            Run::Stage => "window",
        };
        let (name, failure, why) = (module.name, module.on_failure, module.why);
        out.push_str(&format!(
            "| {} | {name} | {place} | {failure} | {why} |\n",
            at + 1
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_as_written_down() {
        let order: Vec<&str> = MODULES.iter().map(|module| module.name).collect();
        assert_eq!(
            order,
            [
                "kind",
                "header",
                "sender",
                "forgeries",
                "presence",
                "handlers",
                "route",
                "decide",
                "record",
                "answer"
            ]
        );
        assert_eq!(markdown().lines().count(), MODULES.len() + 2);
    }

    #[test]
    fn filters_come_before_stages_and_no_stage_fails_open() {
        let first = MODULES.iter().position(|m| matches!(m.run, Run::Stage));
        let last = MODULES
            .iter()
            .rposition(|m| matches!(m.run, Run::Filter(_)));
        assert!(last < first);
        for module in MODULES
            .iter()
            .filter(|m| matches!(m.name, "decide" | "record"))
        {
            assert!(module.on_failure.starts_with("bounce"));
        }
    }
}
