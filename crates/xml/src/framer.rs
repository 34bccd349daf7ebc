//! Cuts the bytes of one stream into its opening tag, top-level elements and closing tag.
//!
//! Holds the partial frame and nothing else: between stanzas the buffer is given back. Bounded by
//! [`Limits`] plus one pushed chunk, provided the caller drains it before pushing more.

use crate::element::Element;
use crate::error::FrameError;
use crate::header::{self, StreamHeader};
use crate::lexer::{Boundary, Lexer, is_space};
use crate::limits::Limits;
use crate::names::Scope;
use crate::scan;

/// One unit of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The peer opened the stream.
    Open(StreamHeader),
    /// A stanza or another top-level element.
    Element(Element),
    /// The peer closed the stream.
    Close,
}

/// Framer of one direction of one stream.
#[derive(Debug)]
pub struct Framer {
    limits: Limits,
    lexer: Lexer,
    buf: Vec<u8>,
    /// Where the frame under way begins in `buf`.
    start: usize,
    /// How far `buf` has been lexed.
    at: usize,
    stream: Option<Box<Stream>>,
    /// The opening tag closed itself; `Close` is due.
    closing: bool,
    /// Whitespace is still the end of the stream before, whose last line the peer has ended.
    after_restart: bool,
    failed: Option<FrameError>,
}

/// What the opening tag left behind.
#[derive(Debug)]
struct Stream {
    name: Box<str>,
    scope: Scope,
}

impl Framer {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lexer: Lexer::new(),
            buf: Vec::new(),
            start: 0,
            at: 0,
            stream: None,
            closing: false,
            after_restart: false,
            failed: None,
        }
    }

    /// Takes effect for the bytes not looked at yet.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds received bytes. Call [`Framer::next`] until it has no more before pushing again.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return; // nothing will be read any more
        }
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.at -= self.start;
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
        self.skip_end_of_line();
    }

    fn skip_end_of_line(&mut self) {
        if self.after_restart {
            let count = self.buf.iter().take_while(|b| is_space(**b)).count();
            self.buf.drain(..count);
            self.after_restart = self.buf.is_empty();
        }
    }

    /// The next complete frame, or `None` when more bytes are needed.
    ///
    /// An error is final: it is returned again until [`Framer::reset`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.advance();
        if let Err(error) = result {
            self.failed = Some(error);
            self.discard();
        }
        result
    }

    /// Expects a new opening tag (RFC 6120 §4.3.3). Bytes pushed but not consumed belong to the
    /// new stream, but for whitespace before it; see [`Framer::discard`].
    pub fn reset(&mut self) {
        self.buf.drain(..self.at);
        self.start = 0;
        self.at = 0;
        self.lexer = Lexer::new();
        self.stream = None;
        self.closing = false;
        self.failed = None;
        self.after_restart = true;
        self.skip_end_of_line();
    }

    /// Forgets the bytes not consumed and says how many they were: what came in clear text
    /// behind `<starttls/>` is not to be believed.
    pub fn discard(&mut self) -> usize {
        let count = self.buffered();
        self.buf = Vec::new();
        self.start = 0;
        self.at = 0;
        count
    }

    /// Bytes pushed and not yet given out.
    pub fn buffered(&self) -> usize {
        self.unread().len()
    }

    /// The same, themselves.
    pub fn unread(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    /// Memory held for bytes.
    pub fn pending_bytes(&self) -> usize {
        self.buf.capacity()
    }

    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        if std::mem::take(&mut self.closing) {
            return Ok(Some(Frame::Close));
        }
        let mut between = self.lexer.is_between();
        loop {
            if between {
                // white space between elements is a keepalive (RFC 6120 §4.6.1)
                let rest = &self.buf[self.at..];
                let skip = rest
                    .iter()
                    .take_while(|b| crate::lexer::is_space(**b))
                    .count();
                if skip > 0 {
                    self.lexer.feed(&rest[..skip], &self.limits)?;
                }
                self.at += skip;
                self.start = self.at;
            }
            if self.at == self.buf.len() {
                if between {
                    self.discard();
                }
                return Ok(None);
            }
            let (taken, boundary) = self.lexer.feed(&self.buf[self.at..], &self.limits)?;
            self.at += taken;
            if let Some(boundary) = boundary {
                let frame = self.frame(boundary)?;
                self.start = self.at;
                if self.at == self.buf.len() {
                    self.discard();
                }
                return Ok(Some(frame));
            }
            between = self.lexer.is_between();
        }
    }

    fn frame(&mut self, boundary: Boundary) -> Result<Frame, FrameError> {
        let bytes = &self.buf[self.start..self.at];
        match (boundary, &self.stream) {
            (Boundary::Header { closed }, _) => {
                let (header, name, scope) = header::read(bytes, &self.limits)?;
                self.stream = Some(Box::new(Stream { name, scope }));
                self.closing = closed;
                Ok(Frame::Open(header))
            }
            (Boundary::Element, Some(stream)) => {
                scan::element(bytes, &stream.scope, &self.limits).map(Frame::Element)
            }
            (Boundary::Close, Some(stream)) => {
                let name = bytes
                    .strip_prefix(b"</")
                    .and_then(|rest| rest.strip_suffix(b">"));
                if name.map(<[u8]>::trim_ascii_end) != Some(stream.name.as_bytes()) {
                    return Err(FrameError::NotWellFormed);
                }
                Ok(Frame::Close)
            }
            // the lexer reports nothing before the opening tag
            (_, None) => Err(FrameError::NotWellFormed),
        }
    }
}
