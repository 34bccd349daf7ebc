//! What an inactive client, or one without a stream, need not hear at once (XEP-0352): presence, of each resource the newest.
//! It is handed on, in the order in which it came, with whatever comes next, when the client is active
//! again, and when too much is held. Refuses to hold anything from the log.

use super::outgoing::Source;

/// Presence that may be held; with more, all of it is handed on.
const HELD: usize = 256;

/// Active is what a client is that has said nothing.
#[derive(Default)]
pub(crate) struct ClientState {
    inactive: bool,
    held: Vec<Source>,
}

impl ClientState {
    /// The client says what it is.
    pub(crate) fn set(&mut self, inactive: bool) {
        self.inactive = inactive;
    }

    /// Holds it, or gives it back: then what is held goes first.
    pub(crate) fn hold(&mut self, source: Source) -> Option<Source> {
        let Source::Presence(presence) = &source else {
            return Some(source);
        };
        if !self.inactive {
            return Some(source);
        }
        let same = |held: &Source| match held {
            Source::Presence(held) => held.from == presence.from && held.to == presence.to,
            _ => false,
        };
        if let Some(at) = self.held.iter().position(same) {
            self.held.remove(at);
        }
        if self.held.len() == HELD {
            return Some(source);
        }
        self.held.push(source);
        None
    }

    /// How many are held, and their bytes.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.held.len(), self.held.iter().map(Source::size).sum())
    }

    /// Takes what is held.
    pub(crate) fn release(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use bytes::Bytes;
    use chancery_api::archive::Deliver;

    use super::*;
    use crate::session::deliver::{Delivered, PresenceUp};

    fn presence(from: &str, payload: &'static str) -> Source {
        Source::Presence(Arc::new(PresenceUp {
            from: from.into(),
            payload: Bytes::from_static(payload.as_bytes()),
            policy_version: 1,
            unavailable: false,
            to: String::new(),
            traceparent: String::new(),
        }))
    }

    fn payloads(sources: Vec<Source>) -> Vec<Bytes> {
        let payload = |source| match source {
            Source::Presence(presence) => presence.payload.clone(),
            _ => Bytes::new(),
        };
        sources.into_iter().map(payload).collect()
    }

    #[test]
    fn of_each_resource_the_newest_is_held_in_order() {
        let mut state = ClientState::default();
        assert!(state.hold(presence("a@x/1", "early")).is_some());
        state.set(true);
        for (from, payload) in [
            ("a@x/1", "1"),
            ("b@x/1", "2"),
            ("a@x/2", "3"),
            ("a@x/1", "4"),
        ] {
            assert!(state.hold(presence(from, payload)).is_none());
        }
        let message = Source::Log(Arc::new(Delivered::new(Deliver::default())), 0);
        assert!(state.hold(message).is_some(), "the log waits for nobody");
        assert_eq!(payloads(state.release()), ["2", "3", "4"]);
        assert!(state.release().is_empty());
        state.set(false);
        assert!(state.hold(presence("a@x/1", "late")).is_some());
    }

    #[test]
    fn with_too_much_all_is_handed_on() {
        let mut state = ClientState::default();
        state.set(true);
        for n in 0..HELD {
            assert!(state.hold(presence(&format!("u{n}@x/1"), "p")).is_none());
        }
        assert!(
            state.hold(presence("u7@x/1", "newer")).is_none(),
            "it replaces"
        );
        assert!(state.hold(presence("more@x/1", "p")).is_some());
        assert_eq!(state.release().len(), HELD);
    }
}
