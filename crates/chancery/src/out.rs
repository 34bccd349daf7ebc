//! What the program says to the person who runs it: results on standard output, progress and
//! problems on standard error. The one place that writes to either; logs go their own way
//! (`chancery_runtime::telemetry`). A reader that went away (`| head`) is no error.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};

use chancery_runtime::telemetry::escape;
use indicatif::{ProgressBar, ProgressStyle};

/// One line of the result.
pub fn line(text: Arguments<'_>) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// One line about what went wrong or is worth knowing. What others wrote (names, errors) may be in
/// it, so nothing in it can steer the terminal.
pub fn aside(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", escape(&text.to_string()));
}

/// The result, byte for byte.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

macro_rules! say {
    ($($arg:tt)*) => { $crate::out::line(format_args!($($arg)*)) };
}
macro_rules! note {
    ($($arg:tt)*) => { $crate::out::aside(format_args!($($arg)*)) };
}
pub(crate) use {note, say};

/// A bar on standard error for work of `total` units; nothing is drawn where that is no terminal.
pub fn progress(total: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let template = if unit == "bytes" {
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}".to_owned()
    } else {
        format!("{{bar:40}} {{pos}}/{{len}} {unit} {{eta}}")
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}
