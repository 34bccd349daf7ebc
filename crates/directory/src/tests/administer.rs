//! Administrators of a domain and what they may do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const ADMIN: &str = "alice@a.test/desk";

impl House {
    async fn is_administrator(&self, session: &str) -> bool {
        let request = AdministratorRequest {
            session: session.into(),
        };
        let answer = self.directory.administrator(&Cx::local(), request).await;
        answer.unwrap().administrator
    }

    async fn administer(
        &self,
        session: &str,
        act: AccountAct,
        jids: &[&str],
        secret: Option<&str>,
    ) -> Result<AdministerResponse, Code> {
        let request = AdministerRequest {
            session: session.into(),
            act: act.into(),
            jids: jids.iter().map(|jid| (*jid).to_owned()).collect(),
            credentials: secret.and_then(password),
        };
        let done = self.directory.administer(&Cx::local(), request).await;
        done.map_err(|error| error.code)
    }
}

async fn staffed() -> House {
    let house = house().await;
    for jid in ["alice@a.test", "bob@a.test", "carol@a.test", "alice@b.test"] {
        house.add(jid).await;
    }
    house
}

#[tokio::test]
async fn administrators_are_named_or_in_a_group_and_active() {
    let house = staffed().await;
    assert!(house.is_administrator(ADMIN).await);
    for other in ["bob@a.test/x", "alice@b.test/x", "nobody@a.test/x"] {
        assert!(!house.is_administrator(other).await, "{other}");
    }
    house.group(GroupAct::Create, &[]).await.unwrap();
    let members = ["bob@a.test"];
    house.group(GroupAct::AddMembers, &members).await.unwrap();
    assert!(house.is_administrator("bob@a.test/x").await);
    house.group(GroupAct::Delete, &[]).await.unwrap();
    assert!(!house.is_administrator("bob@a.test/x").await);
    house
        .change(AccountAct::Disable, "alice@a.test", None)
        .await
        .unwrap();
    assert!(!house.is_administrator(ADMIN).await);
}

#[tokio::test]
async fn a_change_is_recorded_under_the_session_that_made_it() {
    let house = staffed().await;
    let before = house.log.act_names().len();
    let add = AccountAct::Add;
    let done = house.administer(ADMIN, add, &["dave@a.test"], Some("secret"));
    assert_eq!(done.await.unwrap().done, ["dave@a.test"]);
    assert!(house.login("dave", "secret", "192.0.2.9").await.verified);
    let both = ["bob@a.test", "dave@a.test"];
    for act in [
        AccountAct::Disable,
        AccountAct::Enable,
        AccountAct::EndSessions,
        AccountAct::Delete,
    ] {
        let done = house.administer(ADMIN, act, &both, None).await.unwrap();
        assert_eq!((done.done.len(), done.failed.as_str()), (2, ""), "{act:?}");
    }
    let acts: Vec<(String, String)> = house.log.acts.lock()[before..]
        .iter()
        .map(|act| (act.act.clone(), act.actor.clone()))
        .collect();
    let of = |name: &str| acts.iter().filter(|(act, _)| act == name).count();
    assert_eq!((of("account.add"), of("account.delete")), (1, 2));
    assert_eq!(of("account.end_sessions"), 2);
    assert!(acts.iter().all(|(_, actor)| actor == ADMIN), "{acts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_stopped_at_the_mailbox_is_finished_from_a_session_too() {
    let house = staffed().await;
    let both = ["bob@a.test", "carol@a.test"];
    let ask = |act| house.administer(ADMIN, act, &both, None);
    house.log.refuse_drops.store(u64::MAX, Ordering::SeqCst);
    ask(AccountAct::Disable).await.unwrap();
    ask(AccountAct::Delete).await.unwrap_err();
    assert_eq!(
        ask(AccountAct::Enable).await.unwrap_err(),
        Code::NotFound,
        "bob is gone"
    );
    house.log.refuse_drops.store(0, Ordering::SeqCst);
    for act in [AccountAct::Disable, AccountAct::Delete] {
        let done = ask(act).await.unwrap();
        assert_eq!((done.done.len(), done.failed.as_str()), (2, ""), "{act:?}");
    }
    assert_eq!(*house.log.drops.lock(), both);
    let again = ask(AccountAct::Disable).await.unwrap_err();
    assert_eq!(again, Code::NotFound);
}

#[tokio::test]
async fn the_end_of_sessions_leaves_the_password() {
    let house = staffed().await;
    let before = house.login("bob", "right", "192.0.2.9").await;
    let end = AccountAct::EndSessions;
    house
        .administer(ADMIN, end, &["bob@a.test"], None)
        .await
        .unwrap();
    let after = house.login("bob", "right", "192.0.2.9").await;
    assert!(after.verified && after.credential_version > before.credential_version);
}

#[tokio::test]
async fn others_are_refused_and_nothing_is_done_by_half() {
    let house = staffed().await;
    let before = house.log.act_names().len();
    let disable = AccountAct::Disable;
    for (session, act, jids, secret, code) in [
        (
            "bob@a.test/x",
            disable,
            &["carol@a.test"][..],
            None,
            Code::Denied,
        ),
        (
            "alice@b.test/x",
            disable,
            &["carol@a.test"],
            None,
            Code::Denied,
        ),
        (ADMIN, disable, &["alice@b.test"], None, Code::Denied),
        (
            ADMIN,
            disable,
            &["bob@a.test", "alice@b.test"],
            None,
            Code::Denied,
        ),
        (
            ADMIN,
            disable,
            &["bob@a.test", "nobody@a.test"],
            None,
            Code::NotFound,
        ),
        (
            ADMIN,
            disable,
            &["bob@a.test", "BOB@a.test"],
            None,
            Code::Invalid,
        ),
        (ADMIN, disable, &[], None, Code::Invalid),
        (ADMIN, disable, &["@"], None, Code::Invalid),
        (ADMIN, disable, &["bob@a.test"], Some("x"), Code::Invalid),
        (
            ADMIN,
            AccountAct::Unspecified,
            &["bob@a.test"],
            None,
            Code::Invalid,
        ),
        (
            ADMIN,
            AccountAct::Add,
            &["bob@a.test"],
            Some("x"),
            Code::Exists,
        ),
        (ADMIN, AccountAct::Add, &["new@a.test"], None, Code::Invalid),
        (
            ADMIN,
            AccountAct::Add,
            &["x@a.test", "y@a.test"],
            Some("x"),
            Code::Invalid,
        ),
        (
            "alice@a.test",
            disable,
            &["bob@a.test"],
            None,
            Code::Invalid,
        ),
    ] {
        let done = house.administer(session, act, jids, secret).await;
        assert_eq!(done.unwrap_err(), code, "{session} {act:?} {jids:?}");
    }
    assert_eq!(house.log.act_names().len(), before, "nothing was done");
    assert!(house.login("bob", "right", "192.0.2.9").await.verified);
}
