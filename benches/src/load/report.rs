//! The table, and where it is written.

use std::io::{Write, stderr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::phases::{Figures, Phase, Plan};
use crate::storm::Storm;

const BEGIN: &str = "<!-- load:begin -->";
const END: &str = "<!-- load:end -->";

/// Tells the person who waits.
pub fn note(text: &str) -> Result<()> {
    writeln!(stderr().lock(), "{text}")?;
    Ok(())
}

/// A figure of this phase; `-` where the server did not get through it.
fn cell(f: &Figures, phase: Phase, figure: Option<f64>, digits: usize) -> String {
    match figure {
        Some(figure) => format!("{figure:.digits$}"),
        None if f.failed.iter().any(|(failed, _)| *failed == phase) => "-".into(),
        None => "not measured".into(),
    }
}

/// One target's figures of logins, memory and chat in one line.
fn chat_line(f: &Figures) -> String {
    let rated = match f.rated_us {
        Some(None) => "not reached".into(),
        rated => cell(f, Phase::Chat, rated.flatten(), 1),
    };
    format!(
        "| {} | {} | {} | {rated} | {} | {} | {} |",
        f.name,
        cell(f, Phase::Chat, f.saturated_us, 1),
        cell(f, Phase::Chat, f.saturated_rate, 0),
        cell(f, Phase::Chat, f.p99_ms, 1),
        cell(f, Phase::Login, f.login_ms, 2),
        cell(f, Phase::Idle, f.idle_bytes.map(|bytes| bytes / 1024.0), 1),
    )
}

/// Those of presence, archive and storm.
fn more_line(f: &Figures, plan: &Plan) -> String {
    let seconds = |storm: Option<Storm>| cell(f, Phase::Storm, storm.map(|s| s.seconds), 1);
    let cpu = |storm: Option<Storm>| cell(f, Phase::Storm, storm.map(|s| s.cpu_seconds), 1);
    let (resumed, anew) = f.storms.unzip();
    let share = resumed
        .filter(|storm| storm.resumed < plan.storm)
        .map_or(String::new(), |storm| {
            format!(" ({} resumed)", storm.resumed)
        });
    format!(
        "| {} | {} | {} | {} | {}{share} | {} | {} |",
        f.name,
        cell(f, Phase::Presence, f.presence_us, 1),
        cell(f, Phase::Archive, f.paged_us, 1),
        seconds(resumed),
        cpu(resumed),
        seconds(anew),
        cpu(anew),
    )
}

/// One target's figures, for the person who waits.
pub fn line(f: &Figures, plan: &Plan) -> String {
    format!("{}\n{}", chat_line(f), more_line(f, plan))
}

/// The whole tables, as Markdown.
pub fn table(rows: &[Figures], plan: &Plan, arguments: &str, took: Duration) -> String {
    let mut text = format!(
        "`cargo xtask bench load {arguments}`: {} users in pairs, {} s a phase, {} idle \
         connections, {} logins, {} sessions in a storm; {} s in all.\n\n\
         | server | saturated, µs CPU a message | messages/s | at {:.0}/s, µs CPU | p99 at half, ms \
         | login, ms CPU | idle, KiB a connection |\n\
         |---|---|---|---|---|---|---|\n",
        plan.users,
        plan.period.as_secs(),
        plan.idle,
        plan.logins,
        plan.storm,
        took.as_secs(),
        plan.rate
    );
    for row in rows {
        text.push_str(&chat_line(row));
        text.push('\n');
    }
    text.push_str(
        "\n| server | presence, µs CPU a delivery | archive page, µs CPU a message \
         | storm of resumptions, s | s CPU | storm of logins, s | s CPU |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        text.push_str(&more_line(row, plan));
        text.push('\n');
    }
    let failed = rows
        .iter()
        .flat_map(|row| row.failed.iter().map(move |failed| (&row.name, failed)));
    for (n, (name, (phase, reason))) in failed.enumerate() {
        let gap = if n == 0 { "\n" } else { "" };
        text.push_str(&format!("{gap}- {name}, {phase:?}: {reason}\n"));
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
