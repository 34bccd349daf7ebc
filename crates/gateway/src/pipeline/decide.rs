//! Asking policy: one question, many targets, asked once more before it is given up. Fails closed.
//!
//! There is no default verdict here, and no cache: a verdict belongs to one stanza.

use std::time::Duration;

use chancery_api::policy::{DecideAnswer, DecideItem};
use chancery_api::{Decision, Kind, Lane, Verdict};
use chancery_runtime::Failpoints;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::time::Instant;

/// A question is answered by then, asked again included.
pub(crate) const DECIDE_LIMIT: Duration = Duration::from_secs(2);
/// The first time of asking has this long.
const FIRST_LIMIT: Duration = Duration::from_millis(1200);
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
}

/// The version in force at this gateway, and the lane on which policy is asked.
pub(crate) struct Policy {
    lane: Lane<DecideItem, DecideAnswer>,
    failpoints: Failpoints,
    /// Held for reading from the look at the version to the write that relies on it, so that a
    /// confirmed version has no older write behind it.
    version: RwLock<u64>,
    heard_at: Mutex<Option<Instant>>,
}

impl Policy {
    pub(crate) fn new(lane: Lane<DecideItem, DecideAnswer>, failpoints: Failpoints) -> Self {
        Self { lane, failpoints, version: RwLock::new(0), heard_at: Mutex::new(None) }
    }

    /// The version in force; whoever holds the guard may write what was decided under it.
    pub(crate) fn in_force(&self) -> RwLockReadGuard<'_, u64> {
        self.version.read()
    }

    /// Policy was heard of at `now` with this version. True when it is newer.
    pub(crate) fn heard(&self, version: u64, now: Instant) -> bool {
        *self.heard_at.lock() = Some(now);
        let mut current = self.version.write();
        let newer = version > *current;
        *current = version.max(*current);
        newer
    }

    /// Forgets the lease: the follower's stream is lost.
    pub(crate) fn lost(&self) {
        *self.heard_at.lock() = None;
    }

    /// Within its lease?
    pub(crate) fn is_followed(&self, now: Instant) -> bool {
        self.heard_at.lock().is_some_and(|at| now.saturating_duration_since(at) <= LEASE)
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
        let until = Instant::now() + DECIDE_LIMIT;
        if let Ok(verdicts) = self.ask(question, FIRST_LIMIT).await {
            return Ok(verdicts);
        }
        tokio::time::sleep(ASK_AGAIN).await;
        self.ask(question, until.saturating_duration_since(Instant::now())).await
    }

    /// The verdict for the only target.
    pub(crate) async fn decide_one(&self, question: &Question) -> Result<Verdict, Undecided> {
        self.decide(question).await?.pop().ok_or(Undecided)
    }

    async fn ask(&self, question: &Question, limit: Duration) -> Result<Vec<Verdict>, Undecided> {
        if !self.is_followed(Instant::now()) {
            return Err(Undecided);
        }
        let item = DecideItem {
            from: question.from.clone(),
            to: question.to.clone(),
            kind: question.kind.into(),
            r#type: question.type_.clone(),
            ..DecideItem::default()
        };
        let answer = tokio::time::timeout(limit, self.lane.call(item)).await;
        let Ok(Ok(answer)) = answer else { return Err(Undecided) };
        if self.failpoints.hit("gateway::policy::decided").await.is_err() {
            return Err(Undecided);
        }
        // A short reply, or a code that is not known here, is no verdict.
        let known = |verdict: &Verdict| {
            matches!(Decision::try_from(verdict.decision), Ok(Decision::Allow | Decision::Deny))
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
                let verdict = Verdict { decision: self.0, policy_version: 1, ..Verdict::default() };
                let count = item.to.len() - self.1;
                answers.send(DecideAnswer { seq: item.seq, verdicts: vec![verdict; count] });
            }
            Ok(())
        }
    }

    fn policy(decision: i32, missing: usize) -> Policy {
        let peer = LanePeer { gateway: "g".into(), incarnation: 1 };
        Policy::new(Lane::local(Arc::new(Fixed(decision, missing)), peer), Failpoints::off())
    }

    fn question() -> Question {
        Question {
            from: "a@x".into(),
            to: vec!["b@x".into(), "c@x".into()],
            kind: Kind::Message,
            type_: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_whole_and_known_answers_count() {
        for (decision, missing, expected) in [(1, 0, true), (2, 0, true), (0, 0, false), (9, 0, false), (1, 1, false)] {
            let policy = policy(decision, missing);
            policy.heard(1, Instant::now());
            assert_eq!(policy.decide(&question()).await.is_ok(), expected, "{decision} {missing}");
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
        assert!(policy.heard(4, Instant::now()));
        assert!(!policy.heard(3, Instant::now()));
        assert_eq!(*policy.in_force(), 4);
    }
}
