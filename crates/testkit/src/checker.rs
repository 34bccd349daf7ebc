//! The independent checker: what clients saw, against the exported log. Invariants I1 to I7.
//!
//! Reads the export as anybody could, with JSON and XML readers; shares no code with the services
//! but the decoding of archive ids.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    let mut records = Vec::new();
    for line in std::io::BufReader::new(std::fs::File::open(file)?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if line.get("manifest").is_some() {
            break;
        }
        let (header, plain) = (&line["header"], &line["plaintext"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        records.push(Record {
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
        });
    }
    Ok(records)
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

/// A delivery, read.
struct Seen<'a> {
    reader: &'a str,
    stanza: Element,
    number: u64,
    time_ms: i64,
}

/// Checks a run. `keys` is the archive's key file. Everything that does not hold is named.
pub fn check(journal: &Journal, records: &[Record], keys: &Path, domain: &str) -> Result<()> {
    let ring = KeyRing::from_json(&std::fs::read_to_string(keys)?)
        .map_err(|e| anyhow::anyhow!("key file: {e}"))?;
    let mut problems = Vec::new();
    let by_number: HashMap<u64, &Record> = records.iter().map(|r| (r.number, r)).collect();
    let mut seen = Vec::new();
    for delivery in &journal.delivered {
        match look(delivery, &ring, domain) {
            Ok(found) => seen.push(found),
            Err(error) => problems.push(format!("I1 {error:#}: {}", delivery.stanza)),
        }
    }
    no_dark_delivery(&seen, &by_number, &mut problems);
    no_invention(journal, records, &mut problems);
    no_silent_loss(journal, &seen, &mut problems);
    order(journal, records, &seen, &mut problems);
    complete(records, &mut problems);
    if problems.is_empty() {
        return Ok(());
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
    Ok(Seen {
        reader: &delivery.reader,
        stanza,
        number,
        time_ms: delivery.time_ms,
    })
}

/// I1, I2 and I6: a delivery has a record, written before, with the same content and a permit.
fn no_dark_delivery(seen: &[Seen], by_number: &HashMap<u64, &Record>, problems: &mut Vec<String>) {
    for delivery in seen {
        let Some(record) = by_number.get(&delivery.number) else {
            problems.push(format!("I1 record {} does not exist", delivery.number));
            continue;
        };
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
        let payload = record.delivered.as_ref().unwrap_or(&record.payload);
        match parse(payload) {
            Ok(kept) if same_content(&kept, &delivery.stanza) => {}
            Ok(_) => problems.push(format!(
                "I2 record {} differs: kept {payload}, delivered {}",
                record.number,
                String::from(&delivery.stanza)
            )),
            Err(error) => problems.push(format!("I2 record {}: {error:#}", record.number)),
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

/// I3: every message record is one sent message, and no message has two records.
fn no_invention(journal: &Journal, records: &[Record], problems: &mut Vec<String>) {
    let sent: HashMap<&str, &Sent> = journal.sent.iter().map(|s| (s.id.as_str(), s)).collect();
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    for record in records
        .iter()
        .filter(|r| r.kind == "message" && !r.id.is_empty())
    {
        match sent.get(record.id.as_str()) {
            None => problems.push(format!("I3 record {} was never sent", record.number)),
            Some(sent) if sent.from != record.from => {
                problems.push(format!("I3 record {} names another sender", record.number));
            }
            Some(_) => {}
        }
        if let Some(first) = found.insert(&record.id, record.number) {
            problems.push(format!(
                "I3 records {first} and {} are twins",
                record.number
            ));
        }
    }
}

/// I4: what was acknowledged ended somewhere; nothing ended both in a delivery and an error.
fn no_silent_loss(journal: &Journal, seen: &[Seen], problems: &mut Vec<String>) {
    let delivered: BTreeSet<&str> = seen.iter().filter_map(|s| s.stanza.attr("id")).collect();
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
fn is_decided_again(delivery: &Seen, seen: &[Seen]) -> bool {
    let bare = |reader: &str| reader.split('/').next().map(str::to_owned);
    delivery.stanza.has_child("delay", "urn:xmpp:delay")
        && seen.iter().any(|other| {
            other.number == delivery.number
                && other.reader != delivery.reader
                && bare(other.reader) == bare(delivery.reader)
                && other.time_ms <= delivery.time_ms
        })
}

/// I5: per sender and reader the first deliveries stand in the order of records, and of sending.
fn order(journal: &Journal, records: &[Record], seen: &[Seen], problems: &mut Vec<String>) {
    let mut last: HashMap<(&str, &str), u64> = HashMap::new();
    let mut read: BTreeSet<(&str, u64)> = BTreeSet::new();
    for delivery in seen {
        if !read.insert((delivery.reader, delivery.number)) {
            continue;
        }
        let from = delivery.stanza.attr("from").unwrap_or_default();
        let before = last.entry((from, delivery.reader)).or_default();
        if *before > delivery.number && !is_decided_again(delivery, seen) {
            problems.push(format!(
                "I5 {} read {} after {before}: {}",
                delivery.reader,
                delivery.number,
                String::from(&delivery.stanza)
            ));
        }
        *before = delivery.number.max(*before);
    }
    let place: HashMap<&str, u64> = records
        .iter()
        .filter(|r| r.kind == "message")
        .map(|r| (r.id.as_str(), r.number))
        .collect();
    let mut last: HashMap<(&str, &str), u64> = HashMap::new();
    for sent in &journal.sent {
        let Some(number) = place.get(sent.id.as_str()) else {
            continue;
        };
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

/// I7: numbers without gaps; each heartbeat has counted what each gateway had recorded since the one
/// before; and no gateway has told of more than is there. (It may have died before it told of all.)
fn complete(records: &[Record], problems: &mut Vec<String>) {
    let (mut since, mut there, mut told) = (Counts::new(), 0, 0);
    for record in records {
        if ["message", "presence", "iq"].contains(&record.kind.as_str()) {
            let verdict = if record.verdict == "allow" {
                "allow"
            } else {
                "deny"
            };
            *since.entry((record.gateway.clone(), verdict)).or_default() += 1;
            there += 1;
        } else if record.kind == "heartbeat" {
            let counted = beaten(&record.detail);
            if counted != since {
                let number = record.number;
                problems.push(format!(
                    "I7 heartbeat {number}: {counted:?}, there are {since:?}"
                ));
            }
            since.clear();
        } else if record.detail.contains("gateway.permits") {
            let said: Value = serde_json::from_str(&record.payload).unwrap_or_default();
            told += said["recorded"].as_u64().unwrap_or(u64::MAX / 2);
        }
    }
    if told > there {
        problems.push(format!(
            "I7 gateways told of {told} records, {there} are there"
        ));
    }
    for pair in records.windows(2) {
        if pair[1].number != pair[0].number + 1 {
            problems.push(format!("I7 {} follows {}", pair[1].number, pair[0].number));
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
mod tests {
    use super::*;

    fn record(number: u64, id: &str, from: &str) -> Record {
        Record {
            number,
            kind: "message".into(),
            verdict: "allow".into(),
            outcome: "logged".into(),
            policy_version: 1,
            time_ms: 5,
            gateway: "gw".into(),
            detail: String::new(),
            from: from.into(),
            to: vec!["b@x".into()],
            id: id.into(),
            payload: format!(
                "<message xmlns='jabber:client' id='{id}' to='b@x'><body>1</body></message>"
            ),
            delivered: None,
        }
    }

    fn keys(dir: &tempfile::TempDir) -> (std::path::PathBuf, KeyRing) {
        let mut n = 0u8;
        let mut random = |out: &mut [u8]| {
            for byte in out {
                n = n.wrapping_add(41);
                *byte = n;
            }
        };
        let mut ring = KeyRing::generate(&mut random);
        ring.add_domain("x", &mut random).unwrap();
        let path = dir.path().join("keys.json");
        std::fs::write(&path, ring.to_json().unwrap()).unwrap();
        (path, ring)
    }

    fn journal(ring: &KeyRing, number: u64, id: &str, body: &str) -> Journal {
        let archive_id = ring.archive_id("x", 0, number).unwrap();
        Journal {
            sent: vec![Sent {
                from: "a@x/1".into(),
                to: "b@x".into(),
                id: id.into(),
            }],
            acknowledged: [id.to_owned()].into(),
            delivered: vec![Delivered {
                reader: "b@x/1".into(),
                stanza: format!(
                    "<message from='a@x/1' id='{id}' to='b@x'><body>{body}</body>\
                     <stanza-id xmlns='urn:xmpp:sid:0' by='b@x' id='{archive_id}'/></message>"
                ),
                time_ms: 9,
            }],
            errors: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_decided_again_may_come_late_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ring) = keys(&dir);
        let mut two = journal(&ring, 2, "m2", "1");
        let mut late = journal(&ring, 1, "m1", "1");
        two.sent.insert(0, late.sent.remove(0));
        two.delivered.push(late.delivered.remove(0));
        let records = [record(1, "m1", "a@x/1"), record(2, "m2", "a@x/1")];
        let wrong = |journal: &Journal| {
            let checked = check(journal, &records, &path, "x");
            checked.is_err_and(|error| format!("{error:#}").contains("I5"))
        };
        assert!(wrong(&two));
        let delay = "<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></message>";
        let stanza = &mut two.delivered[1].stanza;
        *stanza = stanza.replace("</message>", delay);
        assert!(wrong(&two), "nobody else had it");
        let mut other = two.delivered[1].clone();
        other.reader = "b@x/2".into();
        two.delivered.insert(0, other);
        assert!(!wrong(&two));
    }

    #[test]
    fn a_good_run_passes_and_each_fault_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ring) = keys(&dir);
        let good = journal(&ring, 1, "m1", "1");
        let records = [record(1, "m1", "a@x/1")];
        check(&good, &records, &path, "x").unwrap();

        let fails = |journal: &Journal, records: &[Record], name: &str| {
            let error = format!("{:#}", check(journal, records, &path, "x").unwrap_err());
            assert!(error.contains(name), "{error}");
        };
        fails(&journal(&ring, 2, "m1", "1"), &records, "I1");
        fails(&journal(&ring, 1, "m1", "2"), &records, "I2");
        fails(
            &good,
            &[record(1, "m1", "a@x/1"), record(2, "m1", "a@x/1")],
            "I3",
        );
        let mut lost = good.clone();
        lost.delivered.clear();
        fails(&lost, &records, "I4");
        let mut both = good.clone();
        both.errors
            .insert("m1".into(), "resource-constraint".into());
        fails(&both, &records, "I4");
        let mut denied = record(1, "m1", "a@x/1");
        denied.verdict = "deny".into();
        fails(&good, &[denied], "I6");
        let mut gap = vec![record(1, "m1", "a@x/1"), record(3, "", "a@x/1")];
        gap[1].kind = "heartbeat".into();
        fails(&good, &gap, "I7");
        let mut short = vec![record(1, "m1", "a@x/1"), record(2, "", "a@x/1")];
        short[1].kind = "heartbeat".into();
        short[1].detail = r#"{"gateways":{"gw":{"allow":2,"deny":0}}}"#.into();
        fails(&good, &short, "I7 heartbeat");
        let mut told = vec![record(1, "m1", "a@x/1"), record(2, "", "a@x/1")];
        told[1].kind = "act".into();
        told[1].detail = "gateway.permits".into();
        told[1].payload = r#"{"recorded":2}"#.into();
        fails(&good, &told, "I7 gateways");
    }
}
