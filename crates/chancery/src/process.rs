//! `process.json` in the data directory: which domains and roles the directory was last served
//! with, so that commands on a stopped server know them. Also makes the directory itself. Not a
//! configuration: a server reads nothing from it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chancery_api::Role;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::error::Failure;

/// What a data directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub domains: Vec<String>,
    pub roles: Vec<String>,
}

fn path(data: &Path) -> PathBuf {
    data.join("process.json")
}

impl Process {
    /// Of these settings.
    pub fn of(settings: &Settings) -> Self {
        let roles = Role::SERVICES.iter().filter(|role| settings.runs(**role));
        Self {
            domains: settings.domains.clone(),
            roles: roles.map(|role| role.name().to_owned()).collect(),
        }
    }

    /// As it was kept; none in a directory that was never served.
    pub fn load(data: &Path) -> Result<Option<Self>, Failure> {
        let path = path(data);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
        }
    }

    /// Keeps it, whole or not at all.
    pub fn keep(&self, data: &Path) -> Result<(), Failure> {
        if Self::load(data).ok().flatten().as_ref() == Some(self) {
            return Ok(());
        }
        let fresh = data.join("process.json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(fresh, path(data))?;
        Ok(())
    }

    /// Does everything run in this one process?
    pub fn is_whole(&self) -> bool {
        Role::SERVICES
            .iter()
            .all(|role| self.roles.iter().any(|name| name == role.name()))
    }
}

/// The data directory, for its owner's eyes only, where there is none yet.
pub fn make_data_directory(data: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|error| Failure::new(format!("data directory {}: {error}", data.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn is_kept_and_found_again() {
        let data = tempfile::tempdir().unwrap();
        assert!(Process::load(data.path()).unwrap().is_none());
        let process = Process {
            domains: vec!["a.example".into()],
            roles: vec!["archive".into()],
        };
        process.keep(data.path()).unwrap();
        assert_eq!(Process::load(data.path()).unwrap(), Some(process.clone()));
        assert!(!process.is_whole());
        fs::write(data.path().join("process.json"), "{").unwrap();
        assert!(
            Process::load(data.path())
                .unwrap_err()
                .to_string()
                .contains("process.json")
        );
    }
}
