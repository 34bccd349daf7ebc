//! Stories in which time, faults or nodes have to be steered, and which a scenario cannot tell.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

mod alike;
mod clients;
mod colleagues;
mod commands;
mod corpus;
mod documentation;
mod evidence;
mod hostile;
mod kill;
mod long;
mod play;
mod power;
mod sessions;
mod standards;
mod tls;
mod tokio_client;
mod traces;
mod walls;
