//! Rows C1 to C10 and K1: what comes before and around TLS on client streams, certificates that change
//! while clients are connected, and who may speak on the internal channels.
//!
//! proves: RFC 7590

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chancery_api::archive::{
    Archive, DropMailboxRequest, ExportRequest, RemoteArchive, StatusRequest,
};
use chancery_api::channel::{self, Credentials};
use chancery_api::directory::{Directory, RemoteDirectory};
use chancery_api::{ApiError, Calls, Code, Cx, Role};
use chancery_runtime::{Failpoints, Metrics, Shutdown, Stage, Tasks};
use chancery_testkit::client::{Client, Login};
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};
use chancery_testkit::wire::{Incoming, Wire, header, trusting};
use nix::sys::signal::Signal;
use rustls::pki_types::ServerName;

use crate::hostile::{DOMAIN, before_auth};
use crate::play::{play, play_with};

const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

fn plain_auth(user: &str) -> String {
    use base64::Engine;
    let data = base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{PASSWORD}"));
    format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{data}</auth>")
}

/// C1: bytes behind `<starttls/>` are never acted on.
#[test]
fn c1_injected_bytes_are_not_believed() {
    play(Shape::One, &["mallory"], async |server| {
        for injected in [plain_auth("mallory"), header(DOMAIN), " <".into()] {
            let mut wire = Wire::plain(server.c2s[0]).await?;
            wire.open(DOMAIN).await?;
            wire.element().await?;
            wire.send(format!("{STARTTLS}{injected}")).await?;
            match wire.expect().await? {
                Incoming::Close | Incoming::End => continue,
                Incoming::Element(e) if &*e.header.name == "error" => continue,
                Incoming::Element(e) if &*e.header.name == "proceed" => {}
                other => bail!("{other:?}"),
            }
            // A handshake, if there is one, is followed by nothing that was not asked for.
            let Ok(mut wire) = wire.upgrade(DOMAIN, server.trust(0)?).await else {
                continue;
            };
            wire.open(DOMAIN).await?;
            let features = wire.element().await?;
            let text = String::from_utf8_lossy(&features.bytes).into_owned();
            ensure!(text.contains("<mechanism>"), "{injected}: {text}");
        }
        Ok(())
    });
}

/// Clients that end the line after `<starttls/>` and after `<auth/>` are let in.
#[test]
fn whitespace_before_a_restart_is_harmless() {
    play(Shape::One, &["alice"], async |server| {
        for end in ["\n", " \r\n\t"] {
            let mut wire = Wire::plain(server.c2s[0]).await?;
            wire.open(DOMAIN).await?;
            wire.element().await?;
            wire.send(format!("{STARTTLS}{end}")).await?;
            ensure!(&*wire.element().await?.header.name == "proceed");
            let mut wire = wire.upgrade(DOMAIN, server.trust(0)?).await?;
            wire.open(DOMAIN).await?;
            let text = String::from_utf8_lossy(&wire.element().await?.bytes).into_owned();
            ensure!(text.contains("<mechanism>"), "{end:?}: {text}");
            wire.send(format!("{}{end}", plain_auth("alice"))).await?;
            ensure!(&*wire.element().await?.header.name == "success");
            wire.open(DOMAIN).await?;
            let text = String::from_utf8_lossy(&wire.element().await?.bytes).into_owned();
            ensure!(text.contains("<bind "), "{end:?}: {text}");
        }
        Ok(())
    });
}

/// C3: no secret and no stanza in clear text.
#[test]
fn c3_clear_text_is_for_starttls_only() {
    play(Shape::Many, &["mallory"], async |server| {
        for gateway in 0..2 {
            for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
                let mut wire = Wire::plain(server.c2s[gateway]).await?;
                wire.open(DOMAIN).await?;
                let features = wire.element().await?;
                let text = String::from_utf8_lossy(&features.bytes).into_owned();
                ensure!(
                    text.contains("<required") && !text.contains("mechanism"),
                    "{text}"
                );
                wire.send(plain_auth("mallory").replace("PLAIN", mechanism))
                    .await?;
                let answer = wire.element().await?;
                let text = String::from_utf8_lossy(&answer.bytes).into_owned();
                ensure!(text.contains("<encryption-required"), "{text}");
            }
        }
        Ok(())
    });
}

/// C4: no TLS in TLS, and no older TLS.
#[test]
fn c4_no_second_and_no_old_tls() {
    play(Shape::One, &["mallory"], async |server| {
        let wire = before_auth(server).await?;
        let said = wire.answer_to(STARTTLS.as_bytes()).await?;
        ensure!(
            said.contains("<failure") || said.contains("<stream:error>"),
            "{said}"
        );
        let login = server.login("mallory", "m", 0)?;
        let client = Client::login(&login).await?;
        let said = client.wire.answer_to(STARTTLS.as_bytes()).await?;
        ensure!(said.contains("<stream:error>"), "in a session: {said}");
        for minor in [0u8, 1, 2] {
            let mut tcp = TcpStream::connect(server.c2s_tls[0])?;
            tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
            tcp.write_all(&old_hello(minor))?;
            let mut answer = Vec::new();
            let _ = tcp.read_to_end(&mut answer);
            ensure!(
                answer.is_empty() || answer[0] == 21,
                "3.{minor}: {answer:?}"
            );
        }
        server.client("mallory", "m", 0).await?.close().await
    });
}

/// A ClientHello of SSL 3.0, TLS 1.0 or 1.1, with what those servers would have taken.
fn old_hello(minor: u8) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([0x5a; 32]);
    body.push(0);
    // AES128-SHA, AES256-SHA, 3DES, RC4-SHA, NULL-SHA, ADH-AES128-SHA, ECDHE-ECDSA-AES128-SHA
    let suites: [u16; 7] = [0x2f, 0x35, 0x0a, 0x05, 0x02, 0x34, 0xc009];
    body.extend((2 * 7u16).to_be_bytes());
    body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
    body.extend([1, 0]);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, minor];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    record
}

/// C5: TLS 1.2 works, with its channel bound by the exporter; it has no renegotiation to refuse,
/// because the library has none.
#[test]
fn tls_1_2_logs_in_with_its_channel_bound() {
    play(Shape::One, &["alice"], async |server| {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&std::fs::read(server.authority(0))?)? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        for mechanism in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256-PLUS/endpoint", "PLAIN"] {
            let mut login = server.login("alice", "a", 0)?;
            login.tls = Arc::new(config.clone());
            login.mechanism = mechanism.into();
            Client::login(&login)
                .await
                .context(mechanism)?
                .close()
                .await?;
        }
        Ok(())
    });
}

fn certificates(pem: &[u8]) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>> {
    use rustls::pki_types::pem::PemObject;
    Ok(rustls::pki_types::CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}

/// C7: a handshake in records of one byte; one that is closed at once.
#[test]
fn c7_strange_handshakes_end_or_succeed() {
    play(Shape::One, &["alice"], async |server| {
        let name = ServerName::try_from(DOMAIN)?.to_owned();
        for (split, close) in [(true, false), (true, true), (false, true)] {
            let mut tls = rustls::ClientConnection::new(server.trust(0)?, name.clone())?;
            let mut tcp = TcpStream::connect(server.c2s_tls[0])?;
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut hello = Vec::new();
            tls.write_tls(&mut hello)?;
            if split {
                hello = in_single_bytes(&hello);
            }
            if close {
                hello.extend([21, 3, 3, 0, 2, 1, 0]);
            }
            tcp.write_all(&hello)?;
            let began = Instant::now();
            while tls.is_handshaking() && began.elapsed() < Duration::from_secs(10) {
                let ended = matches!(tls.read_tls(&mut tcp), Ok(0) | Err(_));
                if tls.process_new_packets().is_err() || ended {
                    break;
                }
                while tls.wants_write() {
                    tls.write_tls(&mut tcp)?;
                }
            }
            ensure!(
                began.elapsed() < Duration::from_secs(10),
                "neither ended nor done"
            );
        }
        server.client("alice", "a", 0).await?.close().await
    });
}

/// The same handshake messages, a record for every byte.
fn in_single_bytes(records: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = records;
    while let [kind, major, minor, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(body.len());
        for byte in &body[..length] {
            out.extend([*kind, *major, *minor, 0, 1, *byte]);
        }
        rest = &body[length..];
    }
    out
}

/// A certificate for the domain, in files that the server reads.
struct Issued {
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Issued {
    fn new() -> Result<Self> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate()?;
        Ok(Self {
            authority: rcgen::CertifiedIssuer::self_signed(params, key)?,
        })
    }

    /// PEM of a new certificate and its key.
    fn leaf(&self, until_year: i32) -> Result<(String, String)> {
        let mut params = rcgen::CertificateParams::new(vec![DOMAIN.into()])?;
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = rcgen::KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.authority)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    fn trust(&self) -> Result<Arc<rustls::ClientConfig>> {
        trusting(self.authority.pem().as_bytes(), None)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// C10: a good certificate is taken over without a break, any other leaves the old one.
#[test]
fn c10_certificates_are_exchanged_while_it_runs() {
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
    let issued = Issued::new().unwrap();
    let put = |pair: &(String, String)| -> Result<()> {
        write_private(&chain, &pair.0)?;
        write_private(&key, &pair.1)
    };
    let first = issued.leaf(2040).unwrap();
    put(&first).unwrap();
    let config = format!("[tls.\"{DOMAIN}\"]\ncertificate = {chain:?}\nkey = {key:?}\n");
    let setup = Setup {
        config,
        ..Setup::default()
    };
    play_with(
        Shape::One,
        setup,
        &["alice"],
        &["not reloaded"],
        async |server| {
            let tls = issued.trust()?;
            let shown = async || -> Result<Vec<u8>> {
                let wire = Wire::starttls(server.c2s[0], DOMAIN, Arc::clone(&tls)).await?;
                wire.certificate.context("no certificate")
            };
            let der = |pair: &(String, String)| -> Result<Vec<u8>> {
                Ok(certificates(pair.0.as_bytes())?[0].to_vec())
            };
            ensure!(
                shown().await? == der(&first)?,
                "not the configured certificate"
            );
            let mut login = Login {
                address: server.c2s[0],
                direct: false,
                tls: Arc::clone(&tls),
                domain: DOMAIN.into(),
                user: "alice".into(),
                password: PASSWORD.into(),
                resource: Some("a".into()),
                mechanism: "SCRAM-SHA-256".into(),
            };
            let mut live = Client::login(&login).await?;

            let second = issued.leaf(2041)?;
            put(&second)?;
            server.signal("gateway", Signal::SIGHUP)?;
            let until = Instant::now() + Duration::from_secs(10);
            while shown().await? != der(&second)? {
                ensure!(Instant::now() < until, "the new certificate is not shown");
            }
            ensure!(
                live.until_marker().await?.is_empty(),
                "the live session was disturbed"
            );
            // XEP-0440: bound to the certificate that this connection saw.
            login.mechanism = "SCRAM-SHA-256-PLUS/endpoint".into();
            login.resource = Some("b".into());
            Client::login(&login).await?.close().await?;

            let broken = (
                "-----BEGIN CERTIFICATE-----\nnonsense\n".to_owned(),
                second.1.clone(),
            );
            let wrong_key = (issued.leaf(2041)?.0, second.1.clone());
            let expired = issued.leaf(2021)?;
            for (count, bad) in [broken, wrong_key, expired].iter().enumerate() {
                put(bad)?;
                server.signal("gateway", Signal::SIGHUP)?;
                let until = Instant::now() + Duration::from_secs(10);
                while server.complaints(&[]).len() <= count {
                    ensure!(Instant::now() < until, "no alarm for certificate {count}");
                    live.until_marker().await?;
                }
                ensure!(
                    shown().await? == der(&second)?,
                    "the bad certificate {count} is shown"
                );
            }
            ensure!(
                live.until_marker().await?.is_empty(),
                "the live session was disturbed"
            );
            Ok(())
        },
    );
}

fn internal(server: &Server, role: &str) -> Result<Credentials> {
    internal_in(&server.home().join("internal/internal"), role)
}

fn internal_in(dir: &Path, role: &str) -> Result<Credentials> {
    let read = |name: String| std::fs::read(dir.join(&name)).with_context(|| name);
    Ok(Credentials {
        authority: read("authority.pem".into())?,
        chain: read(format!("{role}.pem"))?,
        key: read(format!("{role}.key"))?,
    })
}

/// The lists of who may call what, as a caller with these credentials meets it.
struct Probe {
    tasks: Tasks,
}

impl Probe {
    fn calls(&self) -> Calls {
        Calls::new(Failpoints::off(), &Metrics::new())
    }

    fn archive(&self, server: &Server, credentials: &Credentials) -> Result<RemoteArchive> {
        let channel = channel::connect(&address(server, "archive")?, Role::Archive, credentials)?;
        Ok(RemoteArchive::new(
            channel,
            self.calls(),
            self.tasks.clone(),
        ))
    }

    fn directory(&self, server: &Server, credentials: &Credentials) -> Result<RemoteDirectory> {
        let channel =
            channel::connect(&address(server, "directory")?, Role::Directory, credentials)?;
        Ok(RemoteDirectory::new(
            channel,
            self.calls(),
            self.tasks.clone(),
        ))
    }
}

fn address(server: &Server, role: &str) -> Result<String> {
    let found = server.internal.iter().find(|(name, _)| *name == role);
    Ok(found.context("no such listener")?.1.to_string())
}

fn denied<T>(what: &str, answer: Result<T, ApiError>) -> Result<()> {
    match answer {
        Err(error) if error.code == Code::Denied => Ok(()),
        Err(error) => bail!("{what}: {error}"),
        Ok(_) => bail!("{what} was allowed"),
    }
}

fn unreachable<T>(what: &str, answer: Result<T, ApiError>) -> Result<()> {
    match answer {
        Err(error) if matches!(error.code, Code::Unavailable | Code::Deadline) => Ok(()),
        Err(error) => bail!("{what}: {error}"),
        Ok(_) => bail!("{what} was let in"),
    }
}

/// K1: the certificate says which role calls, and the table what it may; nobody else gets so far.
#[test]
fn k1_internal_channels_know_who_calls() {
    let refusals = ["refused a call that the table does not allow"];
    play_with(
        Shape::Many,
        Setup::default(),
        &["alice"],
        &refusals,
        async |server| {
            let shutdown = Shutdown::new();
            let probe = Probe {
                tasks: shutdown.tasks(Stage::Log).clone(),
            };
            let gateway = internal(server, "gateway")?;
            let cx = Cx::local().within(Duration::from_secs(5));

            let archive = probe.archive(server, &gateway)?;
            let export = ExportRequest {
                domain: DOMAIN.into(),
                decrypt: true,
                ..Default::default()
            };
            denied(
                "export by a gateway",
                archive.export(&cx, export.clone()).await,
            )?;
            let drop = DropMailboxRequest {
                jid: format!("alice@{DOMAIN}"),
            };
            denied(
                "deletion by a gateway",
                archive.drop_mailbox(&cx, drop).await,
            )?;
            denied(
                "status by a gateway",
                archive.status(&cx, StatusRequest {}).await,
            )?;
            let directory = probe.directory(server, &gateway)?;
            denied(
                "a change of an account by a gateway",
                directory.change_account(&cx, Default::default()).await,
            )?;
            // The same channel may do what a gateway does.
            directory.domains(&cx, Default::default()).await?;
            let roster = internal(server, "roster")?;
            denied(
                "export by roster",
                probe.archive(server, &roster)?.export(&cx, export).await,
            )?;

            // A foreign authority, with the right names; and the right authority with a foreign leaf.
            let foreign = tempfile::tempdir()?;
            let made = std::process::Command::new(chancery_testkit::server::binary()?)
                .arg("internal-certs")
                .arg(foreign.path())
                .output()?;
            ensure!(made.status.success(), "internal-certs");
            let theirs = internal_in(&foreign.path().join("internal"), "gateway")?;
            let mixed = Credentials {
                authority: gateway.authority.clone(),
                ..theirs.clone()
            };
            for credentials in [theirs, mixed] {
                let directory = probe.directory(server, &credentials)?;
                unreachable(
                    "a foreign one",
                    directory.domains(&cx, Default::default()).await,
                )?;
            }
            no_certificate(server, &gateway)?;
            // K3: broken beginnings leave the listener as it was.
            let internal: std::net::SocketAddr = address(server, "directory")?.parse()?;
            for _ in 0..300 {
                let _ = TcpStream::connect(internal)?
                    .write_all(b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff");
            }
            probe
                .directory(server, &gateway)?
                .domains(&cx, Default::default())
                .await?;
            shutdown.request("the story is told");
            Ok(())
        },
    );
}

/// A client that shows no certificate is refused in or right after the handshake.
fn no_certificate(server: &Server, known: &Credentials) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&known.authority)? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    for role in [
        "archive",
        "directory",
        "policy",
        "presence",
        "pubsub",
        "roster",
    ] {
        let name = ServerName::try_from(format!("{role}.chancery.internal"))?;
        let tls = rustls::ClientConnection::new(Arc::new(config.clone()), name)?;
        let tcp = TcpStream::connect(address(server, role)?)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = rustls::StreamOwned::new(tls, tcp);
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        let mut answer = [0u8; 64];
        match stream.read(&mut answer) {
            Ok(0) => {}
            Ok(n) => bail!("{role} answered {:?}", &answer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("{role} keeps a client without certificate")
            }
            Err(_) => {}
        }
    }
    Ok(())
}
