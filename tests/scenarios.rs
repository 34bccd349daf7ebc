//! Runs every `scenarios/*.scenario` in the wirings that it names, one test each. With
//! `CHANCERY_FOREIGN_C2S` in the environment those that need nothing of ours run against that server
//! instead (`tests/foreign/prosody`): what differs there is our reading of the standard, or theirs.

use std::path::Path;

use anyhow::{Context, Result};
use chancery_testkit::runner;
use chancery_testkit::scenario::{self, Scenario};
use chancery_testkit::server::{Foreign, Shape};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // Each scenario starts its own deployment, in one wiring eight processes: two at a time.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let foreign = Foreign::from_environment()?;
    if foreign.is_some() {
        arguments.test_threads = Some(1);
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut trials = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&dir)?.collect::<Result<_, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let path = file.path();
        if path.extension().is_none_or(|e| e != "scenario") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let scenario = scenario::parse(&text).with_context(|| format!("{}", path.display()))?;
        let name = path
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some(foreign) = &foreign {
            if scenario.is_universal() {
                trials.push(foreign_trial(&name, scenario, foreign.clone()));
            }
            continue;
        }
        for &shape in &scenario.shapes {
            let label = match shape {
                Shape::One => "one",
                Shape::Many => "many",
            };
            trials.push(trial(format!("{name}::{label}"), scenario.clone(), shape));
        }
    }
    libtest_mimic::run(&arguments, trials).exit()
}

fn trial(name: String, scenario: Scenario, shape: Shape) -> Trial {
    Trial::test(name, move || {
        runner::run(&scenario, shape)
            .map_err(|error| Failed::from(format!("{}: {error:#}", scenario.title)))
    })
}

fn foreign_trial(name: &str, scenario: Scenario, foreign: Foreign) -> Trial {
    Trial::test(format!("{name}::foreign"), move || {
        runner::run_foreign(&scenario, foreign)
            .map_err(|error| Failed::from(format!("{}: {error:#}", scenario.title)))
    })
}
