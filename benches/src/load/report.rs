//! The table, and where it is written.

use std::io::{Write, stderr};
use std::path::Path;

use anyhow::{Context, Result};

use crate::phases::{Figures, Plan};
use crate::storm::Storm;

const BEGIN: &str = "<!-- load:begin -->";
const END: &str = "<!-- load:end -->";

/// Tells the person who waits.
pub fn note(text: &str) -> Result<()> {
    writeln!(stderr().lock(), "{text}")?;
    Ok(())
}

fn decimal(figure: f64, digits: usize) -> String {
    if figure == 0.0 {
        return "not measured".into();
    }
    format!("{figure:.digits$}")
}

/// One target's figures of logins, memory and chat in one line.
fn chat_line(f: &Figures) -> String {
    let rated = if f.saturated_us > 0.0 {
        "not reached"
    } else {
        "not measured"
    };
    format!(
        "| {} | {} | {} | {} | {} | {} | {} |",
        f.name,
        decimal(f.saturated_us, 1),
        decimal(f.saturated_rate, 0),
        f.rated_us.map_or(rated.into(), |us| decimal(us, 1)),
        decimal(f.p99_ms, 1),
        decimal(f.login_ms, 2),
        decimal(f.idle_bytes / 1024.0, 1),
    )
}

/// Those of presence, archive and storm.
fn more_line(f: &Figures, plan: &Plan) -> String {
    let storm = |storm: Option<Storm>| match storm {
        Some(storm) => format!("{:.1} | {:.1}", storm.seconds, storm.cpu_seconds),
        None => "not measured | not measured".into(),
    };
    let resumed = f.storms.map(|(resumed, _)| resumed);
    let share = resumed.filter(|storm| storm.resumed < plan.storm);
    format!(
        "| {} | {} | {} | {}{} | {} |",
        f.name,
        decimal(f.presence_us, 1),
        f.paged_us.map_or("none".into(), |us| format!("{us:.1}")),
        storm(resumed),
        share.map_or(String::new(), |storm| {
            format!(" ({} resumed)", storm.resumed)
        }),
        storm(f.storms.map(|(_, anew)| anew)),
    )
}

/// One target's figures, for the person who waits.
pub fn line(f: &Figures, plan: &Plan) -> String {
    format!("{}\n{}", chat_line(f), more_line(f, plan))
}

/// The whole tables, as Markdown.
pub fn table(rows: &[Figures], plan: &Plan, arguments: &str) -> String {
    let mut text = format!(
        "`cargo xtask bench load {arguments}`: {} users in pairs, {} s a phase, {} idle \
         connections, {} logins, {} sessions in a storm.\n\n\
         | server | saturated, µs CPU a message | messages/s | at {:.0}/s, µs CPU | p99 at half, ms \
         | login, ms CPU | idle, KiB a connection |\n\
         |---|---|---|---|---|---|---|\n",
        plan.users,
        plan.period.as_secs(),
        plan.idle,
        plan.logins,
        plan.storm,
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
