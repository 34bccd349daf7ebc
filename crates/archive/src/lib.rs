//! The log: evidence, the mailboxes made from it, and their delivery to the sessions that follow
//! them. Owns the shard's sequencer, its commit thread, the keys and the export; refuses to parse
//! a stanza, to ask policy, and to know who is on a roster.
//!
//! Start reading at `shard.rs` (the state machine), then `deliver.rs` (who gets what), `commit.rs`
//! (the one durable transaction), `query.rs` (what people find again) and `service.rs` (what drives
//! them).

mod accept;
mod actor;
mod attach;
mod checkpoint;
mod commit;
mod config;
mod deliver;
mod entry;
mod export;
mod follower;
mod group;
mod handover;
mod history;
mod item;
mod lag;
mod mailbox;
mod making;
mod memory;
mod metrics;
mod pending;
mod preferences;
mod query;
mod read;
mod recover;
mod route;
mod seal;
mod service;
mod settle;
mod shard;
mod store;
mod tick;

#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod shard_tests;
#[cfg(test)]
mod store_suite;

pub use config::{Config, PreferencesBy};
pub use service::{ArchiveService, Parts, StartError};
