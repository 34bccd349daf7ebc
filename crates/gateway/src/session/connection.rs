//! The stream of a session: open, gone, or about to take over from one that is gone.
//!
//! Without an open stream nothing is read and nothing written: what has to outlast that is kept by
//! whoever queues it. Refuses to know when a stream ends.

use std::io;
use std::task::{Context, Poll};

use chancery_xml::Frame;

use crate::transport::{Transport, TransportError};

/// See the module.
pub(super) enum Connection {
    /// The socket is gone.
    Gone,
    /// The socket of a resumption that waits for outcomes under way.
    Joining(Box<Transport>),
    /// In use.
    Open(Box<Transport>),
}

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
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
            Self::Joining(transport) | Self::Open(transport) => Some(transport),
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
            Self::Gone | Self::Joining(_) => false,
        }
    }

    /// The next frame; never one without an open stream.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, TransportError>> {
        match self {
            Self::Open(transport) => transport.poll_frame(cx),
            Self::Gone | Self::Joining(_) => Poll::Pending,
        }
    }

    /// Writes the output; never done without an open stream.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Open(transport) => transport.poll_flush(cx),
            Self::Gone | Self::Joining(_) => Poll::Pending,
        }
    }
}
