//! The checker: reads an export and says, with nothing but a public key, whether it is what was
//! signed, and if not, where it first is not. It owns the verdict and its exit code; it refuses
//! to repair, to guess, and to need any secret.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use crate::export::{
    Chain, EXPORT_FORMAT, LINE_LIMIT_BYTES, Line, MANIFEST_START, ManifestLine, RECORD_START,
    SHARDS_LIMIT, line_digest, split_signature,
};
use crate::{FIRST_NUMBER, Hash, Manifest, PublicKey, genesis, seal};
use aws_lc_rs::digest::{Context, SHA256};

mod line;
mod report;

use line::{Unfit, check_record};
pub use report::{Finding, Progress, Report};

/// Lines between two calls of the progress callback.
const PROGRESS_LINES: u64 = 1_000;

/// Checks an export against the public key of its domain. Reads each byte once, holds one line.
pub fn verify(
    mut reader: impl BufRead,
    key: &PublicKey,
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let mut checker = Checker::new(key);
    let outcome = checker.read(&mut reader, progress);
    progress(checker.progress);
    let finding = match outcome {
        Ok(()) => checker.finding(),
        Err(error) => Finding::CannotDecide {
            reason: format!("reading failed: {error}"),
        },
    };
    Report {
        finding,
        records: checker.progress.records,
        withheld: checker.chains.values().map(|chain| chain.withheld).sum(),
        plaintexts: checker.plaintexts,
        shards: checker
            .chains
            .iter()
            .map(|(shard, chain)| chain.summary(*shard))
            .collect(),
        manifest: checker.manifest.map(|seen| seen.manifest),
    }
}

/// The first thing that is not as it was signed.
struct Problem {
    at: Option<(u32, u64)>,
    reason: String,
    /// Signed by the right key, but in a form that this program does not know.
    unknown_form: bool,
}

impl Problem {
    fn new(at: Option<(u32, u64)>, reason: &str) -> Self {
        Self {
            at,
            reason: reason.to_owned(),
            unknown_form: false,
        }
    }
}

struct SeenManifest {
    manifest: Manifest,
    /// SHA-256 and number of the lines above it, as read.
    above: Hash,
    lines: u64,
}

struct Checker<'k> {
    key: &'k PublicKey,
    chains: BTreeMap<u32, Chain>,
    current: Option<u32>,
    above: Context,
    lines: u64,
    progress: Progress,
    plaintexts: u64,
    /// Lines whose signature fits.
    authentic: u64,
    /// Lines that at least look like an export's.
    recognised: u64,
    problem: Option<Problem>,
    /// Where an authentic line below an unreadable start lets the export begin.
    begins: Option<(u32, u64)>,
    manifest: Option<SeenManifest>,
    cut: bool,
}

impl<'k> Checker<'k> {
    fn new(key: &'k PublicKey) -> Self {
        Self {
            key,
            chains: BTreeMap::new(),
            current: None,
            above: Context::new(&SHA256),
            lines: 0,
            progress: Progress::default(),
            plaintexts: 0,
            authentic: 0,
            recognised: 0,
            problem: None,
            begins: None,
            manifest: None,
            cut: false,
        }
    }

    fn read(
        &mut self,
        reader: &mut impl BufRead,
        progress: &mut dyn FnMut(Progress),
    ) -> io::Result<()> {
        let limit = u64::try_from(LINE_LIMIT_BYTES + 1).unwrap_or(u64::MAX);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            self.progress.bytes += read as u64;
            let Some(text) = line.strip_suffix(b"\n") else {
                if read > LINE_LIMIT_BYTES {
                    let problem = Problem::new(self.expected(), "a line is too long");
                    self.problem.get_or_insert(problem);
                } else {
                    self.cut = true;
                    self.recognised += u64::from(looks_cut(&line));
                }
                return Ok(());
            };
            let is_last = reader.fill_buf()?.is_empty();
            if let Err(problem) = self.line(text, is_last) {
                self.problem.get_or_insert(problem);
            }
            self.above.update(&line);
            self.lines += 1;
            if self.lines.is_multiple_of(PROGRESS_LINES) {
                progress(self.progress);
            }
            // One authentic line shows that the key is right: nothing below changes the finding.
            if self.problem.is_some() && self.authentic > 0 && !self.lacks_place() {
                return Ok(());
            }
        }
    }

    /// The record that the next line should be.
    fn expected(&self) -> Option<(u32, u64)> {
        let shard = self.current?;
        self.chains.get(&shard).map(|chain| (shard, chain.next))
    }

    fn line(&mut self, line: &[u8], is_last: bool) -> Result<(), Problem> {
        if self.manifest.is_some() {
            return Err(Problem::new(None, "there are lines after the manifest"));
        }
        let is_manifest = line.starts_with(MANIFEST_START);
        if !is_manifest && !line.starts_with(RECORD_START) {
            // The last line is the manifest, whatever it looks like now.
            let at = if is_last { None } else { self.expected() };
            return Err(Problem::new(at, "a line is not of this format"));
        }
        self.recognised += 1;
        let Some((body, signature)) = split_signature(line) else {
            let at = if is_manifest { None } else { self.expected() };
            return Err(Problem::new(at, "a line is not whole"));
        };
        if self.problem.is_some() && self.authentic > 0 && !is_manifest {
            // Only the manifest can still tell something.
            return Ok(());
        }
        let authentic = self.key.verifies(&line_digest(body), &signature);
        self.authentic += u64::from(authentic);
        let mut json = Vec::with_capacity(body.len() + 1);
        json.extend_from_slice(body);
        json.push(b'}');
        if is_manifest {
            return self.manifest_line(&json, authentic);
        }
        if self.problem.is_none() {
            return self.record_line(&json, authentic);
        }
        // Only looking for a line that is authentic, and for where the export begins.
        if authentic && let Ok(line) = serde_json::from_slice::<Line>(&json) {
            let first = line.number.saturating_sub(self.lines);
            self.begins.get_or_insert((line.shard, first));
        }
        Ok(())
    }

    /// The first line was unreadable, so that only what comes below tells which record it was.
    fn lacks_place(&self) -> bool {
        let unnamed = |problem: &Problem| problem.at.is_none();
        self.current.is_none() && self.problem.as_ref().is_some_and(unnamed)
    }

    /// Where the export begins: as the manifest says, or as a line below lets guess.
    fn beginning(&self) -> Option<(u32, u64)> {
        let mut shards = self.manifest.iter().flat_map(|seen| &seen.manifest.shards);
        let told = match self.begins {
            Some((shard, _)) => shards.find(|told| told.shard == shard),
            None => shards.next(),
        };
        told.map(|told| (told.shard, told.first)).or(self.begins)
    }

    fn manifest_line(&mut self, json: &[u8], authentic: bool) -> Result<(), Problem> {
        let parsed = serde_json::from_slice::<ManifestLine>(json).ok();
        let known = parsed.filter(|line| line.manifest.format == EXPORT_FORMAT);
        let Some(ManifestLine { manifest }) = known else {
            let reason = "the manifest is not of a format that this program knows";
            return Err(Problem {
                unknown_form: authentic,
                ..Problem::new(None, reason)
            });
        };
        let above = seal::finish(self.above.clone());
        self.manifest = Some(SeenManifest {
            manifest,
            above,
            lines: self.lines,
        });
        if !authentic {
            return Err(Problem::new(None, "the manifest's signature does not fit"));
        }
        Ok(())
    }

    fn record_line(&mut self, json: &[u8], authentic: bool) -> Result<(), Problem> {
        let expected = self.expected();
        let Ok(mut line) = serde_json::from_slice::<Line>(json) else {
            let problem = Problem::new(expected, "a line is not a record's");
            return Err(Problem {
                unknown_form: authentic,
                ..problem
            });
        };
        let claim = (line.shard, line.number);
        let content = check_record(&mut line);
        // Where a line is neither signed nor coherent, its own word on its place is worth
        // nothing: it stands where the next record of the shard should.
        let trusted = authentic || (content.is_ok() && !line.withheld);
        let place = match self.chains.get(&line.shard) {
            // What belongs before the first one is the first that is not where it should be.
            Some(chain) if authentic && line.number < chain.first => {
                return Err(Problem::new(Some(claim), "a record is out of place"));
            }
            Some(chain) => Some((line.shard, chain.next)),
            None if trusted => Some(claim),
            None => expected,
        };
        if place != Some(claim) {
            return Err(Problem::new(
                place,
                "a record is missing, out of place or changed",
            ));
        }
        let bad = |reason: &str| Problem::new(Some(claim), reason);
        let content = match content {
            Ok(content) => content,
            Err(Unfit::UnknownForm(reason)) => {
                return Err(Problem {
                    unknown_form: authentic,
                    ..bad(reason)
                });
            }
            Err(Unfit::Bad(reason)) => return Err(bad(reason)),
        };
        if !authentic {
            return Err(bad("the signature does not fit"));
        }
        if self.chains.len() >= SHARDS_LIMIT && !self.chains.contains_key(&line.shard) {
            return Err(bad("there are too many shards"));
        }
        let start = || Chain::start(line.number, content.previous);
        let chain = self.chains.entry(line.shard).or_insert_with(start);
        chain
            .take(line.number, &content.previous, content.hash)
            .map_err(bad)?;
        chain.withheld += u64::from(line.withheld);
        self.current = Some(line.shard);
        self.plaintexts += u64::from(content.opened);
        self.progress.records += 1;
        Ok(())
    }

    fn finding(&self) -> Finding {
        if let Some(problem) = &self.problem {
            return self.finding_of(problem);
        }
        let Some(seen) = &self.manifest else {
            if self.recognised == 0 && (self.lines > 0 || self.cut) {
                return cannot_decide("this is not an evidence export");
            }
            let (shard, missing_from) = self.expected().unzip();
            let reason = if self.cut {
                "the file ends within a line"
            } else {
                "no manifest"
            };
            return Finding::Incomplete {
                shard,
                missing_from,
                reason: reason.to_owned(),
            };
        };
        if self.cut {
            return tampered(None, "there are bytes after the manifest");
        }
        self.compare(seen)
    }

    fn finding_of(&self, problem: &Problem) -> Finding {
        if problem.unknown_form {
            return cannot_decide(&problem.reason);
        }
        let signer = self
            .manifest
            .as_ref()
            .map(|seen| seen.manifest.key_id.as_str());
        // A manifest that claims this key, and nothing that this key signed: all of it was made
        // anew by somebody who does not have the key.
        if self.authentic > 0 || signer == Some(self.key.id().as_str()) {
            let at = if self.lacks_place() {
                self.beginning()
            } else {
                problem.at
            };
            return tampered(at, &problem.reason);
        }
        match signer {
            Some(other) => Finding::CannotDecide {
                reason: format!("it is signed by key {other}, not by {}", self.key.id()),
            },
            None if self.recognised == 0 => cannot_decide("this is not an evidence export"),
            None => cannot_decide("nothing in it is signed by this key"),
        }
    }

    /// The manifest is authentic, the records are, each chain holds: do they belong together?
    fn compare(&self, seen: &SeenManifest) -> Finding {
        let manifest = &seen.manifest;
        let mut missing = None;
        for told in &manifest.shards {
            let Some(chain) = self.chains.get(&told.shard) else {
                missing.get_or_insert((told.shard, told.first));
                continue;
            };
            let found = chain.summary(told.shard);
            if found.first != told.first || found.first_previous != told.first_previous {
                return tampered(
                    Some((told.shard, told.first)),
                    "the first record is another",
                );
            }
            if told.first == FIRST_NUMBER
                && chain.first_previous != genesis(&manifest.deployment, told.shard)
            {
                let reason = "it does not begin at the deployment's genesis";
                return tampered(Some((told.shard, told.first)), reason);
            }
            if found.last < told.last {
                missing.get_or_insert((told.shard, chain.next));
            } else if found != *told {
                let at = (
                    told.shard,
                    told.last.saturating_add(u64::from(found.last > told.last)),
                );
                return tampered(Some(at), "the records are not those of the manifest");
            }
        }
        if let Some((shard, number)) = missing {
            return Finding::Incomplete {
                shard: Some(shard),
                missing_from: Some(number),
                reason: "the manifest counts more records".to_owned(),
            };
        }
        if self.chains.len() != manifest.shards.len() {
            return tampered(None, "there are shards that the manifest does not know");
        }
        if hex::encode(seen.above) != manifest.sha256 || seen.lines != manifest.lines {
            return tampered(None, "the lines are not those that the manifest signs");
        }
        Finding::Clean
    }
}

fn tampered(at: Option<(u32, u64)>, reason: &str) -> Finding {
    let (shard, first_bad) = at.unzip();
    Finding::Tampered {
        shard,
        first_bad,
        reason: reason.to_owned(),
    }
}

fn cannot_decide(reason: &str) -> Finding {
    Finding::CannotDecide {
        reason: reason.to_owned(),
    }
}

/// Whether an unfinished line may be the beginning of one of ours.
fn looks_cut(line: &[u8]) -> bool {
    [RECORD_START, MANIFEST_START]
        .iter()
        .any(|start| line.starts_with(start) || start.starts_with(line))
}

#[cfg(test)]
mod tests;
