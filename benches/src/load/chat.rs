//! The chat phase: pairs of users write to each other, saturated and at rates. Reads by looking for a few
//! words; no XML tree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::meter;
use crate::phases::{Figures, LOOK, Plan, QUIET_LIMIT, SETTLE, Target, connect, per, quiet};
use crate::probe::Equip;

/// Messages of one sender under way at a rate; beyond it the sender waits, and its waiting counts.
const UNDER_WAY_AT_RATE: usize = 256;
/// Of the rate, what must have been delivered for the figure to be one of that rate.
const REACHED: f64 = 0.95;

/// Saturated, at the plan's rate, and at half of what was saturated.
pub async fn measure(target: &dyn Target, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let saturated = chat(target, plan, "saturated", None).await?;
    let rate = saturated.delivered as f64 / plan.period.as_secs_f64();
    figures.saturated_us = Some(per(saturated.cpu_us, saturated.delivered));
    figures.saturated_rate = Some(rate);
    let rated = chat(target, plan, "rate", Some(plan.rate)).await?;
    let reached = rated.delivered as f64 >= REACHED * plan.rate * plan.period.as_secs_f64();
    figures.rated_us = Some(reached.then(|| per(rated.cpu_us, rated.delivered)));
    let half = chat(target, plan, "half", Some(rate / 2.0)).await?;
    figures.p99_ms = Some(half.p99_us as f64 / 1000.0);
    Ok(())
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
    /// In each body: what a server still had from the run before is nobody's.
    tag: String,
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
        tag: format!("@{phase}@"),
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
        let stanzas = AtomicU64::new(probe.stanzas);
        let (read, write) = tokio::io::split(probe.tls);
        reads.push(read);
        sides.push(Arc::new(Side {
            write: Mutex::new(write),
            room: Semaphore::new(match rate {
                Some(_) => UNDER_WAY_AT_RATE,
                None => plan.under_way,
            }),
            stanzas,
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
        let body = format!("@{micros:012}{:x<87}", run.tag);
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
    let Some((sent, rest)) = text.strip_prefix(b"@").and_then(|t| t.split_at_checked(12)) else {
        return;
    };
    if !rest.starts_with(run.tag.as_bytes()) {
        return;
    }
    partner.room.add_permits(1);
    run.read.fetch_add(1, Ordering::Relaxed);
    if !run.counting.load(Ordering::Relaxed) {
        return;
    }
    run.delivered.fetch_add(1, Ordering::Relaxed);
    let sent: Option<u128> = std::str::from_utf8(sent)
        .ok()
        .and_then(|digits| digits.parse().ok());
    if let Some(sent) = sent {
        let late = run.start.elapsed().as_micros().saturating_sub(sent);
        if let Ok(mut latencies) = run.latencies.lock() {
            latencies.push(u32::try_from(late).unwrap_or(u32::MAX));
        }
    }
}
