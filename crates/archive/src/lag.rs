//! Handing entries to one session: with credit at once, without it later, in order. Owns lag, its
//! bounds and its end; what waits is numbers, the payloads stay in the log.

use std::collections::VecDeque;
use std::sync::Arc;

use chancery_api::Kind;
use chancery_api::archive::{
    AppendItem, Audience, EndReason, EndSession, Form, Lagging, Target, attach_up,
};
use chancery_xmpp::routing::{self, Delivery};

use crate::entry::Entry;
use crate::follower::{
    CatchUp, Follower, FollowerKey, LAG_ENTRIES, LAG_EPHEMERALS, LAG_REQUESTS, LAG_SIGNALS, Lag,
    Queued, Stream, StreamId,
};
use crate::item::Envelope;
use crate::read::{PAGE_ENTRIES, Range, Read, ReadPage, ReadRange};
use crate::route;
use crate::shard::{Effect, Shard, Tail};

/// What became of one target.
pub(crate) enum Handed {
    /// Goes up this stream now.
    Now(StreamId, Target),
    /// Waits, or the session is gone.
    Later,
    /// An ephemeral item for which there was no room.
    Full,
}

/// The first of what waits for a session.
enum Next {
    /// There is none, or no credit for it.
    Nothing,
    /// Its payload has to be read back.
    Elsewhere,
    /// With its form, and whether it is delayed.
    Here(Arc<Envelope>, Form, bool),
}

fn next(
    queue: &VecDeque<Queued>,
    pages: &mut VecDeque<Arc<Envelope>>,
    tail: &Tail,
    credit: u32,
) -> Next {
    match queue.front() {
        None => Next::Nothing,
        Some(Queued::Ephemeral { envelope, form }) => {
            Next::Here(Arc::clone(envelope), *form, false)
        }
        Some(_) if credit == 0 => Next::Nothing,
        Some(Queued::Read { envelope, form }) => Next::Here(Arc::clone(envelope), *form, false),
        Some(Queued::Entry {
            number,
            form,
            delayed,
        }) => {
            while pages.front().is_some_and(|page| page.number != *number) {
                // Read for an entry that went another way.
                pages.pop_front();
            }
            let found = pages.pop_front().or_else(|| tail.get(*number).cloned());
            found.map_or(Next::Elsewhere, |envelope| {
                Next::Here(envelope, *form, *delayed)
            })
        }
    }
}

/// The IQ request among what waits for a session, if it is one and in memory.
fn request(queued: &Queued, tail: &Tail) -> Option<(Arc<Envelope>, Form)> {
    let (envelope, form) = match queued {
        Queued::Ephemeral { envelope, form } | Queued::Read { envelope, form } => (envelope, form),
        Queued::Entry { number, form, .. } => (tail.get(*number)?, form),
    };
    asks(&envelope.item.wire).then(|| (Arc::clone(envelope), *form))
}

/// How many ephemeral items may wait before one like this: whoever sends many leaves room for what
/// matters more.
fn room(item: &AppendItem) -> usize {
    match item.kind() {
        Kind::Message => LAG_SIGNALS,
        Kind::Iq if asks(item) && item.audience() == Audience::Unspecified => LAG_REQUESTS,
        _ => LAG_EPHEMERALS,
    }
}

fn asks(item: &AppendItem) -> bool {
    item.kind() == Kind::Iq && matches!(&*item.r#type, "get" | "set")
}

impl<T> Shard<T> {
    /// Hands one envelope to one session.
    pub(crate) fn hand(
        &mut self,
        key: FollowerKey,
        envelope: &Arc<Envelope>,
        form: Form,
    ) -> Handed {
        let number = envelope.number;
        let Some(follower) = self.followers.get_mut(&key) else {
            return Handed::Later;
        };
        if number != 0 && form != Form::CarbonSent {
            let mailbox = self.mailboxes.get(&follower.mailbox);
            if mailbox.is_some_and(|mailbox| mailbox.open.contains_key(&number)) {
                follower.out.insert(number);
            }
        }
        let stream = follower
            .stream
            .filter(|_| follower.lag.is_none() && !follower.away)
            .filter(|_| number == 0 || follower.credit > 0);
        if let Some(id) = stream
            && self.streams.get(&id).is_some_and(Stream::has_room)
        {
            if number != 0 {
                follower.credit -= 1;
            }
            let target = Target {
                session: key.session,
                form: form.into(),
                delayed: false,
                entry: number != 0,
            };
            return Handed::Now(id, target);
        }
        self.pressed |= stream.is_some();
        let queued = if number == 0 {
            Queued::Ephemeral {
                envelope: Arc::clone(envelope),
                form,
            }
        } else {
            Queued::Entry {
                number,
                form,
                delayed: false,
            }
        };
        self.queue(key, queued)
    }

    /// Puts something behind what waits for a session already.
    pub(crate) fn queue(&mut self, key: FollowerKey, queued: Queued) -> Handed {
        self.begin_lag(key, &queued);
        let Some(follower) = self.followers.get_mut(&key) else {
            return Handed::Later;
        };
        let Some(lag) = follower.lag.as_mut() else {
            return Handed::Later;
        };
        if let Queued::Ephemeral { envelope, .. } = &queued {
            let item = &envelope.item.wire;
            if lag.ephemerals >= room(item) {
                // A lost result would leave its asker waiting for ever: the session ends instead.
                if item.kind() == Kind::Iq && matches!(&*item.r#type, "result" | "error") {
                    self.end_session(key, Some(EndReason::Lag));
                    return Handed::Later;
                }
                return Handed::Full;
            }
            lag.ephemerals += 1;
        } else if lag.queue.len() - lag.ephemerals.min(lag.queue.len()) >= LAG_ENTRIES {
            self.end_session(key, Some(EndReason::Lag));
            return Handed::Later;
        }
        lag.queue.push_back(queued);
        Handed::Later
    }

    /// The session's position is its own from now on.
    fn begin_lag(&mut self, key: FollowerKey, first: &Queued) {
        let head = self.head;
        let now = self.now.monotonic;
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        if follower.lag.is_some() {
            return;
        }
        follower.lag = Some(Lag::new(now));
        self.lagging.insert(key);
        // What is handed late but is older than the session's place does not move it.
        let position = match first {
            Queued::Entry {
                number,
                delayed: false,
                ..
            } => number.saturating_sub(1),
            _ => head,
        };
        self.say_lagging(key, true, position);
    }

    fn say_lagging(&mut self, key: FollowerKey, lagging: bool, position: u64) {
        let stream = self
            .followers
            .get(&key)
            .and_then(|follower| follower.stream);
        if let Some(stream) = stream.and_then(|id| self.streams.get_mut(&id)) {
            let session = key.session;
            stream.push(attach_up::Item::Lagging(Lagging {
                session,
                lagging,
                position,
            }));
        }
    }

    /// Hands over as much of what waits as credit and room allow.
    pub(crate) fn feed(&mut self, key: FollowerKey) {
        loop {
            let Some(follower) = self.followers.get_mut(&key) else {
                return;
            };
            let Some(stream) = follower.stream.filter(|_| !follower.away) else {
                return;
            };
            let Some(lag) = follower.lag.as_mut() else {
                return;
            };
            if lag.is_drained() {
                follower.lag = None;
                self.lagging.remove(&key);
                self.say_lagging(key, false, self.head);
                return;
            }
            let Some(stream) = self.streams.get_mut(&stream).filter(|s| s.has_room()) else {
                self.pressed = true;
                return;
            };
            let from_found = !lag.found.is_empty();
            if !from_found && lag.catch_up.is_some() {
                self.ask_catch_up(key);
                return;
            }
            let queue = if from_found {
                &mut lag.found
            } else {
                &mut lag.queue
            };
            let (envelope, form, delayed) =
                match next(queue, &mut lag.pages, &self.tail, follower.credit) {
                    Next::Nothing => return,
                    Next::Elsewhere => {
                        self.ask_page(key);
                        return;
                    }
                    Next::Here(envelope, form, delayed) => (envelope, form, delayed),
                };
            let entry = envelope.number != 0;
            queue.pop_front();
            if entry {
                follower.credit -= 1;
            } else {
                lag.ephemerals = lag.ephemerals.saturating_sub(1);
            }
            lag.progress = self.now.monotonic;
            let session = key.session;
            let target = Target {
                session,
                form: form.into(),
                delayed,
                entry,
            };
            self.figures.delivered += 1;
            stream.outbox.push_back(envelope.deliver(vec![target]));
        }
    }

    /// Has the next entries of the queue read back, unless a read is under way.
    fn ask_page(&mut self, key: FollowerKey) {
        let read = self.next_read;
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let Some(mailbox) = self.mailboxes.get(&follower.mailbox) else {
            return;
        };
        let Some(lag) = follower.lag.as_mut().filter(|lag| lag.reading.is_none()) else {
            return;
        };
        let wanted = PAGE_ENTRIES.min(follower.credit as usize);
        let number = |queued: &Queued| match queued {
            Queued::Entry { number, .. } => Some(*number),
            _ => None,
        };
        let source = if lag.found.is_empty() {
            &lag.queue
        } else {
            &lag.found
        };
        let numbers: Vec<u64> = source.iter().filter_map(number).take(wanted).collect();
        lag.reading = Some(read);
        self.next_read += 1;
        self.effects.push(Effect::Read(ReadPage {
            key,
            read,
            mailbox: mailbox.id,
            numbers,
        }));
    }

    /// A page was read.
    pub(crate) fn page(&mut self, page: &ReadPage, found: Vec<Arc<Envelope>>) {
        let Some(follower) = self.followers.get_mut(&page.key) else {
            return;
        };
        let Some(lag) = follower.lag.as_mut() else {
            return;
        };
        if lag.reading != Some(page.read) {
            return;
        }
        lag.reading = None;
        // What is not there any more is passed over, or the queue would wait for it for ever.
        let there = |number: &u64| found.iter().any(|envelope| envelope.number == *number);
        let gone: Vec<u64> = page.numbers.iter().copied().filter(|n| !there(n)).collect();
        if !gone.is_empty() {
            let stays = |queued: &Queued| !matches!(queued, Queued::Entry { number, .. } if gone.contains(number));
            lag.queue.retain(stays);
            lag.found.retain(stays);
        }
        lag.pages.extend(found);
        self.feed(page.key);
    }

    /// Has the next piece of what the session missed read, unless a read is under way.
    fn ask_catch_up(&mut self, key: FollowerKey) {
        let read = self.next_read;
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let Some(mailbox) = self.mailboxes.get(&follower.mailbox) else {
            return;
        };
        let Some(lag) = follower.lag.as_mut().filter(|lag| lag.reading.is_none()) else {
            return;
        };
        let Some(CatchUp { position, end }) = lag.catch_up else {
            return;
        };
        lag.reading = Some(read);
        self.next_read += 1;
        let range = ReadRange {
            key,
            read,
            mailbox: mailbox.id,
            after: position,
            end,
        };
        self.effects.push(Effect::CatchUp(range));
    }

    /// A piece of what the session missed was read: routes it for this session, as of now.
    pub(crate) fn caught_up(&mut self, range: &ReadRange, piece: &Range) {
        let key = range.key;
        let current = self
            .followers
            .get(&key)
            .and_then(|follower| follower.lag.as_ref());
        if current.is_none_or(|lag| lag.reading != Some(range.read)) {
            return;
        }
        let found: Vec<(Arc<Envelope>, Form)> = piece
            .found
            .iter()
            .filter_map(|read| Some((Arc::clone(&read.envelope), self.form_again(key, read)?)))
            .collect();
        let now = self.now.monotonic;
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let mailbox = self.mailboxes.get(&follower.mailbox);
        let Some(lag) = follower.lag.as_mut() else {
            return;
        };
        lag.reading = None;
        lag.progress = now;
        for (envelope, form) in found {
            let number = envelope.number;
            if mailbox.is_some_and(|mailbox| mailbox.open.contains_key(&number)) {
                follower.out.insert(number);
            }
            lag.found.push_back(Queued::Read { envelope, form });
        }
        let done = piece.position >= range.end;
        lag.catch_up = (!done).then_some(CatchUp {
            position: piece.position,
            end: range.end,
        });
        self.feed(key);
    }

    /// The form in which an entry comes to a session that attached again; `None` for not at all.
    fn form_again(&self, key: FollowerKey, read: &Read) -> Option<Form> {
        let follower = self.followers.get(&key)?;
        let item = &read.envelope.item;
        let number = read.envelope.number;
        let mailbox = self.mailboxes.get(&follower.mailbox)?;
        if number <= mailbox.floor || follower.out.contains(&number) {
            return None;
        }
        let open = mailbox.open.contains_key(&number);
        // From before it was there, only what nobody has read concerns it.
        if number <= follower.since && !open {
            return None;
        }
        let delivery = if read.entry.has(Entry::SENT) {
            let states = [follower.state()];
            routing::sent(item.facts, item.sender_resource(), &states)
                .into_iter()
                .next()?
        } else {
            let keys = &mailbox.sessions;
            let at = keys.iter().position(|other| *other == key)?;
            let states = self.states(keys);
            let plan = if item.is_to_self() {
                routing::to_self(item.facts, item.to_resource(), &states)
            } else {
                routing::received(item.facts, item.to_resource(), &states)
            };
            plan.deliveries
                .get(at)
                .copied()
                .unwrap_or(Delivery::Nothing)
        };
        route::form(delivery)
    }

    /// The session's owner came, or came back: it gets the open entries that are out with nobody,
    /// in order, before anything newer (XEP-0160 §3).
    pub(crate) fn hand_backlog(&mut self, key: FollowerKey) {
        let Some(follower) = self.followers.get(&key) else {
            return;
        };
        let Some(mailbox) = self.mailboxes.get(&follower.mailbox) else {
            return;
        };
        let numbers: Vec<u64> = mailbox
            .open
            .keys()
            .copied()
            .filter(|number| !self.is_out(&mailbox.sessions, *number))
            .collect();
        self.hand_delayed(key, &numbers);
    }

    /// Whether a session has it, or will by catching up.
    fn is_out(&self, sessions: &[FollowerKey], number: u64) -> bool {
        let has = |key| {
            self.followers
                .get(key)
                .is_some_and(|f: &Follower| f.out.contains(&number) || f.will_read(number))
        };
        sessions.iter().any(has)
    }

    pub(crate) fn hand_delayed(&mut self, key: FollowerKey, numbers: &[u64]) {
        for number in numbers {
            let Some(follower) = self.followers.get_mut(&key) else {
                return;
            };
            follower.out.insert(*number);
            follower.delayed.insert(*number);
            let form = Form::Original;
            self.queue(
                key,
                Queued::Entry {
                    number: *number,
                    form,
                    delayed: true,
                },
            );
        }
        if !numbers.is_empty() {
            self.feed(key);
        }
    }

    /// Ends a session. What it did not acknowledge is decided again, as if it had been sent to
    /// the bare JID.
    pub(crate) fn end_session(&mut self, key: FollowerKey, reason: Option<EndReason>) {
        self.handovers.remove(&key);
        self.release(key, reason);
        self.handed_over(key);
    }

    fn release(&mut self, key: FollowerKey, reason: Option<EndReason>) {
        let Some(follower) = self.followers.remove(&key) else {
            return;
        };
        self.lagging.remove(&key);
        if let Some(stream) = follower.stream.and_then(|id| self.streams.get_mut(&id)) {
            if let Some(reason) = reason {
                let end = EndSession {
                    session: key.session,
                    reason: reason.into(),
                };
                stream.push(attach_up::Item::End(end));
            }
            // Somebody waits for the answers: the gateway gives them.
            let waiting = follower.lag.iter().flat_map(|lag| &lag.queue);
            for (envelope, form) in waiting.filter_map(|queued| request(queued, &self.tail)) {
                let target = Target {
                    session: key.session,
                    form: form.into(),
                    delayed: false,
                    entry: false,
                };
                stream.outbox.push_back(envelope.deliver(vec![target]));
            }
        }
        let now = self.now.monotonic;
        let Some(mailbox) = self.mailboxes.get_mut(&follower.mailbox) else {
            return;
        };
        mailbox.sessions.retain(|other| *other != key);
        mailbox.idle_since = now;
        let Some(mailbox) = self.mailboxes.get(&follower.mailbox) else {
            return;
        };
        // What it had not yet read back when it ended was for it too.
        let owed = |number: &u64| follower.out.contains(number) || follower.will_read(*number);
        let left: Vec<u64> = mailbox
            .open
            .keys()
            .copied()
            .filter(owed)
            .filter(|number| !self.is_out(&mailbox.sessions, *number))
            .collect();
        if left.is_empty() || mailbox.sessions.is_empty() {
            return;
        }
        let keys = mailbox.sessions.clone();
        let plan = routing::received(route::to_bare_again(), None, &self.states(&keys));
        for (other, delivery) in keys.into_iter().zip(plan.deliveries) {
            if delivery == Delivery::Original {
                self.hand_delayed(other, &left);
            }
        }
    }
}
