//! The service itself: verdicts on the lane, and the calls of officers. Owns the one sequence of
//! versions; it refuses to put in force what is not in the log and in the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chancery_api::archive::{Archive, RecordActRequest};
use chancery_api::directory::Directory;
use chancery_api::policy::{
    ApplyRequest, ApplyResponse, DecideAnswer, DecideItem, ExplainRequest, ExplainResponse, Policy,
    ShowRequest, ShowResponse, WatchDown, WatchUp,
};
use chancery_api::{
    Answers, ApiError, Cx, Denial, Followers, Lane, LanePeer, LaneService, Link, Verdict,
};
use chancery_runtime::metrics::Counter;
use chancery_runtime::{Clock, Failpoints, Metrics, Tasks, Tracer};
use chancery_store::StoreError;
use tokio::sync::{Mutex, oneshot};

use crate::config::Config;
use crate::decider::Decider;
use crate::explain::explain;
use crate::facts::Facts;
use crate::file::{BUILT_IN, PolicyFile, check};
use crate::in_force::InForce;
use crate::store::{PolicyStore, StoredVersion};
use crate::{follow, watchers};

/// How long the log may take to record a policy before the policy is refused.
const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of an actor's name.
const ACTOR_BYTES: usize = 1_024;

/// What the service is made of.
pub struct Parts {
    /// Name of this instance; it follows the directory as `policy-NAME`.
    pub name: String,
    /// Its configuration.
    pub config: Config,
    /// Where policies are kept.
    pub store: Arc<dyn PolicyStore>,
    /// Whose facts it follows.
    pub directory: Arc<dyn Directory>,
    /// Where a policy is recorded before it comes into force.
    pub archive: Arc<dyn Archive>,
    /// The time.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Metrics,
    /// For the spans of verdicts.
    pub tracer: Tracer,
    /// `policy::decide::before`.
    pub failpoints: Failpoints,
    /// What its tasks belong to.
    pub tasks: Tasks,
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The policy in the store is none that this program understands.
    #[error("the stored policy of version {version} cannot be used, line {line}: {problem}")]
    Stored {
        /// Which one.
        version: u64,
        /// Of the first problem.
        line: u32,
        /// The first problem.
        problem: String,
    },
}

/// The policy service. Cheap to clone.
#[derive(Clone)]
pub struct PolicyService(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn PolicyStore>,
    pub(crate) directory: Arc<dyn Directory>,
    archive: Arc<dyn Archive>,
    clock: Clock,
    tracer: Tracer,
    failpoints: Failpoints,
    pub(crate) tasks: Tasks,
    pub(crate) in_force: InForce,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) followers: Followers,
    decisions: Decisions,
}

/// What the next version is made from; whoever makes one holds it.
pub(crate) struct Ledger {
    /// The highest version that is durable.
    pub(crate) highest: u64,
    pub(crate) policy: Arc<PolicyFile>,
    /// None before the first complete snapshot.
    pub(crate) facts: Option<Facts>,
    /// A version could not be made durable: what is here is newer than what was in force.
    pub(crate) stale: bool,
}

struct Decisions {
    allow: Counter,
    violation: Counter,
    unavailable: Counter,
    not_found: Counter,
}

impl Decisions {
    fn new(metrics: &Metrics) -> Self {
        let name = "chancery_policy_decisions";
        let counted = metrics.counters(
            name,
            "verdicts given, by what the sender sees",
            &["verdict"],
        );
        Self {
            allow: counted.with(&["allow"]),
            violation: counted.with(&["policy-violation"]),
            unavailable: counted.with(&["service-unavailable"]),
            not_found: counted.with(&["remote-server-not-found"]),
        }
    }

    fn count(&self, verdict: &Verdict) {
        let counter = match verdict.denial() {
            Denial::Unspecified => &self.allow,
            Denial::PolicyViolation => &self.violation,
            Denial::ServiceUnavailable | Denial::Blocked => &self.unavailable,
            Denial::RemoteServerNotFound => &self.not_found,
        };
        counter.inc();
    }
}

impl PolicyService {
    /// Reads the policy in force, or keeps the built-in one as version 1, and begins to follow the
    /// directory. Until its first snapshot there are no verdicts.
    pub async fn start(parts: Parts) -> Result<Self, PolicyError> {
        let stored = match parts.store.at(u64::MAX).await? {
            Some(stored) => stored,
            None => {
                let built_in = StoredVersion {
                    version: parts.store.highest().await? + 1,
                    toml: BUILT_IN.to_owned(),
                    applied_at_ms: parts.clock.now_unix_ms(),
                    actor: "chancery".to_owned(),
                };
                parts.store.apply(built_in.clone()).await?;
                built_in
            }
        };
        let policy = check(&stored.toml, None).map_err(|problems| {
            let first = problems.into_iter().next().unwrap_or_default();
            PolicyError::Stored {
                version: stored.version,
                line: first.line,
                problem: first.problem,
            }
        })?;
        let ledger = Ledger {
            highest: parts.store.highest().await?,
            policy: Arc::new(policy),
            facts: None,
            stale: false,
        };
        let lease = Duration::from_secs(parts.config.lease_s);
        let inner = Arc::new(Inner {
            name: parts.name,
            config: parts.config,
            store: parts.store,
            directory: parts.directory,
            archive: parts.archive,
            clock: parts.clock.clone(),
            tracer: parts.tracer,
            failpoints: parts.failpoints,
            tasks: parts.tasks,
            in_force: InForce::new(lease, parts.clock),
            ledger: Mutex::new(ledger),
            followers: Followers::new(),
            decisions: Decisions::new(&parts.metrics),
        });
        register(&inner, &parts.metrics);
        inner
            .tasks
            .spawn("policy follow", follow::run(Arc::clone(&inner)));
        Ok(Self(inner))
    }

    /// The version in force; none while there are no verdicts.
    pub fn version_in_force(&self) -> Option<u64> {
        self.0.in_force.get().map(|decider| decider.version())
    }
}

fn register(inner: &Arc<Inner>, metrics: &Metrics) {
    let held = Arc::downgrade(inner);
    let help = "the policy version in force, 0 while there are no verdicts";
    metrics.gauge_fn("chancery_policy_version_number", help, move || {
        let version = held
            .upgrade()
            .and_then(|inner| inner.in_force.get())
            .map(|d| d.version());
        i64::try_from(version.unwrap_or(0)).unwrap_or(i64::MAX)
    });
    let followers = inner.followers.clone();
    metrics.gauge_fn(
        "chancery_policy_followers_count",
        "gateways that follow the policy",
        move || i64::try_from(followers.len()).unwrap_or(i64::MAX),
    );
}

impl Inner {
    fn current(&self) -> Result<Arc<Decider>, ApiError> {
        self.in_force
            .get()
            .ok_or_else(|| ApiError::unavailable("no policy in force"))
    }

    /// Makes the next version from what the ledger holds. When it cannot be made durable nothing is
    /// in force any more: the old verdicts may be wrong, and new ones could not be told from older.
    pub(crate) async fn renew(&self, ledger: &mut Ledger) -> Result<u64, StoreError> {
        let Some(facts) = &ledger.facts else {
            return Ok(ledger.highest);
        };
        let raised = async {
            if ledger.stale {
                // It may have been raised all the same.
                ledger.highest = self.store.highest().await?.max(ledger.highest);
            }
            let version = ledger.highest + 1;
            self.store.raise(version).await?;
            Ok(version)
        }
        .await;
        match raised {
            Ok(version) => {
                ledger.highest = version;
                ledger.stale = false;
                let policy = Arc::clone(&ledger.policy);
                self.in_force.put(Decider::compile(version, policy, facts));
                Ok(version)
            }
            Err(error) => {
                ledger.stale = true;
                self.in_force.suspend();
                Err(error)
            }
        }
    }

    /// Takes over new accounts without a new version: every verdict to allow still holds.
    pub(crate) fn widen(&self, ledger: &Ledger) {
        if let Some(facts) = &ledger.facts {
            let policy = Arc::clone(&ledger.policy);
            self.in_force
                .put(Decider::compile(ledger.highest, policy, facts));
        }
    }

    async fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, ApiError> {
        let mut ledger = self.ledger.lock().await;
        self.current()?;
        let Some(facts) = &ledger.facts else {
            return Err(ApiError::unavailable("no facts of the directory"));
        };
        let policy = match check(&request.toml, Some(facts)) {
            Ok(policy) => Arc::new(policy),
            Err(problems) => {
                return Ok(ApplyResponse {
                    problems,
                    ..ApplyResponse::default()
                });
            }
        };
        if request.check_only {
            return Ok(ApplyResponse::default());
        }
        if request.actor.is_empty() || request.actor.len() > ACTOR_BYTES {
            return Err(ApiError::invalid("a policy is applied by somebody"));
        }
        let version = ledger.highest + 1;
        self.record(facts.default_domain(), version, &request)
            .await?;
        let stored = StoredVersion {
            version,
            toml: request.toml,
            applied_at_ms: self.clock.now_unix_ms(),
            actor: request.actor,
        };
        if let Err(error) = self.store.apply(stored).await {
            tracing::error!(%error, version, "a policy could not be kept");
            return Err(ApiError::unavailable("the policy could not be kept"));
        }
        self.in_force
            .put(Decider::compile(version, Arc::clone(&policy), facts));
        ledger.highest = version;
        ledger.policy = policy;
        drop(ledger);
        tracing::info!(version, "policy applied");
        let limit = Duration::from_millis(self.config.confirm_limit_ms);
        let unconfirmed = self.followers.confirmed(version, limit).await;
        Ok(ApplyResponse {
            version,
            problems: Vec::new(),
            unconfirmed,
        })
    }

    /// The log has it before it holds: a policy that nobody can prove is never in force.
    async fn record(
        &self,
        domain: &str,
        version: u64,
        request: &ApplyRequest,
    ) -> Result<(), ApiError> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, request.toml.as_bytes());
        let detail = serde_json::json!({
            "version": version,
            "sha256": hex::encode(digest.as_ref()),
            "actor": request.actor,
        });
        let act = RecordActRequest {
            domain: domain.to_owned(),
            actor: request.actor.clone(),
            act: "policy.apply".to_owned(),
            detail: detail.to_string(),
        };
        let cx = Cx::local().within(RECORD_LIMIT);
        let recorded = tokio::time::timeout(RECORD_LIMIT, self.archive.record_act(&cx, act)).await;
        match recorded {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a policy could not be recorded and is refused");
                Err(ApiError::unavailable("the log cannot record the policy"))
            }
            Err(_) => Err(ApiError::unavailable(
                "the log did not record the policy in time",
            )),
        }
    }
}

#[async_trait]
impl LaneService<DecideItem, DecideAnswer> for Inner {
    async fn submit(
        &self,
        _peer: &LanePeer,
        batch: Vec<DecideItem>,
        answers: &Answers<DecideAnswer>,
    ) -> Result<(), ApiError> {
        let passed = self.failpoints.hit("policy::decide::before").await;
        passed.map_err(|injected| ApiError::unavailable(injected.to_string()))?;
        // One decider for the batch: all verdicts of an item are of one version.
        let decider = self.current()?;
        for item in batch {
            let mut span = self.tracer.served("policy.verdict", &item.traceparent);
            span.set("targets", item.to.len() as u64);
            span.set("policy_version", decider.version());
            let kind = item.kind();
            let verdicts: Vec<Verdict> = item
                .to
                .iter()
                .map(|to| decider.decide(&item.from, to, kind, &item.r#type))
                .inspect(|verdict| self.decisions.count(verdict))
                .collect();
            answers.send(DecideAnswer {
                seq: item.seq,
                verdicts,
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Policy for PolicyService {
    async fn apply(&self, _cx: &Cx, request: ApplyRequest) -> Result<ApplyResponse, ApiError> {
        // In a task of its own: a caller that leaves must not leave it half done.
        let (tx, rx) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn("policy apply", async move {
            // The caller may be gone; then nobody wants the answer.
            let _ = tx.send(inner.apply(request).await);
        });
        rx.await
            .unwrap_or_else(|_| Err(ApiError::unavailable("shutting down")))
    }

    async fn show(&self, _cx: &Cx, request: ShowRequest) -> Result<ShowResponse, ApiError> {
        let failed = |error: StoreError| {
            tracing::error!(%error, "the policy store failed");
            ApiError::unavailable("the policy store failed")
        };
        let highest = self.0.store.highest().await.map_err(failed)?;
        if request.version > highest {
            return Err(ApiError::not_found(format!(
                "no version {} yet",
                request.version
            )));
        }
        let version = if request.version == 0 {
            highest
        } else {
            request.version
        };
        let stored = self.0.store.at(version).await.map_err(failed)?;
        let stored = stored.ok_or_else(|| ApiError::not_found(format!("no version {version}")))?;
        Ok(ShowResponse {
            version: stored.version,
            toml: stored.toml,
            applied_at_ms: stored.applied_at_ms,
            actor: stored.actor,
        })
    }

    async fn explain(
        &self,
        _cx: &Cx,
        request: ExplainRequest,
    ) -> Result<ExplainResponse, ApiError> {
        let normal = |text: &str, which: &str| {
            jid::Jid::new(text)
                .map(|jid| jid.to_string())
                .map_err(|error| ApiError::invalid(format!("{which} is not a JID: {error}")))
        };
        let (from, to) = (
            normal(&request.from, "the first")?,
            normal(&request.to, "the second")?,
        );
        Ok(explain(&*self.0.current()?, &from, &to))
    }

    fn decide(&self, peer: LanePeer) -> Lane<DecideItem, DecideAnswer> {
        Lane::local(
            Arc::clone(&self.0) as Arc<dyn LaneService<DecideItem, DecideAnswer>>,
            peer,
        )
    }

    fn decide_service(&self) -> Result<Arc<dyn LaneService<DecideItem, DecideAnswer>>, ApiError> {
        Ok(Arc::clone(&self.0) as Arc<dyn LaneService<DecideItem, DecideAnswer>>)
    }

    async fn watch(&self, _cx: &Cx) -> Result<Link<WatchDown, WatchUp>, ApiError> {
        let (link, near) = Link::pair();
        self.0
            .tasks
            .spawn("policy watcher", watchers::run(Arc::clone(&self.0), near));
        Ok(link)
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
