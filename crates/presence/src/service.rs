//! The service itself: acts on the lane, and one link to each gateway. Owns attachments (which link of
//! a gateway counts) and the grace of a lost one; what an act means is the registry's affair.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use chancery_api::presence::attach_down::Item;
use chancery_api::presence::{
    Act, AttachDown, AttachHello, AttachUp, Presence, PublishAnswer, PublishItem, SessionsRequest,
    SessionsResponse,
};
use chancery_api::{Answers, ApiError, Cx, Lane, LanePeer, LaneService, Link};
use chancery_runtime::metrics::Counter;
use chancery_runtime::{Failpoints, Metrics, Tasks, Tracer};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::effects::Effects;
use crate::outbox::{Outbox, Waiting, outbox};
use crate::registry::Registry;
use crate::store::MemoryPresenceStore;

/// A gateway says who it is within this.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Gateways that are known at once; a further one is turned away.
pub const GATEWAYS_LIMIT: usize = 1_000;

/// Sessions of one answer.
const SESSIONS_LIMIT: usize = 10_000;
/// Bytes of them.
const SESSIONS_LIMIT_BYTES: usize = 2 * 1024 * 1024;

/// What the service is made of.
pub struct Parts {
    /// Its configuration.
    pub config: Config,
    /// Where it counts.
    pub metrics: Metrics,
    /// For the spans of acts.
    pub tracer: Tracer,
    /// `presence::publish::before`.
    pub failpoints: Failpoints,
    /// What its tasks belong to.
    pub tasks: Tasks,
}

/// The presence service. Cheap to clone.
#[derive(Clone)]
pub struct PresenceService(Arc<Inner>);

struct Inner {
    own: Weak<Self>,
    grace: Duration,
    tracer: Tracer,
    failpoints: Failpoints,
    tasks: Tasks,
    /// One lock around what was said and whom it is sent to: the order of acts is the order of
    /// delivery.
    state: Mutex<State>,
    counted: Counted,
}

struct State {
    registry: Registry<MemoryPresenceStore>,
    gateways: HashMap<Arc<str>, Gateway>,
    /// Number of the latest attachment of any gateway.
    attachments: u64,
}

struct Gateway {
    attachment: u64,
    /// None while it is lost.
    link: Option<Live>,
}

struct Live {
    incarnation: u64,
    outbox: Outbox,
    /// Its end is the end of the link.
    _open: oneshot::Sender<()>,
}

/// A link in use.
struct Attached {
    name: Arc<str>,
    attachment: u64,
    waiting: Waiting,
    closed: oneshot::Receiver<()>,
}

struct Counted {
    acts: [Counter; 7],
    copies: Counter,
    refused: Counter,
    dropped: Counter,
    ended: Counter,
}

const ACT_NAMES: [&str; 7] = [
    "unspecified",
    "available",
    "unavailable",
    "directed",
    "refresh",
    "resync",
    "probe",
];

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        let acts = metrics.counters(
            "chancery_presence_acts",
            "acts of sessions, by act",
            &["act"],
        );
        Self {
            acts: ACT_NAMES.map(|name| acts.with(&[name])),
            copies: metrics.counter("chancery_presence_copies", "presence handed up, by session"),
            refused: metrics.counter(
                "chancery_presence_refused",
                "targets and sessions that a limit kept out",
            ),
            dropped: metrics.counter(
                "chancery_presence_links_dropped",
                "links of gateways that did not keep up",
            ),
            ended: metrics.counter(
                "chancery_presence_gateways_ended",
                "gateways whose sessions were ended after the grace",
            ),
        }
    }

    fn act(&self, act: Act) {
        let index = usize::try_from(i32::from(act)).unwrap_or_default();
        if let Some(counter) = self.acts.get(index) {
            counter.inc();
        }
    }
}

impl PresenceService {
    /// The service without any state: gateways that attach are asked for their sessions.
    pub fn new(parts: Parts) -> Self {
        let registry = Registry::new(MemoryPresenceStore::default(), parts.config.sessions_limit);
        let state = State {
            registry,
            gateways: HashMap::new(),
            attachments: 0,
        };
        let inner = Arc::new_cyclic(|own| Inner {
            own: Weak::clone(own),
            grace: Duration::from_secs(parts.config.grace_s),
            tracer: parts.tracer,
            failpoints: parts.failpoints,
            tasks: parts.tasks,
            state: Mutex::new(state),
            counted: Counted::new(&parts.metrics),
        });
        let figure = |name: &str, help: &str, read: fn(&State) -> usize| {
            let held = Arc::downgrade(&inner);
            parts.metrics.gauge_fn(name, help, move || {
                let count = held.upgrade().map_or(0, |inner| read(&inner.state.lock()));
                i64::try_from(count).unwrap_or(i64::MAX)
            });
        };
        figure(
            "chancery_presence_sessions_count",
            "sessions known",
            |state| state.registry.len(),
        );
        figure(
            "chancery_presence_gateways_count",
            "gateways attached",
            |state| {
                state
                    .gateways
                    .values()
                    .filter(|gateway| gateway.link.is_some())
                    .count()
            },
        );
        Self(inner)
    }
}

impl State {
    /// Sends what an act led to. A link without room is dropped; gives how many were.
    fn deliver(&mut self, effects: Effects) -> u64 {
        let mut dropped = 0;
        for (name, up) in effects.deliveries {
            let Some(gateway) = self.gateways.get_mut(&name) else {
                continue;
            };
            let Some(live) = &gateway.link else {
                // Lost by an earlier delivery of the same act.
                self.registry.missed(&name, &up);
                continue;
            };
            if let Err(up) = live.outbox.send(up) {
                gateway.link = None;
                self.registry.reach(&name, None);
                self.registry.missed(&name, &up);
                dropped += 1;
            }
        }
        dropped
    }

    fn next_attachment(&mut self) -> u64 {
        self.attachments += 1;
        self.attachments
    }
}

impl Inner {
    fn publish(&self, peer: &LanePeer, batch: &[PublishItem], answers: &Answers<PublishAnswer>) {
        let mut state = self.state.lock();
        for item in batch {
            self.counted.act(item.act());
            let mut span = self.tracer.served("presence.act", &item.traceparent);
            span.set("act", item.act().as_str_name());
            let named = if item.gateway.is_empty() {
                &peer.gateway
            } else {
                &item.gateway
            };
            let copies = match self.known(&mut state, named) {
                Some((name, attachment)) => {
                    let effects = state.registry.act(&name, attachment, item);
                    self.settle(&mut state, effects)
                }
                None => 0,
            };
            span.set("copies", u64::from(copies));
            answers.send(PublishAnswer {
                seq: item.seq,
                copies,
            });
        }
    }

    /// Counts and sends.
    fn settle(&self, state: &mut State, effects: Effects) -> u32 {
        let copies = effects.copies;
        self.counted.copies.inc_by(u64::from(copies));
        self.counted.refused.inc_by(u64::from(effects.refused));
        let dropped = state.deliver(effects);
        if dropped > 0 {
            self.counted.dropped.inc_by(dropped);
            tracing::warn!(
                dropped,
                "a gateway does not keep up with presence, its link is dropped"
            );
        }
        copies
    }

    /// A gateway and its attachment. One that publishes before it attaches is known from then on, for
    /// as long as a lost one is.
    fn known(&self, state: &mut State, name: &str) -> Option<(Arc<str>, u64)> {
        if let Some((name, gateway)) = state.gateways.get_key_value(name) {
            return Some((Arc::clone(name), gateway.attachment));
        }
        if state.gateways.len() >= GATEWAYS_LIMIT {
            self.counted.refused.inc();
            return None;
        }
        let (name, attachment) = (Arc::<str>::from(name), state.next_attachment());
        state.gateways.insert(
            Arc::clone(&name),
            Gateway {
                attachment,
                link: None,
            },
        );
        if let Some(own) = self.own.upgrade() {
            let waiting = Arc::clone(&name);
            self.tasks.spawn("presence grace", async move {
                own.end_lost(&waiting, attachment).await;
            });
        }
        Some((name, attachment))
    }

    /// Takes a link into use; `None` when a newer one of the same gateway is.
    fn attach(&self, hello: &AttachHello) -> Option<Attached> {
        let mut state = self.state.lock();
        let before = state.gateways.get_key_value(hello.gateway.as_str());
        let newer = before.and_then(|(_, gateway)| gateway.link.as_ref());
        if newer.is_some_and(|live| live.incarnation > hello.incarnation) {
            return None;
        }
        if before.is_none() && state.gateways.len() >= GATEWAYS_LIMIT {
            self.counted.refused.inc();
            return None;
        }
        let name = before.map_or_else(
            || hello.gateway.as_str().into(),
            |(name, _)| Arc::clone(name),
        );
        let attachment = state.next_attachment();
        let (outbox, waiting) = outbox();
        // What was said on the way to a link that is lost is lost: the gateway publishes again, and
        // what it does not is gone with an earlier life of it.
        let resync = AttachUp {
            resync: true,
            ..AttachUp::default()
        };
        if outbox.send(resync).is_err() {
            return None;
        }
        let (open, closed) = oneshot::channel();
        let link = Some(Live {
            incarnation: hello.incarnation,
            outbox,
            _open: open,
        });
        state.registry.reach(&name, Some(attachment));
        state
            .gateways
            .insert(Arc::clone(&name), Gateway { attachment, link });
        Some(Attached {
            name,
            attachment,
            waiting,
            closed,
        })
    }

    /// One link, from hello to what follows its loss.
    async fn serve(&self, link: Link<AttachUp, AttachDown>) {
        let (tx, mut rx) = link.split();
        let hello = tokio::time::timeout(HELLO_LIMIT, rx.recv()).await;
        let Ok(Some(AttachDown {
            item: Some(Item::Hello(hello)),
        })) = hello
        else {
            tracing::debug!("an attach link without a hello");
            return;
        };
        let Some(Attached {
            name,
            attachment,
            mut waiting,
            closed,
        }) = self.attach(&hello)
        else {
            tracing::warn!(gateway = hello.gateway, "turned a gateway's link away");
            return;
        };
        let outgoing = async {
            while let Some(up) = waiting.next().await {
                if tx.send(up).await.is_err() {
                    return;
                }
            }
        };
        let unpublished = async {
            tokio::time::sleep(self.grace).await;
            self.end(&name, attachment);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.tasks.cancelled() => return,
            () = outgoing => {}
            () = unpublished => {}
            _ = closed => {}
            // The gateway has nothing more to say: whatever comes is ignored until the link is lost.
            () = async { while rx.recv().await.is_some() {} } => {}
        }
        drop((tx, rx));
        self.lost(&name, attachment, waiting.rest());
        self.end_lost(&name, attachment).await;
    }

    fn lost(&self, name: &Arc<str>, attachment: u64, unsent: Vec<AttachUp>) {
        let mut state = self.state.lock();
        for up in unsent {
            state.registry.missed(name, &up);
        }
        if let Some(gateway) = state.gateways.get_mut(name)
            && gateway.attachment == attachment
        {
            gateway.link = None;
            state.registry.reach(name, None);
        }
    }

    /// Waits out the grace of a lost gateway; unless it attached again, its sessions end.
    async fn end_lost(&self, name: &str, attachment: u64) {
        tokio::select! {
            () = self.tasks.cancelled() => return,
            () = tokio::time::sleep(self.grace) => {}
        }
        let mut state = self.state.lock();
        let gone = state
            .gateways
            .get(name)
            .is_some_and(|gateway| gateway.attachment == attachment && gateway.link.is_none());
        if gone {
            state.gateways.remove(name);
            let effects = state.registry.end_before(name, u64::MAX);
            self.settle(&mut state, effects);
            self.counted.ended.inc();
            tracing::warn!(gateway = name, "a gateway is gone, its sessions were ended");
        }
    }

    /// Ends what the gateway did not publish again under its attachment.
    fn end(&self, name: &str, attachment: u64) {
        let mut state = self.state.lock();
        let effects = state.registry.end_before(name, attachment);
        self.settle(&mut state, effects);
    }
}

#[async_trait]
impl LaneService<PublishItem, PublishAnswer> for Inner {
    async fn submit(
        &self,
        peer: &LanePeer,
        batch: Vec<PublishItem>,
        answers: &Answers<PublishAnswer>,
    ) -> Result<(), ApiError> {
        let passed = self.failpoints.hit("presence::publish::before").await;
        passed.map_err(|injected| ApiError::unavailable(injected.to_string()))?;
        self.publish(peer, &batch, answers);
        Ok(())
    }
}

#[async_trait]
impl Presence for PresenceService {
    async fn sessions(
        &self,
        _cx: &Cx,
        request: SessionsRequest,
    ) -> Result<SessionsResponse, ApiError> {
        let limit = match usize::try_from(request.limit).unwrap_or(SESSIONS_LIMIT) {
            0 => SESSIONS_LIMIT,
            limit => limit.min(SESSIONS_LIMIT),
        };
        let (mut full_jids, mut more) = self.0.state.lock().registry.who(&request.of, limit);
        let mut bytes = 0;
        let fits = full_jids.iter().take_while(|jid| {
            bytes += jid.len();
            bytes <= SESSIONS_LIMIT_BYTES
        });
        let fits = fits.count();
        more |= fits < full_jids.len();
        full_jids.truncate(fits);
        Ok(SessionsResponse { full_jids, more })
    }

    fn publish(&self, peer: LanePeer) -> Lane<PublishItem, PublishAnswer> {
        Lane::local(
            Arc::clone(&self.0) as Arc<dyn LaneService<PublishItem, PublishAnswer>>,
            peer,
        )
    }

    fn publish_service(
        &self,
    ) -> Result<Arc<dyn LaneService<PublishItem, PublishAnswer>>, ApiError> {
        Ok(Arc::clone(&self.0) as Arc<dyn LaneService<PublishItem, PublishAnswer>>)
    }

    async fn attach(&self, _cx: &Cx) -> Result<Link<AttachDown, AttachUp>, ApiError> {
        let (link, near) = Link::pair();
        let inner = Arc::clone(&self.0);
        self.0
            .tasks
            .spawn("presence link", async move { inner.serve(near).await });
        Ok(link)
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
