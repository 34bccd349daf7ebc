//! Who gets an item: applies the routing table to the sessions attached now, and gathers one
//! envelope for each gateway. Owns the outcome of an item; refuses to hold what a session that
//! lags cannot take (`lag.rs`).

use std::sync::Arc;

use chancery_api::Kind;
use chancery_api::archive::{Audience, Form, Outcome, Target};
use chancery_xmpp::routing::{self, Delivery, Nobody, SessionState};

use crate::follower::{Follower, FollowerKey, Queued, StreamId};
use crate::item::{Envelope, Item};
use crate::lag::Handed;
use crate::shard::Shard;

/// The sessions that an item goes to, with their forms.
type Targets = Vec<(FollowerKey, Form)>;

impl<T> Shard<T> {
    /// Routes a committed entry.
    pub(crate) fn route_entry(&mut self, envelope: &Arc<Envelope>) -> Outcome {
        let (targets, outcome) = self.decide(&envelope.item);
        self.hand_all(envelope, &targets);
        outcome
    }

    /// Routes an item that is never stored, and answers.
    pub(crate) fn route_ephemeral(&mut self, item: Arc<Item>, token: T) {
        let seq = item.wire.seq;
        if self.is_unknown_yet(&item) {
            self.answer(token, seq, Outcome::Wait, 0, "");
            return;
        }
        let (targets, mut outcome) = self.decide(&item);
        let stamp_ms = self.now.wall_ms;
        let envelope = Arc::new(Envelope {
            item,
            number: 0,
            archive_id: String::new(),
            stamp_ms,
        });
        let full = self.hand_all(&envelope, &targets);
        if full && envelope.item.is_iq_request() {
            outcome = Outcome::Wait;
        }
        self.figures.ephemerals += 1;
        self.answer(token, seq, outcome, 0, "");
    }

    /// The targets of an item and what its sender hears.
    fn decide(&self, item: &Item) -> (Targets, Outcome) {
        let form: fn(&Follower) -> Form = match item.wire.audience() {
            // RFC 6121 §2.1.6: a push is written to every interested resource.
            Audience::Roster => |follower| match follower.interested {
                true => Form::Push,
                false => Form::Notice,
            },
            Audience::Blocks => |_| Form::Blocks,
            Audience::Unspecified => return self.decide_by_table(item),
        };
        // Nobody is no failure.
        let target = |key: &FollowerKey| Some((*key, form(self.followers.get(key)?)));
        let keys = self.sessions(item.to_bare());
        (keys.iter().filter_map(target).collect(), Outcome::Committed)
    }

    fn decide_by_table(&self, item: &Item) -> (Targets, Outcome) {
        let keys = self.sessions(item.to_bare());
        let states = self.states(keys);
        let plan = if item.is_to_self() && item.wire.kind() == Kind::Message {
            routing::to_self(item.facts, item.to_resource(), &states)
        } else {
            routing::received(item.facts, item.to_resource(), &states)
        };
        let mut targets = pick(keys, plan.deliveries);
        let outcome = match plan.outcome {
            routing::Outcome::Delivered
            | routing::Outcome::Nobody(Nobody::KeepOpen | Nobody::Drop) => Outcome::Committed,
            routing::Outcome::Nobody(Nobody::Bounce | Nobody::Server) => Outcome::Gone,
        };
        if item.wire.kind() == Kind::Message && !item.is_to_self() {
            targets.extend(self.sent_copies(item));
        }
        (targets, outcome)
    }

    /// XEP-0280 §8: copies to the sender's other sessions, never to the sending one.
    fn sent_copies(&self, item: &Item) -> Targets {
        let keys = self.sessions(item.sender_bare());
        let sender = self
            .gateway_index
            .get(item.wire.gateway.as_str())
            .map(|gateway| FollowerKey {
                gateway: *gateway,
                session: item.wire.session,
            });
        if keys.iter().all(|key| Some(*key) == sender) {
            return Vec::new();
        }
        let states = self.states(keys);
        let deliveries = routing::sent(item.facts, item.sender_resource(), &states);
        let mut targets = pick(keys, deliveries);
        targets.retain(|(key, _)| Some(*key) != sender);
        targets
    }

    pub(crate) fn sessions(&self, bare: &str) -> &[FollowerKey] {
        self.mailboxes
            .get(bare)
            .map_or(&[], |mailbox| &mailbox.sessions)
    }

    /// Parallel to `keys`.
    pub(crate) fn states(&self, keys: &[FollowerKey]) -> Vec<SessionState<'_>> {
        const ABSENT: SessionState<'_> = SessionState {
            resource: "",
            available: false,
            priority: -1,
            carbons: false,
            interested: false,
        };
        let state = |key| {
            self.followers
                .get(key)
                .map_or(ABSENT, |follower| follower.state())
        };
        keys.iter().map(state).collect()
    }

    /// Hands an envelope to all targets: at once, one envelope for each gateway, or later to
    /// those that lag. True when a session's list of ephemerals was full.
    fn hand_all(&mut self, envelope: &Arc<Envelope>, targets: &[(FollowerKey, Form)]) -> bool {
        let mut ready: Vec<(StreamId, Target)> = Vec::with_capacity(targets.len());
        let mut full = false;
        for (key, form) in targets {
            match self.hand(*key, envelope, *form) {
                Handed::Now(stream, target) => ready.push((stream, target)),
                Handed::Later => {}
                Handed::Full => full = true,
            }
        }
        while let Some((stream, _)) = ready.first().copied() {
            let mut same = Vec::with_capacity(ready.len());
            ready.retain(|(at, target)| {
                if *at == stream {
                    same.push(*target);
                }
                *at != stream
            });
            if let Some(stream) = self.streams.get_mut(&stream) {
                self.figures.delivered += same.len() as u64;
                stream.outbox.push_back(envelope.deliver(same));
            }
        }
        full
    }

    /// The start is over: decides what was left open because nobody could know who is there.
    pub(crate) fn end_window(&mut self) {
        self.window_until = None;
        for deferred in std::mem::take(&mut self.deferred) {
            let envelope = deferred.envelope;
            let (targets, outcome) = self.decide(&envelope.item);
            // Whoever attached again has it by position; only who is new since has not, and a
            // copy is for those only who were there.
            for (key, form) in targets {
                let missed = form == Form::Original
                    && self
                        .followers
                        .get(&key)
                        .is_some_and(|f| f.covered >= envelope.number);
                if missed {
                    let number = envelope.number;
                    let home = self.mailboxes.get(envelope.item.to_bare());
                    if home.is_some_and(|mailbox| mailbox.open.contains_key(&number))
                        && let Some(follower) = self.followers.get_mut(&key)
                    {
                        follower.out.insert(number);
                    }
                    self.queue(
                        key,
                        Queued::Entry {
                            number,
                            form,
                            delayed: true,
                        },
                    );
                    self.feed(key);
                }
            }
            if outcome != Outcome::Committed
                && let Some(mailbox) = self.mailboxes.get_mut(envelope.item.to_bare())
            {
                mailbox.close(envelope.number);
            }
            self.conclude(deferred.token, &envelope, outcome);
        }
    }
}

fn pick(keys: &[FollowerKey], deliveries: Vec<Delivery>) -> Targets {
    let forms = deliveries.into_iter().map(crate::route::form);
    keys.iter()
        .zip(forms)
        .filter_map(|(key, form)| Some((*key, form?)))
        .collect()
}
