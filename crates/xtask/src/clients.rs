//! Installs the clients that we did not write, for the tests: those of every change, and the slow ones.
//! What is there stays as it is; without root, Debian's packages have to be there. Runs no test.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::ran;

/// Programs, and Debian's packages that have them.
const QUICK: [(&str, &str); 3] = [
    ("go-sendxmpp", "go-sendxmpp"),
    ("node", "nodejs"),
    ("npm", "npm"),
];
const SLOW: [(&str, &str); 8] = [
    ("profanity", "profanity"),
    ("tmux", "tmux"),
    ("dino-im", "dino-im"),
    ("Xvfb", "xvfb"),
    ("import", "imagemagick"),
    ("xdotool", "xdotool"),
    ("dbus-run-session", "dbus-daemon"),
    ("unshare", "util-linux"),
];
const SLIXMPP: [&str; 1] = ["slixmpp==1.17.0"];
/// aioxmpp 0.13 is for pyOpenSSL before 24 and names neither that nor pytz, which it needs.
const AIOXMPP: [&str; 7] = [
    "aioxmpp==0.13.3",
    "pyOpenSSL==23.2.0",
    "cryptography==41.0.7",
    "multidict==6.9.1",
    "pytz==2026.6",
    "tzlocal==5.4.5",
    "pytest==9.2.0",
];
const XMPP_JS: &str = "@xmpp/client@0.14.0";
/// A package that is installed starts no server.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// slixmpp, go-sendxmpp, @xmpp/client.
pub fn quick(root: &Path) -> Result<()> {
    debian(&QUICK)?;
    python(root, "python", "slixmpp-ready", &SLIXMPP)?;
    node(root)
}

/// aioxmpp with its tests, profanity in tmux, Dino under Xvfb.
pub fn slow(root: &Path) -> Result<()> {
    debian(&SLOW)?;
    python(root, "python", "slixmpp-ready", &SLIXMPP)?;
    python(root, "aioxmpp/python", "aioxmpp-ready", &AIOXMPP)?;
    aioxmpp_source(root)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn debian(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let policy = Path::new(POLICY);
    let own_policy = !policy.exists();
    if own_policy {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("not here, and not root to install: {missing:?}"))?;
        ran(Command::new("chmod").arg("755").arg(policy))?;
    }
    let apt = |arguments: &[&str]| {
        ran(Command::new("apt-get")
            .args(["--quiet", "--quiet"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let installed = apt(&["update"]).and_then(|()| {
        let install = ["install", "--yes", "--no-install-recommends"];
        apt(&[&install[..], &missing[..]].concat())
    });
    if own_policy {
        std::fs::remove_file(policy)?;
    }
    installed
}

/// A virtual environment; a file in it tells that it is whole.
fn python(root: &Path, name: &str, ready: &str, packages: &[&str]) -> Result<()> {
    let venv = root.join("target").join(name);
    let ready = venv.join("bin").join(ready);
    if ready.exists() {
        return Ok(());
    }
    ran(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    ran(Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet"])
        .args(packages))?;
    std::fs::write(ready, "")?;
    Ok(())
}

fn node(root: &Path) -> Result<()> {
    let place = root.join("target/node");
    if place
        .join("node_modules/@xmpp/client/package.json")
        .exists()
    {
        return Ok(());
    }
    std::fs::create_dir_all(&place)?;
    ran(Command::new("npm")
        .args([
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--silent",
        ])
        .arg("--prefix")
        .arg(&place)
        .arg(XMPP_JS))
}

/// The tests are in no package of the Python registry: Debian's source package has them.
fn aioxmpp_source(root: &Path) -> Result<()> {
    let place = root.join("target/aioxmpp");
    if place.join("source/tests/test_e2e.py").exists() {
        return Ok(());
    }
    let sources = place.join("apt");
    for directory in ["parts", "lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(sources.join(directory))?;
    }
    source_entries(&sources.join("parts"))?;
    let apt = |arguments: &[&str]| {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let options = [
            option("Dir::Etc::sourcelist", Path::new("/dev/null")),
            option("Dir::Etc::sourceparts", &sources.join("parts")),
            option("Dir::State::lists", &sources.join("lists")),
            option("Dir::Cache", &sources.join("cache")),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = Command::new("apt-get");
        command.current_dir(&place).args(["--quiet", "--quiet"]);
        for option in &options {
            command.arg("-o").arg(option);
        }
        ran(command.args(arguments))
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "--tar-only", "python-aioxmpp"])?;
    let archive = std::fs::read_dir(&place)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(".orig.tar.gz"));
    let Some(archive) = archive else {
        bail!("no source of aioxmpp in {}", place.display());
    };
    std::fs::create_dir_all(place.join("source"))?;
    ran(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(place.join("source")))
}

/// The machine's own entries for binary packages, as entries for sources.
fn source_entries(parts: &Path) -> Result<()> {
    let etc = Path::new("/etc/apt");
    let listed = std::fs::read_dir(etc.join("sources.list.d"))?;
    let files = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .chain([etc.join("sources.list")])
        .filter(|file| file.exists());
    for file in files {
        let Some(name) = file.file_name().filter(|_| {
            let kind = file.extension().and_then(|e| e.to_str());
            matches!(kind, Some("list" | "sources"))
        }) else {
            continue;
        };
        let text: Vec<String> = std::fs::read_to_string(&file)?
            .lines()
            .map(|line| match line.strip_prefix("deb ") {
                Some(rest) => format!("deb-src {rest}"),
                None if line.starts_with("Types:") => "Types: deb-src".to_owned(),
                None => line.to_owned(),
            })
            .collect();
        std::fs::write(parts.join(name), text.join("\n") + "\n")?;
    }
    Ok(())
}
