//! One account: its life, what is refused, and what happens without the log.

use super::*;

#[tokio::test]
async fn an_account_from_its_creation_to_its_end() {
    let house = house().await;
    house.add("Alice@A.test").await;
    let keys = house.keys("ALICE", Hash::Sha1).await;
    assert!(keys.usable && !keys.disabled && !keys.refused);
    assert_eq!(
        (keys.jid.as_str(), keys.credential_version),
        ("alice@a.test", 1)
    );
    let scram = keys.keys.unwrap();
    assert_eq!(
        (scram.salt.len(), scram.iterations, scram.stored_key.len()),
        (16, 4_096, 20)
    );
    let good = house.login("alice", "right", "::1").await;
    assert!(good.verified && !good.disabled);
    assert!(!house.login("alice", "wrong", "::1").await.verified);
    assert!(!house.login("alice", "", "::1").await.verified);

    house
        .change(AccountAct::Password, "alice@a.test", Some("new"))
        .await
        .unwrap();
    assert!(!house.login("alice", "right", "::1").await.verified);
    assert_eq!(
        house.login("alice", "new", "::1").await.credential_version,
        2
    );

    house
        .change(AccountAct::Disable, "alice@a.test", None)
        .await
        .unwrap();
    assert!(house.keys("alice", Hash::Sha256).await.disabled);
    let right = house.login("alice", "new", "::1").await;
    assert!(right.verified && right.disabled);
    let wrong = house.login("alice", "old", "::1").await;
    assert!(
        !wrong.verified && !wrong.disabled,
        "tells nothing to a guesser"
    );
    house
        .change(AccountAct::Enable, "alice@a.test", None)
        .await
        .unwrap();
    assert!(!house.login("alice", "new", "::1").await.disabled);

    house
        .change(AccountAct::Delete, "alice@a.test", None)
        .await
        .unwrap();
    assert!(!house.keys("alice", Hash::Sha256).await.usable);
    assert!(!house.login("alice", "new", "::1").await.verified);
    assert_eq!(*house.log.drops.lock(), ["alice@a.test"]);
    let acts = house.log.act_names();
    for act in [
        "account.add",
        "account.password",
        "account.disable",
        "account.delete",
    ] {
        assert!(acts.contains(&act.to_owned()), "{act} in {acts:?}");
    }
    let told = format!("{:?}", house.log.acts.lock());
    assert!(!told.contains("right") && told.contains("alice@a.test") && told.contains("root"));
    let error = house
        .change(AccountAct::Delete, "alice@a.test", None)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::NotFound);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_not_recorded() {
    let house = house().await;
    house.add("alice@a.test").await;
    let before = house.log.act_names();
    let cases = [
        (AccountAct::Add, "alice@a.test", Some("x"), Code::Exists),
        (AccountAct::Add, "bob@c.test", Some("x"), Code::NotFound),
        (AccountAct::Add, "bob@a.test/r", Some("x"), Code::Invalid),
        (
            AccountAct::Add,
            "admin\u{200b}@a.test",
            Some("x"),
            Code::Invalid,
        ),
        (AccountAct::Add, "bob@a.test", None, Code::Invalid),
        (AccountAct::Add, "bob@a.test", Some("a\u{7}"), Code::Invalid),
        (
            AccountAct::Password,
            "bob@a.test",
            Some("x"),
            Code::NotFound,
        ),
        (AccountAct::Disable, "bob@a.test", None, Code::NotFound),
        (AccountAct::Enable, "bob@a.test", None, Code::NotFound),
        (AccountAct::Unspecified, "alice@a.test", None, Code::Invalid),
    ];
    for (act, jid, secret, code) in cases {
        let error = house.change(act, jid, secret).await.unwrap_err();
        assert_eq!(error.code, code, "{act:?} {jid:?}: {error}");
    }
    assert_eq!(house.log.act_names(), before);
}

#[tokio::test(start_paused = true)]
async fn without_the_log_nothing_changes_but_the_cut_off() {
    let house = house().await;
    house.add("alice@a.test").await;
    house.log.away.store(true, Ordering::SeqCst);
    for (act, jid, secret) in [
        (AccountAct::Add, "bob@a.test", Some("x")),
        (AccountAct::Password, "alice@a.test", Some("x")),
        (AccountAct::Delete, "alice@a.test", None),
    ] {
        let error = house.change(act, jid, secret).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{act:?}");
    }
    assert_eq!(
        house.group(GroupAct::Create, &[]).await.unwrap_err().code,
        Code::Unavailable
    );
    assert!(house.login("alice", "right", "::1").await.verified);
    assert_eq!(house.list().await.len(), 1);

    house
        .change(AccountAct::Disable, "alice@a.test", None)
        .await
        .unwrap();
    assert!(house.login("alice", "right", "::1").await.disabled);
    let error = house
        .change(AccountAct::Enable, "alice@a.test", None)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(
        !house
            .log
            .act_names()
            .contains(&"account.disable".to_owned())
    );
    house.log.away.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let acts = house.log.act_names();
    assert_eq!(
        acts.iter().filter(|act| *act == "account.disable").count(),
        1
    );
}

#[tokio::test]
async fn a_recorded_act_that_fails_is_recorded_as_failed() {
    let house = house().await;
    house
        .failpoints
        .set("directory::change::recorded", "1*error")
        .unwrap();
    let error = house
        .change(AccountAct::Add, "alice@a.test", Some("x"))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(
        house.log.act_names(),
        ["account.add", "directory.change_failed"]
    );
    assert_eq!(house.list().await.len(), 0);
}

#[tokio::test]
async fn a_name_used_again_is_another_account() {
    let house = house().await;
    house.add("alice@a.test").await;
    let first = house.list().await.remove(0);
    house.log.refuse_drops.store(1, Ordering::SeqCst);
    let error = house
        .change(AccountAct::Delete, "alice@a.test", None)
        .await
        .unwrap_err();
    assert!(error.message.contains("deleted"), "{error}");
    assert!(!house.keys("alice", Hash::Sha256).await.usable);
    house.add("alice@a.test").await;
    assert_eq!(
        *house.log.drops.lock(),
        ["alice@a.test"],
        "dropped once, before the new one"
    );
    let second = house.list().await.remove(0);
    assert!(second.generation > first.generation);
    assert!(second.credential_version > first.credential_version);
}

/// A deletion: the cut-off first, also when it is asked for again.
#[tokio::test(start_paused = true)]
async fn a_deletion_asked_for_again_goes_on_wherever_it_stopped() {
    let house = house().await;
    house.add("alice@a.test").await;
    let disable = || house.change(AccountAct::Disable, "alice@a.test", None);
    let delete = || house.change(AccountAct::Delete, "alice@a.test", None);
    disable().await.unwrap();
    disable().await.unwrap();
    let add = house.change(AccountAct::Add, "alice@a.test", Some("x"));
    assert_eq!(add.await.unwrap_err().code, Code::Exists, "the name stays");
    house.log.refuse_drops.store(u64::MAX, Ordering::SeqCst);
    let error = delete().await.unwrap_err();
    assert!(error.message.contains("mailbox"), "{error}");
    disable().await.unwrap();
    assert_eq!(delete().await.unwrap_err().code, error.code);
    house.log.refuse_drops.store(0, Ordering::SeqCst);
    disable().await.unwrap();
    delete().await.unwrap();
    assert_eq!(*house.log.drops.lock(), ["alice@a.test"]);
    assert_eq!(disable().await.unwrap_err().code, Code::NotFound);
    assert_eq!(delete().await.unwrap_err().code, Code::NotFound);
    let acts = house.log.act_names();
    let of = |name: &str| acts.iter().filter(|act| *act == name).count();
    assert_eq!((of("account.disable"), of("account.delete")), (1, 1));
}

#[tokio::test]
async fn a_drop_left_over_by_an_earlier_process_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("directory.db")).unwrap());
    let first = house_on(store.clone(), 1).await;
    first.add("alice@a.test").await;
    first.log.refuse_drops.store(u64::MAX, Ordering::SeqCst);
    first
        .change(AccountAct::Delete, "alice@a.test", None)
        .await
        .unwrap_err();
    first.tasks.drain(Duration::from_secs(1)).await;
    let second = house_on(store.clone(), 2).await;
    for _ in 0..500 {
        if store.pending_drops(1).await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(*second.log.drops.lock(), ["alice@a.test"]);
}
