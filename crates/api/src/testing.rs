//! A log for the tests of other services: it keeps what it is told in lists, and can be out of reach.
//! It refuses to be an archive: what only gateways and officers ask is denied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::archive::{
    AppendAnswer, AppendItem, Archive, AttachDown, AttachUp, DropMailboxRequest,
    DropMailboxResponse, ExportChunk, ExportRequest, GetPreferencesRequest, GetPreferencesResponse,
    Outcome, PublicKeyRequest, PublicKeyResponse, QueryArchiveRequest, QueryArchiveResponse,
    RecordActRequest, RecordActResponse, SetPreferencesRequest, SetPreferencesResponse,
    SettleRequest, SettleResponse, StatusRequest, StatusResponse,
};
use crate::{Answers, ApiError, Cx, Lane, LanePeer, LaneService, Link};

/// Items that a test need not read.
const ITEMS_LIMIT: usize = 10_000;

/// See the module.
pub struct Log {
    /// Out of reach, lane and all.
    pub away: Arc<AtomicBool>,
    /// What was recorded.
    pub acts: Mutex<Vec<RecordActRequest>>,
    /// Mailboxes that were dropped.
    pub drops: Mutex<Vec<String>>,
    /// So many drops fail before one is taken.
    pub refuse_drops: AtomicU64,
    /// Who opened the lane last.
    pub peer: Mutex<Option<LanePeer>>,
    lane: Arc<Taken>,
    /// What came down the lane, in order.
    pub items: Mutex<Option<mpsc::Receiver<AppendItem>>>,
}

/// The lane's end.
struct Taken {
    away: Arc<AtomicBool>,
    items: mpsc::Sender<AppendItem>,
}

impl Default for Log {
    fn default() -> Self {
        let away = Arc::new(AtomicBool::new(false));
        let (items, taken) = mpsc::channel(ITEMS_LIMIT);
        let lane = Arc::new(Taken {
            away: Arc::clone(&away),
            items,
        });
        Self {
            away,
            acts: Mutex::default(),
            drops: Mutex::default(),
            refuse_drops: AtomicU64::new(0),
            peer: Mutex::default(),
            lane,
            items: Mutex::new(Some(taken)),
        }
    }
}

impl Log {
    /// What was recorded, by name.
    pub fn act_names(&self) -> Vec<String> {
        self.acts.lock().iter().map(|act| act.act.clone()).collect()
    }
}

fn reach(away: &AtomicBool) -> Result<(), ApiError> {
    match away.load(Ordering::SeqCst) {
        true => Err(ApiError::unavailable("away")),
        false => Ok(()),
    }
}

fn no<T>() -> Result<T, ApiError> {
    Err(ApiError::denied("not here"))
}

#[async_trait]
impl LaneService<AppendItem, AppendAnswer> for Taken {
    async fn submit(
        &self,
        _: &LanePeer,
        batch: Vec<AppendItem>,
        answers: &Answers<AppendAnswer>,
    ) -> Result<(), ApiError> {
        reach(&self.away)?;
        for item in batch {
            answers.send(AppendAnswer {
                seq: item.seq,
                outcome: Outcome::Committed.into(),
                ..AppendAnswer::default()
            });
            let taken = self.items.send(item).await;
            taken.map_err(|_| ApiError::unavailable("nobody reads what was appended"))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Archive for Log {
    async fn settle(&self, _: &Cx, _: SettleRequest) -> Result<SettleResponse, ApiError> {
        no()
    }

    async fn record_act(
        &self,
        _: &Cx,
        request: RecordActRequest,
    ) -> Result<RecordActResponse, ApiError> {
        reach(&self.away)?;
        let mut acts = self.acts.lock();
        acts.push(request);
        Ok(RecordActResponse {
            number: acts.len() as u64,
        })
    }

    async fn drop_mailbox(
        &self,
        _: &Cx,
        request: DropMailboxRequest,
    ) -> Result<DropMailboxResponse, ApiError> {
        reach(&self.away)?;
        let left = self.refuse_drops.load(Ordering::SeqCst);
        if left > 0 {
            self.refuse_drops.store(left - 1, Ordering::SeqCst);
            return Err(ApiError::unavailable("no drop now"));
        }
        self.drops.lock().push(request.jid);
        Ok(DropMailboxResponse { floor: 1 })
    }

    async fn public_key(&self, _: &Cx, _: PublicKeyRequest) -> Result<PublicKeyResponse, ApiError> {
        no()
    }

    async fn status(&self, _: &Cx, _: StatusRequest) -> Result<StatusResponse, ApiError> {
        no()
    }

    async fn query_archive(
        &self,
        _: &Cx,
        _: QueryArchiveRequest,
    ) -> Result<QueryArchiveResponse, ApiError> {
        no()
    }

    async fn get_preferences(
        &self,
        _: &Cx,
        _: GetPreferencesRequest,
    ) -> Result<GetPreferencesResponse, ApiError> {
        no()
    }

    async fn set_preferences(
        &self,
        _: &Cx,
        _: SetPreferencesRequest,
    ) -> Result<SetPreferencesResponse, ApiError> {
        no()
    }

    fn append(&self, peer: LanePeer) -> Lane<AppendItem, AppendAnswer> {
        *self.peer.lock() = Some(peer.clone());
        let lane: Arc<dyn LaneService<AppendItem, AppendAnswer>> = self.lane.clone();
        Lane::local(lane, peer)
    }

    fn append_service(&self) -> Result<Arc<dyn LaneService<AppendItem, AppendAnswer>>, ApiError> {
        Ok(self.lane.clone())
    }

    async fn attach(&self, _: &Cx) -> Result<Link<AttachDown, AttachUp>, ApiError> {
        no()
    }

    async fn export(
        &self,
        _: &Cx,
        _: ExportRequest,
    ) -> Result<mpsc::Receiver<Result<ExportChunk, ApiError>>, ApiError> {
        no()
    }
}
