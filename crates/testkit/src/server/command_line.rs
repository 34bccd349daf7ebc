//! The administrator's part of a deployment: the command line run on it, accounts, exports.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use super::{PASSWORD, Server};
use crate::place::binary;

impl Server {
    /// Runs the command line on this deployment.
    pub fn admin(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(binary()?)
            .args(arguments)
            .arg("--data")
            .arg(self.data())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no stdin")?
            .write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// The same; must succeed. Gives what it printed.
    pub fn must(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.admin(arguments, input)?;
        if !output.status.success() {
            bail!(
                "{arguments:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Adds accounts, all with [`PASSWORD`], in the default domain.
    pub fn accounts(&self, names: &[&str]) -> Result<()> {
        if let Some(foreign) = &self.foreign {
            return names
                .iter()
                .try_for_each(|name| foreign.prepare(&["account", name, PASSWORD]));
        }
        let file = self.home.path().join("accounts.txt");
        let domain = self.domain();
        let lines: String = names
            .iter()
            .map(|name| format!("{name}@{domain} {PASSWORD}\n"))
            .collect();
        std::fs::write(&file, lines)?;
        self.must(&["user", "import", &file.display().to_string()], "")?;
        Ok(())
    }

    /// Puts two accounts into each other's rosters.
    pub fn introduce(&self, one: &str, other: &str) -> Result<()> {
        if let Some(foreign) = &self.foreign {
            return foreign.prepare(&["introduce", one, other]);
        }
        let domain = self.domain();
        let (one, other) = (format!("{one}@{domain}"), format!("{other}@{domain}"));
        self.must(
            &["roster", "put", &one, &other, "--subscription", "both"],
            "",
        )?;
        self.must(
            &["roster", "put", &other, &one, "--subscription", "both"],
            "",
        )?;
        Ok(())
    }

    /// Exports the log; gives the file and the public key's text.
    pub fn export(&self, decrypt: bool) -> Result<(PathBuf, String)> {
        let file = self.home.path().join("export.jsonl");
        let shown = file.display().to_string();
        let mut arguments = vec!["evidence", "export", "-o", &shown];
        if decrypt {
            arguments.push("--decrypt");
        }
        self.must(&arguments, "")?;
        Ok((file, self.must(&["evidence", "key"], "")?.trim().to_owned()))
    }
}
