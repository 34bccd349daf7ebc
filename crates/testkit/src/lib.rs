//! What the scenario tests and benches stand on: a client that says what it is told, servers in both
//! wirings that can be killed, the scenario language, the checker of the invariants, and a disk that
//! loses power.
//!
//! Never a dependency of the floors. Refuses to share code with the gateway beyond the framer.

#![allow(clippy::disallowed_methods)] // a tool measures real time
#![allow(clippy::large_enum_variant)] // one element at a time

pub mod checker;
pub mod client;
pub mod disk;
pub mod matching;
mod place;
pub mod power;
pub mod runner;
pub mod scenario;
pub mod scram;
pub mod server;
pub mod wire;
