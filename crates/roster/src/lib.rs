//! The roster: items, subscription state and versions of each account's contact list (RFC 6121 §2),
//! and the pushes that tell an owner's sessions of a change. It owns `roster.db`. It refuses to know
//! who is present (presence does) and whether an owner exists (the directory does).

mod blocks;
mod config;
mod items;
mod push;
mod service;
pub mod store;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use service::{Parts, RosterError, RosterService};
