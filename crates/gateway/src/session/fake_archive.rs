//! The log that a session talks to, as small as a test of the session needs it: it keeps a list, hands
//! out what it takes, and is lost, shut or mute when it is told to be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use async_trait::async_trait;
use chancery_api::archive::{self, *};
use chancery_api::{Answers, Cx, Decision, Kind, Lane, LanePeer, LaneService, Link};
use chancery_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::fakes::{Reply, no};

/// A log that keeps nothing but a list, and hands out what it takes.
#[derive(Default)]
pub(crate) struct FakeArchive {
    pub(crate) state: Mutex<Log>,
    pub(crate) tasks: Tasks,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) items: Vec<AppendItem>,
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) denied: Vec<u64>,
    pub(crate) attached: Vec<AttachSession>,
    pub(crate) updated: Vec<UpdateSession>,
    pub(crate) detached: Vec<u64>,
    pub(crate) away: Vec<(u64, bool)>,
    /// The count of every session was asked for on another gateway.
    pub(crate) closed: bool,
    /// Counts that clients were told and the log does not have.
    pub(crate) handled: Vec<u64>,
    pub(crate) acts: Vec<RecordActRequest>,
    /// Answers are held back.
    pub(crate) held: Option<Vec<(AppendAnswer, Answers<AppendAnswer>)>>,
    /// Confirms no attachment.
    pub(crate) mute: bool,
    /// Takes no stream.
    shut: bool,
    pub(crate) queries: Vec<QueryArchiveRequest>,
    pub(crate) pages: std::collections::VecDeque<QueryArchiveResponse>,
    /// What queries are about when no page is laid out.
    pub(crate) mailbox: Vec<ArchivedMessage>,
    sessions: Vec<(u64, String)>,
    up: Option<mpsc::Sender<AttachUp>>,
    number: u64,
}

impl FakeArchive {
    fn on_down(&self, item: attach_down::Item) {
        use attach_down::Item;
        let mut log = self.state.lock();
        match item {
            Item::Attach(attach) => {
                log.sessions.retain(|(number, _)| *number != attach.session);
                log.sessions.push((attach.session, attach.full_jid.clone()));
                let head = log.number;
                if !log.mute {
                    log.up(attach_up::Item::Attached(Attached {
                        session: attach.session,
                        head,
                    }));
                }
                log.attached.push(attach);
            }
            Item::Update(update) => {
                log.up(attach_up::Item::Updated(Updated {
                    session: update.session,
                }));
                log.updated.push(update);
            }
            Item::Detach(detach) => {
                log.sessions.retain(|(number, _)| *number != detach.session);
                log.detached.push(detach.session);
                log.up(attach_up::Item::Detached(Detached {
                    session: detach.session,
                }));
            }
            Item::Acknowledge(acknowledge) => log.acknowledged.extend(acknowledge.numbers),
            Item::Deny(deny) => log.denied.push(deny.number),
            Item::Highest(asked) => {
                let answer = HighestCountAnswer {
                    request: asked.request,
                    count: 7,
                    known: true,
                };
                log.up(attach_up::Item::Highest(answer));
            }
            Item::Away(away) => log.away.push((away.session, away.away)),
            Item::Handled(handled) => log.handled.push(handled.count),
            Item::Hello(_) | Item::Credit(_) => {}
        }
    }

    /// Loses the stream.
    pub(crate) fn lose(&self) {
        self.state.lock().up = None;
    }

    /// Loses the stream and takes no other, until it is told to.
    pub(crate) fn shut(&self, shut: bool) {
        let mut log = self.state.lock();
        log.shut = shut;
        log.up = None;
    }

    /// Says something on the stream.
    pub(crate) fn say(&self, item: attach_up::Item) {
        self.state.lock().up(item);
    }

    /// Gives the answers that were held back.
    pub(crate) fn release(&self) {
        for (answer, answers) in self.state.lock().held.take().unwrap() {
            answers.send(answer);
        }
    }
}

impl Log {
    fn up(&self, item: attach_up::Item) {
        if let Some(up) = &self.up {
            up.try_send(AttachUp { item: Some(item) }).unwrap();
        }
    }

    fn take(&mut self, item: AppendItem) -> AppendAnswer {
        let mut answer = AppendAnswer {
            seq: item.seq,
            ..AppendAnswer::default()
        };
        answer.set_outcome(Outcome::Committed);
        if self.closed && !item.ephemeral {
            answer.set_outcome(Outcome::Late);
            return answer;
        }
        if !item.ephemeral {
            self.number += 1;
            answer.number = self.number;
        }
        let verdict = item.verdict.clone().unwrap();
        if verdict.decision() == Decision::Allow && item.kind() != Kind::Presence {
            let bare = item.to.split('/').next().unwrap().to_owned();
            let to: Vec<u64> = self
                .sessions
                .iter()
                .filter(|(_, full)| {
                    *full == item.to || (item.to == bare && full.starts_with(&format!("{bare}/")))
                })
                .map(|(number, _)| *number)
                .collect();
            if to.is_empty() && item.kind() == Kind::Iq {
                answer.set_outcome(Outcome::Gone);
            }
            let targets = to
                .into_iter()
                .map(|session| Target {
                    session,
                    form: Form::Original.into(),
                    delayed: false,
                    entry: !item.ephemeral,
                })
                .collect();
            self.up(attach_up::Item::Deliver(Deliver {
                number: answer.number,
                archive_id: format!("id{}", answer.number),
                from: item.from.clone(),
                to: item.to.clone(),
                kind: item.kind,
                r#type: item.r#type.clone(),
                payload: item.payload.clone(),
                policy_version: verdict.policy_version,
                targets,
                ..Deliver::default()
            }));
        }
        self.items.push(item);
        answer
    }
}

struct Append(Arc<FakeArchive>);

#[async_trait]
impl LaneService<AppendItem, AppendAnswer> for Append {
    async fn submit(
        &self,
        _: &LanePeer,
        batch: Vec<AppendItem>,
        answers: &Answers<AppendAnswer>,
    ) -> Reply<()> {
        for item in batch {
            let mut log = self.0.state.lock();
            let answer = log.take(item);
            match &mut log.held {
                Some(held) => held.push((answer, answers.clone())),
                None => answers.send(answer),
            }
        }
        Ok(())
    }
}

/// The page that is asked for; a cursor is the place of a message, from one on.
fn page_of(mailbox: &[ArchivedMessage], asked: &QueryArchiveRequest) -> QueryArchiveResponse {
    let (max, cursor) = (asked.max as usize, asked.cursor as usize);
    let (from, to) = match (asked.backward, cursor) {
        (false, _) => (cursor, mailbox.len().min(cursor + max)),
        (true, 0) => (mailbox.len().saturating_sub(max), mailbox.len()),
        (true, _) => ((cursor - 1).saturating_sub(max), cursor - 1),
    };
    let (complete, cursor) = match asked.backward {
        true => (from == 0, from + 1),
        false => (to == mailbox.len(), to),
    };
    QueryArchiveResponse {
        messages: mailbox[from..to].to_vec(),
        complete,
        cursor: if complete { 0 } else { cursor as u64 },
        ..QueryArchiveResponse::default()
    }
}

/// The log behind its contract.
pub(crate) struct ArchiveHandle(pub(crate) Arc<FakeArchive>);

#[async_trait]
impl Archive for ArchiveHandle {
    async fn settle(&self, _: &Cx, _: SettleRequest) -> Reply<SettleResponse> {
        no()
    }
    async fn record_act(&self, _: &Cx, act: RecordActRequest) -> Reply<RecordActResponse> {
        self.0.state.lock().acts.push(act);
        Ok(RecordActResponse { number: 1 })
    }
    async fn drop_mailbox(&self, _: &Cx, _: DropMailboxRequest) -> Reply<DropMailboxResponse> {
        no()
    }
    async fn public_key(&self, _: &Cx, _: PublicKeyRequest) -> Reply<PublicKeyResponse> {
        no()
    }
    async fn status(&self, _: &Cx, _: archive::StatusRequest) -> Reply<archive::StatusResponse> {
        no()
    }
    async fn query_archive(
        &self,
        _: &Cx,
        asked: QueryArchiveRequest,
    ) -> Reply<QueryArchiveResponse> {
        let mut state = self.0.state.lock();
        state.queries.push(asked.clone());
        match state.pages.pop_front() {
            Some(page) => Ok(page),
            None if state.mailbox.is_empty() => no(),
            None => Ok(page_of(&state.mailbox, &asked)),
        }
    }
    async fn get_preferences(
        &self,
        _: &Cx,
        _: GetPreferencesRequest,
    ) -> Reply<GetPreferencesResponse> {
        no()
    }
    async fn set_preferences(
        &self,
        _: &Cx,
        _: SetPreferencesRequest,
    ) -> Reply<SetPreferencesResponse> {
        no()
    }
    fn append(&self, peer: LanePeer) -> Lane<AppendItem, AppendAnswer> {
        Lane::local(Arc::new(Append(Arc::clone(&self.0))), peer)
    }
    fn append_service(&self) -> Reply<Arc<dyn LaneService<AppendItem, AppendAnswer>>> {
        no()
    }
    async fn attach(&self, _: &Cx) -> Reply<Link<archive::AttachDown, archive::AttachUp>> {
        let (near, far): (Link<archive::AttachDown, _>, _) = Link::pair();
        let (up, mut down) = far.split();
        {
            let mut log = self.0.state.lock();
            if log.shut {
                return no();
            }
            log.up = Some(up);
        }
        let log = Arc::clone(&self.0);
        self.0.tasks.spawn("fake log", async move {
            while let Some(item) = down.recv().await {
                log.on_down(item.item.unwrap());
            }
        });
        Ok(near)
    }
    async fn export(&self, _: &Cx, _: ExportRequest) -> Reply<mpsc::Receiver<Reply<ExportChunk>>> {
        no()
    }
}
