//! [`Transport`]: one socket with its TLS, the framer of what comes in and the bytes that go out.
//!
//! Built so that an idle connection costs little: no read buffer of its own (clear text is read
//! through a scratch buffer of the thread, TLS straight from rustls), a partial stanza is all that
//! is kept, and the buffer for output is given back when it is empty. Refuses to know what a frame
//! means, and to decide when a stream ends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use chancery_xml::{Frame, FrameError, Framer, Limits, is_space};
use chancery_xmpp::StreamError;

use crate::admission::Admitted;
use crate::stream;

/// Bytes read at once from a socket in clear text.
const SCRATCH_BYTES: usize = 16 * 1024;
/// A session stops adding to the output at this mark and waits for [`Transport::poll_flush`].
pub const OUT_HIGH_WATER: usize = 64 * 1024;
/// Output beyond this fails the transport: whoever adds did not look at [`Transport::has_room`].
pub const OUT_LIMIT: usize = 4 * 1024 * 1024;
/// What rustls may hold of output that the socket does not take.
pub const TLS_SEND_LIMIT: usize = 64 * 1024;
/// How long an ending stream waits for the peer to take the last bytes and close.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// What an ending stream reads, and throws away, while it waits.
const LINGER_BYTES: usize = 1024 * 1024;

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer's bytes are not a stream; it can still be told so.
    #[error("{}", .0.condition())]
    Frame(FrameError),
    /// The socket or its TLS failed.
    #[error("input or output failed: {0}")]
    Io(#[from] io::Error),
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection. Owned and polled by one task.
pub struct Transport {
    io: Io,
    framer: Framer,
    out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    /// Bytes may sit in rustls behind a socket that did not take them.
    unflushed: bool,
    overflowed: bool,
    header_sent: bool,
    bytes_in: u64,
    bytes_out: u64,
    /// Counts the connection as long as its socket is open.
    admitted: Admitted,
}

impl Transport {
    /// A socket in clear text.
    pub fn plain(socket: TcpStream, limits: Limits, admitted: Admitted) -> Self {
        Self::new(Io::Plain(socket), limits, admitted)
    }

    /// A socket whose TLS handshake is done.
    pub fn tls(socket: TlsStream<TcpStream>, limits: Limits, admitted: Admitted) -> Self {
        Self::new(Io::Tls(Box::new(socket)), limits, admitted)
    }

    fn new(io: Io, limits: Limits, admitted: Admitted) -> Self {
        Self {
            io,
            framer: Framer::new(limits),
            out: Vec::new(),
            written: 0,
            unflushed: false,
            overflowed: false,
            header_sent: false,
            bytes_in: 0,
            bytes_out: 0,
            admitted,
        }
    }

    /// Whether the bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// Gives back the socket for the TLS handshake. Only when nothing but whitespace came in behind the last
    /// frame: such bytes were written by whoever sits on the clear text.
    pub(crate) fn into_socket(self) -> Option<(TcpStream, Admitted)> {
        let clean = !self.has_unread();
        match self.io {
            Io::Plain(socket) if clean => Some((socket, self.admitted)),
            _ => None,
        }
    }

    /// The caps for what is read from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.framer.set_limits(limits);
    }

    /// The connection has shown who it is: it no longer counts as half open.
    pub fn authenticated(&mut self) {
        self.admitted.authenticated();
    }

    /// Expects a new stream header from the peer, and owes it one (RFC 6120 §4.3.3).
    pub fn restart(&mut self) {
        self.framer.reset();
        self.header_sent = false;
    }

    /// Whether more than whitespace came in behind the last frame.
    pub(crate) fn has_unread(&self) -> bool {
        let unread = self.framer.unread();
        unread.iter().any(|byte| !is_space(*byte))
    }

    /// What was wrong with the bytes, once something was.
    pub(crate) fn frame_error(&mut self) -> Option<FrameError> {
        self.framer.next().err()
    }

    /// Bytes read so far; whitespace counts, as a sign of life.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes written so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// The next frame; `None` when the peer closed TLS or TCP.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, TransportError>> {
        loop {
            match self.framer.next() {
                Ok(Some(frame)) => return Poll::Ready(Ok(Some(frame))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(TransportError::Frame(error))),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(None)); // TCP closed without close_notify
                }
                Err(error) => return Poll::Ready(Err(TransportError::Io(error))),
            }
        }
    }

    /// Moves what the socket has into the framer.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let framer = &mut self.framer;
        let count = ready!(poll_read(&mut self.io, cx, |bytes| framer.push(bytes)))?;
        self.bytes_in = self.bytes_in.wrapping_add(count as u64);
        Poll::Ready(Ok(count))
    }

    /// Adds to the output. Nothing is written before [`Transport::poll_flush`], so that what is
    /// ready together goes into one TLS record and one system call.
    pub fn queue(&mut self, bytes: &[u8]) {
        if self.queued() + bytes.len() > OUT_LIMIT {
            self.overflowed = true;
            return;
        }
        self.out.extend_from_slice(bytes);
    }

    /// Adds our stream header to the output.
    pub fn queue_header(&mut self, header: &str) {
        self.queue(header.as_bytes());
        self.header_sent = true;
    }

    /// Whether our header of the stream under way was written or queued.
    pub fn header_sent(&self) -> bool {
        self.header_sent
    }

    /// Bytes queued and not yet taken by TLS or the socket.
    pub fn queued(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether more may be added to the output now.
    pub fn has_room(&self) -> bool {
        self.queued() < OUT_HIGH_WATER
    }

    /// Writes the output. Ready when all of it is with the kernel.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.overflowed {
            return Poll::Ready(Err(io::Error::other("output limit exceeded")));
        }
        while self.written < self.out.len() {
            let rest = &self.out[self.written..];
            let count = match &mut self.io {
                Io::Plain(socket) => ready!(Pin::new(socket).poll_write(cx, rest)),
                Io::Tls(tls) => ready!(Pin::new(&mut **tls).poll_write(cx, rest)),
            }?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.bytes_out = self.bytes_out.wrapping_add(count as u64);
            self.unflushed = true;
        }
        if self.written > 0 {
            self.out = Vec::new();
            self.written = 0;
        }
        if self.unflushed {
            match &mut self.io {
                Io::Plain(socket) => ready!(Pin::new(socket).poll_flush(cx)),
                Io::Tls(tls) => ready!(Pin::new(&mut **tls).poll_flush(cx)),
            }?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame; output is not written meanwhile.
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, TransportError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Writes the output.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ends the stream: what is queued, the error if there is one, our closing tag, TLS
    /// `close_notify`, and the end of TCP. Our header comes first if it was not sent (RFC 6120
    /// §4.9.1.1); negotiation queues its own, with an address and an id, and calls then. Waits
    /// at most `limit` for the peer to take it all and close its side: closing a socket with
    /// unread input would reset it, and the peer might never see the error.
    pub async fn close_with(mut self, error: Option<&StreamError>, limit: Duration) {
        if !self.header_sent {
            let header = stream::write_header(&stream::Opening::default());
            self.queue_header(&header);
        }
        if let Some(error) = error {
            self.queue(error.write().as_bytes());
        }
        self.queue(stream::CLOSE.as_bytes());
        let ending = async {
            self.flush().await?;
            poll_fn(|cx| self.poll_shutdown(cx)).await?;
            self.linger().await
        };
        // The end of the socket is the same whether the peer took part in it or not.
        let _ = tokio::time::timeout(limit, ending).await;
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }

    /// Reads until the peer has closed too.
    async fn linger(&mut self) -> io::Result<()> {
        let mut left = LINGER_BYTES;
        while left > 0 {
            let count = poll_fn(|cx| poll_read(&mut self.io, cx, |_| {})).await?;
            if count == 0 {
                break;
            }
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    /// What the connection is made of, for checks during negotiation.
    pub(crate) fn tls_session(&self) -> Option<&rustls::ServerConnection> {
        match &self.io {
            Io::Plain(_) => None,
            Io::Tls(tls) => Some(tls.get_ref().1),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Reads once and hands the bytes on; 0 at the end.
fn poll_read(
    io: &mut Io,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<usize>> {
    match io {
        Io::Plain(socket) => SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
            take(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        }),
        Io::Tls(tls) => {
            let bytes = ready!(Pin::new(&mut **tls).poll_fill_buf(cx))?;
            let count = bytes.len();
            take(bytes);
            Pin::new(&mut **tls).consume(count);
            Poll::Ready(Ok(count))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use chancery_xmpp::StreamCondition;

    use super::*;

    async fn pair() -> (Transport, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        (
            Transport::plain(socket, Limits::after_auth(), Admitted::uncounted()),
            peer,
        )
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let (mut transport, mut peer) = pair().await;
        peer.write_all(b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'><a/> <b").await.unwrap();
        assert!(matches!(
            transport.next_frame().await,
            Ok(Some(Frame::Open(_)))
        ));
        assert!(matches!(
            transport.next_frame().await,
            Ok(Some(Frame::Element(_)))
        ));
        let waits = tokio::time::timeout(Duration::from_millis(50), transport.next_frame());
        assert!(waits.await.is_err());
        assert_eq!(
            transport.framer.buffered(),
            2,
            "only the partial stanza is kept"
        );
        peer.write_all(b"/>\n").await.unwrap();
        assert!(matches!(
            transport.next_frame().await,
            Ok(Some(Frame::Element(_)))
        ));
        let waits = tokio::time::timeout(Duration::from_millis(50), transport.next_frame());
        assert!(waits.await.is_err());
        transport.queue(b"<c/>");
        transport.queue(b"<d/>");
        transport.flush().await.unwrap();
        assert_eq!(
            (transport.framer.pending_bytes(), transport.out.capacity()),
            (0, 0)
        );
        let mut answer = [0; 8];
        peer.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"<c/><d/>");
        drop(peer);
        assert!(matches!(transport.next_frame().await, Ok(None)));
    }

    #[tokio::test]
    async fn attack_b11_a_peer_that_does_not_read_is_bounded() {
        let (mut transport, _peer) = pair().await;
        transport.queue_header("<h>");
        let chunk = vec![b'x'; OUT_HIGH_WATER];
        for _ in 0..OUT_LIMIT / OUT_HIGH_WATER - 1 {
            transport.queue(&chunk);
        }
        assert!(!transport.has_room());
        transport.queue(&chunk);
        transport.queue(&chunk);
        assert!(transport.queued() <= OUT_LIMIT);
        assert!(
            transport.flush().await.is_err(),
            "what was lost is not passed over"
        );
    }

    #[tokio::test]
    async fn closing_waits_no_longer_than_it_may() {
        let error = StreamError::new(StreamCondition::Conflict);
        let (mut transport, mut peer) = pair().await;
        transport.queue(&vec![b'x'; OUT_LIMIT / 2]);
        let closing = transport.close_with(Some(&error), Duration::from_millis(200));
        let done = tokio::time::timeout(Duration::from_secs(5), closing).await;
        assert!(done.is_ok(), "the peer neither reads nor closes");

        let (transport, mut other) = pair().await;
        let closing = transport.close_with(Some(&error), Duration::from_secs(5));
        let (_, answer) = tokio::join!(closing, async {
            other.write_all(b"<more/>").await.unwrap();
            let mut answer = String::new();
            other.read_to_string(&mut answer).await.unwrap();
            drop(other);
            answer
        });
        assert!(
            answer.starts_with("<?xml version='1.0'?><stream:stream "),
            "{answer}"
        );
        assert!(
            answer.contains("<conflict") && answer.ends_with("</stream:stream>"),
            "{answer}"
        );
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest).await;
    }
}
