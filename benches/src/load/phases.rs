//! The phases of a measurement, by the definitions of `docs/performance.md`: what belongs to each, in
//! which order, and how long it may take. Measures logins and idle connections itself.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::probe::{Account, Equip, Probe};
use crate::report::note;
use crate::storm::{self, Storm};
use crate::{chat, history, meter, presence};

/// A server that is measured.
pub trait Target {
    /// All its processes.
    fn pids(&self) -> Vec<u32>;
    /// Account number `n`; its gateway is chosen by `n`.
    fn account(&self, n: usize) -> Account;
    /// Contacts were on the rosters when it started; otherwise they are introduced over the wire.
    fn has_rosters(&self) -> bool {
        false
    }
}

/// How much of what.
pub struct Plan {
    /// Users, in pairs.
    pub users: usize,
    /// Messages of one sender under way, saturated.
    pub under_way: usize,
    /// Length of a chat phase.
    pub period: Duration,
    /// Messages a second in the rate phase.
    pub rate: f64,
    /// Idle connections.
    pub idle: usize,
    /// Logins.
    pub logins: usize,
    /// Sessions in the storm.
    pub storm: usize,
    /// The only phases, or all.
    pub only: Vec<Phase>,
}

/// What is measured together, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Phase {
    /// Logins.
    Login,
    /// Memory of idle connections.
    Idle,
    /// Presence fan-out.
    Presence,
    /// The storm.
    Storm,
    /// Chat, saturated and at rates.
    Chat,
    /// Archive paging.
    Archive,
}

impl Phase {
    /// How long it may take; what takes longer is no figure. The chat phase has three periods.
    fn limit(self, plan: &Plan) -> Duration {
        let (seconds, periods) = match self {
            Self::Login => (120, 0),
            Self::Archive => (300, 1),
            Self::Idle => (600, 0),
            Self::Presence => (180, 1),
            Self::Storm => (600, 0),
            Self::Chat => (300, 3),
        };
        Duration::from_secs(seconds) + plan.period * periods
    }
}

/// What comes before all phases, and before those that need contacts, may take so long.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);

impl Plan {
    /// Is this phase measured?
    pub fn has(&self, phase: Phase) -> bool {
        let amount = match phase {
            Phase::Idle => self.idle,
            Phase::Storm => self.storm,
            Phase::Login => self.logins,
            _ => self.users,
        };
        amount > 0 && (self.only.is_empty() || self.only.contains(&phase))
    }

    /// Accounts that have each other on the roster: as many again, behind those that chat.
    pub fn with_contacts(&self) -> Range<usize> {
        self.users..2 * self.users
    }

    /// Accounts of which the archive phase knows what they have in theirs: behind all others.
    pub fn archivists(&self) -> Range<usize> {
        2 * self.users..self.accounts()
    }

    /// All accounts.
    pub fn accounts(&self) -> usize {
        2 * self.users + history::READERS
    }
}

/// What was measured; `None` was not.
#[derive(Default)]
pub struct Figures {
    /// Of what.
    pub name: String,
    /// Saturated: microseconds of CPU a delivered message.
    pub saturated_us: Option<f64>,
    /// Messages a second, saturated.
    pub saturated_rate: Option<f64>,
    /// At the plan's rate; `None` within where the server did not reach it.
    pub rated_us: Option<Option<f64>>,
    /// p99 from write to read at half of the maximum, milliseconds.
    pub p99_ms: Option<f64>,
    /// Milliseconds of CPU a login.
    pub login_ms: Option<f64>,
    /// Bytes an idle connection.
    pub idle_bytes: Option<f64>,
    /// Microseconds of CPU a message paged from an archive.
    pub paged_us: Option<f64>,
    /// Microseconds of CPU a presence stanza.
    pub presence_us: Option<f64>,
    /// The storm of resumptions, and that of logins.
    pub storms: Option<(Storm, Storm)>,
    /// Phases that the server did not get through, and why.
    pub failed: Vec<(Phase, String)>,
}

/// Logins under way at once.
const LOGINS_AT_ONCE: usize = 16;
/// Before a phase, until counters have settled.
pub const SETTLE: Duration = Duration::from_millis(1500);
/// A server that spends less than this in a [`LOOK`] has nothing left to do.
const QUIET_US: u64 = 25_000;
/// Between two looks at a server.
pub const LOOK: Duration = Duration::from_millis(500);
/// For how long a server is waited for until it is quiet, or has delivered what is under way.
pub const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Runs the plan's phases. What a server does not get through has a reason and no figure, and the
/// next phase begins.
pub async fn measure(name: &str, target: &dyn Target, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures {
        name: name.into(),
        ..Figures::default()
    };
    let mut failed = Vec::new();
    use Phase::{Archive, Chat, Idle, Login, Presence, Storm};
    let all: Vec<Phase> = [Login, Idle, Presence, Storm, Archive, Chat]
        .into_iter()
        .filter(|phase| plan.has(*phase))
        .collect();
    let contacts: Vec<Phase> = all
        .iter()
        .copied()
        .filter(|p| matches!(p, Idle | Presence))
        .collect();
    // First contact: caches, lazy start, the salted passwords.
    if !prepare("first logins", &all, &mut failed, first(target, plan)).await? {
        figures.failed = failed;
        return Ok(figures);
    }
    let acquainted = contacts.is_empty()
        || prepare(
            "contacts",
            &contacts,
            &mut failed,
            presence::introduce(target, plan),
        )
        .await?;
    for phase in all {
        if !acquainted && contacts.contains(&phase) {
            continue;
        }
        note(&format!("{name}: {phase:?}"))?;
        let limit = phase.limit(plan);
        let measured = tokio::time::timeout(limit, one(phase, target, plan, &mut figures));
        let reason = match measured.await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("it took longer than {} s", limit.as_secs()),
        };
        note(&format!("{name}: {phase:?} failed: {reason}"))?;
        failed.push((phase, reason));
        // What is left of it is not the next one's; a server that is gone fails that by itself.
        let _ = quiet(target).await;
    }
    figures.failed = failed;
    Ok(figures)
}

/// What these phases need first; false, and the reason for each, when it could not be had.
async fn prepare(
    what: &str,
    phases: &[Phase],
    failed: &mut Vec<(Phase, String)>,
    work: impl Future<Output = Result<()>>,
) -> Result<bool> {
    let reason = match tokio::time::timeout(PREPARE_LIMIT, work).await {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(error)) => format!("{what}: {error:#}"),
        Err(_) => format!("{what} took longer than {} s", PREPARE_LIMIT.as_secs()),
    };
    note(&reason)?;
    failed.extend(phases.iter().map(|phase| (*phase, reason.clone())));
    Ok(false)
}

async fn first(target: &dyn Target, plan: &Plan) -> Result<()> {
    let (who, count) = (0..plan.accounts(), plan.accounts());
    let everybody = connect(target, who, count, "first", Equip::Nothing).await?;
    close(everybody, target).await
}

async fn one(phase: Phase, target: &dyn Target, plan: &Plan, figures: &mut Figures) -> Result<()> {
    match phase {
        Phase::Login => figures.login_ms = Some(logins(target, plan).await?),
        Phase::Idle => figures.idle_bytes = Some(idle(target, plan).await?),
        Phase::Presence => figures.presence_us = Some(presence::measure(target, plan).await?),
        Phase::Storm => figures.storms = Some(storm::measure(target, plan).await?),
        Phase::Archive => figures.paged_us = Some(history::measure(target, plan).await?),
        Phase::Chat => chat::measure(target, plan, figures).await?,
    }
    Ok(())
}

/// Milliseconds of CPU a login.
async fn logins(target: &dyn Target, plan: &Plan) -> Result<f64> {
    let before = meter::cpu_us(&target.pids())?;
    let sessions = connect(target, 0..plan.users, plan.logins, "login", Equip::Nothing).await?;
    let spent = meter::cpu_us(&target.pids())? - before;
    close(sessions, target).await?;
    Ok(per(spent, plan.logins as u64) / 1000.0)
}

/// Bytes of an idle connection.
async fn idle(target: &dyn Target, plan: &Plan) -> Result<f64> {
    let empty = meter::rss(&target.pids())?;
    let who = plan.with_contacts();
    let sessions = connect(target, who, plan.idle, "idle", Equip::Roster).await?;
    quiet(target).await?;
    let full = meter::rss(&target.pids())?;
    close(sessions, target).await?;
    Ok(per(full.saturating_sub(empty), plan.idle as u64))
}

/// One's share.
pub fn per(total: u64, count: u64) -> f64 {
    total as f64 / count.max(1) as f64
}

/// Ends streams as RFC 6120 §4.4 has it, and waits until the server has digested that.
async fn close(sessions: Vec<Probe>, target: &dyn Target) -> Result<()> {
    for mut probe in sessions {
        probe.send("</stream:stream>").await?;
    }
    quiet(target).await
}

/// Waits until the server has nothing left to do, so that no phase pays for the one before it.
pub async fn quiet(target: &dyn Target) -> Result<()> {
    tokio::time::sleep(SETTLE).await;
    let until = Instant::now() + QUIET_LIMIT;
    while Instant::now() < until {
        let before = meter::cpu_us(&target.pids())?;
        tokio::time::sleep(LOOK).await;
        if meter::cpu_us(&target.pids())? - before < QUIET_US {
            break;
        }
    }
    Ok(())
}

/// The resource of session `n` in a phase, spread over so many users.
pub fn resource(phase: &str, n: usize, users: usize) -> String {
    format!("{phase}{}", n / users)
}

/// Connects `count` sessions, spread over these accounts, in their order.
pub async fn connect(
    target: &dyn Target,
    who: Range<usize>,
    count: usize,
    phase: &str,
    equip: Equip,
) -> Result<Vec<Probe>> {
    let room = Arc::new(Semaphore::new(LOGINS_AT_ONCE));
    let mut tasks = JoinSet::new();
    let users = who.len();
    for n in 0..count {
        let account = target.account(who.start + n % users);
        let resource = resource(phase, n, users);
        let room = Arc::clone(&room);
        tasks.spawn(async move {
            let _room = room.acquire_owned().await?;
            let mut probe = Probe::login(&account, &resource).await?;
            probe.equip(equip).await?;
            anyhow::Ok((n, probe))
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        all.push(done??);
    }
    all.sort_by_key(|(n, _)| *n);
    Ok(all.into_iter().map(|(_, probe)| probe).collect())
}
