//! Clients that we did not write. `tests/clients/chat.py` is slixmpp; its virtual environment is made
//! by `cargo xtask test`, and a missing one is a failure, not a skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::checker;
use chancery_testkit::server::{PASSWORD, Server, Shape};

use crate::play::play;

/// The script ends by itself long before.
const LIMIT: Duration = Duration::from_secs(120);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn python() -> Result<PathBuf> {
    let found = repository().join("target/python/bin/python");
    ensure!(
        found.exists(),
        "no {}; `cargo xtask test` makes it (python3 -m venv target/python && \
         target/python/bin/pip install slixmpp==1.17.0)",
        found.display()
    );
    Ok(found)
}

fn slixmpp(server: &Server) -> Result<()> {
    server.introduce("alice", "bob")?;
    let mut child = Command::new(python()?)
        .arg(repository().join("tests/clients/chat.py"))
        .arg("--domain")
        .arg(server.domain())
        .arg("--first")
        .arg(server.c2s[0].to_string())
        .arg("--first-authority")
        .arg(server.authority(0))
        .arg("--second")
        .arg(server.c2s[server.c2s.len() - 1].to_string())
        .arg("--second-authority")
        .arg(server.authority(1))
        .env("CHANCERY_PASSWORD", PASSWORD)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let until = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            let output = child.wait_with_output()?;
            bail!(
                "slixmpp does not end: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "slixmpp: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What it says that it sent is in the log, each once.
    let (file, key) = server.export(true)?;
    server.must(&["verify", &file.display().to_string(), "--key", &key], "")?;
    let records = checker::read(&file)?;
    let mut count = 0;
    for body in said.lines().filter_map(|line| line.strip_prefix("sent: ")) {
        let found = records
            .iter()
            .filter(|r| r.payload.contains(&format!("<body>{body}</body>")))
            .count();
        ensure!(found == 1, "{found} records of {body:?}");
        count += 1;
    }
    ensure!(count >= 5, "only {count} messages: {said}");
    said.lines()
        .find(|line| *line == "all well")
        .context("did not get to its end")?;
    Ok(())
}

#[test]
fn slixmpp_in_one_process() {
    play(Shape::One, &["alice", "bob"], async |server| {
        slixmpp(server)
    });
}

#[test]
fn slixmpp_over_two_gateways() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        slixmpp(server)
    });
}
