//! A subscription stanza between two rosters, or the removal of an item with all that it stood for:
//! pure, on what the store has read. The tables are RFC 6121's, in `chancery_xmpp::subscription`.
//! Refuses to read, to write and to deliver.

use chancery_api::roster::{Item, Subscription};
use chancery_xmpp::subscription::{Act, Direction, Passage, State};

/// Requests that may wait on one account; further ones are as if nobody were there.
pub const REQUESTS_LIMIT: usize = 1_000;

/// A request to hear the owner that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The stanza as it is delivered.
    pub stanza: Vec<u8>,
    /// Version of the policy that allowed it.
    pub policy_version: u64,
}

/// What the owner says to the peer.
#[derive(Clone, Debug)]
pub struct Handshake {
    pub owner: String,
    pub peer: String,
    /// In this order.
    pub acts: Vec<Act>,
    /// Afterwards the owner's item goes.
    pub remove: bool,
    /// The peer is there and may hear of it.
    pub heard: bool,
    /// The peer may answer.
    pub answers: bool,
    /// What waits at the peer when it is asked.
    pub request: Request,
}

/// An item that has changed, for the push; a removed one has subscription `remove`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    pub owner: String,
    pub version: u64,
    pub item: Item,
}

/// What a handshake did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shaken {
    pub own: Option<Pushed>,
    pub peer: Option<Pushed>,
    /// What the peer's sessions are handed.
    pub delivered: Vec<Act>,
    /// The owner is told `subscribed` in the peer's name.
    pub answered: bool,
}

/// How a handshake ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done(Box<Shaken>),
    /// Nothing to remove.
    NotFound,
    /// A limit of the owner's roster.
    Full,
}

/// One side: its item for the other, and what waits there from the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Side {
    pub(super) item: Option<Item>,
    /// The other has asked, and waits.
    pub(super) asked: bool,
}

impl Side {
    /// An administrator may have written flags that exclude each other: the subscription wins.
    fn state(&self) -> State {
        let subscription = self.item.as_ref().map(Item::subscription);
        let to = matches!(subscription, Some(Subscription::To | Subscription::Both));
        let from = matches!(subscription, Some(Subscription::From | Subscription::Both));
        let pending_in = self.asked && !from;
        let flag = |flag: fn(&Item) -> bool| self.item.as_ref().is_some_and(flag);
        State {
            to,
            from,
            pending_out: flag(|item| item.ask) && !to,
            pending_in,
            approved: flag(|item| item.approved) && !from && !pending_in,
        }
    }

    fn enter(&mut self, state: State, other: &str) {
        self.asked = state.pending_in;
        // RFC 6121 §3.1.3: who has only been asked has no item for it.
        let named = state.to || state.from || state.pending_out || state.approved;
        if self.item.is_none() && !named {
            return;
        }
        let item = self.item.get_or_insert_with(|| Item {
            jid: other.to_owned(),
            ..Item::default()
        });
        item.subscription = match (state.to, state.from) {
            (false, false) => Subscription::None,
            (true, false) => Subscription::To,
            (false, true) => Subscription::From,
            (true, true) => Subscription::Both,
        }
        .into();
        item.ask = state.pending_out;
        item.approved = state.approved;
        // What stands for something shows by itself.
        item.colleague &= !named;
    }
}

/// Plays it. `peer_room`: one more request may wait there. Gives what is delivered to the peer,
/// and whether the owner is answered.
pub(super) fn play(
    handshake: &Handshake,
    own: &mut Side,
    peer: &mut Side,
    peer_room: bool,
) -> (Vec<Act>, bool) {
    let mut delivered = Vec::new();
    let mut answered = false;
    for act in &handshake.acts {
        let step = own.state().step(Direction::Outbound, *act);
        own.enter(step.state, &handshake.peer);
        if step.passage != Passage::Passes || !handshake.heard {
            continue;
        }
        let there = peer.state().step(Direction::Inbound, *act);
        match there.passage {
            Passage::Stops => {}
            Passage::Passes if *act == Act::Subscribe && !peer_room => {}
            Passage::Passes => {
                peer.enter(there.state, &handshake.owner);
                delivered.push(*act);
            }
            Passage::Answered if handshake.answers => {
                peer.enter(there.state, &handshake.owner);
                let back = own.state().step(Direction::Inbound, Act::Subscribed);
                if back.passage == Passage::Passes {
                    own.enter(back.state, &handshake.peer);
                    answered = true;
                }
            }
            Passage::Answered => {}
        }
    }
    if handshake.remove {
        own.item = None;
    }
    (delivered, answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(acts: &[Act]) -> Handshake {
        Handshake {
            owner: "a@x".into(),
            peer: "b@x".into(),
            acts: acts.to_vec(),
            remove: false,
            heard: true,
            answers: true,
            request: Request {
                stanza: Vec::new(),
                policy_version: 1,
            },
        }
    }

    fn side(subscription: Subscription) -> Side {
        Side {
            item: Some(Item {
                jid: "x@x".into(),
                subscription: subscription.into(),
                ..Item::default()
            }),
            asked: false,
        }
    }

    #[test]
    fn who_is_not_heard_changes_the_own_side_only() {
        let (mut own, mut peer) = (Side::default(), Side::default());
        let shake = Handshake {
            heard: false,
            ..handshake(&[Act::Subscribe])
        };
        assert_eq!(play(&shake, &mut own, &mut peer, true), (Vec::new(), false));
        assert!(own.item.is_some_and(|item| item.ask));
        assert_eq!(peer, Side::default());
    }

    #[test]
    fn an_approval_holds_only_while_the_peer_may_answer() {
        let mut peer = side(Subscription::None);
        if let Some(item) = &mut peer.item {
            item.approved = true;
        }
        let before = peer.clone();
        let mut own = Side::default();
        let shake = Handshake {
            answers: false,
            ..handshake(&[Act::Subscribe])
        };
        assert_eq!(play(&shake, &mut own, &mut peer, true), (Vec::new(), false));
        assert_eq!(peer, before);
        let shake = handshake(&[Act::Subscribe]);
        assert_eq!(play(&shake, &mut own, &mut peer, true), (Vec::new(), true));
        let after = |side: &Side| {
            side.item
                .as_ref()
                .map(|i| (i.subscription(), i.ask, i.approved))
        };
        assert_eq!(after(&own), Some((Subscription::To, false, false)));
        assert_eq!(after(&peer), Some((Subscription::From, false, false)));
    }

    #[test]
    fn a_removal_takes_both_directions_back() {
        let (mut own, mut peer) = (side(Subscription::Both), side(Subscription::Both));
        let shake = Handshake {
            remove: true,
            ..handshake(&[Act::Unsubscribe, Act::Unsubscribed])
        };
        let (delivered, _) = play(&shake, &mut own, &mut peer, true);
        assert_eq!(delivered, [Act::Unsubscribe, Act::Unsubscribed]);
        assert_eq!(own.item, None);
        assert_eq!(peer, side(Subscription::None));
    }

    #[test]
    fn a_full_list_of_requests_is_as_nobody() {
        let (mut own, mut peer) = (Side::default(), Side::default());
        let shake = handshake(&[Act::Subscribe]);
        assert_eq!(
            play(&shake, &mut own, &mut peer, false),
            (Vec::new(), false)
        );
        assert!(!peer.asked);
    }

    #[test]
    fn the_subscription_wins_over_flags_that_do_not_go_with_it() {
        for subscription in [
            Subscription::None,
            Subscription::To,
            Subscription::From,
            Subscription::Both,
        ] {
            let mut one = side(subscription);
            one.asked = true;
            if let Some(item) = &mut one.item {
                (item.ask, item.approved) = (true, true);
            }
            assert!(one.state().exists(), "{subscription:?}");
        }
    }
}
