//! `user import`: many accounts from a file, in batches of which several are under way, with the
//! problems named by line. Memory is bounded by the batches, not by the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use chancery_api::directory::{ImportAccount, ImportAccountsRequest};
use chancery_api::{ApiError, Cx};
use futures_util::StreamExt;

use super::import_line::{LINE_BYTES, parse};
use super::{Admin, actor};
use crate::error::{FAILED, Failure, OK, Outcome};
use crate::out::{note, progress, say};

/// Accounts of one batch: one transaction of the directory.
const BATCH: usize = 250;
/// Batches under way at once: enough to keep the directory's password pool busy.
const UNDER_WAY: usize = 4;
/// Problems that are printed; the rest is counted.
const PROBLEMS_SHOWN: usize = 100;
/// A batch waits for passwords to be hashed behind those of other batches.
const BATCH_LIMIT: Duration = Duration::from_secs(120);

/// A batch to be sent, with the line of each account, or a line that is none.
enum Piece {
    Batch {
        accounts: Vec<ImportAccount>,
        lines: Vec<u64>,
        bytes: u64,
    },
    Problem {
        line: u64,
        text: String,
    },
}

#[derive(Default)]
struct Summary {
    added: u64,
    failed: u64,
    problems: Vec<(u64, String)>,
}

impl Summary {
    fn problem(&mut self, line: u64, text: String) {
        self.failed += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push((line, text));
        }
    }
}

pub async fn run(admin: &Admin, path: &Path) -> Outcome {
    let whole = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    let stdin = path == Path::new("-");
    let (reader, bytes): (Box<dyn Read + Send>, u64) = if stdin {
        (Box::new(std::io::stdin()), 0)
    } else {
        let file = File::open(path).map_err(whole)?;
        let bytes = file.metadata().map_err(whole)?.len();
        (Box::new(file), bytes)
    };
    let pieces = Pieces {
        reader: BufReader::new(reader),
        line: 0,
        failed: false,
        held: None,
    };
    let bar = progress(bytes, "bytes");
    let mut answers = futures_util::stream::iter(pieces)
        .map(|piece| send(admin, piece))
        .buffer_unordered(UNDER_WAY);
    let mut summary = Summary::default();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        bar.inc(answer.bytes);
        summary.added += answer.added;
        for (line, text) in answer.problems {
            summary.problem(line, text);
        }
    }
    bar.finish_and_clear();
    report(path, summary)
}

fn report(path: &Path, mut summary: Summary) -> Outcome {
    summary.problems.sort();
    for (line, text) in &summary.problems {
        note!("{}:{line}: {text}", path.display());
    }
    let shown = u64::try_from(summary.problems.len()).unwrap_or(u64::MAX);
    if summary.failed > shown {
        note!("and {} more problems", summary.failed - shown);
    }
    say!("{} added, {} not", summary.added, summary.failed);
    Ok(if summary.failed == 0 { OK } else { FAILED })
}

#[derive(Default)]
struct Sent {
    added: u64,
    bytes: u64,
    problems: Vec<(u64, String)>,
}

async fn send(admin: &Admin, piece: Result<Piece, Failure>) -> Result<Sent, Failure> {
    let (accounts, lines, bytes) = match piece? {
        Piece::Problem { line, text } => {
            return Ok(Sent {
                problems: vec![(line, text)],
                ..Sent::default()
            });
        }
        Piece::Batch {
            accounts,
            lines,
            bytes,
        } => (accounts, lines, bytes),
    };
    let request = ImportAccountsRequest {
        accounts,
        actor: actor(),
    };
    let cx = Cx::local().within(BATCH_LIMIT);
    let answer = admin
        .directory
        .import_accounts(&cx, request)
        .await
        .map_err(|error: ApiError| {
            let (first, last) = (lines.first().unwrap_or(&0), lines.last().unwrap_or(&0));
            Failure::new(format!(
                "lines {first} to {last}: {}; run the command again",
                error.message
            ))
        })?;
    let line = |index: u32| {
        usize::try_from(index)
            .ok()
            .and_then(|index| lines.get(index))
            .copied()
            .unwrap_or_default()
    };
    let problems = answer
        .problems
        .into_iter()
        .map(|problem| (line(problem.index), problem.problem))
        .collect();
    Ok(Sent {
        added: answer.added,
        bytes,
        problems,
    })
}

/// Cuts a file into batches.
struct Pieces<R> {
    reader: R,
    line: u64,
    failed: bool,
    /// A problem that was found while a batch was being filled: given out behind it.
    held: Option<Piece>,
}

impl<R: BufRead> Iterator for Pieces<R> {
    type Item = Result<Piece, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(held) = self.held.take() {
            return Some(Ok(held));
        }
        if self.failed {
            return None;
        }
        let (mut accounts, mut lines, mut bytes) = (Vec::new(), Vec::new(), 0);
        while accounts.len() < BATCH {
            let text = match self.read_line() {
                Ok(None) => break,
                Ok(Some(text)) => text,
                Err(failure) => {
                    self.failed = true;
                    return Some(Err(failure));
                }
            };
            bytes += u64::try_from(text.len()).unwrap_or_default();
            let parsed = if text.len() > LINE_BYTES {
                Err(format!("longer than {LINE_BYTES} bytes"))
            } else {
                String::from_utf8(text)
                    .map_err(|_| "not UTF-8".to_owned())
                    .and_then(|text| parse(&text))
            };
            match parsed {
                Ok(None) => {}
                Ok(Some(account)) => {
                    accounts.push(account);
                    lines.push(self.line);
                }
                Err(text) => {
                    self.held = Some(Piece::Problem {
                        line: self.line,
                        text,
                    });
                    break;
                }
            }
        }
        if accounts.is_empty() {
            return self.held.take().map(Ok);
        }
        Some(Ok(Piece::Batch {
            accounts,
            lines,
            bytes,
        }))
    }
}

impl<R: BufRead> Pieces<R> {
    /// One line; of a too long one the beginning, the rest is passed over.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut text = Vec::new();
        let most = u64::try_from(LINE_BYTES).unwrap_or(u64::MAX) + 1;
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let mut skip = text.len() > LINE_BYTES && text.last() != Some(&b'\n');
        while skip {
            let buffer = self.reader.fill_buf()?;
            let end = buffer.iter().position(|b| *b == b'\n');
            let used = end.map_or(buffer.len(), |end| end + 1);
            skip = end.is_none() && !buffer.is_empty();
            self.reader.consume(used);
        }
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    type Lines = Vec<(u64, String)>;

    fn pieces(text: &[u8]) -> (Lines, Lines) {
        let pieces = Pieces {
            reader: text,
            line: 0,
            failed: false,
            held: None,
        };
        let (mut accounts, mut problems) = (Vec::new(), Vec::new());
        for piece in pieces {
            match piece.unwrap() {
                Piece::Batch {
                    accounts: found,
                    lines,
                    ..
                } => {
                    assert!(found.len() <= BATCH && found.len() == lines.len());
                    accounts.extend(lines.into_iter().zip(found.into_iter().map(|a| a.jid)));
                }
                Piece::Problem { line, text } => problems.push((line, text)),
            }
        }
        (accounts, problems)
    }

    #[test]
    fn lines_are_counted_over_comments_problems_and_batches() {
        let mut text = b"# staff\n\na@b one\nbroken\nc@d two\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', LINE_BYTES * 3));
        text.extend(b"\n\xff@b x\n");
        for n in 0..600 {
            text.extend(format!("u{n}@b pw\n").bytes());
        }
        text.extend(b"z@b last line without an end");
        let (accounts, problems) = pieces(&text);
        assert_eq!(accounts[0], (3, "a@b".into()));
        assert_eq!(accounts[1], (5, "c@d".into()));
        assert_eq!(accounts[2], (8, "u0@b".into()));
        assert_eq!(accounts[602], (608, "z@b".into()));
        assert_eq!(accounts.len(), 603);
        let lines: Vec<u64> = problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [4, 6, 7]);
        assert!(problems[1].1.contains("longer") && problems[2].1.contains("UTF-8"));
    }

    #[test]
    fn an_empty_file_is_nothing() {
        assert_eq!(pieces(b""), (vec![], vec![]));
    }
}
