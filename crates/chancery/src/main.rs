//! The binary: command line, configuration, wiring, and the commands of administrators. Owns which
//! services a process runs and how they reach each other; everything else is in their crates.
//!
//! Start reading at `cli.rs` (what can be said), `wiring.rs` (what is started, in which order) and
//! `serve.rs` (its life and end).

mod admin;
mod cli;
mod config;
mod config_command;
mod credentials;
mod demo;
mod error;
mod listen;
mod ops;
#[cfg(feature = "otlp")]
mod otlp;
mod out;
mod probes;
mod process;
mod serve;
mod socket;
mod time;
mod trust;
mod verify;
mod wiring;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use cli::{Cli, Command};
use error::{FAILED, Outcome};
use out::note;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(failure)) => {
            for line in &failure.0 {
                note!("{line}");
            }
            ExitCode::from(FAILED)
        }
        Err(error) => {
            note!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    // The one provider of cryptography, for every TLS in this process.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("a provider of cryptography is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime does not start")?;
    let outcome = runtime.block_on(dispatch(cli));
    // What blocks (a prompt, a lost disk) must not keep the process.
    runtime.shutdown_background();
    Ok(outcome)
}

async fn dispatch(cli: Cli) -> Outcome {
    let Cli { place, command } = cli;
    match command {
        Command::Serve(serve) => serve::run(&place, &serve).await,
        Command::Demo(demo) => demo::run(&place, &demo).await,
        Command::Config(command) => config_command::run(&place, &command),
        Command::Verify(command) => verify::run(&command),
        Command::Trust(cli::Trust::Show) => trust::show(&place),
        Command::InternalCerts { dir } => credentials::internal_certs(&dir).map(|()| error::OK),
        command => admin::run(&place, command).await,
    }
}
