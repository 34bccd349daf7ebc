//! How Prosody is configured: internal storage, SCRAM keys, no limits; and the files of its accounts
//! and rosters.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use chancery_testkit::server::PASSWORD;

use super::{DOMAIN, Place};

/// Where the package puts it.
pub const PROGRAM: &str = "/usr/bin/prosody";

/// Writes configuration and accounts; gives the command that starts it.
pub fn command(place: &Place) -> Result<Command> {
    accounts(place)?;
    rosters(place)?;
    let config = place.home.join("prosody.cfg.lua");
    std::fs::write(&config, configuration(place))?;
    let mut command = Command::new(PROGRAM);
    command.arg("-F").arg("--config").arg(&config);
    Ok(command)
}

/// One file an account. Passwords in clear become SCRAM keys at the first login, which is before
/// anything is measured.
fn accounts(place: &Place) -> Result<()> {
    let directory = store(place, "accounts")?;
    for n in 0..place.users {
        let account = format!("return {{ [\"password\"] = \"{PASSWORD}\"; }};\n");
        std::fs::write(directory.join(format!("user{n}.dat")), account)?;
    }
    Ok(())
}

/// One file a user: by the handshake each of twenty thousand stanzas would write two of them.
fn rosters(place: &Place) -> Result<()> {
    let directory = store(place, "roster")?;
    for (n, contacts) in &place.rosters {
        let mut roster = String::from("return { [false] = { [\"version\"] = 1; };\n");
        for contact in contacts {
            roster.push_str(&format!(
                "[\"user{contact}@{DOMAIN}\"] = {{ [\"subscription\"] = \"both\"; \
                 [\"groups\"] = {{}}; }};\n"
            ));
        }
        roster.push_str("};\n");
        std::fs::write(directory.join(format!("user{n}.dat")), roster)?;
    }
    Ok(())
}

/// The directory of a store.
fn store(place: &Place, name: &str) -> Result<PathBuf> {
    // Prosody's file names: everything but letters, digits and the like as %xx.
    let domain = DOMAIN.replace('.', "%2e");
    let directory = place.home.join("data").join(domain).join(name);
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn configuration(place: &Place) -> String {
    let (home, ip, port) = (
        place.home.display(),
        place.address.ip(),
        place.address.port(),
    );
    let archive = if place.archive { "\"mam\";" } else { "" };
    format!(
        r#"-- One process on loopback, made for one measurement.
run_as_root = true
data_path = "{home}/data"
pidfile = "{home}/prosody.pid"
certificates = "{home}"
log = {{ warn = "{home}/server.log" }}
interfaces = {{ "{ip}" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{ }}
network_settings = {{ tcp_backlog = 4096 }}
s2s_ports = {{ }}
s2s_direct_tls_ports = {{ }}
http_ports = {{ }}
https_ports = {{ }}
modules_enabled = {{
    "roster"; "saslauth"; "tls"; "disco"; "ping"; "posix"; "carbons"; "smacks"; {archive}
}}
modules_disabled = {{ "s2s"; "limits" }}
authentication = "internal_hashed"
storage = "internal"
default_archive_policy = true
c2s_require_encryption = true
ssl = {{
    certificate = "{certificate}";
    key = "{key}";
    protocol = "tlsv1_3";
}}
VirtualHost "{DOMAIN}"
"#,
        certificate = place.certificate.display(),
        key = place.key.display(),
    )
}
