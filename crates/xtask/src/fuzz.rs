//! Runs the fuzz targets guided by coverage, on the stable compiler: what cargo-fuzz asks of the
//! compiler is stable but for the sanitizers, and there is no unsafe code of ours for those to watch.
//! Owns no corpus: what was found stays below `fuzz/target`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// What and for how long.
#[derive(clap::Args)]
pub struct Fuzz {
    /// Targets; all of them by default.
    targets: Vec<String>,
    /// Seconds of each.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Counters at each edge and comparisons told, which libFuzzer looks for.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing";
/// Bytes of the longest input.
const INPUT_BYTES: usize = 4096;
/// Seconds after which one input has hung.
const INPUT_SECONDS: u64 = 10;

/// Builds all targets, then runs them one after the other until the first failure.
pub fn fuzz(root: &Path, fuzz: &Fuzz) -> Result<()> {
    let home = root.join("fuzz");
    let all = targets(&home)?;
    if let Some(unknown) = fuzz.targets.iter().find(|name| !all.contains(name)) {
        bail!("no such target: {unknown}; there are {}", all.join(", "));
    }
    let (host, built) = (host()?, home.join("target"));
    // With a target named, the build scripts of others are built without the counters.
    run::ran(
        run::cargo(&home)
            .args(["build", "--release", "--locked", "--target", &host])
            .arg("--target-dir")
            .arg(&built)
            .env("RUSTFLAGS", COVERAGE),
    )?;
    let chosen = if fuzz.targets.is_empty() {
        &all
    } else {
        &fuzz.targets
    };
    for name in chosen {
        let (found, crashes) = (built.join("found").join(name), home.join("artifacts"));
        std::fs::create_dir_all(&found)?;
        std::fs::create_dir_all(&crashes)?;
        run::ran(
            Command::new(built.join(&host).join("release").join(name))
                .args([&found, &home.join("corpus").join(name)])
                .arg(format!("-artifact_prefix={}/{name}-", crashes.display()))
                .arg(format!("-max_total_time={}", fuzz.seconds))
                .arg(format!("-max_len={INPUT_BYTES}"))
                .arg(format!("-timeout={INPUT_SECONDS}"))
                .arg("-print_final_stats=1"),
        )?;
    }
    Ok(())
}

/// A file each.
fn targets(home: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(home.join("fuzz_targets"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        names.push(name.context("a target without a name")?.to_owned());
    }
    names.sort();
    Ok(names)
}

/// The machine that this compiler builds for.
fn host() -> Result<String> {
    let told = Command::new("rustc").arg("-vV").output()?;
    let told = String::from_utf8(told.stdout)?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(ToOwned::to_owned)
        .context("rustc does not say its host")
}
