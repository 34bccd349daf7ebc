//! Block lists: in force before they are told.

use super::*;

#[tokio::test]
async fn a_block_is_with_every_follower_before_it_is_answered_and_told() {
    let mut house = house();
    let (roster, cx) = (house.roster.clone(), Cx::local());
    house.put("bob@a.test", Subscription::Both).await.unwrap();
    house.pushed().await;
    let mut link = roster.watch(&cx).await.unwrap();
    let item = |item| WatchDown { item: Some(item) };
    let hello = WatchHello {
        follower: "gw1".into(),
    };
    link.send(item(watch_down::Item::Hello(hello)))
        .await
        .unwrap();
    let first = link.recv().await.unwrap();
    assert!(first.snapshot && first.complete && first.lists.is_empty());

    let ask = |jids: &[&str], unblock| BlockRequest {
        owner: ALICE.into(),
        jids: jids.iter().map(ToString::to_string).collect(),
        unblock,
    };
    let blocking = {
        let (roster, ask) = (roster.clone(), ask(&["BOB@a.test", "evil.test"], false));
        Tasks::new().spawn("block", async move {
            roster.block(&Cx::local(), ask).await.unwrap();
        })
    };
    let list = loop {
        let up = link.recv().await.unwrap();
        if let Some(list) = up.lists.into_iter().next() {
            break (up.version, list);
        }
    };
    assert_eq!(
        (&*list.1.owner, &list.1.jids[..]),
        (ALICE, &["bob@a.test".to_owned(), "evil.test".into()][..])
    );
    assert!(
        house.pushes.try_recv().is_err(),
        "told before it is in force"
    );
    let confirm = WatchConfirm { version: list.0 };
    link.send(item(watch_down::Item::Confirm(confirm)))
        .await
        .unwrap();
    let (own, payload) = house.pushed().await;
    assert_eq!((&*own.to, own.audience()), (ALICE, Audience::Blocks));
    assert!(payload.contains("<block xmlns='urn:xmpp:blocking'><item jid='bob@a.test'/>"));
    let (contact, payload) = house.pushed().await;
    assert_eq!((&*contact.to, &*payload), ("bob@a.test", ""));
    blocking.await.unwrap();

    let known = roster
        .blocks(
            &cx,
            BlocksRequest {
                owner: ALICE.into(),
            },
        )
        .await
        .unwrap();
    assert_eq!(known.jids, ["bob@a.test", "evil.test"]);
    for (bad, code) in [
        (ask(&[], false), Code::Invalid),
        (ask(&["@"], false), Code::Invalid),
        (ask(&["x"; 1_001], false), Code::Resource),
    ] {
        assert_eq!(roster.block(&cx, bad).await.unwrap_err().code, code);
    }
    // A follower that does not confirm is not waited for without end.
    tokio::time::pause();
    let late = roster.block(&cx, ask(&[], true)).await.unwrap_err();
    assert_eq!(late.code, Code::Unavailable);
    // It is changed all the same, and told; asking again is answered no sooner.
    assert!(house.pushed().await.1.contains("<unblock "));
    house.pushed().await;
    let again = roster.block(&cx, ask(&[], true)).await.unwrap_err();
    assert_eq!(again.code, Code::Unavailable);
    assert!(house.pushes.try_recv().is_err(), "told twice");
    drop(link);
    roster.block(&cx, ask(&[], true)).await.unwrap();
}
