//! The gateway: the one service that speaks XML streams.
//!
//! Owns client streams from the socket to the session, and the pipeline of an inbound stanza. Keeps
//! nothing that outlives it: accounts, rosters, presence, verdicts and the log are asked for.

pub mod admission;
mod attach;
pub mod authority;
mod blocks;
mod colleagues;
pub mod config;
pub mod contacts;
mod departed;
mod features;
mod follow;
pub mod iq;
pub mod listen;
pub mod negotiate;
mod permits;
mod pipeline;
mod presence;
pub mod sasl;
pub mod service;
mod session;
pub mod stream;
mod subscription;
pub mod tls;
mod trace;
pub mod transport;

pub use config::Config;
pub use contacts::Contacts;
pub use listen::{Domains, Listeners};
pub use negotiate::{Authenticated, Established};
pub use pipeline::modules::markdown as pipeline_markdown;
pub use service::Gateway;
pub use tls::{CertificateFiles, Certificates};
pub use transport::{Transport, TransportError};
