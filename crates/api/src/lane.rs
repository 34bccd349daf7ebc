//! [`Lane`]: items down, answers matched by sequence number. Direct in one process, batched over gRPC.
//!
//! Owns the pending table and the bounds. Knows nothing of what an item means.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::lane_remote::RemoteLane;
use crate::{ApiError, Sequenced};

/// Who holds the other end of a lane. A higher incarnation of the same gateway fences a lower one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LanePeer {
    /// Name of the process, e.g. `gw1`.
    pub gateway: String,
    /// Grows with every opening.
    pub incarnation: u64,
}

/// Why a lane gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Never left this process: bounce.
    #[error("not submitted")]
    NotSubmitted,
    /// Submitted, and lost with the lane: may or may not have had its effect.
    #[error("lane lost")]
    Lost,
    /// Submitted, and not settled within the limit.
    #[error("unknown outcome")]
    Unknown,
}

/// The serving side of a lane.
#[async_trait]
pub trait LaneService<Q: Sequenced, A: Sequenced>: Send + Sync + 'static {
    /// Takes a batch in order. Answers go to `answers`, in any order, now or later, one per item.
    /// Waiting here is back-pressure on the lane. An error closes it.
    async fn submit(
        &self,
        peer: &LanePeer,
        batch: Vec<Q>,
        answers: &Answers<A>,
    ) -> Result<(), ApiError>;
}

/// Where the answers of one lane go.
#[derive(Clone)]
pub struct Answers<A>(Sink<A>);

#[derive(Clone)]
enum Sink<A> {
    Local(Arc<dyn Complete<A>>),
    Remote(mpsc::Sender<A>),
}

trait Complete<A>: Send + Sync {
    fn complete(&self, answer: A);
}

impl<A: Sequenced> Answers<A> {
    pub(crate) fn remote(sender: mpsc::Sender<A>) -> Self {
        Self(Sink::Remote(sender))
    }

    /// Gives one answer. Never blocks: a peer has at most `IN_FLIGHT` items without answer, for
    /// which there is room; one that breaks this, or is gone, loses it.
    pub fn send(&self, answer: A) {
        match &self.0 {
            Sink::Local(pending) => pending.complete(answer),
            Sink::Remote(sender) => {
                if sender.try_send(answer).is_err() {
                    tracing::debug!("an answer for a lane that is gone");
                }
            }
        }
    }
}

/// An item without answer.
pub(crate) struct Waiting<Q, A> {
    /// Kept where it may have to be settled and sent again.
    pub(crate) item: Option<Q>,
    pub(crate) since: tokio::time::Instant,
    pub(crate) reply: oneshot::Sender<Result<A, LaneError>>,
    /// Woken by an answer that is not plain, also where nobody polls for it.
    pub(crate) alarm: Option<Waker>,
    /// Released with the entry: bounds what is in flight.
    pub(crate) _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl<Q, A: Sequenced> Waiting<Q, A> {
    /// Gives the answer. The asker may be gone; then nobody wants it.
    pub(crate) fn answer(self, answer: Result<A, LaneError>) {
        let plain = answer.as_ref().is_ok_and(A::is_plain);
        let _ = self.reply.send(answer);
        if let Some(alarm) = self.alarm.filter(|_| !plain) {
            alarm.wake();
        }
    }
}

/// Items without answer, in submission order.
pub(crate) struct Pending<Q, A>(pub(crate) Mutex<BTreeMap<u64, Waiting<Q, A>>>);

impl<Q: Send, A: Sequenced> Complete<A> for Pending<Q, A> {
    fn complete(&self, answer: A) {
        let waiting = self.0.lock().remove(&answer.seq());
        if let Some(waiting) = waiting {
            waiting.answer(Ok(answer));
        }
    }
}

impl<Q: Send, A: Sequenced> Pending<Q, A> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(BTreeMap::new())))
    }

    pub(crate) fn fail_all(&self, error: LaneError) {
        let all = std::mem::take(&mut *self.0.lock());
        for waiting in all.into_values() {
            waiting.answer(Err(error));
        }
    }
}

/// The answer to one submitted item.
pub struct Answer<A>(pub(crate) oneshot::Receiver<Result<A, LaneError>>);

impl<A> Answer<A> {
    /// The answer if it is there. Who asks so is woken only by the alarm of [`Lane::submit_quietly`].
    pub fn try_take(&mut self) -> Option<Result<A, LaneError>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(LaneError::Lost)),
        }
    }
}

impl<A> Future for Answer<A> {
    type Output = Result<A, LaneError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|got| got.unwrap_or(Err(LaneError::Lost)))
    }
}

/// The asking side of a lane; cheap to clone.
pub struct Lane<Q, A>(Inner<Q, A>);

enum Inner<Q, A> {
    Local(Arc<LocalLane<Q, A>>),
    Remote(Arc<RemoteLane<Q, A>>),
}

impl<Q, A> Clone for Lane<Q, A> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Inner::Local(lane) => Inner::Local(Arc::clone(lane)),
            Inner::Remote(lane) => Inner::Remote(Arc::clone(lane)),
        })
    }
}

struct LocalLane<Q, A> {
    service: Arc<dyn LaneService<Q, A>>,
    peer: LanePeer,
    pending: Arc<Pending<(), A>>,
    answers: Answers<A>,
    next: AtomicU64,
}

impl<Q: Sequenced, A: Sequenced> Lane<Q, A> {
    /// A lane to a service in this process: a call, without encoding.
    pub fn local(service: Arc<dyn LaneService<Q, A>>, peer: LanePeer) -> Self {
        let pending = Pending::new();
        let answers = Answers(Sink::Local(Arc::clone(&pending) as Arc<dyn Complete<A>>));
        Self(Inner::Local(Arc::new(LocalLane {
            service,
            peer,
            pending,
            answers,
            next: AtomicU64::new(1),
        })))
    }

    pub(crate) fn remote(lane: Arc<RemoteLane<Q, A>>) -> Self {
        Self(Inner::Remote(lane))
    }

    /// Submits; when this returns `Ok` the item is on its way, behind everything submitted earlier.
    /// Waits only for room. The answer comes through the returned future.
    pub async fn submit(&self, item: Q) -> Result<Answer<A>, LaneError> {
        self.submit_with(item, None).await
    }

    /// The same; `alarm` is woken by an answer that is not plain. For others who asks has to look.
    pub async fn submit_quietly(&self, item: Q, alarm: Waker) -> Result<Answer<A>, LaneError> {
        self.submit_with(item, Some(alarm)).await
    }

    async fn submit_with(&self, mut item: Q, alarm: Option<Waker>) -> Result<Answer<A>, LaneError> {
        match &self.0 {
            Inner::Local(lane) => {
                let seq = lane.next.fetch_add(1, Ordering::Relaxed);
                item.set_seq(seq);
                let (reply, answer) = oneshot::channel();
                lane.pending.0.lock().insert(
                    seq,
                    Waiting {
                        item: None,
                        since: tokio::time::Instant::now(),
                        reply,
                        alarm,
                        _permit: None,
                    },
                );
                let taken = lane
                    .service
                    .submit(&lane.peer, vec![item], &lane.answers)
                    .await;
                if taken.is_err() {
                    lane.pending.0.lock().remove(&seq);
                    return Err(LaneError::NotSubmitted);
                }
                Ok(Answer(answer))
            }
            Inner::Remote(lane) => lane.submit(item, alarm).await.map(Answer),
        }
    }

    /// Submits and waits for the answer.
    pub async fn call(&self, item: Q) -> Result<A, LaneError> {
        self.submit(item).await?.await
    }

    /// False while the other side is known to be out of reach.
    pub fn is_up(&self) -> bool {
        match &self.0 {
            Inner::Local(_) => true,
            Inner::Remote(lane) => lane.is_up(),
        }
    }
}
