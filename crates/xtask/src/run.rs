//! Runs the test steps and the benches, and counts what the runners say.

use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{clients, tidy};

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Everything that a change has to pass.
    Change,
    /// Only the kill tests.
    Kill,
    /// Only the clients that we did not write, quick and slow.
    Clients,
    /// A change's tests, then what is too slow for every change: clients, and twenty kills.
    Long,
}

/// A bench.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bench {
    /// The load generator against running servers.
    Load,
    /// criterion.
    Micro,
}

/// How much of a soak.
#[derive(clap::Args)]
pub struct Soak {
    /// Messages of all together.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Users, in pairs.
    #[arg(long, default_value_t = 1_000)]
    users: u64,
    /// Replays a run's choices.
    #[arg(long)]
    seed: Option<u64>,
    /// Sending takes at least so long; without it, 150 messages a second are sent.
    #[arg(long)]
    minutes: Option<u64>,
    /// One process, in place of eight with two gateways.
    #[arg(long)]
    one: bool,
    /// The binary of the release profile.
    #[arg(long)]
    release: bool,
}

/// Rounds of each kill test in `long`.
const LONG_TIMES: u32 = 20;

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs a part; its last line is `N passed, N failed, N skipped`.
pub fn test(root: &Path, part: Part, times: u32) -> Result<()> {
    let mut tally = Tally::default();
    match part {
        Part::Kill => kill(root, times, &mut tally)?,
        Part::Change => change(root, times, &mut tally)?,
        Part::Clients => all_clients(root, &mut tally)?,
        Part::Long => {
            change(root, times, &mut tally)?;
            slow_clients(root, &mut tally)?;
            kill(root, LONG_TIMES, &mut tally)?;
        }
    }
    if std::env::var_os("CI").is_some() && tally.skipped > 0 {
        say("in CI a skipped test is a failure")?;
        tally.failed += tally.skipped;
    }
    say(&format!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    ))?;
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    Ok(())
}

fn change(root: &Path, times: u32, tally: &mut Tally) -> Result<()> {
    step(tally, "tidy", || tidy::run(root))?;
    step(tally, "fmt", || plain(root, &["fmt", "--all", "--check"]))?;
    step(tally, "clippy", || {
        plain(
            root,
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ],
        )
    })?;
    step(tally, "clients", || clients::quick(root))?;
    step(tally, "build", || {
        plain(root, &["build", "--quiet", "--package", "chancery"])
    })?;
    step(tally, "release build", || {
        plain(root, &["build", "--quiet", "--release"])
    })?;
    let rest = [
        "test",
        "--workspace",
        "--exclude",
        "chancery-tests",
        "--no-fail-fast",
    ];
    counted(root, &rest, times, tally)?;
    let scenarios = ["test", "--package", "chancery-tests", "--test", "scenarios"];
    counted(root, &scenarios, times, tally)?;
    let quick = stories(&["--skip", "kill::", "--skip", "long::"]);
    counted(root, &quick, times, tally)?;
    kill_rounds(root, times, tally)
}

fn all_clients(root: &Path, tally: &mut Tally) -> Result<()> {
    step(tally, "clients", || clients::quick(root))?;
    step(tally, "build", || {
        plain(root, &["build", "--quiet", "--package", "chancery"])
    })?;
    counted(root, &stories(&["clients::", "tokio_client::"]), 0, tally)?;
    slow_clients(root, tally)
}

/// One at a time: they have a screen, and an address that is the standard's.
fn slow_clients(root: &Path, tally: &mut Tally) -> Result<()> {
    step(tally, "slow clients", || clients::slow(root))?;
    counted(root, &stories(&["long::", "--test-threads=1"]), 0, tally)
}

/// The arguments that run stories, with what the runner is told.
fn stories<'a>(told: &[&'a str]) -> Vec<&'a str> {
    let command = ["test", "--package", "chancery-tests", "--test", "stories"];
    [&command[..], &["--"], told].concat()
}

fn kill(root: &Path, times: u32, tally: &mut Tally) -> Result<()> {
    step(tally, "build", || {
        plain(root, &["build", "--quiet", "--package", "chancery"])
    })?;
    kill_rounds(root, times, tally)?;
    power_cuts(root, times, tally)
}

/// Power cuts at every boundary, with a seed a round. With the tests of a change they ran already.
fn power_cuts(root: &Path, times: u32, tally: &mut Tally) -> Result<()> {
    let archive = [
        "test",
        "--package",
        "chancery-archive",
        "--lib",
        "power_tests",
    ];
    counted(root, &archive, times, tally)?;
    let stories = [
        "test",
        "--package",
        "chancery-tests",
        "--test",
        "stories",
        "power::",
    ];
    counted(root, &stories, times, tally)
}

/// One at a time: each has a deployment under load, and timing that matters.
fn kill_rounds(root: &Path, times: u32, tally: &mut Tally) -> Result<()> {
    let arguments = stories(&["kill::", "--test-threads=1"]);
    counted(root, &arguments, times, tally)
}

fn step(tally: &mut Tally, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    say(&format!("== {name}"))?;
    match work() {
        Ok(()) => tally.passed += 1,
        Err(error) => {
            tally.failed += 1;
            say(&format!("FAILED {name}: {error:#}"))?;
        }
    }
    Ok(())
}

pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

fn plain(root: &Path, arguments: &[&str]) -> Result<()> {
    ran(cargo(root).args(arguments))
}

pub(crate) fn ran(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Runs a test command, passing its output on and adding up its result lines.
fn counted(root: &Path, arguments: &[&str], times: u32, tally: &mut Tally) -> Result<()> {
    say(&format!("== cargo {}", arguments.join(" ")))?;
    let mut child = cargo(root)
        .args(arguments)
        .env("CHANCERY_KILL_TIMES", times.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    let out = child.stdout.take().context("no output")?;
    let mut failed = 0;
    for line in BufReader::new(out).lines() {
        let line = line?;
        if let Some(result) = line.trim().strip_prefix("test result:") {
            tally.passed += number_before(result, " passed");
            failed += number_before(result, " failed");
            tally.skipped += number_before(result, " ignored");
        }
        say(&line)?;
    }
    let status = child.wait()?;
    // A target that did not compile or died says no result line.
    tally.failed += if status.success() {
        failed
    } else {
        failed.max(1)
    };
    Ok(())
}

fn number_before(text: &str, word: &str) -> u64 {
    let Some(end) = text.find(word) else { return 0 };
    let digits: String = text[..end]
        .chars()
        .rev()
        .take_while(char::is_ascii_digit)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    digits.parse().unwrap_or(0)
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// Runs a soak; a binary that `CHANCERY_BIN` names is taken as it is.
pub fn soak(root: &Path, soak: &Soak) -> Result<()> {
    let mut command = cargo(root);
    if std::env::var_os("CHANCERY_BIN").is_none() {
        let profile = if soak.release { "release" } else { "dev" };
        let build = ["build", "--package", "chancery", "--profile", profile];
        plain(root, &build)?;
        if soak.release {
            let target = std::env::var_os("CARGO_TARGET_DIR");
            let target = target.map_or_else(|| root.join("target"), Into::into);
            command.env("CHANCERY_BIN", target.join("release/chancery"));
        }
    }
    let test = "kill::soak::nothing_is_lost_on_a_bad_day";
    command
        .args(["test", "--package", "chancery-tests", "--test", "stories"])
        .args(["--", "--exact", test, "--nocapture"])
        .env("CHANCERY_SOAK_MESSAGES", soak.messages.to_string())
        .env("CHANCERY_SOAK_USERS", soak.users.to_string());
    if let Some(seed) = soak.seed {
        command.env("CHANCERY_SOAK_SEED", seed.to_string());
    }
    if let Some(minutes) = soak.minutes {
        command.env("CHANCERY_SOAK_MINUTES", minutes.to_string());
    }
    if soak.one {
        command.env("CHANCERY_SOAK_SHAPE", "one");
    }
    ran(&mut command)
}

/// Runs a bench in the release profile.
pub fn bench(root: &Path, bench: Bench, rest: &[String]) -> Result<()> {
    match bench {
        Bench::Micro => plain(root, &["bench", "--package", "chancery-benches"]),
        Bench::Load => {
            plain(root, &["build", "--quiet", "--release"])?;
            let mut command = cargo(root);
            command
                .args([
                    "run",
                    "--quiet",
                    "--release",
                    "--package",
                    "chancery-benches",
                    "--bin",
                ])
                .args(["load", "--"])
                .args(rest);
            ran(&mut command)
        }
    }
}
