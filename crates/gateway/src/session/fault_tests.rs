//! Sessions while something changes or is away: policy, the log, accounts, the process itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{Deliver, EndReason, EndSession, Form, Target, attach_up};
use chancery_api::directory::{AccountFact, AccountState};
use chancery_api::presence::{Act, AttachUp};
use chancery_api::{Denial, Kind};

use super::harness::Server;
use crate::config::Config;

/// A message for the second session, decided under version 1.
fn message(number: u64, body: &str) -> attach_up::Item {
    let target = Target {
        session: 2,
        form: Form::Original.into(),
        delayed: false,
        entry: true,
    };
    attach_up::Item::Deliver(Deliver {
        number,
        from: "alice@a.test/desk".into(),
        to: "bob@a.test".into(),
        kind: Kind::Message.into(),
        payload: Bytes::from(format!(
            "<message xmlns='jabber:client'><body>{body}</body></message>"
        )),
        policy_version: 1,
        targets: vec![target],
        ..Deliver::default()
    })
}

#[tokio::test]
async fn without_policy_nothing_is_delivered() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    *server.policy.away.lock() = true;
    alice
        .send("<message to='bob@a.test' id='m1'><body>x</body></message>")
        .await;
    // what is for the server does not wait
    alice.nothing().await;
    alice
        .expect(&["resource-constraint", "type='wait'", "id='m1'"])
        .await;
    assert!(server.archive.state.lock().items.is_empty());
    *server.policy.away.lock() = false;
    alice
        .send("<message to='bob@a.test' id='m2'><body>x</body></message>")
        .await;
    bob.expect(&["id='m2'"]).await;
}

#[tokio::test]
async fn presence_is_decided_confirmed_and_published() {
    let server = Server::start().await;
    server
        .policy
        .walled
        .lock()
        .push(("eve@a.test".into(), Denial::ServiceUnavailable));
    let mut alice = server.login("alice@a.test", "desk").await;
    alice
        .send("<presence><status>writing</status><priority>5</priority></presence>")
        .await;
    server
        .until("published", || {
            server.presence.acts() == [Act::Available, Act::Probe]
        })
        .await;
    {
        let published = server.presence.published.lock();
        assert_eq!(
            published[0].targets,
            ["bob@a.test"],
            "not to whom the wall hides"
        );
        assert_eq!(published[0].priority, 5);
        // its text is in the log
        assert_eq!(server.archive.state.lock().items.len(), 1);
    }
    // somebody's presence comes up, decided under no version: policy is asked
    let up = AttachUp {
        from: "bob@a.test/phone".into(),
        payload: Bytes::from_static(b"<presence xmlns='jabber:client' from='bob@a.test/phone'/>"),
        sessions: vec![1],
        ..AttachUp::default()
    };
    let asked = server.policy.asked.lock().len();
    let link = server.presence.up.lock().take().unwrap();
    link.send(up).await.unwrap();
    alice
        .expect(&["<presence", "from='bob@a.test/phone'", "to='alice@a.test'"])
        .await;
    assert_eq!(server.policy.asked.lock().len(), asked + 1);
    // a newer policy: everybody's presence is looked at again
    server.policy.version.send_replace(2);
    server
        .until("refreshed", || {
            server.presence.acts().contains(&Act::Refresh)
        })
        .await;
    link.send(AttachUp {
        resync: true,
        ..AttachUp::default()
    })
    .await
    .unwrap();
    server
        .until("registered", || {
            server.presence.acts().contains(&Act::Resync)
        })
        .await;
    alice.send("</stream:stream>").await;
    assert_eq!(alice.receive().await, "</stream>");
    server
        .until("gone", || {
            server.presence.acts().last() == Some(&Act::Unavailable)
        })
        .await;
    assert_eq!(server.archive.state.lock().detached, [1]);
}

#[tokio::test]
async fn own_presence_waits_for_policy() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    *server.policy.away.lock() = true;
    alice.send("<presence/>").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.presence.acts().is_empty());
    *server.policy.away.lock() = false;
    server
        .until("published", || {
            server.presence.acts() == [Act::Available, Act::Probe]
        })
        .await;
    alice.nothing().await;
}

#[tokio::test]
async fn a_newer_policy_is_asked_before_anything_older_is_written() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    // in the log under version 1, not yet handed out when version 2 comes
    let before = server.archive.state.lock().items.len();
    server
        .policy
        .walled
        .lock()
        .push(("bob@a.test".into(), Denial::ServiceUnavailable));
    server.policy.version.send_replace(2);
    server
        .until("confirmed", || *server.policy.confirmed.lock() == 2)
        .await;
    server.archive.say(message(40, "late"));
    server
        .until("denied", || server.archive.state.lock().denied == [40])
        .await;
    bob.nothing().await;
    alice.nothing().await;
    assert_eq!(server.archive.state.lock().items.len(), before);
}

#[tokio::test]
async fn while_policy_is_out_of_reach_nothing_is_handed_out() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    // decided and in the log, and then the gateway hears no more of policy
    server.gateway.policy.lost();
    *server.policy.silent.lock() = true;
    server.archive.say(message(1, "held"));
    bob.nothing().await;
    alice
        .send("<message to='bob@a.test' id='m'><body>x</body></message>")
        .await;
    alice.expect(&["resource-constraint", "id='m'"]).await;
    bob.nothing().await;
    *server.policy.silent.lock() = false;
    bob.expect(&["<body>held</body>"]).await;
}

#[tokio::test]
async fn a_cut_off_account_is_out_at_once() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    let fact = |jid: &str, state: AccountState, credential_version| AccountFact {
        jid: jid.into(),
        state: state.into(),
        credential_version,
        generation: 1,
        ..AccountFact::default()
    };
    server
        .directory
        .facts
        .send_replace((2, Some(fact("alice@a.test", AccountState::Disabled, 1))));
    alice
        .expect(&["stream:error", "not-authorized", "disabled"])
        .await;
    server
        .until("confirmed", || *server.directory.confirmed.lock() == 2)
        .await;
    bob.nothing().await;
    server
        .directory
        .facts
        .send_replace((3, Some(fact("bob@a.test", AccountState::Active, 2))));
    bob.expect(&["stream:error", "<reset"]).await;
}

#[tokio::test]
async fn the_shard_ends_a_session_that_was_replaced() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let end = EndSession {
        session: 1,
        reason: EndReason::Conflict.into(),
    };
    server.archive.say(attach_up::Item::End(end));
    alice.expect(&["stream:error", "<conflict"]).await;
}

#[tokio::test]
async fn a_lost_stream_of_the_log_is_attached_again_with_its_place() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    bob.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    bob.expect(&["<enabled"]).await;
    alice
        .send("<message to='bob@a.test'><body>1</body></message>")
        .await;
    bob.expect(&["<body>1</body>"]).await;
    server.archive.lose();
    server
        .until("attached again", || {
            let log = server.archive.state.lock();
            log.attached.iter().filter(|attach| attach.again).count() == 2
        })
        .await;
    {
        let log = server.archive.state.lock();
        let again = log
            .attached
            .iter()
            .find(|a| a.again && a.session == 2)
            .unwrap();
        assert_eq!((again.position, &again.unacknowledged[..]), (1, &[1][..]));
        assert_eq!(again.credit, Config::default().sm_queue_stanzas / 2 - 1);
    }
    alice
        .send("<message to='bob@a.test'><body>2</body></message>")
        .await;
    loop {
        let got = bob.receive().await;
        if got.contains("<body>2</body>") {
            break;
        }
        assert!(got.starts_with("<r"), "{got}");
    }
}

#[tokio::test]
async fn shutdown_drains_and_says_so() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    server.archive.state.lock().held = Some(Vec::new());
    alice
        .send("<message to='nobody@a.test' id='m'><body>x</body></message>")
        .await;
    server
        .until("submitted", || server.archive.state.lock().items.len() == 1)
        .await;
    let streams = server.streams.clone();
    let drain = streams.drain(Duration::from_secs(5));
    let talk = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.archive.release();
        alice.expect(&["stream:error", "system-shutdown"]).await;
        assert_eq!(alice.receive().await, "</stream>");
        drop(alice);
    };
    let (late, ()) = futures_util::future::join(drain, talk).await;
    assert_eq!(late, 0);
    assert!(!server.gateway.ready());
    server.gateway.finish().await;
    let log = server.archive.state.lock();
    assert!(
        log.acts[0].detail.contains("\"recorded\":1"),
        "{}",
        log.acts[0].detail
    );
}

#[tokio::test]
async fn a_place_that_was_not_confirmed_holds_on_the_next_stream() {
    let server = Server::start().await;
    let mut bob = server.login("nobody@a.test", "r").await;
    bob.nothing().await;
    let mut bob = server.login("bob@a.test", "phone").await;
    server.archive.say(message(5, "five"));
    bob.expect(&["five"]).await;
    let again = |count: usize| {
        let log = server.archive.state.lock();
        let all: Vec<u64> = log
            .attached
            .iter()
            .filter(|attach| attach.again && attach.session == 2)
            .map(|attach| attach.position)
            .collect();
        (all.len() == count).then_some(all)
    };
    // attached again, and not confirmed; others move the head of the new stream
    server.archive.state.lock().mute = true;
    server.archive.lose();
    server.until("attached again", || again(1).is_some()).await;
    server
        .archive
        .say(attach_up::Item::Head(chancery_api::archive::Head {
            number: 9,
        }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.archive.lose();
    server
        .until("attached once more", || again(2).is_some())
        .await;
    assert_eq!(again(2), Some(vec![5, 5]));
}

/// What waits for who becomes available is handed out for an update, not for an attachment.
#[tokio::test]
async fn who_became_available_while_the_log_was_away_says_so_again() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    let id = super::nonzas::unhex(&alice.sm_id).unwrap();
    let identity = Arc::clone(&server.gateway.sessions.by_sm_id(&id).unwrap().identity);
    let again = |count: usize| {
        let log = server.archive.state.lock();
        let all = log.attached.iter().filter(|attach| attach.again);
        let all: Vec<bool> = all.map(|attach| attach.available).collect();
        (all.len() == count).then(|| (all, log.updated.len()))
    };
    server.archive.shut(true);
    let lost = || !server.gateway.link.is_up();
    server.until("lost", lost).await;
    alice.send("<presence/>").await;
    let said = || identity.followed.lock().available;
    server.until("said", said).await;
    assert!(server.archive.state.lock().updated.is_empty());
    server.archive.shut(false);
    server.until("attached again", || again(1).is_some()).await;
    server
        .until("confirmed", || {
            server.presence.acts().contains(&Act::Available)
        })
        .await;
    assert_eq!(again(1), Some((vec![false], 1)));
    assert!(server.archive.state.lock().updated[0].available);
    // The shard has heard it: it attaches as available.
    server.archive.lose();
    server.until("attached again", || again(2).is_some()).await;
    assert_eq!(again(2), Some((vec![false, true], 1)));
}

/// The push that told of a change may have been lost.
#[tokio::test]
async fn who_hears_a_session_is_asked_again_after_a_while() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    let id = super::nonzas::unhex(&alice.sm_id).unwrap();
    let identity = Arc::clone(&server.gateway.sessions.by_sm_id(&id).unwrap().identity);
    let aged = |seconds| {
        let age = Duration::from_secs(seconds);
        let mut followed = identity.followed.lock();
        let kept = followed.subscriptions.as_mut().unwrap();
        kept.at -= age;
        kept.unanswered = kept.unanswered.map(|since| since - age);
    };
    let asked = || server.roster.asked.load(Ordering::Relaxed);
    let said = || {
        server
            .presence
            .published
            .lock()
            .iter()
            .filter(|item| item.act() == Act::Available)
            .count()
    };
    for (n, age, away, asked_then) in [
        (1, 0, false, 1),
        (2, 30, false, 1),
        (3, 31, false, 2),
        // It holds from when it is not answered, however old it is.
        (4, 900, true, 3),
        (5, 299, true, 4),
    ] {
        if age > 0 {
            aged(age);
        }
        server.roster.away.store(away, Ordering::Relaxed);
        alice
            .send(&format!("<presence><priority>{n}</priority></presence>"))
            .await;
        server.until("said", || said() == n).await;
        assert_eq!(asked(), asked_then, "{n}");
    }
    aged(1);
    alice.send("<presence/>").await;
    server.until("asked", || asked() > 4).await;
    assert_eq!(said(), 5, "what was kept holds no longer");
    server.roster.away.store(false, Ordering::Relaxed);
    server.until("said", || said() == 6).await;
}
