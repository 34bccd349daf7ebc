//! The archive as others see it: the lane, the links and the calls, in front of the sequencer's
//! task. Owns the bound on what may wait, and the start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chancery_api::archive::{
    AppendAnswer, AppendItem, Archive, AttachDown, AttachUp, DropMailboxRequest,
    DropMailboxResponse, ExportChunk, ExportRequest, GetPreferencesRequest, GetPreferencesResponse,
    PublicKeyRequest, PublicKeyResponse, QueryArchiveRequest, QueryArchiveResponse,
    RecordActRequest, RecordActResponse, SetPreferencesRequest, SetPreferencesResponse,
    SettleRequest, SettleResponse, StatusRequest, StatusResponse,
};
use chancery_api::{Answers, ApiError, Cx, Lane, LanePeer, LaneService, Link};
use chancery_evidence::{DEPLOYMENT, KeyRing, Kind};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks, Tracer};
use chancery_store::{Profile, ReadPool};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::actor::{Actor, Command, Token, now};
use crate::checkpoint::start_checkpoints;
use crate::commit::{Committer, Fatal, Pace};
use crate::config::{Config, PreferencesBy};
use crate::export::{CHUNKS_LIMIT, Export};
use crate::history::History;
use crate::item::{bare_len, domain_of};
use crate::making::Making;
use crate::metrics::ArchiveMetrics;
pub use crate::recover::StartError;
use crate::recover::{Opened, take_over};
use crate::seal::{Drawn, kind_of_act};
use crate::settle::LANES_LIMIT;
use crate::shard::{Act, Change, Settings, Shard};
use crate::store::LogStore;
use crate::tick::own_act;

/// Commands that wait for the sequencer.
const COMMANDS_LIMIT: usize = 1_024;
/// What may wait for a commit: one unit an item and one each KiB. Then a submit waits.
const ROOM_UNITS: usize = 32 * 1024;
/// Reads that came back and wait for the sequencer.
const GOT_LIMIT: usize = 32;
/// Results of the commit thread that wait for the sequencer.
const DONE_LIMIT: usize = 8;
/// Items taken from a link at once.
const DOWN_AT_ONCE: usize = 64;
/// Keys of one settle call.
const SETTLE_KEYS: usize = 4_096;
/// Bytes of an act's detail.
const DETAIL_BYTES: usize = 256 * 1024;
/// The only shard there is yet.
const SHARD: u32 = 0;

/// What the archive is made of.
pub struct Parts {
    /// Holds `log.db` and `keys.json`.
    pub data_dir: PathBuf,
    /// Domains that get keys at once; others get some with their first record.
    pub domains: Vec<String>,
    pub config: Config,
    pub clock: Clock,
    pub ids: Ids,
    pub metrics: Metrics,
    pub tracer: Tracer,
    pub failpoints: Failpoints,
    pub tasks: Tasks,
    /// Called when what is on the disk is unknown; `None`: the process aborts.
    pub fatal: Option<Fatal>,
}

/// The log.
pub struct ArchiveService {
    inner: Arc<Inner>,
}

struct Inner {
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    fences: Mutex<HashMap<String, u64>>,
    next_stream: AtomicU64,
    ring: Arc<RwLock<KeyRing>>,
    log: PathBuf,
    history: History,
    clock: Clock,
    tracer: Tracer,
    failpoints: Failpoints,
    tasks: Tasks,
}

impl ArchiveService {
    /// Takes the log over and starts its task and threads.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, StartError> {
        let log = parts.data_dir.join("log.db");
        let opening = (log.clone(), parts.data_dir.join("keys.json"));
        let (domains, ids) = (parts.domains.clone(), parts.ids.clone());
        // Reads the tail of the log: too long for a task.
        let opened = parts
            .tasks
            .spawn_blocking("archive recovery", move || {
                take_over(&opening.0, &opening.1, SHARD, &domains, &ids)
            })
            .await
            .map_err(|error| StartError::Thread(std::io::Error::other(error)))??;
        Self::assemble(parts, opened, &log)
    }

    pub(crate) fn assemble<S: LogStore + Send + 'static>(
        parts: Parts,
        opened: Opened<S>,
        log: &Path,
    ) -> Result<Arc<Self>, StartError> {
        let metrics = ArchiveMetrics::new(&parts.metrics);
        let fatal = parts
            .fatal
            .unwrap_or_else(|| Arc::new(|_: &str| std::process::abort()));
        let Opened {
            store,
            ring,
            head,
            recovered,
        } = opened;
        tracing::info!(epoch = head.epoch, head = head.number, "the log is open");
        let ring = Arc::new(RwLock::new(ring));
        let mut shard = Shard::new(settings(&parts.config), recovered, now(&parts.clock));
        let detail = serde_json::json!({ "act": "archive.open", "epoch": head.epoch }).to_string();
        let opening = own_act(Kind::Opening, DEPLOYMENT.to_owned(), "archive.open", detail);
        shard.act(opening, None);
        let (done_sender, done) = mpsc::channel(DONE_LIMIT);
        let making = Making::default();
        let pending = Arc::clone(&making.entries);
        let committer = Committer {
            store,
            ring: Arc::clone(&ring),
            key_file: parts.data_dir.join("keys.json"),
            shard: SHARD,
            epoch: head.epoch,
            number: head.number,
            hash: head.hash,
            making,
            pace: Pace::default(),
            drawn: Drawn::default(),
            ids: parts.ids,
            clock: parts.clock.clone(),
            failpoints: parts.failpoints.clone(),
            metrics: metrics.clone(),
            fatal: Arc::clone(&fatal),
            ended: false,
        };
        let readers = parts.config.readers.max(1) as usize;
        let pool = ReadPool::open("archive-read", log, Profile::log(), readers)?;
        // Of its own: whoever reads old messages does not hold the sequencer up.
        let history = History {
            pool: ReadPool::open("archive-history", log, Profile::log(), readers)?,
            pending: Arc::clone(&pending),
            ring: Arc::clone(&ring),
            shard: SHARD,
            locked: parts.config.preferences == PreferencesBy::Locked,
            fatal: Arc::clone(&fatal),
        };
        let (commits, commit_thread) = committer.start(done_sender).map_err(StartError::Thread)?;
        let (checkpoints, checkpoint_thread) =
            start_checkpoints(log, parts.clock.clone(), Arc::clone(&fatal))?;
        let (command_sender, commands) = mpsc::channel(COMMANDS_LIMIT);
        let (got_sender, got) = mpsc::channel(GOT_LIMIT);
        let room = Arc::new(Semaphore::new(ROOM_UNITS));
        let actor = Actor {
            shard,
            commands,
            done,
            commits,
            committed_in_place: false,
            got,
            got_sender,
            links: HashMap::new(),
            asks: std::collections::VecDeque::new(),
            reading: 0,
            readers,
            saving: 0,
            pool,
            history: history.pool.clone(),
            pending,
            ring: Arc::clone(&ring),
            room: Arc::clone(&room),
            clock: parts.clock.clone(),
            failpoints: parts.failpoints.clone(),
            metrics,
            tasks: parts.tasks.clone(),
            fatal,
            threads: vec![commit_thread, checkpoint_thread],
            checkpoints,
        };
        parts.tasks.spawn("archive", actor.run());
        let inner = Inner {
            commands: command_sender,
            room,
            fences: Mutex::new(HashMap::new()),
            next_stream: AtomicU64::new(1),
            ring,
            log: log.to_owned(),
            history,
            clock: parts.clock,
            tracer: parts.tracer,
            failpoints: parts.failpoints,
            tasks: parts.tasks,
        };
        Ok(Arc::new(Self {
            inner: Arc::new(inner),
        }))
    }
}

/// The part of an act that is readable without a key: counters of gateways name nobody, whatever
/// else a detail says stays sealed.
fn readable(act: &str, detail: &str) -> String {
    let counters = act
        .starts_with("gateway.")
        .then(|| serde_json::from_str(detail).ok())
        .flatten();
    let counters: serde_json::Value = counters.unwrap_or_default();
    if counters.is_null() {
        serde_json::json!({ "act": act }).to_string()
    } else {
        serde_json::json!({ "act": act, "detail": counters }).to_string()
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        shard: SHARD,
        mailbox_entries: config.mailbox_entries,
        mailbox_bytes: u64::from(config.mailbox_mib) * 1024 * 1024,
        expiry_ms: i64::from(config.entry_expiry_days) * 24 * 3_600 * 1_000,
        preferences_locked: config.preferences == PreferencesBy::Locked,
    }
}

#[cfg(test)]
impl ArchiveService {
    pub(crate) fn inner_ring(&self) -> parking_lot::RwLockReadGuard<'_, KeyRing> {
        self.inner.ring.read()
    }
}

impl Inner {
    async fn send(&self, command: Command) -> Result<(), ApiError> {
        let gone = |_| ApiError::unavailable("the log is closed");
        self.commands.send(command).await.map_err(gone)
    }

    async fn act(&self, act: Act) -> Result<u64, ApiError> {
        let (reply, number) = oneshot::channel();
        self.send(Command::Act(act, reply)).await?;
        number
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable("the log is closed")))
    }

    /// Whether an older lane of the same gateway was fenced; remembers a newer one.
    fn is_fenced(&self, gateway: &str, incarnation: u64) -> bool {
        let mut fences = self.fences.lock();
        let full = fences.len() >= LANES_LIMIT;
        match fences.get_mut(gateway) {
            Some(known) if incarnation < *known => true,
            Some(known) => {
                *known = incarnation;
                false
            }
            None if full => true,
            None => {
                fences.insert(gateway.to_owned(), incarnation);
                false
            }
        }
    }
}

#[async_trait]
impl LaneService<AppendItem, AppendAnswer> for Inner {
    async fn submit(
        &self,
        peer: &LanePeer,
        batch: Vec<AppendItem>,
        answers: &Answers<AppendAnswer>,
    ) -> Result<(), ApiError> {
        if self
            .failpoints
            .hit("archive::append::before")
            .await
            .is_err()
        {
            return Err(ApiError::unavailable("failpoint"));
        }
        if self.is_fenced(&peer.gateway, peer.incarnation) {
            return Err(ApiError::new(
                chancery_api::Code::Conflict,
                "a newer lane is open",
            ));
        }
        let mut units = 0;
        let items: Vec<(AppendItem, Token, u32)> = batch
            .into_iter()
            .map(|item| {
                let bytes = item.payload.len() + item.received.len();
                let cost = u32::try_from(1 + bytes / 1024).unwrap_or(u32::MAX);
                units += cost;
                let name = if item.ephemeral {
                    "archive.pass"
                } else {
                    "archive.commit"
                };
                let span = self.tracer.served(name, &item.traceparent);
                (item, Token::Item(answers.clone(), span), cost)
            })
            .collect();
        if units as usize > ROOM_UNITS {
            return Err(ApiError::resource("a batch is too large"));
        }
        let closed = |_| ApiError::unavailable("the log is closed");
        // Given back by the sequencer, item by item, as they leave it.
        self.room
            .acquire_many(units)
            .await
            .map_err(closed)?
            .forget();
        self.send(Command::Append {
            peer: peer.clone(),
            items,
        })
        .await
    }
}

#[async_trait]
impl Archive for ArchiveService {
    async fn settle(&self, _cx: &Cx, request: SettleRequest) -> Result<SettleResponse, ApiError> {
        if request.keys.len() > SETTLE_KEYS {
            return Err(ApiError::invalid("too many keys"));
        }
        if self.inner.is_fenced(&request.gateway, request.incarnation) {
            return Err(ApiError::new(
                chancery_api::Code::Conflict,
                "a newer lane is open",
            ));
        }
        let (reply, answers) = oneshot::channel();
        self.inner.send(Command::Settle(request, reply)).await?;
        let answers = answers
            .await
            .map_err(|_| ApiError::unavailable("the log is closed"))?;
        Ok(SettleResponse { answers })
    }

    async fn record_act(
        &self,
        _cx: &Cx,
        request: RecordActRequest,
    ) -> Result<RecordActResponse, ApiError> {
        if request.act.is_empty() || request.detail.len() > DETAIL_BYTES {
            return Err(ApiError::invalid(
                "an act needs a name and a detail of a stated size",
            ));
        }
        if request
            .act
            .len()
            .max(request.actor.len())
            .max(request.domain.len())
            > 4_096
        {
            return Err(ApiError::invalid("a name is too long"));
        }
        // A detail may name people, so it is sealed; that the act was done is readable.
        let act = Act {
            kind: kind_of_act(&request.act),
            domain: request.domain,
            actor: request.actor,
            detail: readable(&request.act, &request.detail),
            act: request.act,
            sealed: request.detail,
            change: None,
        };
        Ok(RecordActResponse {
            number: self.inner.act(act).await?,
        })
    }

    async fn drop_mailbox(
        &self,
        _cx: &Cx,
        request: DropMailboxRequest,
    ) -> Result<DropMailboxResponse, ApiError> {
        if bare_len(&request.jid) != Some(request.jid.len()) {
            return Err(ApiError::invalid("not a bare jid"));
        }
        let act = Act {
            kind: Kind::Administrative,
            domain: domain_of(&request.jid).to_owned(),
            actor: "directory".to_owned(),
            act: "mailbox.drop".to_owned(),
            detail: serde_json::json!({ "act": "mailbox.drop" }).to_string(),
            sealed: serde_json::json!({ "mailbox": &request.jid }).to_string(),
            change: Some(Change::Drop(request.jid.as_str().into())),
        };
        Ok(DropMailboxResponse {
            floor: self.inner.act(act).await?,
        })
    }

    async fn public_key(
        &self,
        _cx: &Cx,
        request: PublicKeyRequest,
    ) -> Result<PublicKeyResponse, ApiError> {
        let key = self.inner.ring.read().public_key(&request.domain);
        let key = key.map_err(|_| ApiError::not_found("no keys for this domain"))?;
        let raw = key
            .to_string()
            .strip_prefix("ed25519:")
            .and_then(|text| STANDARD.decode(text).ok());
        let raw = raw.ok_or_else(|| ApiError::internal("the public key has another form"))?;
        Ok(PublicKeyResponse {
            key_id: key.id(),
            key: raw.into(),
        })
    }

    async fn query_archive(
        &self,
        _cx: &Cx,
        request: QueryArchiveRequest,
    ) -> Result<QueryArchiveResponse, ApiError> {
        self.inner.history.query(request).await
    }

    async fn get_preferences(
        &self,
        _cx: &Cx,
        request: GetPreferencesRequest,
    ) -> Result<GetPreferencesResponse, ApiError> {
        self.inner.history.preferences(request).await
    }

    async fn set_preferences(
        &self,
        _cx: &Cx,
        request: SetPreferencesRequest,
    ) -> Result<SetPreferencesResponse, ApiError> {
        let act = self.inner.history.preferring(request)?;
        Ok(SetPreferencesResponse {
            number: self.inner.act(act).await?,
        })
    }

    async fn status(&self, _cx: &Cx, _request: StatusRequest) -> Result<StatusResponse, ApiError> {
        let (reply, status) = oneshot::channel();
        self.inner.send(Command::Status(reply)).await?;
        status
            .await
            .map_err(|_| ApiError::unavailable("the log is closed"))
    }

    fn append(&self, peer: LanePeer) -> Lane<AppendItem, AppendAnswer> {
        Lane::local(Arc::clone(&self.inner) as Arc<dyn LaneService<_, _>>, peer)
    }

    fn append_service(&self) -> Result<Arc<dyn LaneService<AppendItem, AppendAnswer>>, ApiError> {
        Ok(Arc::clone(&self.inner) as Arc<dyn LaneService<_, _>>)
    }

    async fn attach(&self, _cx: &Cx) -> Result<Link<AttachDown, AttachUp>, ApiError> {
        let (near, far) = Link::<AttachUp, AttachDown>::pair();
        let (up, mut down) = near.split();
        let id = self.inner.next_stream.fetch_add(1, Ordering::Relaxed);
        self.inner.send(Command::Opened(id, up)).await?;
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn("archive attach", async move {
            let mut items = Vec::new();
            let signal = inner.tasks.signal().clone();
            loop {
                let taken = tokio::select! {
                    taken = down.recv_many(&mut items, DOWN_AT_ONCE) => taken,
                    () = signal.cancelled() => return,
                };
                let command = if taken == 0 {
                    Command::Lost(id)
                } else {
                    Command::Down(id, std::mem::take(&mut items))
                };
                if inner.send(command).await.is_err() || taken == 0 {
                    return;
                }
            }
        });
        Ok(far)
    }

    async fn export(
        &self,
        _cx: &Cx,
        request: ExportRequest,
    ) -> Result<mpsc::Receiver<Result<ExportChunk, ApiError>>, ApiError> {
        let ring = self.inner.ring.read().to_json();
        // A copy: an export may take hours, and the ring must stay open to new domains.
        let ring = ring
            .and_then(|json| KeyRing::from_json(&json))
            .map_err(|error| ApiError::internal(error.to_string()))?;
        if ring.domain(&request.domain).is_err() {
            return Err(ApiError::not_found("no keys for this domain"));
        }
        let detail = serde_json::json!({
            "act": "evidence.export",
            "first": request.first,
            "last": request.last,
            "decrypt": request.decrypt,
        });
        let act = Act {
            kind: Kind::Export,
            domain: request.domain.clone(),
            actor: request.actor,
            act: "evidence.export".to_owned(),
            detail: detail.to_string(),
            sealed: String::new(),
            change: None,
        };
        let head = self.inner.act(act).await?;
        let export = Export {
            path: self.inner.log.clone(),
            shard: SHARD,
            ring,
            domain: request.domain,
            first: request.first,
            last: if request.last == 0 {
                head
            } else {
                request.last.min(head)
            },
            decrypt: request.decrypt,
            at_ms: self.inner.clock.now_unix_ms(),
            tasks: self.inner.tasks.clone(),
        };
        let (sender, chunks) = mpsc::channel(CHUNKS_LIMIT);
        self.inner
            .tasks
            .spawn_blocking("archive export", move || export.run(&sender));
        Ok(chunks)
    }
}
