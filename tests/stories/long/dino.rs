//! Dino under Xvfb, with an account that is in its database beforehand: it signs in over verified TLS,
//! its user accepts a contact, reads and answers, and what was said at another device, or before it was
//! there, is in its database too. Its pictures are in `target/screenshots`, to be looked at.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::server::{PASSWORD, Server, Shape};
use tokio::net::{TcpListener, TcpStream};

use super::desktop::{Desktop, address};
use crate::clients::{authorities, installed, must, named, recorded, repository};
use crate::play::play;

const LIMIT: Duration = Duration::from_secs(60);
/// Where, on the screen of [`Desktop`], a contact's request is accepted, and where text is written.
const ACCEPT: (u32, u32) = (893, 78);
const ENTRY: (u32, u32) = (700, 662);
/// A picture with a window, its texts and symbols has more; an empty screen has one.
const COLOURS: usize = 50;

/// Leads what comes to the standard's port to a gateway: Dino knows only domains.
async fn lead(listener: TcpListener, gateway: std::net::SocketAddr) {
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(gateway).await {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

struct Database {
    file: PathBuf,
}

impl Database {
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let python = installed("python/bin/slixmpp-ready")?.with_file_name("python");
        let mut command = Command::new(python);
        command
            .arg(repository().join("tests/clients/dino.py"))
            .arg(&self.file)
            .args(arguments);
        Ok(command)
    }

    async fn ready(&self) -> Result<()> {
        let until = Instant::now() + LIMIT;
        while !self.file.exists() || must(&mut self.command(&["ready"])?).is_err() {
            ensure!(Instant::now() < until, "Dino makes no database");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Waits until these are its messages.
    async fn holds(&self, messages: &[&str]) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let text = must(&mut self.command(&["messages"])?)?;
            if text.lines().eq(messages.iter().copied()) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "Dino has {text}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// A message with this body, aside from receipts, markers and chat states.
async fn says(client: &mut Client, from: &str, body: &str) -> Result<()> {
    loop {
        let text = named(client, "message", from, Some("chat")).await?;
        if text.contains(&format!("<body>{body}</body>")) {
            return Ok(());
        }
        ensure!(!text.contains("<body>"), "{text}");
    }
}

async fn device(server: &Server, user: &str, resource: &str, gateway: usize) -> Result<Client> {
    let mut client = server.client(user, resource, gateway).await?;
    client
        .query("get", "<query xmlns='jabber:iq:roster'/>")
        .await?;
    client
        .query("set", "<enable xmlns='urn:xmpp:carbons:2'/>")
        .await?;
    client.send("<presence/>").await?;
    Ok(client)
}

fn chat(to: &str, body: &str) -> String {
    format!("<message to='{to}' type='chat'><body>{body}</body></message>")
}

/// The system's authorities are replaced: the test's own are enough.
async fn signed_in(server: &Server, desktop: &mut Desktop, database: &Database) -> Result<()> {
    let trusted = authorities(server)?;
    desktop.run("dino-im", server.domain(), &trusted)?;
    database.ready().await?;
    desktop.end()?;
    let bob = format!("bob@{}", server.domain());
    must(&mut database.command(&["account", &bob, PASSWORD])?)?;
    desktop.run("dino-im --print-xmpp=all", server.domain(), &trusted)
}

async fn story(server: &Server, pictures: &Path) -> Result<()> {
    let domain = server.domain();
    let (alice, bob) = (format!("alice@{domain}"), format!("bob@{domain}"));
    let mut peer = device(server, "alice", "desk", 0).await?;
    let mut phone = device(server, "bob", "phone", 0).await?;
    peer.send(chat(&format!("{bob}/phone"), "before Dino"))
        .await?;
    says(&mut phone, &alice, "before Dino").await?;

    let listener = TcpListener::bind((address(), 5222)).await?;
    let gateway = server.c2s[server.c2s.len() - 1];
    let leading = tokio::spawn(lead(listener, gateway));
    let home = server.home().join("dino");
    let database = Database {
        file: home.join("data/dino/dino.db"),
    };
    let mut desktop = Desktop::start(&home)?;
    signed_in(server, &mut desktop, &database).await?;
    let online = named(&mut phone, "presence", &format!("{bob}/dino"), None).await;
    online.with_context(|| std::fs::read_to_string(desktop.log()).unwrap_or_default())?;
    // History that it was not there for.
    database.holds(&["in before Dino"]).await?;

    peer.send(format!("<presence type='subscribe' to='{bob}'/>"))
        .await?;
    accepted(&desktop, &mut peer, &bob, pictures).await?;

    peer.send(chat(&bob, "hello Dino")).await?;
    let held = ["in before Dino", "in hello Dino"];
    database.holds(&held).await?;
    phone.send(chat(&alice, "from the phone")).await?;
    says(&mut peer, &bob, "from the phone").await?;
    database
        .holds(&[&held[..], &["out from the phone"]].concat())
        .await?;

    desktop.click(ENTRY.0, ENTRY.1)?;
    desktop.type_line("hello from Dino")?;
    says(&mut peer, &format!("{bob}/dino"), "hello from Dino").await?;
    let carbon = phone
        .wait(|e| String::from_utf8_lossy(&e.bytes).contains("hello from Dino"))
        .await?;
    let carbon = String::from_utf8_lossy(&carbon.bytes).into_owned();
    ensure!(
        carbon.contains("<sent xmlns='urn:xmpp:carbons:2'"),
        "{carbon}"
    );
    let held = [&held[..], &["out from the phone", "out hello from Dino"]].concat();
    database.holds(&held).await?;
    let colours = desktop.picture(&pictures.join("chat.png"))?;
    ensure!(colours > COLOURS, "a picture of {colours} colours");
    desktop.end()?;
    leading.abort();
    let bodies: Vec<&str> = held
        .iter()
        .filter_map(|line| Some(line.split_once(' ')?.1))
        .collect();
    recorded(server, &bodies)
}

/// The user clicks where the request is shown, again while it is not there yet.
async fn accepted(desktop: &Desktop, peer: &mut Client, bob: &str, pictures: &Path) -> Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        desktop.picture(&pictures.join("request.png"))?;
        desktop.click(ACCEPT.0, ACCEPT.1)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let came = peer.until_marker().await?;
        let subscribed = came.iter().any(|e| {
            e.header.type_.as_deref() == Some("subscribed") && e.header.from.as_deref() == Some(bob)
        });
        if subscribed {
            return Ok(());
        }
        ensure!(Instant::now() < until, "Dino accepts nobody");
    }
}

fn tell(shape: Shape, name: &str) {
    let pictures = repository().join("target/screenshots").join(name);
    std::fs::create_dir_all(&pictures).unwrap();
    play(shape, &["alice", "bob"], async |server| {
        story(server, &pictures).await
    });
}

#[test]
fn in_one_process() {
    tell(Shape::One, "dino-one");
}

#[test]
fn over_two_gateways() {
    tell(Shape::Many, "dino-many");
}
