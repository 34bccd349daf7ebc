//! The streams on which stanzas come up: to the archive's shard, and to the presence service.
//!
//! Owns opening them, opening them again, and handing what comes to the sessions' inboxes. What a
//! stream forgets when it is lost, the sessions say again: they are told when it is back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{
    AttachDown, AttachHello, AttachUp, Deliver, DetachSession, EndReason, HighestCount,
    attach_down, attach_up,
};
use chancery_api::{Cx, LaneError, presence};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::service::Gateway;
use crate::session::deliver::{Delivered, PresenceUp};
use crate::session::inbox::Event;

/// The embedded deployment has one shard.
const SHARD: u32 = 0;
/// What may wait to go down. A stream that is so far behind is opened anew: what the sessions say
/// then replaces it.
const DOWN_ITEMS: usize = 65_536;
/// Denials kept while there is no stream: nothing else says them again.
const KEPT_DENIALS: usize = 4096;
/// Items written before others get their turn.
const WRITE_BATCH: usize = 256;
/// Envelopes handed out before the sessions that they are for are woken.
const HAND_OUT: usize = 64;
/// Pause before a stream is opened again: doubles between these.
pub(crate) const REOPEN_FIRST: Duration = Duration::from_millis(50);
pub(crate) const REOPEN_LAST: Duration = Duration::from_millis(500);
/// Opening takes no longer.
pub(crate) const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// The count of a stream-management id is answered by then, or the stream that asks ends.
const HIGHEST_LIMIT: Duration = Duration::from_secs(10);
/// Such questions at once.
const HIGHEST_UNDER_WAY: usize = 1024;

#[derive(Default)]
struct Outbox {
    items: VecDeque<AttachDown>,
    open: bool,
}

/// The stream to the shard as the sessions see it.
#[derive(Default)]
pub(crate) struct ArchiveLink {
    outbox: Mutex<Outbox>,
    filled: Notify,
    /// Everything up to here that concerns sessions that do not lag has come up.
    head: AtomicU64,
    up: AtomicBool,
    /// Counts the streams opened.
    generation: AtomicU64,
    questions: Mutex<HashMap<u64, oneshot::Sender<Option<u64>>>>,
    next_question: AtomicU64,
}

impl ArchiveLink {
    /// Sends down, behind everything said before. Without a stream it is forgotten, as the
    /// sessions say everything again on the next; denials are kept.
    pub(crate) fn tell(&self, item: AttachDown) {
        {
            let mut outbox = self.outbox.lock();
            if !outbox.open {
                let denial = matches!(item.item, Some(attach_down::Item::Deny(_)));
                if denial && outbox.items.len() < KEPT_DENIALS {
                    outbox.items.push_back(item);
                }
                return;
            }
            if outbox.items.len() >= DOWN_ITEMS {
                outbox.open = false;
                outbox.items.clear();
            } else {
                outbox.items.push_back(item);
            }
        }
        self.filled.notify_one();
    }

    /// Which stream is in use: another number is another stream.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Open?
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// The highest count that the log has for a stream-management id, `None` when it knows none. No
    /// answer is no statement: who took it for one would send again what the log is about to have.
    pub(crate) async fn highest_count(&self, sm_id: [u8; 16]) -> Result<Option<u64>, LaneError> {
        if !self.is_up() {
            return Err(LaneError::NotSubmitted);
        }
        let request = self.next_question.fetch_add(1, Ordering::Relaxed) + 1;
        let (tx, rx) = oneshot::channel();
        {
            let mut questions = self.questions.lock();
            if questions.len() >= HIGHEST_UNDER_WAY {
                return Err(LaneError::NotSubmitted);
            }
            questions.insert(request, tx);
        }
        let question = HighestCount {
            request,
            sm_id: Bytes::copy_from_slice(&sm_id),
        };
        self.tell(AttachDown {
            item: Some(attach_down::Item::Highest(question)),
        });
        let answer = tokio::time::timeout(HIGHEST_LIMIT, rx).await;
        self.questions.lock().remove(&request);
        answer
            .map_err(|_| LaneError::Unknown)?
            .map_err(|_| LaneError::Lost)
    }

    /// Opens. Gives the place of the sessions that did not lag on the stream before: what comes on
    /// the new one says nothing of those that are not yet attached to it.
    fn open(&self) -> u64 {
        let place = self.head.load(Ordering::Acquire);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.outbox.lock().open = true;
        self.up.store(true, Ordering::Release);
        place
    }

    fn close(&self) {
        self.up.store(false, Ordering::Release);
        let mut outbox = self.outbox.lock();
        outbox.open = false;
        outbox
            .items
            .retain(|down| matches!(down.item, Some(attach_down::Item::Deny(_))));
        outbox.items.truncate(KEPT_DENIALS);
        drop(outbox);
        // Nobody will answer: whoever asked is told so.
        self.questions.lock().clear();
    }

    /// Takes what waits; `None` when the stream has to be opened anew.
    fn take(&self) -> Option<Vec<AttachDown>> {
        let mut outbox = self.outbox.lock();
        if !outbox.open {
            return None;
        }
        let count = outbox.items.len().min(WRITE_BATCH);
        let batch = outbox.items.drain(..count).collect();
        if outbox.items.is_empty() && outbox.items.capacity() > 4 * WRITE_BATCH {
            outbox.items = VecDeque::new();
        }
        Some(batch)
    }

    async fn write(&self, tx: mpsc::Sender<AttachDown>) {
        loop {
            let Some(batch) = self.take() else { return };
            if batch.is_empty() {
                tokio::select! {
                    () = self.filled.notified() => {}
                    () = tx.closed() => return,
                }
            }
            for item in batch {
                if tx.send(item).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Keeps the stream to the shard open, for ever.
pub(crate) async fn follow_archive(gateway: Arc<Gateway>) {
    let mut pause = REOPEN_FIRST;
    let mut incarnation = gateway.incarnation;
    loop {
        incarnation += 1;
        let opened = tokio::time::timeout(OPEN_LIMIT, gateway.archive.attach(&Cx::local())).await;
        if let Ok(Ok(stream)) = opened {
            let (tx, rx) = stream.split();
            let hello = AttachHello {
                gateway: gateway.name.to_string(),
                incarnation,
                shard: SHARD,
            };
            let hello = AttachDown {
                item: Some(attach_down::Item::Hello(hello)),
            };
            if tx.send(hello).await.is_ok() {
                tracing::info!("attached to the log");
                pause = REOPEN_FIRST;
                let place = gateway.link.open();
                gateway.sessions.push_all(&Event::LinkUp(place));
                tokio::select! {
                    () = gateway.link.write(tx) => {}
                    () = read_archive(&gateway, rx) => {}
                }
                gateway.link.close();
                gateway.metrics.links_lost.inc();
                tracing::info!("the stream of the log is lost");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_LAST);
    }
}

async fn read_archive(gateway: &Gateway, mut rx: mpsc::Receiver<AttachUp>) {
    let mut lagging: HashSet<u64> = HashSet::new();
    let (mut batch, mut woken) = (Vec::new(), Vec::new());
    loop {
        // Where a fault is to be injected, it is between one delivery and the next.
        let limit = if gateway.failpoints.is_armed() {
            1
        } else {
            HAND_OUT
        };
        if rx.recv_many(&mut batch, limit).await == 0 {
            return;
        }
        for up in batch.drain(..) {
            let Some(item) = up.item else { continue };
            if let attach_up::Item::Deliver(deliver) = item {
                let point = "gateway::deliver::before_write";
                if gateway.failpoints.hit(point).await.is_err() {
                    return; // as if the stream were lost here
                }
                hand_out(gateway, deliver, &lagging, &mut woken);
                continue;
            }
            on_archive(gateway, item, &mut lagging, &mut woken);
        }
        gateway.sessions.wake(&mut woken);
    }
}

fn hand_out(gateway: &Gateway, deliver: Deliver, lagging: &HashSet<u64>, woken: &mut Vec<u64>) {
    // Live and to a session that keeps up: then everything below it has come up too.
    let live = deliver
        .targets
        .iter()
        .any(|t| !t.delayed && !lagging.contains(&t.session));
    if live {
        gateway
            .link
            .head
            .fetch_max(deliver.number, Ordering::AcqRel);
    }
    let delivered = Arc::new(Delivered::new(deliver));
    let targets = delivered.up.targets.iter().zip(0..);
    let events =
        targets.map(|(target, at)| (target.session, Event::Deliver(Arc::clone(&delivered), at)));
    gateway.sessions.put(events, woken);
}

fn on_archive(
    gateway: &Gateway,
    item: attach_up::Item,
    lagging: &mut HashSet<u64>,
    woken: &mut Vec<u64>,
) {
    use attach_up::Item;
    match item {
        Item::Attached(attached) => {
            gateway.link.head.fetch_max(attached.head, Ordering::AcqRel);
            lagging.remove(&attached.session);
            if !gateway.sessions.push(attached.session, Event::Attached) {
                let detach = DetachSession {
                    session: attached.session,
                };
                gateway.link.tell(AttachDown {
                    item: Some(attach_down::Item::Detach(detach)),
                });
            }
        }
        Item::Updated(updated) => {
            gateway.sessions.push(updated.session, Event::Updated);
        }
        Item::End(end) => {
            let reason = EndReason::try_from(end.reason).unwrap_or(EndReason::Unspecified);
            gateway
                .sessions
                .push_urgent(end.session, Event::End(reason));
        }
        Item::Head(head) => {
            gateway.link.head.fetch_max(head.number, Ordering::AcqRel);
        }
        Item::Detached(detached) => {
            lagging.remove(&detached.session);
            gateway.sessions.push(detached.session, Event::Detached);
        }
        Item::Lagging(state) => {
            if state.lagging {
                lagging.insert(state.session);
            } else {
                lagging.remove(&state.session);
            }
            let event = Event::Lagging(state.lagging, state.position);
            gateway.sessions.push(state.session, event);
        }
        Item::Highest(answer) => {
            if let Some(asker) = gateway.link.questions.lock().remove(&answer.request) {
                // Whoever asked may have given up.
                let _ = asker.send(answer.known.then_some(answer.count));
            }
        }
        Item::Deliver(deliver) => hand_out(gateway, deliver, lagging, woken),
    }
}

/// Keeps the stream of presence open, for ever.
pub(crate) async fn follow_presence(gateway: Arc<Gateway>) {
    let mut pause = REOPEN_FIRST;
    let mut incarnation = gateway.incarnation;
    loop {
        incarnation += 1;
        let opened = tokio::time::timeout(OPEN_LIMIT, gateway.presence.attach(&Cx::local())).await;
        if let Ok(Ok(stream)) = opened {
            let (tx, mut rx) = stream.split();
            let hello = presence::AttachHello {
                gateway: gateway.name.to_string(),
                incarnation,
            };
            let hello = presence::AttachDown {
                item: Some(presence::attach_down::Item::Hello(hello)),
            };
            if tx.send(hello).await.is_ok() {
                pause = REOPEN_FIRST;
                tracing::info!("attached to presence");
                gateway.departed.back(gateway.clock.monotonic());
                let (mut batch, mut woken) = (Vec::new(), Vec::new());
                while rx.recv_many(&mut batch, HAND_OUT).await > 0 {
                    for up in batch.drain(..) {
                        on_presence(&gateway, up, &mut woken);
                    }
                    gateway.sessions.wake(&mut woken);
                }
                gateway.departed.lost();
                tracing::info!("the stream of presence is lost");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_LAST);
    }
}

fn on_presence(gateway: &Gateway, up: presence::AttachUp, woken: &mut Vec<u64>) {
    if up.resync {
        gateway.sessions.push_all(&Event::Resync);
        return;
    }
    let presence = Arc::new(PresenceUp {
        from: up.from,
        payload: up.payload,
        policy_version: up.policy_version,
        unavailable: up.unavailable,
        to: up.to,
        traceparent: up.traceparent,
    });
    let sessions = up.sessions.into_iter();
    let events = sessions.map(|session| (session, Event::Presence(Arc::clone(&presence))));
    gateway.sessions.put(events, woken);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use chancery_api::archive::{Credit, DenyEntry};

    use super::*;

    fn credit() -> AttachDown {
        AttachDown {
            item: Some(attach_down::Item::Credit(Credit::default())),
        }
    }

    fn denial() -> AttachDown {
        AttachDown {
            item: Some(attach_down::Item::Deny(DenyEntry::default())),
        }
    }

    #[test]
    fn without_a_stream_only_denials_are_kept() {
        let link = ArchiveLink::default();
        link.tell(credit());
        link.tell(denial());
        assert!(link.take().is_none());
        link.open();
        assert_eq!(link.take().unwrap(), [denial()]);
        link.tell(credit());
        link.tell(denial());
        link.close();
        link.open();
        assert_eq!(link.take().unwrap(), [denial()]);
    }

    #[test]
    fn a_stream_too_far_behind_is_opened_anew() {
        let link = ArchiveLink::default();
        link.open();
        for _ in 0..=DOWN_ITEMS {
            link.tell(credit());
        }
        assert!(link.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_that_nobody_answers_is_unknown() {
        let link = ArchiveLink::default();
        link.open();
        assert_eq!(link.highest_count([1; 16]).await, Err(LaneError::Unknown));
        assert!(link.questions.lock().is_empty());
    }
}
