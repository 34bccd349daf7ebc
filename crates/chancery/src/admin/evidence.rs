//! `evidence`: the log of a domain written to a file, and the key that its manifest is signed with.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chancery_api::Cx;
use chancery_api::archive::{ExportRequest, PublicKeyRequest};

use super::{Admin, about, actor, cx};
use crate::cli::Evidence;
use crate::error::{Failure, OK, Outcome};
use crate::out::{note, progress, raw, say};

/// Until the first chunk comes.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Between two chunks; longer means that the archive is gone.
const CHUNK_LIMIT: Duration = Duration::from_secs(60);

pub async fn run(admin: &Admin, command: Evidence) -> Outcome {
    match command {
        Evidence::Key => {
            say!("{}", key(admin, &admin.domain().await?).await?);
            Ok(OK)
        }
        Evidence::Export {
            first,
            last,
            decrypt,
            output,
        } => {
            let domain = admin.domain().await?;
            let request = ExportRequest {
                domain,
                first,
                last,
                decrypt,
                actor: actor(),
            };
            export(admin, request, &output).await
        }
    }
}

/// The public key in the form that `verify --key` takes.
pub async fn key(admin: &Admin, domain: &str) -> Result<String, Failure> {
    let request = PublicKeyRequest {
        domain: domain.to_owned(),
    };
    let answer = admin
        .archive
        .public_key(&cx(), request)
        .await
        .map_err(about(domain))?;
    Ok(format!("ed25519:{}", STANDARD.encode(&answer.key)))
}

async fn export(admin: &Admin, request: ExportRequest, output: &Path) -> Outcome {
    let domain = request.domain.clone();
    let cx = Cx::local().within(OPEN_LIMIT);
    let mut chunks = admin
        .archive
        .export(&cx, request)
        .await
        .map_err(about(&domain))?;
    let mut target = Target::open(output)?;
    let bar = progress(0, "records");
    let mut records = 0;
    loop {
        let next = tokio::time::timeout(CHUNK_LIMIT, chunks.recv()).await;
        let Some(chunk) =
            next.map_err(|_| Failure::new("the archive sends nothing more; nothing was written"))?
        else {
            break;
        };
        let chunk = chunk.map_err(about(&domain))?;
        bar.set_length(chunk.total);
        bar.set_position(chunk.done);
        records = chunk.done;
        target.write(&chunk.data)?;
    }
    bar.finish_and_clear();
    target.finish()?;
    note!("{records} records of {domain} to {}", output.display());
    Ok(OK)
}

/// Where the export goes: a file that is there whole or not at all, or standard output.
enum Target {
    Stdout,
    File {
        file: File,
        partial: PathBuf,
        place: PathBuf,
        finished: bool,
    },
}

impl Target {
    fn open(place: &Path) -> Result<Self, Failure> {
        if place == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let mut partial = place.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // May hold what was sealed: for its owner's eyes only.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .map_err(|error| Failure::new(format!("{}: {error}", partial.display())))?;
        Ok(Self::File {
            file,
            partial,
            place: place.to_owned(),
            finished: false,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => raw(bytes),
            Self::File { file, partial, .. } => file
                .write_all(bytes)
                .map_err(|error| Failure::new(format!("{}: {error}", partial.display())))?,
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        if let Self::File {
            file,
            partial,
            place,
            finished,
        } = &mut self
        {
            file.sync_all()?;
            std::fs::rename(partial, place)?;
            *finished = true;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File {
            partial,
            finished: false,
            ..
        } = self
        {
            let _ = std::fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn an_export_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("log.jsonl");
        let mut broken = Target::open(&place).unwrap();
        broken.write(b"half").unwrap();
        drop(broken);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut whole = Target::open(&place).unwrap();
        whole.write(b"whole").unwrap();
        whole.finish().unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
