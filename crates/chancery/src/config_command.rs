//! `config check` and `config show`.

use std::fmt::Write as _;
use std::path::Path;

use crate::cli::{Config, Place, Serve};
use crate::config::{Internal, Overrides, Settings, is_said_elsewhere};
use crate::error::{Failure, OK, Outcome};
use crate::out::say;

pub fn run(place: &Place, command: &Config) -> Outcome {
    match command {
        Config::Check(serve) => {
            let settings = load(place, serve)?;
            let missing = settings.missing_files();
            if !missing.is_empty() {
                return Err(Failure::problems(missing));
            }
            say!("no problems");
        }
        Config::Show(serve) => say!("{}", show(&load(place, serve)?).trim_end()),
    }
    Ok(OK)
}

fn load(place: &Place, serve: &Serve) -> Result<Settings, Failure> {
    let overrides = Overrides {
        place: place.clone(),
        serve: serve.clone(),
    };
    Settings::load(&overrides).map_err(Failure::problems)
}

/// The settings as a file that would give them. Secrets are in files of their own, which are named
/// and not read.
pub fn show(settings: &Settings) -> String {
    let mut out = String::new();
    let quoted = |text: &dyn std::fmt::Display| toml::Value::String(text.to_string()).to_string();
    let list = |names: Vec<String>| {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        format!("[{}]", names.join(", "))
    };
    let address = |address: Option<std::net::SocketAddr>| match address {
        Some(address) => quoted(&address),
        None => quoted(&"off"),
    };
    let _ = writeln!(out, "[server]\nname = {}", quoted(&settings.name));
    let _ = writeln!(out, "domains = {}", list(settings.domains.clone()));
    // Whole, so that the file means the same from everywhere.
    let path = |path: &Path| {
        quoted(
            &std::path::absolute(path)
                .unwrap_or_else(|_| path.to_owned())
                .display(),
        )
    };
    let _ = writeln!(out, "data = {}", path(&settings.data));
    let roles = settings
        .roles
        .iter()
        .map(|role| role.name().to_owned())
        .collect();
    let _ = writeln!(out, "roles = {}", list(roles));
    let _ = writeln!(out, "local_authority = {}", path(&settings.local_authority));
    let listen = &settings.listen;
    let _ = writeln!(out, "\n[listen]\nc2s = {}", address(listen.c2s));
    let _ = writeln!(
        out,
        "c2s_tls = {}\nops = {}",
        address(listen.c2s_tls),
        address(listen.ops)
    );
    if listen.internal.is_some() {
        let _ = writeln!(out, "internal = {}", address(listen.internal));
    }
    if !settings.remote.is_empty() {
        let _ = writeln!(out, "\n[services]");
        for (role, address) in &settings.remote {
            let _ = writeln!(out, "{} = {}", role.name(), quoted(address));
        }
    }
    match &settings.internal {
        None => {}
        Some(Internal::Directory(directory)) => {
            let _ = writeln!(out, "\n[internal]\ndirectory = {}", path(directory));
        }
        Some(Internal::Files {
            authority,
            certificate,
            key,
        }) => {
            let _ = writeln!(out, "\n[internal]\nauthority = {}", path(authority));
            let _ = writeln!(out, "certificate = {}", path(certificate));
            let _ = writeln!(out, "key = {}", path(key));
        }
    }
    for (domain, files) in &settings.tls {
        let _ = writeln!(out, "\n[tls.{}]", quoted(domain));
        let _ = writeln!(out, "certificate = {}", path(&files.certificate));
        let _ = writeln!(out, "key = {}", path(&files.key));
    }
    for (domain, of) in &settings.administrators {
        let accounts = of.accounts.iter().cloned().collect();
        let groups = of.groups.iter().cloned().collect();
        let _ = writeln!(out, "\n[domain.{}]", quoted(domain));
        let _ = writeln!(out, "administrators = {}", list(accounts));
        let _ = writeln!(out, "administrator_groups = {}", list(groups));
    }
    for (domain, contacts) in &settings.configs.gateway.contacts {
        // Addresses only, by role: a table of strings and lists of them.
        let table = toml::to_string(contacts).unwrap_or_default();
        let _ = writeln!(out, "\n[domain.{}.contacts]\n{table}", quoted(domain));
    }
    let format = format!("{:?}", settings.log_format).to_lowercase();
    let _ = writeln!(out, "\n[log]\nformat = {}", quoted(&format));
    let _ = writeln!(out, "level = {}", quoted(&settings.log_level));
    if let Some(trace) = &settings.trace {
        let _ = writeln!(out, "\n[trace]\nendpoint = {}", quoted(&trace.endpoint));
        let _ = writeln!(out, "ratio = {:?}", trace.ratio);
    }
    let configs = &settings.configs;
    section(&mut out, "gateway", &configs.gateway);
    section(&mut out, "directory", &configs.directory);
    section(&mut out, "roster", &configs.roster);
    section(&mut out, "pubsub", &configs.pubsub);
    section(&mut out, "policy", &configs.policy);
    section(&mut out, "presence", &configs.presence);
    section(&mut out, "archive", &configs.archive);
    out
}

/// A service's `Config`. Its fields are plain values, which `Debug` writes as TOML does; a test
/// reads back what is shown of every section, so that a field of another kind is noticed.
fn section(out: &mut String, name: &str, config: &dyn std::fmt::Debug) {
    let _ = writeln!(out, "\n[{name}]");
    let written = format!("{config:#?}");
    let mut lines = written.lines();
    while let Some(line) = lines.next() {
        let field = line
            .strip_prefix("    ")
            .and_then(|line| line.split_once(": "));
        let Some((key, value)) = field.filter(|(key, _)| !key.starts_with(' ')) else {
            continue;
        };
        let mut value = value.to_owned();
        if value == "[" {
            // A list, an item a line.
            let items = lines.by_ref().take_while(|line| *line != "    ],");
            value.extend(items.map(str::trim));
            value.push(']');
        }
        if !is_said_elsewhere(key) {
            let _ = writeln!(out, "{key} = {}", value.trim_end_matches(','));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn what_is_shown_gives_the_same_settings() {
        let overrides = Overrides::default();
        let text = "[server]\nname = \"x\"\ndata = \"d\"\ndomains = [\"a.example\", \"b.example\"]\n\
                    [gateway]\nfeatures_off = [\"ping\", \"carbons\"]\n\
                    [tls.\"a.example\"]\ncertificate = \"c\"\nkey = \"k\"\n\
                    [domain.\"b.example\"]\nadministrators = [\"x@b.example\"]\n\
                    administrator_groups = [\"it\"]\n[domain.\"b.example\".contacts]\nabuse = [\"mailto:a'b@b.example\"]\n";
        let settings = Settings::parse(Path::new("/etc/x.toml"), text, &overrides).unwrap();
        let shown = show(&settings);
        let again = Settings::parse(Path::new("/etc/y.toml"), &shown, &overrides)
            .unwrap_or_else(|problems| panic!("{problems:#?}\n{shown}"));
        assert_eq!(format!("{settings:#?}"), format!("{again:#?}"), "{shown}");
        assert!(shown.contains("certificate = \"/etc/c\""), "{shown}");
    }

    #[test]
    fn every_field_of_every_service_is_shown() {
        let settings = Settings::load(&Overrides::default()).unwrap();
        let shown = show(&settings);
        for config in [
            format!("{:#?}", settings.configs.gateway),
            format!("{:#?}", settings.configs.archive),
            format!("{:#?}", settings.configs.directory),
            format!("{:#?}", settings.configs.policy),
        ] {
            for line in config
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(": "))
            {
                let key = line.0.trim();
                let shown = shown.contains(&format!("\n{key} = "));
                assert!(
                    shown || !config.contains(&format!("\n    {key}: ")) || is_said_elsewhere(key),
                    "{key}"
                );
            }
        }
    }
}
