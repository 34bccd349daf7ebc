//! The gateway: the one service that speaks XML streams.
//!
//! Owns client streams from the socket to the session, and the pipeline of an inbound stanza. Keeps
//! nothing that outlives it: accounts, rosters, presence, verdicts and the log are asked for.

pub mod admission;
pub mod negotiate;
pub mod sasl;
mod stream;
pub mod transport;

pub use negotiate::{Authenticated, Established};
