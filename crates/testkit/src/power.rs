//! Power cuts: from the trace of a [`crate::disk::Disk`], what may be on it after the power fails at any
//! moment; and which of a database's states may be found there.
//!
//! What was synced stays. Of what was not, each write may be lost, whole, or torn at a sector, in any order; so
//! may a file's size, and, in order, what was created and deleted. Refuses to know any table.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Result, bail};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::disk::{Image, Op, write};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below a limit, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
    }
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing of it is there.
    All,
    /// Everything is: the process died, the power did not.
    Nothing,
    /// Each write is there, is not, or is in part.
    Torn,
    /// The first ones are there, the next in part.
    Tail,
    /// The first ones are not there, the later ones are.
    Front,
    /// A disk that lies: some of what was synced is not there either. Nothing can survive that; it
    /// shows that the test sees it.
    Lying,
}

/// Every honest way.
pub const LOSSES: [Loss; 5] = [
    Loss::All,
    Loss::Nothing,
    Loss::Torn,
    Loss::Tail,
    Loss::Front,
];

/// A file as it is in the cache and on the platter.
#[derive(Clone, Default)]
struct Platter<'a> {
    synced: Vec<u8>,
    /// As of the first sync: what a lying disk has.
    first: Option<Vec<u8>>,
    pending: Vec<&'a Op>,
    /// Its directory is synced with it.
    journal: bool,
}

/// A disk as the power may leave it, after so much of a trace.
#[derive(Default)]
pub struct Cut<'a> {
    files: Vec<Platter<'a>>,
    names: BTreeMap<String, usize>,
    pending: Vec<&'a Op>,
}

impl<'a> Cut<'a> {
    /// A disk that began with this image.
    pub fn new(image: &Image) -> Self {
        let mut cut = Self::default();
        for (name, bytes) in image {
            cut.names.insert(name.clone(), cut.files.len());
            cut.files.push(Platter {
                synced: bytes.clone(),
                ..Platter::default()
            });
        }
        cut
    }

    /// The next of the trace.
    pub fn step(&mut self, op: &'a Op) {
        match op {
            Op::Create { file, journal, .. } => {
                self.files.resize_with(file + 1, Platter::default);
                if let Some(made) = self.files.get_mut(*file) {
                    made.journal = *journal;
                }
                self.pending.push(op);
            }
            Op::Delete { .. } => self.pending.push(op),
            Op::Write { file, .. } | Op::Truncate { file, .. } => {
                if let Some(file) = self.files.get_mut(*file) {
                    file.pending.push(op);
                }
            }
            Op::Sync { file } => {
                let Some(file) = self.files.get_mut(*file) else {
                    return;
                };
                for op in file.pending.drain(..) {
                    apply(&mut file.synced, op);
                }
                file.first.get_or_insert_with(|| file.synced.clone());
                if std::mem::take(&mut file.journal) {
                    for op in self.pending.drain(..) {
                        rename(&mut self.names, op);
                    }
                }
            }
        }
    }

    /// What is there when the power fails now.
    pub fn image(&self, loss: Loss, dice: &mut Dice) -> Image {
        let mut names = self.names.clone();
        let kept = match loss {
            Loss::All | Loss::Lying => 0,
            Loss::Nothing => self.pending.len(),
            Loss::Torn | Loss::Tail | Loss::Front => {
                usize::try_from(dice.below(self.pending.len() as u64 + 1)).unwrap_or(0)
            }
        };
        for op in self.pending.iter().take(kept) {
            rename(&mut names, op);
        }
        let mut image = Image::new();
        for (name, file) in names {
            if let Some(file) = self.files.get(file) {
                image.insert(name, file.left(loss, dice));
            }
        }
        image
    }
}

impl Platter<'_> {
    fn left(&self, loss: Loss, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let count = self.pending.len() as u64;
        let edge = dice.below(count + 1);
        for (at, op) in (0..count).zip(&self.pending) {
            let fate = match loss {
                Loss::All => Fate::Lost,
                Loss::Nothing => Fate::There,
                Loss::Torn => [Fate::Lost, Fate::There, Fate::Torn][dice.below(3) as usize],
                Loss::Tail if at == edge => Fate::Torn,
                Loss::Tail if at < edge => Fate::There,
                Loss::Front if at >= edge => Fate::There,
                Loss::Tail | Loss::Front => Fate::Lost,
                Loss::Lying => return self.first.clone().unwrap_or_default(),
            };
            match fate {
                Fate::Lost => {}
                Fate::There => apply(&mut bytes, op),
                Fate::Torn => tear(&mut bytes, op, dice),
            }
        }
        if loss == Loss::Lying {
            return self.first.clone().unwrap_or_default();
        }
        bytes
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Lost,
    There,
    Torn,
}

fn apply(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, bytes: new, .. } => write(bytes, *at, new),
        Op::Truncate { size, .. } => bytes.resize(*size, 0),
        _ => {}
    }
}

fn rename(names: &mut BTreeMap<String, usize>, op: &Op) {
    match op {
        Op::Create { name, file, .. } => {
            names.insert(name.clone(), *file);
        }
        Op::Delete { name } => {
            names.remove(name);
        }
        _ => {}
    }
}

/// Some of a write's sectors are there. A size is there or is not.
fn tear(bytes: &mut Vec<u8>, op: &Op, dice: &mut Dice) {
    let Op::Write { at, bytes: new, .. } = op else {
        if dice.below(2) == 0 {
            apply(bytes, op);
        }
        return;
    };
    let mut from = 0;
    while from < new.len() {
        // Up to the next border of a sector on the disk.
        let to = (from + SECTOR - (at + from) % SECTOR).min(new.len());
        if dice.below(2) == 0 {
            write(bytes, at + from, new.get(from..to).unwrap_or_default());
        }
        from = to;
    }
}

/// What all tables hold, as one number.
pub fn digest(connection: &Connection) -> rusqlite::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut names = connection.prepare(names)?;
    let names: Vec<String> = names
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for name in names {
        name.hash(&mut hasher);
        let mut all = connection.prepare(&format!("SELECT * FROM \"{name}\" ORDER BY 1, 2"))?;
        let columns = all.column_count();
        if columns < 2 {
            all = connection.prepare(&format!("SELECT * FROM \"{name}\" ORDER BY 1"))?;
        }
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => 0u8.hash(&mut hasher),
                    ValueRef::Integer(value) => (1u8, value).hash(&mut hasher),
                    ValueRef::Real(value) => (2u8, value.to_bits()).hash(&mut hasher),
                    ValueRef::Text(bytes) => (3u8, bytes).hash(&mut hasher),
                    ValueRef::Blob(bytes) => (4u8, bytes).hash(&mut hasher),
                }
            }
        }
    }
    Ok(hasher.finish())
}

/// A state that a database went through.
#[derive(Clone, Copy, Debug)]
struct Step {
    digest: u64,
    /// How much had been done to the disk before its transaction began, and when it was acknowledged.
    begun: usize,
    done: usize,
    /// Whether the acknowledgement promised that it stays.
    durable: bool,
}

/// The states that a database went through, in order.
#[derive(Debug, Default)]
pub struct States(Vec<Step>);

impl States {
    /// The next one. The first is what a run begins with.
    pub fn add(&mut self, digest: u64, begun: usize, done: usize, durable: bool) {
        self.0.push(Step {
            digest,
            begun,
            done,
            durable,
        });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The highest number of a state that has this digest and may be found when the power fails after `at`
    /// operations: not before the last that was promised, not after the last that was begun.
    pub fn found(&self, digest: u64, at: usize) -> Result<usize> {
        let promised = |step: &&Step| step.durable && step.done <= at;
        let lowest = self.0.iter().rposition(|s| promised(&s)).unwrap_or(0);
        let highest = self.0.iter().rposition(|s| s.begun <= at).unwrap_or(0);
        let range = self.0.get(lowest..=highest.max(lowest)).unwrap_or_default();
        if let Some(found) = range.iter().rposition(|s| s.digest == digest) {
            return Ok(lowest + found);
        }
        match self.0.iter().rposition(|s| s.digest == digest) {
            Some(other) => bail!("state {other}, not one of {lowest} to {highest}"),
            None => bail!("a state that never was, between {lowest} and {highest}"),
        }
    }
}

#[cfg(test)]
mod tests;
