//! Sessions that lose their stream and go on with another (XEP-0198 §5).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::archive::{EndReason, EndSession, attach_up};
use chancery_api::directory::{AccountFact, AccountState};
use chancery_api::presence::Act;

use super::harness::{Client, Server};
use crate::config::Config;

const PING: &str = "<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>";
const ACK_FOR_1: &str = "<a xmlns='urn:xmpp:sm:3' h='1'/>";

async fn say(alice: &mut Client, to: &str, body: &str) {
    alice
        .send(&format!(
            "<message to='{to}' type='chat' id='{body}'><body>{body}</body></message>"
        ))
        .await;
}

/// The next stanza; what stream management says between them is passed over.
async fn stanza(client: &mut Client) -> String {
    loop {
        let got = client.receive().await;
        if !got.starts_with("<r ") && !got.starts_with("<a ") {
            return got;
        }
    }
}

async fn away(server: &Server) {
    server
        .until("without a stream", || server.gateway.sessions.away() == 1)
        .await;
}

#[tokio::test]
async fn a_session_goes_on_with_another_stream_without_loss_or_repeat() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    bob.send("<presence/>").await;
    server
        .until("available", || server.presence.acts().contains(&Act::Probe))
        .await;
    for body in ["one", "two"] {
        say(&mut alice, "bob@a.test", body).await;
    }
    let first = stanza(&mut bob).await;
    assert!(first.contains("<body>one</body>"), "{first}");
    let second = stanza(&mut bob).await;
    let id = bob.sm_id.clone();
    drop(bob);
    away(&server).await;
    // What comes now waits; what is asked of the server itself too.
    say(&mut alice, "bob@a.test", "three").await;
    alice.nothing().await;
    assert_eq!(server.gateway.sessions(), 2);

    let (mut bob, resumed) = server.resume("bob@a.test", &id, 1).await;
    assert_eq!(
        resumed,
        format!("<resumed xmlns='urn:xmpp:sm:3' previd='{id}' h='1'/>")
    );
    assert_eq!(stanza(&mut bob).await, second, "the same bytes");
    let third = stanza(&mut bob).await;
    assert!(third.contains("<body>three</body>"), "{third}");
    bob.send(PING).await;
    assert!(stanza(&mut bob).await.contains("id='p'"));
    // The count goes on: the ping is the second stanza.
    bob.send("<a xmlns='urn:xmpp:sm:3' h='4'/><r xmlns='urn:xmpp:sm:3'/>")
        .await;
    bob.expect(&["<a ", "h='2'"]).await;
    server
        .until("acknowledged", || {
            server.archive.state.lock().acknowledged == [1, 2, 3]
        })
        .await;
    let log = server.archive.state.lock();
    assert_eq!(log.away, [(2, true), (2, false)]);
    assert!(log.detached.is_empty());
    assert_eq!(log.attached.len(), 2);
    assert!(!server.presence.acts().contains(&Act::Unavailable));
}

/// The client takes nothing, so nothing is read either; then it says that it has the first, and breaks
/// off with the rest unread.
#[tokio::test]
async fn what_was_said_before_a_socket_broke_is_heard() {
    let server = Server::with(Config {
        bytes_per_second: 64 << 20,
        bytes_burst: 64 << 20,
        account_bytes_per_second: 64 << 20,
        account_bytes_burst: 64 << 20,
        sm_queue_bytes: 64 << 20,
        ..Config::default()
    })
    .await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    bob.send("<presence/>").await;
    server
        .until("available", || server.presence.acts().contains(&Act::Probe))
        .await;
    let body = "x".repeat(200_000);
    for _ in 0..40 {
        let message = format!("<message to='bob@a.test' type='chat'><body>{body}</body></message>");
        alice.send(&message).await;
    }
    alice.nothing().await;
    bob.send(ACK_FOR_1).await;
    drop(bob);
    away(&server).await;
    server
        .until("acknowledged", || {
            server.archive.state.lock().acknowledged == [1]
        })
        .await;
}

/// Whoever took its place would get what it had acknowledged again.
#[tokio::test]
async fn what_was_said_before_the_shard_ended_a_session_is_heard() {
    let server = Server::with(Config {
        stanzas_per_second: 1,
        stanzas_burst: 2,
        ..Config::default()
    })
    .await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    say(&mut alice, "bob@a.test", "one").await;
    stanza(&mut bob).await;
    // Over its rate it is not read for seconds.
    bob.send(&format!("{}{ACK_FOR_1}", PING.repeat(8))).await;
    bob.expect(&["id='p'"]).await;
    let end = EndSession {
        session: 2,
        reason: EndReason::Conflict.into(),
    };
    server.archive.say(attach_up::Item::End(end));
    server
        .until("detached", || {
            server.archive.state.lock().detached.contains(&2)
        })
        .await;
    assert_eq!(server.archive.state.lock().acknowledged, [1]);
}

/// Requests are not in the log: that they were counted, the shard is told before the client.
#[tokio::test]
async fn the_shard_knows_what_the_client_was_told() {
    let server = Server::start().await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    let handled = || server.archive.state.lock().handled.clone();
    bob.send(&format!("{PING}<r xmlns='urn:xmpp:sm:3'/>")).await;
    bob.expect(&["id='p'"]).await;
    bob.expect(&["<a ", "h='1'"]).await;
    assert_eq!(handled(), [0, 1]);
    say(&mut bob, "bob@a.test", "logged").await;
    bob.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    while !bob.receive().await.contains("<a ") {}
    assert_eq!(handled(), [0, 1], "the log has the second");
    bob.send(PING).await;
    while !bob.receive().await.contains("id='p'") {}
    bob.send("</stream:stream>").await;
    while bob.receive().await != "</stream>" {}
    server.until("told", || handled() == [0, 1, 3]).await;
}

#[tokio::test]
async fn enabled_says_for_how_long_and_where() {
    let config = Config {
        resume_seconds: 120,
        location: "gw1.a.test:5222".into(),
        ..Config::default()
    };
    let server = Server::with(config).await;
    for (enable, parts) in [
        (" resume='1'", &["resume='true'", "max='120'"][..]),
        (" resume='true' max='30'", &["max='30'"]),
        (" resume='true' max='999'", &["max='120'"]),
        (
            " resume='true' max='0'",
            &["max='120'", "location='gw1.a.test:5222'"],
        ),
    ] {
        let mut bob = server.login("bob@a.test", "phone").await;
        bob.send(&format!("<enable xmlns='urn:xmpp:sm:3'{enable}/>"))
            .await;
        bob.expect(parts).await;
        bob.send("</stream:stream>").await;
    }
    let mut bob = server.login("bob@a.test", "phone").await;
    bob.send("<enable xmlns='urn:xmpp:sm:3' max='5'/>").await;
    let enabled = bob.expect(&["<enabled"]).await;
    assert!(
        !enabled.contains("resume") && !enabled.contains("location"),
        "{enabled}"
    );
    drop(bob);
    server
        .until("gone", || server.gateway.sessions() == 0)
        .await;
}

#[tokio::test]
async fn a_resumption_waits_for_outcomes_under_way() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    server.archive.state.lock().held = Some(Vec::new());
    say(&mut alice, "bob@a.test", "one").await;
    server
        .until("submitted", || server.archive.state.lock().items.len() == 1)
        .await;
    let id = alice.sm_id.clone();
    drop(alice);
    away(&server).await;
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.archive.release();
    };
    let ((mut alice, resumed), ()) =
        futures_util::future::join(server.resume("alice@a.test", &id, 0), release).await;
    assert!(resumed.contains("h='1'"), "{resumed}");
    alice.nothing().await;
}

/// Its client was told elsewhere that the stanza is not there: it is over for this session.
#[tokio::test]
async fn a_stanza_that_comes_after_the_count_was_asked_for_ends_the_session() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    say(&mut alice, "bob@a.test", "one").await;
    alice.nothing().await;
    server.archive.state.lock().closed = true;
    say(&mut alice, "bob@a.test", "two").await;
    loop {
        let got = alice.receive().await;
        assert!(!got.contains("id='two'"), "not bounced: {got}");
        if got.contains("stream:error") {
            assert!(got.contains("conflict"), "{got}");
            break;
        }
    }
    let id = alice.sm_id.clone();
    server
        .until("gone", || server.gateway.sessions() == 0)
        .await;
    let (_, answer) = server.resume("alice@a.test", &id, 0).await;
    assert!(answer.starts_with("<failed "), "{answer}");
}

#[tokio::test]
async fn an_unknown_outcome_ends_the_stream_and_not_the_session() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    say(&mut alice, "bob@a.test", "one").await;
    alice.nothing().await;
    server
        .gateway
        .failpoints
        .set("gateway::archive::acknowledged", "error")
        .unwrap();
    say(&mut alice, "bob@a.test", "two").await;
    say(&mut alice, "bob@a.test", "three").await;
    loop {
        let got = alice.receive().await;
        if got.contains("stream:error") {
            assert!(got.contains("resource-constraint"), "{got}");
            break;
        }
    }
    away(&server).await;
    server
        .gateway
        .failpoints
        .set("gateway::archive::acknowledged", "off")
        .unwrap();
    let id = alice.sm_id.clone();
    let (mut alice, resumed) = server.resume("alice@a.test", &id, 1).await;
    assert!(resumed.contains("h='2'"), "neither is counted: {resumed}");
    say(&mut alice, "bob@a.test", "two").await;
    alice.nothing().await;
    let log = server.archive.state.lock();
    let of = |body: &str| {
        let of_body = log.items.iter().filter(|item| item.id == body);
        of_body.map(|item| item.count).collect::<Vec<_>>()
    };
    assert_eq!(of("two"), [3, 3], "said again under its own count");
}

#[tokio::test]
async fn attack_d14_an_id_is_its_owners() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    let id = alice.sm_id.clone();
    let (mut mallory, answer) = server.resume("mallory@a.test", &id, 0).await;
    assert!(
        answer.contains("<failed") && answer.contains("item-not-found"),
        "{answer}"
    );
    assert!(!answer.contains("h='"), "{answer}");
    mallory
        .send("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
        .await;
    mallory.expect(&["<jid>mallory@a.test/"]).await;
    alice.nothing().await;
    // Nor after its stream is gone.
    drop(alice);
    away(&server).await;
    let (_, answer) = server.resume("mallory@a.test", &id, 0).await;
    assert!(answer.contains("item-not-found"), "{answer}");
    let (mut alice, resumed) = server.resume("alice@a.test", &id, 1).await;
    assert!(resumed.contains("<resumed"), "{resumed}");
    alice.nothing().await;
}

#[tokio::test]
async fn a_socket_that_looks_alive_makes_room() {
    let server = Server::start().await;
    let mut old = server.resumable("alice@a.test", "desk").await;
    let id = old.sm_id.clone();
    let (mut new, resumed) = server.resume("alice@a.test", &id, 0).await;
    assert!(resumed.contains("<resumed"), "{resumed}");
    old.expect(&["stream:error", "<conflict"]).await;
    assert_eq!(old.receive().await, "</stream>");
    new.nothing().await;
    assert_eq!(server.gateway.sessions(), 1);
}

#[tokio::test]
async fn of_two_sockets_at_once_exactly_one_wins() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    server.archive.state.lock().held = Some(Vec::new());
    say(&mut alice, "bob@a.test", "one").await;
    server
        .until("submitted", || server.archive.state.lock().items.len() == 1)
        .await;
    let id = alice.sm_id.clone();
    drop(alice);
    away(&server).await;
    let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='0'/>");
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let mut socket = server.authenticated("alice@a.test").await;
        socket.send(&resume).await;
        sockets.push(socket);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.archive.release();
    let mut resumed = 0;
    for socket in &mut sockets {
        let answer = socket.receive().await;
        if answer.contains("<resumed") {
            resumed += 1;
            socket.nothing().await;
        } else {
            assert!(answer.contains("<conflict"), "{answer}");
        }
    }
    assert_eq!(resumed, 1);
}

#[tokio::test]
async fn wrong_counts_are_refused_and_the_session_stays() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    for body in ["one", "two"] {
        say(&mut alice, "bob@a.test", body).await;
        stanza(&mut bob).await;
    }
    bob.send(ACK_FOR_1).await;
    server
        .until("acknowledged", || {
            server.archive.state.lock().acknowledged == [1]
        })
        .await;
    let id = bob.sm_id.clone();
    drop(bob);
    away(&server).await;
    let (mut high, answer) = server.resume("bob@a.test", &id, 3).await;
    assert!(answer.contains("handled-count-too-high"), "{answer}");
    assert_eq!(high.receive().await, "</stream>");
    let (_, answer) = server.resume("bob@a.test", &id, 0).await;
    assert!(
        answer.contains("<failed") && answer.contains("item-not-found"),
        "{answer}"
    );
    let (mut without, _) = server.resume("bob@a.test", "?", 0).await;
    without
        .send(&format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}'/>"))
        .await;
    without.expect(&["<failed", "bad-request"]).await;
    let (mut bob, answer) = server.resume("bob@a.test", &id, 1).await;
    assert!(answer.contains("<resumed"), "{answer}");
    assert!(stanza(&mut bob).await.contains("<body>two</body>"));
}

#[tokio::test]
async fn a_closed_stream_ends_the_session() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    let id = alice.sm_id.clone();
    alice.send("</stream:stream>").await;
    assert_eq!(alice.receive().await, "</stream>");
    server
        .until("gone", || server.gateway.sessions() == 0)
        .await;
    let (_, answer) = server.resume("alice@a.test", &id, 0).await;
    assert!(answer.contains("<failed"), "{answer}");
}

#[tokio::test]
async fn nobody_comes_back_in_time() {
    let config = Config {
        resume_seconds: 1,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    bob.send("<presence/>").await;
    server
        .until("available", || server.presence.acts().contains(&Act::Probe))
        .await;
    drop(bob);
    away(&server).await;
    // Asked while nobody reads: answered at the end.
    alice
        .send("<iq type='get' to='bob@a.test/phone' id='q'><ping xmlns='urn:xmpp:ping'/></iq>")
        .await;
    alice
        .expect(&["type='error'", "service-unavailable", "id='q'"])
        .await;
    server
        .until("gone", || {
            server.presence.acts().last() == Some(&Act::Unavailable)
        })
        .await;
    assert_eq!(server.archive.state.lock().detached, [2]);
    assert_eq!(server.gateway.sessions(), 1);
}

#[tokio::test]
async fn attack_d21_a_cut_off_voids_the_id() {
    let server = Server::start().await;
    let alice = server.resumable("alice@a.test", "desk").await;
    let id = alice.sm_id.clone();
    drop(alice);
    away(&server).await;
    let changed = AccountFact {
        jid: "alice@a.test".into(),
        state: AccountState::Active.into(),
        credential_version: 2,
        generation: 1,
        ..AccountFact::default()
    };
    server.directory.facts.send_replace((2, Some(changed)));
    server
        .until("gone", || server.gateway.sessions() == 0)
        .await;
    // A login from before the change gets nowhere with it.
    let (_, answer) = server.resume("alice@a.test", &id, 0).await;
    assert!(answer.contains("<failed"), "{answer}");
}

#[tokio::test]
async fn the_shard_may_end_a_session_without_a_stream() {
    let server = Server::start().await;
    let alice = server.resumable("alice@a.test", "desk").await;
    drop(alice);
    away(&server).await;
    let end = EndSession {
        session: 1,
        reason: EndReason::Conflict.into(),
    };
    server.archive.say(attach_up::Item::End(end));
    server
        .until("gone", || server.gateway.sessions() == 0)
        .await;
    assert_eq!(server.gateway.sessions.away(), 0);
}

#[tokio::test]
async fn without_a_stream_it_is_attached_again_after_a_loss() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    say(&mut alice, "bob@a.test", "one").await;
    stanza(&mut bob).await;
    drop(bob);
    away(&server).await;
    server.archive.lose();
    let again = || {
        let log = server.archive.state.lock();
        let found = log.attached.iter().find(|a| a.again && a.session == 2)?;
        Some((found.away, found.unacknowledged.clone()))
    };
    server.until("attached again", || again().is_some()).await;
    assert_eq!(again(), Some((true, vec![1])));
}

#[tokio::test]
async fn what_is_no_entry_is_bounded_without_a_stream() {
    let config = Config {
        sm_queue_stanzas: 16,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let bob = server.resumable("bob@a.test", "phone").await;
    drop(bob);
    away(&server).await;
    for n in 0..16 {
        let state = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
        alice
            .send(&format!(
                "<message to='bob@a.test/phone' id='{n}'>{state}</message>"
            ))
            .await;
    }
    alice.nothing().await;
    assert_eq!(server.gateway.sessions(), 2);
    alice
        .send("<iq type='get' to='bob@a.test/phone' id='q'><ping xmlns='urn:xmpp:ping'/></iq>")
        .await;
    alice
        .expect(&["type='error'", "service-unavailable", "id='q'"])
        .await;
    server
        .until("gone", || server.gateway.sessions() == 1)
        .await;
}

#[tokio::test]
async fn whose_client_does_not_answer_loses_its_stream_and_not_its_session() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    say(&mut alice, "bob@a.test", "one").await;
    bob.expect(&["<body>one</body>"]).await;
    bob.expect(&["<r "]).await;
    // Two minutes pass, and nothing is acknowledged.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(121)).await;
    tokio::time::resume();
    bob.expect(&["stream:error", "connection-timeout"]).await;
    away(&server).await;
    assert_eq!(server.gateway.sessions(), 2);
    let id = bob.sm_id.clone();
    let (mut bob, answer) = server.resume("bob@a.test", &id, 0).await;
    assert!(answer.contains("<resumed"), "{answer}");
    assert!(stanza(&mut bob).await.contains("<body>one</body>"));
}

#[tokio::test]
async fn answers_of_the_server_wait_for_the_next_stream() {
    let server = Server::start().await;
    let mut alice = server.resumable("alice@a.test", "desk").await;
    server.archive.state.lock().held = Some(Vec::new());
    alice
        .send("<iq type='get' to='bob@a.test/nowhere' id='q'><x xmlns='u'/></iq>")
        .await;
    server
        .until("submitted", || server.archive.state.lock().items.len() == 1)
        .await;
    let id = alice.sm_id.clone();
    drop(alice);
    away(&server).await;
    server.archive.release();
    let (mut alice, answer) = server.resume("alice@a.test", &id, 0).await;
    assert!(answer.contains("h='1'"), "{answer}");
    let bounced = stanza(&mut alice).await;
    assert!(
        bounced.contains("id='q'") && bounced.contains("service-unavailable"),
        "{bounced}"
    );
}
