//! The task that owns the sequencer: takes commands, results of the disk and time, and carries
//! its effects out. Owns queues and their bounds; decides nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use chancery_api::archive::{
    AppendAnswer, AppendItem, AttachDown, AttachUp, SettleRequest, StatusResponse,
};
use chancery_api::{Answers, ApiError, LanePeer};
use chancery_evidence::KeyRing;
use chancery_runtime::trace::Span;
use chancery_runtime::{Clock, Failpoints, Tasks};
use chancery_store::ReadPool;
use parking_lot::RwLock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::commit::{Commits, Done, Fatal, Job};
use crate::follower::StreamId;
use crate::metrics::ArchiveMetrics;
use crate::pending::{PendingEntries, WithPending};
use crate::read::{self, Ask, Got};
use crate::shard::{Act, Effect, Group, NotCommitted, Now, Shard};
use crate::store::{LogStore, SqliteLog};

/// Time passes for the sequencer in steps of this.
const TICK: Duration = Duration::from_millis(25);
/// More commands within this after the last ones are load.
const BUSY: Duration = Duration::from_micros(500);
/// Commands taken at once.
const COMMANDS_AT_ONCE: usize = 256;
/// Questions of one read.
const ASKS_AT_ONCE: usize = 64;
/// Writes of open sets under way; a further one is put off.
const SAVES_UNDER_WAY: usize = 2;
/// What is under way when the process is told to end has so long to be committed.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// A read that failed is tried again after this.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// Whoever waits for an answer.
pub(crate) enum Token {
    /// Of a lane, with the span from here to the answer.
    Item(Answers<AppendAnswer>, Span),
    Act(oneshot::Sender<Result<u64, ApiError>>),
    Settle(oneshot::Sender<Vec<AppendAnswer>>),
}

/// What the sequencer's task is asked.
pub(crate) enum Command {
    Append {
        peer: LanePeer,
        items: Vec<(AppendItem, Token, u32)>,
    },
    Opened(StreamId, mpsc::Sender<AttachUp>),
    Down(StreamId, Vec<AttachDown>),
    Lost(StreamId),
    Settle(SettleRequest, oneshot::Sender<Vec<AppendAnswer>>),
    Act(Act, oneshot::Sender<Result<u64, ApiError>>),
    Status(oneshot::Sender<StatusResponse>),
}

/// The task's state.
pub(crate) struct Actor<S> {
    pub(crate) shard: Shard<Token>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) done: mpsc::Receiver<Done>,
    pub(crate) commits: Commits<S>,
    /// In this step: what that has left to make is made behind it.
    pub(crate) committed_in_place: bool,
    pub(crate) got: mpsc::Receiver<Vec<Got>>,
    pub(crate) got_sender: mpsc::Sender<Vec<Got>>,
    pub(crate) links: HashMap<StreamId, mpsc::Sender<AttachUp>>,
    pub(crate) asks: VecDeque<Ask>,
    pub(crate) reading: usize,
    pub(crate) readers: usize,
    pub(crate) saving: usize,
    pub(crate) pool: ReadPool,
    /// Closed with the log; nothing is asked of it here.
    pub(crate) history: ReadPool,
    pub(crate) pending: Arc<PendingEntries>,
    pub(crate) ring: Arc<RwLock<KeyRing>>,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) clock: Clock,
    pub(crate) failpoints: Failpoints,
    pub(crate) metrics: ArchiveMetrics,
    pub(crate) tasks: Tasks,
    pub(crate) fatal: Fatal,
    pub(crate) threads: Vec<JoinHandle<()>>,
    /// Ends the checkpointing thread when dropped.
    pub(crate) checkpoints: SyncSender<()>,
}

impl<S: LogStore + Send + 'static> Actor<S> {
    /// Runs until the tasks are asked to end and what is under way is written.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let signal = self.tasks.signal().clone();
        let mut commands = Vec::with_capacity(COMMANDS_AT_ONCE);
        let mut close_by = None;
        let mut next_tick = self.shard.now.monotonic;
        let mut busy_until = next_tick;
        self.step();
        loop {
            tokio::select! {
                biased;
                done = self.done.recv() => {
                    let Some(done) = done else { return };
                    self.set_now();
                    self.done(done).await;
                }
                Some(got) = self.got.recv() => {
                    self.set_now();
                    self.got(got);
                }
                taken = self.commands.recv_many(&mut commands, COMMANDS_AT_ONCE), if !self.commands.is_closed() || !self.commands.is_empty() => {
                    self.set_now();
                    if taken == 0 {
                        self.commands.close();
                    }
                    if taken > 1 || self.shard.now.monotonic < busy_until {
                        // Under load: whoever is ready to submit does so first, for one commit.
                        tokio::task::yield_now().await;
                        while commands.len() < COMMANDS_AT_ONCE
                            && let Ok(command) = self.commands.try_recv()
                        {
                            commands.push(command);
                        }
                        self.set_now();
                    }
                    busy_until = self.shard.now.monotonic + BUSY;
                    for command in commands.drain(..) {
                        self.command(command);
                    }
                }
                _ = tick.tick() => self.set_now(),
                () = signal.cancelled(), if close_by.is_none() => {}
            }
            // Not in the branches: under load they would never have their turn.
            if self.shard.now.monotonic >= next_tick {
                next_tick = self.shard.now.monotonic + TICK;
                self.shard.tick();
                self.metrics.show(&mut self.shard);
            }
            if close_by.is_none() && signal.is_cancelled() {
                self.commands.close();
                close_by = Some(self.clock.monotonic() + CLOSE_LIMIT);
            }
            self.step();
            if let Some(close_by) = close_by {
                let quiet = self.shard.is_quiet() && self.commands.is_empty();
                if quiet || self.clock.monotonic() >= close_by {
                    break;
                }
            }
        }
        self.close().await;
    }

    fn set_now(&mut self) {
        self.shard.now = now(&self.clock);
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Group(result) => {
                if self
                    .failpoints
                    .hit("archive::deliver::before")
                    .await
                    .is_err()
                {
                    tracing::warn!("a failpoint cannot undo a commit");
                }
                self.shard.committed(result);
            }
            Done::Saved(jids, written) => {
                self.saving -= 1;
                self.shard.saved(&jids, written);
            }
        }
    }

    fn got(&mut self, got: Vec<Got>) {
        self.reading -= 1;
        for got in got {
            match got {
                Got::Mailbox(jid, row) => self.shard.loaded(&jid, row),
                Got::Page(page, found) => self.shard.page(&page, found),
                Got::Range(range, piece) => self.shard.caught_up(&range, &piece),
                Got::Failed(asks) => self.asks.extend(asks),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Append { peer, items } => {
                self.shard.append(&peer.gateway, peer.incarnation, items);
            }
            Command::Opened(id, link) => {
                self.links.insert(id, link);
                self.shard.stream_opened(id);
            }
            Command::Down(id, items) => {
                for item in items {
                    self.shard.down(id, item);
                }
            }
            Command::Lost(id) => {
                self.links.remove(&id);
                self.shard.stream_lost(id);
            }
            Command::Settle(request, reply) => {
                let token = Token::Settle(reply);
                self.shard
                    .settle(&request.gateway, request.incarnation, &request.keys, token);
            }
            Command::Act(act, reply) => self.shard.act(act, Some(Token::Act(reply))),
            Command::Status(reply) => {
                let open = self
                    .shard
                    .mailboxes
                    .values()
                    .map(|m| m.open.len() as u64)
                    .sum();
                // The asker may be gone.
                let _ = reply.send(StatusResponse {
                    head: self.shard.head,
                    followers: self.shard.followers.len() as u64,
                    open_entries: open,
                });
            }
        }
    }

    /// Carries out what the sequencer wants, and moves what waits on the streams.
    fn step(&mut self) {
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
        self.read_more();
        self.send_up();
        if std::mem::take(&mut self.committed_in_place) {
            self.commits.make_in_place();
        }
    }

    fn carry_out(&mut self, effect: Effect<Token>) {
        match effect {
            Effect::Commit(group) => self.commit(group),
            Effect::Save(saves) => self.save(saves),
            Effect::Load(jid) => self.asks.push_back(Ask::Mailbox(jid)),
            Effect::Read(page) => self.asks.push_back(Ask::Page(page)),
            Effect::CatchUp(range) => self.asks.push_back(Ask::Range(range)),
            Effect::Answer(Token::Item(answers, mut span), answer) => {
                span.set("outcome", answer.outcome().as_str_name());
                answers.send(answer);
            }
            Effect::Acted(Token::Act(reply), number) => {
                let result = number.ok_or_else(|| ApiError::resource("the log takes no records"));
                // The asker may be gone; the record stays.
                let _ = reply.send(result);
            }
            Effect::Settled(Token::Settle(reply), answers) => {
                // The asker may be gone, and will ask again.
                let _ = reply.send(answers);
            }
            Effect::Answer(..) | Effect::Acted(..) | Effect::Settled(..) => {
                tracing::error!("an answer of the wrong kind");
            }
            Effect::Close(id) => {
                self.links.remove(&id);
            }
            Effect::Release(units) => self.room.add_permits(units as usize),
        }
    }

    fn commit(&mut self, group: Group) {
        match self.commits.in_place(group) {
            Ok(Some(Done::Group(result))) => {
                self.committed_in_place = true;
                self.shard.committed(result);
            }
            // What is on the disk is unknown, and the process ends.
            Ok(_) => {}
            Err(group) => {
                if self.commits.tell(Job::Group(group)).is_err() {
                    tracing::error!("the commit thread takes no group");
                    self.shard.committed(Err(NotCommitted));
                }
            }
        }
    }

    fn save(&mut self, saves: Vec<crate::mailbox::MailboxSave>) {
        let jids: Vec<_> = saves.iter().map(|save| Arc::clone(&save.jid)).collect();
        if self.saving < SAVES_UNDER_WAY && self.commits.tell(Job::Save(saves)).is_ok() {
            self.saving += 1;
        } else {
            self.shard.saved(&jids, false);
        }
    }

    /// Moves what waits on each stream into its link, as far as there is room.
    fn send_up(&mut self) {
        let mut lost = Vec::new();
        for (id, stream) in &mut self.shard.streams {
            if stream.outbox.is_empty() {
                continue;
            }
            let Some(link) = self.links.get(id) else {
                continue;
            };
            while !stream.outbox.is_empty() {
                match link.try_reserve() {
                    Ok(permit) => {
                        let Some(up) = stream.outbox.pop_front() else {
                            break;
                        };
                        permit.send(up);
                    }
                    Err(TrySendError::Full(())) => break,
                    Err(TrySendError::Closed(())) => {
                        lost.push(*id);
                        break;
                    }
                }
            }
        }
        for id in lost {
            self.links.remove(&id);
            self.shard.stream_lost(id);
        }
    }

    /// Keeps the readers busy.
    fn read_more(&mut self) {
        while self.reading < self.readers && !self.asks.is_empty() {
            let count = self.asks.len().min(ASKS_AT_ONCE);
            let asks: Vec<Ask> = self.asks.drain(..count).collect();
            self.reading += 1;
            let (pool, sender) = (self.pool.clone(), self.got_sender.clone());
            let (ring, shard) = (Arc::clone(&self.ring), self.shard.settings.shard);
            let (fatal, pending) = (Arc::clone(&self.fatal), Arc::clone(&self.pending));
            self.tasks.spawn("archive read", async move {
                let again = asks.clone();
                let got = pool
                    .call(move |connection| {
                        let log = WithPending {
                            log: SqliteLog::new(&*connection, shard),
                            pending: &pending,
                        };
                        asks.into_iter()
                            .map(|ask| read::answer(&log, &ring, ask))
                            .collect()
                    })
                    .await;
                let got = match got {
                    Ok(got) => got,
                    Err(error) => {
                        tracing::warn!(%error, "reading the log failed");
                        if error.is_fatal() {
                            fatal(&error.to_string());
                            return;
                        }
                        tokio::time::sleep(READ_PAUSE).await;
                        vec![Got::Failed(again)]
                    }
                };
                // Closed only when the sequencer is gone.
                let _ = sender.send(got).await;
            });
        }
    }

    /// Writes the open sets, ends the threads.
    async fn close(mut self) {
        let close_by = self.clock.monotonic() + CLOSE_LIMIT;
        loop {
            self.set_now();
            self.step();
            self.shard.save_open_sets();
            self.step();
            if self.saving == 0 && self.shard.is_quiet() {
                break;
            }
            let Ok(Some(done)) = tokio::time::timeout_at(close_by, self.done.recv()).await else {
                break;
            };
            self.done(done).await;
        }
        self.links.clear();
        if self.commits.tell(Job::End).is_err() {
            tracing::error!("the commit thread takes no more work");
        }
        drop(self.commits);
        drop(self.checkpoints);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        if !matches!(joined.await, Ok(true)) {
            tracing::error!("a thread of the log ended badly");
        }
        self.history.close().await;
        self.pool.close().await;
    }
}

pub(crate) fn now(clock: &Clock) -> Now {
    Now {
        monotonic: clock.monotonic(),
        wall_ms: clock.now_unix_ms(),
    }
}
