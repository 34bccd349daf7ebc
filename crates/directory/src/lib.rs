//! The directory: accounts, their SCRAM keys, groups, the throttling of guesses, and the leaver's
//! cut-off, which followers get over `Watch`. It owns `directory.db`. It refuses to keep a password
//! in any readable form, to end sessions (gateways do, when they follow) and to judge who may write
//! to whom (policy does).

mod accounts;
mod acts;
mod administer;
mod config;
mod credentials;
mod groups;
mod import;
mod names;
mod password_pool;
mod scram;
mod service;
pub mod store;
mod throttle;
mod watch;

#[cfg(test)]
mod tests;

pub use administer::{Administrators, AdministratorsOf};
pub use config::Config;
pub use names::Name;
pub use service::{DirectoryError, DirectoryService, Parts};
