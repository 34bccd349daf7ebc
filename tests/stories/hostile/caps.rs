//! Rows B16, D10 and D14, floods of directed presence and storms of resumptions: what one account or one
//! address may have has an end, and nobody else meets it.
//!
//! proves: XEP-0205, XEP-0198

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::client::{Client, authenticate};
use chancery_testkit::server::Shape;
use chancery_testkit::wire::{Incoming, Wire};
use futures_util::future::try_join_all;

use super::flood::{configured, times};
use super::sasl::{auth, say};
use super::{DOMAIN, before_auth, undisturbed, witness};
use crate::play::play_with;

/// B16: an account has so many sessions on a gateway; a further bind is refused and may try again.
fn binds(shape: Shape) {
    const SESSIONS: usize = 64;
    let accounts = &["alice", "bob"];
    play_with(shape, configured(""), accounts, &[], async |server| {
        let mut bob = witness(server).await?;
        let mut held = Vec::new();
        for _ in 0..SESSIONS / 8 {
            let mut login = server.login("alice", "", 0)?;
            login.resource = None;
            let eight = (0..8).map(|_| Client::login(&login));
            held.extend(try_join_all(eight).await?);
        }
        let login = server.login("alice", "more", 0)?;
        let bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
        let mut wire = authenticate(&login).await?;
        wire.send(bind).await?;
        let said = wire.element().await?;
        let text = String::from_utf8_lossy(&said.bytes).into_owned();
        ensure!(
            text.contains("type='wait'") && text.contains("<resource-constraint "),
            "{text}"
        );
        // One goes; the same stream binds.
        held.pop().context("none")?.close().await?;
        let mut bound = false;
        for _ in 0..7 {
            wire.send(bind).await?;
            let said = wire.element().await?;
            if said.header.type_.as_deref() == Some("result") {
                bound = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        ensure!(bound, "no room although one went");
        ensure!(held[0].until_marker().await?.is_empty());
        undisturbed(&mut bob).await
    });
}

#[test]
fn b16_an_account_binds_no_more_than_it_may_in_one() {
    binds(Shape::One);
}

#[test]
fn b16_an_account_binds_no_more_than_it_may_in_many() {
    binds(Shape::Many);
}

/// Directed presence has a cap for each session; whom it does not reach hears nothing of the end.
fn directed(shape: Shape) {
    const DIRECTED: usize = 1_000;
    let config = "[gateway]\nstanzas_per_second = 5000\nstanzas_burst = 5000\n";
    let accounts = &["bob", "mallory"];
    play_with(shape, configured(config), accounts, &[], async |server| {
        let mut bob = witness(server).await?;
        let mut mallory = server.client("mallory", "m", 1).await?;
        mallory.enable().await?;
        for number in 0..DIRECTED {
            mallory
                .send(format!("<presence to='bob@{DOMAIN}/absent{number}'/>"))
                .await?;
        }
        mallory.settled().await?;
        ensure!(mallory.until_marker().await?.is_empty(), "not all of them");
        // The marker took no place: it is the session's own address.
        mallory
            .send(format!("<presence id='over' to='bob@{DOMAIN}'/>"))
            .await?;
        let refused = mallory.stanza().await?;
        let text = String::from_utf8_lossy(&refused.bytes).into_owned();
        ensure!(
            refused.header.id.as_deref() == Some("over") && text.contains("<resource-constraint "),
            "{text}"
        );
        mallory.close().await?;
        undisturbed(&mut bob).await
    });
}

#[test]
fn directed_presence_has_a_cap_in_one() {
    directed(Shape::One);
}

#[test]
fn directed_presence_has_a_cap_in_many() {
    directed(Shape::Many);
}

/// D14: guessed ids find nothing, and not for ever on one stream.
#[test]
fn d14_guessed_ids_find_nothing() {
    let accounts = &["alice", "mallory"];
    play_with(Shape::Many, configured(""), accounts, &[], async |server| {
        let mut alice = server.client("alice", "a", 0).await?;
        let id = alice.enable_with(" resume='true'").await?;
        let login = server.login("mallory", "m", 0)?;
        let mut wire = authenticate(&login).await?;
        let mut guesses = 0;
        loop {
            let guess = match guesses % 4 {
                0 => id.clone(),
                1 => id.to_uppercase(),
                2 => id[..id.len() - 1].to_owned(),
                _ => "&apos; OR 1=1".to_owned(),
            };
            wire.send(format!(
                "<resume xmlns='urn:xmpp:sm:3' previd='{guess}' h='0'/>"
            ))
            .await?;
            match wire.expect().await? {
                Incoming::Element(e) if &*e.header.name == "failed" => {
                    let text = String::from_utf8_lossy(&e.bytes).into_owned();
                    ensure!(text.contains("<item-not-found "), "{text}");
                    ensure!(!text.contains(" h="), "{text}");
                }
                Incoming::Element(e) => {
                    let text = String::from_utf8_lossy(&e.bytes).into_owned();
                    ensure!(text.contains("<policy-violation "), "{text}");
                    break;
                }
                other => bail!("{other:?}"),
            }
            guesses += 1;
            ensure!(guesses < 20, "guessing goes on for ever");
        }
        ensure!(alice.until_marker().await?.is_empty());
        Ok(())
    });
}

/// Many sessions lose their streams at once, again and again, and all of them resume.
fn resume_storm(shape: Shape) {
    let accounts = &["alice", "bob", "carol", "dave"];
    play_with(shape, configured(""), accounts, &[], async |server| {
        let mut bob = witness(server).await?;
        let mut sessions = Vec::new();
        for number in 0..24 {
            let (user, gateway) = (["alice", "carol", "dave"][number % 3], number % 2);
            let login = server.login(user, &format!("r{number}"), gateway)?;
            let mut client = Client::login(&login).await?;
            let id = client.enable_with(" resume='true'").await?;
            sessions.push((login, client, id));
        }
        for round in 0..3 * times() {
            let mut cut = Vec::new();
            for (login, client, id) in sessions {
                let past = client.past();
                drop(client);
                bob.send(format!(
                    "<message to='{}' type='chat' id='w{round}'><body>x</body></message>",
                    past.jid
                ))
                .await?;
                cut.push((login, past, id));
            }
            let resumed = cut.into_iter().map(async |(login, past, id)| {
                let mut wire = authenticate(&login).await?;
                let h = past.received;
                wire.send(format!(
                    "<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{h}'/>"
                ))
                .await?;
                let said = wire.element().await?;
                let h = said.header.attr("h").context("no h")?.parse()?;
                ensure!(&*said.header.name == "resumed", "{:?}", said.bytes);
                let mut client = Client::resume(wire, past, h).await?;
                let came = client.stanza().await?;
                ensure!(came.header.id.as_deref() == Some(format!("w{round}").as_str()));
                ensure!(client.until_marker().await?.is_empty(), "more than one");
                Ok((login, client, id))
            });
            sessions = try_join_all(resumed).await?;
        }
        bob.settled().await?;
        undisturbed(&mut bob).await
    });
}

#[test]
fn everybody_resumes_at_once_in_one() {
    resume_storm(Shape::One);
}

#[test]
fn everybody_resumes_at_once_in_many() {
    resume_storm(Shape::Many);
}

/// D10: guesses from many addresses do not keep the owner out, and each address is held back.
#[test]
fn d10_one_account_from_many_addresses_in_many() {
    let accounts = &["alice"];
    play_with(Shape::Many, configured(""), accounts, &[], async |server| {
        // Where she usually is.
        server.client("alice", "a", 0).await?.close().await?;
        let tls = server.trust(0)?;
        let guesses = (1..=60u8).map(async |last| -> Result<()> {
            let source = Some(std::net::Ipv4Addr::new(127, 0, 1, last).into());
            let mut wire = Wire::starttls_from(source, server.c2s[0], DOMAIN, tls.clone()).await?;
            wire.open(DOMAIN).await?;
            wire.element().await?;
            let (name, said) = say(&mut wire, &auth("PLAIN", "\0alice\0guess")).await?;
            ensure!(
                name == "failure" && said == "not-authorized",
                "{name} {said}"
            );
            Ok(())
        });
        try_join_all(guesses).await?;
        // The second gateway counts with the first: both ask the directory.
        for gateway in [0, 1] {
            server.client("alice", "b", gateway).await?.close().await?;
        }
        let mut wire = before_auth(server).await?;
        let (name, said) = say(&mut wire, &auth("PLAIN", "\0alice\0guess")).await?;
        ensure!(
            name == "failure" && said == "not-authorized",
            "{name} {said}"
        );
        Ok(())
    });
}

/// B19: an id that fits into a stanza is looked for, however long, and not found.
#[test]
fn b19_a_long_id_is_not_found() {
    play_with(
        Shape::Many,
        configured(""),
        &["alice"],
        &[],
        async |server| {
            let mut alice = server.client("alice", "a", 0).await?;
            for length in [1024, 1025, 200 * 1024] {
                let query = format!(
                    "<query xmlns='urn:xmpp:mam:2'><set xmlns='http://jabber.org/protocol/rsm'><before>{}</before></set></query>",
                    "x".repeat(length)
                );
                let answer = alice.query("set", &query).await?;
                let text = String::from_utf8_lossy(&answer.bytes).into_owned();
                let right = text.contains("<item-not-found ") || text.contains("<bad-request ");
                ensure!(right, "{length}: {text}");
            }
            ensure!(alice.until_marker().await?.is_empty());
            Ok(())
        },
    );
}
