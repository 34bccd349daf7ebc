//! From an accepted socket to an authenticated stream: TLS, headers, features, SASL, restart
//! (RFC 6120 §4.3, §5, §6). Every phase has a deadline and every count a limit; all its state is
//! gone when the session begins.
//!
//! Refuses to own anything of a session: the features after authentication, and all that follows,
//! belong to whoever implements [`Established`].

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jid::BareJid;

use crate::sasl::Mechanism;
use crate::transport::Transport;

/// A stream whose client has proven who it is. The client's second header was read and checked,
/// ours is queued, not yet flushed: the features that the session sends go out with it.
pub struct Authenticated {
    /// The connection.
    pub transport: Transport,
    /// Who it is, prepared.
    pub account: BareJid,
    /// The hosted domain of the stream.
    pub domain: String,
    /// Version of the credentials that were used; a later one ends the session.
    pub credential_version: u64,
    /// How it was proven.
    pub mechanism: Mechanism,
    /// Where the client is.
    pub peer: SocketAddr,
    /// The language of the stream, for stanzas that state none (RFC 6120 §4.7.4).
    pub stream_lang: Option<Box<str>>,
    /// The id that we gave the stream.
    pub stream_id: String,
    /// Of the TLS handshake.
    pub facts: TlsFacts,
}

/// What was negotiated in a TLS handshake, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// As the standard writes it.
    pub version: &'static str,
    /// The cipher suite's registered name.
    pub cipher: &'static str,
}

/// Takes over authenticated streams.
pub trait Established: Send + Sync + 'static {
    /// Runs the session until its stream is over.
    fn run(self: Arc<Self>, authenticated: Authenticated) -> BoxFuture<'static, ()>;
}
