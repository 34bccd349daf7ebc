//! Finds where top-level elements begin and end, and enforces the caps while bytes arrive.
//!
//! Every byte is looked at once, with a few bytes of state between calls. It knows tags, quotes
//! and CDATA sections, no more: it refuses to judge names, characters, references and namespaces,
//! which `scan` does on the complete element.

use memchr::{memchr, memchr2};

use crate::error::FrameError;
use crate::limits::{Limit, Limits};

/// What ended at the last byte taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// The stream's opening tag.
    Header { closed: bool },
    /// A complete top-level element.
    Element,
    /// The stream's closing tag.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing read yet: the only place for an XML declaration.
    Start,
    /// Outside top-level elements; white space is skipped.
    Between,
    Lt,
    /// `<?`, with the count of bytes of the target `xml` seen; `run` is 1 where it is allowed.
    Target(u8),
    /// Inside the XML declaration; the flag is a `?` just seen.
    Declaration(bool),
    /// Between the XML declaration and the stream's opening tag.
    Prolog,
    /// `<!`, with the count of bytes of `[CDATA[` seen.
    Bang(u8),
    /// Inside a CDATA section, with the count of `]` just seen, at most 2.
    Cdata(u8),
    Name,
    Tag,
    AttrName,
    AttrEq,
    AttrQuote,
    Value(u8),
    Slash,
    EndTag,
    Text,
    Closed,
}

const CDATA: &[u8; 7] = b"[CDATA[";
const XML: &[u8; 3] = b"xml";
const XMLNS: &[u8; 5] = b"xmlns";

/// Boundary lexer of one stream.
#[derive(Debug)]
pub(crate) struct Lexer {
    state: State,
    /// The stream's opening tag has been read.
    opened: bool,
    /// Elements open inside the top-level element, itself included.
    depth: u32,
    elements: u32,
    attributes: u32,
    namespaces: u32,
    /// Bytes of the frame so far.
    frame: u32,
    /// Bytes of the name or value so far.
    run: u32,
    /// How many bytes of the attribute name agree with `xmlns`; 6 once a colon followed.
    xmlns: u8,
}

impl Lexer {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            opened: false,
            depth: 0,
            elements: 0,
            attributes: 0,
            namespaces: 0,
            frame: 0,
            run: 0,
            xmlns: 0,
        }
    }

    /// For one stand-alone element without a stream around it.
    pub(crate) fn inside() -> Self {
        Self {
            state: State::Between,
            opened: true,
            ..Self::new()
        }
    }

    /// Whether no frame is under way, so that all bytes taken can be forgotten.
    pub(crate) fn is_between(&self) -> bool {
        matches!(self.state, State::Start | State::Between | State::Closed)
    }

    /// Takes bytes up to a boundary or the end of `data`; returns how many.
    pub(crate) fn feed(
        &mut self,
        data: &[u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Boundary>), FrameError> {
        let mut at = 0;
        while at < data.len() {
            if self.is_between() {
                at += self.skip_space(&data[at..])?;
                continue;
            }
            // never look beyond the cap on the frame: the first violation in byte order wins,
            // whatever the chunking
            let (cap, limit) = if self.opened {
                (limits.stanza_bytes, Limit::StanzaBytes)
            } else {
                (limits.header_bytes, Limit::HeaderBytes)
            };
            let room = cap.saturating_sub(self.frame) as usize;
            if room == 0 {
                return Err(FrameError::PolicyViolation(limit));
            }
            let window = &data[at..data.len().min(at + room)];
            let (taken, boundary) = self.step(window, limits)?;
            at += taken;
            self.frame += u32::try_from(taken).unwrap_or(u32::MAX);
            if boundary.is_some() {
                self.frame = 0;
                return Ok((at, boundary));
            }
        }
        Ok((at, None))
    }

    /// Skips white space outside elements and starts a frame at `<`, without taking it.
    fn skip_space(&mut self, data: &[u8]) -> Result<usize, FrameError> {
        let space = data.iter().position(|&b| !is_space(b));
        let skipped = space.unwrap_or(data.len());
        match (self.state, space.map(|at| data[at])) {
            (State::Closed, Some(_)) => return Err(FrameError::NotWellFormed),
            (State::Closed, None) => return Ok(skipped),
            (_, Some(b'<')) => {
                // XML 1.0 §2.8: a declaration stands at the very start or nowhere
                let first = self.state == State::Start && skipped == 0;
                self.state = State::Lt;
                self.frame = 1;
                self.run = u32::from(first);
                self.elements = 0;
                self.depth = 0;
                return Ok(skipped + 1);
            }
            (_, Some(0xfe | 0xff)) if !self.opened => return Err(FrameError::UnsupportedEncoding),
            (_, Some(_)) if !self.opened => return Err(FrameError::NotWellFormed),
            (_, Some(_)) => return Err(FrameError::BadFormat),
            (State::Start, None) if skipped > 0 => self.state = State::Between,
            (_, None) => {}
        }
        Ok(skipped)
    }

    /// One step of at least one byte.
    fn step(
        &mut self,
        data: &[u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Boundary>), FrameError> {
        match self.state {
            State::Text => return Ok(self.text(data)),
            State::Cdata(brackets) => return Ok(self.cdata(data, brackets)),
            State::Value(quote) => return self.value(data, quote, limits),
            State::Name | State::AttrName | State::EndTag => return self.name(data, limits),
            _ => {}
        }
        let boundary = self.byte(data[0], limits)?;
        Ok((1, boundary))
    }

    fn text(&mut self, data: &[u8]) -> (usize, Option<Boundary>) {
        match memchr(b'<', data) {
            Some(at) => {
                self.state = State::Lt;
                self.run = 0;
                (at + 1, None)
            }
            None => (data.len(), None),
        }
    }

    fn cdata(&mut self, data: &[u8], brackets: u8) -> (usize, Option<Boundary>) {
        if brackets == 0 {
            return match memchr(b']', data) {
                Some(at) => {
                    self.state = State::Cdata(1);
                    (at + 1, None)
                }
                None => (data.len(), None),
            };
        }
        self.state = match data[0] {
            b']' => State::Cdata(2),
            b'>' if brackets == 2 => State::Text,
            _ => State::Cdata(0),
        };
        (1, None)
    }

    fn value(
        &mut self,
        data: &[u8],
        quote: u8,
        limits: &Limits,
    ) -> Result<(usize, Option<Boundary>), FrameError> {
        let room = limits.value_bytes.saturating_sub(self.run) as usize;
        let window = &data[..data.len().min(room + 1)];
        match memchr2(quote, b'<', window) {
            Some(at) if window[at] == quote => {
                self.state = State::Tag;
                Ok((at + 1, None))
            }
            Some(_) => Err(FrameError::NotWellFormed),
            None if window.len() > room => Err(FrameError::PolicyViolation(Limit::ValueBytes)),
            None => {
                self.run += u32::try_from(window.len()).unwrap_or(u32::MAX);
                Ok((window.len(), None))
            }
        }
    }

    /// Names of elements and attributes, and closing tags.
    fn name(
        &mut self,
        data: &[u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Boundary>), FrameError> {
        for (at, &b) in data.iter().enumerate() {
            match b {
                b'<' | b'&' | b'"' | b'\'' => return Err(FrameError::NotWellFormed),
                b'>' | b'/' | b'=' | b' ' | b'\t' | b'\n' | b'\r'
                    if self.state != State::EndTag || b == b'>' =>
                {
                    let boundary = self.end_name(b, limits)?;
                    return Ok((at + 1, boundary));
                }
                _ => self.name_byte(b, limits)?,
            }
        }
        Ok((data.len(), None))
    }

    fn name_byte(&mut self, b: u8, limits: &Limits) -> Result<(), FrameError> {
        if self.run >= limits.name_bytes {
            return Err(FrameError::PolicyViolation(Limit::NameBytes));
        }
        if self.state == State::AttrName && self.run == u32::from(self.xmlns) && self.run < 6 {
            let expected = XMLNS.get(self.xmlns as usize).copied().unwrap_or(b':');
            self.xmlns += u8::from(b == expected);
        }
        self.run += 1;
        Ok(())
    }

    fn end_name(&mut self, b: u8, limits: &Limits) -> Result<Option<Boundary>, FrameError> {
        match self.state {
            State::EndTag => self.close_tag(),
            State::AttrName => {
                let (count, cap, limit) = if self.xmlns == 6 || (self.xmlns == 5 && self.run == 5) {
                    (&mut self.namespaces, limits.namespaces, Limit::Namespaces)
                } else {
                    (&mut self.attributes, limits.attributes, Limit::Attributes)
                };
                *count += 1;
                if *count > cap {
                    return Err(FrameError::PolicyViolation(limit));
                }
                self.state = match b {
                    b'=' => State::AttrQuote,
                    b if is_space(b) => State::AttrEq,
                    _ => return Err(FrameError::NotWellFormed),
                };
                Ok(None)
            }
            _ => {
                self.state = State::Tag;
                match b {
                    b'=' => Err(FrameError::NotWellFormed),
                    b => self.byte(b, limits),
                }
            }
        }
    }

    /// States that go byte by byte.
    fn byte(&mut self, b: u8, limits: &Limits) -> Result<Option<Boundary>, FrameError> {
        match (self.state, b) {
            (State::Lt, _) => return self.after_lt(b, limits),
            (State::Target(3), _) if is_space(b) => {
                if self.run != 1 {
                    // a late declaration is not even a processing instruction (XML 1.0 §2.6, §2.8)
                    return Err(FrameError::NotWellFormed);
                }
                self.state = State::Declaration(false);
            }
            (State::Target(seen), _) => {
                if XML.get(seen as usize) != Some(&b) {
                    return Err(FrameError::RestrictedXml);
                }
                self.state = State::Target(seen + 1);
            }
            (State::Declaration(true), b'>') => self.state = State::Prolog,
            (State::Declaration(_), _) => self.state = State::Declaration(b == b'?'),
            (State::Prolog, b'<') => {
                self.state = State::Lt;
                self.run = 0;
            }
            (State::Prolog, _) if is_space(b) => {}
            (State::Bang(seen), _) => {
                if CDATA.get(seen as usize) != Some(&b) {
                    // comment, DOCTYPE or another declaration (RFC 6120 §11.1)
                    return Err(FrameError::RestrictedXml);
                }
                let seen = seen + 1;
                self.state = if seen as usize == CDATA.len() {
                    State::Cdata(0)
                } else {
                    State::Bang(seen)
                };
            }
            (State::Slash, b'>') => return Ok(self.open_tag(true)),
            (State::Tag, b'>') => return Ok(self.open_tag(false)),
            (State::Tag, b'/') => self.state = State::Slash,
            (State::Tag | State::AttrEq | State::AttrQuote, _) if is_space(b) => {}
            (State::Tag, b'<' | b'=' | b'"' | b'\'' | b'&') => {
                return Err(FrameError::NotWellFormed);
            }
            (State::Tag, _) => {
                self.state = State::AttrName;
                self.run = 0;
                self.xmlns = 0;
                self.name_byte(b, limits)?;
            }
            (State::AttrEq, b'=') => self.state = State::AttrQuote,
            (State::AttrQuote, b'"' | b'\'') => {
                self.state = State::Value(b);
                self.run = 0;
            }
            _ => return Err(FrameError::NotWellFormed),
        }
        Ok(None)
    }

    fn after_lt(&mut self, b: u8, limits: &Limits) -> Result<Option<Boundary>, FrameError> {
        let first = std::mem::take(&mut self.run) == 1;
        match b {
            b'/' => {
                self.state = State::EndTag;
            }
            b'!' if self.depth == 0 => return Err(FrameError::RestrictedXml),
            b'!' => self.state = State::Bang(0),
            b'?' => {
                self.state = State::Target(0);
                self.run = u32::from(first && !self.opened);
            }
            b'<' | b'>' | b'=' | b'&' | b'"' | b'\'' => return Err(FrameError::NotWellFormed),
            b if b <= b' ' => return Err(FrameError::NotWellFormed),
            b => {
                self.start_element(limits)?;
                self.name_byte(b, limits)?;
            }
        }
        Ok(None)
    }

    fn start_element(&mut self, limits: &Limits) -> Result<(), FrameError> {
        self.state = State::Name;
        self.attributes = 0;
        self.namespaces = 0;
        if !self.opened {
            return Ok(());
        }
        self.elements += 1;
        if self.elements > limits.elements {
            return Err(FrameError::PolicyViolation(Limit::Elements));
        }
        if self.depth >= limits.depth {
            return Err(FrameError::PolicyViolation(Limit::Depth));
        }
        Ok(())
    }

    /// A start tag is complete.
    fn open_tag(&mut self, closed: bool) -> Option<Boundary> {
        if !self.opened {
            self.opened = true;
            self.state = if closed {
                State::Closed
            } else {
                State::Between
            };
            return Some(Boundary::Header { closed });
        }
        if !closed {
            self.depth += 1;
        }
        self.leave()
    }

    /// An end tag is complete.
    fn close_tag(&mut self) -> Result<Option<Boundary>, FrameError> {
        if self.depth == 0 {
            if !self.opened {
                return Err(FrameError::NotWellFormed);
            }
            self.state = State::Closed;
            return Ok(Some(Boundary::Close));
        }
        self.depth -= 1;
        Ok(self.leave())
    }

    fn leave(&mut self) -> Option<Boundary> {
        if self.depth == 0 {
            self.state = State::Between;
            return Some(Boundary::Element);
        }
        self.state = State::Text;
        None
    }
}

/// XML's white space (XML 1.0 §2.3, S).
pub fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r')
}
