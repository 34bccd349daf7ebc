//! What an account publishes or keeps beside its messages: private XML (XEP-0049), its vCard
//! (XEP-0054), when it was last there (XEP-0012). It owns `pubsub.db`. It refuses to parse XML, to
//! know whether an owner exists (the directory does) and to judge who may read (policy does).

mod config;
mod last;
mod service;
pub mod store;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use service::{Parts, PubsubError, PubsubService};
