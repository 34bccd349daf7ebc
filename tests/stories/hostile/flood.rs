//! Rows B9 to B13: who holds sockets, does not read, or sends without end is refused or read slower, and
//! nobody else notices.
//!
//! The numbers are those of a change's test; `CHANCERY_ATTACK_TIMES` multiplies them.
//!
//! proves: XEP-0205

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::client::authenticate;
use chancery_testkit::server::{Server, Setup, Shape};
use chancery_testkit::wire::{Incoming, Wire, header};
use futures_util::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::sasl::{auth, say};
use super::{DOMAIN, undisturbed, witness};
use crate::play::play_with;

/// How much more than in a change's test.
pub(crate) fn times() -> usize {
    let times = std::env::var("CHANCERY_ATTACK_TIMES").ok();
    times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

pub(crate) fn configured(config: &str) -> Setup {
    Setup {
        config: config.into(),
        ..Setup::default()
    }
}

const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
/// The first bytes of a TLS handshake that never goes on.
const PART_OF_A_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Where a connection stops on its way to a session.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Connected,
    InHeader,
    AfterHeader,
    BeforeTls,
    InTls,
    InDirectTls,
    UnderTls,
    InSasl,
    BeforeBind,
}

const STOPS: [Stop; 9] = [
    Stop::Connected,
    Stop::InHeader,
    Stop::AfterHeader,
    Stop::BeforeTls,
    Stop::InTls,
    Stop::InDirectTls,
    Stop::UnderTls,
    Stop::InSasl,
    Stop::BeforeBind,
];

/// A connection that stopped: a bare socket, or one under TLS.
enum Stopped {
    Bare(TcpStream),
    Wire(Box<Wire>),
}

impl Stopped {
    /// On the gateways in turn, each attempt to log in by somebody else: who tries again and again is
    /// delayed and refused, which is another row.
    async fn at(server: &Server, stop: Stop, gateway: usize) -> Result<Self> {
        let c2s = server.c2s[gateway % server.c2s.len()];
        let direct = server.c2s_tls[gateway % server.c2s_tls.len()];
        Ok(match stop {
            Stop::Connected => Self::bare(c2s, &[]).await?,
            Stop::InHeader => Self::bare(c2s, &[b"<?xml version='1.0'?><stream:str"]).await?,
            Stop::AfterHeader => Self::bare(c2s, &[header(DOMAIN).as_bytes()]).await?,
            Stop::BeforeTls => {
                Self::bare(c2s, &[header(DOMAIN).as_bytes(), STARTTLS.as_bytes()]).await?
            }
            Stop::InTls => {
                let begun = header(DOMAIN);
                let said = [begun.as_bytes(), STARTTLS.as_bytes()];
                let Self::Bare(mut socket) = Self::bare(c2s, &said).await? else {
                    bail!("a bare socket")
                };
                socket.write_all(PART_OF_A_HELLO).await?;
                Self::Bare(socket)
            }
            Stop::InDirectTls => Self::bare(direct, &[PART_OF_A_HELLO]).await?,
            Stop::UnderTls => Self::wire(server, gateway, "").await?,
            Stop::InSasl => {
                Self::wire(
                    server,
                    gateway,
                    &auth("SCRAM-SHA-256", format!("n,,n=user{gateway},r=abc")),
                )
                .await?
            }
            Stop::BeforeBind => {
                let login = server.login("mallory", "m", gateway)?;
                Self::Wire(Box::new(authenticate(&login).await?))
            }
        })
    }

    /// Says one thing after the other; between them it reads what came.
    async fn bare(address: SocketAddr, said: &[&[u8]]) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        for (at, bytes) in said.iter().enumerate() {
            socket.write_all(bytes).await?;
            if bytes.ends_with(b">") {
                let end: &[u8] = if at == 0 { b"features>" } else { b"/>" };
                let mut read = Vec::new();
                while !read.ends_with(end) {
                    let n = socket.read_buf(&mut read).await?;
                    ensure!(n > 0, "ended: {}", String::from_utf8_lossy(&read));
                }
            }
        }
        Ok(Self::Bare(socket))
    }

    async fn wire(server: &Server, gateway: usize, said: &str) -> Result<Self> {
        let address = server.c2s[gateway % server.c2s.len()];
        let mut wire = Wire::starttls(address, DOMAIN, server.trust(gateway)?).await?;
        wire.open(DOMAIN).await?;
        wire.element().await?;
        if !said.is_empty() {
            let (name, text) = say(&mut wire, said).await?;
            ensure!(name == "challenge", "{name} {text}");
        }
        Ok(Self::Wire(Box::new(wire)))
    }

    /// What the server says until it ends the connection.
    async fn rest(self) -> Result<String> {
        match self {
            Self::Wire(wire) => wire.answer_to(b"").await,
            Self::Bare(mut socket) => {
                let mut read = Vec::new();
                let rest = socket.read_to_end(&mut read);
                // A reset is an end too.
                let _ = tokio::time::timeout(Duration::from_secs(20), rest)
                    .await
                    .context("the connection does not end")?;
                Ok(String::from_utf8_lossy(&read).into_owned())
            }
        }
    }
}

const SHORT: &str =
    "[gateway]\nhandshake_seconds = 4\nheader_seconds = 4\nsasl_seconds = 4\nbind_seconds = 4\n";

/// B9: sockets that stop anywhere end at their deadline; meanwhile others log in.
fn idle_sockets(shape: Shape) {
    play_with(
        shape,
        configured(SHORT),
        &["alice", "bob", "mallory"],
        &[],
        async |server| {
            let mut bob = witness(server).await?;
            let mut held = Vec::new();
            for round in 0..4 * times() {
                let some = STOPS.map(|stop| Stopped::at(server, stop, round));
                held.extend(try_join_all(some).await?);
            }
            let gateway = if server.shape() == Shape::One {
                "one"
            } else {
                "gw1"
            };
            ensure!(half_open(server, gateway)? > 0, "they were not held at all");
            server.client("alice", "a", 1).await?.close().await?;
            for rest in join_all(held.into_iter().map(Stopped::rest)).await {
                let rest = rest?;
                let said = rest.is_empty()
                    || rest.contains("connection-timeout")
                    || !rest.contains("stream:error");
                ensure!(said, "{rest}");
            }
            nothing_half_open(server).await?;
            undisturbed(&mut bob).await
        },
    );
}

#[test]
fn b9_idle_sockets_end_in_one() {
    idle_sockets(Shape::One);
}

#[test]
fn b9_idle_sockets_end_in_many() {
    idle_sockets(Shape::Many);
}

/// Connections that have not authenticated are no longer counted on any gateway.
async fn nothing_half_open(server: &Server) -> Result<()> {
    let gateways: &[&str] = match server.shape() {
        Shape::One => &["one"],
        Shape::Many => &["gw1", "gw2"],
    };
    for gateway in gateways {
        let mut tries = 0;
        while half_open(server, gateway)? > 0 {
            tries += 1;
            ensure!(tries < 400, "{gateway} counts some still");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    Ok(())
}

fn half_open(server: &Server, gateway: &str) -> Result<u64> {
    figure(&server.metrics(gateway)?, |line| {
        line.starts_with("chancery_gateway_connections_half_open")
    })
}

/// The figure of the first line of metrics that is wanted.
fn figure(metrics: &str, wanted: impl Fn(&str) -> bool) -> Result<u64> {
    let line = metrics.lines().find(|line| wanted(line));
    let figure = line.and_then(|line| line.rsplit(' ').next());
    Ok(figure.context("no such figure")?.parse()?)
}

/// B9: the cap of one address is met by that address alone.
#[test]
fn b9_an_address_that_holds_all_it_may_shuts_out_itself_only() {
    let setup = configured("[gateway]\nhalf_open_per_address = 20\n");
    play_with(Shape::Many, setup, &["alice"], &[], async |server| {
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(Stopped::at(server, Stop::AfterHeader, 0).await?);
        }
        let said = Stopped::Bare(TcpStream::connect(server.c2s[0]).await?);
        let said = said.rest().await?;
        ensure!(said.contains("policy-violation"), "{said}");
        // From elsewhere, and on the other gateway.
        let elsewhere = Some("127.0.0.7".parse()?);
        let mut wire =
            Wire::starttls_from(elsewhere, server.c2s[0], DOMAIN, server.trust(0)?).await?;
        wire.open(DOMAIN).await?;
        wire.element().await?;
        server.client("alice", "a", 1).await?.close().await?;
        drop(held);
        // And they who went make room.
        for _ in 0..200 {
            if let Ok(alice) = server.client("alice", "b", 0).await {
                return alice.close().await;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        bail!("the address stays shut out")
    });
}

/// B10: connections that are reset at any state leave no descriptor, no count, and no memory.
#[test]
fn b10_resets_leave_nothing() {
    let setup = configured("");
    let accounts = &["alice", "bob", "mallory"];
    play_with(Shape::One, setup, accounts, &[], async |server| {
        let mut bob = witness(server).await?;
        let round = async |count: usize| -> Result<()> {
            for number in 0..count {
                let some = STOPS.map(|stop| Stopped::at(server, stop, number));
                for stopped in try_join_all(some).await? {
                    match stopped {
                        Stopped::Bare(socket) => socket.set_zero_linger()?,
                        // Dropped without the end of TLS, unread bytes included.
                        Stopped::Wire(_) => {}
                    }
                }
            }
            nothing_half_open(server).await
        };
        round(10).await?;
        let (files, memory) = (descriptors(server)?, super::xml::resident_kb(server)?);
        round(30 * times()).await?;
        for _ in 0..200 {
            if descriptors(server)? <= files {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        ensure!(
            descriptors(server)? <= files,
            "{} descriptors, {files} before",
            descriptors(server)?
        );
        let rise = super::xml::resident_kb(server)?.saturating_sub(memory);
        ensure!(rise < 8 * 1024, "the server grew by {rise} KiB");
        undisturbed(&mut bob).await
    });
}

fn descriptors(server: &Server) -> Result<usize> {
    let dir = format!("/proc/{}/fd", server.pid("gateway")?);
    Ok(std::fs::read_dir(dir)?.count())
}

/// B11: who never reads and never acknowledges misses nothing afterwards; its sender is not held up.
fn never_reads(shape: Shape) {
    // A queue that is short, so that a change's numbers fill it.
    let config = "[gateway]\nsm_queue_stanzas = 64\ntcp_user_timeout_seconds = 2\n[archive]\nmailbox_entries = 10000\n";
    let accounts = &["alice", "bob", "carol"];
    play_with(shape, configured(config), accounts, &[], async |server| {
        let mut carol = server.client("carol", "c", 1).await?;
        let mut bob = server.client("bob", "b", 1).await?;
        bob.enable().await?;
        bob.send("<presence/>").await?;
        bob.until_marker().await?;
        let mut alice = server.client("alice", "a", 0).await?;
        alice.enable().await?;
        let text = "x".repeat(1024);
        let count = 2_000 * times().min(5);
        for number in 0..count {
            alice
                .send(format!(
                    "<message to='bob@{DOMAIN}' type='chat' id='n{number}'><body>{text}</body></message>"
                ))
                .await?;
        }
        alice.settled().await?;
        ensure!(alice.until_marker().await?.is_empty(), "something bounced");
        ensure!(carol.until_marker().await?.is_empty());
        // It never read, and is gone: another session gets everything, in order and once.
        drop(bob);
        let mut bob = server.client("bob", "again", 0).await?;
        bob.enable().await?;
        bob.send("<presence/>").await?;
        let mut next = 0;
        while next < count {
            let got = bob.stanza().await.with_context(|| format!("for n{next}"))?;
            if &*got.header.name == "message" {
                let id = got.header.id.as_deref().unwrap_or_default();
                ensure!(id == format!("n{next}"), "{id} came instead of n{next}");
                next += 1;
            }
        }
        let rest = bob.until_marker().await?;
        ensure!(
            rest.iter().all(|e| &*e.header.name != "message"),
            "more than was sent: {rest:?}"
        );
        Ok(())
    });
}

#[test]
fn b11_who_never_reads_loses_no_message_in_one() {
    never_reads(Shape::One);
}

#[test]
fn b11_who_never_reads_loses_no_message_in_many() {
    never_reads(Shape::Many);
}

/// B11: without stream management what does not fit into the socket stays in the log; TCP ends the
/// connection, contacts are told, and the rest is there for the next session.
#[test]
fn b11_who_never_reads_is_let_go() {
    // The sender is not what is tried here.
    let config = configured(
        "[gateway]\ntcp_user_timeout_seconds = 2\nstanzas_per_second = 5000\nstanzas_burst = 5000\n\
         bytes_burst = 33554432\naccount_stanzas_burst = 5000\naccount_bytes_burst = 33554432\n",
    );
    let accounts = &["alice", "bob"];
    play_with(Shape::Many, config, accounts, &[], async |server| {
        server.introduce("alice", "bob")?;
        let mut bob = server.client("bob", "b", 1).await?;
        bob.send("<presence/>").await?;
        bob.until_marker().await?;
        let mut alice = server.client("alice", "a", 0).await?;
        alice.enable().await?;
        alice.send("<presence/>").await?;
        let count = 4_000;
        let text = "x".repeat(4096);
        for number in 0..count {
            alice
                .send(format!(
                    "<message to='bob@{DOMAIN}' type='chat' id='n{number}'><body>{text}</body></message>"
                ))
                .await?;
        }
        alice
            .wait(|e| {
                &*e.header.name == "presence" && e.header.type_.as_deref() == Some("unavailable")
            })
            .await
            .context("bob is still there")?;
        alice.settled().await?;
        drop(bob);
        let mut bob = server.client("bob", "again", 0).await?;
        bob.send("<presence/>").await?;
        let mut last: Option<usize> = None;
        while last != Some(count - 1) {
            let got = bob
                .stanza()
                .await
                .with_context(|| format!("after {last:?}"))?;
            if &*got.header.name != "message" {
                continue;
            }
            let id = got.header.id.as_deref().and_then(|id| id.strip_prefix('n'));
            let number = id.context("no id")?.parse()?;
            let right = last.is_none_or(|last| last + 1 == number);
            ensure!(right, "{number} after {last:?}");
            last = Some(number);
        }
        Ok(())
    });
}

const PING: &str = "<ping xmlns='urn:xmpp:ping'/>";

/// B13: a flood is read at the rate of its session, answered in order and refused nothing; meanwhile
/// others talk.
fn ping_flood(shape: Shape) {
    let config = "[gateway]\nstanzas_per_second = 20\nstanzas_burst = 40\n";
    let accounts = &["alice", "bob", "mallory"];
    play_with(shape, configured(config), accounts, &[], async |server| {
        let mut alice = server.client("alice", "a", 0).await?;
        let mut bob = server.client("bob", "b", 1).await?;
        bob.send("<presence/>").await?;
        bob.until_marker().await?;
        let mut mallory = server.client("mallory", "m", 0).await?;
        let pings: String = (0..2_000)
            .map(|n| format!("<iq type='get' id='f{n}'>{PING}</iq>"))
            .collect();
        mallory.wire.send(&pings).await?;
        for number in 0..15 {
            alice
                .send(format!(
                    "<message to='bob@{DOMAIN}' type='chat' id='t{number}'><body>x</body></message>"
                ))
                .await?;
            let got = bob.stanza().await?;
            ensure!(got.header.id.as_deref() == Some(format!("t{number}").as_str()));
        }
        // Nearly all of it is still in Mallory's socket.
        let read = stanzas_read(server)?;
        ensure!(read < 1_000, "{read} stanzas were read meanwhile");
        let mut answered = 0;
        while answered < 60 {
            let Incoming::Element(answer) = mallory.wire.expect().await? else {
                bail!("ended after {answered}")
            };
            let id = format!("f{answered}");
            ensure!(answer.header.id.as_deref() == Some(&id), "{answer:?}");
            ensure!(answer.header.type_.as_deref() == Some("result"));
            answered += 1;
        }
        Ok(())
    });
}

/// What the first gateway has read of its clients.
fn stanzas_read(server: &Server) -> Result<u64> {
    figure(&server.metrics("gw1")?, |line| {
        line.starts_with("chancery_gateway_stanzas") && line.contains("\"in\"")
    })
}

#[test]
fn b13_a_flood_slows_itself_only_in_one() {
    ping_flood(Shape::One);
}

#[test]
fn b13_a_flood_slows_itself_only_in_many() {
    ping_flood(Shape::Many);
}
