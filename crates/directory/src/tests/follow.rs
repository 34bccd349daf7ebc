//! Followers: snapshot, changes, confirmation, lag.

use super::*;

#[tokio::test]
async fn the_cut_off_reaches_a_follower_before_the_answer() {
    let house = house().await;
    house.add("alice@a.test").await;
    let mut link = house.follow("gw1").await;
    let snapshot = next(&mut link).await;
    assert!(snapshot.snapshot && snapshot.complete);
    assert_eq!(snapshot.domains, ["a.test", "b.test"]);
    assert_eq!(snapshot.accounts[0].state(), AccountState::Active);
    confirm(&link, snapshot.version).await;

    let confirmed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&confirmed);
    let follower = house.tasks.spawn("follower", async move {
        let cut = next(&mut link).await;
        assert_eq!(cut.accounts[0].jid, "alice@a.test");
        assert_eq!(cut.accounts[0].state(), AccountState::Disabled);
        assert!(cut.complete && !cut.snapshot && cut.version > snapshot.version);
        seen.store(true, Ordering::SeqCst);
        confirm(&link, cut.version).await;
    });
    let done = house
        .change(AccountAct::Disable, "alice@a.test", None)
        .await
        .unwrap();
    assert!(confirmed.load(Ordering::SeqCst));
    assert_eq!(done.unconfirmed, [""; 0]);
    follower.await.unwrap();
}

#[tokio::test]
async fn a_change_of_ones_own_password_names_the_session() {
    let house = house().await;
    house.add("alice@a.test").await;
    let mut link = house.follow("gw1").await;
    let before = next(&mut link).await;
    let change = |session: &str, password: &str| {
        let request = ChangePasswordRequest {
            session: session.into(),
            password: password.into(),
        };
        let directory = house.directory.clone();
        async move { directory.change_password(&Cx::local(), request).await }
    };
    for (session, password) in [
        ("alice@a.test", "new"),
        ("alice@a.test/desk", ""),
        ("nobody@a.test/desk", "new"),
        ("alice@elsewhere.test/desk", "new"),
    ] {
        assert!(change(session, password).await.is_err(), "{session}");
    }
    let done = house.tasks.spawn("change", {
        let change = change("alice@a.test/desk", "new");
        async move { change.await.map(drop).unwrap() }
    });
    let told = next(&mut link).await;
    assert_eq!(told.accounts[0].changed_by, "alice@a.test/desk");
    assert!(told.accounts[0].credential_version > before.accounts[0].credential_version);
    confirm(&link, told.version).await;
    done.await.unwrap();
    let acts = house.log.acts.lock();
    let act = acts.last().unwrap();
    assert_eq!(
        (act.act.as_str(), act.actor.as_str()),
        ("account.password", "alice@a.test/desk")
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_follower_is_named_and_life_is_shown() {
    let house = house().await;
    let mut link = house.follow("gw-slow").await;
    assert!(next(&mut link).await.complete);
    let done = house
        .change(AccountAct::Add, "alice@a.test", Some("x"))
        .await
        .unwrap();
    assert_eq!(done.unconfirmed, ["gw-slow"]);
    assert_eq!(next(&mut link).await.version, done.version);
    for _ in 0..3 {
        let alive = tokio::time::timeout(Duration::from_millis(1_100), link.recv()).await;
        let alive = alive.unwrap().unwrap();
        assert!(alive.complete && !alive.snapshot && alive.accounts.is_empty());
    }
    // It cannot confirm what it was not sent.
    confirm(&link, u64::MAX).await;
    let late = house
        .change(AccountAct::Disable, "alice@a.test", None)
        .await
        .unwrap();
    assert_eq!(late.unconfirmed, ["gw-slow"]);
    drop(link);
    let done = house
        .change(AccountAct::Enable, "alice@a.test", None)
        .await
        .unwrap();
    assert_eq!(done.unconfirmed, [""; 0], "who is gone is not waited for");
}

#[tokio::test]
async fn a_follower_that_takes_nothing_is_let_go() {
    let house = house().await;
    house.add("alice@a.test").await;
    let mut link = house.follow("gw1").await;
    // More than a link and a feed hold, committed without waiting for it.
    let mut version = 0;
    for round in 0..1_400 {
        let store = house.directory.clone();
        let found = store.inner().store.find(crate::Name {
            domain: "a.test".into(),
            localpart: "alice".into(),
        });
        version = found.await.unwrap().unwrap().0.version;
        let change = if round % 2 == 0 {
            let act = crate::store::Act {
                domain: "a.test".into(),
                actor: "r".into(),
                act: "x".into(),
                detail: "{}".into(),
            };
            crate::store::Change::Disable { name: alice(), act }
        } else {
            crate::store::Change::Enable {
                name: alice(),
                seen: version,
            }
        };
        store.inner().commit(vec![change], "").await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        while link.recv().await.is_some() {}
    })
    .await
    .expect("the link ends");
    let mut link = house.follow("gw1").await;
    assert!(next(&mut link).await.version >= version);
}

fn alice() -> crate::Name {
    crate::Name {
        domain: "a.test".into(),
        localpart: "alice".into(),
    }
}
