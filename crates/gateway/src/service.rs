//! The gateway as a service: its handles on the others, its lanes, its sessions.
//!
//! Owns what all sessions of the process share. What is up and what is followed is known here;
//! what a session does is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chancery_api::archive::{AppendAnswer, AppendItem, Archive, AttachDown, attach_down};
use chancery_api::directory::Directory;
use chancery_api::policy::Policy as PolicyService;
use chancery_api::presence::{Presence, PublishAnswer, PublishItem};
use chancery_api::pubsub::Pubsub;
use chancery_api::roster::Roster;
use chancery_api::{Lane, LanePeer};
use chancery_runtime::metrics::{Counter, Counters};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks, Tracer};
use chancery_xmpp::Condition;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::attach::{ArchiveLink, follow_archive, follow_presence};
use crate::blocks::{Blocks, follow_blocks};
use crate::colleagues::Colleagues;
use crate::config::Config;
use crate::departed::{Departed, tell_departed};
use crate::follow::{follow_directory, follow_policy};
use crate::iq::Handlers;
use crate::listen::Domains;
use crate::negotiate::{Authenticated, Established};
use crate::permits::{self, Permits};
use crate::pipeline::decide::Policy;
use crate::session::bind;
use crate::session::identity::{Change, Identity};
use crate::session::inbox::Event;
use crate::session::table::Sessions;

/// The shard confirms a change of a session by then; the session's state is said again with its
/// next attachment.
const UPDATE_LIMIT: Duration = Duration::from_secs(10);

/// What the gateway uses.
pub struct Parts {
    /// Name of this process, unique in the deployment, e.g. `gw1`.
    pub name: String,
    /// The section `[gateway]`.
    pub config: Arc<Config>,
    /// The hosted domains; followed from the directory by this service.
    pub domains: Domains,
    /// Facts on accounts.
    pub directory: Arc<dyn Directory>,
    /// Rosters.
    pub roster: Arc<dyn Roster>,
    /// Presence.
    pub presence: Arc<dyn Presence>,
    /// Private XML, vCards, last activity.
    pub pubsub: Arc<dyn Pubsub>,
    /// Verdicts.
    pub policy: Arc<dyn PolicyService>,
    /// The log.
    pub archive: Arc<dyn Archive>,
    /// For stamps and deadlines.
    pub clock: Clock,
    /// For session ids and resources.
    pub ids: Ids,
    /// For `chancery_gateway_…`.
    pub metrics: Metrics,
    /// Chooses the stanzas that are followed.
    pub tracer: Tracer,
    /// `gateway::…`.
    pub failpoints: Failpoints,
    /// Sessions: they end, drained, when this group is asked to.
    pub streams: Tasks,
    /// What the sessions need until they are gone: the streams to other services.
    pub services: Tasks,
}

/// See the module.
pub struct Gateway {
    pub(crate) name: Arc<str>,
    /// Higher than that of any earlier process of this name.
    pub(crate) incarnation: u64,
    pub(crate) config: Arc<Config>,
    pub(crate) domains: Domains,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) roster: Arc<dyn Roster>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) pubsub: Arc<dyn Pubsub>,
    pub(crate) policy_service: Arc<dyn PolicyService>,
    pub(crate) archive: Arc<dyn Archive>,
    pub(crate) append: Lane<AppendItem, AppendAnswer>,
    pub(crate) publish: Lane<PublishItem, PublishAnswer>,
    pub(crate) policy: Policy,
    pub(crate) blocks: Blocks,
    pub(crate) colleagues: Colleagues,
    pub(crate) link: ArchiveLink,
    pub(crate) sessions: Sessions,
    pub(crate) handlers: Handlers,
    pub(crate) permits: Permits,
    pub(crate) departed: Departed,
    /// 0 = nothing heard yet.
    pub(crate) directory_version: AtomicU64,
    /// Asked to end: no new sessions.
    pub(crate) ending: CancellationToken,
    /// For streams that end while their session goes on.
    pub(crate) streams: Tasks,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) tracer: Tracer,
    pub(crate) failpoints: Failpoints,
    pub(crate) metrics: Counted,
}

/// What is counted.
pub(crate) struct Counted {
    pub(crate) inbound: Counter,
    pub(crate) outbound: Counter,
    pub(crate) undecided: Counter,
    pub(crate) unknown: Counter,
    pub(crate) decided_again: Counter,
    pub(crate) denied_again: Counter,
    pub(crate) links_lost: Counter,
    pub(crate) resumed: Counter,
    pub(crate) resumptions_refused: Counter,
    bounces: Counters,
}

/// The shard did not confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard did not confirm")]
pub(crate) struct Unconfirmed;

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        let stanzas = metrics.counters(
            "chancery_gateway_stanzas",
            "stanzas read from and written to clients",
            &["direction"],
        );
        Self {
            inbound: stanzas.with(&["in"]),
            outbound: stanzas.with(&["out"]),
            undecided: metrics.counter(
                "chancery_gateway_undecided",
                "stanzas that policy gave no verdict on in time",
            ),
            unknown: metrics.counter(
                "chancery_gateway_unknown_outcomes",
                "stanzas whose outcome could not be settled; each ended a stream",
            ),
            decided_again: metrics.counter(
                "chancery_gateway_deliveries_decided_again",
                "deliveries decided again under a newer policy version",
            ),
            denied_again: metrics.counter(
                "chancery_gateway_deliveries_denied_again",
                "deliveries denied under a newer policy version",
            ),
            links_lost: metrics.counter(
                "chancery_gateway_links_lost",
                "losses of the stream of the log",
            ),
            resumed: metrics.counter(
                "chancery_gateway_sessions_resumed",
                "sessions that went on with another stream",
            ),
            resumptions_refused: metrics.counter(
                "chancery_gateway_resumptions_refused",
                "requests to resume a session that were refused",
            ),
            bounces: metrics.counters(
                "chancery_gateway_bounces",
                "stanzas answered with an error, by condition",
                &["condition"],
            ),
        }
    }

    /// A stanza was answered with an error.
    pub(crate) fn bounced(&self, condition: Condition) {
        self.bounces.with(&[condition.as_str()]).inc();
    }
}

impl Gateway {
    /// Opens the lanes and begins to follow. Ready when [`Gateway::ready`] says so.
    pub fn start(parts: Parts) -> Arc<Self> {
        let incarnation = u64::try_from(parts.clock.now_unix_ms()).unwrap_or(1);
        let peer = LanePeer {
            gateway: parts.name.clone(),
            incarnation,
        };
        let decide = parts.policy.decide(peer.clone());
        let gateway = Arc::new(Self {
            name: parts.name.into(),
            incarnation,
            handlers: Handlers::new(&parts.config),
            config: parts.config,
            domains: parts.domains,
            append: parts.archive.append(peer.clone()),
            publish: parts.presence.publish(peer),
            policy: Policy::new(decide, parts.tracer.clone(), parts.failpoints.clone()),
            blocks: Blocks::default(),
            colleagues: Colleagues::default(),
            link: ArchiveLink::default(),
            sessions: Sessions::default(),
            permits: Permits::default(),
            departed: Departed::default(),
            directory_version: AtomicU64::new(0),
            ending: parts.streams.signal().clone(),
            streams: parts.streams.clone(),
            metrics: Counted::new(&parts.metrics),
            directory: parts.directory,
            roster: parts.roster,
            presence: parts.presence,
            pubsub: parts.pubsub,
            policy_service: parts.policy,
            archive: parts.archive,
            clock: parts.clock,
            ids: parts.ids,
            tracer: parts.tracer,
            failpoints: parts.failpoints,
        });
        let counted = Arc::downgrade(&gateway);
        parts
            .metrics
            .gauge_fn("chancery_gateway_sessions", "bound sessions", move || {
                let sessions = counted
                    .upgrade()
                    .map_or(0, |gateway| gateway.sessions.len());
                i64::try_from(sessions).unwrap_or(i64::MAX)
            });
        let counted = Arc::downgrade(&gateway);
        let help = "sessions without a stream that may be resumed";
        parts
            .metrics
            .gauge_fn("chancery_gateway_sessions_detached", help, move || {
                let away = counted
                    .upgrade()
                    .map_or(0, |gateway| gateway.sessions.away());
                i64::try_from(away).unwrap_or(i64::MAX)
            });
        Self::follow(&gateway, &parts.services);
        let ended = Arc::clone(&gateway);
        parts.streams.spawn("gateway shutdown", async move {
            ended.ending.cancelled().await;
            ended.sessions.push_all_urgent(&Event::Shutdown);
        });
        gateway
    }

    /// Everything that is followed until the sessions are gone.
    fn follow(gateway: &Arc<Self>, services: &Tasks) {
        let all: [(&'static str, BoxFuture<'static, ()>); 7] = [
            (
                "gateway archive",
                follow_archive(Arc::clone(gateway)).boxed(),
            ),
            (
                "gateway presence",
                follow_presence(Arc::clone(gateway)).boxed(),
            ),
            (
                "gateway departed",
                tell_departed(Arc::clone(gateway)).boxed(),
            ),
            ("gateway policy", follow_policy(Arc::clone(gateway)).boxed()),
            (
                "gateway directory",
                follow_directory(Arc::clone(gateway)).boxed(),
            ),
            ("gateway blocks", follow_blocks(Arc::clone(gateway)).boxed()),
            (
                "gateway permits",
                permits::report(Arc::clone(gateway)).boxed(),
            ),
        ];
        for (name, following) in all {
            let (signal, gateway) = (services.signal().clone(), Arc::clone(gateway));
            services.spawn(name, async move {
                tokio::select! {
                    () = signal.cancelled() => {}
                    () = following => {}
                }
                drop(gateway);
            });
        }
    }

    /// Reports the permit counters a last time. To be called when the sessions are gone and before
    /// the log ends.
    pub async fn finish(&self) {
        permits::report_once(self, self.clock.now_unix_ms()).await;
    }

    /// Can a client log in and write now?
    pub fn ready(&self) -> bool {
        self.unready().is_empty()
    }

    /// What is missing for that.
    pub fn unready(&self) -> Vec<&'static str> {
        let checks = [
            ("ending", !self.ending.is_cancelled()),
            ("archive", self.link.is_up() && self.append.is_up()),
            (
                "policy",
                self.policy.is_up() && self.policy.is_followed(self.clock.monotonic()),
            ),
            ("roster", self.blocks.is_followed(self.clock.monotonic())),
            (
                "directory",
                self.directory_version.load(Ordering::Acquire) > 0,
            ),
        ];
        checks
            .into_iter()
            .filter(|(_, up)| !up)
            .map(|(name, _)| name)
            .collect()
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Tells a session's shard of a change, and waits until it has taken it over.
    pub(crate) async fn update(
        &self,
        identity: &Identity,
        change: Change,
    ) -> Result<(), Unconfirmed> {
        let wait = {
            let mut followed = identity.followed.lock();
            let Some((update, wait)) = followed.change(identity.number, change) else {
                return Ok(());
            };
            // Under the lock: updates go down in the order of their numbers.
            self.link.tell(AttachDown {
                item: Some(attach_down::Item::Update(update)),
            });
            wait
        };
        match tokio::time::timeout(UPDATE_LIMIT, wait).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Unconfirmed),
        }
    }
}

impl Established for Gateway {
    fn run(self: Arc<Self>, authenticated: Authenticated) -> BoxFuture<'static, ()> {
        async move {
            // Large and short-lived: not part of what an idle session keeps.
            let bound = bind::bind(self, authenticated).boxed().await;
            if let Some(session) = bound {
                session.run().await;
            }
        }
        .boxed()
    }
}
