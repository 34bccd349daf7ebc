//! The phases of a measurement, by the definitions of `docs/performance.md`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::probe::{Account, Equip, Probe};
use crate::storm::{self, Storm};
use crate::{history, meter, presence};

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

/// What is measured together.
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

impl Plan {
    fn has(&self, phase: Phase) -> bool {
        self.only.is_empty() || self.only.contains(&phase)
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

/// What was measured.
#[derive(Default)]
pub struct Figures {
    /// Of what.
    pub name: String,
    /// Saturated: microseconds of CPU a delivered message, and messages a second.
    pub saturated_us: f64,
    /// Throughput saturated.
    pub saturated_rate: f64,
    /// At the plan's rate, where the server reached it.
    pub rated_us: Option<f64>,
    /// p99 from write to read at half of the maximum, milliseconds.
    pub p99_ms: f64,
    /// Milliseconds of CPU a login.
    pub login_ms: f64,
    /// Bytes an idle connection.
    pub idle_bytes: f64,
    /// Microseconds of CPU a message paged from an archive, where there is one.
    pub paged_us: Option<f64>,
    /// Microseconds of CPU a presence stanza.
    pub presence_us: f64,
    /// The storm of resumptions, and that of logins.
    pub storms: Option<(Storm, Storm)>,
}

/// Logins under way at once.
const LOGINS_AT_ONCE: usize = 16;
/// Before a phase, until counters have settled.
pub const SETTLE: Duration = Duration::from_millis(1500);
/// Messages of one sender under way at a rate; beyond it the sender waits, and its waiting counts.
const UNDER_WAY_AT_RATE: usize = 256;
/// A server that spends less than this in a [`LOOK`] has nothing left to do.
const QUIET_US: u64 = 25_000;
const LOOK: Duration = Duration::from_millis(500);
/// For how long a server is waited for until it is quiet, or has delivered what is under way.
pub const QUIET_LIMIT: Duration = Duration::from_secs(60);
/// Of the rate, what must have been delivered for the figure to be one of that rate.
const REACHED: f64 = 0.95;

/// Runs all phases.
pub async fn measure(name: &str, target: &dyn Target, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures {
        name: name.into(),
        ..Figures::default()
    };
    // First contact: caches, lazy start, the salted passwords.
    let everybody = connect(
        target,
        0..plan.accounts(),
        plan.accounts(),
        "first",
        Equip::Nothing,
    );
    close(everybody.await?, target).await?;
    if plan.has(Phase::Idle) || plan.has(Phase::Presence) {
        presence::introduce(target, plan).await?;
    }
    let empty = meter::rss(&target.pids())?;

    if plan.has(Phase::Login) {
        let before = meter::cpu_us(&target.pids())?;
        let sessions = connect(target, 0..plan.users, plan.logins, "login", Equip::Nothing).await?;
        let spent = meter::cpu_us(&target.pids())? - before;
        figures.login_ms = per(spent, plan.logins as u64) / 1000.0;
        close(sessions, target).await?;
    }
    if plan.has(Phase::Idle) && plan.idle > 0 {
        let who = plan.with_contacts();
        let sessions = connect(target, who, plan.idle, "idle", Equip::Roster).await?;
        quiet(target).await?;
        let full = meter::rss(&target.pids())?;
        figures.idle_bytes = per(full.saturating_sub(empty), plan.idle as u64);
        close(sessions, target).await?;
    }
    if plan.has(Phase::Presence) {
        figures.presence_us = presence::measure(target, plan).await?;
    }
    if plan.has(Phase::Storm) && plan.storm > 0 {
        figures.storms = Some(storm::measure(target, plan).await?);
    }
    if plan.has(Phase::Archive) {
        figures.paged_us = history::measure(target, plan).await?;
    }
    if plan.has(Phase::Chat) {
        chats(target, plan, &mut figures).await?;
    }
    Ok(figures)
}

async fn chats(target: &dyn Target, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let saturated = chat(target, plan, "saturated", None).await?;
    figures.saturated_us = per(saturated.cpu_us, saturated.delivered);
    figures.saturated_rate = saturated.delivered as f64 / plan.period.as_secs_f64();
    let rated = chat(target, plan, "rate", Some(plan.rate)).await?;
    let reached = rated.delivered as f64 >= REACHED * plan.rate * plan.period.as_secs_f64();
    figures.rated_us = reached.then(|| per(rated.cpu_us, rated.delivered));
    let half = chat(target, plan, "half", Some(figures.saturated_rate / 2.0)).await?;
    figures.p99_ms = half.p99_us as f64 / 1000.0;
    Ok(())
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

struct Chat {
    delivered: u64,
    cpu_us: u64,
    p99_us: u64,
}

/// One side of a pair.
struct Side {
    write: Mutex<WriteHalf<TlsStream<TcpStream>>>,
    /// Room for messages that this side may send.
    room: Semaphore,
    stanzas: AtomicU64,
}

struct Run {
    start: Instant,
    /// Counting: after the warm-up and before the end.
    counting: AtomicBool,
    stop: AtomicBool,
    delivered: AtomicU64,
    /// In all, whether counting or not.
    sent: AtomicU64,
    read: AtomicU64,
    latencies: std::sync::Mutex<Vec<u32>>,
}

/// Everybody writes to their partner: saturated, or at `rate` messages a second in all.
async fn chat(target: &dyn Target, plan: &Plan, phase: &str, rate: Option<f64>) -> Result<Chat> {
    let probes = connect(target, 0..plan.users, plan.users, phase, Equip::Chat).await?;
    let run = Arc::new(Run {
        start: Instant::now(),
        counting: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        delivered: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        read: AtomicU64::new(0),
        latencies: std::sync::Mutex::new(Vec::new()),
    });
    let mut sides = Vec::new();
    let mut reads = Vec::new();
    for mut probe in probes {
        probe.send("<presence/>").await?;
        let (read, write) = tokio::io::split(probe.tls);
        reads.push(read);
        sides.push(Arc::new(Side {
            write: Mutex::new(write),
            room: Semaphore::new(match rate {
                Some(_) => UNDER_WAY_AT_RATE,
                None => plan.under_way,
            }),
            // The answer to carbons came after stream management was on: it counts.
            stanzas: AtomicU64::new(1),
        }));
    }
    quiet(target).await?;
    let mut tasks = JoinSet::new();
    for (n, read) in reads.into_iter().enumerate() {
        let (own, partner) = (Arc::clone(&sides[n]), Arc::clone(&sides[n ^ 1]));
        tasks.spawn(receive(read, own, partner, Arc::clone(&run)));
    }
    let interval = rate.map(|rate| Duration::from_secs_f64(plan.users as f64 / rate));
    for (n, side) in sides.iter().enumerate() {
        let to = target.account(n ^ 1);
        let address = format!("{}@{}", to.user, to.domain);
        let offset = interval.map(|i| i.mul_f64(n as f64 / plan.users as f64));
        tasks.spawn(transmit(
            Arc::clone(side),
            address,
            Arc::clone(&run),
            interval.zip(offset),
        ));
    }
    tokio::time::sleep(SETTLE).await;
    let pids = target.pids();
    let cpu = meter::cpu_us(&pids)?;
    run.counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(plan.period).await;
    run.counting.store(false, Ordering::Relaxed);
    let cpu_us = meter::cpu_us(&pids)? - cpu;
    // Nobody ends before being told.
    while let Some(ended) = tasks.try_join_next() {
        ended??;
    }
    run.stop.store(true, Ordering::Relaxed);
    let until = Instant::now() + QUIET_LIMIT;
    while run.read.load(Ordering::Relaxed) < run.sent.load(Ordering::Relaxed)
        && Instant::now() < until
    {
        tokio::time::sleep(LOOK).await;
    }
    // What is under way when the limit is over is no error; what came twice is.
    let (read, sent) = (
        run.read.load(Ordering::Relaxed),
        run.sent.load(Ordering::Relaxed),
    );
    if read > sent {
        bail!("{sent} messages were sent, and {read} delivered");
    }
    for side in &sides {
        let h = side.stanzas.load(Ordering::Relaxed);
        let end = format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/></stream:stream>");
        let mut write = side.write.lock().await;
        write.write_all(end.as_bytes()).await?;
        write.flush().await?;
    }
    quiet(target).await?;
    tasks.shutdown().await;
    let delivered = run.delivered.load(Ordering::Relaxed);
    if delivered == 0 {
        bail!("nothing was delivered");
    }
    let mut latencies = run
        .latencies
        .lock()
        .map_err(|_| anyhow::anyhow!("poisoned"))?;
    latencies.sort_unstable();
    let p99_us = u64::from(latencies[latencies.len() * 99 / 100]);
    Ok(Chat {
        delivered,
        cpu_us,
        p99_us,
    })
}

async fn transmit(
    side: Arc<Side>,
    to: String,
    run: Arc<Run>,
    paced: Option<(Duration, Duration)>,
) -> Result<()> {
    let mut due = tokio::time::Instant::now();
    let mut n = 0u64;
    if let Some((_, offset)) = paced {
        due += offset;
    }
    while !run.stop.load(Ordering::Relaxed) {
        let mut micros = None;
        if let Some((interval, _)) = paced {
            tokio::time::sleep_until(due).await;
            if side.room.available_permits() == 0 {
                // The server is behind: the message is late from when it was due.
                let since = due.into_std().saturating_duration_since(run.start);
                micros = Some(since.as_micros());
            }
            due += interval;
        }
        side.room.acquire().await?.forget();
        if run.stop.load(Ordering::Relaxed) {
            // What is sent now would be the next phase's.
            return Ok(());
        }
        n += 1;
        let micros = micros.unwrap_or_else(|| run.start.elapsed().as_micros());
        let body = format!("@{micros:012}@{:x<86}", "");
        let text =
            format!("<message to='{to}' type='chat' id='l{n}'><body>{body}</body></message>");
        run.sent.fetch_add(1, Ordering::Relaxed);
        let mut write = side.write.lock().await;
        write.write_all(text.as_bytes()).await?;
        write.flush().await?;
    }
    Ok(())
}

async fn receive(
    mut read: ReadHalf<TlsStream<TcpStream>>,
    own: Arc<Side>,
    partner: Arc<Side>,
    run: Arc<Run>,
) -> Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(32 * 1024);
    let mut chunk = vec![0u8; 16 * 1024];
    loop {
        let n = read.read(&mut chunk).await?;
        if n == 0 {
            if run.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            return Err(anyhow::anyhow!("server closed")).context("chat");
        }
        buffer.extend_from_slice(&chunk[..n]);
        let mut at = 0;
        let mut asked = false;
        while let Some(end) = memchr::memchr(b'>', &buffer[at..]) {
            let tag = &buffer[at..=at + end];
            if let Some(text) = tag.strip_suffix(b"</body>") {
                message(text, &run, &partner);
            } else if tag.ends_with(b"</message>")
                || tag.ends_with(b"</presence>")
                || tag.ends_with(b"</iq>")
                || tag.starts_with(b"<presence") && tag.ends_with(b"/>")
            {
                own.stanzas.fetch_add(1, Ordering::Relaxed);
            } else if tag.starts_with(b"<r ") || tag == b"<r/>" {
                asked = true;
            } else if tag.starts_with(b"<message") && is_error(tag) {
                // It repeats the body, which would count as delivered.
                bail!("a message was bounced");
            }
            at += end + 1;
        }
        buffer.drain(..at);
        if asked {
            let h = own.stanzas.load(Ordering::Relaxed);
            let mut write = own.write.lock().await;
            write
                .write_all(format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>").as_bytes())
                .await?;
            write.flush().await?;
        }
    }
}

fn is_error(tag: &[u8]) -> bool {
    memchr::memmem::find(tag, b"type='error'").is_some()
        || memchr::memmem::find(tag, b"type=\"error\"").is_some()
}

fn message(text: &[u8], run: &Run, partner: &Side) {
    partner.room.add_permits(1);
    run.read.fetch_add(1, Ordering::Relaxed);
    if !run.counting.load(Ordering::Relaxed) {
        return;
    }
    run.delivered.fetch_add(1, Ordering::Relaxed);
    let sent: Option<u128> = text
        .strip_prefix(b"@")
        .and_then(|rest| std::str::from_utf8(rest.get(..12)?).ok())
        .and_then(|digits| digits.parse().ok());
    if let Some(sent) = sent {
        let late = run.start.elapsed().as_micros().saturating_sub(sent);
        if let Ok(mut latencies) = run.latencies.lock() {
            latencies.push(u32::try_from(late).unwrap_or(u32::MAX));
        }
    }
}
