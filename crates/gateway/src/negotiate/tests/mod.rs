//! Whole negotiations over loopback sockets: a server, a client, and what honest clients do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use chancery_runtime::{Clock, Ids, Metrics, Tasks};

use super::*;
use crate::authority;
use crate::config::Config;
use crate::listen::{Listeners, Parts};
use crate::sasl::fake::{FakeDirectory, PASSWORD};
use crate::sasl::scram::Hash;
use crate::sasl::scram::tests::answer;
use crate::tls::Certificates;

const LIMIT: Duration = Duration::from_secs(20);
const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='example.test' version='1.0'>";
const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const POST_FEATURES: &str = "<stream:features><bind xmlns='urn:test'/></stream:features>";

/// What a session was handed.
#[derive(Debug)]
struct Seen {
    account: String,
    domain: String,
    mechanism: Mechanism,
    version: u64,
    stream_id: String,
    lang: Option<Box<str>>,
    tls: &'static str,
}

/// A session that sends its features and waits for the end of the stream.
struct Session(mpsc::Sender<Seen>);

impl Established for Session {
    fn run(self: Arc<Self>, mut authenticated: Authenticated) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let seen = Seen {
                account: authenticated.account.to_string(),
                domain: authenticated.domain.clone(),
                mechanism: authenticated.mechanism,
                version: authenticated.credential_version,
                stream_id: authenticated.stream_id.clone(),
                lang: authenticated.stream_lang.clone(),
                tls: authenticated.facts.version,
            };
            self.0.send(seen).await.unwrap();
            authenticated.transport.queue(POST_FEATURES.as_bytes());
            authenticated.transport.flush().await.unwrap();
            while let Ok(Some(Frame::Element(_))) = authenticated.transport.next_frame().await {}
            authenticated
                .transport
                .close_with(None, Duration::from_secs(1))
                .await;
        })
    }
}

struct Server {
    _dir: TempDir,
    listeners: Listeners,
    directory: Arc<FakeDirectory>,
    metrics: Metrics,
    accept: Tasks,
    streams: Tasks,
    seen: mpsc::Receiver<Seen>,
    authority: CertificateDer<'static>,
}

impl Server {
    fn start() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domains = vec!["example.test".to_owned(), "second.test".to_owned()];
        let clock = Clock::real();
        let files = authority::certificates(dir.path(), &domains, &clock, &Ids::real()).unwrap();
        let trust = authority::trust_show(dir.path()).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (tx, seen) = mpsc::channel(64);
        let directory = FakeDirectory::new();
        let (accept, streams, metrics) = (Tasks::new(), Tasks::new(), Metrics::new());
        let listeners = Listeners::start(Parts {
            config: Arc::new(Config {
                c2s: vec![any],
                c2s_tls: vec![any],
                ..config
            }),
            certificates: Certificates::load(files, clock.clone()).unwrap(),
            directory: directory.clone(),
            domains: Arc::new(ArcSwap::from_pointee(domains)),
            clock,
            ids: Ids::real(),
            metrics: metrics.clone(),
            accept: accept.clone(),
            streams: streams.clone(),
            established: Arc::new(Session(tx)),
        })
        .unwrap();
        let authority = CertificateDer::from_pem_slice(trust.pem.as_bytes()).unwrap();
        Self {
            _dir: dir,
            listeners,
            directory,
            metrics,
            accept,
            streams,
            seen,
            authority,
        }
    }

    fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    async fn plain(&self) -> Client<TcpStream> {
        let socket = TcpStream::connect(self.listeners.c2s()[0]).await.unwrap();
        Client {
            io: socket,
            text: String::new(),
        }
    }

    async fn direct(&self, config: Arc<ClientConfig>) -> std::io::Result<Client<Tls>> {
        let socket = TcpStream::connect(self.listeners.c2s_tls()[0])
            .await
            .unwrap();
        secure(socket, config).await
    }

    /// A stream in TLS whose features were read.
    async fn in_tls(&self) -> Client<Tls> {
        let config = self.client_config(rustls::ALL_VERSIONS, &["xmpp-client"]);
        let mut client = self.direct(config).await.unwrap();
        client.send(HEADER).await;
        client.until("</stream:features>").await;
        client
    }

    /// Waits until no connection is left, then until no task is.
    async fn settled(&self) {
        let settled = async {
            while self.listeners.open() != (0, 0) || !self.streams.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(LIMIT, settled).await;
        assert!(
            done.is_ok(),
            "left: {:?}, {} tasks",
            self.listeners.open(),
            self.streams.len()
        );
        assert_eq!(self.streams.panicked(), 0);
    }
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

async fn secure(socket: TcpStream, config: Arc<ClientConfig>) -> std::io::Result<Client<Tls>> {
    let name = ServerName::try_from("example.test").unwrap();
    let io = TlsConnector::from(config).connect(name, socket).await?;
    Ok(Client {
        io,
        text: String::new(),
    })
}

struct Client<T> {
    io: T,
    text: String,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.io.write_all(text.as_ref()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Everything up to and with `mark`.
    async fn until(&mut self, mark: &str) -> String {
        loop {
            if let Some(at) = self.text.find(mark) {
                let rest = self.text.split_off(at + mark.len());
                return std::mem::replace(&mut self.text, rest);
            }
            assert!(self.more().await, "ended before {mark}: {}", self.text);
        }
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        while self.more().await {}
        std::mem::take(&mut self.text)
    }

    async fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(LIMIT, self.io.read(&mut bytes))
            .await
            .unwrap();
        let count = read.unwrap_or(0); // a reset is an end too
        self.text
            .push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        count > 0
    }

    async fn ask(&mut self, text: &str, mark: &str) -> String {
        self.send(text).await;
        self.until(mark).await
    }

    async fn auth(&mut self, mechanism: &str, message: &str) {
        let text = STANDARD.encode(message);
        let xml = format!(
            "<auth xmlns='{}' mechanism='{mechanism}'>{text}</auth>",
            ns::SASL
        );
        self.send(&xml).await;
    }

    async fn plain_login(&mut self) {
        self.auth("PLAIN", "\0alice\0pencil").await;
        self.until("</success>").await;
    }

    async fn scram_login(&mut self, mechanism: &str, flag: &str, data: &[u8]) -> String {
        let first = format!("{flag},,n=alice,r=clientnonce");
        self.auth(mechanism, &first).await;
        let challenge = self.until("</challenge>").await;
        let challenge = challenge
            .rsplit('>')
            .nth(1)
            .unwrap()
            .trim_end_matches("</challenge");
        let challenge = String::from_utf8(STANDARD.decode(challenge).unwrap()).unwrap();
        let hash = if mechanism.contains("256") {
            Hash::Sha256
        } else {
            Hash::Sha1
        };
        let last = STANDARD.encode(answer(hash, PASSWORD, &first, &challenge, data));
        self.ask(
            &format!("<response xmlns='{}'>{last}</response>", ns::SASL),
            "</success>",
        )
        .await
    }
}

fn has_error(text: &str, condition: &str) -> bool {
    let header = text.find("<stream:stream ");
    let error = text.find(&format!(
        "<stream:error><{condition} xmlns='{}'",
        ns::STREAM_ERRORS
    ));
    text.ends_with("</stream:stream>") && header.is_some() && header < error
}

fn assert_error(text: &str, condition: &str) {
    assert!(has_error(text, condition), "expected {condition}: {text}");
}

#[tokio::test]
async fn a_login_with_starttls_in_both_versions() {
    let mut server = Server::start();
    for (version, name) in [
        (&rustls::version::TLS13, "TLSv1_3"),
        (&rustls::version::TLS12, "TLSv1_2"),
    ] {
        let mut client = server.plain().await;
        let opening = client.ask(HEADER, "</stream:features>").await;
        assert!(opening.contains(" from='example.test'") && opening.contains(" version='1.0'"));
        assert!(opening.contains("<required/>") && !opening.contains("mechanism"));
        assert_eq!(
            client.ask(STARTTLS, ">").await,
            "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>".to_owned()
        );
        let config = server.client_config(&[version], &[]);
        let mut client = secure(client.io, config).await.unwrap();
        let from = HEADER.replace(" to=", " from='alice@example.test' xml:lang='de' to=");
        let opening = client.ask(&from, "</stream:features>").await;
        assert!(opening.contains(" to='alice@example.test'"));
        assert!(opening.contains("SCRAM-SHA-256-PLUS") && !opening.contains("starttls"));
        let mut exporter = [0; 32];
        let label = b"EXPORTER-Channel-Binding";
        let session = client.io.get_ref().1;
        session
            .export_keying_material(&mut exporter, label, Some(b""))
            .unwrap();
        client
            .scram_login("SCRAM-SHA-256-PLUS", "p=tls-exporter", &exporter)
            .await;
        // Header and features of the session come in one piece.
        client.send(&from).await;
        let opening = client.until(POST_FEATURES).await;
        let seen = server.seen.recv().await.unwrap();
        assert!(opening.contains(&format!(" id='{}'", seen.stream_id)));
        assert_eq!(
            (&*seen.account, &*seen.domain),
            ("alice@example.test", "example.test")
        );
        assert_eq!(seen.mechanism, Mechanism::ScramSha256Plus);
        assert_eq!((seen.version, seen.lang.as_deref()), (7, Some("de")));
        assert_eq!(seen.tls, name);
        assert_eq!(server.listeners.open(), (1, 0), "no longer half open");
        client.send("</stream:stream>").await;
        assert_eq!(client.rest().await, "</stream:stream>");
        drop(client);
        server.settled().await;
    }
    let metrics = server.metrics.render();
    assert!(metrics.contains("chancery_gateway_logins_total{mechanism=\"SCRAM-SHA-256-PLUS\"} 2"));
}

#[tokio::test]
async fn a_login_with_direct_tls_bound_to_the_certificate() {
    let mut server = Server::start();
    let mut client = server.in_tls().await;
    let certificate = client.io.get_ref().1.peer_certificates().unwrap()[0].clone();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate);
    client
        .scram_login("SCRAM-SHA-1-PLUS", "p=tls-server-end-point", hash.as_ref())
        .await;
    client.ask(HEADER, POST_FEATURES).await;
    assert_eq!(
        server.seen.recv().await.unwrap().mechanism,
        Mechanism::ScramSha1Plus
    );
}

#[tokio::test]
async fn alpn_is_ours_or_absent() {
    let server = Server::start();
    for (alpn, accepted) in [
        (&["xmpp-client"][..], true),
        (&[], true),
        (&["h2", "xmpp-client"], true),
        (&["http/1.1"], false),
    ] {
        let client = server
            .direct(server.client_config(rustls::ALL_VERSIONS, alpn))
            .await;
        assert_eq!(client.is_ok(), accepted, "{alpn:?}");
    }
}

#[tokio::test]
async fn a_pipelined_login() {
    let mut server = Server::start();
    let config = server.client_config(rustls::ALL_VERSIONS, &[]);
    let mut client = server.direct(config).await.unwrap();
    let text = STANDARD.encode("\0alice\0pencil");
    let auth = format!("<auth xmlns='{}' mechanism='PLAIN'>{text}</auth>", ns::SASL);
    client.send(format!("{HEADER}{auth}{HEADER}")).await;
    client.until(POST_FEATURES).await;
    assert_eq!(
        server.seen.recv().await.unwrap().mechanism,
        Mechanism::Plain
    );
}

#[tokio::test]
async fn a_client_may_go_at_any_time_and_is_answered_in_kind() {
    let server = Server::start();
    let mut client = server.in_tls().await;
    client.send("</stream:stream>").await;
    assert_eq!(client.rest().await, "</stream:stream>");
    let mut client = server.plain().await;
    client.ask(HEADER, "</stream:features>").await;
    client.send("  \n  </stream:stream>").await;
    assert_eq!(client.rest().await, "</stream:stream>");
    drop(client);
    server.settled().await;
}

#[tokio::test]
async fn shutdown_ends_listeners_then_negotiations() {
    let server = Server::start();
    let mut client = server.in_tls().await;
    assert_eq!(server.accept.drain(Duration::from_secs(1)).await, 0);
    assert!(TcpStream::connect(server.listeners.c2s()[0]).await.is_err());
    client.auth("SCRAM-SHA-256", "n,,n=alice,r=abc").await;
    client.until("</challenge>").await; // what is there goes on
    let drain = server.streams.drain(Duration::from_secs(5));
    let (late, answer) = tokio::join!(drain, async {
        let answer = client.rest().await;
        drop(client);
        answer
    });
    assert!(answer.contains("<system-shutdown"), "{answer}");
    assert_eq!(late, 0);
}

#[tokio::test]
async fn the_header_and_the_features_of_a_session_are_one_tls_record() {
    let server = Server::start();
    let mut client = server.in_tls().await;
    client.plain_login().await;
    client.send(HEADER).await;
    let (mut socket, _) = client.io.into_inner();
    let mut record = [0; 5];
    socket.read_exact(&mut record).await.unwrap();
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    assert!(length > POST_FEATURES.len() + 100, "both in it: {length}");
    let mut rest = vec![0; length];
    socket.read_exact(&mut rest).await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(100), socket.read(&mut rest));
    assert!(more.await.is_err(), "nothing follows");
}
