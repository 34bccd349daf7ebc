//! `verify`: an exported log checked offline, with nothing but the file and the public key. What
//! is checked is `chancery_evidence::verify`'s; here are files, progress and exit codes.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use chancery_evidence::{Finding, PublicKey, Report};

use crate::cli::Verify;
use crate::error::{Failure, Outcome};
use crate::out::{note, progress, say};

/// Bytes of a key file.
const KEY_BYTES: u64 = 4096;
/// Exit code when nothing can be said: no file, no key.
const CANNOT_DECIDE: u8 = 3;
/// Read ahead.
const BUFFER_BYTES: usize = 256 * 1024;

pub fn run(command: &Verify) -> Outcome {
    match check(command) {
        Ok(report) => {
            say!("{}", report.to_string().trim_end());
            Ok(report.finding.exit_code())
        }
        Err(failure) => {
            note!("{failure}");
            Ok(CANNOT_DECIDE)
        }
    }
}

fn check(command: &Verify) -> Result<Report, Failure> {
    let key = key(&command.key)?;
    let named =
        |error: std::io::Error| Failure::new(format!("{}: {error}", command.file.display()));
    let file = File::open(&command.file).map_err(named)?;
    if !file.metadata().map_err(named)?.is_file() {
        return Err(Failure::new(format!(
            "{}: not a file",
            command.file.display()
        )));
    }
    let bar = progress(file.metadata().map_err(named)?.len(), "bytes");
    let reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let report = chancery_evidence::verify(reader, &key, &mut |at| bar.set_position(at.bytes));
    bar.finish_and_clear();
    if let Finding::CannotDecide { .. } = report.finding {
        note!("key {}", key.id());
    }
    Ok(report)
}

/// The key itself, or a file that has it on a line of its own.
fn key(said: &str) -> Result<PublicKey, Failure> {
    if let Ok(key) = said.parse() {
        return Ok(key);
    }
    let path = Path::new(said);
    let named = |text: String| Failure::new(format!("key {said}: {text}"));
    let bytes = std::fs::metadata(path)
        .map_err(|error| named(error.to_string()))?
        .len();
    if bytes > KEY_BYTES {
        return Err(named("not a key file, too long".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    line.and_then(|line| line.parse().ok())
        .ok_or_else(|| named("no line of the form ed25519:BASE64".into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn a_key_is_a_text_or_a_file() {
        let text = format!("ed25519:{}", STANDARD.encode([7; 32]));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pub");
        std::fs::write(&file, format!("# the key\n\n {text}\n")).unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(key(&text).unwrap().id(), key(path).unwrap().id());
        std::fs::write(&file, "nothing").unwrap();
        assert!(key(path).unwrap_err().to_string().contains("ed25519"));
        assert!(
            key("/nonexistent")
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }

    #[test]
    fn without_a_file_nothing_can_be_decided() {
        let key = format!("ed25519:{}", STANDARD.encode([7; 32]));
        let code = run(&Verify {
            file: "/nonexistent".into(),
            key,
        })
        .unwrap();
        assert_eq!(code, 3);
    }
}
