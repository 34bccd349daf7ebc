//! The project's own tasks: code generation, tests, tidiness, benches. Owns their logic; CI only calls it.

mod clients;
mod codegen;
mod floors;
mod fuzz;
mod run;
mod tidy;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Generates crates/api/src/gen from proto/.
    Codegen {
        /// Only fails when the committed files are stale.
        #[arg(long)]
        check: bool,
    },
    /// Checks floors, file headers and lengths, and that generated files are fresh.
    Tidy,
    /// Runs the tests: everything of a change (default), `kill`, `clients`, or `long`.
    Test {
        /// Which part.
        #[arg(value_enum, default_value_t = run::Part::Change)]
        part: run::Part,
        /// Rounds of each kill test.
        #[arg(long, default_value_t = 2)]
        times: u32,
    },
    /// Many messages between many users while processes are killed and connections break; then the
    /// checker.
    Soak(run::Soak),
    /// Fuzzes guided by coverage: each target in turn, until one fails.
    Fuzz(fuzz::Fuzz),
    /// Measures: `load` runs the load generator, `micro` the criterion benches.
    Bench {
        /// Which bench.
        #[arg(value_enum)]
        bench: run::Bench,
        /// Passed on to the load generator, e.g. `--peers`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    match Cli::parse().task {
        Task::Codegen { check } => codegen::run(&root, check),
        Task::Tidy => tidy::run(&root),
        Task::Test { part, times } => run::test(&root, part, times),
        Task::Soak(soak) => run::soak(&root, &soak),
        Task::Fuzz(what) => fuzz::fuzz(&root, &what),
        Task::Bench { bench, rest } => run::bench(&root, bench, &rest),
    }
}
