//! Dialogues of clients with sessions: messages, acknowledgements, requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::{Decision, Denial};

use super::harness::Server;
use crate::config::Config;

#[tokio::test]
async fn two_people_talk_and_every_word_is_recorded_first() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    alice
        .send("<message to='bob@a.test' type='chat' id='m1'><body>hello</body></message>")
        .await;
    bob.expect(&[
        "from='alice@a.test/desk'",
        "<body>hello</body>",
        "<stanza-id xmlns='urn:xmpp:sid:0' by='bob@a.test' id='id1'/>",
    ])
    .await;
    {
        let log = server.archive.state.lock();
        let [item] = &log.items[..] else { panic!() };
        assert_eq!(item.verdict.as_ref().unwrap().decision(), Decision::Allow);
        assert_eq!(
            (item.count, item.sm_id.len(), item.ephemeral),
            (1, 16, false)
        );
    }
    // without stream management it is acknowledged when it is written
    server
        .until("acknowledged", || {
            server.archive.state.lock().acknowledged == [1]
        })
        .await;
    alice.nothing().await;
    // an IQ to a resource, and its answer
    bob.send("<iq type='get' to='alice@a.test/desk' id='q'><query xmlns='jabber:iq:last'/></iq>")
        .await;
    alice.expect(&["<iq", "from='bob@a.test/phone'"]).await;
    alice
        .send("<iq type='result' to='bob@a.test/phone' id='q'/>")
        .await;
    bob.expect(&["type='result'", "from='alice@a.test/desk'", "id='q'"])
        .await;
}

#[tokio::test]
async fn what_is_denied_reaches_nobody_and_is_recorded() {
    let server = Server::start().await;
    server
        .policy
        .walled
        .lock()
        .push(("bob@a.test".into(), Denial::PolicyViolation));
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    alice
        .send("<message to='bob@a.test' id='m1'><body>psst</body></message>")
        .await;
    alice
        .expect(&[
            "type='error'",
            "from='bob@a.test'",
            "policy-violation",
            "ask compliance",
            "id='m1'",
        ])
        .await;
    bob.nothing().await;
    let log = server.archive.state.lock();
    assert_eq!(log.items.len(), 1);
    assert_eq!(
        log.items[0].verdict.as_ref().unwrap().decision(),
        Decision::Deny
    );
}

#[tokio::test]
async fn counts_and_acknowledgements() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    alice.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<failed", "unexpected-request"]).await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    let enabled = alice.expect(&["<enabled", "id='"]).await;
    assert!(!enabled.contains("resume"));
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<failed", "unexpected-request"]).await;
    server.archive.state.lock().held = Some(Vec::new());
    alice
        .send("<message to='bob@a.test'><body>1</body></message>")
        .await;
    alice
        .send("<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq><r xmlns='urn:xmpp:sm:3'/>")
        .await;
    alice.expect(&["id='p'"]).await;
    // After a second, in either order: what was written is to be acknowledged, and as the log is
    // slow, the count reached is told.
    let mut both = [alice.receive().await, alice.receive().await];
    both.sort();
    assert!(both[0].contains("<a ") && both[0].contains("h='0'") && both[1].contains("<r "));
    server.archive.release();
    // and unasked, when more has settled
    alice.expect(&["<a ", "h='2'"]).await;
    assert_eq!(server.archive.state.lock().items[0].count, 1);
    bob.receive().await;

    bob.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    bob.expect(&["<enabled"]).await;
    alice
        .send("<message to='bob@a.test'><body>2</body></message>")
        .await;
    bob.expect(&["<body>2</body>"]).await;
    bob.expect(&["<r "]).await;
    assert_eq!(server.archive.state.lock().acknowledged, [1]);
    bob.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    server
        .until("acknowledged", || {
            server.archive.state.lock().acknowledged == [1, 2]
        })
        .await;
    bob.send("<a xmlns='urn:xmpp:sm:3' h='9'/>").await;
    bob.expect(&[
        "stream:error",
        "undefined-condition",
        "handled-count-too-high",
    ])
    .await;
    assert_eq!(bob.receive().await, "</stream>");
}

#[tokio::test]
async fn resume_is_refused_with_the_count_of_the_log() {
    let server = Server::start().await;
    let mut alice = server.authenticated("alice@a.test").await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<failed", "unexpected-request"]).await;
    alice
        .send("<resume xmlns='urn:xmpp:sm:3' previd='00112233445566778899aabbccddeeff' h='3'/>")
        .await;
    alice.expect(&["<failed", "h='7'", "item-not-found"]).await;
    alice
        .send("<resume xmlns='urn:xmpp:sm:3' previd='?' h='3'/>")
        .await;
    let failed = alice.expect(&["<failed", "item-not-found"]).await;
    assert!(!failed.contains("h='"));
    // and then binds; the server makes a resource
    alice
        .send("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
        .await;
    alice.expect(&["<jid>alice@a.test/", "type='result'"]).await;
    alice
        .send("<iq type='set' id='2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
        .await;
    alice.expect(&["not-allowed", "id='2'"]).await;
}

#[tokio::test]
async fn nothing_is_said_before_a_resource_is_bound() {
    let server = Server::start().await;
    let mut alice = server.authenticated("alice@a.test").await;
    alice
        .send("<message to='bob@a.test'><body>x</body></message>")
        .await;
    alice.expect(&["stream:error", "not-authorized"]).await;
    let mut mallory = server.login("mallory@a.test", "r").await;
    mallory
        .send("<message from='alice@a.test/r' to='bob@a.test'><body>x</body></message>")
        .await;
    mallory.expect(&["stream:error", "invalid-from"]).await;
    assert!(server.archive.state.lock().items.is_empty());
    server
        .until("left", || server.gateway.sessions() == 0)
        .await;
}

#[tokio::test]
async fn requests_to_who_is_gone_are_answered() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice
        .send("<iq type='get' to='bob@a.test/nowhere' id='q'><x xmlns='u'/></iq>")
        .await;
    alice
        .expect(&[
            "type='error'",
            "service-unavailable",
            "from='bob@a.test/nowhere'",
            "id='q'",
        ])
        .await;
    // delivered, and never acknowledged: answered when the session ends
    let mut bob = server.login("bob@a.test", "phone").await;
    bob.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    bob.expect(&["<enabled"]).await;
    alice
        .send("<iq type='get' to='bob@a.test/phone' id='q2'><x xmlns='u'/></iq>")
        .await;
    bob.expect(&["id='q2'"]).await;
    drop(bob);
    alice
        .expect(&[
            "type='error'",
            "service-unavailable",
            "from='bob@a.test/phone'",
            "id='q2'",
        ])
        .await;
}

#[tokio::test]
async fn what_the_server_answers_itself() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    for (request, parts) in [
        (
            "to='a.test'><query xmlns='http://jabber.org/protocol/disco#info'/>",
            &["category='server'", "from='a.test'"][..],
        ),
        (
            "><query xmlns='http://jabber.org/protocol/disco#info'/>",
            &["category='account'"][..],
        ),
        (
            "to='a.test'><query xmlns='http://jabber.org/protocol/disco#info' node='x'/>",
            &["item-not-found"][..],
        ),
        (
            "to='a.test'><query xmlns='jabber:iq:version'/>",
            &["<name>Chancery</name>"][..],
        ),
        (
            "to='a.test'><time xmlns='urn:xmpp:time'/>",
            &["<tzo>+00:00</tzo>"][..],
        ),
        (
            "><query xmlns='jabber:iq:roster'/>",
            &["jid='bob@a.test'", "subscription='both'"][..],
        ),
        ("><x xmlns='urn:unknown'/>", &["service-unavailable"][..]),
    ] {
        alice
            .send(&format!("<iq type='get' id='1' {request}</iq>"))
            .await;
        alice.expect(parts).await;
    }
    alice
        .send("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>")
        .await;
    alice.expect(&["type='result'", "id='c'"]).await;
    assert!(
        server.archive.state.lock().items.is_empty(),
        "none of it is routed"
    );
}

#[tokio::test]
async fn a_session_over_its_rate_is_read_slower_and_refused_nothing() {
    let config = Config {
        stanzas_per_second: 50,
        stanzas_burst: 50,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let before = tokio::time::Instant::now();
    let pings = "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>".repeat(75);
    alice.send(&pings).await;
    for _ in 0..75 {
        alice.expect(&["type='result'"]).await;
    }
    assert!(
        before.elapsed() >= Duration::from_millis(400),
        "{:?}",
        before.elapsed()
    );
}

/// B13: what an account's sessions, or a domain's, send together is read no faster than they may, and
/// somebody else meanwhile.
#[tokio::test]
async fn sessions_over_the_rate_of_their_account_or_domain_are_read_slower() {
    for of_account in [true, false] {
        let mut config = Config {
            account_stanzas_per_second: 20,
            account_stanzas_burst: 50,
            ..Config::default()
        };
        if !of_account {
            config = Config {
                domain_stanzas_per_second: 20,
                domain_stanzas_burst: 50,
                ..Config::default()
            };
        }
        let server = Server::with(config).await;
        let mut desk = server.login("alice@a.test", "desk").await;
        let mut phone = server.login("alice@a.test", "phone").await;
        let mut bob = server.login("bob@a.test", "desk").await;
        let before = tokio::time::Instant::now();
        let pings = "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>".repeat(30);
        desk.send(&pings).await;
        for _ in 0..30 {
            desk.expect(&["type='result'"]).await;
        }
        phone.send(&pings).await;
        if of_account {
            bob.send(&pings).await;
            for _ in 0..30 {
                bob.expect(&["type='result'"]).await;
            }
        }
        for _ in 0..30 {
            phone.expect(&["type='result'"]).await;
        }
        // Ten more than the burst, at twenty a second.
        assert!(
            before.elapsed() >= Duration::from_millis(400),
            "{:?}",
            before.elapsed()
        );
    }
}

#[test]
fn an_idle_session_is_small() {
    let size = std::mem::size_of::<super::Session>()
        + std::mem::size_of::<super::Handle>()
        + std::mem::size_of::<super::identity::Identity>();
    assert!(size <= 1024, "{size} bytes");
}
