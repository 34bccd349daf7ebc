//! Each service dies, or stops for a while, under load (rows 1 to 4 and 7 of the fault matrix).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::server::Shape;
use nix::sys::signal::Signal;

use super::stage::{Moment, Stage, rounds};

/// Where a process that is everything may die besides.
const REST: [Moment; 6] = [
    Moment::Point("gateway::stanza::parsed"),
    Moment::Point("gateway::policy::decided"),
    Moment::Point("gateway::archive::acknowledged"),
    Moment::Point("gateway::deliver::before_write"),
    Moment::Point("policy::decide::before"),
    Moment::Point("presence::publish::before"),
];

/// A service is back, and everybody with it, by then.
const BACK: Duration = Duration::from_secs(5);
/// Clients of a gateway are back by then.
const CLIENTS_BACK: Duration = Duration::from_secs(60);
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
    at_once("one process", &ARCHIVE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_dies_at_once_where_stanzas_pass() {
    at_once("one process, where stanzas pass", &REST).await;
}

async fn at_once(name: &str, moments: &[Moment]) {
    rounds(name, Shape::One, async |stage: &mut Stage| {
        // The first moment's failpoint is armed by a return.
        if let Some(Moment::Point(_)) = moments.first() {
            let died = stage.die("one", Moment::Random).await?;
            stage
                .back("one", died, moments.first().copied(), CLIENTS_BACK)
                .await?;
        }
        let away = async |stage: &mut Stage, _| {
            let wait = stage.dice.within(50, 600);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Ok(())
        };
        deaths(stage, "one", moments, CLIENTS_BACK, away).await
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
