//! Roster pushes and stanzas of the handshake on their way to sessions, through the archive's append
//! lane, in the order in which they were handed in. One worker submits, one reads the answers. While
//! the lane is away they wait, to a limit. What is lost is counted: each push has the next version, so
//! that gateways see where one is missing and clients ask for all (RFC 6121 §2.6); a request waits in
//! the store until it is answered.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use chancery_api::archive::{AppendAnswer, AppendItem, Audience, Outcome};
use chancery_api::{Answer, Decision, Kind, Lane, LaneError, Verdict};
use chancery_runtime::metrics::Counter;
use chancery_runtime::{Ids, Metrics, Tasks};
use chancery_xmpp::subscription::Act;

use crate::items;
use crate::store::Pushed;

/// Pushes that wait for the lane; a further one is lost...
const QUEUE_LIMIT: usize = 1_024;
/// ...and one that has waited so long for a lane that is away.
const AWAY_LIMIT: Duration = Duration::from_secs(30);
/// It is tried again after this: a log that is back waits as long for gateways to attach their sessions.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether the lane is back.
const LOOK: Duration = Duration::from_millis(100);
/// Pushes submitted and not yet answered.
const UNANSWERED_LIMIT: usize = 256;
/// How long a push waits for room in the lane, and then for its answer.
const LANE_LIMIT: Duration = Duration::from_secs(2);

/// A stanza of the handshake for somebody.
pub struct Said {
    pub act: Act,
    pub from: String,
    pub to: String,
    pub stanza: Vec<u8>,
    pub policy_version: u64,
}

/// A push, and how long it may wait for a lane that is away.
type Waiting = (AppendItem, Instant);

/// Where pushes are handed in.
pub struct Pushes {
    queue: mpsc::Sender<Waiting>,
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
            "roster pushes and subscription stanzas that reached no session because the log was out of reach",
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
    pub fn push(&self, pushed: &Pushed) {
        self.hand_in(self.item(pushed));
    }

    /// Hands in a push as soon as there is room.
    pub async fn push_later(&self, pushed: &Pushed) {
        let waiting = waiting(self.item(pushed));
        // The reader of the queue ends with the service only.
        let _ = self.queue.send(waiting).await;
    }

    fn item(&self, pushed: &Pushed) -> AppendItem {
        let Pushed {
            owner,
            version,
            item,
        } = pushed;
        let id = format!("push-{}", self.ids.token());
        let payload = items::push(owner, &id, &version.to_string(), item);
        AppendItem {
            from: owner.clone(),
            to: owner.clone(),
            kind: Kind::Iq.into(),
            r#type: "set".to_owned(),
            id,
            payload: payload.into(),
            audience: Audience::Roster.into(),
            ..AppendItem::default()
        }
    }

    /// Hands in a push of a block list, or with no payload the word that somebody's list has changed
    /// whom `owner` reaches. Never waits.
    pub fn blocks(&self, owner: &str, payload: &str) {
        let id = format!("push-{}", self.ids.token());
        self.hand_in(AppendItem {
            from: owner.to_owned(),
            to: owner.to_owned(),
            kind: Kind::Iq.into(),
            r#type: "set".to_owned(),
            payload: match payload.is_empty() {
                true => String::new(),
                false => items::iq(owner, &id, payload),
            }
            .into(),
            id,
            audience: Audience::Blocks.into(),
            ..AppendItem::default()
        });
    }

    /// Hands in a stanza of the handshake, allowed by this version of the policy. Never waits.
    pub fn presence(&self, said: Said) {
        self.hand_in(AppendItem {
            from: said.from,
            to: said.to,
            kind: Kind::Presence.into(),
            r#type: said.act.as_str().to_owned(),
            payload: said.stanza.into(),
            verdict: Some(Verdict {
                policy_version: said.policy_version,
                ..allow()
            }),
            ..AppendItem::default()
        });
    }

    fn hand_in(&self, item: AppendItem) {
        if self.queue.try_send(waiting(item)).is_err() {
            self.lost.inc();
            tracing::warn!("a roster push is lost: too many wait");
        }
    }
}

fn waiting(item: AppendItem) -> Waiting {
    let item = AppendItem {
        verdict: item.verdict.or_else(|| Some(allow())),
        ephemeral: true,
        ..item
    };
    (item, Instant::now() + AWAY_LIMIT)
}

fn allow() -> Verdict {
    Verdict {
        decision: Decision::Allow.into(),
        ..Verdict::default()
    }
}

async fn submit(
    lane: Lane<AppendItem, AppendAnswer>,
    mut pushes: mpsc::Receiver<Waiting>,
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
        let Some((push, until)) = push else { return };
        let submitted = tokio::select! {
            submitted = submit_one(&lane, push, until) => submitted,
            () = tasks.cancelled() => return,
        };
        match submitted {
            Ok(answer) => {
                // The reader of answers ends after this task only.
                let _ = unanswered.send(answer).await;
            }
            Err(why) => {
                lost.inc();
                tracing::warn!(why, "a roster push is lost");
            }
        }
    }
}

/// What was not submitted is nowhere: it is tried again while it may wait.
async fn submit_one(
    lane: &Lane<AppendItem, AppendAnswer>,
    push: AppendItem,
    until: Instant,
) -> Result<Answer<AppendAnswer>, &'static str> {
    loop {
        match timeout(LANE_LIMIT, lane.submit(push.clone())).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(LaneError::NotSubmitted)) if Instant::now() < until => back(lane, until).await,
            Ok(Err(_)) => return Err("the lane is away"),
            Err(_) => return Err("no room in the lane"),
        }
    }
}

/// Waits for a lane that is away, and then for those behind it.
async fn back(lane: &Lane<AppendItem, AppendAnswer>, until: Instant) {
    while !lane.is_up() && Instant::now() < until {
        sleep(LOOK).await;
    }
    sleep(AGAIN).await;
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
