//! Sessions over real sockets, with small services behind them: what the tests of sessions run on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};
use chancery_xml::{Frame, Framer, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fake_archive::{ArchiveHandle, FakeArchive};
use super::fake_pubsub::FakePubsub;
use super::fakes::{
    FakeDirectory, FakePolicy, FakePresence, FakeRoster, PolicyHandle, PresenceHandle,
};
use crate::admission::Admitted;
use crate::config::Config;
use crate::negotiate::{Authenticated, Established, TlsFacts};
use crate::sasl::Mechanism;
use crate::service::{Gateway, Parts};
use crate::transport::Transport;

const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='a.test' version='1.0'>";
const WAIT: Duration = Duration::from_secs(5);

pub(super) struct Server {
    pub(super) gateway: Arc<Gateway>,
    pub(super) archive: Arc<FakeArchive>,
    pub(super) policy: Arc<FakePolicy>,
    pub(super) presence: Arc<FakePresence>,
    pub(super) directory: Arc<FakeDirectory>,
    pub(super) roster: Arc<FakeRoster>,
    pub(super) streams: Tasks,
    _services: Tasks,
}

pub(super) struct Client {
    socket: TcpStream,
    framer: Framer,
    pub(super) full: String,
    /// Of the stream management session that was enabled or resumed.
    pub(super) sm_id: String,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(super) async fn with(config: Config) -> Self {
        let archive = Arc::new(FakeArchive::default());
        let policy = Arc::new(FakePolicy::new());
        let presence = Arc::new(FakePresence::default());
        let directory = Arc::new(FakeDirectory::new());
        let roster = Arc::new(FakeRoster::default());
        let (streams, services) = (Tasks::new(), Tasks::new());
        let gateway = Gateway::start(Parts {
            name: "gw1".into(),
            config: Arc::new(config),
            domains: Arc::new(ArcSwap::from_pointee(vec!["a.test".to_owned()])),
            directory: Arc::clone(&directory) as _,
            roster: Arc::clone(&roster) as _,
            presence: Arc::new(PresenceHandle(Arc::clone(&presence))),
            pubsub: Arc::new(FakePubsub::default()),
            policy: Arc::new(PolicyHandle(Arc::clone(&policy))),
            archive: Arc::new(ArchiveHandle(Arc::clone(&archive))),
            clock: Clock::real(),
            ids: Ids::seeded(1),
            metrics: Metrics::new(),
            tracer: chancery_runtime::Tracer::off(),
            failpoints: Failpoints::off(),
            streams: streams.clone(),
            services: services.clone(),
        });
        let server = Self {
            gateway,
            archive,
            policy,
            presence,
            directory,
            roster,
            streams,
            _services: services,
        };
        server.until("ready", || server.gateway.ready()).await;
        server
    }

    pub(super) async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; missing: {:?}", self.gateway.unready());
    }

    /// A stream that has authenticated.
    pub(super) async fn authenticated(&self, account: &str) -> Client {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let mut client = Client {
            socket,
            framer: Framer::new(Limits {
                // A client reads what we write: also a roster of thousands.
                elements: 100_000,
                stanza_bytes: 4 << 20,
                ..Limits::after_auth()
            }),
            full: String::new(),
            sm_id: String::new(),
        };
        client.send(HEADER).await;
        let mut transport = Transport::plain(accepted, Limits::after_auth(), Admitted::uncounted());
        assert!(matches!(
            transport.next_frame().await,
            Ok(Some(Frame::Open(_)))
        ));
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
            facts: TlsFacts {
                version: "none",
                cipher: "none",
            },
        };
        let gateway = Arc::clone(&self.gateway);
        self.streams.spawn("session", gateway.run(authenticated));
        let features = client.receive().await;
        assert!(features.starts_with("<stream:features"), "{features}");
        client
    }

    /// A bound session that may be resumed.
    pub(super) async fn resumable(&self, account: &str, resource: &str) -> Client {
        let mut client = self.login(account, resource).await;
        client
            .send("<enable xmlns='urn:xmpp:sm:3' resume='true'/>")
            .await;
        let enabled = client.expect(&["<enabled", "resume='true'"]).await;
        client.sm_id = attribute(&enabled, "id");
        client
    }

    /// A stream that has authenticated and asks for a session; with the answer.
    pub(super) async fn resume(&self, account: &str, sm_id: &str, h: u32) -> (Client, String) {
        let mut client = self.authenticated(account).await;
        client.sm_id = sm_id.to_owned();
        let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{sm_id}' h='{h}'/>");
        client.send(&resume).await;
        let answer = client.receive().await;
        (client, answer)
    }

    /// A bound session.
    pub(super) async fn login(&self, account: &str, resource: &str) -> Client {
        let mut client = self.authenticated(account).await;
        let bind = format!(
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{resource}</resource></bind></iq>"
        );
        client.send(&bind).await;
        let result = client.receive().await;
        client.full = format!("{account}/{resource}");
        assert!(
            result.contains(&format!("<jid>{}</jid>", client.full)),
            "{result}"
        );
        client
    }
}

/// An attribute of an element as written.
fn attribute(element: &str, name: &str) -> String {
    let (_, rest) = element.split_once(&format!(" {name}='")).unwrap();
    rest.split('\'').next().unwrap().to_owned()
}

impl Client {
    pub(super) async fn send(&mut self, xml: &str) {
        self.socket.write_all(xml.as_bytes()).await.unwrap();
    }

    /// The next element; `</stream>` at the end of the stream, `gone` at the end of the socket.
    pub(super) async fn receive(&mut self) -> String {
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
    pub(super) async fn expect(&mut self, parts: &[&str]) -> String {
        let got = self.receive().await;
        for part in parts {
            assert!(got.contains(part), "{part} in {got}");
        }
        got
    }

    /// Nothing else has come: a ping is answered next.
    pub(super) async fn nothing(&mut self) {
        self.send("<iq type='get' id='marker'><ping xmlns='urn:xmpp:ping'/></iq>")
            .await;
        self.expect(&["id='marker'", "type='result'"]).await;
    }
}
