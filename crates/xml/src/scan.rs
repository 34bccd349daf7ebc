//! Validates one complete element with `rxml` and extracts its [`Header`].
//!
//! Positions come from how far the parser has read: it never looks past the construct it reports,
//! except for the one byte that ends a name.

use std::sync::Arc;

use bytes::Bytes;
use rxml::error::EndOrError;
use rxml::{NcName, Options, Parse, RawEvent, RawParser, WithOptions};

use crate::element::{Attr, Child, Element, Header, Spans, offset};
use crate::error::FrameError;
use crate::lexer::{Boundary, Lexer};
use crate::limits::Limits;
use crate::names::{Names, RawAttr, Scope};
use crate::write::push_attr;

/// Scans one stand-alone element; a default namespace not declared is taken as `jabber:client`.
pub fn scan(bytes: &Bytes, limits: &Limits) -> Result<Element, FrameError> {
    let mut lexer = Lexer::inside();
    match lexer.feed(bytes, limits)? {
        (taken, Some(Boundary::Element)) if taken == bytes.len() && bytes[0] == b'<' => {
            let (header, _) = header(bytes, &Scope::client(), limits)?;
            Ok(Element {
                bytes: bytes.clone(),
                header,
            })
        }
        _ => Err(FrameError::NotWellFormed),
    }
}

/// Scans an element that stands inside a stream.
pub(crate) fn element(bytes: &[u8], scope: &Scope, limits: &Limits) -> Result<Element, FrameError> {
    let (header, inherited) = header(bytes, scope, limits)?;
    Ok(self_contained(bytes, header, scope, &inherited))
}

/// The header, and the prefixes that were taken from the stream.
fn header(
    bytes: &[u8],
    scope: &Scope,
    limits: &Limits,
) -> Result<(Header, Vec<usize>), FrameError> {
    let mut walk = Walk::new(bytes, scope, limits);
    while walk.header.is_none() || !walk.open.is_empty() {
        walk.step()?;
    }
    if !walk.rest.is_empty() {
        return Err(FrameError::NotWellFormed);
    }
    let inherited = walk.names.inherited;
    walk.header
        .map(|header| (header, inherited))
        .ok_or(FrameError::NotWellFormed)
}

/// The stream's opening tag, with its declaration if there is one, walked as far as it goes.
pub(crate) fn opening_tag(bytes: &[u8], limits: &Limits) -> Result<OpeningTag, FrameError> {
    let outside = Scope {
        default_ns: crate::names::intern(""),
        ..Scope::client()
    };
    let mut reader = Reader::new(bytes, limits);
    let mut names = Names::new(&outside);
    loop {
        match reader.next(false)? {
            Some(Event::Open(tag)) => {
                let mut tag = tag;
                let ns = names.open(tag.prefix.as_ref(), &mut tag.attrs, limits)?;
                let lang = tag.attrs.iter().find(|attr| attr.is_lang());
                let scope = names.into_scope(lang.map(|attr| attr.value.as_str().into()));
                return Ok(OpeningTag { ns, tag, scope });
            }
            Some(Event::Nothing) => {}
            _ => return Err(FrameError::NotWellFormed),
        }
    }
}

pub(crate) struct OpeningTag {
    pub(crate) ns: Arc<str>,
    pub(crate) tag: Tag,
    pub(crate) scope: Scope,
}

/// A complete opening tag.
pub(crate) struct Tag {
    pub(crate) prefix: Option<NcName>,
    pub(crate) local: NcName,
    pub(crate) attrs: Vec<RawAttr>,
    start: u32,
    name_end: u32,
    open_end: u32,
}

enum Event {
    Open(Tag),
    Text,
    Close,
    Nothing,
}

/// `rxml` with positions.
struct Reader<'a> {
    parser: RawParser,
    bytes: &'a [u8],
    rest: &'a [u8],
    tag: Option<Tag>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], limits: &Limits) -> Self {
        let token = limits.value_bytes.max(limits.name_bytes) as usize;
        // the parser reserves a whole token at once; text longer than that is split
        let max_token_length = token.min(bytes.len()).max(64);
        let options = Options {
            max_token_length,
            ..Options::default()
        };
        Self {
            parser: RawParser::with_options(options),
            bytes,
            rest: bytes,
            tag: None,
        }
    }

    fn position(&self) -> usize {
        self.bytes.len() - self.rest.len()
    }

    fn next(&mut self, at_eof: bool) -> Result<Option<Event>, FrameError> {
        let event = match self.parser.parse(&mut self.rest, at_eof) {
            Ok(event) => event,
            Err(EndOrError::NeedMoreData) => return Err(FrameError::NotWellFormed),
            Err(EndOrError::Error(error)) => return Err(error.into()),
        };
        let Some(event) = event else { return Ok(None) };
        let here = self.position();
        Ok(Some(match event {
            RawEvent::XmlDeclaration(..) => Event::Nothing,
            RawEvent::ElementHeadOpen(_, (prefix, local)) => {
                let name = prefix.as_ref().map_or(0, |prefix| prefix.len() + 1) + local.len();
                // one byte behind the name has been read
                let name_end = here.saturating_sub(1);
                let start = name_end.saturating_sub(name + 1);
                self.tag = Some(Tag {
                    prefix,
                    local,
                    attrs: Vec::new(),
                    start: offset(start),
                    name_end: offset(name_end),
                    open_end: 0,
                });
                Event::Nothing
            }
            RawEvent::Attribute(_, (prefix, local), value) => {
                if let Some(tag) = &mut self.tag {
                    let start = tag.attrs.last().map_or(tag.name_end, |attr| attr.span.1);
                    let span = (start, offset(here));
                    tag.attrs.push(RawAttr {
                        prefix,
                        local,
                        value,
                        span,
                        ns: None,
                    });
                }
                Event::Nothing
            }
            RawEvent::ElementHeadClose(_) => match self.tag.take() {
                Some(mut tag) => {
                    tag.open_end = offset(here);
                    Event::Open(tag)
                }
                None => Event::Nothing,
            },
            RawEvent::Text(..) => Event::Text,
            RawEvent::ElementFoot(_) => Event::Close,
        }))
    }
}

/// Builds the header while reading.
struct Walk<'a> {
    reader: Reader<'a>,
    rest: &'a [u8],
    names: Names<'a>,
    limits: &'a Limits,
    header: Option<Header>,
    /// Start of each open element.
    open: Vec<u32>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], scope: &'a Scope, limits: &'a Limits) -> Self {
        Self {
            reader: Reader::new(bytes, limits),
            rest: bytes,
            names: Names::new(scope),
            limits,
            header: None,
            open: Vec::new(),
        }
    }

    fn step(&mut self) -> Result<(), FrameError> {
        let event = self.reader.next(true)?;
        self.rest = self.reader.rest;
        match event {
            None => Err(FrameError::NotWellFormed),
            Some(Event::Nothing) => Ok(()),
            Some(Event::Open(tag)) => self.enter(tag),
            Some(Event::Text) => {
                self.text();
                Ok(())
            }
            Some(Event::Close) => {
                self.leave();
                Ok(())
            }
        }
    }

    fn enter(&mut self, mut tag: Tag) -> Result<(), FrameError> {
        let ns = self
            .names
            .open(tag.prefix.as_ref(), &mut tag.attrs, self.limits)?;
        self.open.push(tag.start);
        let Some(header) = &mut self.header else {
            let slash = self
                .reader
                .bytes
                .get((tag.open_end as usize).saturating_sub(2));
            let self_closing = slash == Some(&b'/');
            self.header = Some(root(tag, ns, self_closing));
            return Ok(());
        };
        let parent = match self.open.len() {
            2 => &mut header.children,
            depth => {
                let Some(child) = header.children.last_mut() else {
                    return Ok(());
                };
                if depth > 3 {
                    if depth == 4
                        && let Some(grandchild) = child.children.last_mut()
                    {
                        grandchild.has_elements = true;
                    }
                    return Ok(());
                }
                child.has_elements = true;
                &mut child.children
            }
        };
        parent.push(Child {
            ns,
            name: tag.local.as_str().into(),
            span: tag.start..tag.start,
            attrs: others(tag.attrs),
            has_text: false,
            has_elements: false,
            children: Vec::new(),
        });
        Ok(())
    }

    fn text(&mut self) {
        let Some(header) = &mut self.header else {
            return;
        };
        match self.open.len() {
            1 => header.has_text = true,
            depth @ (2 | 3) => {
                if let Some(child) = at_depth(header, depth) {
                    child.has_text = true;
                }
            }
            _ => {}
        }
    }

    fn leave(&mut self) {
        self.names.close();
        let end = offset(self.reader.position());
        let depth = self.open.len();
        self.open.pop();
        let Some(header) = &mut self.header else {
            return;
        };
        match depth {
            1 if !header.spans.self_closing => {
                // a closing tag holds no other `<`
                let before = &self.reader.bytes[..end as usize];
                header.spans.content_end = memchr::memrchr(b'<', before).map_or(end, offset);
            }
            2 | 3 => {
                if let Some(child) = at_depth(header, depth) {
                    child.span.end = end;
                }
            }
            _ => {}
        }
    }
}

fn at_depth(header: &mut Header, depth: usize) -> Option<&mut Child> {
    let child = header.children.last_mut()?;
    if depth == 2 {
        Some(child)
    } else {
        child.children.last_mut()
    }
}

fn others(attrs: Vec<RawAttr>) -> Vec<Attr> {
    let attrs = attrs.into_iter().filter(|attr| !attr.is_declaration());
    attrs.map(attr).collect()
}

fn attr(raw: RawAttr) -> Attr {
    Attr {
        ns: raw.ns,
        name: raw.local.as_str().into(),
        value: raw.value.into_boxed_str(),
    }
}

fn root(tag: Tag, ns: Arc<str>, self_closing: bool) -> Header {
    let mut header = Header {
        name: tag.local.as_str().into(),
        ns,
        to: None,
        from: None,
        id: None,
        type_: None,
        lang: None,
        attrs: Vec::new(),
        children: Vec::new(),
        has_text: false,
        declares_ns: false,
        spans: Spans {
            name_end: tag.name_end,
            open_end: tag.open_end,
            content_end: tag.open_end,
            self_closing,
            ..Spans::default()
        },
    };
    for raw in tag.attrs {
        if raw.is_declaration() {
            header.declares_ns |= raw.prefix.is_none();
            continue;
        }
        let known = match (&raw.prefix, raw.local.as_str()) {
            (None, "to") => Some((0, &mut header.to)),
            (None, "from") => Some((1, &mut header.from)),
            (None, "id") => Some((2, &mut header.id)),
            (None, "type") => Some((3, &mut header.type_)),
            _ if raw.is_lang() => Some((4, &mut header.lang)),
            _ => None,
        };
        match known {
            Some((at, value)) => {
                header.spans.known[at] = Some(raw.span);
                *value = Some(raw.value.into_boxed_str());
            }
            None => header.attrs.push(attr(raw)),
        }
    }
    header
}

/// Writes onto the root what only the stream's opening tag said (RFC 6120 §4.7.4, §4.8.5).
fn self_contained(bytes: &[u8], mut header: Header, scope: &Scope, inherited: &[usize]) -> Element {
    let mut extra = String::new();
    let mut lang_from = None;
    for &at in inherited {
        let (prefix, uri) = &scope.prefixes[at];
        push_attr(&mut extra, &format!("xmlns:{prefix}"), uri);
    }
    if let (None, Some(lang), "message" | "presence" | "iq") =
        (&header.lang, &scope.lang, &*header.name)
    {
        lang_from = Some(extra.len());
        push_attr(&mut extra, "xml:lang", lang);
        header.lang = Some(lang.clone());
    }
    if extra.is_empty() {
        return Element {
            bytes: Bytes::copy_from_slice(bytes),
            header,
        };
    }
    let name_end = header.spans.name_end as usize;
    let mut out = Vec::with_capacity(bytes.len() + extra.len());
    out.extend_from_slice(&bytes[..name_end]);
    out.extend_from_slice(extra.as_bytes());
    out.extend_from_slice(&bytes[name_end..]);
    header.shift(offset(extra.len()));
    let span = |from| (offset(name_end + from), offset(name_end + extra.len()));
    header.spans.known[4] = lang_from.map(span).or(header.spans.known[4]);
    Element {
        bytes: Bytes::from(out),
        header,
    }
}

impl Header {
    /// Moves every place behind the root's name.
    fn shift(&mut self, by: u32) {
        let spans = &mut self.spans;
        spans.open_end += by;
        spans.content_end += by;
        for span in spans
            .known
            .iter_mut()
            .flatten()
            .filter(|span| span.0 >= spans.name_end)
        {
            *span = (span.0 + by, span.1 + by);
        }
        for child in &mut self.children {
            child.span = child.span.start + by..child.span.end + by;
            for grandchild in &mut child.children {
                grandchild.span = grandchild.span.start + by..grandchild.span.end + by;
            }
        }
    }
}
