//! The presence service: what each session last said of itself, who was shown it, and its delivery to
//! the gateways of those who must hear.
//!
//! Owns presence state, in memory: gateways rebuild it. It refuses to decide (targets come allowed by
//! policy, what it tells of others is decided by the gateway before it is written), to read a payload,
//! and to wait for a slow gateway.

mod config;
mod effects;
mod names;
mod outbox;
mod registry;
mod service;
mod store;

pub use config::Config;
pub use effects::Effects;
pub use registry::{DIRECTED_LIMIT, MISSED_LIMIT, Registry, SHOWN_LIMIT};
pub use service::{Parts, PresenceService};
pub use store::{MemoryPresenceStore, PresenceStore, Said, Session, SessionKey};
