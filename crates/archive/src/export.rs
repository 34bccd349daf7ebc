//! The evidence of one domain as JSON lines with a signed manifest. Owns the reading in short
//! transactions, so that an export never holds the log up; the format is `chancery_evidence`'s.

use std::io::{self, Write};
use std::path::PathBuf;

use chancery_api::ApiError;
use chancery_api::archive::ExportChunk;
use chancery_evidence::{EvidenceError, ExportWriter, FIRST_NUMBER, KeyRing, Stored};
use chancery_runtime::Tasks;
use chancery_store::{Profile, StoreError, open};
use tokio::sync::mpsc;

use crate::store::{LogReader, SqliteLog};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 256 * 1024;
/// Records read in one transaction.
const PAGE_RECORDS: usize = 256;
/// Chunks that wait for the asker; then the export waits.
pub(crate) const CHUNKS_LIMIT: usize = 4;

/// One export.
pub(crate) struct Export {
    pub(crate) path: PathBuf,
    pub(crate) shard: u32,
    pub(crate) ring: KeyRing,
    pub(crate) domain: String,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) decrypt: bool,
    pub(crate) at_ms: i64,
    pub(crate) tasks: Tasks,
}

/// Why an export ends early.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("evidence: {0}")]
    Evidence(#[from] EvidenceError),
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("record {0} is missing")]
    Missing(u64),
    #[error("the process ends")]
    Ending,
    #[error("the asker is gone: {0}")]
    Gone(#[from] io::Error),
}

type Chunks = mpsc::Sender<Result<ExportChunk, ApiError>>;

impl Export {
    /// Runs on a thread of its own; an error is the last thing that `chunks` gets.
    pub(crate) fn run(&self, chunks: &Chunks) {
        if let Err(error) = self.write(chunks) {
            tracing::warn!(%error, "an export ended early");
            // Whoever left does not want to know why.
            let _ = chunks.blocking_send(Err(ApiError::internal(error.to_string())));
        }
    }

    fn write(&self, chunks: &Chunks) -> Result<(), ExportError> {
        let connection = open(&self.path, Profile::log().reader())?;
        let log = SqliteLog::new(connection, self.shard);
        let reader = log.reader();
        let keys = self.ring.domain(&self.domain)?;
        let mut next = self.first.max(FIRST_NUMBER);
        let total = (self.last + 1).saturating_sub(next);
        let done = std::cell::Cell::new(0);
        let out = ChunkWriter {
            chunks,
            buffer: Vec::with_capacity(CHUNK_BYTES),
            done: &done,
            total,
        };
        let mut writer = ExportWriter::new(out, keys, self.ring.deployment());
        while next <= self.last {
            if self.tasks.cancelled_now() {
                return Err(ExportError::Ending);
            }
            let page = reader.records(next, self.last, PAGE_RECORDS)?;
            if page.is_empty() {
                return Err(ExportError::Missing(next));
            }
            for (number, bytes) in page {
                if number != next {
                    return Err(ExportError::Missing(next));
                }
                let opened = if self.decrypt {
                    self.open(&bytes)?
                } else {
                    None
                };
                writer.write(&bytes, opened.as_ref())?;
                next += 1;
                done.set(done.get() + 1);
            }
        }
        let (mut out, _) = writer.finish(self.at_ms)?;
        out.flush()?;
        Ok(())
    }

    fn open(&self, bytes: &[u8]) -> Result<Option<chancery_evidence::Opened>, ExportError> {
        let stored = Stored::parse(bytes)?;
        if stored.header.domain != self.domain {
            return Ok(None);
        }
        Ok(Some(stored.open(&self.ring)?))
    }
}

struct ChunkWriter<'a> {
    chunks: &'a Chunks,
    buffer: Vec<u8>,
    done: &'a std::cell::Cell<u64>,
    total: u64,
}

impl ChunkWriter<'_> {
    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        let chunk = ExportChunk {
            data: data.into(),
            done: self.done.get(),
            total: self.total,
        };
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.chunks.blocking_send(Ok(chunk)).map_err(gone)
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len();
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            Ok(())
        } else {
            self.send()
        }
    }
}
