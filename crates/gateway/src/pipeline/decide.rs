//! Asking policy: one question, many targets, asked once more before it is given up. Fails closed.
//!
//! There is no default verdict here, and no cache: a verdict belongs to one stanza.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chancery_api::policy::{DecideAnswer, DecideItem};
use chancery_api::{Decision, Kind, Lane, Verdict};
use chancery_runtime::trace::TraceContext;
use chancery_runtime::{Failpoints, Tracer};
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

use crate::trace;

/// A question is answered by then, asked again included.
pub(crate) const DECIDE_LIMIT: Duration = Duration::from_secs(2);
/// The first time of asking has this long.
const FIRST_LIMIT: Duration = Duration::from_millis(1200);
/// How often a question is asked.
const TIMES: u32 = 2;
/// Pause before asking again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Policy that was silent for so long is unreachable: its heartbeat comes every second.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// No verdict: not a denial, and never a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("policy gave no verdict")]
pub(crate) struct Undecided;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) kind: Kind,
    /// The stanza's type attribute, empty when absent.
    pub(crate) type_: String,
    /// Where it belongs, when it is followed.
    pub(crate) trace: Option<TraceContext>,
}

/// What hearing of policy means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The version is newer than the one known.
    pub(crate) newer: bool,
    /// It was out of reach before.
    pub(crate) again: bool,
}

/// The version in force at this gateway, and the lane on which policy is asked.
pub(crate) struct Policy {
    lane: Lane<DecideItem, DecideAnswer>,
    tracer: Tracer,
    failpoints: Failpoints,
    /// Held for reading from the look at the version to the write that relies on it, so that a
    /// confirmed version has no older write behind it.
    version: RwLock<u64>,
    /// When policy was last heard of, in milliseconds after `started`, plus one; 0 = out of reach.
    heard_at: AtomicU64,
    started: Instant,
}

impl Policy {
    pub(crate) fn new(
        lane: Lane<DecideItem, DecideAnswer>,
        tracer: Tracer,
        failpoints: Failpoints,
    ) -> Self {
        Self {
            lane,
            tracer,
            failpoints,
            version: RwLock::new(0),
            heard_at: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// The version in force; whoever holds the guard may write what was decided under it.
    pub(crate) fn in_force(&self) -> RwLockReadGuard<'_, u64> {
        self.version.read()
    }

    /// Policy was heard of at `now` with this version.
    pub(crate) fn heard(&self, version: u64, now: Instant) -> Heard {
        let again = !self.is_followed(now);
        self.heard_at
            .store(self.since_start(now), Ordering::Release);
        let mut current = self.version.write();
        let newer = version > *current;
        *current = version.max(*current);
        Heard { newer, again }
    }

    /// Forgets the lease: the follower's stream is lost.
    pub(crate) fn lost(&self) {
        self.heard_at.store(0, Ordering::Release);
    }

    /// Within its lease? If not, there may be a newer version than the one known here: nothing
    /// that was decided may be written.
    pub(crate) fn is_followed(&self, now: Instant) -> bool {
        let at = self.heard_at.load(Ordering::Acquire);
        let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        at != 0 && self.since_start(now).saturating_sub(at) <= lease
    }

    fn since_start(&self, at: Instant) -> u64 {
        let millis = at.saturating_duration_since(self.started).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1
    }

    /// Reachable?
    pub(crate) fn is_up(&self) -> bool {
        self.lane.is_up()
    }

    /// A verdict for each target, in order.
    pub(crate) async fn decide(&self, question: &Question) -> Result<Vec<Verdict>, Undecided> {
        if question.to.is_empty() {
            return Ok(Vec::new());
        }
        let span = self.tracer.calls(trace::DECIDE, question.trace);
        let until = Instant::now() + DECIDE_LIMIT;
        let mut asked = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // What is out of reach now may be back in time.
            if self.lane.is_up() && self.is_followed(Instant::now()) {
                asked += 1;
                let limit = if asked == 1 {
                    left.min(FIRST_LIMIT)
                } else {
                    left
                };
                if let Ok(verdicts) = self.ask(question, limit, span.traceparent()).await {
                    return Ok(verdicts);
                }
            }
            if asked == TIMES || Instant::now() + ASK_AGAIN >= until {
                return Err(Undecided);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The verdict for the only target.
    pub(crate) async fn decide_one(&self, question: &Question) -> Result<Verdict, Undecided> {
        self.decide(question).await?.pop().ok_or(Undecided)
    }

    async fn ask(
        &self,
        question: &Question,
        limit: Duration,
        traceparent: String,
    ) -> Result<Vec<Verdict>, Undecided> {
        let item = DecideItem {
            from: question.from.clone(),
            to: question.to.clone(),
            kind: question.kind.into(),
            r#type: question.type_.clone(),
            traceparent,
            ..DecideItem::default()
        };
        let answer = tokio::time::timeout(limit, self.lane.call(item)).await;
        let Ok(Ok(answer)) = answer else {
            return Err(Undecided);
        };
        if self
            .failpoints
            .hit("gateway::policy::decided")
            .await
            .is_err()
        {
            return Err(Undecided);
        }
        // A short reply, or a code that is not known here, is no verdict.
        let known = |verdict: &Verdict| {
            matches!(
                Decision::try_from(verdict.decision),
                Ok(Decision::Allow | Decision::Deny)
            )
        };
        if answer.verdicts.len() != question.to.len() || !answer.verdicts.iter().all(known) {
            return Err(Undecided);
        }
        Ok(answer.verdicts)
    }
}

/// Does this verdict let the stanza pass?
pub(crate) fn allows(verdict: &Verdict) -> bool {
    verdict.decision() == Decision::Allow
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use async_trait::async_trait;
    use chancery_api::{Answers, ApiError, LanePeer, LaneService};

    use super::*;

    /// Answers every target with one decision; or too few.
    struct Fixed(i32, usize);

    #[async_trait]
    impl LaneService<DecideItem, DecideAnswer> for Fixed {
        async fn submit(
            &self,
            _: &LanePeer,
            batch: Vec<DecideItem>,
            answers: &Answers<DecideAnswer>,
        ) -> Result<(), ApiError> {
            for item in batch {
                let verdict = Verdict {
                    decision: self.0,
                    policy_version: 1,
                    ..Verdict::default()
                };
                let count = item.to.len() - self.1;
                answers.send(DecideAnswer {
                    seq: item.seq,
                    verdicts: vec![verdict; count],
                });
            }
            Ok(())
        }
    }

    fn policy(decision: i32, missing: usize) -> Policy {
        let peer = LanePeer {
            gateway: "g".into(),
            incarnation: 1,
        };
        Policy::new(
            Lane::local(Arc::new(Fixed(decision, missing)), peer),
            Tracer::off(),
            Failpoints::off(),
        )
    }

    fn question() -> Question {
        Question {
            from: "a@x".into(),
            to: vec!["b@x".into(), "c@x".into()],
            kind: Kind::Message,
            type_: String::new(),
            trace: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_whole_and_known_answers_count() {
        for (decision, missing, expected) in [
            (1, 0, true),
            (2, 0, true),
            (0, 0, false),
            (9, 0, false),
            (1, 1, false),
        ] {
            let policy = policy(decision, missing);
            policy.heard(1, Instant::now());
            assert_eq!(
                policy.decide(&question()).await.is_ok(),
                expected,
                "{decision} {missing}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lease_there_is_no_verdict() {
        let policy = policy(1, 0);
        assert!(policy.decide(&question()).await.is_err());
        policy.heard(1, Instant::now());
        assert!(policy.decide(&question()).await.is_ok());
        tokio::time::advance(LEASE + Duration::from_millis(1)).await;
        let before = Instant::now();
        assert!(policy.decide(&question()).await.is_err());
        assert!(before.elapsed() <= DECIDE_LIMIT);
    }

    #[tokio::test]
    async fn versions_only_rise() {
        let policy = policy(1, 0);
        assert_eq!(
            policy.heard(4, Instant::now()),
            Heard {
                newer: true,
                again: true
            }
        );
        assert_eq!(
            policy.heard(3, Instant::now()),
            Heard {
                newer: false,
                again: false
            }
        );
        policy.lost();
        assert_eq!(
            policy.heard(4, Instant::now()),
            Heard {
                newer: false,
                again: true
            }
        );
        assert_eq!(*policy.in_force(), 4);
    }
}
