//! What the checker found, for people and for the exit code.

use std::fmt;

use crate::{Manifest, ShardSummary};

/// How far the checker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    pub records: u64,
}

/// What the checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Everything is what was signed.
    Clean,
    /// Something was changed. Where it can be told, which record first; otherwise the change is
    /// in the manifest.
    Tampered {
        shard: Option<u32>,
        first_bad: Option<u64>,
        reason: String,
    },
    /// What is there is good, but the end is missing.
    Incomplete {
        shard: Option<u32>,
        missing_from: Option<u64>,
        reason: String,
    },
    /// Not an export of this format, or nothing in it is signed by this key.
    CannotDecide { reason: String },
}

impl Finding {
    /// The exit code of `chancery verify`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Tampered { .. } => 1,
            Self::Incomplete { .. } => 2,
            Self::CannotDecide { .. } => 3,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => write!(f, "clean"),
            Self::Tampered {
                shard: Some(shard),
                first_bad: Some(number),
                reason,
            } => {
                write!(
                    f,
                    "tampered: first bad record is number {number} of shard {shard}: {reason}"
                )
            }
            Self::Tampered { reason, .. } => write!(f, "tampered: {reason}"),
            Self::Incomplete {
                shard: Some(shard),
                missing_from: Some(number),
                reason,
            } => {
                write!(
                    f,
                    "incomplete: missing from number {number} of shard {shard} on: {reason}"
                )
            }
            Self::Incomplete { reason, .. } => write!(f, "incomplete: {reason}"),
            Self::CannotDecide { reason } => write!(f, "cannot decide: {reason}"),
        }
    }
}

/// The finding, and what was read until it was clear.
#[derive(Clone, Debug)]
pub struct Report {
    pub finding: Finding,
    pub records: u64,
    pub withheld: u64,
    /// Records whose opened content was checked.
    pub plaintexts: u64,
    pub shards: Vec<ShardSummary>,
    pub manifest: Option<Manifest>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.finding)?;
        let Self {
            records,
            withheld,
            plaintexts,
            ..
        } = self;
        writeln!(
            f,
            "{records} records read, {withheld} withheld, {plaintexts} opened"
        )?;
        for shard in &self.shards {
            let ShardSummary {
                shard,
                first,
                last,
                head,
                ..
            } = shard;
            writeln!(f, "shard {shard}: {first} to {last}, head {head}")?;
        }
        if let Some(manifest) = &self.manifest {
            writeln!(
                f,
                "domain {}, signed by key {}",
                manifest.domain, manifest.key_id
            )?;
        }
        Ok(())
    }
}
