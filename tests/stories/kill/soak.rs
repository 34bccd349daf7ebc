//! Many users, many messages, and everything that goes wrong on a bad day: connections break, sessions are
//! resumed or begun anew, processes are killed at random moments and return. Then the whole account.
//!
//! `cargo xtask soak` says how much of it; with the tests of a change it is short.
//! `CHANCERY_SOAK_SHAPE=one` has it in one process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};

use super::load::Load;
use super::probe::Seat;
use super::stage::Dice;

/// With the tests of a change.
const MESSAGES: u64 = 3_000;
const USERS: u64 = 40;
/// Everybody is back so long after a process has returned, at the latest, and in the end at rest.
const BACK: Duration = Duration::from_secs(150);
const REST: Duration = Duration::from_secs(300);
/// Pairs that are in each other's rosters.
const INTRODUCED: u64 = 20;
/// Who is killed. Every second time it is a gateway or the log.
const ROLES: [&str; 8] = [
    "gw1", "archive", "gw2", "archive", "policy", "roster", "presence", "gw1",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(format!("CHANCERY_SOAK_{name}"))
        .ok()
        .and_then(|n| n.parse().ok())
}

struct Plan {
    messages: u64,
    pairs: u64,
    seed: u64,
    /// Sending takes at least so long.
    time: Duration,
    shape: Shape,
}

impl Plan {
    fn of_environment() -> Self {
        let messages = number("MESSAGES").unwrap_or(MESSAGES).max(2);
        let pairs = (number("USERS").unwrap_or(USERS) / 2).max(1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let one = std::env::var("CHANCERY_SOAK_SHAPE").is_ok_and(|shape| shape == "one");
        Self {
            messages,
            pairs,
            seed: number("SEED").unwrap_or(now.unwrap_or_default().as_micros() as u64),
            time: Duration::from_secs(
                number("MINUTES").map_or(messages / 150, |minutes| minutes * 60),
            ),
            shape: if one { Shape::One } else { Shape::Many },
        }
    }

    fn user(at: u64) -> String {
        format!("s{at:04}")
    }

    /// The two of a pair stand beside each other. Some break off, and of these some begin anew.
    fn seats(&self, server: &Server, dice: &mut Dice) -> Result<Vec<Seat>> {
        let gateways = if self.shape == Shape::One { 1 } else { 2 };
        let users = self.pairs * 2;
        let quota = |at: u64| self.messages / users + u64::from(at < self.messages % users);
        let most = quota(0).max(1);
        let every = self.time / u32::try_from(most).unwrap_or(u32::MAX);
        let mut seats = Vec::new();
        for at in 0..users {
            let (user, partner) = (Self::user(at), Self::user(at ^ 1));
            let logins = (0..gateways)
                .map(|gateway| server.login(&user, "r", gateway))
                .collect::<Result<Vec<_>>>()?;
            let rarely = (self.time.as_millis() as u64 / 2).clamp(4_000, 60_000);
            let breaks = Duration::from_millis(dice.within(rarely / 8, rarely));
            seats.push(Seat {
                partner: format!("{partner}@{}", server.domain()),
                home: usize::try_from(dice.within(0, gateways as u64))?,
                roams: dice.within(0, 2) == 0,
                every: every.max(Duration::from_millis(1)),
                breaks: (dice.within(0, 3) == 0).then_some(breaks),
                rebinds: dice.within(0, 3) == 0,
                quota: quota(at),
                patience: BACK,
                resource: "r".into(),
                user,
                logins,
            });
        }
        Ok(seats)
    }

    fn prepare(&self) -> Result<Server> {
        let server = Server::start(self.shape, Setup::default())?;
        let file = server.home().join("soak.txt");
        let domain = server.domain();
        let lines: String = (0..self.pairs * 2)
            .map(|at| format!("{}@{domain} {PASSWORD}\n", Self::user(at)))
            .collect();
        std::fs::write(&file, lines)?;
        server.must(&["user", "import", &file.display().to_string()], "")?;
        for pair in 0..self.pairs.min(INTRODUCED) {
            server.introduce(&Self::user(2 * pair), &Self::user(2 * pair + 1))?;
        }
        Ok(server)
    }
}

/// Messages written so far.
fn sent(load: &Load) -> u64 {
    let books = load.books.iter();
    books
        .map(|book| book.open().journal.sent.len() as u64)
        .sum()
}

/// The process says that it is ready.
async fn ready(server: &Server, role: &str) -> Result<()> {
    let begun = Instant::now();
    while !server
        .probe(role, "/ready")
        .is_ok_and(|(status, _)| status == 200)
    {
        if begun.elapsed() > BACK {
            bail!("not ready after {BACK:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn everybody(load: &Load) -> Result<()> {
    let count = load.books.len();
    load.until(BACK, "everybody is online", |load| {
        load.connected() == count
    })
    .await
    .with_context(|| format!("{} of {count} are", load.connected()))
}

/// Kills one after the other until all is sent.
async fn chaos(
    plan: &Plan,
    server: &mut Server,
    load: &mut Load,
    dice: &mut Dice,
    kills: &mut HashMap<&'static str, u32>,
) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    let mut told = Instant::now();
    loop {
        let pause = (plan.time.as_millis() as u64 / 12).clamp(400, 9_000);
        let until = Instant::now() + Duration::from_millis(dice.within(pause / 4, pause));
        while Instant::now() < until {
            if sent(load) >= plan.messages {
                return Ok(slowest);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let role = if plan.shape == Shape::One {
            "one"
        } else {
            ROLES[usize::try_from(dice.within(0, ROLES.len() as u64))?]
        };
        server.kill(role)?;
        let died = Instant::now();
        *kills.entry(role).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(dice.within(50, 2_500))).await;
        server
            .begin_again(role)
            .with_context(|| format!("{role} starts again"))?;
        let again = Instant::now();
        ready(server, role)
            .await
            .with_context(|| format!("{role} is back"))?;
        everybody(load)
            .await
            .with_context(|| format!("{role} is back"))?;
        slowest = slowest.max(again.elapsed());
        // What was acknowledged just before may come again, to who was cut off.
        if !["policy", "roster"].contains(&role) {
            load.outages.push((died, Instant::now()));
        }
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("  {} sent, {kills:?}", sent(load));
        }
    }
}

async fn story(plan: &Plan, server: &mut Server) -> Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let begun = Instant::now();
    let mut dice = Dice(plan.seed);
    let mut load = Load::seated(plan.seats(server, &mut dice)?, REST);
    everybody(&load).await.context("the load does not start")?;
    println!(
        "  {} users online after {:?}",
        load.books.len(),
        begun.elapsed()
    );
    let mut kills = HashMap::new();
    let slowest = chaos(plan, server, &mut load, &mut dice, &mut kills).await?;
    println!("  all is sent after {:?}", begun.elapsed());
    let figures = load.finish(server).await?;
    if figures.sent as u64 != plan.messages {
        bail!("{} sent, not {}", figures.sent, plan.messages);
    }
    println!(
        "  kills {kills:?}, everybody back within {slowest:?}, {figures:?}, {:?}",
        begun.elapsed()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_on_a_bad_day() {
    let plan = Plan::of_environment();
    println!(
        "soak, {:?}: {} messages, {} users, CHANCERY_SOAK_SEED={}",
        plan.shape,
        plan.messages,
        plan.pairs * 2,
        plan.seed
    );
    let mut server = plan.prepare().unwrap();
    let mut told = story(&plan, &mut server).await;
    let panics = server.complaints(&[" WARN ", " ERROR "]);
    if told.is_ok() && !panics.is_empty() {
        told = Err(anyhow::anyhow!("{panics:?}"));
    }
    if let Err(error) = told {
        let logs = server.keep_logs();
        panic!("soak, seed {}: {error:#}\nlogs in {logs:?}", plan.seed);
    }
}
