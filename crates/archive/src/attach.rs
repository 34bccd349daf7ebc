//! What comes down a gateway's stream: hello, sessions that attach, change, give credit,
//! acknowledge and leave. Owns the order of confirmations and the fences between streams and
//! between sessions of one full JID.

use std::collections::BTreeSet;
use std::sync::Arc;

use chancery_api::archive::{
    Acknowledge, AttachDown, AttachHello, AttachSession, Attached, DenyEntry, Detached, EndReason,
    EndSession, Head, HighestCount, HighestCountAnswer, UpdateSession, Updated, attach_down,
    attach_up,
};
use chancery_evidence::Kind;

use crate::follower::{
    CatchUp, Follower, FollowerKey, Gateway, INBOX_LIMIT, Lag, OUTBOX_LIMIT, Queued, Stream,
    StreamId,
};
use crate::item::{bare_len, domain_of, stream_id};
use crate::mailbox::Mailbox;
use crate::shard::{Act, Effect, Shard};

/// Gateways that may be known at once; a further one is refused.
const GATEWAYS_LIMIT: usize = 1_024;
/// Sessions of one mailbox; a further one is refused.
const MAILBOX_SESSIONS: usize = 256;
/// Questions for a highest count that wait; a further one ends its stream.
const HIGHEST_LIMIT: usize = 4_096;
/// Credit that one session may hold.
const CREDIT_LIMIT: u32 = 1 << 20;

/// What is remembered of a session that attaches again.
struct Before {
    since: u64,
    bound: bool,
    out: BTreeSet<u64>,
    delayed: BTreeSet<u64>,
}

impl Before {
    /// Of what was out with it up to `position` and is not among what its gateway still holds:
    /// closes what was acknowledged, gives what has to come again.
    fn resume(self, mailbox: &mut Mailbox, position: u64, held: &BTreeSet<u64>) -> Vec<u64> {
        let mut again = Vec::new();
        for number in self
            .out
            .range(..=position)
            .filter(|number| !held.contains(number))
        {
            if self.delayed.contains(number) {
                // Given out of its turn: whether it came is not known, so it comes again.
                again.extend(mailbox.open.contains_key(number).then_some(*number));
            } else {
                // The gateway had it and has it no more: its acknowledgement was lost.
                mailbox.close(*number);
            }
        }
        again
    }
}

impl<T> Shard<T> {
    /// A stream was opened; who it is, it says first.
    pub(crate) fn stream_opened(&mut self, id: StreamId) {
        self.streams.insert(id, Stream::default());
    }

    /// An item came down a stream.
    pub(crate) fn down(&mut self, id: StreamId, down: AttachDown) {
        let Some(item) = &down.item else { return };
        if let attach_down::Item::Attach(attach) = item
            && let Some(bare) = bare_len(&attach.full_jid).and_then(|n| attach.full_jid.get(..n))
        {
            self.want(bare, 0);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.inbox.push_back(down);
        if stream.inbox.len() > INBOX_LIMIT {
            self.close_stream(id);
            return;
        }
        self.process(id);
    }

    /// Takes what came down in order, up to the first that waits for a mailbox.
    pub(crate) fn process(&mut self, id: StreamId) {
        loop {
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            let Some(item) = stream.inbox.front().and_then(|down| down.item.as_ref()) else {
                if stream.inbox.pop_front().is_none() {
                    return;
                }
                continue;
            };
            if let attach_down::Item::Attach(attach) = item {
                let bare = bare_len(&attach.full_jid).and_then(|n| attach.full_jid.get(..n));
                let bare = bare.map(str::to_owned);
                if let Some(bare) = bare
                    && !self.is_loaded(&bare)
                {
                    // It may have left the memory since it came; then it is asked for again.
                    self.want(&bare, 0);
                    return;
                }
            }
            let next = self
                .streams
                .get_mut(&id)
                .and_then(|stream| stream.inbox.pop_front());
            if let Some(item) = next.and_then(|down| down.item) {
                self.take(id, item);
            }
        }
    }

    fn take(&mut self, id: StreamId, item: attach_down::Item) {
        let gateway = self.streams.get(&id).and_then(|stream| stream.gateway);
        let Some(gateway) = gateway else {
            if let attach_down::Item::Hello(hello) = item {
                self.hello(id, &hello);
            } else {
                tracing::warn!("a stream that did not say who it is");
                self.close_stream(id);
            }
            return;
        };
        let key = |session| FollowerKey { gateway, session };
        match item {
            attach_down::Item::Hello(_) => self.close_stream(id),
            attach_down::Item::Attach(attach) => self.attach(id, key(attach.session), &attach),
            attach_down::Item::Update(update) => self.update(id, key(update.session), &update),
            attach_down::Item::Credit(credit) => {
                if let Some(follower) = self.followers.get_mut(&key(credit.session)) {
                    let sum = follower.credit.saturating_add(credit.credit);
                    follower.credit = sum.min(CREDIT_LIMIT);
                    self.feed(key(credit.session));
                }
            }
            attach_down::Item::Acknowledge(ack) => self.acknowledge(key(ack.session), &ack),
            attach_down::Item::Deny(deny) => self.deny(key(deny.session), &deny),
            attach_down::Item::Detach(detach) => {
                self.end_session(key(detach.session), None);
                let session = detach.session;
                self.send(id, attach_up::Item::Detached(Detached { session }));
            }
            attach_down::Item::Highest(asked) => self.ask_highest(id, asked),
            attach_down::Item::Away(away) => self.away(key(away.session), away.away),
            attach_down::Item::Handled(handled) => {
                if handled.sm_id.len() == 16 {
                    let stream = stream_id(&handled.sm_id);
                    self.memory.told(stream, handled.count);
                }
            }
        }
    }

    pub(crate) fn send(&mut self, id: StreamId, item: attach_up::Item) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.push(item);
        if stream.outbox.len() > OUTBOX_LIMIT {
            self.close_stream(id);
        }
    }

    fn hello(&mut self, id: StreamId, hello: &AttachHello) {
        if hello.shard != self.settings.shard || hello.gateway.is_empty() {
            self.close_stream(id);
            return;
        }
        let index = if let Some(index) = self.gateway_index.get(hello.gateway.as_str()) {
            *index
        } else {
            if self.gateways.len() >= GATEWAYS_LIMIT {
                self.close_stream(id);
                return;
            }
            let name: Arc<str> = hello.gateway.as_str().into();
            let index = u32::try_from(self.gateways.len()).unwrap_or(u32::MAX);
            self.gateway_index.insert(Arc::clone(&name), index);
            self.gateways.push(Gateway {
                name,
                incarnation: 0,
                stream: None,
            });
            index
        };
        let Some(gateway) = self.gateways.get_mut(index as usize) else {
            return;
        };
        if hello.incarnation < gateway.incarnation {
            tracing::warn!(gateway = &*gateway.name, "an older incarnation is fenced");
            self.close_stream(id);
            return;
        }
        gateway.incarnation = hello.incarnation;
        if let Some(old) = gateway.stream.replace(id) {
            self.close_stream(old);
        }
        let head = self.head;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.gateway = Some(index);
            stream.announced = head;
            stream.push(attach_up::Item::Head(Head { number: head }));
        }
    }

    /// Gives a stream up: its sessions stay, lagging, for a while.
    pub(crate) fn close_stream(&mut self, id: StreamId) {
        self.effects.push(Effect::Close(id));
        self.stream_lost(id);
    }

    /// A stream is lost.
    pub(crate) fn stream_lost(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_none() {
            return;
        }
        for gateway in &mut self.gateways {
            if gateway.stream == Some(id) {
                gateway.stream = None;
            }
        }
        let now = self.now.monotonic;
        for (key, follower) in &mut self.followers {
            if follower.stream == Some(id) {
                follower.stream = None;
                follower.lost_at = Some(now);
                follower.lag.get_or_insert_with(|| Lag::new(now));
                self.lagging.insert(*key);
            }
        }
        self.handovers.retain(|_, handover| handover.stream != id);
    }

    pub(crate) fn attach(&mut self, id: StreamId, key: FollowerKey, attach: &AttachSession) {
        let parts = bare_len(&attach.full_jid).and_then(|bare| {
            let resource = attach.full_jid.get(bare + 1..).filter(|r| !r.is_empty())?;
            Some((attach.full_jid.get(..bare)?, resource))
        });
        let refused = EndSession {
            session: key.session,
            reason: EndReason::Unspecified.into(),
        };
        let Some((bare, resource)) = parts else {
            self.send(id, attach_up::Item::End(refused));
            return;
        };
        let before = self
            .followers
            .get(&key)
            .filter(|f| attach.again && &*f.mailbox == bare && &*f.resource == resource)
            .map(|f| Before {
                since: f.since,
                bound: f.bound,
                out: f.out.clone(),
                delayed: f.delayed.clone(),
            });
        if before.is_none() {
            self.end_session(key, None);
        }
        let first = self.session_of(bare, resource);
        if let Some(first) = first.filter(|first| *first != key)
            && self.hand_over(id, key, attach, first)
        {
            return;
        }
        let head = self.head;
        let Some((jid, _)) = self.mailboxes.get_key_value(bare) else {
            return;
        };
        let jid = Arc::clone(jid);
        let Some(mailbox) = self.mailboxes.get_mut(bare) else {
            return;
        };
        if before.is_none() {
            if mailbox.sessions.len() >= MAILBOX_SESSIONS {
                self.send(id, attach_up::Item::End(refused));
                return;
            }
            mailbox.sessions.push(key);
        }
        let position = if attach.again {
            attach.position.min(head)
        } else {
            head
        };
        let mut out: BTreeSet<u64> = attach.unacknowledged.iter().copied().collect();
        out.retain(|number| mailbox.open.contains_key(number));
        let missed = attach.again && mailbox.last_entry > position;
        let catch_up = missed.then_some(CatchUp {
            position,
            end: head,
        });
        let since = before.as_ref().map_or(position, |before| before.since);
        let bound = !attach.again || before.as_ref().is_some_and(|before| before.bound);
        let again = before.map_or_else(Vec::new, |before| before.resume(mailbox, position, &out));
        let follower = Follower {
            mailbox: jid,
            resource: resource.into(),
            available: attach.available,
            priority: priority(attach.priority),
            carbons: attach.carbons,
            interested: attach.interested,
            credit: attach.credit.min(CREDIT_LIMIT),
            away: attach.away,
            stream: Some(id),
            lost_at: None,
            bound,
            since,
            covered: position,
            out,
            delayed: BTreeSet::new(),
            lag: None,
        };
        let fresh = !attach.again && follower.receives();
        self.followers.insert(key, follower);
        self.lagging.remove(&key);
        // Said before the confirmation, so that no loss of the link comes between the two.
        if catch_up.is_some() {
            self.begin_catch_up(key, catch_up);
        }
        // Everything above this place is still to come, whatever of it the link loses.
        let place = catch_up.map_or(head, |catch_up| catch_up.position);
        let attached = Attached {
            session: key.session,
            head: place,
        };
        self.send(id, attach_up::Item::Attached(attached));
        self.hand_delayed(key, &again);
        if fresh {
            self.hand_backlog(key);
        }
        self.feed(key);
    }

    /// The client lost its socket, or is back on another.
    fn away(&mut self, key: FollowerKey, away: bool) {
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        follower.away = away;
        if !away {
            if let Some(lag) = &mut follower.lag {
                lag.progress = self.now.monotonic;
            }
            self.feed(key);
        }
    }

    fn begin_catch_up(&mut self, key: FollowerKey, catch_up: Option<CatchUp>) {
        let now = self.now.monotonic;
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let stream = follower.stream;
        follower.lag = Some(Lag::catching_up(now, catch_up));
        self.lagging.insert(key);
        if let (Some(stream), Some(catch_up)) = (stream, catch_up) {
            let session = key.session;
            let position = catch_up.position;
            let lagging = chancery_api::archive::Lagging {
                session,
                lagging: true,
                position,
            };
            self.send(stream, attach_up::Item::Lagging(lagging));
        }
    }

    fn update(&mut self, id: StreamId, key: FollowerKey, update: &UpdateSession) {
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let before = follower.receives();
        follower.available = update.available;
        follower.priority = priority(update.priority);
        follower.carbons = update.carbons;
        follower.interested = update.interested;
        let comes = follower.receives() && !before;
        if comes {
            self.hand_backlog(key);
        }
        // Behind that it lags, if it does: what has come then is known to both.
        self.send(
            id,
            attach_up::Item::Updated(Updated {
                session: key.session,
            }),
        );
    }

    fn acknowledge(&mut self, key: FollowerKey, ack: &Acknowledge) {
        let Some(follower) = self.followers.get_mut(&key) else {
            return;
        };
        let Some(mailbox) = self.mailboxes.get_mut(&follower.mailbox) else {
            return;
        };
        for number in &ack.numbers {
            follower.out.remove(number);
            follower.delayed.remove(number);
            mailbox.close(*number);
        }
    }

    /// A newer policy denied at the gateway what an older verdict had allowed.
    fn deny(&mut self, key: FollowerKey, deny: &DenyEntry) {
        let Some(follower) = self.followers.get(&key) else {
            return;
        };
        let jid = Arc::clone(&follower.mailbox);
        let gateway = self
            .gateways
            .get(key.gateway as usize)
            .map(|g| g.name.to_string());
        let Some(mailbox) = self.mailboxes.get_mut(&jid) else {
            return;
        };
        mailbox.close(deny.number);
        for other in mailbox.sessions.clone() {
            let Some(follower) = self.followers.get_mut(&other) else {
                continue;
            };
            follower.out.remove(&deny.number);
            follower.delayed.remove(&deny.number);
            if let Some(lag) = &mut follower.lag {
                let stays = |queued: &Queued| !matches!(queued, Queued::Entry { number, .. } if *number == deny.number);
                lag.queue.retain(stays);
            }
        }
        let verdict = deny.verdict.clone().unwrap_or_default();
        let detail = serde_json::json!({
            "act": "delivery.deny",
            "number": deny.number,
            "policy_version": verdict.policy_version,
            "rule": verdict.rule_id,
        });
        let act = Act {
            kind: Kind::DeliveryDenied,
            domain: domain_of(&jid).to_owned(),
            actor: gateway.unwrap_or_default(),
            act: "delivery.deny".to_owned(),
            detail: detail.to_string(),
            sealed: serde_json::json!({ "mailbox": &*jid }).to_string(),
            change: None,
        };
        self.act(act, None);
    }

    /// Asked when a gateway is gone: what is under way counts too, once it is in the log.
    fn ask_highest(&mut self, id: StreamId, asked: HighestCount) {
        if self.highest.len() >= HIGHEST_LIMIT {
            self.close_stream(id);
            return;
        }
        self.highest.push((id, asked));
        self.answer_highest();
    }

    pub(crate) fn answer_highest(&mut self) {
        for (id, asked) in std::mem::take(&mut self.highest) {
            let stream = (asked.sm_id.len() == 16).then(|| stream_id(&asked.sm_id));
            let under_way = self
                .keys
                .iter()
                .any(|(key, wait)| Some(key.stream) == stream && !wait.committed);
            if under_way {
                self.highest.push((id, asked));
                continue;
            }
            let count = stream.and_then(|stream| self.memory.close(&stream));
            let answer = HighestCountAnswer {
                request: asked.request,
                count: count.unwrap_or(0),
                known: count.is_some(),
            };
            self.send(id, attach_up::Item::Highest(answer));
        }
    }

    /// The account is gone: nothing up to `floor` is ever delivered again.
    pub(crate) fn dropped(&mut self, jid: &str, floor: u64) {
        self.refuse_handovers(jid);
        let Some(mailbox) = self.mailboxes.get_mut(jid) else {
            return;
        };
        mailbox.drop_below(floor);
        for key in mailbox.sessions.clone() {
            self.end_session(key, Some(EndReason::Deleted));
        }
    }

    /// Announces the head on each stream: after a group to those that it concerned, else in time.
    pub(crate) fn announce_heads(&mut self, all: bool) {
        let head = self.head;
        for stream in self.streams.values_mut() {
            if stream.gateway.is_none() || stream.announced >= head {
                continue;
            }
            let last = stream.outbox.back_mut().and_then(|up| up.item.as_mut());
            match last {
                Some(attach_up::Item::Head(last)) => last.number = head,
                Some(attach_up::Item::Deliver(_)) => {
                    stream.push(attach_up::Item::Head(Head { number: head }));
                }
                _ if all => stream.push(attach_up::Item::Head(Head { number: head })),
                _ => continue,
            }
            stream.announced = head;
        }
    }
}

/// RFC 6121 §4.7.2.3: -128 to 127.
fn priority(value: i32) -> i8 {
    i8::try_from(value).unwrap_or(if value < 0 { i8::MIN } else { i8::MAX })
}
