//! Tidiness as a test: floors, headers, lengths, generated files, and words that have no place here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{codegen, floors};

/// Lines of a source file; longer needs its reason in the file's header, with the word "long".
const FILE_LINES: usize = 600;
/// Paths of one machine.
const FOREIGN: &[&str] = &["/work/", "/root/", "/home/"];

/// Fails with every problem found.
pub fn run(root: &Path) -> Result<()> {
    let mut problems = floors::problems(root)?;
    if let Err(stale) = codegen::run(root, true) {
        problems.push(format!("{stale:#}"));
    }
    for path in tracked(root)? {
        let shown = path.display().to_string();
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else {
            continue;
        };
        if shown.ends_with("Cargo.lock") || shown.contains("/gen/") {
            continue;
        }
        if !shown.starts_with("crates/xtask/src/tidy.rs") {
            for word in FOREIGN {
                if text.contains(word) {
                    problems.push(format!("{shown}: names a path of one machine ({word})"));
                }
            }
        }
        if !shown.ends_with(".rs") {
            continue;
        }
        if !text.starts_with("//!") && !text.starts_with("#![") {
            problems.push(format!("{shown}: does not open with `//!`"));
        }
        let lines = text.lines().count();
        let header: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        if lines > FILE_LINES && !header.contains("long") {
            problems.push(format!("{shown}: {lines} lines"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("untidy:\n  {}", problems.join("\n  "))
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    Ok(String::from_utf8(listed.stdout)?
        .lines()
        .map(PathBuf::from)
        .collect())
}
