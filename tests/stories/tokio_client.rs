//! tokio-xmpp, a client that we did not write, in both wirings: SCRAM with the channel bound, STARTTLS
//! against the local authority, presence, and messages there and back.

use std::process::Command;
use std::time::Duration;

use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};
use futures_util::StreamExt;
use tokio_xmpp::connect::DnsConfig;
use tokio_xmpp::jid::Jid;
use tokio_xmpp::parsers::message::{Lang, Message, MessageType};
use tokio_xmpp::parsers::presence::{Presence, Type};
use tokio_xmpp::xmlstream::Timeouts;
use tokio_xmpp::{Client, Event, Stanza, rustls};

use crate::clients::authorities;

/// Says to the child what it plays: `ADDRESS DOMAIN` a line for each of the two clients.
const PLAYS: &str = "CHANCERY_TEST_TOKIO_XMPP";
const LIMIT: Duration = Duration::from_secs(60);

fn client(line: &str, user: &str) -> Client {
    let (address, domain) = line.split_once(' ').unwrap();
    let jid: Jid = format!("{user}@{domain}/tokio").parse().unwrap();
    let place = DnsConfig::Addr {
        addr: address.into(),
    };
    Client::new_starttls(jid, PASSWORD, place, Timeouts::default())
}

async fn online(client: &mut Client) -> Jid {
    loop {
        match client.next().await.unwrap() {
            Event::Online { bound_jid, .. } => {
                client
                    .send_stanza(Presence::new(Type::None).into())
                    .await
                    .unwrap();
                return bound_jid;
            }
            Event::Disconnected(error) => panic!("{error}"),
            Event::Stanza(_) => {}
        }
    }
}

async fn message(client: &mut Client) -> Message {
    loop {
        match client.next().await.unwrap() {
            Event::Stanza(Stanza::Message(message)) => return message,
            Event::Disconnected(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// The body, in whatever language: without one it has that of the stream.
fn said(message: &Message) -> Option<&String> {
    message.bodies.values().next()
}

fn chat(to: Jid, body: &str) -> Stanza {
    let mut message = Message::new(Some(to));
    message.type_ = MessageType::Chat;
    message.bodies.insert(Lang::default(), body.into());
    message.into()
}

async fn play(places: &str) {
    let mut lines = places.lines();
    let mut alice = client(lines.next().unwrap(), "alice");
    let mut bob = client(lines.next().unwrap(), "bob");
    let (from, to) = (online(&mut alice).await, online(&mut bob).await);
    for n in 0..20 {
        let body = format!("message {n} <&>");
        alice
            .send_stanza(chat(to.to_bare().into(), &body))
            .await
            .unwrap();
        let got = message(&mut bob).await;
        assert_eq!((got.from.as_ref(), said(&got)), (Some(&from), Some(&body)));
        bob.send_stanza(chat(from.clone(), &body)).await.unwrap();
        let got = message(&mut alice).await;
        assert_eq!((got.from.as_ref(), said(&got)), (Some(&to), Some(&body)));
    }
}

/// What the tests below run in a process of its own: the client reads whom it trusts from its
/// environment. Elsewhere it is told nothing and plays nothing.
#[test]
fn plays_in_another_process() {
    let Ok(places) = std::env::var(PLAYS) else {
        return;
    };
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .unwrap();
    // One thread: where the client's receiver finds its lock held by a sender it waits without a waker
    // (tokio-xmpp 6.0.0, `StanzaReceiver::poll_next`), and would sleep for good.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, play(&places)).await.unwrap() });
}

fn chats_in(shape: Shape) {
    let mut server = Server::start(shape, Setup::default()).unwrap();
    server.accounts(&["alice", "bob"]).unwrap();
    server.introduce("alice", "bob").unwrap();
    let places: Vec<String> = (0..2)
        .map(|n| format!("{} {}", server.c2s[n % server.c2s.len()], server.domain()))
        .collect();
    let authority = authorities(&server).unwrap();
    let played = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tokio_client::plays_in_another_process",
            "--nocapture",
        ])
        .env(PLAYS, places.join("\n"))
        .env("SSL_CERT_FILE", &authority)
        .output()
        .unwrap();
    assert!(
        played.status.success() && String::from_utf8_lossy(&played.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&played.stdout),
        String::from_utf8_lossy(&played.stderr)
    );
    server.stop().unwrap();
    assert!(
        server.complaints(&[]).is_empty(),
        "{:?}",
        server.complaints(&[])
    );
}

#[test]
fn tokio_xmpp_in_one_process() {
    chats_in(Shape::One);
}

#[test]
fn tokio_xmpp_over_two_gateways() {
    chats_in(Shape::Many);
}
