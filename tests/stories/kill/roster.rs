//! The roster service and the directory die under load (row 4 of the fault matrix, and what it leaves open):
//! messages go on, who is subscribed to whom stays true, block lists stay in force, what was
//! acknowledged is there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::Shape;
use chancery_xml::Element;

use super::stage::{Moment, Stage, rounds};
use super::stanza::{condition, text};

/// The service is back by then.
const BACK: Duration = Duration::from_secs(5);
/// Who could not log in meanwhile is back by then.
const CLIENTS_BACK: Duration = Duration::from_secs(60);
/// Messages of everybody arrive within this while the service is away.
const UNTOUCHED: Duration = Duration::from_secs(10);
const BLOCKING: &str = "urn:xmpp:blocking";
const ROSTER: &str = "jabber:iq:roster";

/// The items of a roster: the account, its subscription, its name. Sorted.
async fn roster_of(client: &mut Client) -> Result<BTreeSet<String>> {
    let payload = format!("<query xmlns='{ROSTER}'/>");
    let answer = client.query("get", &payload).await?;
    if answer.header.type_.as_deref() != Some("result") {
        bail!("no roster: {}", text(&answer));
    }
    let items = text(&answer);
    Ok(items
        .split("<item ")
        .skip(1)
        .map(|item| item.split("</query>").next().unwrap_or(item).to_owned())
        .collect())
}

async fn name_item(client: &mut Client, name: u32) -> Result<Element> {
    let payload =
        format!("<query xmlns='{ROSTER}'><item jid='friend@example.test' name='n{name}'/></query>");
    client.query("set", &payload).await
}

/// The name that the last change gave, by what the roster says.
fn named(roster: &BTreeSet<String>) -> u32 {
    let item = roster.iter().find(|item| item.contains("friend@"));
    let name = item.and_then(|item| item.split_once("n").map(|_| item));
    name.and_then(|item| {
        let (_, rest) = item.split_once("name=")?;
        let digits = rest.trim_start_matches(['\'', '"', 'n']);
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    })
    .unwrap_or(0)
}

/// What is written to one who has blocked the writer comes back, as from nobody.
async fn is_blocked(client: &mut Client, to: &str) -> Result<()> {
    // Without an id: the account of the load is of the probes' messages only.
    client
        .send(format!(
            "<message to='{to}' type='chat'><body>hello</body></message>"
        ))
        .await?;
    let error = client
        .wait(|e| &*e.header.name == "message" && e.header.type_.as_deref() == Some("error"))
        .await?;
    let (condition, kind) = condition(&error);
    if (condition.as_str(), kind.as_str()) != ("service-unavailable", "cancel") {
        bail!("a block is answered by {condition}, {kind}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roster_dies_and_subscriptions_and_blocks_stay() {
    rounds("roster", Shape::Many, async |stage: &mut Stage| {
        stage.server.accounts(&["owner", "friend", "pest"])?;
        stage.server.introduce("owner", "friend")?;
        let mut owner = stage.server.client("owner", "o", 0).await?;
        let mut pest = stage.server.client("pest", "p", 1).await?;
        let bare = owner.bare().to_owned();
        let pest_is = pest.bare().to_owned();
        let block = format!("<block xmlns='{BLOCKING}'><item jid='{pest_is}'/></block>");
        let blocked = owner.query("set", &block).await?;
        if blocked.header.type_.as_deref() != Some("result") {
            bail!("not blocked: {}", text(&blocked));
        }
        is_blocked(&mut pest, &bare).await?;
        let mut name = 0;
        for _ in 0..2 {
            // Changes until the last moment: the acknowledged ones stay.
            let more = stage.dice.within(1, 12) as u32;
            for _ in 0..more {
                name += 1;
                let set = name_item(&mut owner, name).await?;
                if set.header.type_.as_deref() != Some("result") {
                    bail!("not named: {}", text(&set));
                }
            }
            let before = roster_of(&mut owner).await?;
            let died = stage.die("roster", Moment::Random).await?;
            // The roster says to wait; nothing else has changed.
            let set = name_item(&mut owner, name).await?;
            let (condition, kind) = condition(&set);
            if (condition.as_str(), kind.as_str()) != ("resource-constraint", "wait") {
                bail!("a roster that is away says {condition}, {kind}");
            }
            stage
                .load
                .recovered(Instant::now(), UNTOUCHED)
                .await
                .context("the roster is away")?;
            is_blocked(&mut pest, &bare)
                .await
                .context("the roster is away")?;
            let bounced = stage.load.bounced_between(died, Instant::now());
            if bounced > 0 {
                bail!("{bounced} messages came back while only the roster was away");
            }
            stage.back("roster", died, None, BACK).await?;
            let after = again(&mut owner, Instant::now()).await?;
            if before != after || named(&after) != name {
                bail!("the roster was {before:?}, and is {after:?} after {name} changes");
            }
            is_blocked(&mut pest, &bare)
                .await
                .context("the roster is back")?;
        }
        let free = format!("<unblock xmlns='{BLOCKING}'/>");
        owner.query("set", &free).await?;
        owner.close().await?;
        pest.close().await
    })
    .await;
}

/// The roster, as soon as its service is reached again.
async fn again(client: &mut Client, since: Instant) -> Result<BTreeSet<String>> {
    loop {
        match roster_of(client).await {
            Ok(roster) => return Ok(roster),
            Err(error) if since.elapsed() > BACK => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Sessions go on without it; who breaks off meanwhile comes back with it, and an account that was made just
/// before is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_dies_and_sessions_go_on() {
    rounds("directory", Shape::Many, async |stage: &mut Stage| {
        for n in 0..2 {
            let name = format!("late{n}");
            let died = stage.die("directory", Moment::Random).await;
            let died = died?;
            let wait = stage.dice.within(100, 2_000);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stage.back("directory", died, None, CLIENTS_BACK).await?;
            // Acknowledged, and then it dies at once.
            stage.server.accounts(&[&name])?;
            stage.server.kill("directory")?;
            let died = Instant::now();
            stage.kills += 1;
            stage.back("directory", died, None, CLIENTS_BACK).await?;
            let client = stage.server.client(&name, "l", n).await;
            client
                .with_context(|| format!("{name} was made"))?
                .close()
                .await?;
        }
        Ok(())
    })
    .await;
}
