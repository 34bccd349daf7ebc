//! Imports, groups, lists.

use super::*;

#[tokio::test]
async fn import_adds_the_good_and_names_the_bad() {
    let house = house().await;
    house.add("alice@a.test").await;
    let item = |jid: &str, secret: &str| ImportAccount {
        jid: jid.into(),
        credentials: password(secret),
    };
    let mut accounts: Vec<_> = (0..40)
        .map(|n| item(&format!("u{n:02}@a.test"), "secret"))
        .collect();
    accounts.push(item("alice@a.test", "x"));
    accounts.push(item("U00@a.test", "x"));
    accounts.push(item("not a jid", "x"));
    accounts.push(item("empty@a.test", ""));
    accounts.push(item("other@b.test", "x"));
    let keys = house.keys("alice", Hash::Sha256).await.keys.unwrap();
    let ready = NewCredentials {
        password: String::new(),
        keys: vec![keys.clone()],
    };
    accounts.push(ImportAccount {
        jid: "ready@a.test".into(),
        credentials: Some(ready),
    });
    let request = ImportAccountsRequest {
        accounts,
        actor: "root".into(),
    };
    let done = house
        .directory
        .import_accounts(&Cx::local(), request)
        .await
        .unwrap();
    assert_eq!(done.added, 42);
    let bad: Vec<u32> = done.problems.iter().map(|problem| problem.index).collect();
    assert_eq!(bad, [40, 41, 42, 43], "{:?}", done.problems);
    assert!(house.login("u39", "secret", "::1").await.verified);
    assert!(
        house.login("ready", "right", "::1").await.verified,
        "alice's keys"
    );
    assert!(!house.keys("ready", Hash::Sha1).await.usable);
    let imports: Vec<_> = house
        .log
        .acts
        .lock()
        .iter()
        .filter(|a| a.act == "account.import")
        .cloned()
        .collect();
    assert_eq!(imports.len(), 2, "one act per domain");
    assert!(
        imports[0].detail.contains("\"count\":41"),
        "{}",
        imports[0].detail
    );
    assert!(!imports[0].detail.contains("secret"));
    let generations: std::collections::HashSet<u64> = house
        .list()
        .await
        .iter()
        .map(|account| account.generation)
        .collect();
    assert_eq!(generations.len(), 2, "one transaction");

    let many = vec![item("x@a.test", "x"); 501];
    let request = ImportAccountsRequest {
        accounts: many,
        actor: "root".into(),
    };
    let error = house
        .directory
        .import_accounts(&Cx::local(), request)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Resource);
    house.log.away.store(true, Ordering::SeqCst);
    let request = ImportAccountsRequest {
        accounts: vec![item("y@a.test", "x")],
        actor: "root".into(),
    };
    let error = house
        .directory
        .import_accounts(&Cx::local(), request)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(!house.keys("y", Hash::Sha256).await.usable);
}

#[tokio::test]
async fn groups_hold_members_of_their_domain_only() {
    let house = house().await;
    for jid in ["alice@a.test", "bob@a.test", "eve@b.test"] {
        house.add(jid).await;
    }
    assert_eq!(
        house
            .group(GroupAct::AddMembers, &["alice@a.test"])
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
    house.group(GroupAct::Create, &[]).await.unwrap();
    let mut link = house.follow("policy").await;
    let snapshot = next(&mut link).await;
    assert_eq!(snapshot.groups.len(), 1);
    confirm(&link, u64::MAX).await;
    let follower = house.tasks.spawn("follower", async move {
        let change = next(&mut link).await;
        assert_eq!(change.groups[0].members, ["alice@a.test", "bob@a.test"]);
        confirm(&link, change.version).await;
        let gone = next(&mut link).await;
        assert_eq!(
            gone.groups[0].members,
            ["bob@a.test"],
            "a deleted account leaves"
        );
        confirm(&link, gone.version).await;
        while link.recv().await.is_some_and(|up| up.groups.is_empty()) {}
    });
    house
        .group(GroupAct::AddMembers, &["Alice@a.test", "bob@a.test"])
        .await
        .unwrap();
    for bad in ["eve@b.test", "ghost@a.test", "a.test"] {
        assert!(
            house.group(GroupAct::AddMembers, &[bad]).await.is_err(),
            "{bad}"
        );
    }
    assert_eq!(
        house
            .group(GroupAct::AddMembers, &[])
            .await
            .unwrap_err()
            .code,
        Code::Invalid
    );
    house
        .change(AccountAct::Delete, "alice@a.test", None)
        .await
        .unwrap();
    let request = ListGroupsRequest {
        domain: "A.test".into(),
    };
    let listed = house
        .directory
        .list_groups(&Cx::local(), request)
        .await
        .unwrap();
    assert_eq!(listed.groups[0].members, ["bob@a.test"]);
    house.group(GroupAct::Delete, &[]).await.unwrap();
    follower.await.unwrap();
}

#[tokio::test]
async fn accounts_are_listed_in_pages() {
    let house = house().await;
    for n in 0..5 {
        house.add(&format!("u{n}@a.test")).await;
    }
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let request = ListAccountsRequest {
            domain: "a.test".into(),
            after,
            limit: 2,
        };
        let page = house
            .directory
            .list_accounts(&Cx::local(), request)
            .await
            .unwrap();
        assert!(page.accounts.len() <= 2);
        after = page.accounts.last().unwrap().jid.clone();
        seen.extend(page.accounts.into_iter().map(|account| account.jid));
        if !page.more {
            break;
        }
    }
    assert_eq!(
        seen,
        (0..5).map(|n| format!("u{n}@a.test")).collect::<Vec<_>>()
    );
}
