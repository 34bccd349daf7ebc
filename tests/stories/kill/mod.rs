//! Kills, stops and slow disks under load: each service dies at random moments and at failpoints, and
//! what the clients saw is held against the log.
//!
//! `CHANCERY_KILL_TIMES` says how often each is repeated; `CHANCERY_KILL_SEED` replays a seed.
#![allow(clippy::print_stdout)]

mod crowd;
mod load;
mod notes;
mod presence;
mod probe;
mod resource;
mod roster;
mod services;
mod slow_disk;
mod soak;
mod stage;
mod stanza;
