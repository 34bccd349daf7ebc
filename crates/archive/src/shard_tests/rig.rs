//! The sequencer with a log that is a map: no threads, no disk. Its tests are in the files beside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::{
    Acknowledge, AppendAnswer, AppendItem, AttachDown, AttachHello, AttachSession, AttachUp,
    Credit, Deliver, DetachSession, EndReason, Form, Outcome, UpdateSession, attach_down,
    attach_up,
};
use chancery_api::{Decision, Kind, Verdict};
use tokio::time::Instant;

use crate::entry::Entry;
use crate::item::Envelope;
use crate::mailbox::{MailboxRow, MailboxSave};
use crate::read::{Range, Read};
use crate::shard::{
    Act, Change, Effect, Group, NotCommitted, Now, Record, Recovered, Settings, Shard,
};

/// A shard, the log that it writes, and all that came out of it.
pub(super) struct Rig {
    pub(super) shard: Shard<u64>,
    pub(super) envelopes: BTreeMap<u64, Arc<Envelope>>,
    pub(super) kinds: BTreeMap<u64, chancery_evidence::Outcome>,
    pub(super) acts: BTreeMap<u64, Arc<Act>>,
    pub(super) entries: BTreeMap<(i64, u64), Entry>,
    pub(super) rows: BTreeMap<String, MailboxRow>,
    pub(super) held: VecDeque<Group>,
    pub(super) hold: bool,
    pub(super) full: bool,
    pub(super) answers: BTreeMap<u64, AppendAnswer>,
    pub(super) acted: BTreeMap<u64, Option<u64>>,
    pub(super) settled: BTreeMap<u64, Vec<AppendAnswer>>,
    pub(super) ups: BTreeMap<u64, Vec<AttachUp>>,
    pub(super) closed: Vec<u64>,
    pub(super) stalled: bool,
    pub(super) token: u64,
    pub(super) room: i64,
}

pub(super) fn settings() -> Settings {
    Settings {
        shard: 0,
        mailbox_entries: 10_000,
        mailbox_bytes: 64 * 1024 * 1024,
        expiry_ms: 30 * 24 * 3_600 * 1_000,
        preferences_locked: false,
    }
}

pub(super) fn start() -> Now {
    Now {
        monotonic: Instant::now(),
        wall_ms: 1_000_000,
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        Self {
            shard: Shard::new(settings, Recovered::default(), start()),
            envelopes: BTreeMap::new(),
            kinds: BTreeMap::new(),
            acts: BTreeMap::new(),
            entries: BTreeMap::new(),
            rows: BTreeMap::new(),
            held: VecDeque::new(),
            hold: false,
            full: false,
            answers: BTreeMap::new(),
            acted: BTreeMap::new(),
            settled: BTreeMap::new(),
            ups: BTreeMap::new(),
            closed: Vec::new(),
            stalled: false,
            token: 0,
            room: 0,
        }
    }

    /// The same log under a new shard: what only memory held is gone.
    pub(super) fn restart(&mut self) {
        let recovered = Recovered {
            head: self
                .envelopes
                .keys()
                .chain(self.acts.keys())
                .max()
                .copied()
                .unwrap_or(0),
            last_mailbox: self.rows.values().map(|row| row.id).max().unwrap_or(0),
            beaten: self.acts.keys().max().copied().unwrap_or(0),
            ..Recovered::default()
        };
        self.shard = Shard::new(settings(), recovered, start());
        self.held.clear();
        self.ups.clear();
    }

    pub(super) fn write(&mut self, group: &Group) -> Vec<String> {
        for (id, jid) in &group.mailboxes {
            let row = MailboxRow {
                id: *id,
                ..MailboxRow::default()
            };
            assert!(
                self.rows.insert(jid.to_string(), row).is_none(),
                "a mailbox is made once"
            );
        }
        let mut ids = Vec::new();
        for (number, record) in (group.first..).zip(&group.records) {
            let archive_id = format!("id-{number}");
            match record {
                Record::Stanza {
                    item,
                    outcome,
                    entries,
                } => {
                    for (mailbox, entry) in entries.iter().flatten() {
                        self.entries.insert((*mailbox, number), *entry);
                    }
                    let (item, stamp_ms) = (Arc::clone(item), group.time_ms);
                    let envelope = Envelope {
                        item,
                        number,
                        archive_id: archive_id.clone(),
                        stamp_ms,
                    };
                    self.envelopes.insert(number, Arc::new(envelope));
                    self.kinds.insert(number, *outcome);
                }
                Record::Act { act, mailbox } => {
                    let changed = self.rows.values_mut().filter(|r| Some(r.id) == *mailbox);
                    for row in changed {
                        if let Some(Change::Prefer(_, preferences)) = &act.change {
                            row.preferences = Some(preferences.encode().unwrap());
                        } else {
                            (row.floor, row.upto, row.open) = (number, number, Vec::new());
                            row.preferences = None;
                        }
                    }
                    self.acts.insert(number, Arc::clone(act));
                }
            }
            ids.push(archive_id);
        }
        ids
    }

    pub(super) fn row(&self, jid: &str) -> Option<MailboxRow> {
        let mut row = self.rows.get(jid)?.clone();
        let of = self.entries.range((row.id, 0)..=(row.id, u64::MAX));
        let of: Vec<(u64, Entry)> = of.map(|((_, number), entry)| (*number, *entry)).collect();
        row.last = of.last().map_or(0, |(number, _)| *number);
        row.entries = of
            .into_iter()
            .filter(|(number, _)| *number > row.upto)
            .collect();
        Some(row)
    }

    pub(super) fn save(&mut self, saves: &[MailboxSave]) {
        for save in saves {
            let row = self
                .rows
                .get_mut(&*save.jid)
                .expect("a mailbox has a row before it is saved");
            row.floor = row.floor.max(save.floor);
            (row.upto, row.open) = (save.upto, save.open.clone());
        }
    }

    pub(super) fn run(&mut self) {
        loop {
            self.shard.pump();
            let effects = std::mem::take(&mut self.shard.effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
        if !self.stalled {
            for (id, stream) in &mut self.shard.streams {
                self.ups
                    .entry(*id)
                    .or_default()
                    .extend(stream.outbox.drain(..));
            }
        }
    }

    pub(super) fn carry_out(&mut self, effect: Effect<u64>) {
        match effect {
            Effect::Commit(group) if self.hold => self.held.push_back(group),
            Effect::Commit(_) if self.full => self.shard.committed(Err(NotCommitted)),
            Effect::Commit(group) => {
                let ids = self.write(&group);
                self.shard.committed(Ok(ids));
            }
            Effect::Save(saves) => {
                self.save(&saves);
                let jids: Vec<_> = saves.iter().map(|save| Arc::clone(&save.jid)).collect();
                self.shard.saved(&jids, true);
            }
            Effect::Load(jid) => {
                let row = self.row(&jid);
                self.shard.loaded(&jid, row);
            }
            Effect::Read(page) => {
                let there = |n: &u64| {
                    self.entries.get(&(page.mailbox, *n))?;
                    self.envelopes.get(n).cloned()
                };
                let found = page.numbers.iter().filter_map(there).collect();
                self.shard.page(&page, found);
            }
            Effect::CatchUp(range) => {
                let of = (range.mailbox, range.after + 1)..=(range.mailbox, range.end);
                let found: Vec<Read> = self
                    .entries
                    .range(of)
                    .take(3)
                    .map(|((_, number), entry)| Read {
                        envelope: Arc::clone(&self.envelopes[number]),
                        entry: *entry,
                    })
                    .collect();
                let position = match found.last() {
                    Some(last) if found.len() == 3 => last.envelope.number,
                    _ => range.end,
                };
                self.shard.caught_up(&range, &Range { found, position });
            }
            Effect::Answer(token, answer) => {
                assert!(
                    self.answers.insert(token, answer).is_none(),
                    "one answer an item"
                );
            }
            Effect::Acted(token, number) => {
                self.acted.insert(token, number);
            }
            Effect::Settled(token, answers) => {
                self.settled.insert(token, answers);
            }
            Effect::Close(id) => self.closed.push(id),
            Effect::Release(units) => self.room += i64::from(units),
        }
    }

    /// Lets the oldest group that is held be written.
    pub(super) fn release(&mut self) {
        let group = self.held.pop_front().expect("a group is held");
        let ids = self.write(&group);
        self.shard.committed(Ok(ids));
        self.run();
    }

    pub(super) fn append(&mut self, item: AppendItem) -> u64 {
        self.append_on(1, item)
    }

    pub(super) fn append_on(&mut self, incarnation: u64, item: AppendItem) -> u64 {
        self.token += 1;
        self.room -= 1;
        self.shard
            .append("gw1", incarnation, vec![(item, self.token, 1)]);
        self.run();
        self.token
    }

    pub(super) fn outcome(&self, token: u64) -> Option<Outcome> {
        self.answers.get(&token).map(AppendAnswer::outcome)
    }

    pub(super) fn down(&mut self, stream: u64, item: attach_down::Item) {
        self.shard.down(stream, AttachDown { item: Some(item) });
        self.run();
    }

    pub(super) fn hello(&mut self, stream: u64, gateway: &str, incarnation: u64) {
        self.shard.stream_opened(stream);
        let hello = AttachHello {
            gateway: gateway.into(),
            incarnation,
            shard: 0,
        };
        self.down(stream, attach_down::Item::Hello(hello));
    }

    pub(super) fn attach(&mut self, stream: u64, session: u64, jid: &str) {
        self.down(stream, attach_down::Item::Attach(attaching(session, jid)));
    }

    pub(super) fn priority(&mut self, stream: u64, session: u64, available: bool, priority: i32) {
        let (carbons, interested) = (true, true);
        let update = UpdateSession {
            session,
            available,
            priority,
            carbons,
            interested,
        };
        self.down(stream, attach_down::Item::Update(update));
    }

    pub(super) fn credit(&mut self, stream: u64, session: u64, credit: u32) {
        self.down(
            stream,
            attach_down::Item::Credit(Credit { session, credit }),
        );
    }

    pub(super) fn acknowledge(&mut self, stream: u64, session: u64, numbers: &[u64]) {
        let numbers = numbers.to_vec();
        self.down(
            stream,
            attach_down::Item::Acknowledge(Acknowledge { session, numbers }),
        );
    }

    pub(super) fn detach(&mut self, stream: u64, session: u64) {
        self.down(stream, attach_down::Item::Detach(DetachSession { session }));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.shard.now.monotonic += time;
        self.shard.now.wall_ms += i64::try_from(time.as_millis()).unwrap();
        self.shard.tick();
        self.run();
    }

    /// What a session was given since the last look: number, form, delayed; 0 for ephemerals.
    pub(super) fn given(&mut self, stream: u64, session: u64) -> Vec<(u64, Form, bool)> {
        let delivers = self
            .ups
            .get(&stream)
            .into_iter()
            .flatten()
            .filter_map(deliver);
        let mut given = Vec::new();
        for deliver in delivers {
            for target in deliver
                .targets
                .iter()
                .filter(|target| target.session == session)
            {
                given.push((deliver.number, target.form(), target.delayed));
            }
        }
        for up in self.ups.get_mut(&stream).into_iter().flatten() {
            if let Some(attach_up::Item::Deliver(deliver)) = &mut up.item {
                deliver.targets.retain(|target| target.session != session);
            }
        }
        given
    }

    pub(super) fn numbers(&mut self, stream: u64, session: u64) -> Vec<u64> {
        self.given(stream, session)
            .into_iter()
            .map(|(number, _, _)| number)
            .collect()
    }

    pub(super) fn end_of(&self, stream: u64, session: u64) -> Option<EndReason> {
        self.ups.get(&stream)?.iter().find_map(|up| match &up.item {
            Some(attach_up::Item::End(end)) if end.session == session => Some(end.reason()),
            _ => None,
        })
    }

    /// How often a session was confirmed.
    pub(super) fn attached(&self, stream: u64, session: u64) -> usize {
        let ups = self.ups.get(&stream).into_iter().flatten();
        let of = |up: &&AttachUp| matches!(&up.item, Some(attach_up::Item::Attached(a)) if a.session == session);
        ups.filter(of).count()
    }

    pub(super) fn sessions(&self, jid: &str) -> usize {
        let mailbox = self.shard.mailboxes.get(jid);
        mailbox.map_or(0, |mailbox| mailbox.sessions.len())
    }

    pub(super) fn open(&self, jid: &str) -> Vec<u64> {
        let mailbox = self.shard.mailboxes.get(jid);
        mailbox.map_or_else(Vec::new, |mailbox| mailbox.open.keys().copied().collect())
    }
}

pub(super) fn deliver(up: &AttachUp) -> Option<&Deliver> {
    match &up.item {
        Some(attach_up::Item::Deliver(deliver)) => Some(deliver),
        _ => None,
    }
}

pub(super) fn attaching(session: u64, jid: &str) -> AttachSession {
    AttachSession {
        session,
        full_jid: jid.into(),
        available: true,
        carbons: true,
        interested: true,
        credit: 100,
        ..AttachSession::default()
    }
}

pub(super) fn verdict(decision: Decision) -> Option<Verdict> {
    Some(Verdict {
        decision: decision.into(),
        policy_version: 3,
        ..Verdict::default()
    })
}

pub(super) fn chat(from: &str, to: &str) -> AppendItem {
    AppendItem {
        gateway: "gw1".into(),
        session: 900,
        from: from.into(),
        to: to.into(),
        kind: Kind::Message.into(),
        r#type: "chat".into(),
        payload: b"<message/>".to_vec().into(),
        verdict: verdict(Decision::Allow),
        has_body: true,
        ..AppendItem::default()
    }
}

pub(super) fn keyed(count: u64) -> AppendItem {
    AppendItem {
        sm_id: vec![9; 16].into(),
        count,
        ..chat("a@x/1", "b@x")
    }
}

pub(super) fn iq(type_: &str, to: &str) -> AppendItem {
    let kind = Kind::Iq.into();
    AppendItem {
        kind,
        r#type: type_.into(),
        has_body: false,
        ..chat("a@x/1", to)
    }
}

pub(super) fn ephemeral(item: AppendItem) -> AppendItem {
    AppendItem {
        ephemeral: true,
        ..item
    }
}

pub(super) const ORIGINAL: Form = Form::Original;
