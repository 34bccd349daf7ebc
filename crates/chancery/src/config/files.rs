//! Files that a configuration names: there, readable, and a key not open to everybody.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use chancery_api::Role;

use super::read::{Place, Problem};
use super::settings::{Internal, Settings};

impl Settings {
    /// Files that are named and cannot be used: found before anything starts. Those of `[tls]` are
    /// read whole by the gateway, still before it listens.
    pub fn missing_files(&self) -> Vec<Problem> {
        let mut named: Vec<(&str, &Path)> = Vec::new();
        let mut secret: Vec<(&str, &Path)> = Vec::new();
        if let Some(Internal::Files {
            authority,
            certificate,
            key,
        }) = &self.internal
        {
            named.push(("[internal] authority", authority));
            named.push(("[internal] certificate", certificate));
            secret.push(("[internal] key", key));
        }
        for files in self.tls.values().filter(|_| self.runs(Role::Gateway)) {
            named.push(("[tls] certificate", &files.certificate));
            secret.push(("[tls] key", &files.key));
        }
        let problem = |path: &Path, text: String| Problem {
            place: Place::File(path.to_owned(), 0),
            text,
        };
        let mut problems = Vec::new();
        for (what, path) in named.iter().chain(&secret) {
            if let Err(error) = std::fs::File::open(path) {
                problems.push(problem(path, format!("{what}: {error}")));
            }
        }
        for (what, path) in &secret {
            let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
            if mode & 0o007 != 0 {
                problems.push(problem(
                    path,
                    format!("{what}: open to everybody (mode {:o})", mode & 0o777),
                ));
            }
        }
        problems
    }
}
