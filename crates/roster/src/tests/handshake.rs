//! Subscriptions: what goes out, and in which order.

use super::*;

#[tokio::test]
async fn a_handshake_is_told_before_its_push_and_a_request_waits() {
    let mut house = house();
    let says = |act: SubscriptionAct, owner: &str, peer: &str| HandshakeRequest {
        owner: owner.into(),
        peer: peer.into(),
        act: act.into(),
        payload: "<presence/>".into(),
        heard: true,
        answers: true,
        policy_version: 3,
    };
    let (bob, cx) = ("bob@a.test", Cx::local());
    let asks = says(SubscriptionAct::Subscribe, bob, ALICE);
    house.roster.handshake(&cx, asks).await.unwrap();
    let (asked, payload) = house.pushed().await;
    let verdict = asked.verdict.clone().unwrap();
    assert_eq!(
        (asked.kind(), &*asked.r#type),
        (Kind::Presence, "subscribe")
    );
    assert_eq!((&*asked.from, &*asked.to), (bob, ALICE));
    assert_eq!((verdict.policy_version, &*payload), (3, "<presence/>"));
    assert!(asked.ephemeral && asked.audience() == Audience::Unspecified);
    assert!(house.pushed().await.1.contains("ask='subscribe'"));

    let session = || RequestsRequest {
        session: "alice@a.test/desk".into(),
    };
    let waiting = house.roster.requests(&cx, session()).await.unwrap();
    let (again, _) = house.pushed().await;
    assert_eq!((waiting.waiting, &*again.to), (1, "alice@a.test/desk"));

    let answer = says(SubscriptionAct::Subscribed, ALICE, bob);
    house.roster.handshake(&cx, answer).await.unwrap();
    assert_eq!(house.pushed().await.0.r#type, "subscribed");
    let (own, payload) = house.pushed().await;
    assert!(own.to == ALICE && payload.contains("subscription='from'"));
    let (peers, payload) = house.pushed().await;
    assert!(peers.to == bob && payload.contains("subscription='to'"));
    let waiting = house.roster.requests(&cx, session()).await.unwrap();
    assert_eq!(waiting.waiting, 0);

    let oneself = says(SubscriptionAct::Subscribe, ALICE, ALICE);
    let nothing = says(SubscriptionAct::Unspecified, ALICE, bob);
    for bad in [oneself, nothing] {
        let error = house.roster.handshake(&cx, bad).await.unwrap_err();
        assert_eq!(error.code, Code::Invalid);
    }
}
