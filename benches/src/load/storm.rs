//! The storm: many sessions lose their connections at once and come back at once, first by resumption
//! (XEP-0198 §5), then by new logins under the same resources while the old sessions are kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::live::Live;
use crate::meter;
use crate::phases::{Plan, Target, connect, quiet, resource};
use crate::probe::{Account, Equip, Probe};

/// Everybody is back by then, or it is no figure.
const LIMIT: Duration = Duration::from_secs(180);
/// Whoever is turned away tries again after this.
const PAUSE: Duration = Duration::from_millis(250);
/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(60);

/// One storm.
#[derive(Clone, Copy)]
pub struct Storm {
    /// Until the last one was back.
    pub seconds: f64,
    /// CPU of the server until it was quiet again, in seconds.
    pub cpu_seconds: f64,
    /// Sessions that came back as they were.
    pub resumed: usize,
}

/// One that will be lost.
#[derive(Clone)]
struct Lost {
    account: Account,
    resource: String,
    /// Stream-management id and count.
    previous: Option<(String, u64)>,
}

/// By resumption, then by new logins.
pub async fn measure(target: &dyn Target, plan: &Plan) -> Result<(Storm, Storm)> {
    let who = 0..plan.users;
    let probes = connect(target, who, plan.storm, "storm", Equip::Resumable).await?;
    let mut tasks = JoinSet::new();
    let (mut lives, mut lost) = (Vec::new(), Vec::new());
    for (n, probe) in probes.into_iter().enumerate() {
        let account = target.account(n % plan.users);
        let id = probe.sm_id.clone();
        let live = Live::start(probe, &account.user, &mut tasks);
        live.send("<presence/>").await?;
        lost.push((account, resource("storm", n, plan.users), id));
        lives.push(live);
    }
    quiet(target).await?;
    while let Some(ended) = tasks.try_join_next() {
        ended??;
    }
    let lost: Vec<Lost> = lost
        .into_iter()
        .zip(&lives)
        .map(|((account, resource, id), live)| Lost {
            account,
            resource,
            previous: id.map(|id| (id, live.stanzas())),
        })
        .collect();
    let before = meter::cpu_us(&target.pids())?;
    // Without a word: what the halves held is closed with the last of them.
    tasks.shutdown().await;
    drop(lives);
    let (resumed, probes) = come_back(target, lost.clone(), before).await?;
    let before = meter::cpu_us(&target.pids())?;
    drop(probes);
    let anew = lost.into_iter().map(|lost| Lost {
        previous: None,
        ..lost
    });
    let (anew, probes) = come_back(target, anew.collect(), before).await?;
    for mut probe in probes {
        probe.send("</stream:stream>").await?;
    }
    quiet(target).await?;
    Ok((resumed, anew))
}

async fn come_back(
    target: &dyn Target,
    lost: Vec<Lost>,
    before: u64,
) -> Result<(Storm, Vec<Probe>)> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let lost: Vec<Arc<Lost>> = lost.into_iter().map(Arc::new).collect();
    for one in &lost {
        let one = Arc::clone(one);
        tasks.spawn(async move {
            loop {
                let failed = match tokio::time::timeout(ATTEMPT, back(&one)).await {
                    Ok(Ok(back)) => return Ok(back),
                    Ok(Err(error)) => error,
                    Err(_) => anyhow::anyhow!("one attempt took too long"),
                };
                if start.elapsed() > LIMIT {
                    return Err(failed).context("storm");
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    let (mut probes, mut resumed) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (probe, as_it_was): (Probe, bool) = done??;
        probes.push(probe);
        resumed += usize::from(as_it_was);
    }
    let seconds = start.elapsed().as_secs_f64();
    if probes.len() != lost.len() {
        bail!("not everybody came back");
    }
    quiet(target).await?;
    let storm = Storm {
        seconds,
        cpu_seconds: (meter::cpu_us(&target.pids())? - before) as f64 / 1e6,
        resumed,
    };
    Ok((storm, probes))
}

/// Back, and whether as it was. Whoever cannot resume logs in on the same stream.
async fn back(lost: &Lost) -> Result<(Probe, bool)> {
    let mut probe = Probe::authenticate(&lost.account).await?;
    if let Some((id, h)) = &lost.previous
        && probe.resume(id, *h).await?
    {
        return Ok((probe, true));
    }
    probe.bind(&lost.resource).await?;
    probe.equip(Equip::Resumable).await?;
    probe.send("<presence/>").await?;
    Ok((probe, false))
}
