//! The presence subscription of one account to another, seen from one side: RFC 6121 §3 and
//! appendix A as one table, and pre-approval (§3.4).
//!
//! Owns the nine states and what each stanza does to them in each direction. Refuses to own
//! rosters, stanzas and delivery.

use std::fmt::Write as _;

/// A stanza of the handshake (RFC 6121 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
}

/// Which way it passes, seen from the side whose state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Outbound,
    Inbound,
}

/// One side's state (RFC 6121 appendix A.1): every combination of the five flags that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Hears the other's presence.
    pub to: bool,
    /// Is heard by the other.
    pub from: bool,
    /// Has asked to hear, and waits; never with `to`.
    pub pending_out: bool,
    /// Was asked to be heard, and has not answered; never with `from`.
    pub pending_in: bool,
    /// Has approved before being asked (§3.4); never with `from` or `pending_in`.
    pub approved: bool,
}

/// What becomes of the stanza itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Passage {
    /// Outbound: routed to the other side. Inbound: delivered to the user's resources.
    Passes,
    /// Silently ignored.
    Stops,
    /// Not delivered: the server answers `subscribed` in the user's name.
    Answered,
}

/// The outcome of one stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub state: State,
    pub passage: Passage,
}

impl Act {
    pub const ALL: [Self; 4] = [
        Self::Subscribe,
        Self::Subscribed,
        Self::Unsubscribe,
        Self::Unsubscribed,
    ];

    /// The stanza's `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Subscribed => "subscribed",
            Self::Unsubscribe => "unsubscribe",
            Self::Unsubscribed => "unsubscribed",
        }
    }

    /// The act of a presence stanza's `type`.
    pub fn from_type(type_: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.as_str() == type_)
    }
}

impl State {
    /// Every state: the nine of appendix A.1, and those that a pre-approval can accompany.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32_u8)
            .map(|bits| Self {
                to: bits & 1 != 0,
                from: bits & 2 != 0,
                pending_out: bits & 4 != 0,
                pending_in: bits & 8 != 0,
                approved: bits & 16 != 0,
            })
            .filter(|state| state.exists())
    }

    /// Whether the flags agree with each other.
    pub const fn exists(self) -> bool {
        let out = !(self.to && self.pending_out);
        let inward = !(self.from && self.pending_in);
        let approved = !(self.approved && (self.from || self.pending_in));
        out && inward && approved
    }

    /// Appendix A.1's name.
    pub fn name(self) -> String {
        let base = match (self.to, self.from) {
            (false, false) => "None",
            (true, false) => "To",
            (false, true) => "From",
            (true, true) => "Both",
        };
        let pending = match (self.pending_out, self.pending_in) {
            (false, false) => "",
            (true, false) => " + Pending Out",
            (false, true) => " + Pending In",
            (true, true) => " + Pending Out+In",
        };
        let approved = if self.approved { ", approved" } else { "" };
        format!("{base}{pending}{approved}")
    }

    /// What a stanza does in this state.
    pub const fn step(self, direction: Direction, act: Act) -> Step {
        match direction {
            Direction::Outbound => self.outbound(act),
            Direction::Inbound => self.inbound(act),
        }
    }

    const fn outbound(self, act: Act) -> Step {
        match act {
            // A.2.1: always routed; the other side may have forgotten.
            Act::Subscribe => passes(Self {
                pending_out: !self.to,
                ..self
            }),
            // A.2.2
            Act::Unsubscribe => passes(Self {
                to: false,
                pending_out: false,
                ..self
            }),
            // A.2.3: an answer, or an approval in advance (§3.4.2).
            Act::Subscribed => match (self.pending_in, self.from) {
                (true, _) => passes(Self {
                    from: true,
                    pending_in: false,
                    ..self
                }),
                (false, true) => stops(self),
                (false, false) => stops(Self {
                    approved: true,
                    ..self
                }),
            },
            // A.2.4: a refusal, a cancellation, or the end of an approval in advance (§3.4.3).
            Act::Unsubscribed => {
                let heard = self.pending_in || self.from;
                let state = Self {
                    from: false,
                    pending_in: false,
                    approved: false,
                    ..self
                };
                if heard { passes(state) } else { stops(state) }
            }
        }
    }

    const fn inbound(self, act: Act) -> Step {
        match act {
            // A.3.1; who hears already, or was approved in advance, is answered (§3.1.3).
            Act::Subscribe if self.from => answered(self),
            Act::Subscribe if self.approved => answered(Self {
                from: true,
                approved: false,
                ..self
            }),
            Act::Subscribe if self.pending_in => stops(self),
            Act::Subscribe => passes(Self {
                pending_in: true,
                ..self
            }),
            // A.3.2
            Act::Unsubscribe if self.from || self.pending_in => passes(Self {
                from: false,
                pending_in: false,
                ..self
            }),
            // A.3.3: only who has asked is told.
            Act::Subscribed if self.pending_out => passes(Self {
                to: true,
                pending_out: false,
                ..self
            }),
            // A.3.4
            Act::Unsubscribed if self.to || self.pending_out => passes(Self {
                to: false,
                pending_out: false,
                ..self
            }),
            Act::Unsubscribe | Act::Subscribed | Act::Unsubscribed => stops(self),
        }
    }
}

const fn passes(state: State) -> Step {
    Step {
        state,
        passage: Passage::Passes,
    }
}

const fn stops(state: State) -> Step {
    Step {
        state,
        passage: Passage::Stops,
    }
}

const fn answered(state: State) -> Step {
    Step {
        state,
        passage: Passage::Answered,
    }
}

/// The whole table for the manual.
pub fn markdown() -> String {
    let mut out = String::from(
        "| direction | stanza | state | becomes | the stanza |\n|---|---|---|---|---|\n",
    );
    for direction in [Direction::Outbound, Direction::Inbound] {
        for act in Act::ALL {
            for state in State::all() {
                let step = state.step(direction, act);
                // A string takes everything.
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} |",
                    match direction {
                        Direction::Outbound => "outbound",
                        Direction::Inbound => "inbound",
                    },
                    act.as_str(),
                    state.name(),
                    if step.state == state {
                        "no change".to_owned()
                    } else {
                        step.state.name()
                    },
                    match (step.passage, direction) {
                        (Passage::Passes, Direction::Outbound) => "is routed",
                        (Passage::Passes, Direction::Inbound) => "is delivered",
                        (Passage::Stops, _) => "goes no further",
                        (Passage::Answered, _) => "is answered `subscribed`",
                    }
                );
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn state(name: &str) -> State {
        State::all()
            .find(|state| state.name() == name)
            .unwrap_or_else(|| panic!("{name}"))
    }

    /// The states of appendix A.1, in its order.
    const NINE: [&str; 9] = [
        "None",
        "None + Pending Out",
        "None + Pending In",
        "None + Pending Out+In",
        "To",
        "To + Pending In",
        "From",
        "From + Pending Out",
        "Both",
    ];

    /// One of the appendix's eight tables: for each of the nine states what the stanza does
    /// (`+` passes, `-` stops, `=` is answered) and the new state, empty for no change.
    fn check(direction: Direction, act: Act, rows: [(char, &str); 9]) {
        for (name, (passage, new)) in NINE.into_iter().zip(rows) {
            let before = state(name);
            let after = if new.is_empty() { before } else { state(new) };
            let passage = match passage {
                '+' => Passage::Passes,
                '-' => Passage::Stops,
                _ => Passage::Answered,
            };
            let expected = Step {
                state: after,
                passage,
            };
            assert_eq!(
                before.step(direction, act),
                expected,
                "{direction:?} {act:?} in {name}"
            );
        }
    }

    #[test]
    fn there_are_nine_states_and_three_with_an_approval() {
        let names: Vec<String> = State::all().map(State::name).collect();
        for name in NINE {
            assert!(names.contains(&name.to_owned()), "{name}");
        }
        assert_eq!(names.len(), 12);
        for name in ["None", "None + Pending Out", "To"] {
            assert!(names.contains(&format!("{name}, approved")), "{name}");
        }
    }

    #[test]
    fn outbound_subscribe() {
        let rows = [
            ('+', "None + Pending Out"),
            ('+', ""),
            ('+', "None + Pending Out+In"),
            ('+', ""),
            ('+', ""),
            ('+', ""),
            ('+', "From + Pending Out"),
            ('+', ""),
            ('+', ""),
        ];
        check(Direction::Outbound, Act::Subscribe, rows);
    }

    #[test]
    fn outbound_unsubscribe() {
        let rows = [
            ('+', ""),
            ('+', "None"),
            ('+', ""),
            ('+', "None + Pending In"),
            ('+', "None"),
            ('+', "None + Pending In"),
            ('+', ""),
            ('+', "From"),
            ('+', "From"),
        ];
        check(Direction::Outbound, Act::Unsubscribe, rows);
    }

    #[test]
    fn outbound_subscribed() {
        let rows = [
            ('-', "None, approved"),
            ('-', "None + Pending Out, approved"),
            ('+', "From"),
            ('+', "From + Pending Out"),
            ('-', "To, approved"),
            ('+', "Both"),
            ('-', ""),
            ('-', ""),
            ('-', ""),
        ];
        check(Direction::Outbound, Act::Subscribed, rows);
    }

    #[test]
    fn outbound_unsubscribed() {
        let rows = [
            ('-', ""),
            ('-', ""),
            ('+', "None"),
            ('+', "None + Pending Out"),
            ('-', ""),
            ('+', "To"),
            ('+', "None"),
            ('+', "None + Pending Out"),
            ('+', "To"),
        ];
        check(Direction::Outbound, Act::Unsubscribed, rows);
    }

    #[test]
    fn inbound_subscribe() {
        let rows = [
            ('+', "None + Pending In"),
            ('+', "None + Pending Out+In"),
            ('-', ""),
            ('-', ""),
            ('+', "To + Pending In"),
            ('-', ""),
            ('=', ""),
            ('=', ""),
            ('=', ""),
        ];
        check(Direction::Inbound, Act::Subscribe, rows);
    }

    #[test]
    fn inbound_unsubscribe() {
        let rows = [
            ('-', ""),
            ('-', ""),
            ('+', "None"),
            ('+', "None + Pending Out"),
            ('-', ""),
            ('+', "To"),
            ('+', "None"),
            ('+', "None + Pending Out"),
            ('+', "To"),
        ];
        check(Direction::Inbound, Act::Unsubscribe, rows);
    }

    #[test]
    fn inbound_subscribed() {
        let rows = [
            ('-', ""),
            ('+', "To"),
            ('-', ""),
            ('+', "To + Pending In"),
            ('-', ""),
            ('-', ""),
            ('-', ""),
            ('+', "Both"),
            ('-', ""),
        ];
        check(Direction::Inbound, Act::Subscribed, rows);
    }

    #[test]
    fn inbound_unsubscribed() {
        let rows = [
            ('-', ""),
            ('+', "None"),
            ('-', ""),
            ('+', "None + Pending In"),
            ('+', "None"),
            ('+', "None + Pending In"),
            ('-', ""),
            ('+', "From"),
            ('+', "From"),
        ];
        check(Direction::Inbound, Act::Unsubscribed, rows);
    }

    #[test]
    fn an_approval_in_advance_answers_once_and_can_be_taken_back() {
        for (name, asked) in [
            ("None", "From"),
            ("None + Pending Out", "From + Pending Out"),
            ("To", "Both"),
        ] {
            let approved = state(&format!("{name}, approved"));
            let step = approved.step(Direction::Inbound, Act::Subscribe);
            assert_eq!(
                (step.state, step.passage),
                (state(asked), Passage::Answered)
            );
            let step = approved.step(Direction::Outbound, Act::Unsubscribed);
            assert_eq!((step.state, step.passage), (state(name), Passage::Stops));
            let step = approved.step(Direction::Outbound, Act::Subscribed);
            assert_eq!((step.state, step.passage), (approved, Passage::Stops));
        }
    }

    /// Whatever two sides say, and in whatever order, no state comes up that does not exist, and
    /// when all stanzas have arrived both sides agree.
    #[test]
    fn two_sides_stay_in_step() {
        let mut seen = vec![(State::default(), State::default())];
        let mut at = 0;
        while let Some((own, other)) = seen.get(at).copied() {
            at += 1;
            for act in Act::ALL {
                for swapped in [false, true] {
                    let (one, two) = if swapped { (other, own) } else { (own, other) };
                    let (one, two) = said(one, two, act);
                    assert!(one.exists() && two.exists());
                    assert_eq!((one.to, one.from), (two.from, two.to), "{act:?}");
                    let pair = if swapped { (two, one) } else { (one, two) };
                    if !seen.contains(&pair) {
                        seen.push(pair);
                    }
                }
            }
        }
        assert!(seen.len() > 9, "{}", seen.len());
    }

    fn said(one: State, two: State, act: Act) -> (State, State) {
        let step = one.step(Direction::Outbound, act);
        if step.passage != Passage::Passes {
            return (step.state, two);
        }
        let there = two.step(Direction::Inbound, act);
        if there.passage != Passage::Answered {
            return (step.state, there.state);
        }
        let back = step.state.step(Direction::Inbound, Act::Subscribed);
        (back.state, there.state)
    }

    #[test]
    fn types() {
        for act in Act::ALL {
            assert_eq!(Act::from_type(act.as_str()), Some(act));
        }
        assert_eq!(Act::from_type("probe"), None);
        assert_eq!(markdown().lines().count(), 2 + 2 * 4 * 12);
    }
}
