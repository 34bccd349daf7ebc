//! 5,000 people in one group of the directory that rosters show: who asks has all of them, and a change
//! is a push for each client, or none where it is large.
//!
//! proves: RFC 6121 §2, XEP-0237

use anyhow::{Context, Result, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::server::{Server, Shape};
use chancery_xml::Element;

use crate::play::play;

const PEOPLE: usize = 5_000;
/// Members of one command, so that its line is no longer than a shell takes.
const NAMED: usize = 2_000;
/// More than are pushed one by one.
const MANY: usize = 17;
/// Of them, those who are there.
const THERE: usize = 40;

#[test]
fn a_group_of_thousands_without_a_storm_of_pushes_in_one() {
    play(Shape::One, &["alice", "bob", "carol"], tell);
}

#[test]
fn a_group_of_thousands_without_a_storm_of_pushes_in_many() {
    play(Shape::Many, &["alice", "bob", "carol"], tell);
}

/// Accounts with the keys of RFC 7677's example.
fn import(server: &Server, names: &[String]) -> Result<()> {
    let keys = "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,\
                WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,\
                wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let line = |name: &String| format!("{name}@example.test {keys}\n");
    let lines: String = names.iter().map(line).collect();
    server.must(&["user", "import", "-"], &lines)?;
    Ok(())
}

fn group(server: &Server, act: &str, names: &[String]) -> Result<()> {
    for names in names.chunks(NAMED) {
        let mut arguments = vec!["group", act, "staff"];
        arguments.extend(names.iter().map(String::as_str));
        server.must(&arguments, "")?;
    }
    Ok(())
}

fn text(element: &Element) -> String {
    String::from_utf8_lossy(&element.bytes).into_owned()
}

fn items(roster: &str) -> usize {
    roster.matches("<item").count()
}

fn version(roster: &str) -> Result<&str> {
    let (_, rest) = roster.split_once(" ver='").context("no version")?;
    rest.split('\'').next().context("no end")
}

async fn ask(client: &mut Client, version: Option<&str>) -> Result<String> {
    let ver = version.map_or(String::new(), |ver| format!(" ver='{ver}'"));
    let query = format!("<query xmlns='jabber:iq:roster'{ver}/>");
    Ok(text(&client.query("get", &query).await?))
}

/// Reads up to this push, and nothing but presence before it.
async fn pushed(client: &mut Client, what: &str) -> Result<String> {
    loop {
        let got = client
            .stanza()
            .await
            .with_context(|| format!("for {what}"))?;
        let got = text(&got);
        if got.contains(what) {
            ensure!(items(&got) == 1, "{got}");
            return Ok(got);
        }
        ensure!(
            !got.contains("jabber:iq:roster"),
            "{got} came before {what}"
        );
    }
}

/// Reads until these have been heard.
async fn hears(client: &mut Client, people: &[&str]) -> Result<()> {
    let mut missing: Vec<String> = people
        .iter()
        .map(|name| format!("from='{name}@example.test/"))
        .collect();
    while !missing.is_empty() {
        let got = client.stanza().await;
        let got = text(&got.with_context(|| format!("{missing:?}"))?);
        missing.retain(|from| !(got.starts_with("<presence") && got.contains(from)));
    }
    Ok(())
}

/// Logs them in, on either gateway, and makes them available.
async fn come(server: &Server, names: &[String]) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let mut login = server.login(name, "r", n % 2)?;
        login.password = "pencil".into();
        let mut client = Client::login(&login).await?;
        client.send("<presence/>").await?;
        client.wait(|e| &*e.header.name == "presence").await?;
        clients.push(client);
    }
    Ok(clients)
}

async fn tell(server: &mut Server) -> Result<()> {
    let mut names: Vec<String> = (0..PEOPLE - 2).map(|n| format!("u{n}")).collect();
    let late: Vec<String> = (0..MANY).map(|n| format!("late{n}")).collect();
    import(server, &names)?;
    import(server, &late)?;
    let there: Vec<String> = names.iter().step_by(PEOPLE / THERE).cloned().collect();
    names.extend(["alice".to_owned(), "bob".to_owned()]);
    server.must(&["group", "create", "staff"], "")?;
    group(server, "add", &names)?;
    server.must(&["group", "show", "staff", "--label", "Staff"], "")?;

    let mut clients = come(server, &there).await?;
    let mut alice = server.client("alice", "a", 0).await?;
    alice.enable().await?;
    let mut bob = server.client("bob", "b", 1).await?;
    bob.enable().await?;
    let whole = ask(&mut alice, None).await?;
    ensure!(items(&whole) == PEOPLE - 1, "{} items", items(&whole));
    ensure!(
        whole
            .matches("subscription='both'><group>Staff</group>")
            .count()
            == PEOPLE - 1
    );
    let current = ask(&mut alice, Some(version(&whole)?)).await?;
    ensure!(!current.contains("<query"), "{current}");
    ensure!(items(&ask(&mut bob, None).await?) == PEOPLE - 1);
    alice.send("<presence/>").await?;
    bob.send("<presence/>").await?;
    hears(&mut alice, &["alice", "bob"]).await?;
    hears(&mut bob, &["alice", "bob"]).await?;
    alice.until_marker().await?;
    bob.until_marker().await?;

    // One comes: one push for each client.
    group(server, "add", &["carol".to_owned()])?;
    let push = pushed(&mut alice, "jid='carol@example.test'").await?;
    pushed(&mut bob, "jid='carol@example.test'").await?;
    let current = ask(&mut alice, Some(version(&push)?)).await?;
    ensure!(
        !current.contains("<query"),
        "what is pushed is what is asked for: {current}"
    );
    // She hears those who are there, and they hear her.
    let mut carol = server.client("carol", "c", 1).await?;
    carol.enable().await?;
    ensure!(items(&ask(&mut carol, None).await?) == PEOPLE);
    carol.send("<presence/>").await?;
    let mut heard: Vec<&str> = there.iter().map(String::as_str).collect();
    heard.extend(["alice", "bob", "carol"]);
    hears(&mut carol, &heard).await?;
    hears(&mut alice, &["carol"]).await?;

    // They too, who have not asked for the roster and are pushed nothing.
    for client in &mut clients {
        let came = client.until_marker().await?;
        ensure!(came.iter().any(|e| text(e).contains("from='carol@")));
        ensure!(!came.iter().any(|e| text(e).contains("jabber:iq:roster")));
    }

    // Many come at once: nobody is pushed anything. What is pushed after them shows that.
    group(server, "add", &late)?;
    for client in [&mut alice, &mut bob] {
        let came = client.until_marker().await?;
        ensure!(!came.iter().any(|e| text(e).contains("jabber:iq:roster")));
    }
    group(server, "remove", &["u0".to_owned()])?;
    for client in [&mut alice, &mut bob] {
        let push = pushed(client, "subscription='remove'").await?;
        ensure!(push.contains("jid='u0@example.test'"), "{push}");
        let fresh = ask(client, Some(version(&push)?)).await?;
        ensure!(
            items(&fresh) == PEOPLE - 1 + MANY,
            "{} items",
            items(&fresh)
        );
    }

    // The whole group goes: no push either, and nobody hears anybody.
    server.must(&["group", "hide", "staff"], "")?;
    bob.wait(|e| text(e).contains("type='unavailable'")).await?;
    ensure!(
        !bob.until_marker()
            .await?
            .iter()
            .any(|e| text(e).contains("jabber:iq:roster"))
    );
    ensure!(items(&ask(&mut alice, None).await?) == 0);
    Ok(())
}
