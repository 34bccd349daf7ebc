//! The presence service dies under load (row 4 of the fault matrix): messages go on, what is shown is rebuilt,
//! and nobody who went meanwhile stays available.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::Shape;
use chancery_testkit::wire::Incoming;

use super::notes::Shown;
use super::stage::{Moment, Stage, rounds};

/// The service is back by then.
const BACK: Duration = Duration::from_secs(5);
/// Presence is rebuilt by then.
const REBUILT: Duration = Duration::from_secs(30);
/// Nobody who is gone is shown as available after this.
const NOBODY_FALSE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_dies_and_messages_go_on() {
    rounds("presence", Shape::Many, async |stage: &mut Stage| {
        let died = stage.die("presence", Moment::Random).await?;
        // Messages are untouched: everybody's arrive while it is away, and nobody is bounced.
        stage
            .load
            .recovered(died, Duration::from_secs(5))
            .await
            .context("presence is away")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let bounced = stage.load.bounced_between(died, Instant::now());
        if bounced > 0 {
            bail!("{bounced} messages came back while only presence was away");
        }
        stage.back("presence", died, None, BACK).await?;
        rebuilt(stage).await?;
        for (seat, book) in stage.load.seats.iter().zip(&stage.load.books) {
            let shown = |p: &&Shown| p.at > died && !p.from.ends_with("/watch");
            if let Some(presence) = book.open().presences.iter().find(shown) {
                bail!(
                    "registering again was broadcast to {}: {presence:?}",
                    seat.user
                );
            }
        }
        Ok(())
    })
    .await;
}

/// New sessions find their contacts' presence again.
async fn rebuilt(stage: &mut Stage) -> Result<()> {
    let begun = Instant::now();
    for (user, contact, gateway) in [("a0", "b0@", 1), ("b0", "a0@", 0), ("pal", "twin@", 1)] {
        while !sees(stage, user, contact, gateway).await? {
            if begun.elapsed() > REBUILT {
                bail!("{user} does not see {contact} after {REBUILT:?}");
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    stage.slowest = stage.slowest.max(begun.elapsed());
    Ok(())
}

async fn sees(stage: &Stage, user: &str, contact: &str, gateway: usize) -> Result<bool> {
    let mut client: Client = stage.server.client(user, "watch", gateway).await?;
    // Negative: it takes no messages away from the probe.
    client
        .send("<presence><priority>-1</priority></presence>")
        .await?;
    let until = tokio::time::Instant::now() + Duration::from_secs(1);
    let mut seen = false;
    while let Ok(next) = tokio::time::timeout_at(until, client.next()).await {
        let Incoming::Element(element) = next? else {
            bail!("the watcher's stream ended")
        };
        let from = element.header.from.as_deref().unwrap_or_default();
        seen |= &*element.header.name == "presence"
            && from.starts_with(contact)
            && element.header.type_.is_none();
        if seen {
            break;
        }
    }
    client.close().await?;
    Ok(seen)
}

/// One who goes while the service is away is not available afterwards, neither for who logs in nor
/// for who was there all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_while_presence_is_away_is_gone() {
    rounds("gone", Shape::Many, async |stage: &mut Stage| {
        stage.server.accounts(&["ghost", "seer"])?;
        stage.server.introduce("ghost", "seer")?;
        let mut seer = stage.server.client("seer", "there", 1).await?;
        seer.send("<presence/>").await?;
        let mut ghost = stage.server.client("ghost", "g", 0).await?;
        ghost.send("<presence/>").await?;
        wait_for(&mut seer, "ghost@", None, Duration::from_secs(10))
            .await
            .context("the ghost is not seen")?;
        let died = stage.die("presence", Moment::Random).await?;
        // Its socket breaks, or it says good-bye; there is nobody who could tell.
        if stage.dice.within(0, 2) == 0 {
            drop(ghost);
        } else {
            ghost.close().await?;
        }
        let wait = stage.dice.within(200, 1_500);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        stage.back("presence", died, None, BACK).await?;
        let begun = Instant::now();
        rebuilt(stage).await?;
        while sees(stage, "seer", "ghost@", 0).await? {
            if begun.elapsed() > NOBODY_FALSE {
                bail!("who is gone is available after {NOBODY_FALSE:?}");
            }
        }
        let left = NOBODY_FALSE.saturating_sub(begun.elapsed());
        wait_for(&mut seer, "ghost@", Some("unavailable"), left)
            .await
            .context("who was there is not told that the ghost is gone")?;
        seer.close().await
    })
    .await;
}

/// Waits for a presence of this type from a contact.
async fn wait_for(
    client: &mut Client,
    from: &str,
    type_: Option<&str>,
    limit: Duration,
) -> Result<()> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let next = tokio::time::timeout_at(until, client.next());
        let Incoming::Element(element) = next.await.context("not in time")?? else {
            bail!("the stream ended")
        };
        let sender = element.header.from.as_deref().unwrap_or_default();
        if &*element.header.name == "presence"
            && sender.starts_with(from)
            && element.header.type_.as_deref() == type_
        {
            return Ok(());
        }
    }
}
