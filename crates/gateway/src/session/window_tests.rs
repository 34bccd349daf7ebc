//! The order of the window, with a shard that answers when it is told to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chancery_api::{Answers, ApiError, Decision, Denial, LanePeer, LaneService};
use chancery_xml::{Limits, scan};
use futures_util::FutureExt;
use futures_util::task::{ArcWake, waker};
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
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl ArcWake for Wakes {
    fn wake_by_ref(wakes: &Arc<Self>) {
        wakes.0.fetch_add(1, Ordering::Relaxed);
    }
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
            wakes: Arc::default(),
        }
    }

    /// A message whose verdict comes through the sender.
    fn message(&mut self, count: u64) -> oneshot::Sender<Option<Verdict>> {
        self.message_of(count, 0)
    }

    /// The same with a body of so many bytes.
    fn message_of(&mut self, count: u64, bytes: usize) -> oneshot::Sender<Option<Verdict>> {
        let item = AppendItem {
            count,
            sm_id: Bytes::from_static(&[1; 16]),
            ..AppendItem::default()
        };
        self.stanza_of(item, bytes)
    }

    fn stanza(&mut self, item: AppendItem) -> oneshot::Sender<Option<Verdict>> {
        self.stanza_of(item, 0)
    }

    fn stanza_of(&mut self, item: AppendItem, bytes: usize) -> oneshot::Sender<Option<Verdict>> {
        let (tx, rx) = oneshot::channel::<Option<Verdict>>();
        let ruling = rx.map(|got| got.unwrap().ok_or(Undecided)).boxed();
        let body = "x".repeat(bytes);
        let message = format!("<message to='b@a.test' id='1'><body>{body}</body></message>");
        let element = scan(&Bytes::from(message), &Limits::after_auth()).unwrap();
        self.window.route(true, element, item, ruling);
        tx
    }

    /// Polls; gives how often something has woken since the last look.
    fn woken(&mut self) -> usize {
        self.poll();
        self.wakes.0.swap(0, Ordering::Relaxed)
    }

    fn poll(&mut self) -> Vec<String> {
        let waker = waker(Arc::clone(&self.wakes));
        let shard = Shard {
            lane: &self.lane,
            tracer: &self.tracer,
            failpoints: &self.failpoints,
        };
        let effects = self
            .window
            .poll(&mut Context::from_waker(&waker), shard, self.now, false);
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
async fn nobody_is_woken_by_what_nobody_waits_for() {
    let mut bench = Bench::new();
    let mut count = 0;
    let mut taken = |bench: &mut Bench, bytes: usize| {
        count += 1;
        drop(bench.message_of(count, bytes).send(allow()));
        bench.woken();
        count
    };
    let one = taken(&mut bench, 0);
    bench.answer(one, Outcome::Committed);
    assert_eq!(bench.wakes.0.load(Ordering::Relaxed), 0);
    assert_eq!(bench.poll(), ["ok"], "whoever looks finds it");
    // What has to be said is said at once.
    for outcome in [Outcome::Full, Outcome::Wait, Outcome::Late] {
        let one = taken(&mut bench, 0);
        bench.answer(one, outcome);
        assert_eq!(bench.woken(), 1, "{outcome:?}");
    }
    let large = taken(&mut bench, UNWATCHED_BYTES);
    bench.answer(large, Outcome::Committed);
    assert_eq!(bench.woken(), 1, "it is not kept for nothing");
    // Somebody waits.
    let one = taken(&mut bench, 0);
    bench.window.request(bench.now + Duration::from_secs(1));
    assert!(bench.poll().is_empty());
    bench.answer(one, Outcome::Committed);
    assert_eq!(bench.wakes.0.swap(0, Ordering::Relaxed), 1);
    assert_eq!(bench.poll(), ["ok", "a"]);
    // Many are under way.
    let many: Vec<u64> = (0..=UNWATCHED).map(|_| taken(&mut bench, 0)).collect();
    for one in many {
        bench.answer(one, Outcome::Committed);
    }
    assert_eq!(bench.woken(), UNWATCHED + 1);
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
