//! Rosters, made over the wire by the subscription handshake (RFC 6121 §3.1) where the server does not
//! have them from the start; and the presence phase: everybody changes `<show/>` again and again, everybody's contacts hear.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::live::Live;
use crate::meter;
use crate::phases::{LOOK, Plan, QUIET_LIMIT, SETTLE, Target, connect, per, quiet};
use crate::probe::Equip;

/// Contacts of each user, half of them to either side in a ring.
pub const CONTACTS: usize = 50;

/// All of them read.
async fn live(
    target: &dyn Target,
    plan: &Plan,
    phase: &str,
    equip: Equip,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<Vec<Arc<Live>>> {
    let who = plan.with_contacts();
    let probes = connect(target, who.clone(), plan.users, phase, equip).await?;
    let accounts = who.map(|n| target.account(n).user);
    Ok(accounts
        .zip(probes)
        .map(|(account, probe)| Live::start(probe, &account, tasks))
        .collect())
}

fn contacts(n: usize, users: usize) -> impl Iterator<Item = usize> {
    let side = (CONTACTS / 2).min((users - 1) / 2);
    (1..=side).flat_map(move |step| [(n + step) % users, (n + users - step) % users])
}

/// How many contacts each has.
fn contacts_count(users: usize) -> u64 {
    contacts(0, users).count() as u64
}

async fn close(
    target: &dyn Target,
    lives: &[Arc<Live>],
    mut tasks: JoinSet<Result<()>>,
) -> Result<()> {
    while let Some(ended) = tasks.try_join_next() {
        ended??;
    }
    for live in lives {
        live.close().await?;
    }
    quiet(target).await?;
    tasks.shutdown().await;
    Ok(())
}

/// Users with their contacts, by number.
pub fn rosters(plan: &Plan) -> impl Iterator<Item = (usize, Vec<usize>)> {
    let (first, users) = (plan.with_contacts().start, plan.users);
    (0..users).map(move |n| {
        let contacts = contacts(n, users).map(|other| first + other);
        (first + n, contacts.collect())
    })
}

/// Sees to it that all contacts are on the rosters, both ways.
pub async fn introduce(target: &dyn Target, plan: &Plan) -> Result<()> {
    let first = plan.with_contacts().start;
    if !target.has_rosters() {
        shake_hands(target, plan).await?;
    }
    let mut probes = connect(target, first..first + 1, 1, "look", Equip::Nothing).await?;
    let mut probe = probes.pop().context("no session")?;
    let roster = probe.roster().await?;
    let both = roster.matches("subscription='both'").count()
        + roster.matches("subscription=\"both\"").count();
    let wanted = contacts_count(plan.users);
    if both as u64 != wanted {
        bail!("{both} contacts of {wanted}: {roster}");
    }
    probe.send("</stream:stream>").await
}

/// Everybody asks all contacts, then everybody says yes to all.
async fn shake_hands(target: &dyn Target, plan: &Plan) -> Result<()> {
    let mut tasks = JoinSet::new();
    let lives = live(target, plan, "roster", Equip::Nothing, &mut tasks).await?;
    for live in &lives {
        live.send("<presence/>").await?;
    }
    let each = contacts_count(plan.users);
    for (type_, heard) in [("subscribe", each), ("subscribed", 2 * each)] {
        let mut writes = JoinSet::new();
        for (live, (_, contacts)) in lives.iter().zip(rosters(plan)) {
            let mut stanzas = String::new();
            for other in contacts {
                let to = target.account(other).bare();
                stanzas.push_str(&format!("<presence type='{type_}' to='{to}'/>"));
            }
            let live = Arc::clone(live);
            writes.spawn(async move { live.send(&stanzas).await });
        }
        while let Some(written) = writes.join_next().await {
            written??;
        }
        // A consent before the request has come is none. Who has not heard by then is found out later.
        let until = Instant::now() + QUIET_LIMIT;
        while lives.iter().any(|live| live.heard() < heard) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        quiet(target).await?;
    }
    close(target, &lives, tasks).await
}

/// Microseconds of CPU a presence stanza that was read.
pub async fn measure(target: &dyn Target, plan: &Plan) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let lives = live(target, plan, "presence", Equip::Roster, &mut tasks).await?;
    for live in &lives {
        live.send("<presence/>").await?;
    }
    quiet(target).await?;
    let contacts = contacts_count(plan.users);
    let mut changes = JoinSet::new();
    for live in &lives {
        changes.spawn(change(Arc::clone(live), contacts));
    }
    tokio::time::sleep(SETTLE).await;
    let delivered = || lives.iter().map(|live| live.presences()).sum::<u64>();
    let (cpu, before, start) = (meter::cpu_us(&target.pids())?, delivered(), Instant::now());
    tokio::time::sleep(plan.period).await;
    let spent = meter::cpu_us(&target.pids())? - cpu;
    let count = delivered() - before;
    while let Some(ended) = changes.try_join_next() {
        ended??;
    }
    if count == 0 || start.elapsed() > plan.period + QUIET_LIMIT {
        bail!("no presence was delivered");
    }
    close(target, &lives, tasks).await?;
    Ok(per(spent, count))
}

/// The next change when as much has been heard as everybody has said before it.
async fn change(live: Arc<Live>, contacts: u64) -> Result<()> {
    let before = live.heard();
    let mut changes = 0;
    while !live.is_over() {
        let show = if changes % 2 == 0 { "away" } else { "dnd" };
        live.send(&format!("<presence><show>{show}</show></presence>"))
            .await?;
        changes += 1;
        while live.heard() - before < changes * contacts && !live.is_over() {
            live.changed().await;
        }
    }
    Ok(())
}
