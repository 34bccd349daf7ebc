//! A program in a window on an invisible screen (Xvfb): starts both, types, clicks and takes pictures.
//! The program gets names and trust of its own in namespaces of its own, so the machine keeps its;
//! that needs root. Owns nothing of the program.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::clients::must;

/// How long a screen may take to be there.
const START_LIMIT: Duration = Duration::from_secs(20);
/// An address that nobody else listens at, where the standard's port is free for this process.
pub(super) fn address() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 52, high, low.max(1))
}

pub(super) struct Desktop {
    display: String,
    screen: Child,
    program: Option<Child>,
    home: PathBuf,
}

impl Desktop {
    pub(super) fn start(home: &Path) -> Result<Self> {
        std::fs::create_dir_all(home)?;
        let number = home.join("display");
        let screen = Command::new("Xvfb")
            .args(["-displayfd", "1", "-nolisten", "tcp"])
            .args(["-screen", "0", "1200x800x24"])
            .stdout(std::fs::File::create(&number)?)
            .stderr(Stdio::null())
            .spawn()
            .context("Xvfb; `cargo xtask test clients` installs it")?;
        let mut desktop = Self {
            display: String::new(),
            screen,
            program: None,
            home: home.into(),
        };
        let until = Instant::now() + START_LIMIT;
        while desktop.display.is_empty() {
            let said = std::fs::read_to_string(&number)?;
            if said.ends_with('\n') {
                desktop.display = format!(":{}", said.trim());
            }
            ensure!(Instant::now() < until, "no screen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(desktop)
    }

    /// Starts a program for which `domain` is at [`address`], and which trusts `authorities`.
    pub(super) fn run(&mut self, program: &str, domain: &str, authorities: &Path) -> Result<()> {
        let hosts = self.home.join("hosts");
        let known = std::fs::read_to_string("/etc/hosts")?;
        std::fs::write(&hosts, format!("{known}\n{} {domain}\n", address()))?;
        let script = format!(
            "mount --bind {} /etc/hosts && mount --bind {} /etc/ssl/certs/ca-certificates.crt \
             && exec dbus-run-session -- {program}",
            hosts.display(),
            authorities.display()
        );
        let log = std::fs::File::create(self.log())?;
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script])
            .env("HOME", &self.home)
            .env("XDG_DATA_HOME", self.home.join("data"))
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("DISPLAY", &self.display)
            .env("GSETTINGS_BACKEND", "memory")
            .env("GSK_RENDERER", "cairo")
            .env("LIBGL_ALWAYS_SOFTWARE", "1")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.program = Some(child);
        Ok(())
    }

    /// What the program says on its terminal.
    pub(super) fn log(&self) -> PathBuf {
        self.home.join("program.log")
    }

    /// Ends the program, with all that it started.
    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(mut program) = self.program.take() {
            program.kill()?;
            program.wait()?;
        }
        Ok(())
    }

    fn tool(&self, arguments: &[&str]) -> Result<()> {
        must(
            Command::new("xdotool")
                .args(arguments)
                .env("DISPLAY", &self.display),
        )?;
        Ok(())
    }

    pub(super) fn click(&self, x: u32, y: u32) -> Result<()> {
        self.tool(&["mousemove", &x.to_string(), &y.to_string(), "click", "1"])
    }

    pub(super) fn type_line(&self, text: &str) -> Result<()> {
        self.tool(&["type", "--delay", "20", text])?;
        self.tool(&["key", "Return"])
    }

    /// Takes a picture, and gives the number of its colours.
    pub(super) fn picture(&self, file: &Path) -> Result<usize> {
        must(
            Command::new("import")
                .args(["-window", "root"])
                .arg(file)
                .env("DISPLAY", &self.display),
        )?;
        let colours = must(Command::new("identify").args(["-format", "%k"]).arg(file))?;
        Ok(colours.trim().parse()?)
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        let _ = self.end();
        let _ = self.screen.kill();
        let _ = self.screen.wait();
    }
}
