//! The project's own tasks: code generation, tests, tidiness, benches. Owns their logic; CI only calls it.

mod codegen;

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
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    match Cli::parse().task {
        Task::Codegen { check } => codegen::run(&root, check),
    }
}
