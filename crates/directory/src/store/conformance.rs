//! What every store of the directory must do, as one function that runs on each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn name(localpart: &str) -> Name {
    Name {
        domain: "a.test".to_owned(),
        localpart: localpart.to_owned(),
    }
}

fn keys(byte: u8) -> KeySet {
    let keys = |bytes| Keys {
        salt: vec![byte; 16],
        iterations: 4_096,
        stored_key: vec![byte; bytes],
        server_key: vec![byte.wrapping_add(1); bytes],
    };
    KeySet {
        sha1: Some(keys(20)),
        sha256: Some(keys(32)),
    }
}

fn add(localpart: &str, seen: Option<u64>) -> Change {
    Change::Add {
        name: name(localpart),
        keys: keys(1),
        seen,
    }
}

fn act(what: &str) -> Act {
    Act {
        domain: "a.test".into(),
        actor: "root".into(),
        act: what.into(),
        detail: "{}".into(),
    }
}

fn group(change: fn(String, String) -> Change) -> Change {
    change("a.test".into(), "staff".into())
}

fn with_members(members: &[&str]) -> Change {
    Change::AddMembers {
        domain: "a.test".into(),
        group: "staff".into(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    }
}

/// One change that must be made.
async fn made(store: &dyn Store, change: Change) -> Applied {
    let applied = store.apply(vec![change]).await.unwrap();
    assert_eq!(applied.refused, []);
    applied
}

/// One change that must be refused, without a trace.
async fn refused(store: &dyn Store, change: Change) -> Refusal {
    let before = store.snapshot().await.unwrap();
    let applied = store.apply(vec![change]).await.unwrap();
    assert!(!applied.changed());
    assert_eq!(applied.version, before.version);
    assert_eq!(store.snapshot().await.unwrap(), before);
    applied.refused[0].1
}

pub async fn conforms(store: &dyn Store) {
    secret(store).await;
    accounts(store).await;
    deletion(store).await;
    groups(store).await;
    open_ends(store).await;
    pages(store).await;
}

async fn secret(store: &dyn Store) {
    assert_eq!(store.secret([7; 32]).await.unwrap(), [7; 32]);
    assert_eq!(
        store.secret([8; 32]).await.unwrap(),
        [7; 32],
        "the first stays"
    );
}

async fn accounts(store: &dyn Store) {
    assert_eq!(store.find(name("alice")).await.unwrap(), None);
    let added = made(store, add("alice", Some(0))).await;
    assert_eq!(added.version, 1);
    let (alice, found) = store.find(name("alice")).await.unwrap().unwrap();
    assert_eq!(found, keys(1));
    assert_eq!(added.accounts, std::slice::from_ref(&alice));
    assert_eq!((alice.state, alice.credential_version), (State::Active, 1));
    assert_eq!((alice.generation, alice.version), (1, 1));
    assert_eq!(refused(store, add("alice", None)).await, Refusal::Exists);

    // In a batch the good ones are made, with one version.
    let batch = store
        .apply(vec![
            add("alice", None),
            add("bob", None),
            add("carol", None),
        ])
        .await;
    let batch = batch.unwrap();
    assert_eq!((batch.version, batch.accounts.len()), (2, 2));
    assert_eq!(batch.refused, [(0, Refusal::Exists)]);

    let stale = Change::SetKeys {
        name: name("alice"),
        keys: keys(2),
        seen: 9,
    };
    assert_eq!(refused(store, stale).await, Refusal::Changed);
    let only = KeySet {
        sha1: None,
        ..keys(2)
    };
    let change = Change::SetKeys {
        name: name("alice"),
        keys: only.clone(),
        seen: 1,
    };
    assert_eq!(made(store, change).await.accounts[0].credential_version, 2);
    assert_eq!(
        store.find(name("alice")).await.unwrap().unwrap().1,
        only,
        "old keys are gone"
    );

    let enable = |seen| Change::Enable {
        name: name("alice"),
        seen,
    };
    let same = made(store, enable(3)).await;
    assert!(!same.changed());
    assert_eq!(same.version, 3);
    let disable = |who| Change::Disable {
        name: name(who),
        act: act("account.disable"),
    };
    let disabled = made(store, disable("alice")).await;
    assert_eq!(
        (disabled.version, disabled.accounts[0].state),
        (4, State::Disabled)
    );
    assert!(
        !made(store, disable("alice")).await.changed(),
        "once is enough"
    );
    assert_eq!(
        refused(store, enable(3)).await,
        Refusal::Changed,
        "decided before the cut-off"
    );
    assert_eq!(
        made(store, enable(4)).await.accounts[0].state,
        State::Active
    );
    assert_eq!(refused(store, disable("nobody")).await, Refusal::NotFound);
}

async fn deletion(store: &dyn Store) {
    made(
        store,
        group(|domain, group| Change::CreateGroup { domain, group }),
    )
    .await;
    made(store, with_members(&["alice", "bob"])).await;
    let (alice, _) = store.find(name("alice")).await.unwrap().unwrap();
    let delete = |seen| Change::Delete {
        name: name("alice"),
        seen,
    };
    assert_eq!(refused(store, delete(1)).await, Refusal::Changed);
    let deleted = made(store, delete(alice.version)).await;
    assert_eq!(deleted.accounts[0].state, State::Deleted);
    assert_eq!(deleted.groups[0].members, ["bob"], "leaves its groups");
    assert_eq!(
        refused(store, delete(deleted.version)).await,
        Refusal::NotFound
    );
    let (tombstone, left) = store.find(name("alice")).await.unwrap().unwrap();
    assert!(tombstone.drop_pending);
    assert_eq!(left, KeySet::default(), "no key is left");
    assert_eq!(
        store.pending_drops(10).await.unwrap(),
        std::slice::from_ref(&tombstone)
    );

    assert_eq!(
        refused(store, add("alice", None)).await,
        Refusal::DropPending
    );
    store
        .dropped(name("alice"), tombstone.generation + 1)
        .await
        .unwrap();
    assert_eq!(
        store.pending_drops(10).await.unwrap().len(),
        1,
        "another generation's"
    );
    store
        .dropped(name("alice"), tombstone.generation)
        .await
        .unwrap();
    assert_eq!(store.pending_drops(10).await.unwrap(), []);
    assert_eq!(
        refused(store, add("alice", Some(0))).await,
        Refusal::Changed
    );
    let again = made(store, add("alice", Some(tombstone.version))).await;
    let account = &again.accounts[0];
    assert!(account.generation > tombstone.generation);
    assert!(account.credential_version > tombstone.credential_version);
}

async fn groups(store: &dyn Store) {
    let create = |domain: String, group: String| Change::CreateGroup { domain, group };
    let remove = |members: &[&str]| Change::RemoveMembers {
        domain: "a.test".into(),
        group: "staff".into(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    };
    assert_eq!(refused(store, group(create)).await, Refusal::Exists);
    let added = made(store, with_members(&["carol", "alice", "bob"])).await;
    assert_eq!(added.groups[0].members, ["alice", "bob", "carol"]);
    assert!(!made(store, with_members(&["alice"])).await.changed());
    assert_eq!(
        refused(store, with_members(&["alice", "nobody"])).await,
        Refusal::NoSuchMember
    );
    assert_eq!(
        made(store, remove(&["alice", "ghost"])).await.groups[0].members,
        ["bob", "carol"]
    );
    assert!(!made(store, remove(&["alice"])).await.changed());
    let label = |label: Option<&str>| Change::LabelGroup {
        domain: "a.test".into(),
        group: "staff".into(),
        label: label.map(Into::into),
    };
    assert_eq!(added.groups[0].label, None);
    assert!(!made(store, label(None)).await.changed());
    for wanted in [Some("Staff"), Some("Our staff"), None, Some("Staff")] {
        let shown = made(store, label(wanted)).await;
        assert_eq!(shown.groups[0].label.as_deref(), wanted);
        assert_eq!(shown.groups[0].members, ["bob", "carol"]);
        assert!(!made(store, label(wanted)).await.changed());
        let kept = store.snapshot().await.unwrap().groups;
        assert_eq!(kept[0].label.as_deref(), wanted);
    }
    let other = Change::CreateGroup {
        domain: "b.test".into(),
        group: "staff".into(),
    };
    made(store, other).await;
    assert_eq!(store.groups("a.test".into()).await.unwrap().len(), 1);
    assert_eq!(store.snapshot().await.unwrap().groups.len(), 2);
    let delete = |domain: String, group: String| Change::DeleteGroup { domain, group };
    let gone = made(store, group(delete)).await;
    assert!(gone.groups[0].deleted && gone.groups[0].members.is_empty());
    assert_eq!(gone.groups[0].label, None);
    assert_eq!(refused(store, label(Some("x"))).await, Refusal::NotFound);
    assert_eq!(refused(store, group(delete)).await, Refusal::NotFound);
    assert_eq!(
        refused(store, with_members(&["bob"])).await,
        Refusal::NotFound
    );
    let again = made(store, group(create)).await;
    assert_eq!(again.groups[0].label, None, "not shown as the one before");
    assert_eq!(
        store.groups("a.test".into()).await.unwrap()[0].members,
        [""; 0]
    );
    for number in 1..GROUPS_LIMIT {
        let change = Change::CreateGroup {
            domain: "a.test".into(),
            group: format!("g{number}"),
        };
        store.apply(vec![change]).await.unwrap();
    }
    let more = Change::CreateGroup {
        domain: "a.test".into(),
        group: "more".into(),
    };
    assert_eq!(
        store.apply(vec![more]).await.unwrap().refused,
        [(0, Refusal::Full)]
    );
}

async fn open_ends(store: &dyn Store) {
    // From `accounts`: one disabling took effect.
    let left = store.unrecorded(10).await.unwrap();
    assert_eq!(
        left.iter().map(|(_, act)| act).collect::<Vec<_>>(),
        [&act("account.disable")]
    );
    store.recorded(left[0].0).await.unwrap();
    assert_eq!(store.unrecorded(10).await.unwrap(), []);
    made(
        store,
        Change::Disable {
            name: name("bob"),
            act: act("x"),
        },
    )
    .await;
    made(
        store,
        Change::Disable {
            name: name("carol"),
            act: act("y"),
        },
    )
    .await;
    let left = store.unrecorded(1).await.unwrap();
    assert_eq!(left[0].1, act("x"), "oldest first, no more than asked");
}

/// Alice, bob, carol (disabled), and p00 to p29 are there.
async fn begins(store: &dyn Store) {
    let begin = async |prefix: &str, after: &str, limit| -> Vec<String> {
        let found = store.begin("a.test".into(), prefix.into(), after.into(), limit);
        let found = found.await.unwrap();
        found.into_iter().map(|a| a.name.localpart).collect()
    };
    assert_eq!(begin("al", "", 9).await, ["alice"]);
    assert_eq!(begin("alice", "", 9).await, ["alice"]);
    assert_eq!(begin("alicex", "", 9).await, [""; 0]);
    assert_eq!(begin("lic", "", 9).await, [""; 0]);
    assert_eq!(begin("%", "", 9).await, [""; 0]);
    assert_eq!(begin("p1", "", 3).await, ["p10", "p11", "p12"]);
    assert_eq!(begin("p1", "p17", 9).await, ["p18", "p19"]);
    assert_eq!(begin("p", "", 99).await.len(), 30);
    assert_eq!(begin("carol", "", 9).await, [""; 0], "disabled");
    let other = store.begin("b.test".into(), "al".into(), String::new(), 9);
    assert_eq!(other.await.unwrap(), []);
}

async fn pages(store: &dyn Store) {
    let many = (0..30).map(|n| add(&format!("p{n:02}"), None)).collect();
    store.apply(many).await.unwrap();
    let page = |after: &str, limit| store.page("a.test".into(), after.to_owned(), limit);
    let names = |accounts: Vec<Account>| -> Vec<String> {
        accounts
            .into_iter()
            .map(|account| account.name.localpart)
            .collect()
    };
    assert_eq!(names(page("", 2).await.unwrap()), ["alice", "bob"]);
    assert_eq!(names(page("p27", 10).await.unwrap()), ["p28", "p29"]);
    assert_eq!(names(page("carol", 1).await.unwrap()), ["p00"]);
    assert_eq!(
        store.page("b.test".into(), String::new(), 9).await.unwrap(),
        []
    );
    begins(store).await;
    let (p03, _) = store.find(name("p03")).await.unwrap().unwrap();
    made(
        store,
        Change::Delete {
            name: name("p03"),
            seen: p03.version,
        },
    )
    .await;
    assert_eq!(
        names(page("p02", 1).await.unwrap()),
        ["p04"],
        "no tombstones"
    );
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.accounts.len(), 32);
    assert!(
        snapshot
            .accounts
            .iter()
            .all(|account| account.state != State::Deleted)
    );
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&MemoryStore::default()).await;
}

#[tokio::test]
async fn sqlite_conforms_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("directory.db");
    let store = SqliteStore::open(&path).unwrap();
    conforms(&store).await;
    let before = store.snapshot().await.unwrap();
    store.close().await;
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.snapshot().await.unwrap(), before);
    assert_eq!(store.secret([9; 32]).await.unwrap(), [7; 32]);
    assert_eq!(store.unrecorded(10).await.unwrap().len(), 2);
}
