//! The policy service: one verdict for every stanza and target, and the versioned policy behind them.
//!
//! Owns policy files, their versions and what is in force; follows the directory's facts. It refuses
//! to answer rather than to guess: no facts, or facts older than the lease, mean no verdicts. Knows no
//! payload and keeps no accounts of its own.

mod config;
pub mod decider;
mod explain;
#[cfg(test)]
mod facades;
pub mod facts;
pub mod file;
mod follow;
mod in_force;
mod problems;
mod reader;
mod service;
mod store;
mod watchers;

pub use config::Config;
pub use decider::Decider;
pub use facts::{Facts, GroupKey};
pub use file::{BUILT_IN, PolicyFile, check};
pub use service::{Parts, PolicyError, PolicyService};
pub use store::{MemoryPolicyStore, PolicyStore, SqlitePolicyStore, StoredVersion};
