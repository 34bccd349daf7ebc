//! The independent checker: what clients saw, against the exported log. Invariants I1 to I7.
//!
//! Reads the export as anybody could, with JSON and XML readers; shares no code with the services
//! but the decoding of archive ids.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, Result, bail};
use chancery_evidence::KeyRing;
use minidom::Element;
use serde_json::Value;

use crate::matching::parse;

/// One record of an export, decrypted.
#[derive(Debug, Clone)]
pub struct Record {
    /// Number in its shard.
    pub number: u64,
    /// Kind, as the export names it.
    pub kind: String,
    /// Verdict, as the export names it.
    pub verdict: String,
    /// Outcome, as the export names it.
    pub outcome: String,
    /// Policy version of the verdict.
    pub policy_version: u64,
    /// Server time.
    pub time_ms: i64,
    /// Gateway that took the stanza.
    pub gateway: String,
    /// Readable JSON of acts and heartbeats.
    pub detail: String,
    /// True sender.
    pub from: String,
    /// Addressees.
    pub to: Vec<String>,
    /// The stanza's id.
    pub id: String,
    /// The payload as received.
    pub payload: String,
    /// The payload as delivered, when different.
    pub delivered: Option<String>,
}

/// Reads an export made with `--decrypt`.
pub fn read(file: &Path) -> Result<Vec<Record>> {
    stream(file)?.collect()
}

/// The same, record by record: a long one is not held.
pub fn stream(file: &Path) -> Result<impl Iterator<Item = Result<Record>> + use<>> {
    let mut lines = std::io::BufReader::new(std::fs::File::open(file)?).lines();
    Ok(std::iter::from_fn(move || {
        let line = match lines.next()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error.into())),
        };
        record(&line).transpose()
    }))
}

/// A line's record; `None` for the manifest, which ends the export.
fn record(line: &str) -> Result<Option<Record>> {
    let line: Value = serde_json::from_str(line)?;
    if line.get("manifest").is_some() {
        return Ok(None);
    }
    let (header, plain) = (&line["header"], &line["plaintext"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Some(Record {
        number: line["number"].as_u64().context("number")?,
        kind: text(&header["kind"]),
        verdict: text(&header["verdict"]),
        outcome: text(&header["outcome"]),
        policy_version: header["policy_version"].as_u64().unwrap_or_default(),
        time_ms: header["time_ms"].as_i64().unwrap_or_default(),
        gateway: text(&header["gateway"]),
        detail: text(&header["detail"]),
        from: text(&plain["from"]),
        to: plain["to"]
            .as_array()
            .map(|all| all.iter().map(text).collect())
            .unwrap_or_default(),
        id: text(&plain["id"]),
        payload: text(&plain["payload"]),
        delivered: plain["delivered"].as_str().map(str::to_owned),
    }))
}

/// A message that a probe wrote to its socket. Its id is unique in the whole run.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Full JID of the sender.
    pub from: String,
    /// As addressed.
    pub to: String,
    /// Unique id.
    pub id: String,
}

/// A message that a probe read from its socket.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Full JID of the reader.
    pub reader: String,
    /// The stanza as read.
    pub stanza: String,
    /// Wall clock when it was read.
    pub time_ms: i64,
}

/// What the probes of one run wrote down, each list in the order of its events per probe.
#[derive(Debug, Default, Clone)]
pub struct Journal {
    /// S.
    pub sent: Vec<Sent>,
    /// K: ids that the server acknowledged (XEP-0198).
    pub acknowledged: BTreeSet<String>,
    /// D.
    pub delivered: Vec<Delivered>,
    /// E: ids that came back as errors, with the condition.
    pub errors: BTreeMap<String, String>,
}

impl Journal {
    /// Adds another probe's journal.
    pub fn absorb(&mut self, other: Self) {
        self.sent.extend(other.sent);
        self.acknowledged.extend(other.acknowledged);
        self.delivered.extend(other.delivered);
        self.errors.extend(other.errors);
    }
}

/// A delivery, read. The stanza is read again beside its record: a million of them are not held as
/// trees.
struct Seen<'a> {
    reader: &'a str,
    stanza: &'a str,
    from: String,
    id: String,
    /// It says that it is late.
    late: bool,
    number: u64,
    time_ms: i64,
}

/// Checks a run whose records are held.
pub fn check(journal: &Journal, records: &[Record], keys: &Path, domain: &str) -> Result<()> {
    let records = records.iter().map(|record| Ok(record.clone()));
    check_stream(journal, records, keys, domain).map(drop)
}

/// Checks a run, with its records in order. `keys` is the archive's key file. Everything that does not
/// hold is named. Gives how many records there are.
pub fn check_stream(
    journal: &Journal,
    records: impl Iterator<Item = Result<Record>>,
    keys: &Path,
    domain: &str,
) -> Result<u64> {
    let ring = KeyRing::from_json(&std::fs::read_to_string(keys)?)
        .map_err(|e| anyhow::anyhow!("key file: {e}"))?;
    let mut problems = Vec::new();
    let mut seen = Vec::new();
    for delivery in &journal.delivered {
        match look(delivery, &ring, domain) {
            Ok(found) => seen.push(found),
            Err(error) => problems.push(format!("I1 {error:#}: {}", delivery.stanza)),
        }
    }
    let mut by_number: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, delivery) in seen.iter().enumerate() {
        by_number.entry(delivery.number).or_default().push(at);
    }
    let mut kept = Kept::of(journal);
    let mut numbers = Complete::default();
    let mut count = 0;
    let mut unrecorded: BTreeSet<u64> = by_number.keys().copied().collect();
    for record in records {
        let record = record?;
        count += 1;
        if unrecorded.remove(&record.number) {
            let of = by_number.get(&record.number).into_iter().flatten();
            let of: Vec<&Seen> = of.filter_map(|at| seen.get(*at)).collect();
            no_dark_delivery(&of, &record, &mut problems);
        }
        kept.no_invention(journal, &record, &mut problems);
        numbers.next(&record, &mut problems);
    }
    for number in unrecorded {
        problems.push(format!("I1 record {number} does not exist"));
    }
    no_silent_loss(journal, &seen, &mut problems);
    order_of_reading(&seen, &by_number, &mut problems);
    kept.order_of_sending(journal, &mut problems);
    numbers.end(&mut problems);
    if problems.is_empty() {
        return Ok(count);
    }
    let shown: Vec<&str> = problems.iter().take(20).map(String::as_str).collect();
    bail!(
        "{} invariants broken:\n{}",
        problems.len(),
        shown.join("\n")
    )
}

fn look<'a>(delivery: &'a Delivered, ring: &KeyRing, domain: &str) -> Result<Seen<'a>> {
    let stanza = parse(&delivery.stanza)?;
    let bare = delivery.reader.split('/').next().unwrap_or_default();
    let ids: Vec<&str> = stanza
        .children()
        .filter(|c| c.is("stanza-id", "urn:xmpp:sid:0") && c.attr("by") == Some(bare))
        .filter_map(|c| c.attr("id"))
        .collect();
    let [id] = ids[..] else {
        bail!("{} stanza-ids by the reader's server", ids.len())
    };
    let (_, number) = ring
        .decode_archive_id(domain, id)
        .context("stanza-id is not ours")?;
    let text = |name: &str| stanza.attr(name).unwrap_or_default().to_owned();
    Ok(Seen {
        reader: &delivery.reader,
        stanza: &delivery.stanza,
        from: text("from"),
        id: text("id"),
        late: stanza.has_child("delay", "urn:xmpp:delay"),
        number,
        time_ms: delivery.time_ms,
    })
}

/// I1, I2 and I6: a delivery has a record, written before, with the same content and a permit.
fn no_dark_delivery(seen: &[&Seen], record: &Record, problems: &mut Vec<String>) {
    let payload = record.delivered.as_ref().unwrap_or(&record.payload);
    let kept = match parse(payload) {
        Ok(kept) => kept,
        Err(error) => {
            problems.push(format!("I2 record {}: {error:#}", record.number));
            return;
        }
    };
    for delivery in seen {
        if record.time_ms > delivery.time_ms {
            problems.push(format!(
                "I1 record {} is younger than its delivery",
                record.number
            ));
        }
        if record.verdict != "allow" || record.policy_version == 0 {
            problems.push(format!(
                "I6 record {} was delivered without a permit",
                record.number
            ));
        }
        if !parse(delivery.stanza).is_ok_and(|stanza| same_content(&kept, &stanza)) {
            problems.push(format!(
                "I2 record {} differs: kept {payload}, delivered {}",
                record.number, delivery.stanza
            ));
        }
    }
}

/// What the server adds to a delivery, by this published list.
const ADDED: &[(&str, &str)] = &[("stanza-id", "urn:xmpp:sid:0"), ("delay", "urn:xmpp:delay")];

fn same_content(kept: &Element, delivered: &Element) -> bool {
    let content = |element: &Element| {
        let children: Vec<String> = element
            .children()
            .filter(|c| !ADDED.iter().any(|(name, ns)| c.is(*name, *ns)))
            .map(String::from)
            .collect();
        let attribute = |name: &str| element.attr(name).map(str::to_owned);
        (
            children,
            attribute("type"),
            attribute("id"),
            attribute("to"),
        )
    };
    content(kept) == content(delivered)
}

/// Where each sent message was recorded.
struct Kept<'a> {
    /// Places in the journal, by id.
    sent: HashMap<&'a str, usize>,
    /// By place; 0 for none.
    numbers: Vec<u64>,
}

impl<'a> Kept<'a> {
    fn of(journal: &'a Journal) -> Self {
        let sent = journal.sent.iter().enumerate();
        Self {
            sent: sent.map(|(at, sent)| (sent.id.as_str(), at)).collect(),
            numbers: vec![0; journal.sent.len()],
        }
    }

    /// I3: every message record is one sent message, and no message has two records.
    fn no_invention(&mut self, journal: &Journal, record: &Record, problems: &mut Vec<String>) {
        if record.kind != "message" || record.id.is_empty() {
            return;
        }
        let at = self.sent.get(record.id.as_str()).copied();
        let Some((at, sent)) = at.and_then(|at| Some((at, journal.sent.get(at)?))) else {
            problems.push(format!("I3 record {} was never sent", record.number));
            return;
        };
        if sent.from != record.from {
            problems.push(format!("I3 record {} names another sender", record.number));
        }
        let Some(number) = self.numbers.get_mut(at) else {
            return;
        };
        let first = std::mem::replace(number, record.number);
        if first != 0 {
            problems.push(format!(
                "I3 records {first} and {} are twins",
                record.number
            ));
        }
    }

    /// I5: per sender and addressee, records stand in the order of sending.
    fn order_of_sending(&self, journal: &Journal, problems: &mut Vec<String>) {
        let mut last: HashMap<(&str, &str), u64> = HashMap::new();
        for (sent, number) in journal.sent.iter().zip(&self.numbers) {
            if *number == 0 {
                continue;
            }
            let before = last.entry((&sent.from, &sent.to)).or_default();
            if *before > *number {
                problems.push(format!(
                    "I5 {} was recorded before what was sent earlier",
                    sent.id
                ));
            }
            *before = *number;
        }
    }
}

/// I4: what was acknowledged ended somewhere; nothing ended both in a delivery and an error.
fn no_silent_loss(journal: &Journal, seen: &[Seen], problems: &mut Vec<String>) {
    let delivered: HashSet<&str> = seen.iter().map(|s| s.id.as_str()).collect();
    for id in &journal.acknowledged {
        if !delivered.contains(id.as_str()) && !journal.errors.contains_key(id) {
            problems.push(format!("I4 {id} was acknowledged and is lost"));
        }
    }
    for id in journal.errors.keys() {
        if delivered.contains(id.as_str()) {
            problems.push(format!("I4 {id} was delivered and came back as an error"));
        }
    }
}

/// Whether another session of the account had it before, and this one got it, late and saying so, when
/// that one ended without acknowledging it: no order is asked of what is decided again.
fn is_decided_again(delivery: &Seen, seen: &[Seen], of_it: &[usize]) -> bool {
    let bare = |reader: &str| reader.split('/').next().map(str::to_owned);
    let others = of_it.iter().filter_map(|at| seen.get(*at));
    delivery.late
        && others.into_iter().any(|other| {
            other.reader != delivery.reader
                && bare(other.reader) == bare(delivery.reader)
                && other.time_ms <= delivery.time_ms
        })
}

/// I5: per sender and reader the first deliveries stand in the order of records.
fn order_of_reading(
    seen: &[Seen],
    by_number: &HashMap<u64, Vec<usize>>,
    problems: &mut Vec<String>,
) {
    let mut last: HashMap<(&str, &str), u64> = HashMap::new();
    let mut read: HashSet<(&str, u64)> = HashSet::new();
    for delivery in seen {
        if !read.insert((delivery.reader, delivery.number)) {
            continue;
        }
        let before = last.entry((&delivery.from, delivery.reader)).or_default();
        let of_it = by_number
            .get(&delivery.number)
            .map_or(&[][..], Vec::as_slice);
        if *before > delivery.number && !is_decided_again(delivery, seen, of_it) {
            problems.push(format!(
                "I5 {} read {} after {before}: {}",
                delivery.reader, delivery.number, delivery.stanza
            ));
        }
        *before = delivery.number.max(*before);
    }
}

/// I7: numbers without gaps; each heartbeat has counted what each gateway had recorded since the one
/// before; and no gateway has told of more than is there. (It may have died before it told of all.)
#[derive(Default)]
struct Complete {
    since: Counts,
    there: u64,
    told: u64,
    last: Option<u64>,
}

impl Complete {
    fn next(&mut self, record: &Record, problems: &mut Vec<String>) {
        if ["message", "presence", "iq"].contains(&record.kind.as_str()) {
            let verdict = if record.verdict == "allow" {
                "allow"
            } else {
                "deny"
            };
            let count = self.since.entry((record.gateway.clone(), verdict));
            *count.or_default() += 1;
            self.there += 1;
        } else if record.kind == "heartbeat" {
            let (counted, since) = (beaten(&record.detail), &self.since);
            if counted != *since {
                let number = record.number;
                problems.push(format!(
                    "I7 heartbeat {number}: {counted:?}, there are {since:?}"
                ));
            }
            self.since.clear();
        } else if record.detail.contains("gateway.permits") {
            let said: Value = serde_json::from_str(&record.payload).unwrap_or_default();
            self.told += said["recorded"].as_u64().unwrap_or(u64::MAX / 2);
        }
        if let Some(last) = self.last.replace(record.number)
            && record.number != last + 1
        {
            problems.push(format!("I7 {} follows {last}", record.number));
        }
    }

    fn end(&self, problems: &mut Vec<String>) {
        let (told, there) = (self.told, self.there);
        if told > there {
            problems.push(format!(
                "I7 gateways told of {told} records, {there} are there"
            ));
        }
    }
}

/// Records by gateway and verdict.
type Counts = BTreeMap<(String, &'static str), u64>;

/// What a heartbeat says.
fn beaten(detail: &str) -> Counts {
    let said: Value = serde_json::from_str(detail).unwrap_or_default();
    let gateways = said["gateways"].as_object().into_iter().flatten();
    gateways
        .flat_map(|(gateway, counts)| {
            ["allow", "deny"].map(|v| ((gateway.clone(), v), counts[v].as_u64().unwrap_or(0)))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests;
