//! The service against a directory and an archive of our own: fail closed, versions, apply, watch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chancery_api::channel::{Served, pipe};
use chancery_api::directory as dir;
use chancery_api::policy::{RemotePolicy, WatchConfirm, WatchHello, watch_down};
use chancery_api::testing::Log;
use chancery_api::{Calls, Code, Decision, Kind, LaneError, Role};

use super::*;
use crate::facades::Facade;
use crate::facts::tests::{account, group, part};
use crate::store::MemoryPolicyStore;

struct House {
    directory: Arc<Facade>,
    log: Arc<Log>,
    store: Arc<MemoryPolicyStore>,
    clock: Clock,
    failpoints: Failpoints,
    metrics: Metrics,
    tasks: Tasks,
    link: Option<Link<dir::WatchUp, dir::WatchDown>>,
    policy: PolicyService,
}

const RITA: &str = "rita@example.org";
const TOM: &str = "tom@example.org";
const WALL: &str =
    "[[wall]]\nname = \"w\"\nbetween = [\"research\", \"trading\"]\ntext = \"rule 12.3\"\n";

impl House {
    async fn start_on(store: Arc<MemoryPolicyStore>) -> Self {
        let directory = Arc::new(Facade::default());
        let log = Arc::new(Log::default());
        let (clock, failpoints) = (Clock::manual(1_000), Failpoints::off());
        let (metrics, tasks) = (Metrics::new(), Tasks::new());
        let policy = PolicyService::start(Parts {
            name: "one".into(),
            config: Config::default(),
            store: Arc::clone(&store) as Arc<dyn PolicyStore>,
            directory: Arc::clone(&directory) as Arc<dyn Directory>,
            archive: Arc::clone(&log) as Arc<dyn Archive>,
            clock: clock.clone(),
            metrics: metrics.clone(),
            tracer: chancery_runtime::Tracer::off(),
            failpoints: failpoints.clone(),
            tasks: tasks.clone(),
        })
        .await
        .unwrap();
        Self {
            directory,
            log,
            store,
            clock,
            failpoints,
            metrics,
            tasks,
            link: None,
            policy,
        }
    }

    async fn start() -> Self {
        Self::start_on(Arc::default()).await
    }

    /// Takes the link and checks its hello.
    async fn accept(&mut self, since: u64) {
        self.directory.opened.notified().await;
        let mut link = self.directory.link.lock().take().unwrap();
        let hello = dir::WatchHello {
            follower: "policy-one".into(),
            since,
        };
        assert_eq!(
            link.recv().await.unwrap().item,
            Some(dir::watch_down::Item::Hello(hello))
        );
        self.link = Some(link);
    }

    /// Says something complete and waits until it is confirmed.
    async fn say(&mut self, part: dir::WatchUp) {
        let version = part.version;
        let link = self.link.as_mut().unwrap();
        link.send(part).await.unwrap();
        let confirm = dir::WatchConfirm { version };
        assert_eq!(
            link.recv().await.unwrap().item,
            Some(dir::watch_down::Item::Confirm(confirm))
        );
    }

    async fn ready() -> Self {
        let mut house = Self::start().await;
        house.accept(0).await;
        house.say(part()).await;
        house
    }

    fn lane(&self) -> Lane<DecideItem, DecideAnswer> {
        self.policy.decide(peer())
    }

    async fn apply(&self, toml: &str) -> Result<ApplyResponse, ApiError> {
        let (toml, actor) = (toml.to_owned(), "officer".to_owned());
        self.policy
            .apply(
                &Cx::local(),
                ApplyRequest {
                    toml,
                    check_only: false,
                    actor,
                },
            )
            .await
    }
}

fn peer() -> LanePeer {
    LanePeer {
        gateway: "gw1".into(),
        incarnation: 1,
    }
}

fn item(from: &str, to: &[&str]) -> DecideItem {
    DecideItem {
        from: from.into(),
        to: to.iter().map(ToString::to_string).collect(),
        kind: Kind::Message.into(),
        ..DecideItem::default()
    }
}

fn delta(version: u64) -> dir::WatchUp {
    dir::WatchUp {
        version,
        complete: true,
        ..dir::WatchUp::default()
    }
}

#[tokio::test(start_paused = true)]
async fn no_verdict_before_a_complete_snapshot() {
    let mut house = House::start().await;
    let lane = house.lane();
    assert_eq!(
        lane.call(item(RITA, &[TOM])).await,
        Err(LaneError::NotSubmitted)
    );
    house.accept(0).await;
    let mut half = part();
    half.complete = false;
    house.link.as_ref().unwrap().send(half).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        lane.call(item(RITA, &[TOM])).await,
        Err(LaneError::NotSubmitted)
    );
    assert_eq!(house.apply(WALL).await.unwrap_err().code, Code::Unavailable);
    assert!(house.policy.version_in_force().is_none());
    let rest = dir::WatchUp {
        snapshot: true,
        ..delta(7)
    };
    house.say(rest).await;
    let answer = lane
        .call(item(RITA, &[TOM, "x@example.org", "y@else.example"]))
        .await
        .unwrap();
    let decisions: Vec<_> = answer.verdicts.iter().map(Verdict::decision).collect();
    assert_eq!(decisions, [Decision::Allow, Decision::Deny, Decision::Deny]);
    assert_eq!(
        answer.verdicts[0].policy_version, 2,
        "1 is the built-in policy, 2 the first facts"
    );
    let text = house.metrics.render();
    for line in [
        "chancery_policy_decisions_total{verdict=\"allow\"} 1",
        "chancery_policy_decisions_total{verdict=\"service-unavailable\"} 1",
        "chancery_policy_decisions_total{verdict=\"remote-server-not-found\"} 1",
        "chancery_policy_version_number 2",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn verdicts_end_with_the_lease_and_return_with_the_directory() {
    let mut house = House::ready().await;
    let lane = house.lane();
    house.directory.away.store(true, Ordering::SeqCst);
    house.link = None;
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.clock.advance(Duration::from_secs(299));
    assert!(
        lane.call(item(RITA, &[TOM])).await.is_ok(),
        "within the lease"
    );
    house.clock.advance(Duration::from_secs(2));
    assert_eq!(
        lane.call(item(RITA, &[TOM])).await,
        Err(LaneError::NotSubmitted)
    );
    house.directory.away.store(false, Ordering::SeqCst);
    house.accept(7).await;
    house.say(delta(7)).await;
    let answer = lane.call(item(RITA, &[TOM])).await.unwrap();
    assert_eq!(
        answer.verdicts[0].policy_version, 2,
        "nothing changed meanwhile"
    );
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_says_nothing_is_lost_and_a_link_alone_renews_nothing() {
    let mut house = House::ready().await;
    let start = tokio::time::Instant::now();
    house.accept(7).await;
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "the first link was silent"
    );
    house.clock.advance(Duration::from_secs(301));
    assert!(house.policy.version_in_force().is_none());
    house.say(delta(7)).await;
    assert_eq!(house.policy.version_in_force(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn only_what_alters_a_verdict_makes_a_version() {
    let mut house = House::ready().await;
    house.apply(WALL).await.unwrap();
    assert_eq!(house.policy.version_in_force(), Some(3));
    let chemists = group("lab.example", "chemists", &[]);
    house
        .say(dir::WatchUp {
            groups: vec![chemists],
            ..delta(8)
        })
        .await;
    assert_eq!(house.policy.version_in_force(), Some(3));
    let lane = house.lane();
    let carl = item("carl@example.org", &[RITA]);
    assert_eq!(
        lane.call(carl.clone()).await.unwrap().verdicts[0].decision(),
        Decision::Allow
    );
    let trading = group("example.org", "trading", &[TOM, "carl@example.org"]);
    house
        .say(dir::WatchUp {
            groups: vec![trading],
            ..delta(9)
        })
        .await;
    let verdict = lane.call(carl).await.unwrap().verdicts.remove(0);
    assert_eq!(
        (verdict.rule_id.as_str(), verdict.policy_version),
        ("wall:w", 4)
    );
    let new = account("new@example.org", dir::AccountState::Active);
    house
        .say(dir::WatchUp {
            accounts: vec![new],
            ..delta(10)
        })
        .await;
    let verdict = lane
        .call(item("new@example.org", &[RITA]))
        .await
        .unwrap()
        .verdicts
        .remove(0);
    assert_eq!(
        (verdict.decision(), verdict.policy_version),
        (Decision::Allow, 4),
        "widened only"
    );
    let gone = account("carl@example.org", dir::AccountState::Deleted);
    house
        .say(dir::WatchUp {
            accounts: vec![gone],
            ..delta(10)
        })
        .await;
    assert_eq!(house.policy.version_in_force(), Some(5));
    let show = async |version| {
        let shown = house
            .policy
            .show(&Cx::local(), ShowRequest { version })
            .await;
        shown.map(|shown| shown.version).map_err(|error| error.code)
    };
    assert_eq!(show(0).await, Ok(3));
    assert_eq!(
        show(5).await,
        Ok(3),
        "what was in force at 5 was applied at 3"
    );
    assert_eq!(show(2).await, Ok(1));
    assert_eq!(show(6).await, Err(Code::NotFound));
}

#[tokio::test(start_paused = true)]
async fn versions_grow_across_restarts_and_the_policy_stays() {
    let house = House::ready().await;
    assert_eq!(house.apply(WALL).await.unwrap().version, 3);
    assert_eq!(house.tasks.drain(Duration::from_secs(1)).await, 0);
    let mut again = House::start_on(Arc::clone(&house.store)).await;
    again.accept(0).await;
    again.say(part()).await;
    let answer = again.lane().call(item(RITA, &[TOM])).await.unwrap();
    assert_eq!(answer.verdicts[0].rule_id, "wall:w");
    assert_eq!(answer.verdicts[0].policy_version, 4);
}

#[tokio::test(start_paused = true)]
async fn apply_checks_records_and_waits_for_the_gateways() {
    let house = House::ready().await;
    let bad = house
        .apply("[[wall]]\nname = \"w\"\nbetween = [\"reserch\", \"trading\"]")
        .await
        .unwrap();
    assert_eq!((bad.version, bad.problems.len()), (0, 1));
    let check = ApplyRequest {
        toml: WALL.into(),
        check_only: true,
        actor: String::new(),
    };
    assert_eq!(
        house.policy.apply(&Cx::local(), check).await.unwrap(),
        ApplyResponse::default()
    );
    house.log.away.store(true, Ordering::SeqCst);
    assert_eq!(house.apply(WALL).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(
        house.policy.version_in_force(),
        Some(2),
        "unrecorded, hence not in force"
    );
    assert_eq!(house.store.highest().await.unwrap(), 2);
    house.log.away.store(false, Ordering::SeqCst);

    // One gateway confirms what it hears, the other never does.
    let confirmed = Arc::new(AtomicU64::new(0));
    let (seen, mut good) = (Arc::clone(&confirmed), watcher(&house.policy, "gw1").await);
    house.tasks.spawn("gw1", async move {
        while let Some(up) = good.recv().await {
            tokio::time::sleep(Duration::from_millis(300)).await;
            seen.store(up.version, Ordering::SeqCst);
            let confirm = watch_down::Item::Confirm(WatchConfirm {
                version: up.version,
            });
            good.send(WatchDown {
                item: Some(confirm),
            })
            .await
            .unwrap();
        }
    });
    let applied = house.apply(WALL).await.unwrap();
    assert_eq!((applied.version, confirmed.load(Ordering::SeqCst)), (3, 3));
    assert!(applied.unconfirmed.is_empty() && applied.problems.is_empty());
    let _late = watcher(&house.policy, "gw2").await;
    let applied = house.apply("").await.unwrap();
    assert_eq!(
        (applied.version, applied.unconfirmed),
        (4, vec!["gw2".to_owned()])
    );

    let acts = house.log.acts.lock();
    let act = &acts[0];
    assert_eq!(
        (act.act.as_str(), act.domain.as_str()),
        ("policy.apply", "example.org")
    );
    let detail: serde_json::Value = serde_json::from_str(&act.detail).unwrap();
    assert_eq!(
        (detail["version"].as_u64(), detail["actor"].as_str()),
        (Some(3), Some("officer"))
    );
    assert_eq!(detail["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(acts.len(), 2);
}

async fn watcher(policy: &PolicyService, name: &str) -> Link<WatchDown, WatchUp> {
    let mut link = policy.watch(&Cx::local()).await.unwrap();
    let hello = watch_down::Item::Hello(WatchHello {
        gateway: name.into(),
    });
    link.send(WatchDown { item: Some(hello) }).await.unwrap();
    // It is joined once it hears of the version in force.
    assert!(link.recv().await.unwrap().version > 0);
    link
}

#[tokio::test(start_paused = true)]
async fn gateways_hear_every_second_while_there_are_verdicts() {
    let mut house = House::ready().await;
    let mut link = watcher(&house.policy, "gw1").await;
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(link.recv().await.unwrap().version, 2);
    }
    assert!(start.elapsed() >= Duration::from_secs(2));
    house.directory.away.store(true, Ordering::SeqCst);
    house.link = None;
    tokio::time::sleep(Duration::from_millis(900)).await;
    house.clock.advance(Duration::from_secs(301));
    let heard = async { while link.recv().await.is_some() {} };
    let silent = tokio::time::timeout(Duration::from_secs(5), heard).await;
    assert!(silent.is_err(), "the link stays");
    let quiet = tokio::time::timeout(Duration::from_secs(5), link.recv()).await;
    assert!(quiet.is_err(), "but says nothing");
}

#[tokio::test(start_paused = true)]
async fn a_failpoint_closes_the_lane() {
    let house = House::ready().await;
    house
        .failpoints
        .set("policy::decide::before", "error")
        .unwrap();
    assert_eq!(
        house.lane().call(item(RITA, &[TOM])).await,
        Err(LaneError::NotSubmitted)
    );
    house.failpoints.configure("").unwrap();
    assert!(house.lane().call(item(RITA, &[TOM])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn explain_normalises_and_refuses_nonsense() {
    let house = House::ready().await;
    let ask = |from: &str, to: &str| {
        let request = ExplainRequest {
            from: from.into(),
            to: to.into(),
        };
        let policy = house.policy.clone();
        async move { policy.explain(&Cx::local(), request).await }
    };
    let kinds = ask("Rita@Example.org", TOM).await.unwrap().kinds;
    assert_eq!(kinds.len(), 3);
    assert!(
        kinds
            .iter()
            .all(|k| k.verdict.as_ref().unwrap().decision() == Decision::Allow)
    );
    assert_eq!(ask("@", TOM).await.unwrap_err().code, Code::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_never_mix_versions() {
    let house = House::ready().await;
    let (stop, seen) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    for _ in 0..2 {
        let (lane, stop, seen) = (house.lane(), Arc::clone(&stop), Arc::clone(&seen));
        house.tasks.spawn("load", async move {
            let mut last = 0;
            while !stop.load(Ordering::SeqCst) {
                let answer = lane
                    .call(item(RITA, &[TOM, "carl@example.org", TOM]))
                    .await
                    .unwrap();
                let versions: Vec<_> = answer.verdicts.iter().map(|v| v.policy_version).collect();
                assert!(
                    versions.iter().all(|v| *v == versions[0] && *v >= last),
                    "{versions:?}"
                );
                last = versions[0];
                // Version 2 is open; then walls and the open policy alternate.
                let walled = answer.verdicts[0].decision() == Decision::Deny;
                assert_eq!(walled, last % 2 == 1, "{last}");
                seen.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        });
    }
    for round in 0..40 {
        house
            .apply(if round % 2 == 0 { WALL } else { BUILT_IN })
            .await
            .unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    assert_eq!(house.tasks.drain(Duration::from_secs(5)).await, 0);
    assert_eq!(house.tasks.panicked(), 0);
    assert!(seen.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn the_same_over_grpc() {
    let mut house = House::ready().await;
    let tasks = house.tasks.clone();
    let served = Served {
        policy: Some(Arc::new(house.policy.clone())),
        ..Served::default()
    };
    let remote = |role| {
        let calls = Calls::new(Failpoints::off(), &Metrics::new());
        RemotePolicy::new(pipe(&tasks, served.clone(), role), calls, tasks.clone())
    };
    let (gateway, admin) = (remote(Role::Gateway), remote(Role::Admin));
    let lane = gateway.decide(peer());
    while !lane.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = lane.call(item(RITA, &[TOM])).await.unwrap();
    assert_eq!(answer.verdicts[0].decision(), Decision::Allow);
    let mut link = gateway.watch(&Cx::local()).await.unwrap();
    let hello = watch_down::Item::Hello(WatchHello {
        gateway: "gw1".into(),
    });
    link.send(WatchDown { item: Some(hello) }).await.unwrap();
    assert_eq!(link.recv().await.unwrap().version, 2);
    let applying = house.tasks.clone();
    let (tx, rx) = oneshot::channel();
    applying.spawn("apply", async move {
        let request = ApplyRequest {
            toml: WALL.into(),
            check_only: false,
            actor: "o".into(),
        };
        tx.send(admin.apply(&Cx::local(), request).await.unwrap())
            .unwrap();
    });
    while link.recv().await.unwrap().version != 3 {}
    let verdict = lane
        .call(item(RITA, &[TOM]))
        .await
        .unwrap()
        .verdicts
        .remove(0);
    assert_eq!(
        (verdict.denial(), verdict.text.as_str()),
        (Denial::PolicyViolation, "rule 12.3")
    );
    let confirm = watch_down::Item::Confirm(WatchConfirm { version: 3 });
    link.send(WatchDown {
        item: Some(confirm),
    })
    .await
    .unwrap();
    assert!(rx.await.unwrap().unconfirmed.is_empty());
    let refused = gateway
        .apply(&Cx::local(), ApplyRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Denied);
    house.link = None;
    drop(lane);
}
