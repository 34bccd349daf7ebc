//! The asking side of a lane over gRPC: opening, batches, loss, settling.
//!
//! Owns the incarnation. Losing the stream is a state: what was under way is failed, or, where the
//! lane has a settler, settled and sent again in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost::Message;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use chancery_runtime::Tasks;

use crate::lane::{LaneError, LanePeer, Pending, Waiting};
use crate::link::{BATCH_BYTES, BATCH_ITEMS, BATCHES_UNDER_WAY};
use crate::{ApiError, Batch, Sequenced};

/// Items of one lane without answer; a further submit waits.
pub(crate) const IN_FLIGHT: usize = BATCH_ITEMS * 16;
/// What was submitted and neither answered nor settled by then is given up as unknown.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Pause before the stream is opened again: doubles between these.
const REOPEN_FIRST: Duration = Duration::from_millis(50);
const REOPEN_LAST: Duration = Duration::from_millis(500);
/// Opening a stream, or one settle call, takes no longer.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// Opens the stream for an incarnation; the receiver is its request body.
pub(crate) type Open<QB, AB> = Box<
    dyn Fn(LanePeer, mpsc::Receiver<QB>) -> BoxFuture<'static, Result<Streaming<AB>, Status>>
        + Send
        + Sync,
>;
/// Asks what became of items, under the new incarnation: `None` = never happened, and never will.
pub(crate) type Settle<Q, A> = Box<
    dyn Fn(LanePeer, Vec<Q>) -> BoxFuture<'static, Result<Vec<Option<A>>, ApiError>> + Send + Sync,
>;

/// What a remote lane is made of.
pub(crate) struct Opening<QB: Batch, AB: Batch> {
    pub(crate) name: &'static str,
    pub(crate) peer: LanePeer,
    pub(crate) open: Open<QB, AB>,
    pub(crate) settle: Option<Settle<QB::Item, AB::Item>>,
    pub(crate) may_settle: fn(&QB::Item) -> bool,
}

pub(crate) struct RemoteLane<Q, A> {
    pending: Arc<Pending<Q, A>>,
    queue: Arc<Queue<Q>>,
    room: Arc<Semaphore>,
    up: AtomicBool,
    keeps_items: bool,
    next: AtomicU64,
}

/// What waits to be written. Bounded by `IN_FLIGHT`, as every item in it is pending too.
struct Queue<Q> {
    items: parking_lot::Mutex<std::collections::VecDeque<Q>>,
    filled: Notify,
}

impl<Q: Sequenced + Message + Default, A: Sequenced> RemoteLane<Q, A> {
    /// Starts the lane's task. It opens the stream, and opens it again, until the tasks end.
    pub(crate) fn start<QB, AB>(tasks: &Tasks, opening: Opening<QB, AB>) -> Arc<Self>
    where
        QB: Batch<Item = Q>,
        AB: Batch<Item = A>,
        A: Message + Default,
    {
        let lane = Arc::new(Self {
            pending: Pending::new(),
            queue: Arc::new(Queue {
                items: parking_lot::Mutex::new(std::collections::VecDeque::new()),
                filled: Notify::new(),
            }),
            room: Arc::new(Semaphore::new(IN_FLIGHT)),
            up: AtomicBool::new(false),
            keeps_items: opening.settle.is_some(),
            next: AtomicU64::new(1),
        });
        let (running, signal) = (Arc::clone(&lane), tasks.signal().clone());
        tasks.spawn(opening.name, async move {
            tokio::select! {
                () = signal.cancelled() => {}
                () = running.run(opening) => {}
            }
            running.up.store(false, Ordering::Release);
            running.pending.fail_all(LaneError::Lost);
        });
        lane
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(crate) async fn submit(
        &self,
        mut item: Q,
        alarm: Option<Waker>,
    ) -> Result<oneshot::Receiver<Result<A, LaneError>>, LaneError> {
        if !self.is_up() {
            return Err(LaneError::NotSubmitted);
        }
        let permit = Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(|_| LaneError::NotSubmitted)?;
        let (reply, answer) = oneshot::channel();
        {
            // One lock around both, so that the queue and the numbers have one order, and a loss
            // sees the item in both or in neither.
            let mut queue = self.queue.items.lock();
            if !self.is_up() {
                return Err(LaneError::NotSubmitted);
            }
            let seq = self.next.fetch_add(1, Ordering::Relaxed);
            item.set_seq(seq);
            self.pending.0.lock().insert(
                seq,
                Waiting {
                    item: self.keeps_items.then(|| item.clone()),
                    since: Instant::now(),
                    reply,
                    alarm,
                    _permit: Some(permit),
                },
            );
            queue.push_back(item);
        }
        self.queue.filled.notify_one();
        Ok(answer)
    }

    async fn run<QB, AB>(&self, mut opening: Opening<QB, AB>)
    where
        QB: Batch<Item = Q>,
        AB: Batch<Item = A>,
        A: Message + Default,
    {
        let mut pause = REOPEN_FIRST;
        loop {
            opening.peer.incarnation += 1;
            let (out, body) = mpsc::channel(BATCHES_UNDER_WAY);
            let opened =
                tokio::time::timeout(OPEN_LIMIT, (opening.open)(opening.peer.clone(), body)).await;
            if let Ok(Ok(inbound)) = opened
                && self.settle(&opening).await
            {
                pause = REOPEN_FIRST;
                self.up.store(true, Ordering::Release);
                tracing::info!(lane = opening.name, "lane open");
                tokio::select! {
                    () = self.write::<QB>(out) => {}
                    () = self.read::<AB>(inbound) => {}
                    () = self.expire() => {}
                }
                tracing::info!(lane = opening.name, "lane lost");
            }
            self.lose();
            let until = Instant::now() + pause;
            pause = (pause * 2).min(REOPEN_LAST);
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.expire() => {}
            }
        }
    }

    /// Marks the lane as down. Without a settler everything under way is lost; with one, only
    /// what cannot be settled is.
    fn lose(&self) {
        let mut queue = self.queue.items.lock();
        self.up.store(false, Ordering::Release);
        queue.clear();
        if !self.keeps_items {
            drop(queue);
            self.pending.fail_all(LaneError::Lost);
        }
    }

    /// Asks what became of everything under way, answers what happened, queues the rest again in
    /// order. False when the question itself failed.
    async fn settle<QB, AB>(&self, opening: &Opening<QB, AB>) -> bool
    where
        QB: Batch<Item = Q>,
        AB: Batch<Item = A>,
    {
        let Some(settle) = &opening.settle else {
            return true;
        };
        let mut lost = Vec::new();
        let mut open: Vec<Q> = Vec::new();
        {
            let mut pending = self.pending.0.lock();
            let ephemeral: Vec<u64> = pending
                .iter()
                .filter(|(_, w)| !w.item.as_ref().is_some_and(opening.may_settle))
                .map(|(seq, _)| *seq)
                .collect();
            for seq in ephemeral {
                lost.extend(pending.remove(&seq));
            }
            open.extend(pending.values().filter_map(|w| w.item.clone()));
        }
        for waiting in lost {
            waiting.answer(Err(LaneError::Lost));
        }
        let asked = settle(opening.peer.clone(), open.clone());
        let Ok(Ok(outcomes)) = tokio::time::timeout(OPEN_LIMIT, asked).await else {
            return false;
        };
        if outcomes.len() != open.len() {
            tracing::warn!(lane = opening.name, "short answer to a settle");
            return false;
        }
        let mut queue = self.queue.items.lock();
        for (item, outcome) in open.into_iter().zip(outcomes) {
            if let Some(mut answer) = outcome {
                answer.set_seq(item.seq());
                let waiting = self.pending.0.lock().remove(&item.seq());
                if let Some(waiting) = waiting {
                    waiting.answer(Ok(answer));
                }
            } else if self.pending.0.lock().contains_key(&item.seq()) {
                queue.push_back(item);
            }
        }
        drop(queue);
        self.queue.filled.notify_one();
        true
    }

    async fn write<QB: Batch<Item = Q>>(&self, out: mpsc::Sender<QB>) {
        loop {
            let batch = self.take_batch();
            if batch.is_empty() {
                tokio::select! {
                    () = self.queue.filled.notified() => continue,
                    () = out.closed() => return,
                }
            }
            if out.send(QB::pack(batch)).await.is_err() {
                return;
            }
        }
    }

    fn take_batch(&self) -> Vec<Q> {
        let mut queue = self.queue.items.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
            let Some(item) = queue.pop_front() else { break };
            bytes += item.encoded_len();
            batch.push(item);
        }
        batch
    }

    async fn read<AB: Batch<Item = A>>(&self, mut inbound: Streaming<AB>) {
        while let Ok(Some(batch)) = inbound.message().await {
            for answer in batch.unpack() {
                let waiting = self.pending.0.lock().remove(&answer.seq());
                if let Some(waiting) = waiting {
                    waiting.answer(Ok(answer));
                }
            }
        }
    }

    /// Gives up, as unknown, what has waited too long. Runs for ever.
    async fn expire(&self) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tick.tick().await;
            let now = Instant::now();
            let mut late = Vec::new();
            {
                let mut pending = self.pending.0.lock();
                while let Some(first) = pending.first_entry() {
                    if now.duration_since(first.get().since) < SETTLE_LIMIT {
                        break;
                    }
                    late.push(first.remove_entry());
                }
            }
            if late.is_empty() {
                continue;
            }
            // What was given up must not be written after all.
            let seqs: Vec<u64> = late.iter().map(|(seq, _)| *seq).collect();
            self.queue
                .items
                .lock()
                .retain(|item| !seqs.contains(&item.seq()));
            for (_, waiting) in late {
                waiting.answer(Err(LaneError::Unknown));
            }
        }
    }
}

/// Whether an item can be settled: it carries an idempotency key.
pub(crate) trait Settled {
    /// True when it has a key.
    fn may_settle(&self) -> bool {
        false
    }
}

impl Settled for crate::wire::policy::v1::DecideItem {}
impl Settled for crate::wire::presence::v1::PublishItem {}
impl Settled for crate::wire::archive::v1::AppendItem {
    fn may_settle(&self) -> bool {
        !self.sm_id.is_empty()
    }
}
