//! Certificates and keys: those that clients see, of each domain, and those that this process shows
//! to the others. Owns which file or authority each comes from; reads no certificate itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use chancery_api::Role;
use chancery_api::channel::Credentials;
use chancery_gateway::{Certificates, authority};
use chancery_runtime::Failpoints;

use crate::config::{Internal, Settings};
use crate::error::Failure;
use crate::wiring::Base;

/// Certificates of all domains, the default one first: those of the configuration, and leaves of
/// the local authority for the others.
pub fn certificates(settings: &Settings, base: &Base) -> Result<Arc<Certificates>, Failure> {
    let configured = &settings.configs.gateway.certificates;
    let has = |domain: &String| configured.iter().any(|files| files.domain == *domain);
    let without: Vec<String> = settings
        .domains
        .iter()
        .filter(|domain| !has(domain))
        .cloned()
        .collect();
    let mut files = configured.clone();
    if !without.is_empty() {
        let dir = &settings.local_authority;
        files.extend(authority::certificates(
            dir,
            &without,
            &base.clock,
            &base.ids,
        )?);
    }
    files.sort_by_key(|files| {
        settings
            .domains
            .iter()
            .position(|domain| *domain == files.domain)
    });
    Certificates::load(files, base.clock.clone())
        .map_err(|problems| Failure(problems.iter().map(ToString::to_string).collect()))
}

/// What this process shows to the others, if there are any.
pub fn credentials(settings: &Settings, base: &Base) -> Result<Option<Credentials>, Failure> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    Ok(match &settings.internal {
        None => None,
        Some(Internal::Files {
            authority,
            certificate,
            key,
        }) => Some(Credentials {
            authority: read(authority)?,
            chain: read(certificate)?,
            key: read(key)?,
        }),
        Some(Internal::Directory(directory)) => {
            let roles = shown(&settings.roles);
            Some(authority::internal_credentials(
                directory,
                &roles,
                &base.clock,
                &base.ids,
            )?)
        }
    })
}

/// The roles that a process's certificate names. Whoever serves the administrator's socket hands
/// on what comes by it.
fn shown(roles: &BTreeSet<Role>) -> Vec<Role> {
    let admin = roles.contains(&Role::Directory).then_some(Role::Admin);
    roles.iter().copied().chain(admin).collect()
}

/// `internal-certs`: makes what processes with one role each would make at their start.
pub fn internal_certs(directory: &Path) -> Result<(), Failure> {
    let base = Base::new(Failpoints::off());
    for role in Role::SERVICES {
        let roles = shown(&BTreeSet::from([role]));
        authority::internal_credentials(directory, &roles, &base.clock, &base.ids)?;
    }
    Ok(())
}
