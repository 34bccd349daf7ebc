//! The table, and where it is written.

use std::io::{Write, stderr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::phases::{Figures, Plan};

const BEGIN: &str = "<!-- load:begin -->";
const END: &str = "<!-- load:end -->";

/// Tells the person who waits.
pub fn note(text: &str) -> Result<()> {
    writeln!(stderr().lock(), "{text}")?;
    Ok(())
}

/// One target's figures in one line.
pub fn line(f: &Figures) -> String {
    format!(
        "| {} | {:.1} | {:.0} | {} | {:.1} | {:.2} | {:.1} | {} |",
        f.name,
        f.saturated_us,
        f.saturated_rate,
        f.rated_us
            .map_or("not reached".into(), |us| format!("{us:.1}")),
        f.p99_ms,
        f.login_ms,
        f.idle_bytes / 1024.0,
        f.paged_us.map_or("none".into(), |us| format!("{us:.1}"))
    )
}

/// The whole table, as Markdown.
pub fn table(rows: &[Figures], plan: &Plan, arguments: &str) -> String {
    let mut text = format!(
        "`cargo xtask bench load {arguments}`: {} users in pairs, {} s a phase, {} idle \
         connections, {} logins.\n\n\
         | server | saturated, µs CPU a message | messages/s | at {:.0}/s, µs CPU | p99 at half, ms \
         | login, ms CPU | idle, KiB a connection | archive page, µs CPU a message |\n\
         |---|---|---|---|---|---|---|---|\n",
        plan.users,
        plan.period.as_secs(),
        plan.idle,
        plan.logins,
        plan.rate
    );
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    text
}

/// Replaces what stands between the markers of a file.
pub fn write_between_markers(path: &Path, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let begin = text.find(BEGIN).context("no begin marker")? + BEGIN.len();
    let end = text.find(END).context("no end marker")?;
    std::fs::write(path, format!("{}\n{table}{}", &text[..begin], &text[end..]))?;
    Ok(())
}
