//! Logs: one line an event, text or JSON, on standard error, in which no input can end the line
//! or steer a terminal (RUSTSEC-2025-0055), and the pseudonyms that stand for JIDs in them. It
//! refuses to log by itself what a caller gave it.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::OnceLock;

use aws_lc_rs::hmac;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::Ids;

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(name: &str) -> Result<Self, TelemetryError> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither `text` nor `json`.
    #[error("log format {0:?} is neither text nor json")]
    Format(String),
    /// A filter that tracing does not understand.
    #[error("log filter {filter:?} is not valid: {reason}")]
    Filter { filter: String, reason: String },
    /// Logs were set up before in this process.
    #[error("logs are already set up")]
    Twice,
}

/// Sets up the log of this process on standard error. `filter` is a level or a list of
/// `target=level`. A panic is logged too, on one line like everything else.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let subscriber = subscriber(format, filter, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        let at = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(%at, message = message.unwrap_or_default(), "panic");
    }));
    Ok(())
}

/// The same log on any writer.
pub fn subscriber<W>(
    format: Format,
    filter: &str,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).map_err(|error| TelemetryError::Filter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(EscapingMaker(writer));
    Ok(match format {
        Format::Text => Box::new(builder.finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

struct EscapingMaker<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EscapingMaker<W> {
    type Writer = Escaping<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(self.0.make_writer())
    }
}

/// Writes one event a call, as tracing-subscriber does, and escapes in it whatever could act on
/// a terminal or end the line, but for the line's own end.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        let mut escaped = escape(&String::from_utf8_lossy(line));
        if line.len() < event.len() {
            escaped.push('\n');
        }
        self.0.write_all(escaped.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Escapes control characters, line and paragraph separators and bidirectional overrides as
/// `\uXXXX`, which is also how JSON would write them.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        let steers = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if steers {
            use fmt::Write as _;
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Stands for a JID in a log: the same JID is the same pseudonym for the life of this process,
/// and tells nothing without the process's memory. Computed only when it is really written.
pub fn redact(jid: &str) -> Redacted<'_> {
    Redacted(jid)
}

/// See [`redact`].
#[derive(Clone, Copy)]
pub struct Redacted<'a>(&'a str);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bare, resource) = match self.0.split_once('/') {
            Some((bare, resource)) => (bare, Some(resource)),
            None => (self.0, None),
        };
        let bare_tag = hmac::sign(process_key(), bare.as_bytes());
        write!(f, "jid-{}", hex::encode(&bare_tag.as_ref()[..5]))?;
        if resource.is_some() {
            let full_tag = hmac::sign(process_key(), self.0.as_bytes());
            write!(f, "/{}", hex::encode(&full_tag.as_ref()[..2]))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn process_key() -> &'static hmac::Key {
    static KEY: OnceLock<hmac::Key> = OnceLock::new();
    KEY.get_or_init(|| hmac::Key::new(hmac::HMAC_SHA256, &Ids::real().bytes::<32>()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "a\x1b[2Jb\nERROR forged\r\u{9b}31m\u{7f}\u{202e}\u{2028}\0end";

    fn logged(format: Format) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(format, "info", move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(resource = HOSTILE, other = %HOSTILE, "bound {HOSTILE}");
            tracing::debug!("below the level");
        });
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_input_ends_a_line_or_steers_a_terminal() {
        for format in [Format::Text, Format::Json] {
            let log = logged(format);
            assert_eq!(log.matches('\n').count(), 1, "{log:?}");
            let line = log.strip_suffix('\n').unwrap();
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(!line.contains('\u{202e}') && !line.contains('\u{2028}'));
            assert!(
                line.contains("forged") && line.contains("end"),
                "nothing is lost: {line}"
            );
        }
    }

    #[test]
    fn json_stays_json() {
        let log = logged(Format::Json);
        let value: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(value["resource"], HOSTILE);
    }

    #[test]
    fn a_pseudonym_is_stable_short_and_hides_the_jid() {
        let alice = redact("alice@example.test").to_string();
        assert_eq!(alice, redact("alice@example.test").to_string());
        assert_ne!(alice, redact("bob@example.test").to_string());
        assert!(!alice.contains("alice") && alice.len() < 20);
        let full = format!("{:?}", redact("alice@example.test/phone"));
        assert!(full.starts_with(&alice) && full != alice && !full.contains("phone"));
    }

    #[test]
    fn bad_settings_are_errors() {
        assert!("xml".parse::<Format>().is_err());
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert!(subscriber(Format::Text, "a=b=c", io::sink).is_err());
    }
}
