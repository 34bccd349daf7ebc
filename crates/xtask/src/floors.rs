//! The four floors: which crate may depend on which. `docs/architecture.md` shows the same table.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Floor of each crate; tools may use anything and are used by nobody.
const FLOORS: &[(&str, u8)] = &[
    ("chancery-xml", 0),
    ("chancery-xmpp", 0),
    ("chancery-evidence", 0),
    ("chancery-runtime", 1),
    ("chancery-store", 1),
    ("chancery-api", 1),
    ("chancery-archive", 2),
    ("chancery-directory", 2),
    ("chancery-gateway", 2),
    ("chancery-policy", 2),
    ("chancery-presence", 2),
    ("chancery-pubsub", 2),
    ("chancery-roster", 2),
    ("chancery", 3),
];
const TOOLS: &[&str] = &[
    "chancery-testkit",
    "chancery-xtask",
    "chancery-tests",
    "chancery-benches",
];
/// Within a floor, only these edges.
const BESIDE: &[(&str, &str)] = &[
    ("chancery-xmpp", "chancery-xml"),
    ("chancery-store", "chancery-runtime"),
    ("chancery-api", "chancery-runtime"),
];
/// What a floor must not know: (highest floor concerned, crate).
const FORBIDDEN: &[(u8, &str)] = &[(0, "tokio"), (0, "tonic"), (0, "rusqlite")];

/// Every edge that the table does not allow.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .context("metadata")?;
    let floors: BTreeMap<&str, u8> = FLOORS.iter().copied().collect();
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if TOOLS.contains(&name) {
            continue;
        }
        let Some(&floor) = floors.get(name) else {
            problems.push(format!("{name}: not in the table of floors"));
            continue;
        };
        for dependency in &package.dependencies {
            let other = dependency.name.as_str();
            if dependency.kind == DependencyKind::Normal && TOOLS.contains(&other) {
                problems.push(format!("{name} -> {other}: tools are not for the floors"));
            }
            if dependency.kind == DependencyKind::Normal
                && FORBIDDEN
                    .iter()
                    .any(|(to, what)| floor <= *to && *what == other)
            {
                problems.push(format!("{name} -> {other}: floor {floor} must not know it"));
            }
            let Some(&below) = floors.get(other) else {
                continue;
            };
            let allowed = below < floor || BESIDE.contains(&(name, other));
            if !allowed {
                problems.push(format!("{name} -> {other}: floor {floor} to floor {below}"));
            }
        }
    }
    Ok(problems)
}
