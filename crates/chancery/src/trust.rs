//! `trust show`: the certificate that clients of the local authority have to trust. The files are
//! the gateway's; here is where they are and how they are told.

use std::path::{Path, PathBuf};

use chancery_gateway::authority;

use crate::cli::Place;
use crate::config::{Overrides, Settings};
use crate::error::{Failure, OK, Outcome};
use crate::out::{raw, say};

pub fn show(place: &Place) -> Outcome {
    let settings = Settings::load(&Overrides::place(place)).map_err(Failure::problems)?;
    let trust = authority::trust_show(&settings.local_authority)?;
    say!("# {}", trust.path.display());
    say!("# SHA-256 {}", trust.sha256);
    say!("# SHA-1   {}", trust.sha1);
    for (domain, files) in &settings.tls {
        say!(
            "# {domain} does not use it: its certificate is {}",
            files.certificate.display()
        );
    }
    raw(trust.pem.as_bytes());
    Ok(OK)
}

/// Where the local authority's certificate is.
pub fn path(local_authority: &Path) -> Option<(PathBuf, String)> {
    let trust = authority::trust_show(local_authority).ok()?;
    Some((trust.path, trust.sha256))
}
