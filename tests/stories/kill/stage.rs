//! A deployment under load, and what is done to it: it dies, is away, returns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::server::{Server, Setup, Shape};

use super::load::{self, Figures, Load};

/// A message that was on its way up when something died may still be read this long after.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
/// A failpoint is passed by then.
const POINT_LIMIT: Duration = Duration::from_secs(15);

/// Where a disk is slow. Nobody passes it in a gateway.
const SLOW_POINT: &str = "archive::commit::before";

/// Moments and choices of one round: the same for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `from` up to, not with, `to`.
    pub(super) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }
}

/// Rounds of each test.
pub(super) fn times() -> u64 {
    std::env::var("CHANCERY_KILL_TIMES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2)
}

/// How something dies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    /// By a signal, whatever it is doing.
    Random,
    /// At a failpoint, on a random pass.
    Point(&'static str),
}

/// See the module.
pub(super) struct Stage {
    pub(super) server: Server,
    pub(super) load: Load,
    pub(super) dice: Dice,
    /// Slowest return so far.
    pub(super) slowest: Duration,
    pub(super) kills: u32,
}

/// Repeats a story; each time on a deployment of its own, with the account checked in the end.
pub(super) async fn rounds(
    name: &str,
    shape: Shape,
    story: impl AsyncFn(&mut Stage) -> Result<()>,
) {
    let given = std::env::var("CHANCERY_KILL_SEED")
        .ok()
        .and_then(|n| n.parse().ok());
    for round in 1..=times() {
        let seed: u64 = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap_or_default().as_micros() as u64
        });
        println!("{name}, {shape:?}, round {round}: CHANCERY_KILL_SEED={seed}");
        let begun = Instant::now();
        let mut server = prepared(shape).unwrap();
        let load = match Load::start(&server).await {
            Ok(load) => load,
            Err(error) => panic!("{name} {seed}: {error:#}; logs in {:?}", server.keep_logs()),
        };
        let mut stage = Stage {
            server,
            load,
            dice: Dice(seed),
            slowest: Duration::ZERO,
            kills: 0,
        };
        let mut told = story(&mut stage).await;
        let Stage {
            server: back,
            load,
            slowest,
            kills,
            ..
        } = stage;
        server = back;
        let mut figures = Figures::default();
        if told.is_ok() {
            told = load.finish(&server).await.map(|done| figures = done);
        }
        let panics = server.complaints(&[" WARN ", " ERROR "]);
        if told.is_ok() && !panics.is_empty() {
            told = Err(anyhow::anyhow!("{panics:?}"));
        }
        if let Err(error) = told {
            panic!(
                "{name}, seed {seed}: {error:#}\nlogs in {:?}",
                server.keep_logs()
            );
        }
        println!(
            "  {kills} kills, back after {slowest:?}, {figures:?}, {:?}",
            begun.elapsed()
        );
    }
}

/// A deployment with the accounts of a load.
fn prepared(shape: Shape) -> Result<Server> {
    let server = Server::start(shape, Setup::default())?;
    let pairs = load::accounts();
    let names: Vec<&str> = pairs
        .iter()
        .flat_map(|(one, other)| [one.as_str(), other.as_str()])
        .collect();
    server.accounts(&names)?;
    for (one, other) in &pairs {
        server.introduce(one, other)?;
    }
    Ok(server)
}

impl Stage {
    /// Lets the process of `role` die at a moment; gives when it was seen dead. A failpoint was
    /// armed by [`Stage::back`].
    pub(super) async fn die(&mut self, role: &str, moment: Moment) -> Result<Instant> {
        match moment {
            Moment::Random => {
                let wait = self.dice.within(300, 1_500);
                tokio::time::sleep(Duration::from_millis(wait)).await;
                self.server.kill(role)?;
            }
            Moment::Point(point) => {
                let until = Instant::now() + POINT_LIMIT;
                while self.server.runs(role)? {
                    if Instant::now() > until {
                        bail!("{point} was not passed often enough");
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // Takes the dead process off the list.
                self.server.kill(role)?;
            }
        }
        self.kills += 1;
        Ok(Instant::now())
    }

    /// Starts the process of `role` again, armed for its next death, and waits until everybody's
    /// messages arrive, unless it dies before.
    pub(super) async fn back(
        &mut self,
        role: &str,
        died: Instant,
        next: Option<Moment>,
        limit: Duration,
    ) -> Result<()> {
        let armed = match next {
            Some(Moment::Point(point)) => {
                let name = if self.server.shape() == Shape::One {
                    "one"
                } else {
                    role
                };
                // A slow disk now and then: more is under way, in larger groups.
                let slow = self.dice.within(0, 2) == 1 && point != SLOW_POINT;
                // Messages pass all day; what sessions say of themselves, now and then.
                let pass = if point.starts_with("presence") {
                    self.dice.within(2, 10)
                } else if slow {
                    self.dice.within(30, 90)
                } else {
                    self.dice.within(120, 300)
                };
                let delay = if slow {
                    format!(";{SLOW_POINT}=delay(25)")
                } else {
                    String::new()
                };
                vec![(name.to_owned(), format!("{point}={pass}*kill{delay}"))]
            }
            _ => Vec::new(),
        };
        let mortal = !armed.is_empty();
        self.server.set_failpoints(armed);
        // Its start is part of the time that it may take.
        let started = Instant::now();
        self.server
            .begin_again(role)
            .with_context(|| format!("{role} starts again"))?;
        self.load.outages.push((died, started));
        let end = started + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let step = if mortal {
                left.min(Duration::from_millis(100))
            } else {
                left
            };
            match self.load.recovered(started, started.elapsed() + step).await {
                Ok(took) => {
                    self.slowest = self.slowest.max(took);
                    return Ok(());
                }
                Err(_) if mortal && !self.server.runs(role)? => {
                    return Ok(());
                }
                Err(_) if mortal && Instant::now() < end => {}
                Err(error) => {
                    return Err(error.context(format!("{role} is back, but not everybody is")));
                }
            }
        }
    }

    /// While something without which nothing may be delivered is away: waits, marks, and shows that
    /// nothing sent since was read by anybody, and that senders were told to wait.
    ///
    /// With the log away a routed marker may have to wait behind a message whose fate is unknown.
    pub(super) async fn nothing_delivered(&self, died: Instant, routed: bool) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(600)).await;
        self.load
            .mark(routed, Duration::from_secs(8))
            .await
            .context("while it is away")?;
        let now = Instant::now();
        let sent = self.load.sent_at();
        for read in self.load.read_between(died, now) {
            let late =
                sent.get(&read.id).is_none_or(|at| *at > died) || read.at > died + ON_ITS_WAY;
            if late {
                bail!(
                    "read {:?} after the death: {read:?}",
                    read.at.duration_since(died)
                );
            }
        }
        let taken = self.load.taken_between(died, now);
        if !taken.is_empty() {
            bail!("acknowledged without an error while it is away: {taken:?}");
        }
        // Behind a message whose fate is unknown everything waits, silently.
        if routed && self.load.bounced_between(died, now) == 0 {
            bail!("nobody was told to wait");
        }
        Ok(())
    }
}
