//! The same resource on both gateways: the shard decides, the later one stays.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::{Server, Setup, Shape};
use chancery_testkit::wire::Incoming;

/// Reads until the stream ends; gives what came as text.
async fn until_end(client: &mut Client) -> Result<String> {
    let mut all = String::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), client.next());
        match next.await.context("the stream does not end")?? {
            Incoming::Element(element) => all.push_str(&String::from_utf8_lossy(&element.bytes)),
            Incoming::Open(_) => {}
            Incoming::Close | Incoming::End => return Ok(all),
        }
    }
}

async fn story(shape: Shape) -> Result<()> {
    let server = Server::start(shape, Setup::default())?;
    server.accounts(&["alice", "bob"])?;
    server.introduce("alice", "bob")?;
    let domain = server.domain().to_owned();
    let mut alice = server.client("alice", "r", 0).await?;
    let mut first = server.client("bob", "r", 0).await?;
    first.enable().await?;
    first.answers = false;
    first.send("<presence/>").await?;
    first.until_marker().await?;
    let send = |id: &str, to: &str| {
        format!("<message to='{to}' id='{id}' type='chat'><body>{id}</body></message>")
    };
    alice.send(send("m1", &format!("bob@{domain}"))).await?;
    let one = first.stanza().await?;
    let shown = |e: &chancery_xml::Element| {
        let id = e.child("stanza-id", "urn:xmpp:sid:0");
        id.and_then(|c| c.attrs.iter().find(|a| &*a.name == "id"))
            .map(|a| a.value.to_string())
    };

    // Elsewhere, the same resource: the first one goes, what it did not acknowledge goes over.
    let mut second = server.client("bob", "r", 1).await?;
    let end = until_end(&mut first).await?;
    if !end.contains("<conflict") {
        bail!("the first session did not end with conflict: {end}");
    }
    second.enable().await?;
    second.send("<presence/>").await?;
    let again = second.wait(|e| &*e.header.name == "message").await?;
    if again.header.id.as_deref() != Some("m1") || shown(&again) != shown(&one) {
        bail!("what came over is not the first message");
    }
    if again.child("delay", "urn:xmpp:delay").is_none() {
        bail!("it came over without its delay");
    }
    alice.send(send("m2", &format!("bob@{domain}/r"))).await?;
    let two = second.wait(|e| &*e.header.name == "message").await?;
    if two.header.id.as_deref() != Some("m2") {
        bail!("the second session reads {:?}", two.header.id);
    }
    second.until_marker().await?;
    second.close().await?;

    // Both at once, many times: one of them stays, and it is reached.
    for n in 0..8 {
        race(&server, &mut alice, n)
            .await
            .with_context(|| format!("race {n}"))?;
    }
    Ok(())
}

/// Two logins at once; whoever is left is the only one.
async fn race(server: &Server, alice: &mut Client, n: u32) -> Result<()> {
    let (left, right) = tokio::join!(server.client("bob", "r", 0), server.client("bob", "r", 1));
    let mut stays = Vec::new();
    for client in [left, right] {
        // Fenced before its bind was answered: also an end.
        let Ok(mut client) = client else { continue };
        if client.send("<presence/>").await.is_ok() && client.until_marker().await.is_ok() {
            stays.push(client);
        }
    }
    let mut alive = Vec::new();
    for mut client in stays {
        if client.until_marker().await.is_ok() {
            alive.push(client);
        }
    }
    let count = alive.len();
    let Some(mut client) = alive.pop().filter(|_| count == 1) else {
        bail!("{count} sessions are left");
    };
    let to = format!("bob@{}/r", server.domain());
    alice
        .send(format!(
            "<message to='{to}' id='race{n}' type='chat'><body>x</body></message>"
        ))
        .await?;
    let read = client.wait(|e| &*e.header.name == "message").await?;
    if read.header.id.as_deref() != Some(&format!("race{n}")) {
        bail!("reads {:?}", read.header.id);
    }
    client.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_resource_on_two_gateways() {
    for shape in [Shape::One, Shape::Many] {
        story(shape)
            .await
            .unwrap_or_else(|error| panic!("{shape:?}: {error:#}"));
    }
}
