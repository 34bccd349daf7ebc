//! What `/ready` asks: does each service of this process answer, does its store take writes, is a
//! policy in force, do the gateway's lanes and links stand. A probe asks for little and changes
//! nothing.

use std::path::PathBuf;
use std::sync::Arc;

use chancery_api::archive::StatusRequest;
use chancery_api::directory::DomainsRequest;
use chancery_api::pubsub::GetVcardRequest;
use chancery_api::roster::SubscriptionsRequest;
use chancery_api::{ApiError, Cx};
use chancery_runtime::Stage;

use crate::config::Settings;
use crate::ops::Probe;
use crate::wiring::{Base, Opened};

/// Free space below which the disk counts as full.
const FREE_BYTES: u64 = 64 * 1024 * 1024;

/// The probes of a process, by name.
pub fn all(settings: &Settings, base: &Base, opened: &Opened) -> Vec<(&'static str, Probe)> {
    let mut probes: Vec<(&'static str, Probe)> = Vec::new();
    let local = opened.local();
    if let Some(archive) = local.archive.clone() {
        probes.push((
            "archive",
            Box::new(move || {
                let archive = Arc::clone(&archive);
                Box::pin(async move { said(archive.status(&Cx::local(), StatusRequest {}).await) })
            }),
        ));
    }
    if let Some(directory) = local.directory.clone() {
        probes.push((
            "directory",
            Box::new(move || {
                let directory = Arc::clone(&directory);
                Box::pin(
                    async move { said(directory.domains(&Cx::local(), DomainsRequest {}).await) },
                )
            }),
        ));
    }
    if let Some(roster) = local.roster.clone() {
        // Nobody's roster: read from the store like any other.
        let owner = format!(
            "ready@{}",
            settings.domains.first().map_or("", String::as_str)
        );
        probes.push((
            "roster",
            Box::new(move || {
                let (roster, owner) = (Arc::clone(&roster), owner.clone());
                Box::pin(async move {
                    said(
                        roster
                            .subscriptions(&Cx::local(), SubscriptionsRequest { owner })
                            .await,
                    )
                })
            }),
        ));
    }
    if let Some(pubsub) = local.pubsub.clone() {
        let owner = format!(
            "ready@{}",
            settings.domains.first().map_or("", String::as_str)
        );
        probes.push((
            "pubsub",
            Box::new(move || {
                let (pubsub, owner) = (Arc::clone(&pubsub), owner.clone());
                Box::pin(async move {
                    let request = GetVcardRequest { owner };
                    said(pubsub.get_vcard(&Cx::local(), request).await)
                })
            }),
        ));
    }
    if let Some(policy) = opened.policy.clone() {
        probes.push((
            "policy",
            Box::new(move || {
                let in_force = policy.version_in_force();
                Box::pin(async move {
                    in_force
                        .map(drop)
                        .ok_or_else(|| "no policy in force, the directory is away".into())
                })
            }),
        ));
    }
    if let Some(gateway) = opened.gateway.clone() {
        probes.push((
            "gateway",
            Box::new(move || {
                let missing = gateway.unready();
                Box::pin(async move {
                    if missing.is_empty() {
                        Ok(())
                    } else {
                        Err(format!("without {}", missing.join(", ")))
                    }
                })
            }),
        ));
    }
    let data = settings.data.clone();
    let tasks = base.shutdown.tasks(Stage::Log).clone();
    probes.push((
        "disk",
        Box::new(move || {
            let asked = tasks.spawn_blocking("disk probe", {
                let data = data.clone();
                move || disk(&data)
            });
            Box::pin(async move { asked.await.unwrap_or_else(|error| Err(error.to_string())) })
        }),
    ));
    probes
}

fn said<T>(answer: Result<T, ApiError>) -> Result<(), String> {
    answer.map(drop).map_err(|error| error.message)
}

/// Takes the data directory a write, and has it room?
fn disk(data: &PathBuf) -> Result<(), String> {
    let space = nix::sys::statvfs::statvfs(data).map_err(|error| error.to_string())?;
    let free = space
        .blocks_available()
        .saturating_mul(space.fragment_size());
    if free < FREE_BYTES {
        return Err(format!("{free} bytes are free, fewer than {FREE_BYTES}"));
    }
    let file = data.join(".ready");
    std::fs::write(&file, b"ready").map_err(|error| error.to_string())?;
    std::fs::remove_file(&file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_directory_that_takes_no_writes_is_not_ready() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(disk(&data.path().to_owned()), Ok(()));
        assert!(std::fs::read_dir(data.path()).unwrap().next().is_none());
        assert!(disk(&PathBuf::from("/proc/self")).is_err());
        assert!(disk(&PathBuf::from("/nonexistent")).is_err());
    }
}
