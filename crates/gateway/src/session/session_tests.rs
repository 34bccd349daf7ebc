//! Sessions over real sockets, with small services behind them: dialogues of clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use chancery_api::archive::{EndReason, EndSession, Outcome, attach_up};
use chancery_api::directory::{AccountFact, AccountState};
use chancery_api::presence::{Act, AttachUp};
use chancery_api::{Decision, Denial};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};
use chancery_xml::{Frame, Framer, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fakes::{
    ArchiveHandle, FakeArchive, FakeDirectory, FakePolicy, FakePresence, FakeRoster,
    PolicyHandle, PresenceHandle,
};
use crate::admission::Admitted;
use crate::config::Config;
use crate::negotiate::{Authenticated, Established, TlsFacts};
use crate::sasl::Mechanism;
use crate::service::{Gateway, Parts};
use crate::transport::Transport;

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='a.test' version='1.0'>";
const WAIT: Duration = Duration::from_secs(5);

struct Server {
    gateway: Arc<Gateway>,
    archive: Arc<FakeArchive>,
    policy: Arc<FakePolicy>,
    presence: Arc<FakePresence>,
    directory: Arc<FakeDirectory>,
    streams: Tasks,
    _services: Tasks,
}

struct Client {
    socket: TcpStream,
    framer: Framer,
    full: String,
}

impl Server {
    async fn start() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let archive = Arc::new(FakeArchive::default());
        let policy = Arc::new(FakePolicy::new());
        let presence = Arc::new(FakePresence::default());
        let directory = Arc::new(FakeDirectory::new());
        let (streams, services) = (Tasks::new(), Tasks::new());
        let gateway = Gateway::start(Parts {
            name: "gw1".into(),
            config: Arc::new(config),
            domains: Arc::new(ArcSwap::from_pointee(vec!["a.test".to_owned()])),
            directory: Arc::clone(&directory) as _,
            roster: Arc::new(FakeRoster),
            presence: Arc::new(PresenceHandle(Arc::clone(&presence))),
            policy: Arc::new(PolicyHandle(Arc::clone(&policy))),
            archive: Arc::new(ArchiveHandle(Arc::clone(&archive))),
            clock: Clock::real(),
            ids: Ids::seeded(1),
            metrics: Metrics::new(),
            failpoints: Failpoints::off(),
            streams: streams.clone(),
            services: services.clone(),
        });
        let server =
            Self { gateway, archive, policy, presence, directory, streams, _services: services };
        server.until("ready", || server.gateway.ready()).await;
        server
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; missing: {:?}", self.gateway.unready());
    }

    /// A stream that has authenticated.
    async fn authenticated(&self, account: &str) -> Client {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let mut client =
            Client { socket, framer: Framer::new(Limits::after_auth()), full: String::new() };
        client.send(HEADER).await;
        let mut transport =
            Transport::plain(accepted, Limits::after_auth(), Admitted::uncounted());
        assert!(matches!(transport.next_frame().await, Ok(Some(Frame::Open(_)))));
        transport.queue_header(HEADER);
        let authenticated = Authenticated {
            transport,
            account: account.parse().unwrap(),
            domain: "a.test".into(),
            credential_version: 1,
            mechanism: Mechanism::Plain,
            peer,
            stream_lang: None,
            stream_id: "s1".into(),
            facts: TlsFacts { version: "none", cipher: "none" },
        };
        let gateway = Arc::clone(&self.gateway);
        self.streams.spawn("session", gateway.run(authenticated));
        let features = client.receive().await;
        assert!(features.starts_with("<stream:features"), "{features}");
        client
    }

    /// A bound session.
    async fn login(&self, account: &str, resource: &str) -> Client {
        let mut client = self.authenticated(account).await;
        let bind = format!("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{resource}</resource></bind></iq>");
        client.send(&bind).await;
        let result = client.receive().await;
        client.full = format!("{account}/{resource}");
        assert!(result.contains(&format!("<jid>{}</jid>", client.full)), "{result}");
        client
    }
}

impl Client {
    async fn send(&mut self, xml: &str) {
        self.socket.write_all(xml.as_bytes()).await.unwrap();
    }

    /// The next element; `</stream>` at the end of the stream, `gone` at the end of the socket.
    async fn receive(&mut self) -> String {
        tokio::time::timeout(WAIT, async {
            loop {
                match self.framer.next().unwrap() {
                    Some(Frame::Element(element)) => {
                        return String::from_utf8(element.bytes.to_vec()).unwrap();
                    }
                    Some(Frame::Close) => return "</stream>".into(),
                    Some(Frame::Open(_)) => continue,
                    None => {}
                }
                let mut buffer = [0; 4096];
                let count = self.socket.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return "gone".into();
                }
                self.framer.push(&buffer[..count]);
            }
        })
        .await
        .expect("nothing came")
    }

    /// Receives, and checks what it holds.
    async fn expect(&mut self, parts: &[&str]) -> String {
        let got = self.receive().await;
        for part in parts {
            assert!(got.contains(part), "{part} in {got}");
        }
        got
    }

    /// Nothing else has come: a ping is answered next.
    async fn nothing(&mut self) {
        self.send("<iq type='get' id='marker'><ping xmlns='urn:xmpp:ping'/></iq>").await;
        self.expect(&["id='marker'", "type='result'"]).await;
    }
}

#[tokio::test]
async fn two_people_talk_and_every_word_is_recorded_first() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    alice.send("<message to='bob@a.test' type='chat' id='m1'><body>hello</body></message>").await;
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
        assert_eq!((item.count, item.sm_id.len(), item.ephemeral), (1, 16, false));
    }
    // without stream management it is acknowledged when it is written
    server.until("acknowledged", || server.archive.state.lock().acknowledged == [1]).await;
    alice.nothing().await;
    // an IQ to a resource, and its answer
    bob.send("<iq type='get' to='alice@a.test/desk' id='q'><query xmlns='jabber:iq:last'/></iq>").await;
    alice.expect(&["<iq", "from='bob@a.test/phone'"]).await;
    alice.send("<iq type='result' to='bob@a.test/phone' id='q'/>").await;
    bob.expect(&["type='result'", "from='alice@a.test/desk'", "id='q'"]).await;
}

#[tokio::test]
async fn what_is_denied_reaches_nobody_and_is_recorded() {
    let server = Server::start().await;
    server.policy.walled.lock().push(("bob@a.test".into(), Denial::PolicyViolation));
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    alice.send("<message to='bob@a.test' id='m1'><body>psst</body></message>").await;
    alice
        .expect(&["type='error'", "from='bob@a.test'", "policy-violation", "ask compliance", "id='m1'"])
        .await;
    bob.nothing().await;
    let log = server.archive.state.lock();
    assert_eq!(log.items.len(), 1);
    assert_eq!(log.items[0].verdict.as_ref().unwrap().decision(), Decision::Deny);
}

#[tokio::test]
async fn without_policy_nothing_is_delivered() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    *server.policy.away.lock() = true;
    alice.send("<message to='bob@a.test' id='m1'><body>x</body></message>").await;
    // what is for the server does not wait
    alice.nothing().await;
    alice.expect(&["resource-constraint", "type='wait'", "id='m1'"]).await;
    assert!(server.archive.state.lock().items.is_empty());
    *server.policy.away.lock() = false;
    alice.send("<message to='bob@a.test' id='m2'><body>x</body></message>").await;
    bob.expect(&["id='m2'"]).await;
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
    alice.send("<message to='bob@a.test'><body>1</body></message>").await;
    alice.send("<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq><r xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["id='p'"]).await;
    // what was written is to be acknowledged
    alice.expect(&["<r "]).await;
    // the log is slow: after a second the count reached is told
    alice.expect(&["<a ", "h='0'"]).await;
    server.archive.release();
    // and unasked, when more has settled
    alice.expect(&["<a ", "h='2'"]).await;
    assert_eq!(server.archive.state.lock().items[0].count, 1);
    bob.receive().await;

    bob.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    bob.expect(&["<enabled"]).await;
    alice.send("<message to='bob@a.test'><body>2</body></message>").await;
    bob.expect(&["<body>2</body>"]).await;
    bob.expect(&["<r "]).await;
    assert_eq!(server.archive.state.lock().acknowledged, [1]);
    bob.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    server.until("acknowledged", || server.archive.state.lock().acknowledged == [1, 2]).await;
    bob.send("<a xmlns='urn:xmpp:sm:3' h='9'/>").await;
    bob.expect(&["stream:error", "undefined-condition", "handled-count-too-high"]).await;
    assert_eq!(bob.receive().await, "</stream>");
}

#[tokio::test]
async fn resume_is_refused_with_the_count_of_the_log() {
    let server = Server::start().await;
    let mut alice = server.authenticated("alice@a.test").await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<failed", "unexpected-request"]).await;
    alice.send("<resume xmlns='urn:xmpp:sm:3' previd='00112233445566778899aabbccddeeff' h='3'/>").await;
    alice.expect(&["<failed", "h='7'", "item-not-found"]).await;
    alice.send("<resume xmlns='urn:xmpp:sm:3' previd='?' h='3'/>").await;
    let failed = alice.expect(&["<failed", "item-not-found"]).await;
    assert!(!failed.contains("h='"));
    // and then binds; the server makes a resource
    alice.send("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    alice.expect(&["<jid>alice@a.test/", "type='result'"]).await;
    alice.send("<iq type='set' id='2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    alice.expect(&["not-allowed", "id='2'"]).await;
}

#[tokio::test]
async fn nothing_is_said_before_a_resource_is_bound() {
    let server = Server::start().await;
    let mut alice = server.authenticated("alice@a.test").await;
    alice.send("<message to='bob@a.test'><body>x</body></message>").await;
    alice.expect(&["stream:error", "not-authorized"]).await;
    let mut mallory = server.login("mallory@a.test", "r").await;
    mallory.send("<message from='alice@a.test/r' to='bob@a.test'><body>x</body></message>").await;
    mallory.expect(&["stream:error", "invalid-from"]).await;
    assert!(server.archive.state.lock().items.is_empty());
    server.until("left", || server.gateway.sessions() == 0).await;
}

#[tokio::test]
async fn presence_is_decided_confirmed_and_published() {
    let server = Server::start().await;
    server.policy.walled.lock().push(("eve@a.test".into(), Denial::ServiceUnavailable));
    let mut alice = server.login("alice@a.test", "desk").await;
    alice.send("<presence><status>writing</status><priority>5</priority></presence>").await;
    server.until("published", || server.presence.acts() == [Act::Available, Act::Probe]).await;
    {
        let published = server.presence.published.lock();
        assert_eq!(published[0].targets, ["bob@a.test"], "not to whom the wall hides");
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
    alice.expect(&["<presence", "from='bob@a.test/phone'", "to='alice@a.test'"]).await;
    assert_eq!(server.policy.asked.lock().len(), asked + 1);
    // a newer policy: everybody's presence is looked at again
    server.policy.version.send_replace(2);
    server.until("refreshed", || server.presence.acts().contains(&Act::Refresh)).await;
    link.send(AttachUp { resync: true, ..AttachUp::default() }).await.unwrap();
    server.until("registered", || server.presence.acts().contains(&Act::Resync)).await;
    alice.send("</stream:stream>").await;
    assert_eq!(alice.receive().await, "</stream>");
    server.until("gone", || server.presence.acts().last() == Some(&Act::Unavailable)).await;
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
    server.until("published", || server.presence.acts() == [Act::Available, Act::Probe]).await;
    alice.nothing().await;
}

#[tokio::test]
async fn a_newer_policy_is_asked_before_anything_older_is_written() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let mut bob = server.login("bob@a.test", "phone").await;
    // in the log under version 1, not yet handed out when version 2 comes
    let before = server.archive.state.lock().items.len();
    server.policy.walled.lock().push(("bob@a.test".into(), Denial::ServiceUnavailable));
    server.policy.version.send_replace(2);
    server.until("confirmed", || *server.policy.confirmed.lock() == 2).await;
    server.archive.say(attach_up::Item::Deliver(chancery_api::archive::Deliver {
        number: 40,
        from: "alice@a.test/desk".into(),
        to: "bob@a.test".into(),
        kind: chancery_api::Kind::Message.into(),
        payload: Bytes::from_static(b"<message xmlns='jabber:client'><body>late</body></message>"),
        policy_version: 1,
        targets: vec![chancery_api::archive::Target {
            session: 2,
            form: chancery_api::archive::Form::Original.into(),
            delayed: false,
            entry: true,
        }],
        ..chancery_api::archive::Deliver::default()
    }));
    server.until("denied", || server.archive.state.lock().denied == [40]).await;
    bob.nothing().await;
    alice.nothing().await;
    assert_eq!(server.archive.state.lock().items.len(), before);
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
    };
    server.directory.facts.send_replace((2, Some(fact("alice@a.test", AccountState::Disabled, 1))));
    alice.expect(&["stream:error", "not-authorized", "disabled"]).await;
    server.until("confirmed", || *server.directory.confirmed.lock() == 2).await;
    bob.nothing().await;
    server.directory.facts.send_replace((3, Some(fact("bob@a.test", AccountState::Active, 2))));
    bob.expect(&["stream:error", "<reset"]).await;
}

#[tokio::test]
async fn the_shard_ends_a_session_that_was_replaced() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let end = EndSession { session: 1, reason: EndReason::Conflict.into() };
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
    alice.send("<message to='bob@a.test'><body>1</body></message>").await;
    bob.expect(&["<body>1</body>"]).await;
    server.archive.lose();
    server.until("attached again", || {
        let log = server.archive.state.lock();
        log.attached.iter().filter(|attach| attach.again).count() == 2
    })
    .await;
    {
        let log = server.archive.state.lock();
        let again = log.attached.iter().find(|a| a.again && a.session == 2).unwrap();
        assert_eq!((again.position, &again.unacknowledged[..]), (1, &[1][..]));
        assert_eq!(again.credit, Config::default().sm_queue_stanzas / 2 - 1);
    }
    alice.send("<message to='bob@a.test'><body>2</body></message>").await;
    loop {
        let got = bob.receive().await;
        if got.contains("<body>2</body>") {
            break;
        }
        assert!(got.starts_with("<r"), "{got}");
    }
}

#[tokio::test]
async fn requests_to_who_is_gone_are_answered() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice.send("<iq type='get' to='bob@a.test/nowhere' id='q'><x xmlns='u'/></iq>").await;
    alice.expect(&["type='error'", "service-unavailable", "from='bob@a.test/nowhere'", "id='q'"]).await;
    // delivered, and never acknowledged: answered when the session ends
    let mut bob = server.login("bob@a.test", "phone").await;
    bob.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    bob.expect(&["<enabled"]).await;
    alice.send("<iq type='get' to='bob@a.test/phone' id='q2'><x xmlns='u'/></iq>").await;
    bob.expect(&["id='q2'"]).await;
    drop(bob);
    alice.expect(&["type='error'", "service-unavailable", "from='bob@a.test/phone'", "id='q2'"]).await;
}

#[tokio::test]
async fn what_the_server_answers_itself() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    for (request, parts) in [
        ("to='a.test'><query xmlns='http://jabber.org/protocol/disco#info'/>", &["category='server'", "from='a.test'"][..]),
        ("><query xmlns='http://jabber.org/protocol/disco#info'/>", &["category='account'"][..]),
        ("to='a.test'><query xmlns='http://jabber.org/protocol/disco#info' node='x'/>", &["item-not-found"][..]),
        ("to='a.test'><query xmlns='jabber:iq:version'/>", &["<name>Chancery</name>"][..]),
        ("to='a.test'><time xmlns='urn:xmpp:time'/>", &["<tzo>+00:00</tzo>"][..]),
        ("><query xmlns='jabber:iq:roster'/>", &["jid='bob@a.test'", "subscription='both'"][..]),
        ("><x xmlns='urn:unknown'/>", &["service-unavailable"][..]),
    ] {
        alice.send(&format!("<iq type='get' id='1' {request}</iq>")).await;
        alice.expect(parts).await;
    }
    alice.send("<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>").await;
    alice.expect(&["type='result'", "id='c'"]).await;
    assert!(server.archive.state.lock().items.is_empty(), "none of it is routed");
}

#[tokio::test]
async fn shutdown_drains_and_says_so() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    server.archive.state.lock().held = Some(Vec::new());
    alice.send("<message to='nobody@a.test' id='m'><body>x</body></message>").await;
    server.until("submitted", || server.archive.state.lock().items.len() == 1).await;
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
    assert!(log.acts[0].detail.contains("\"recorded\":1"), "{}", log.acts[0].detail);
    assert_eq!(Outcome::Committed as i32, 1);
}

#[tokio::test]
async fn a_session_over_its_rate_is_read_slower_and_refused_nothing() {
    let config = Config { stanzas_per_second: 50, stanzas_burst: 50, ..Config::default() };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let before = tokio::time::Instant::now();
    let pings = "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>".repeat(75);
    alice.send(&pings).await;
    for _ in 0..75 {
        alice.expect(&["type='result'"]).await;
    }
    assert!(before.elapsed() >= Duration::from_millis(400), "{:?}", before.elapsed());
}

#[test]
fn an_idle_session_is_small() {
    let size = std::mem::size_of::<super::Session>();
    assert!(size <= 1024, "{size} bytes");
}
