//! The load generator: logins, idle connections, presence, storms, archives, chat saturated and at a
//! rate, against Chancery in both shapes and against its peers, in one run. Counts the servers' CPU and
//! memory, not its own.
#![allow(clippy::disallowed_methods)] // measures real time

mod chancery;
mod chat;
mod history;
mod live;
mod meter;
mod peers;
mod phases;
mod presence;
mod probe;
mod report;
mod storm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;

use crate::phases::{Figures, Phase, Plan};

/// Targets that are Chancery.
const OURS: [&str; 2] = ["one", "many"];

/// What to measure.
#[derive(Parser)]
struct Options {
    /// Also Prosody and ejabberd, from the system's packages, with and without their archives.
    #[arg(long)]
    peers: bool,
    /// Only this target: one, many, prosody, prosody-off, ejabberd, ejabberd-off.
    #[arg(long)]
    only: Vec<String>,
    /// Users, in pairs.
    #[arg(long, default_value_t = 200)]
    users: usize,
    /// Seconds of each chat phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Logins measured.
    #[arg(long, default_value_t = 1000)]
    logins: usize,
    /// Sessions that lose their connection at once.
    #[arg(long, default_value_t = 2000)]
    storm: usize,
    /// Only this phase.
    #[arg(long)]
    phase: Vec<Phase>,
    /// Data directory's parent: a memory file system by default.
    #[arg(long, default_value = "/dev/shm")]
    data: PathBuf,
    /// Writes the table into this file, between its markers.
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    // On one thread: two would take both processors from the server, and their own waiting would be
    // measured as its time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let plan = Plan {
        users: options.users,
        under_way: 4,
        period: Duration::from_secs(options.seconds),
        rate: 1000.0,
        idle: options.idle,
        logins: options.logins,
        storm: options.storm,
        only: options.phase,
    };
    let start = Instant::now();
    let mut rows: Vec<Figures> = Vec::new();
    let mut names = OURS.to_vec();
    if options.peers {
        names.extend(["prosody", "prosody-off", "ejabberd", "ejabberd-off"]);
    }
    for name in names {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        report::note(&format!("{name}: starting"))?;
        let target: Box<dyn phases::Target> = match name {
            _ if OURS.contains(&name) => {
                Box::new(chancery::start(name, &options.data, plan.accounts())?)
            }
            _ => Box::new(peers::start(name, &options.data, &plan)?),
        };
        let figures = runtime.block_on(phases::measure(name, &*target, &plan))?;
        report::note(&report::line(&figures, &plan))?;
        rows.push(figures);
    }
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let table = report::table(&rows, &plan, &command, start.elapsed());
    report::note(&table)?;
    if let Some(path) = options.write {
        report::write_between_markers(&path, &table)?;
    }
    // A peer may be unable to do something; we are not.
    let ours = rows.iter().filter(|row| OURS.contains(&row.name.as_str()));
    if ours.flat_map(|row| &row.failed).next().is_some() {
        bail!("a phase of ours failed");
    }
    Ok(())
}
