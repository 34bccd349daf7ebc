//! What every store of the service must do, as one function that runs on each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const ALICE: &str = "alice@a.test";
const BOB: &str = "bob@a.test";

fn element(ns: &str, name: &str, xml: &str) -> Private {
    Private {
        ns: ns.into(),
        name: name.into(),
        xml: Bytes::copy_from_slice(xml.as_bytes()),
    }
}

async fn private(store: &dyn Store, owner: &str, ns: &str, name: &str) -> Option<Bytes> {
    let found = store.private(owner.into(), ns.into(), name.into()).await;
    found.unwrap()
}

async fn set(store: &dyn Store, elements: Vec<Private>, limit: usize) -> Kept {
    let kept = store.set_private(ALICE.into(), elements, limit).await;
    kept.unwrap()
}

pub async fn conforms(store: &dyn Store) {
    elements(store).await;
    limit(store).await;
    vcards(store).await;
    lasts(store).await;
    store.set_vcard(BOB.into(), "<b/>".into()).await.unwrap();
    store.clear(ALICE.into()).await.unwrap();
    assert_eq!(private(store, ALICE, "u:a", "x").await, None);
    assert_eq!(store.vcard(ALICE.into()).await.unwrap(), None);
    assert_eq!(store.last(ALICE.into()).await.unwrap(), None);
    assert!(store.vcard(BOB.into()).await.unwrap().is_some());
    store.clear("never@a.test".into()).await.unwrap();
}

async fn elements(store: &dyn Store) {
    assert_eq!(private(store, ALICE, "u:a", "x").await, None);
    let first = vec![element("u:a", "x", "<1/>"), element("u:a", "y", "<2/>")];
    assert_eq!(set(store, first, 9).await, Kept::Yes);
    // By namespace and name, and by owner.
    assert_eq!(private(store, ALICE, "u:a", "x").await.unwrap(), "<1/>");
    assert_eq!(private(store, ALICE, "u:a", "y").await.unwrap(), "<2/>");
    assert_eq!(private(store, ALICE, "u:b", "x").await, None);
    assert_eq!(private(store, BOB, "u:a", "x").await, None);
    assert_eq!(
        set(store, vec![element("u:a", "x", "<3\u{1f600}/>")], 9).await,
        Kept::Yes
    );
    assert_eq!(
        private(store, ALICE, "u:a", "x").await.unwrap(),
        "<3\u{1f600}/>"
    );
    assert_eq!(
        set(store, vec![element("u:a", "y", "")], 9).await,
        Kept::Yes
    );
    assert_eq!(private(store, ALICE, "u:a", "y").await, None);
}

/// One element is there.
async fn limit(store: &dyn Store) {
    let two = vec![element("u:b", "x", "<4/>"), element("u:c", "x", "<5/>")];
    assert_eq!(set(store, two.clone(), 2).await, Kept::Full);
    assert_eq!(private(store, ALICE, "u:b", "x").await, None);
    assert_eq!(set(store, two, 3).await, Kept::Yes);
    // A lower limit refuses nothing but more of it.
    let again = element("u:b", "x", "<6/>");
    assert_eq!(set(store, vec![again], 1).await, Kept::Yes);
    assert_eq!(private(store, ALICE, "u:b", "x").await.unwrap(), "<6/>");
    let swap = vec![element("u:b", "x", ""), element("u:d", "x", "<7/>")];
    assert_eq!(set(store, swap, 3).await, Kept::Yes);
    assert_eq!(
        set(store, vec![element("u:e", "x", "<8/>")], 3).await,
        Kept::Full
    );
}

async fn vcards(store: &dyn Store) {
    assert_eq!(store.vcard(ALICE.into()).await.unwrap(), None);
    for xml in ["<v>1</v>", "<v>2</v>"] {
        store.set_vcard(ALICE.into(), xml.into()).await.unwrap();
        assert_eq!(store.vcard(ALICE.into()).await.unwrap().unwrap(), xml);
    }
    assert_eq!(store.vcard(BOB.into()).await.unwrap(), None);
    store.set_vcard(ALICE.into(), Bytes::new()).await.unwrap();
    assert_eq!(store.vcard(ALICE.into()).await.unwrap(), None);
    store.set_vcard(ALICE.into(), "<v/>".into()).await.unwrap();
}

async fn lasts(store: &dyn Store) {
    let last = |at_ms, status: &str| Last {
        at_ms,
        status: status.into(),
    };
    assert_eq!(store.last(ALICE.into()).await.unwrap(), None);
    let all = vec![
        (ALICE.into(), last(5, "home")),
        (BOB.into(), last(7, "")),
        (ALICE.into(), last(9, "")),
        (ALICE.into(), last(8, "late news")),
    ];
    store.set_last(all).await.unwrap();
    assert_eq!(store.last(ALICE.into()).await.unwrap(), Some(last(9, "")));
    assert_eq!(store.last(BOB.into()).await.unwrap(), Some(last(7, "")));
    store
        .set_last(vec![(ALICE.into(), last(3, "older"))])
        .await
        .unwrap();
    assert_eq!(store.last(ALICE.into()).await.unwrap(), Some(last(9, "")));
    store.set_last(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&MemoryStore::default()).await;
}

#[tokio::test]
async fn sqlite_conforms_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pubsub.db");
    let store = SqliteStore::open(&path).unwrap();
    conforms(&store).await;
    store.close().await;
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.vcard(BOB.into()).await.unwrap().unwrap(), "<b/>");
    let last = store.last(BOB.into()).await.unwrap().unwrap();
    assert_eq!(last.at_ms, 7);
}
