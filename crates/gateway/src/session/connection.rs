//! The stream of a session: open, mute, gone, or about to take over from one that is gone.
//!
//! Without an open stream nothing is written: what has to outlast that is kept by whoever queues it.
//! Refuses to know when a stream ends.

use std::io;
use std::task::{Context, Poll};

use chancery_xml::Frame;
use tokio::time::Instant;

use crate::transport::{Transport, TransportError};

/// See the module.
pub(super) enum Connection {
    /// The socket is gone.
    Gone,
    /// The socket of a resumption that waits for outcomes under way.
    Joining(Box<Transport>),
    /// In use.
    Open(Box<Transport>),
    /// It takes nothing any more; what has arrived is still read, until then.
    Mute(Box<Transport>, Instant),
}

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// What comes is read.
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Open(_) | Self::Mute(..))
    }

    pub(super) fn is_joining(&self) -> bool {
        matches!(self, Self::Joining(_))
    }

    /// Puts the socket of a resumption into use.
    pub(super) fn open(&mut self) {
        if let Some(transport) = self.take() {
            *self = Self::Open(transport);
        }
    }

    /// Takes the socket, in use or not.
    pub(super) fn take(&mut self) -> Option<Box<Transport>> {
        match std::mem::replace(self, Self::Gone) {
            Self::Gone => None,
            Self::Joining(transport) | Self::Open(transport) | Self::Mute(transport, _) => {
                Some(transport)
            }
        }
    }

    /// The socket takes nothing more. What the client said before is still in it: an acknowledgement
    /// that is not read comes to light as a repeat.
    pub(super) fn mute(&mut self, until: Instant) {
        if let Some(transport) = self.take() {
            *self = Self::Mute(transport, until);
        }
    }

    /// Until when a mute socket is read.
    pub(super) fn mute_until(&self) -> Option<Instant> {
        match self {
            Self::Mute(_, until) => Some(*until),
            _ => None,
        }
    }

    /// Adds to the output.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        if let Self::Open(transport) = self {
            transport.queue(bytes);
        }
    }

    /// Whether more may be added to the output now.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Open(transport) => transport.has_room(),
            Self::Mute(..) => true,
            Self::Gone | Self::Joining(_) => false,
        }
    }

    /// The next frame; never one of a stream that waits or is gone.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, TransportError>> {
        match self {
            Self::Open(transport) | Self::Mute(transport, _) => transport.poll_frame(cx),
            Self::Gone | Self::Joining(_) => Poll::Pending,
        }
    }

    /// Writes the output; never done without an open stream.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Open(transport) => transport.poll_flush(cx),
            Self::Gone | Self::Joining(_) | Self::Mute(..) => Poll::Pending,
        }
    }
}
