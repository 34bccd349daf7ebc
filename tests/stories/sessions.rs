//! Sessions that fall behind, answer late or not at all: order, once, and nothing lost.
//!
//! proves: RFC 6120 §10

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::matching::parse;
use chancery_testkit::server::{Server, Shape};
use chancery_testkit::wire::{Incoming, PATIENCE};

use crate::play::play;

const WAITING: usize = 300;
const NEW: usize = 60;

#[test]
fn a_backlog_while_new_ones_arrive_with_sm_in_one() {
    play(Shape::One, &["alice", "bob"], async |server| {
        backlog(server, true).await
    });
}

#[test]
fn a_backlog_while_new_ones_arrive_without_sm_in_one() {
    play(Shape::One, &["alice", "bob"], async |server| {
        backlog(server, false).await
    });
}

#[test]
fn a_backlog_while_new_ones_arrive_with_sm_in_many() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        backlog(server, true).await
    });
}

#[test]
fn a_backlog_while_new_ones_arrive_without_sm_in_many() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        backlog(server, false).await
    });
}

async fn backlog(server: &Server, managed: bool) -> Result<()> {
    let mut alice = server.client("alice", "a", 0).await?;
    alice.enable().await?;
    for number in 0..WAITING {
        say(&mut alice, number, "waiting").await?;
    }
    alice.settled().await?;
    let mut bob = server.client("bob", "b", 1).await?;
    if managed {
        bob.enable().await?;
    }
    bob.send("<presence/>").await?;
    let sending = async {
        for number in WAITING..WAITING + NEW {
            say(&mut alice, number, "new").await?;
            // Between one and the next the reader gets on.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        alice.settled().await
    };
    let (sent, read) = tokio::join!(sending, read_in_order(&mut bob, 0, WAITING + NEW));
    sent?;
    let delayed = read?;
    ensure!(
        delayed >= WAITING,
        "only {delayed} of {WAITING} came with their time"
    );
    let rest = bob.until_marker().await?;
    ensure!(
        rest.iter().all(|e| &*e.header.name != "message"),
        "more than was sent: {rest:?}"
    );
    bob.close().await?;
    let mut again = server.client("bob", "c", 0).await?;
    again.send("<presence/>").await?;
    let rest = again.until_marker().await?;
    ensure!(
        rest.iter().all(|e| &*e.header.name != "message"),
        "handed over twice: {rest:?}"
    );
    Ok(())
}

async fn say(client: &mut Client, number: usize, text: &str) -> Result<()> {
    client
        .send(format!(
            "<message to='bob@example.test' type='chat' id='n{number}'><body>{text}</body></message>"
        ))
        .await
}

/// Reads messages `from..to`, each once and in order; gives how many had a delay.
async fn read_in_order(client: &mut Client, from: usize, to: usize) -> Result<usize> {
    let mut delayed = 0;
    let mut next = from;
    while next < to {
        let got = client
            .stanza()
            .await
            .with_context(|| format!("waiting for {next}"))?;
        if &*got.header.name != "message" {
            continue;
        }
        let id = got.header.id.as_deref().unwrap_or_default();
        ensure!(id == format!("n{next}"), "{id} came instead of n{next}");
        let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
        delayed += usize::from(tree.has_child("delay", "urn:xmpp:delay"));
        next += 1;
    }
    Ok(delayed)
}

/// B11: a reader that stops costs its sender nothing, and misses nothing when it goes on.
#[test]
fn a_client_that_does_not_read_for_a_while() {
    play(Shape::Many, &["alice", "bob", "carol"], async |server| {
        let mut alice = server.client("alice", "a", 0).await?;
        alice.enable().await?;
        let mut carol = server.client("carol", "c", 1).await?;
        carol.enable().await?;
        let mut bob = server.client("bob", "b", 1).await?;
        bob.enable().await?;
        bob.send("<presence/>").await?;
        bob.until_marker().await?;
        let text = "x".repeat(2048);
        const COUNT: usize = 1500;
        for number in 0..COUNT {
            say(&mut alice, number, &text).await?;
        }
        alice.settled().await?;
        // Somebody else on the same gateway notices nothing.
        let began = Instant::now();
        ensure!(carol.until_marker().await?.is_empty());
        ensure!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        read_in_order(&mut bob, 0, COUNT).await?;
        ensure!(bob.until_marker().await?.is_empty(), "something came twice");
        Ok(())
    });
}

/// XEP-0198: `<r/>` is answered in its place, and what settles later is told unasked.
#[test]
fn a_request_is_answered_among_many_messages() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        let mut alice = server.client("alice", "a", 0).await?;
        alice.enable().await?;
        let mut all = String::new();
        const COUNT: u32 = 200;
        for number in 1..=COUNT {
            all.push_str(&format!(
                "<message to='bob@example.test' type='chat' id='n{number}'><body>x</body></message>"
            ));
            if number % 50 == 0 {
                all.push_str("<r xmlns='urn:xmpp:sm:3'/>");
            }
        }
        alice.wire.send(&all).await?;
        let (mut told, mut answers) = (0, 0);
        let until = Instant::now() + PATIENCE;
        while told < COUNT {
            ensure!(
                Instant::now() < until,
                "{answers} answers, {told} acknowledged"
            );
            let Incoming::Element(element) = alice.wire.expect().await? else {
                bail!("ended")
            };
            if element.is("a", "urn:xmpp:sm:3") {
                let h: u32 = element.header.attr("h").context("no h")?.parse()?;
                ensure!(h >= told && h <= COUNT, "h went from {told} to {h}");
                told = h;
                answers += 1;
            }
        }
        ensure!(answers >= 4, "four requests, {answers} answers");
        Ok(())
    });
}

/// A stanza that is not acknowledged when the connection breaks is known by `<failed h=''/>`.
#[test]
fn after_a_break_the_log_says_what_it_has() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        let login = server.login("alice", "a", 0)?;
        let mut alice = Client::login(&login).await?;
        let id = alice.enable().await?;
        for number in 0..20 {
            say(&mut alice, number, "before the break").await?;
        }
        drop(alice);
        let mut wire =
            chancery_testkit::client::authenticate(&server.login("alice", "a", 1)?).await?;
        wire.send(format!(
            "<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='0'/>"
        ))
        .await?;
        let failed = wire.element().await?;
        ensure!(&*failed.header.name == "failed", "{:?}", failed.bytes);
        let h: usize = failed.header.attr("h").map_or(Ok(0), str::parse)?;
        // The client sends again what the log does not have, and nothing is there twice.
        let mut alice = Client::bind(wire, &server.login("alice", "a", 1)?).await?;
        alice.enable().await?;
        for number in h..20 {
            say(&mut alice, number, "before the break").await?;
        }
        alice.settled().await?;
        let mut bob = server.client("bob", "b", 0).await?;
        bob.enable().await?;
        bob.send("<presence/>").await?;
        read_in_order(&mut bob, 0, 20).await?;
        ensure!(
            bob.until_marker()
                .await?
                .iter()
                .all(|e| &*e.header.name != "message")
        );
        Ok(())
    });
}
