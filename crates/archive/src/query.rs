//! Pages of one mailbox as its owner may see it (XEP-0313): which entries belong to the asked set,
//! in which direction they are read, and where a page ends. Each look at the disk is a short read of
//! a narrow range; a record is opened only when its entry may belong to the page. Refuses to know
//! what policy says today: the gateway asks again.

use chancery_api::archive::{ArchivedMessage, QueryArchiveRequest, QueryArchiveResponse};
use chancery_evidence::{FIRST_NUMBER, KeyRing, Kind, Stored};
use chancery_store::StoreError;
use parking_lot::RwLock;

use crate::entry::{Entry, Peer};
use crate::item::{bare_len, domain_of};
use crate::store::LogReader;

/// Messages of one page, and ids of one query.
pub(crate) const PAGE_MESSAGES: usize = 250;
/// Bytes of messages after which a page ends.
const PAGE_BYTES: usize = 1024 * 1024;
/// Entries looked at for one page; then it ends, and the next one goes on from there.
const SCAN_ENTRIES: usize = 100_000;
/// Entries of one look.
const CHUNK_ENTRIES: usize = 1_024;
/// Entries of a set that are counted beside a page of it.
const COUNT_ENTRIES: usize = 512;
/// The same where nothing but the count was asked for.
const COUNT_ALONE_ENTRIES: usize = 200_000;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An id that belongs to no entry of the mailbox.
    #[error("no such archive id")]
    NotFound,
}

/// Numbers above the first, up to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    after: u64,
    end: u64,
}

impl Span {
    fn above(&mut self, number: u64) {
        self.after = self.after.max(number);
    }

    fn below(&mut self, number: u64) {
        self.end = self.end.min(number.saturating_sub(1));
    }

    fn has(self, number: u64) -> bool {
        number > self.after && number <= self.end
    }
}

/// Whose messages are asked for.
struct With {
    jid: String,
    /// Length of the bare JID.
    bare: usize,
    /// The peer as the owner's domain writes it, in what the owner sent.
    sent: Option<Peer>,
    /// The same as the peer's own domain does, in what the owner received.
    received: Option<Peer>,
}

impl With {
    fn read(request: &QueryArchiveRequest, ring: &KeyRing) -> Option<Self> {
        let jid = request.with.clone();
        let bare = bare_len(&jid)?;
        let name = jid.get(..bare)?;
        // Without keys of its own a domain has recorded nothing.
        let peer = |domain| ring.pseudonym(domain, name).ok().map(|p| Peer::of(&p));
        Some(Self {
            sent: peer(domain_of(&request.jid)),
            received: peer(domain_of(name)),
            bare,
            jid,
        })
    }

    fn is_full(&self) -> bool {
        self.jid.len() > self.bare
    }

    fn may_match(&self, entry: Entry) -> bool {
        let wanted = if entry.has(Entry::SENT) {
            self.sent
        } else {
            self.received
        };
        entry.peer().is_none_or(|peer| Some(peer) == wanted)
    }

    /// XEP-0313 §4.1.1: a bare JID stands for every resource.
    fn matches(&self, other_side: &str) -> bool {
        if self.is_full() {
            return other_side == self.jid;
        }
        bare_len(other_side).and_then(|at| other_side.get(..at)) == Some(self.jid.as_str())
    }
}

/// One query, on one mailbox.
struct Query<'a, L> {
    log: &'a L,
    ring: &'a RwLock<KeyRing>,
    shard: u32,
    mailbox: i64,
    owner: &'a str,
    floor: u64,
    with: Option<With>,
    /// Only these, rising.
    only: Option<Vec<u64>>,
}

/// The page that a request asks for.
pub(crate) fn page(
    log: &impl LogReader,
    ring: &RwLock<KeyRing>,
    shard: u32,
    request: &QueryArchiveRequest,
) -> Result<QueryArchiveResponse, QueryError> {
    let with = With::read(request, &ring.read());
    let Some(row) = log.row(&request.jid)? else {
        let bounds = [
            &request.after_id,
            &request.before_id,
            &request.page_after,
            &request.page_before,
        ];
        if !request.ids.is_empty() || bounds.iter().any(|id| !id.is_empty()) {
            return Err(QueryError::NotFound);
        }
        return Ok(QueryArchiveResponse {
            complete: true,
            count: Some(0),
            ..QueryArchiveResponse::default()
        });
    };
    let mut query = Query {
        log,
        ring,
        shard,
        mailbox: row.id,
        owner: &request.jid,
        floor: row.floor,
        with,
        only: None,
    };
    query.only = query.only(&request.ids)?;
    let set = query.set(request)?;
    let mut span = set;
    if !request.page_after.is_empty() {
        span.above(query.place(&request.page_after)?);
    }
    if !request.page_before.is_empty() {
        span.below(query.place(&request.page_before)?);
    }
    let whole = span == set && request.cursor == 0;
    match (request.cursor, request.backward) {
        (0, _) => {}
        (cursor, true) => span.below(cursor),
        (cursor, false) => span.above(cursor),
    }
    query.read(request, set, span, whole)
}

impl<L: LogReader> Query<'_, L> {
    /// The number behind an archive id, and its entry.
    fn find(&self, id: &str) -> Result<(u64, Entry), QueryError> {
        let number = {
            let ring = self.ring.read();
            // The id is of the recipient's domain: most often the owner's own.
            let own = ring.decode_archive_id(domain_of(self.owner), id);
            own.or_else(|| ring.domains().find_map(|d| ring.decode_archive_id(d, id)))
        };
        let number = match number {
            Some((shard, number)) if shard == self.shard && number > self.floor => number,
            _ => return Err(QueryError::NotFound),
        };
        match self.log.entry(self.mailbox, number)? {
            Some(entry) => Ok((number, entry)),
            None => Err(QueryError::NotFound),
        }
    }

    /// A place in the archive: also that of an entry which is not shown, because its stanza had
    /// the id.
    fn place(&self, id: &str) -> Result<u64, QueryError> {
        self.find(id).map(|(number, _)| number)
    }

    fn only(&self, ids: &[String]) -> Result<Option<Vec<u64>>, QueryError> {
        if ids.is_empty() {
            return Ok(None);
        }
        let mut numbers = Vec::with_capacity(ids.len());
        for id in ids {
            let (number, entry) = self.find(id)?;
            if entry.has(Entry::HIDDEN) {
                return Err(QueryError::NotFound);
            }
            numbers.push(number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Some(numbers))
    }

    /// The set that the filters leave, as far as it is a range.
    fn set(&self, request: &QueryArchiveRequest) -> Result<Span, QueryError> {
        let mut span = Span {
            after: self.floor,
            end: u64::MAX,
        };
        if !request.after_id.is_empty() {
            span.above(self.place(&request.after_id)?);
        }
        if !request.before_id.is_empty() {
            span.below(self.place(&request.before_id)?);
        }
        if let Some(start) = request.start_ms {
            span.above(self.first_at(start)?.saturating_sub(1));
        }
        if let Some(end) = request.end_ms {
            span.below(self.first_at(end.saturating_add(1))?);
        }
        Ok(span)
    }

    /// The number of the first record that is not older: their times never go back.
    fn first_at(&self, at_ms: i64) -> Result<u64, QueryError> {
        let (mut low, mut high) = (FIRST_NUMBER, self.log.last_record()? + 1);
        let last = high;
        while low < high {
            let middle = low + (high - low) / 2;
            // Records may be missing one day: then the next one speaks for them.
            let found = self.log.records(middle, last, 1)?;
            let older = found.first().is_some_and(|(number, bytes)| {
                Stored::parse(bytes).map_or_else(
                    |error| {
                        tracing::error!(number, %error, "a record cannot be read");
                        false
                    },
                    |stored| stored.header.time_ms < at_ms,
                )
            });
            if older {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Entries from where a reading stands, in its direction.
    fn next(
        &self,
        span: Span,
        backward: bool,
        limit: usize,
    ) -> Result<Vec<(u64, Entry)>, QueryError> {
        if span.after >= span.end {
            return Ok(Vec::new());
        }
        if let Some(only) = &self.only {
            let within = only.iter().filter(|number| span.has(**number));
            let mut numbers: Vec<u64> = within.copied().collect();
            if backward {
                numbers.reverse();
            }
            numbers.truncate(limit);
            let mut entries = Vec::with_capacity(numbers.len());
            for number in numbers {
                let entry = self.log.entry(self.mailbox, number)?;
                entries.extend(entry.map(|entry| (number, entry)));
            }
            return Ok(entries);
        }
        let Span { after, end } = span;
        Ok(if backward {
            self.log.entries_down(self.mailbox, after, end, limit)?
        } else {
            self.log.entries(self.mailbox, after, end, limit)?
        })
    }

    fn may_show(&self, entry: Entry) -> bool {
        let with = self.with.as_ref();
        !entry.has(Entry::HIDDEN) && with.is_none_or(|with| with.may_match(entry))
    }

    fn read(
        &self,
        request: &QueryArchiveRequest,
        set: Span,
        span: Span,
        whole: bool,
    ) -> Result<QueryArchiveResponse, QueryError> {
        let mut page = QueryArchiveResponse::default();
        let max = (request.max as usize).min(PAGE_MESSAGES);
        if max == 0 {
            let counted = self.count(set, None, COUNT_ALONE_ENTRIES)?;
            page.count = counted.map(|(count, _)| count);
            return Ok(page);
        }
        let numbers = self.fill(&mut page, request.backward, span, max)?;
        if page.complete && whole {
            page.count = Some(page.messages.len() as u64);
            page.index = (!page.messages.is_empty()).then_some(0);
        } else if request.cursor == 0
            && let Some((count, index)) = self.count(set, numbers.first(), COUNT_ENTRIES)?
        {
            page.count = Some(count);
            page.index = numbers.first().map(|_| index);
        }
        Ok(page)
    }

    /// Fills the page, and gives the numbers of its messages, rising.
    fn fill(
        &self,
        page: &mut QueryArchiveResponse,
        backward: bool,
        mut span: Span,
        max: usize,
    ) -> Result<Vec<u64>, QueryError> {
        let (mut numbers, mut bytes, mut scanned) = (Vec::with_capacity(max), 0, 0);
        // One more than the page has tells whether there is more.
        let mut limit = max + 1;
        page.complete = 'filled: loop {
            let chunk = self.next(span, backward, limit)?;
            let is_last = chunk.len() < limit;
            scanned += chunk.len();
            let mut opened = self.open_first(&chunk, max - numbers.len())?.into_iter();
            for (number, entry) in chunk {
                if self.may_show(entry) {
                    if numbers.len() == max || bytes >= PAGE_BYTES {
                        break 'filled false;
                    }
                    let message = match opened.next() {
                        Some(message) => message,
                        None => self.open(number, entry)?,
                    };
                    if let Some(message) = message {
                        bytes += message.payload.len();
                        page.messages.push(message);
                        numbers.push(number);
                    }
                }
                page.cursor = number;
                if backward {
                    span.below(number);
                } else {
                    span.above(number);
                }
            }
            if is_last {
                break true;
            }
            if scanned >= SCAN_ENTRIES {
                break false;
            }
            limit = CHUNK_ENTRIES;
        };
        if page.complete {
            page.cursor = 0;
        } else {
            let ends = numbers.last() == Some(&page.cursor);
            page.cursor_id = match page.messages.last().filter(|_| ends) {
                Some(last) => last.archive_id.clone(),
                None => self.id_of(page.cursor)?,
            };
        }
        if backward {
            page.messages.reverse();
            numbers.reverse();
        }
        Ok(numbers)
    }

    /// How many messages the set has, and how many of them come before `first`; `None` where that
    /// takes a look at more entries than `limit`, or at records. Where a peer is asked for, two who share their
    /// bits are counted as one: XEP-0059 lets a count be approximate.
    fn count(
        &self,
        set: Span,
        first: Option<&u64>,
        limit: usize,
    ) -> Result<Option<(u64, u64)>, QueryError> {
        // Rows do not tell one resource from another.
        if self.with.as_ref().is_some_and(With::is_full) {
            return Ok(None);
        }
        // Of a large archive every page would ask.
        let Span { after, end } = set;
        if self.only.is_none() && self.log.has_more_rows(self.mailbox, after, end, limit)? {
            return Ok(None);
        }
        let (mut count, mut index, mut scanned, mut span) = (0, 0, 0, set);
        loop {
            let chunk = self.next(span, false, CHUNK_ENTRIES.min(limit + 1))?;
            let is_last = chunk.len() < CHUNK_ENTRIES.min(limit + 1);
            scanned += chunk.len();
            if scanned > limit {
                return Ok(None);
            }
            for (number, entry) in chunk {
                span.above(number);
                if self.may_show(entry) {
                    count += 1;
                    index += u64::from(first.is_some_and(|first| number < *first));
                }
            }
            if is_last {
                return Ok(Some((count, index)));
            }
        }
    }

    /// Of the first `count` entries that may be shown the messages, as [`Query::open`] gives them, in one
    /// look at the log; fewer where their bytes fill a page.
    fn open_first(
        &self,
        chunk: &[(u64, Entry)],
        count: usize,
    ) -> Result<Vec<Option<ArchivedMessage>>, QueryError> {
        let wanted = chunk.iter().filter(|(_, entry)| self.may_show(*entry));
        let (numbers, entries): (Vec<u64>, Vec<Entry>) = wanted.take(count).copied().unzip();
        let mut messages = Vec::with_capacity(numbers.len());
        let (mut entries, mut bytes) = (entries.into_iter(), 0);
        self.log.each_record(&numbers, &mut |number, record| {
            let Some(entry) = entries.next() else {
                return false;
            };
            bytes += record.map_or(0, <[u8]>::len);
            messages.push(self.opened(number, entry, record));
            bytes < PAGE_BYTES
        })?;
        Ok(messages)
    }

    /// The message of an entry, if it belongs to the set.
    fn open(&self, number: u64, entry: Entry) -> Result<Option<ArchivedMessage>, QueryError> {
        let record = self.log.record(number)?;
        Ok(self.opened(number, entry, record.as_deref()))
    }

    /// The same with its record. One that cannot be opened is logged and passed over: it must not hide
    /// the others.
    fn opened(&self, number: u64, entry: Entry, record: Option<&[u8]>) -> Option<ArchivedMessage> {
        let Some(bytes) = record else {
            tracing::error!(number, "an entry without a record");
            return None;
        };
        let ring = self.ring.read();
        let opened = Stored::parse(bytes).and_then(|stored| {
            let opened = stored.open(&ring)?;
            Ok((stored, opened))
        });
        let (stored, content) = match opened {
            Ok((stored, opened)) => (stored, opened.content),
            Err(error) => {
                tracing::error!(number, %error, "a record does not open");
                return None;
            }
        };
        let Some(to) = content.to.into_iter().next() else {
            tracing::error!(number, "an entry whose record is no stanza");
            return None;
        };
        if stored.header.kind != Kind::Message {
            return None;
        }
        let sent = entry.has(Entry::SENT);
        let other_side = if sent { &to } else { &content.from };
        let with = self.with.as_ref();
        if with.is_some_and(|with| !with.matches(other_side)) {
            return None;
        }
        Some(ArchivedMessage {
            archive_id: archive_id(&ring, &to, &stored, number),
            from: content.from,
            to,
            payload: content.delivered.unwrap_or(content.payload).into(),
            stamp_ms: stored.header.time_ms,
            policy_version: stored.header.policy_version,
        })
    }

    /// The archive id of an entry, shown or not.
    fn id_of(&self, number: u64) -> Result<String, QueryError> {
        let Some(bytes) = self.log.record(number)? else {
            return Ok(String::new());
        };
        let ring = self.ring.read();
        let id = Stored::parse(&bytes).and_then(|stored| {
            let to = stored.open(&ring)?.content.to.into_iter().next();
            Ok(archive_id(&ring, &to.unwrap_or_default(), &stored, number))
        });
        Ok(id.unwrap_or_default())
    }
}

/// The id that the recipients were given: their domain's, or that of the sender where theirs is
/// not ours.
fn archive_id(ring: &KeyRing, to: &str, stored: &Stored<'_>, number: u64) -> String {
    let bare = bare_len(to).and_then(|at| to.get(..at)).unwrap_or(to);
    let shard = stored.header.shard;
    ring.archive_id(domain_of(bare), shard, number)
        .or_else(|_| ring.archive_id(&stored.header.domain, shard, number))
        .unwrap_or_default()
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
