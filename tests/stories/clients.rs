//! Clients that we did not write, those that are quick enough for every change. `cargo xtask test`
//! installs them; a missing one is a failure, not a skip. Owns how a client's process is run and what
//! the log has to say of it; `long/` has those that take longer.

mod go_sendxmpp;
mod slixmpp;
mod xmpp_js;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::checker;
use chancery_testkit::client::Client;
use chancery_testkit::server::Server;

/// Clients end by themselves long before.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The repository's directory.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of a client that `cargo xtask test` installs below `target`.
pub(crate) fn installed(file: &str) -> Result<PathBuf> {
    let found = repository().join("target").join(file);
    ensure!(
        found.exists(),
        "no {}; `cargo xtask test`, or `cargo xtask test long`, makes it",
        found.display()
    );
    Ok(found.canonicalize()?)
}

/// One file with what clients of every gateway have to trust.
pub(crate) fn authorities(server: &Server) -> Result<PathBuf> {
    let file = server.home().join("authorities.pem");
    let read = |n: usize| std::fs::read_to_string(server.authority(n));
    std::fs::write(&file, format!("{}\n{}", read(0)?, read(1)?))?;
    Ok(file)
}

/// Runs a client to its end; what it says goes to files, so that it never waits for a reader.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let (out, err) = (
        tempfile::NamedTempFile::new()?,
        tempfile::NamedTempFile::new()?,
    );
    let mut child = command
        .stdout(out.reopen()?)
        .stderr(err.reopen()?)
        .spawn()
        .with_context(|| format!("{command:?}; `cargo xtask test` installs it"))?;
    let status = ended(&mut child, limit);
    let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path());
    let (stdout, stderr) = (read(&out)?, read(&err)?);
    let status = status.with_context(|| {
        let (said, complained) = (
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr),
        );
        format!("{command:?}: {said}{complained}")
    })?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// The same; it must succeed. Gives what it printed.
pub(crate) fn must(command: &mut Command) -> Result<String> {
    let output = run(command.stdin(Stdio::null()), LIMIT)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

fn ended(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client's script: it ends with `all well`, and what it says that it sent is in the log, each once.
fn script(server: &Server, command: &mut Command, at_least: usize) -> Result<()> {
    let said = must(command)?;
    ensure!(
        said.lines().any(|line| line == "all well"),
        "did not get to its end: {said}"
    );
    let bodies: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("sent: "))
        .collect();
    ensure!(bodies.len() >= at_least, "only {} messages", bodies.len());
    recorded(server, &bodies)
}

/// Each of these bodies is in the log once, and the log is whole.
pub(crate) fn recorded(server: &Server, bodies: &[&str]) -> Result<()> {
    let (file, key) = server.export(true)?;
    server.must(&["verify", &file.display().to_string(), "--key", &key], "")?;
    let records = checker::read(&file)?;
    for body in bodies {
        let escaped = body
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let found = records
            .iter()
            .filter(|r| r.payload.contains(&format!("<body>{escaped}</body>")))
            .count();
        ensure!(found == 1, "{found} records of {body:?}");
    }
    Ok(())
}

/// Waits for a stanza of this name and type that comes from there; gives its text.
pub(crate) async fn named(
    client: &mut Client,
    name: &str,
    from: &str,
    type_: Option<&str>,
) -> Result<String> {
    let found = client
        .wait(|e| {
            &*e.header.name == name
                && e.header.type_.as_deref() == type_
                && e.header
                    .from
                    .as_deref()
                    .is_some_and(|f| f.starts_with(from))
        })
        .await
        .with_context(|| format!("{name} {type_:?} of {from}"))?;
    Ok(String::from_utf8_lossy(&found.bytes).into_owned())
}
