//! Each service dies, or stops for a while, under load (rows 1 to 4 and 7 of the fault matrix).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::Shape;
use chancery_testkit::wire::Incoming;
use nix::sys::signal::Signal;

use super::stage::{Moment, Stage, rounds};

/// A service is back, and everybody with it, by then.
const BACK: Duration = Duration::from_secs(5);
/// Clients of a gateway are back by then.
const CLIENTS_BACK: Duration = Duration::from_secs(60);
/// Presence is rebuilt by then.
const REBUILT: Duration = Duration::from_secs(30);
/// A stopped process wakes after this.
const STOPPED: Duration = Duration::from_secs(4);

const ARCHIVE: [Moment; 5] = [
    Moment::Random,
    Moment::Point("archive::append::before"),
    Moment::Point("archive::commit::before"),
    Moment::Point("archive::commit::after"),
    Moment::Point("archive::deliver::before"),
];

const GATEWAY: [Moment; 5] = [
    Moment::Random,
    Moment::Point("gateway::stanza::parsed"),
    Moment::Point("gateway::policy::decided"),
    Moment::Point("gateway::archive::acknowledged"),
    Moment::Point("gateway::deliver::before_write"),
];

/// Dies at each of the moments, and does `away` in between.
async fn deaths(
    stage: &mut Stage,
    role: &str,
    moments: &[Moment],
    limit: Duration,
    away: impl AsyncFn(&mut Stage, Instant) -> Result<()>,
) -> Result<()> {
    for (n, moment) in moments.iter().enumerate() {
        let died = stage
            .die(role, *moment)
            .await
            .with_context(|| format!("{moment:?}"))?;
        away(stage, died)
            .await
            .with_context(|| format!("after {moment:?}"))?;
        let next = moments.get(n + 1).copied();
        stage
            .back(role, died, next, limit)
            .await
            .with_context(|| format!("after {moment:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_dies_and_nothing_is_delivered() {
    rounds("policy", Shape::Many, async |stage: &mut Stage| {
        let away = async |stage: &mut Stage, died| stage.nothing_delivered(died, true).await;
        deaths(
            stage,
            "policy",
            &[Moment::Random, Moment::Random],
            BACK,
            away,
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archive_dies_and_nothing_is_lost_or_twinned() {
    rounds("archive", Shape::Many, async |stage: &mut Stage| {
        let away = async |stage: &mut Stage, died| stage.nothing_delivered(died, false).await;
        deaths(stage, "archive", &ARCHIVE, BACK, away).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_dies_and_its_clients_return() {
    rounds("gateway", Shape::Many, async |stage: &mut Stage| {
        for (n, moment) in GATEWAY.iter().enumerate() {
            let died = stage
                .die("gw1", *moment)
                .await
                .with_context(|| format!("{moment:?}"))?;
            let wait = stage.dice.within(100, 1_200);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // Who has roamed meanwhile returns, so that the next death finds everybody.
            let next = GATEWAY.get(n + 1).copied();
            stage
                .back("gw1", died, next, CLIENTS_BACK)
                .await
                .with_context(|| format!("after {moment:?}"))?;
            stage.load.go_home();
        }
        Ok(())
    })
    .await;
}

/// Two at once: what the log has of a session cannot be told while it is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archive_and_a_gateway_die_together() {
    rounds("two at once", Shape::Many, async |stage: &mut Stage| {
        for first in [["archive", "gw1"], ["gw1", "archive"]] {
            let died = stage.die(first[0], Moment::Random).await?;
            stage.server.kill(first[1])?;
            let wait = stage.dice.within(100, 1_500);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stage.server.begin_again(first[1])?;
            let wait = stage.dice.within(100, 1_500);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stage.back(first[0], died, None, CLIENTS_BACK).await?;
            stage.load.go_home();
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_dies_at_once() {
    rounds("one process", Shape::One, async |stage: &mut Stage| {
        let away = async |stage: &mut Stage, _| {
            let wait = stage.dice.within(50, 600);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Ok(())
        };
        deaths(stage, "one", &ARCHIVE, CLIENTS_BACK, away).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_services_wake_and_harm_nothing() {
    rounds("stopped", Shape::Many, async |stage: &mut Stage| {
        for role in ["archive", "policy", "gw1"] {
            let wait = stage.dice.within(200, 1_000);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            stage.server.signal(role, Signal::SIGSTOP)?;
            let stopped = Instant::now();
            tokio::time::sleep(STOPPED).await;
            let now = Instant::now();
            // Silent is as good as gone: nothing passes by it.
            let sent = stage.load.sent_at();
            for read in stage.load.read_between(stopped, now) {
                if role == "gw1" {
                    break;
                }
                if sent.get(&read.id).is_none_or(|at| *at > stopped) {
                    bail!("{role} is stopped, and a message arrives: {read:?}");
                }
            }
            stage.server.signal(role, Signal::SIGCONT)?;
            let woke = Instant::now();
            stage.load.outages.push((stopped, woke));
            let took = stage.load.recovered(woke, Duration::from_secs(10)).await;
            stage.slowest = stage
                .slowest
                .max(took.with_context(|| format!("{role} woke"))?);
        }
        Ok(())
    })
    .await;
}

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
            let shown = |p: &&super::probe::Shown| p.at > died && !p.from.ends_with("/watch");
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
