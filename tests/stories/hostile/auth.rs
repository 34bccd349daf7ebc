//! Rows D10 to D21: guessing, streams that change their mind, what may not be done before a login, and
//! accounts that are taken away while they are in use.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chancery_testkit::client::{Client, authenticate};
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};
use chancery_testkit::wire::{Incoming, Wire, header};
use futures_util::future::join_all;

use super::sasl::{auth, say};
use super::{DOMAIN, Place, before_auth, check, row, undisturbed, witness};
use crate::play::{play, play_with};

/// D10: who guesses is refused, on one stream and over many; its victim logs in all the same.
#[test]
fn guessing_shuts_out_the_guesser_only_in_one() {
    guessing_shuts_out_the_guesser_only(Shape::One);
}

#[test]
fn guessing_shuts_out_the_guesser_only_in_many() {
    guessing_shuts_out_the_guesser_only(Shape::Many);
}

fn guessing_shuts_out_the_guesser_only(shape: Shape) {
    play(shape, &["alice", "bob"], async |server| {
        let mut bob = witness(server).await?;
        // Where she usually is.
        server.client("alice", "a", 0).await?.close().await?;
        let wire = before_auth(server).await?;
        let guess = auth("PLAIN", "\0alice\0guess");
        let said = wire.answer_to(guess.repeat(30).as_bytes()).await?;
        ensure!(said.contains("policy-violation"), "one stream: {said}");
        ensure!(said.matches("<failure").count() <= 6, "one stream: {said}");

        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
        let tls = server.trust(0)?;
        let attempt = async |user: String| -> Result<String> {
            let mut wire =
                Wire::starttls_from(Some(address), server.c2s[0], DOMAIN, tls.clone()).await?;
            wire.open(DOMAIN).await?;
            wire.element().await?;
            wire.send(auth("PLAIN", format!("\0{user}\0guess"))).await?;
            Ok(String::from_utf8_lossy(&wire.element().await?.bytes).into_owned())
        };
        let answers = join_all((0..130).map(|n| {
            attempt(if n % 2 == 0 {
                "alice".into()
            } else {
                format!("user{n}")
            })
        }))
        .await;
        for answer in answers {
            let answer = answer?;
            ensure!(!answer.contains("success"), "{answer}");
        }
        let refused = attempt("alice".into()).await?;
        ensure!(
            refused.contains("policy-violation"),
            "after 130 guesses: {refused}"
        );
        let began = Instant::now();
        server.client("alice", "a", 0).await?.close().await?;
        ensure!(
            began.elapsed() < Duration::from_secs(3),
            "she waited {:?}",
            began.elapsed()
        );
        undisturbed(&mut bob).await
    });
}

/// D11: a login is for one domain.
#[test]
fn a_login_is_for_one_domain_in_one() {
    a_login_is_for_one_domain(Shape::One);
}

#[test]
fn a_login_is_for_one_domain_in_many() {
    a_login_is_for_one_domain(Shape::Many);
}

fn a_login_is_for_one_domain(shape: Shape) {
    let setup = Setup {
        domains: vec![DOMAIN.into(), "second.test".into()],
        ..Setup::default()
    };
    play_with(shape, setup, &["mallory"], &[], async |server| {
        for other in ["second.test", "elsewhere.test"] {
            let mut wire = before_auth(server).await?;
            let (name, said) =
                say(&mut wire, &auth("PLAIN", format!("\0mallory\0{PASSWORD}"))).await?;
            ensure!(name == "success", "{said}");
            let said = wire.answer_to(header(other).as_bytes()).await?;
            ensure!(
                said.contains("<not-authorized") || said.contains("<host-unknown"),
                "{other}: {said}"
            );
        }
        Ok(())
    });
}

/// D12: nothing but SASL before SASL, nothing but a bind before the bind.
#[test]
fn nothing_happens_before_a_login_in_one() {
    nothing_happens_before_a_login(Shape::One);
}

#[test]
fn nothing_happens_before_a_login_in_many() {
    nothing_happens_before_a_login(Shape::Many);
}

fn nothing_happens_before_a_login(shape: Shape) {
    play(shape, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        const EARLY: &[&str] = &["not-authorized", "policy-violation"];
        let rows = [
            row(
                "D12 message",
                format!("<message to='bob@{DOMAIN}'><body>x</body></message>"),
                EARLY,
            ),
            row("D12 presence", "<presence/>", EARLY),
            row(
                "D12 bind",
                "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
                EARLY,
            ),
        ];
        check(server, Place::BeforeAuth, &rows).await?;
        let mut wire = before_auth(server).await?;
        wire.send("<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>").await?;
        let said = wire.element().await?;
        let said = String::from_utf8_lossy(&said.bytes).into_owned();
        let right =
            said.contains("<unsupported-method") || said.contains("<unsupported-stanza-type");
        ensure!(right, "B17: {said}");
        for early in [
            "<enable xmlns='urn:xmpp:sm:3'/>",
            "<resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/>",
        ] {
            let mut wire = before_auth(server).await?;
            wire.send(early).await?;
            let said = wire.element().await?;
            let said = String::from_utf8_lossy(&said.bytes).into_owned();
            let right = said.contains("<unexpected-request") || said.contains("<not-authorized");
            ensure!(right, "D12 {early}: {said}");
        }
        // Authenticated, not bound.
        let login = server.login("mallory", "m", 0)?;
        for early in [
            format!("<message to='bob@{DOMAIN}'><body>x</body></message>"),
            "<presence/>".into(),
        ] {
            let wire = authenticate(&login).await?;
            let said = wire.answer_to(early.as_bytes()).await?;
            ensure!(said.contains("<not-authorized"), "before the bind: {said}");
        }
        let mut wire = authenticate(&login).await?;
        wire.send("<enable xmlns='urn:xmpp:sm:3'/>").await?;
        let said = wire.element().await?;
        ensure!(&*said.header.name == "failed", "{:?}", said.bytes);
        undisturbed(&mut bob).await
    });
}

/// D15: ids cannot be guessed and do not repeat.
#[test]
fn ids_are_long_and_distinct_in_one() {
    ids_are_long_and_distinct(Shape::One);
}

#[test]
fn ids_are_long_and_distinct_in_many() {
    ids_are_long_and_distinct(Shape::Many);
}

fn ids_are_long_and_distinct(shape: Shape) {
    play(shape, &["alice"], async |server| {
        let (mut streams, mut managed, mut resources) = (vec![], vec![], vec![]);
        for _ in 0..20 {
            let mut wire = Wire::plain(server.c2s[0]).await?;
            wire.open(DOMAIN).await?;
            let Incoming::Open(opened) = wire.expect().await? else {
                anyhow::bail!("no header")
            };
            streams.push(opened.id.context("no stream id")?.to_string());
            let mut login = server.login("alice", "", 0)?;
            login.resource = None;
            let mut client = Client::login(&login).await?;
            managed.push(client.enable().await?);
            resources.push(client.jid.clone());
        }
        for ids in [&streams, &managed] {
            ensure!(
                ids.iter().collect::<BTreeSet<_>>().len() == ids.len(),
                "repeated: {ids:?}"
            );
            // 128 bits: 22 characters of base64, 32 of hexadecimal.
            ensure!(ids.iter().all(|id| id.len() >= 22), "short: {ids:?}");
            for at in 0..8 {
                let column: BTreeSet<_> = ids.iter().map(|id| id.as_bytes()[at]).collect();
                ensure!(column.len() > 3, "place {at} hardly varies: {ids:?}");
            }
        }
        ensure!(resources.iter().collect::<BTreeSet<_>>().len() == resources.len());
        Ok(())
    });
}

/// D21: disabled, a new password, deleted: live sessions end within 5 s, wherever they are.
#[test]
fn an_account_is_taken_away_while_online() {
    play(Shape::Many, &["alice", "bob", "carol"], async |server| {
        for (user, act) in [("alice", "disable"), ("bob", "passwd"), ("carol", "delete")] {
            let mut sessions = Vec::new();
            for (resource, gateway) in [("a", 0), ("b", 1)] {
                let mut client = server.client(user, resource, gateway).await?;
                let id = client.enable().await?;
                sessions.push((client, id));
            }
            let began = Instant::now();
            let jid = format!("{user}@{DOMAIN}");
            server.must(&["user", act, &jid], "another password\n")?;
            for (client, _) in &mut sessions {
                ended(client)
                    .await
                    .with_context(|| format!("{user} {act}"))?;
            }
            ensure!(
                began.elapsed() < Duration::from_secs(5),
                "{act} took {:?}",
                began.elapsed()
            );
            refused(server, user, &sessions[0].1).await?;
        }
        Ok(())
    });
}

async fn ended(client: &mut Client) -> Result<()> {
    let mut seen = String::new();
    loop {
        match client.wire.expect().await? {
            Incoming::Element(e) => seen.push_str(&String::from_utf8_lossy(&e.bytes)),
            Incoming::Open(_) => {}
            Incoming::Close | Incoming::End => break,
        }
    }
    ensure!(
        seen.contains("<not-authorized") || seen.contains("<reset"),
        "ended with {seen:?}"
    );
    Ok(())
}

/// The old password is worth nothing, and neither is the session's id.
async fn refused(server: &Server, user: &str, id: &str) -> Result<()> {
    let login = server.login(user, "c", 1)?;
    ensure!(authenticate(&login).await.is_err(), "{user} was let in");
    if user == "bob" {
        let mut login = login;
        login.password = "another password".into();
        let mut wire = authenticate(&login).await?;
        wire.send(format!(
            "<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='0'/>"
        ))
        .await?;
        let said = wire.element().await?;
        ensure!(&*said.header.name == "failed", "resumed: {:?}", said.bytes);
    }
    Ok(())
}
