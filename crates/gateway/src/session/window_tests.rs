//! The order of the window, with a shard that answers when it is told to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chancery_api::{Answers, ApiError, Decision, Denial, LanePeer, LaneService};
use chancery_xml::{Limits, scan};
use futures_util::FutureExt;
use futures_util::task::noop_waker;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::*;

#[derive(Default)]
struct Log {
    submitted: Mutex<Vec<(u64, AppendItem)>>,
    answers: Mutex<Option<Answers<AppendAnswer>>>,
    refuses: Mutex<bool>,
}

#[async_trait]
impl LaneService<AppendItem, AppendAnswer> for Log {
    async fn submit(
        &self,
        _: &LanePeer,
        batch: Vec<AppendItem>,
        answers: &Answers<AppendAnswer>,
    ) -> Result<(), ApiError> {
        if *self.refuses.lock() {
            return Err(ApiError::unavailable("away"));
        }
        *self.answers.lock() = Some(answers.clone());
        self.submitted
            .lock()
            .extend(batch.into_iter().map(|item| (item.seq, item)));
        Ok(())
    }
}

struct Bench {
    log: Arc<Log>,
    lane: Lane<AppendItem, AppendAnswer>,
    tracer: Tracer,
    failpoints: Failpoints,
    window: Window,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let log = Arc::new(Log::default());
        let peer = LanePeer {
            gateway: "g".into(),
            incarnation: 1,
        };
        let lane = Lane::local(Arc::clone(&log) as Arc<_>, peer);
        Self {
            log,
            lane,
            tracer: Tracer::off(),
            failpoints: Failpoints::off(),
            window: Window::default(),
            now: Instant::now(),
        }
    }

    /// A message whose verdict comes through the sender.
    fn message(&mut self, count: u64) -> oneshot::Sender<Option<Verdict>> {
        self.stanza(AppendItem {
            count,
            sm_id: Bytes::from_static(&[1; 16]),
            ..AppendItem::default()
        })
    }

    fn stanza(&mut self, item: AppendItem) -> oneshot::Sender<Option<Verdict>> {
        let (tx, rx) = oneshot::channel::<Option<Verdict>>();
        let ruling = rx.map(|got| got.unwrap().ok_or(Undecided)).boxed();
        let element = scan(
            &Bytes::from_static(b"<message to='b@a.test' id='1'/>"),
            &Limits::after_auth(),
        )
        .unwrap();
        self.window.route(true, element, item, ruling);
        tx
    }

    fn poll(&mut self) -> Vec<String> {
        let waker = noop_waker();
        let shard = Shard {
            lane: &self.lane,
            tracer: &self.tracer,
            failpoints: &self.failpoints,
        };
        let effects = self
            .window
            .poll(&mut Context::from_waker(&waker), shard, self.now);
        effects
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Write(_) => Some("write".to_owned()),
                Effect::Settled {
                    end: End::Silent, ..
                } => Some("ok".to_owned()),
                Effect::Settled {
                    end: End::Bounce(error),
                    ..
                } => Some(error.condition.as_str().to_owned()),
                Effect::Settled {
                    end: End::Stream(error),
                    ..
                } => Some(format!("end {}", error.condition.as_str())),
                Effect::Settled { end: End::Late, .. } => Some("late".to_owned()),
                Effect::Answer => Some("a".to_owned()),
                Effect::Owed(_) => Some("owed".to_owned()),
                Effect::Ruled { .. } | Effect::Recorded | Effect::Queue(_) => None,
            })
            .collect()
    }

    fn counts(&self) -> Vec<u64> {
        self.log
            .submitted
            .lock()
            .iter()
            .map(|(_, item)| item.count)
            .collect()
    }

    fn answer(&self, count: u64, outcome: Outcome) {
        let seq = self
            .log
            .submitted
            .lock()
            .iter()
            .find(|(_, item)| item.count == count)
            .unwrap()
            .0;
        let answers = self.log.answers.lock().clone().unwrap();
        answers.send(AppendAnswer {
            seq,
            outcome: outcome.into(),
            number: 1,
            ..AppendAnswer::default()
        });
    }
}

fn allow() -> Option<Verdict> {
    Some(Verdict {
        decision: Decision::Allow.into(),
        policy_version: 1,
        ..Verdict::default()
    })
}

fn deny(denial: Denial) -> Option<Verdict> {
    Some(Verdict {
        decision: Decision::Deny.into(),
        denial: denial.into(),
        ..Verdict::default()
    })
}

#[tokio::test]
async fn verdicts_in_any_order_submissions_and_outcomes_in_one() {
    let mut bench = Bench::new();
    let (first, second, third) = (bench.message(1), bench.message(2), bench.message(3));
    third.send(allow()).unwrap();
    second.send(allow()).unwrap();
    assert!(bench.poll().is_empty());
    assert!(bench.counts().is_empty(), "nothing passes the first");
    first.send(allow()).unwrap();
    bench.poll();
    assert_eq!(bench.counts(), [1, 2, 3]);
    bench.answer(2, Outcome::Gone);
    bench.answer(3, Outcome::Committed);
    assert!(bench.poll().is_empty(), "outcomes wait for the first");
    bench.answer(1, Outcome::Full);
    assert_eq!(
        bench.poll(),
        ["service-unavailable", "service-unavailable", "ok"]
    );
    assert!(bench.window.is_empty());
}

#[tokio::test]
async fn a_denied_stanza_is_recorded_before_it_is_bounced() {
    let mut bench = Bench::new();
    bench
        .message(1)
        .send(deny(Denial::PolicyViolation))
        .unwrap();
    assert!(bench.poll().is_empty());
    assert_eq!(
        bench.log.submitted.lock()[0]
            .1
            .verdict
            .clone()
            .unwrap()
            .decision(),
        Decision::Deny
    );
    bench.answer(1, Outcome::Committed);
    assert_eq!(bench.poll(), ["policy-violation"]);
    // an exempt one leaves nothing behind
    let ephemeral = AppendItem {
        ephemeral: true,
        ..AppendItem::default()
    };
    bench
        .stanza(ephemeral)
        .send(deny(Denial::ServiceUnavailable))
        .unwrap();
    assert_eq!(bench.poll(), ["service-unavailable"]);
    assert_eq!(bench.log.submitted.lock().len(), 1);
}

#[tokio::test]
async fn without_a_verdict_nothing_is_submitted() {
    let mut bench = Bench::new();
    bench.message(1).send(None).unwrap();
    assert_eq!(bench.poll(), ["resource-constraint"]);
    assert!(bench.counts().is_empty());
    *bench.log.refuses.lock() = true;
    bench.message(2).send(allow()).unwrap();
    assert_eq!(bench.poll(), ["resource-constraint"]);
}

#[tokio::test]
async fn handlers_do_not_wait_but_count_in_order() {
    let mut bench = Bench::new();
    let verdict = bench.message(1);
    let reply = Handled {
        reply: Some(Bytes::from_static(b"<iq/>")),
        ..Handled::default()
    };
    bench.window.handle(true, async move { reply }.boxed());
    assert_eq!(bench.poll(), ["write"]);
    assert_eq!(bench.window.len(), 2);
    verdict.send(allow()).unwrap();
    bench.poll();
    bench.answer(1, Outcome::Committed);
    assert_eq!(bench.poll(), ["ok", "ok"]);
}

#[tokio::test]
async fn what_runs_alone_waits_for_all_and_stops_reading() {
    let mut bench = Bench::new();
    let verdict = bench.message(1);
    bench.window.alone(
        true,
        async {
            Handled {
                owed: Some(Why::Changed),
                ..Handled::default()
            }
        }
        .boxed(),
    );
    assert!(!bench.window.takes_more());
    assert!(bench.poll().is_empty());
    verdict.send(allow()).unwrap();
    bench.poll();
    bench.answer(1, Outcome::Committed);
    assert_eq!(bench.poll(), ["ok", "owed", "ok"]);
    assert!(bench.window.takes_more());
}

#[tokio::test]
async fn a_request_is_answered_in_its_place_or_in_time() {
    let mut bench = Bench::new();
    let until = bench.now + Duration::from_secs(1);
    let verdict = bench.message(1);
    bench.window.request(until);
    assert_eq!(bench.window.deadline(), Some(until));
    assert!(bench.poll().is_empty());
    bench.now = until;
    assert_eq!(bench.poll(), ["a"]);
    verdict.send(allow()).unwrap();
    bench.poll();
    bench.window.request(until + Duration::from_secs(9));
    bench.answer(1, Outcome::Committed);
    // the late one was answered already and leaves silently, uncounted
    assert_eq!(bench.poll(), ["ok", "ok", "a"]);
}

#[tokio::test]
async fn an_unknown_outcome_ends_the_stream() {
    let mut bench = Bench::new();
    bench
        .failpoints
        .set("gateway::archive::acknowledged", "error")
        .unwrap();
    bench.message(1).send(allow()).unwrap();
    bench.poll();
    bench.answer(1, Outcome::Committed);
    assert_eq!(bench.poll(), ["end resource-constraint"]);
}

#[tokio::test]
async fn the_window_is_bounded() {
    let mut bench = Bench::new();
    let verdicts: Vec<_> = (0..WINDOW_STANZAS as u64)
        .map(|n| bench.message(n))
        .collect();
    assert!(!bench.window.takes_more());
    drop(verdicts);
}

#[tokio::test]
async fn a_followed_stanza_tells_the_shard_and_ends_with_its_outcome() {
    let mut bench = Bench::new();
    let (clock, ids) = (
        chancery_runtime::Clock::manual(0),
        chancery_runtime::Ids::seeded(1),
    );
    let (tracer, mut spans) = Tracer::channel(1.0, clock, ids, &chancery_runtime::Metrics::new());
    bench.tracer = tracer.clone();
    bench.message(1).send(allow()).unwrap();
    bench.window.follow(tracer.root(trace::STANZA));
    bench.message(2).send(allow()).unwrap();
    bench.poll();
    let submitted: Vec<String> = bench
        .log
        .submitted
        .lock()
        .iter()
        .map(|(_, item)| item.traceparent.clone())
        .collect();
    assert_eq!(submitted[1], "", "only the first is followed");
    assert!(spans.ready().is_none(), "nothing is over yet");
    bench.answer(1, Outcome::Gone);
    bench.answer(2, Outcome::Committed);
    bench.poll();
    let (append, stanza) = (spans.ready().unwrap(), spans.ready().unwrap());
    assert_eq!((append.name, stanza.name), (trace::APPEND, trace::STANZA));
    assert_eq!(append.context.traceparent(), submitted[0]);
    assert_eq!(append.parent, Some(stanza.context.span_id));
    let outcome = ("outcome", chancery_runtime::trace::Value::Word("bounced"));
    assert_eq!(stanza.attributes, [outcome]);
    assert!(spans.ready().is_none());
}
