//! The vocabulary of XMPP: namespaces, addresses, stanza headers, errors, and the published tables
//! that decide routing, stripping and exemption.
//!
//! Owns pure functions and data only. Refuses to know sockets, clocks, stores and services.

pub mod caps;
pub mod carbons;
pub mod datetime;
pub mod error;
pub mod exempt;
pub mod forms;
pub mod jid;
pub mod mam;
pub mod ns;
pub mod routing;
pub mod rsm;
pub mod stanza;
pub mod strip;
pub mod subscription;
pub mod tree;

#[cfg(test)]
mod property_tests;

pub use error::{Condition, ErrorType, SaslFailure, StanzaError, StreamCondition, StreamError};
pub use jid::{BareJid, FullJid, Jid, JidError};
pub use stanza::{
    Hints, IqType, Kind, MessageType, Payload, PresenceType, StanzaHeader, StanzaType,
};
