//! What every store of the roster must do, as one function that runs on each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use chancery_xmpp::subscription::Act;

const ALICE: &str = "alice@a.test";
const LIMIT: usize = 5_000;

fn edit(jid: &str, name: &str, groups: &[&str]) -> Change {
    Change::Edit {
        jid: jid.into(),
        name: name.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        colleague: false,
    }
}

fn item(jid: &str, subscription: Subscription) -> Item {
    Item {
        jid: jid.into(),
        name: "N".into(),
        subscription: subscription.into(),
        ask: true,
        approved: true,
        groups: vec!["a".into(), "b'\"\u{1f600}".into()],
        colleague: false,
    }
}

async fn change(store: &dyn Store, change: Change) -> Changed {
    store.change(ALICE.into(), change, LIMIT).await.unwrap()
}

async fn load(store: &dyn Store, owner: &str) -> Roster {
    store.load(owner.into()).await.unwrap()
}

pub async fn conforms(store: &dyn Store) {
    assert_eq!(load(store, ALICE).await, Roster::default());
    let remove = |jid: &str| Change::Remove { jid: jid.into() };
    assert_eq!(change(store, remove("bob@a.test")).await, Changed::NotFound);
    assert_eq!(load(store, ALICE).await.version, 0);

    let bob = Item {
        jid: "bob@a.test".into(),
        name: "Bob".into(),
        subscription: Subscription::None.into(),
        groups: vec!["Work".into()],
        ..Item::default()
    };
    let made = change(store, edit("bob@a.test", "Bob", &["Work"])).await;
    assert_eq!(
        made,
        Changed::Yes {
            version: 1,
            item: bob.clone()
        }
    );
    let same = change(store, edit("bob@a.test", "Bob", &["Work"])).await;
    assert_eq!(same, Changed::No { version: 1 });
    assert_eq!(
        load(store, ALICE).await,
        Roster {
            version: 1,
            items: vec![bob]
        }
    );

    // What an administrator set stays when the client edits.
    let put = item("bob@a.test", Subscription::Both);
    let made = change(store, Change::Put(put.clone())).await;
    assert_eq!(
        made,
        Changed::Yes {
            version: 2,
            item: put.clone()
        }
    );
    assert_eq!(
        change(store, Change::Put(put.clone())).await,
        Changed::No { version: 2 }
    );
    let edited = Item {
        name: "Robert".into(),
        groups: vec![],
        ..put
    };
    let made = change(store, edit("bob@a.test", "Robert", &[])).await;
    assert_eq!(
        made,
        Changed::Yes {
            version: 3,
            item: edited.clone()
        }
    );

    let anna = item("anna@a.test", Subscription::To);
    change(store, Change::Put(anna.clone())).await;
    assert_eq!(load(store, ALICE).await.items, [anna.clone(), edited]);
    assert_eq!(load(store, "other@a.test").await, Roster::default());

    let gone = Item {
        subscription: Subscription::Remove.into(),
        jid: "bob@a.test".into(),
        ..Item::default()
    };
    assert_eq!(
        change(store, remove("bob@a.test")).await,
        Changed::Yes {
            version: 5,
            item: gone
        }
    );
    assert_eq!(
        load(store, ALICE).await,
        Roster {
            version: 5,
            items: vec![anna]
        }
    );

    colleagues(store).await;
    limits(store).await;
    flood_of_requests(store).await;
    handshakes(store).await;
    clearing(store).await;
    block_lists(store).await;
    store.clear(ALICE.into()).await.unwrap();
    let cleared = load(store, ALICE).await;
    assert_eq!(cleared.items, []);
    let Changed::Yes { version, .. } = change(store, edit("x@a.test", "", &[])).await else {
        panic!("not made")
    };
    assert!(version > cleared.version && cleared.version > 5);
    store.clear("never@a.test".into()).await.unwrap();
    assert_eq!(load(store, "never@a.test").await, Roster::default());
}

/// What names a colleague is no item of its own, until it stands for something.
async fn colleagues(store: &dyn Store) {
    let owner = || "named@a.test".to_owned();
    let edit = |jid: &str, name: &str, colleague: bool| Change::Edit {
        jid: jid.into(),
        name: name.into(),
        groups: Vec::new(),
        colleague,
    };
    let steps = [
        (edit("eve@a.test", "Eve", true), true),
        (edit("eve@a.test", "Evi", true), true),
        (edit("eve@a.test", "Evi", false), false),
        (edit("eve@a.test", "Eve", true), false),
        (edit("tom@a.test", "Tom", false), false),
        (edit("tom@a.test", "Tommy", true), false),
        (edit("una@a.test", "Una", true), true),
    ];
    for (n, (change, colleague)) in steps.into_iter().enumerate() {
        let Changed::Yes { item, .. } = store.change(owner(), change, LIMIT).await.unwrap() else {
            panic!("step {n} changed nothing")
        };
        assert_eq!(item.colleague, colleague, "step {n}");
        let kept = load(store, "named@a.test").await.items;
        assert!(kept.contains(&item), "step {n}");
    }
    shake(store, says("named@a.test", "una@a.test", Act::Subscribe)).await;
    let kept = load(store, "named@a.test").await.items;
    let una = kept.iter().find(|item| item.jid == "una@a.test").unwrap();
    assert_eq!((una.colleague, &*una.name), (false, "Una"));
    store.clear(owner()).await.unwrap();
}

fn says(owner: &str, peer: &str, act: Act) -> Handshake {
    Handshake {
        owner: owner.into(),
        peer: peer.into(),
        acts: vec![act],
        remove: false,
        heard: true,
        answers: true,
        request: Request {
            stanza: act.as_str().into(),
            policy_version: 7,
        },
    }
}

async fn shake(store: &dyn Store, handshake: Handshake) -> Shaken {
    match store.shake(handshake, LIMIT).await.unwrap() {
        Outcome::Done(shaken) => *shaken,
        other => panic!("{other:?}"),
    }
}

async fn handshakes(store: &dyn Store) {
    let (one, two) = ("one@a.test", "two@a.test");
    let pushed = |owner: &str, version, jid: &str, subscription: Subscription, ask| Pushed {
        owner: owner.into(),
        version,
        item: Item {
            jid: jid.into(),
            subscription: subscription.into(),
            ask,
            ..Item::default()
        },
    };
    let asked = shake(store, says(one, two, Act::Subscribe)).await;
    let expected = Shaken {
        own: Some(pushed(one, 1, two, Subscription::None, true)),
        peer: None,
        delivered: vec![Act::Subscribe],
        answered: false,
    };
    assert_eq!(asked, expected);
    // Who is asked has no item for it, only the request, and a repeat changes nothing.
    assert_eq!(load(store, two).await, Roster::default());
    let again = shake(store, says(one, two, Act::Subscribe)).await;
    assert_eq!(again, Shaken::default());
    let waiting = store.requests(two.into()).await.unwrap();
    let request = says(one, two, Act::Subscribe).request;
    assert_eq!(waiting, [(one.to_owned(), request)]);

    // Nothing is half done when the answer does not fit.
    let full = store
        .shake(says(two, one, Act::Subscribed), 0)
        .await
        .unwrap();
    assert_eq!(full, Outcome::Full);
    assert_eq!(store.requests(two.into()).await.unwrap(), waiting);
    let answered = shake(store, says(two, one, Act::Subscribed)).await;
    let expected = Shaken {
        own: Some(pushed(two, 1, one, Subscription::From, false)),
        peer: Some(pushed(one, 2, two, Subscription::To, false)),
        delivered: vec![Act::Subscribed],
        answered: false,
    };
    assert_eq!(answered, expected);
    assert_eq!(store.requests(two.into()).await.unwrap(), []);

    // Given in advance, then asked.
    let before = shake(store, says(one, two, Act::Subscribed)).await;
    assert!(before.own.is_some_and(|own| own.item.approved) && before.delivered.is_empty());
    let asked = shake(store, says(two, one, Act::Subscribe)).await;
    assert!(asked.answered && asked.delivered.is_empty());
    assert_eq!(
        (asked.own, asked.peer),
        (
            Some(pushed(two, 2, one, Subscription::Both, false)),
            Some(pushed(one, 4, two, Subscription::Both, false))
        )
    );

    // A removal, and one of nothing.
    let mut gone = says(two, one, Act::Unsubscribe);
    gone.acts.push(Act::Unsubscribed);
    gone.remove = true;
    let removed = shake(store, gone.clone()).await;
    assert_eq!(removed.delivered, [Act::Unsubscribe, Act::Unsubscribed]);
    assert_eq!(
        removed.own.map(|own| own.item.subscription()),
        Some(Subscription::Remove)
    );
    assert_eq!(
        removed.peer,
        Some(pushed(one, 5, two, Subscription::None, false))
    );
    let nothing = store.shake(gone, LIMIT).await.unwrap();
    assert_eq!(nothing, Outcome::NotFound);

    // What an administrator writes answers what was asked.
    shake(store, says(two, one, Act::Subscribe)).await;
    let put = Change::Put(item(two, Subscription::From));
    store.change(one.into(), put, LIMIT).await.unwrap();
    assert_eq!(store.requests(one.into()).await.unwrap(), []);

    // An account that goes: its requests, and what others have of it.
    shake(store, says(two, "three@a.test", Act::Subscribe)).await;
    let left = store.clear(two.into()).await.unwrap();
    let [left] = &left[..] else {
        panic!("{left:?}")
    };
    assert_eq!(
        (left.owner.as_str(), left.item.subscription()),
        (one, Subscription::None)
    );
    assert_eq!(left.item.name, "N");
    assert_eq!(store.requests("three@a.test".into()).await.unwrap(), []);
}

/// What others have of a cleared account that has nothing of them.
async fn clearing(store: &dyn Store) {
    let gone = "gone@a.test";
    let (approves, asks) = ("approves@a.test", "asks@a.test");
    let (named, told) = ("named-only@a.test", "told@a.test");
    let approved = shake(store, says(approves, gone, Act::Subscribed)).await;
    assert!(approved.own.is_some_and(|own| own.item.approved));
    shake(store, says(asks, gone, Act::Subscribe)).await;
    let write = |owner: &str, change| store.change(owner.into(), change, LIMIT);
    write(named, edit(gone, "Name", &["g"])).await.unwrap();
    write(told, Change::Put(item(gone, Subscription::To)))
        .await
        .unwrap();
    let bystander = shake(store, says(approves, "else@a.test", Act::Subscribed)).await;
    assert_eq!(load(store, gone).await.items, []);
    let before = load(store, named).await;

    let left = store.clear(gone.into()).await.unwrap();
    let of: Vec<(&str, u64)> = left
        .iter()
        .map(|pushed| (pushed.owner.as_str(), pushed.version))
        .collect();
    assert_eq!(of, [(approves, 3), (asks, 2), (told, 2)]);
    for pushed in left {
        let item = pushed.item.clone();
        assert_eq!(
            (item.jid.as_str(), item.subscription()),
            (gone, Subscription::None)
        );
        assert!(!item.ask && !item.approved, "{item:?}");
        let kept = load(store, &pushed.owner).await;
        assert_eq!(kept.version, pushed.version);
        assert!(kept.items.contains(&item), "{item:?}");
    }
    assert_eq!(load(store, named).await, before, "it stood for nothing");
    let kept = load(store, approves).await.items;
    assert!(kept.contains(&bystander.own.unwrap().item));
    assert_eq!(store.clear(gone.into()).await.unwrap(), [], "once");

    // Whoever has the name next asks like anybody.
    let asked = shake(store, says(gone, approves, Act::Subscribe)).await;
    assert_eq!(
        (asked.delivered, asked.answered),
        (vec![Act::Subscribe], false)
    );
    let requests = store.requests(approves.into()).await.unwrap();
    assert_eq!(requests.len(), 1);
}

async fn block_lists(store: &dyn Store) {
    let (one, two) = ("one@a.test", "two@a.test");
    let list = |owner: &str, listing| store.list(owner.into(), listing, 2);
    let jids = |jids: &[&str]| jids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let block = |names: &[&str]| Listing::Block(jids(names));
    let blocked = list(one, block(&["z@x", "evil.test"])).await.unwrap();
    assert_eq!(blocked, Listed::Yes(jids(&["evil.test", "z@x"])));
    assert_eq!(list(one, block(&["more@x"])).await.unwrap(), Listed::Full);
    assert_eq!(list(one, block(&["z@x"])).await.unwrap(), Listed::No);
    list(two, block(&["one@a.test"])).await.unwrap();
    let pair = |owner: &str, jid: &str| (owner.to_owned(), jid.to_owned());
    let all = [
        pair(one, "evil.test"),
        pair(one, "z@x"),
        pair(two, "one@a.test"),
    ];
    assert_eq!(store.blocks().await.unwrap(), all);
    let unblocked = list(one, Listing::Unblock(jids(&["z@x"]))).await.unwrap();
    assert_eq!(unblocked, Listed::Yes(jids(&["evil.test"])));
    assert_eq!(store.blocks_of(one.into()).await.unwrap(), ["evil.test"]);
    store.clear(one.into()).await.unwrap();
    assert_eq!(store.blocks().await.unwrap(), all[2..]);
    let none = list(two, Listing::UnblockAll).await.unwrap();
    assert_eq!(none, Listed::Yes(Vec::new()));
    assert_eq!(store.blocks_of(two.into()).await.unwrap(), [""; 0]);
}

async fn limits(store: &dyn Store) {
    let few = |change| store.change("few@a.test".into(), change, 2);
    for jid in ["a@a.test", "b@a.test"] {
        assert!(matches!(
            few(edit(jid, "", &[])).await.unwrap(),
            Changed::Yes { .. }
        ));
    }
    assert_eq!(few(edit("c@a.test", "", &[])).await.unwrap(), Changed::Full);
    assert_eq!(load(store, "few@a.test").await.version, 2);
    assert!(matches!(
        few(edit("a@a.test", "new", &[])).await.unwrap(),
        Changed::Yes { .. }
    ));
    few(Change::Remove {
        jid: "b@a.test".into(),
    })
    .await
    .unwrap();
    assert!(matches!(
        few(edit("c@a.test", "", &[])).await.unwrap(),
        Changed::Yes { .. }
    ));

    let big = "x".repeat(ROSTER_BYTES_LIMIT / 2);
    let fat = |change| store.change("fat@a.test".into(), change, 10);
    assert!(matches!(
        fat(edit("a@a.test", &big, &[])).await.unwrap(),
        Changed::Yes { .. }
    ));
    assert_eq!(
        fat(edit("b@a.test", &big, &[])).await.unwrap(),
        Changed::Full
    );
    assert!(matches!(
        fat(edit("a@a.test", "thin", &[])).await.unwrap(),
        Changed::Yes { .. }
    ));
    assert!(matches!(
        fat(edit("b@a.test", &big, &[])).await.unwrap(),
        Changed::Yes { .. }
    ));
}

/// A flood of requests: so many wait, for a further one nobody is there, and an answer makes room.
async fn flood_of_requests(store: &dyn Store) {
    let (flooded, late) = ("flooded@a.test", "late@a.test");
    let asks = |owner: &str| shake(store, says(owner, flooded, Act::Subscribe));
    for number in 0..REQUESTS_LIMIT {
        let shaken = asks(&format!("n{number}@a.test")).await;
        assert_eq!(shaken.delivered, [Act::Subscribe], "{number}");
    }
    let over = asks(late).await;
    assert_eq!(over.delivered, []);
    assert!(over.own.is_some_and(|own| own.item.ask));
    let waiting = store.requests(flooded.into()).await.unwrap();
    assert_eq!(waiting.len(), REQUESTS_LIMIT);
    assert_eq!(load(store, flooded).await, Roster::default());
    shake(store, says(flooded, "n0@a.test", Act::Unsubscribed)).await;
    assert_eq!(asks(late).await.delivered, [Act::Subscribe]);
    let waiting = store.requests(flooded.into()).await.unwrap();
    assert_eq!(waiting.len(), REQUESTS_LIMIT);
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&MemoryStore::default()).await;
}

#[tokio::test]
async fn sqlite_conforms_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roster.db");
    let store = SqliteStore::open(&path).unwrap();
    conforms(&store).await;
    let before = load(&store, "few@a.test").await;
    store.close().await;
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(load(&store, "few@a.test").await, before);
    assert_eq!(before.items.len(), 2);
}
