//! The service as its callers see it, with a log that takes acts or does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chancery_api::archive::*;
use chancery_api::pubsub::{self, *};
use chancery_api::testing::Log;
use chancery_api::{Code, Cx};
use chancery_runtime::{Metrics, Tasks};

use crate::store::{MemoryStore, Store};
use crate::{Config, Parts, PubsubService};

const ALICE: &str = "alice@a.test";

struct House {
    pubsub: PubsubService,
    log: Arc<Log>,
    store: Arc<MemoryStore>,
}

fn house() -> House {
    let (log, store) = (Arc::new(Log::default()), Arc::new(MemoryStore::default()));
    let pubsub = PubsubService::start(Parts {
        config: Config {
            private_elements: 2,
            private_bytes: 1024,
            vcard_bytes: 1024,
        },
        store: Arc::clone(&store) as Arc<dyn Store>,
        archive: Arc::clone(&log) as Arc<dyn Archive>,
        metrics: Metrics::new(),
        tasks: Tasks::new(),
    })
    .unwrap();
    House { pubsub, log, store }
}

impl House {
    async fn set(&self, elements: &[(&str, &str, usize)]) -> Result<(), Code> {
        let elements = elements
            .iter()
            .map(|(ns, name, bytes)| PrivateElement {
                ns: (*ns).into(),
                name: (*name).into(),
                xml: vec![b'x'; *bytes].into(),
            })
            .collect();
        let request = SetPrivateRequest {
            owner: ALICE.into(),
            elements,
        };
        let set = self.pubsub.set_private(&Cx::local(), request).await;
        set.map(drop).map_err(|error| error.code)
    }

    async fn has(&self, ns: &str) -> bool {
        let request = GetPrivateRequest {
            owner: "Alice@A.test".into(),
            ns: ns.into(),
            name: "x".into(),
        };
        let got = self.pubsub.get_private(&Cx::local(), request).await;
        got.unwrap().xml.is_some()
    }

    async fn last(&self) -> GetLastResponse {
        let owner = ALICE.into();
        let got = self
            .pubsub
            .get_last(&Cx::local(), GetLastRequest { owner })
            .await;
        got.unwrap()
    }

    async fn seen(&self, at_ms: i64, status: &str) {
        let request = SetLastRequest {
            owner: ALICE.into(),
            at_ms,
            status: status.into(),
        };
        self.pubsub.set_last(&Cx::local(), request).await.unwrap();
    }
}

#[tokio::test]
async fn elements_are_bounded_in_size_and_number() {
    let house = house();
    assert_eq!(house.set(&[("u:1", "x", 1024)]).await, Ok(()));
    assert!(house.has("u:1").await);
    assert_eq!(house.set(&[("u:1", "x", 1025)]).await, Err(Code::Invalid));
    assert_eq!(house.set(&[("", "x", 1)]).await, Err(Code::Invalid));
    assert_eq!(house.set(&[("u:2", "", 1)]).await, Err(Code::Invalid));
    let two = [("u:2", "x", 1), ("u:3", "x", 1)];
    assert_eq!(house.set(&two).await, Err(Code::Resource));
    assert!(!house.has("u:2").await, "all or nothing");
    assert_eq!(house.set(&two[..1]).await, Ok(()));
    let many = [("u:1", "x", 1), ("u:1", "x", 2), ("u:1", "x", 3)];
    assert_eq!(house.set(&many).await, Err(Code::Resource));
    for bad in ["", "a.test", "a@a.test/r", "@"] {
        let request = GetVcardRequest { owner: bad.into() };
        let got = house.pubsub.get_vcard(&Cx::local(), request).await;
        assert_eq!(got.unwrap_err().code, Code::Invalid, "{bad:?}");
    }
}

#[tokio::test]
async fn a_vcard_is_bounded() {
    let house = house();
    let set = async |bytes: usize| {
        let request = SetVcardRequest {
            owner: ALICE.into(),
            xml: vec![b'x'; bytes].into(),
        };
        let set = house.pubsub.set_vcard(&Cx::local(), request).await;
        set.map(drop).map_err(|error| error.code)
    };
    assert_eq!(set(1024).await, Ok(()));
    assert_eq!(set(1025).await, Err(Code::Invalid));
    let request = GetVcardRequest {
        owner: ALICE.into(),
    };
    let got = house.pubsub.get_vcard(&Cx::local(), request).await.unwrap();
    assert_eq!(got.xml.unwrap().len(), 1024);
}

#[tokio::test(start_paused = true)]
async fn the_last_end_is_known_at_once_and_written_later() {
    let house = house();
    assert_eq!(house.last().await, GetLastResponse::default());
    house.seen(5, "home").await;
    house.seen(4, "older").await;
    assert_eq!(house.last().await.at_ms, Some(5));
    assert_eq!(house.last().await.status, "home");
    assert_eq!(house.store.last(ALICE.into()).await.unwrap(), None);
    house.pubsub.last().write_once().await;
    let kept = house.store.last(ALICE.into()).await.unwrap().unwrap();
    assert_eq!((kept.at_ms, kept.status.as_str()), (5, "home"));
    house.seen(6, &"x".repeat(1_025)).await;
    assert_eq!(house.last().await.status, "", "too long to be kept");
    // The task writes by itself.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let kept = house.store.last(ALICE.into()).await.unwrap().unwrap();
    assert_eq!(kept.at_ms, 6);
}

#[tokio::test]
async fn clearing_is_recorded_first_and_leaves_nothing() {
    let house = house();
    house.set(&[("u:1", "x", 1)]).await.unwrap();
    house.seen(5, "").await;
    let clear = async |actor: &str| {
        let request = pubsub::ClearRequest {
            owner: ALICE.into(),
            actor: actor.into(),
        };
        let cleared = house.pubsub.clear(&Cx::local(), request).await;
        cleared.map(drop).map_err(|error| error.code)
    };
    house.log.away.store(true, Ordering::SeqCst);
    assert_eq!(clear("cli:x").await, Err(Code::Unavailable));
    assert!(house.has("u:1").await);
    house.log.away.store(false, Ordering::SeqCst);
    assert_eq!(clear("").await, Err(Code::Invalid));
    assert_eq!(clear("cli:x").await, Ok(()));
    assert!(!house.has("u:1").await);
    house.pubsub.last().write_once().await;
    assert_eq!(house.last().await, GetLastResponse::default());
    let acts = house.log.acts.lock();
    assert_eq!(acts.len(), 1);
    assert_eq!(
        (acts[0].act.as_str(), acts[0].actor.as_str()),
        ("pubsub.clear", "cli:x")
    );
    assert!(acts[0].detail.contains(ALICE));
}
