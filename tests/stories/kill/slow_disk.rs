//! `<r/>` during a slow disk: it is answered in time with what is known, the rest follows unasked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::{Server, Setup, Shape};
use chancery_testkit::wire::Incoming;

const SM: &str = "urn:xmpp:sm:3";
/// What a commit takes.
const SLOW: Duration = Duration::from_millis(1500);

/// The next `<a/>`, and when it came.
async fn answer(client: &mut Client) -> Result<(u32, Instant)> {
    let until = tokio::time::Instant::now() + Duration::from_secs(8);
    loop {
        let next = tokio::time::timeout_at(until, client.wire.next())
            .await
            .context("no <a/>")??;
        let Incoming::Element(element) = next else {
            bail!("the stream ended")
        };
        if element.is("a", SM) {
            let h = element.header.attr("h").context("no h")?.parse()?;
            return Ok((h, Instant::now()));
        }
    }
}

async fn story(shape: Shape) -> Result<()> {
    let mut server = Server::start(shape, Setup::default())?;
    server.accounts(&["alice", "bob"])?;
    let name = if shape == Shape::One {
        "one"
    } else {
        "archive"
    };
    let slow = format!("archive::commit::before=delay({})", SLOW.as_millis());
    server.kill("archive")?;
    server.set_failpoints(vec![(name.into(), slow)]);
    server.start_again("archive")?;
    let mut bob = server.client("bob", "r", 1).await?;
    bob.send("<presence/>").await?;
    let mut alice = server.client("alice", "r", 0).await?;
    alice.enable().await?;
    // What the start has to write is behind us.
    tokio::time::sleep(2 * SLOW).await;
    let domain = server.domain().to_owned();
    for n in 1..=2 {
        let asked = Instant::now();
        alice
            .send(format!(
                "<message to='bob@{domain}' id='m{n}' type='chat'><body>{n}</body></message>"
            ))
            .await?;
        alice.wire.send(format!("<r xmlns='{SM}'/>")).await?;
        let (h, at) = answer(&mut alice).await?;
        let took = at - asked;
        if h != n - 1 || took < Duration::from_millis(700) || took > Duration::from_millis(1400) {
            bail!("the first <a/> came after {took:?} with h={h}");
        }
        let (h, at) = answer(&mut alice).await.context("unasked")?;
        if h != n || at - asked < SLOW - Duration::from_millis(50) {
            bail!("the second <a/> came after {:?} with h={h}", at - asked);
        }
        let read = bob.wait(|e| &*e.header.name == "message").await?;
        if read.header.id.as_deref() != Some(&format!("m{n}")) {
            bail!("bob read something else");
        }
    }
    // A gateway asks for everything else at once: nothing of this waits for the disk.
    let asked = Instant::now();
    alice
        .send(format!(
            "<message to='bob@{domain}' id='m3'><body>3</body></message>"
        ))
        .await?;
    alice.query("get", "<ping xmlns='urn:xmpp:ping'/>").await?;
    if asked.elapsed() > Duration::from_millis(700) {
        bail!(
            "a ping to the server waited {:?} for the disk",
            asked.elapsed()
        );
    }
    alice.settled().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_is_asked_for_during_a_slow_disk() {
    for shape in [Shape::One, Shape::Many] {
        story(shape)
            .await
            .unwrap_or_else(|error| panic!("{shape:?}: {error:#}"));
    }
}

/// Behind a slow disk a gateway dies: what the log will have is told, so that no twin is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_dies_during_a_slow_disk() {
    let told = async {
        let mut server = Server::start(Shape::Many, Setup::default())?;
        server.accounts(&["alice", "bob"])?;
        let domain = server.domain().to_owned();
        server.kill("archive")?;
        let slow = format!("archive::commit::before=delay({})", SLOW.as_millis());
        server.set_failpoints(vec![("archive".into(), slow)]);
        server.start_again("archive")?;
        tokio::time::sleep(2 * SLOW).await;
        let mut alice = server.client("alice", "r", 0).await?;
        let id = alice.enable().await?;
        for n in 1..=3 {
            let message = "<message to='bob@DOMAIN' id='mN'><body>N</body></message>";
            alice
                .send(
                    message
                        .replace("DOMAIN", &domain)
                        .replace('N', &n.to_string()),
                )
                .await?;
            if n == 1 {
                tokio::time::sleep(SLOW + Duration::from_millis(300)).await;
            }
        }
        // With the log, and not yet written.
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill("gw1")?;
        let login = server.login("alice", "r", 1)?;
        let mut wire = chancery_testkit::client::authenticate(&login).await?;
        wire.send(format!("<resume xmlns='{SM}' previd='{id}' h='0'/>"))
            .await?;
        let failed = wire.element().await?;
        let h: u32 = failed.header.attr("h").context("no h")?.parse()?;
        let mut again = Client::bind(wire, &login).await?;
        again.enable().await?;
        for n in h + 1..=3 {
            let message = "<message to='bob@DOMAIN' id='mN'><body>N</body></message>";
            again
                .send(
                    message
                        .replace("DOMAIN", &domain)
                        .replace('N', &n.to_string()),
                )
                .await?;
        }
        again.settled().await?;
        let (file, _) = server.export(true)?;
        for n in 1..=3 {
            let records = chancery_testkit::checker::read(&file)?;
            let count = records
                .iter()
                .filter(|r| r.kind == "message" && r.id == format!("m{n}"));
            let count = count.count();
            if count != 1 {
                bail!("told h={h}: {count} records of message {n}");
            }
        }
        Ok(())
    };
    let told: Result<()> = told.await;
    told.unwrap();
}
