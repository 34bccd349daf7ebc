//! Roster pushes on their way to the owner's sessions, through the archive's append lane, in the
//! order of versions. One worker submits, one reads the answers. A push that is lost is counted:
//! clients recover through versions (RFC 6121 §2.6).

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use chancery_api::archive::{AppendAnswer, AppendItem, Outcome};
use chancery_api::roster::Item;
use chancery_api::{Answer, Decision, Kind, Lane, Verdict};
use chancery_runtime::metrics::Counter;
use chancery_runtime::{Ids, Metrics, Tasks};

use crate::items;

/// Pushes that wait for the lane; a further one is lost.
const QUEUE_LIMIT: usize = 1_024;
/// Pushes submitted and not yet answered.
const UNANSWERED_LIMIT: usize = 256;
/// How long a push waits for room in the lane, and then for its answer.
const LANE_LIMIT: Duration = Duration::from_secs(2);

/// Where pushes are handed in.
pub struct Pushes {
    queue: mpsc::Sender<AppendItem>,
    ids: Ids,
    lost: Counter,
}

impl Pushes {
    /// Starts the workers.
    pub fn start(
        lane: Lane<AppendItem, AppendAnswer>,
        ids: Ids,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Self {
        let lost = metrics.counter(
            "chancery_roster_pushes_lost",
            "roster pushes that reached no session because the log was out of reach",
        );
        let (queue, pushes) = mpsc::channel(QUEUE_LIMIT);
        let (unanswered, answers) = mpsc::channel(UNANSWERED_LIMIT);
        tasks.spawn(
            "roster-push",
            submit(lane, pushes, unanswered, lost.clone(), tasks.clone()),
        );
        tasks.spawn("roster-push-answers", settle(answers, lost.clone()));
        Self { queue, ids, lost }
    }

    /// Hands in a push. Never waits: it is called while the owner's order is held.
    pub fn push(&self, owner: &str, version: &str, item: &Item) {
        let id = format!("push-{}", self.ids.token());
        let payload = items::push(owner, &id, version, item);
        let verdict = Verdict {
            decision: Decision::Allow.into(),
            ..Verdict::default()
        };
        let push = AppendItem {
            from: owner.to_owned(),
            to: owner.to_owned(),
            kind: Kind::Iq.into(),
            r#type: "set".to_owned(),
            id,
            payload: payload.into(),
            verdict: Some(verdict),
            ephemeral: true,
            interested_only: true,
            ..AppendItem::default()
        };
        if self.queue.try_send(push).is_err() {
            self.lost.inc();
            tracing::warn!("a roster push is lost: too many wait");
        }
    }
}

async fn submit(
    lane: Lane<AppendItem, AppendAnswer>,
    mut pushes: mpsc::Receiver<AppendItem>,
    unanswered: mpsc::Sender<Answer<AppendAnswer>>,
    lost: Counter,
    tasks: Tasks,
) {
    loop {
        let push = tokio::select! {
            biased;
            push = pushes.recv() => push,
            () = tasks.cancelled() => return,
        };
        let Some(push) = push else { return };
        match timeout(LANE_LIMIT, lane.submit(push)).await {
            Ok(Ok(answer)) => {
                // The reader of answers ends after this task only.
                let _ = unanswered.send(answer).await;
            }
            Ok(Err(error)) => {
                lost.inc();
                tracing::warn!(%error, "a roster push is lost");
            }
            Err(_) => {
                lost.inc();
                tracing::warn!("a roster push is lost: no room in the lane");
            }
        }
    }
}

async fn settle(mut answers: mpsc::Receiver<Answer<AppendAnswer>>, lost: Counter) {
    while let Some(answer) = answers.recv().await {
        match timeout(LANE_LIMIT, answer).await {
            // Gone: none of the owner's sessions asked for the roster.
            Ok(Ok(answer)) if matches!(answer.outcome(), Outcome::Committed | Outcome::Gone) => {}
            Ok(Ok(answer)) => {
                lost.inc();
                tracing::warn!(outcome = ?answer.outcome(), "a roster push was not taken");
            }
            Ok(Err(error)) => {
                lost.inc();
                tracing::warn!(%error, "a roster push is lost");
            }
            Err(_) => {
                lost.inc();
                tracing::warn!("a roster push was not answered");
            }
        }
    }
}
