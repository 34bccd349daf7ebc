//! The service as its callers see it, with a log that takes pushes or does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use chancery_api::archive::*;
use chancery_api::roster::*;
use chancery_api::testing::Log;
use chancery_api::{ApiError, Code, Cx, Decision, Kind};
use chancery_runtime::{Clock, Ids, Metrics, Tasks};

mod blocks;
mod handshake;

use crate::store::{MemoryStore, Store};
use crate::{Config, Parts, RosterService};

struct House {
    roster: RosterService,
    log: Arc<Log>,
    pushes: mpsc::Receiver<AppendItem>,
    metrics: Metrics,
    store: Arc<MemoryStore>,
}

const ALICE: &str = "alice@a.test";

fn house() -> House {
    let log = Arc::new(Log::default());
    let pushes = log.items.lock().take().unwrap();
    let (metrics, store) = (Metrics::new(), Arc::new(MemoryStore::default()));
    let roster = RosterService::start(Parts {
        config: Config {
            items: 50,
            ..Config::default()
        },
        store: Arc::clone(&store) as Arc<dyn Store>,
        archive: Arc::clone(&log) as Arc<dyn Archive>,
        clock: Clock::manual(1_000_000),
        ids: Ids::seeded(1),
        metrics: metrics.clone(),
        tasks: Tasks::new(),
    });
    House {
        roster: roster.unwrap(),
        log,
        pushes,
        metrics,
        store,
    }
}

fn item(jid: &str, name: &str) -> Item {
    Item {
        jid: jid.into(),
        name: name.into(),
        ..Item::default()
    }
}

impl House {
    async fn set(&self, item: Item) -> Result<String, ApiError> {
        let request = SetRequest {
            owner: ALICE.into(),
            item: Some(item),
            ..SetRequest::default()
        };
        Ok(self.roster.set(&Cx::local(), request).await?.version)
    }

    async fn put(&self, jid: &str, subscription: Subscription) -> Result<String, ApiError> {
        let item = Item {
            subscription: subscription.into(),
            ..item(jid, "")
        };
        let request = PutRequest {
            owner: ALICE.into(),
            item: Some(item),
            actor: "root".into(),
        };
        Ok(self.roster.put(&Cx::local(), request).await?.version)
    }

    async fn get(&self, known: Option<&str>) -> GetResponse {
        let known_version = known.map(str::to_owned);
        let request = GetRequest {
            owner: "Alice@a.test".into(),
            known_version,
        };
        self.roster.get(&Cx::local(), request).await.unwrap()
    }

    async fn pushed(&mut self) -> (AppendItem, String) {
        let item = tokio::time::timeout(Duration::from_secs(5), self.pushes.recv()).await;
        let item = item.expect("a push in time").unwrap();
        let payload = String::from_utf8(item.payload.to_vec()).unwrap();
        (item, payload)
    }
}

#[tokio::test]
async fn versions_tell_what_a_client_has() {
    let house = house();
    let empty = house.get(None).await;
    assert!(!empty.unchanged && empty.items.is_empty());
    assert!(house.get(Some(&empty.version)).await.unchanged);
    assert!(
        !house.get(Some("")).await.unchanged,
        "an empty version is no version"
    );
    let first = house.set(item("bob@a.test", "Bob")).await.unwrap();
    let full = house.get(Some(&empty.version)).await;
    assert!(!full.unchanged);
    assert_eq!((full.items.len(), &full.version), (1, &first));
    let current = house.get(Some(&first)).await;
    assert!(current.unchanged && current.items.is_empty());
    let second = house.set(item("bob@a.test", "Robert")).await.unwrap();
    assert!(second.parse::<u64>().unwrap() > first.parse::<u64>().unwrap());
    let again = house.set(item("BOB@a.test", "Robert")).await.unwrap();
    assert_eq!(again, second, "no change, no version");
    let clear = ClearRequest {
        owner: ALICE.into(),
        actor: "root".into(),
    };
    house.roster.clear(&Cx::local(), clear).await.unwrap();
    let after = house.get(Some(&second)).await;
    assert!(!after.unchanged && after.items.is_empty() && after.version > second);
}

#[tokio::test]
async fn a_client_cannot_set_its_subscription() {
    let house = house();
    for subscription in [
        Subscription::Both,
        Subscription::From,
        Subscription::Unspecified,
    ] {
        let forged = Item {
            subscription: subscription.into(),
            ask: true,
            approved: true,
            ..item("ceo@a.test", "")
        };
        house.set(forged).await.unwrap();
        let got = house.get(None).await.items.remove(0);
        assert_eq!(got.subscription(), Subscription::None);
        assert!(!got.ask && !got.approved);
    }
    house.put("ceo@a.test", Subscription::Both).await.unwrap();
    house.set(item("ceo@a.test", "Boss")).await.unwrap();
    let got = house.get(None).await.items.remove(0);
    assert_eq!(
        (got.subscription(), got.name.as_str()),
        (Subscription::Both, "Boss")
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let house = house();
    let remove = Item {
        subscription: Subscription::Remove.into(),
        ..item("x@a.test", "")
    };
    assert_eq!(house.set(remove).await.unwrap_err().code, Code::NotFound);
    assert_eq!(
        house.set(item(ALICE, "me")).await.unwrap_err().code,
        Code::Invalid
    );
    assert_eq!(
        house.set(item("@", "")).await.unwrap_err().code,
        Code::Invalid
    );
    for n in 0..50 {
        house.set(item(&format!("u{n}@a.test"), "")).await.unwrap();
    }
    assert_eq!(
        house.set(item("more@a.test", "")).await.unwrap_err().code,
        Code::Resource
    );
    let error = house
        .put("u1@a.test", Subscription::Unspecified)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Invalid);
    let request = PutRequest {
        owner: ALICE.into(),
        item: None,
        actor: "root".into(),
    };
    let error = house.roster.put(&Cx::local(), request).await.unwrap_err();
    assert_eq!(error.code, Code::Invalid);
}

#[tokio::test]
async fn each_change_is_pushed_once_in_the_order_of_versions() {
    let mut house = house();
    house.set(item("bob@a.test", "B'ob")).await.unwrap();
    let (push, payload) = house.pushed().await;
    assert_eq!((push.from.as_str(), push.to.as_str()), (ALICE, ALICE));
    assert_eq!((push.kind(), push.r#type.as_str()), (Kind::Iq, "set"));
    assert!(push.ephemeral && push.audience() == Audience::Roster && push.sm_id.is_empty());
    let verdict = push.verdict.clone().unwrap();
    assert_eq!(
        (verdict.decision(), verdict.policy_version),
        (Decision::Allow, 0)
    );
    assert!(push.id.starts_with("push-") && payload.contains(&push.id));
    assert!(
        payload.contains("ver='1'") && payload.contains("B&apos;ob"),
        "{payload}"
    );
    assert!(payload.contains("subscription='none'"));
    let peer = house.log.peer.lock().clone().unwrap();
    assert_eq!(
        (peer.gateway.as_str(), peer.incarnation),
        ("roster", 1_000_000)
    );

    house.set(item("bob@a.test", "B'ob")).await.unwrap();
    house.put("bob@a.test", Subscription::Both).await.unwrap();
    let (_, payload) = house.pushed().await;
    assert!(
        payload.contains("ver='2'") && payload.contains("'both'"),
        "{payload}"
    );
    let remove = Item {
        subscription: Subscription::Remove.into(),
        ..item("bob@a.test", "")
    };
    house.set(remove).await.unwrap();
    let (_, payload) = house.pushed().await;
    assert!(
        payload.contains("ver='3'") && payload.contains("'remove'"),
        "{payload}"
    );

    let many = (0..40).map(|n| {
        let roster = house.roster.clone();
        let item = Some(item(&format!("u{n}@a.test"), ""));
        async move {
            roster
                .set(
                    &Cx::local(),
                    SetRequest {
                        owner: ALICE.into(),
                        item,
                        ..SetRequest::default()
                    },
                )
                .await
        }
    });
    let tasks = Tasks::new();
    for set in many {
        tasks.spawn("set", async move { drop(set.await.unwrap()) });
    }
    for version in 4..44 {
        let (_, payload) = house.pushed().await;
        assert!(
            payload.contains(&format!("ver='{version}'")),
            "{version}: {payload}"
        );
    }
    assert!(house.pushes.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_push_waits_for_a_log_that_is_away_and_is_counted_when_it_is_lost() {
    let mut house = house();
    house.log.away.store(true, Ordering::SeqCst);
    let version = house.set(item("bob@a.test", "Bob")).await.unwrap();
    assert_eq!(house.get(None).await.version, version);
    // An administrator's change is not made without its record.
    let error = house
        .put("eve@a.test", Subscription::Both)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(house.store.load(ALICE.into()).await.unwrap().items.len(), 1);
    tokio::time::sleep(Duration::from_secs(29)).await;
    house.log.away.store(false, Ordering::SeqCst);
    house.set(item("bob@a.test", "Robert")).await.unwrap();
    assert!(house.pushed().await.1.contains("name='Bob'"));
    assert!(house.pushed().await.1.contains("Robert"));
    let lost = |house: &House, count| {
        let line = format!("chancery_roster_pushes_lost_total {count}\n");
        house.metrics.render().contains(&line)
    };
    assert!(lost(&house, 0));
    house.log.away.store(true, Ordering::SeqCst);
    house.set(item("bob@a.test", "Rob")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(lost(&house, 1));
    house.log.away.store(false, Ordering::SeqCst);
    house.set(item("bob@a.test", "Bobby")).await.unwrap();
    assert!(
        house.pushed().await.1.contains("Bobby"),
        "pushes flow again"
    );
}

#[tokio::test]
async fn subscriptions_say_who_hears_whom() {
    let house = house();
    for (jid, subscription) in [
        ("both@a.test", Subscription::Both),
        ("from@a.test", Subscription::From),
        ("none@a.test", Subscription::None),
        ("to@a.test", Subscription::To),
    ] {
        house.put(jid, subscription).await.unwrap();
    }
    let request = SubscriptionsRequest {
        owner: ALICE.into(),
    };
    let got = house
        .roster
        .subscriptions(&Cx::local(), request)
        .await
        .unwrap();
    assert_eq!(got.from, ["both@a.test", "from@a.test"]);
    assert_eq!(got.to, ["both@a.test", "to@a.test"]);
    house.put("to@a.test", Subscription::Remove).await.unwrap();
    let request = SubscriptionsRequest {
        owner: ALICE.into(),
    };
    let got = house
        .roster
        .subscriptions(&Cx::local(), request)
        .await
        .unwrap();
    assert_eq!(got.to, ["both@a.test"]);
    let acts = house.log.acts.lock();
    assert_eq!(acts.len(), 5);
    assert!(
        acts.iter()
            .all(|act| act.act == "roster.put" && act.domain == "a.test")
    );
    assert!(acts[0].detail.contains("both@a.test") && acts[0].actor == "root");
}
