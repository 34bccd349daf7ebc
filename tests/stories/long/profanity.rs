//! profanity, two of them in tmux: Alice signs in over verified TLS, asks for a subscription and answers
//! one, chats with Bob at one device while the other shows it too, and has her history when she comes
//! back. Bob is slixmpp (`tests/clients/echo.py`). What the terminals show is what is asserted.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chancery_testkit::server::{PASSWORD, Server, Shape};

use crate::clients::{authorities, installed, must, recorded, repository};
use crate::play::play;

const LIMIT: Duration = Duration::from_secs(60);

/// A tmux server of the test's own.
struct Terminals {
    socket: PathBuf,
}

impl Terminals {
    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command
            .arg("-S")
            .arg(&self.socket)
            .args(["-f", "/dev/null"]);
        must(command.args(arguments).env("LC_ALL", "C.UTF-8"))
    }

    fn open(&self, name: &str, command: &str) -> Result<()> {
        let size = ["-x", "150", "-y", "45"];
        let arguments = [&["new-session", "-d", "-s", name][..], &size, &[command]].concat();
        self.tmux(&arguments)?;
        Ok(())
    }

    fn line(&self, name: &str, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-t", name, "-l", text])?;
        self.tmux(&["send-keys", "-t", name, "Enter"])?;
        Ok(())
    }

    /// Waits until the terminal shows all of these.
    fn shows(&self, name: &str, texts: &[&str]) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let shown = self.tmux(&["capture-pane", "-p", "-J", "-t", name])?;
            if texts.iter().all(|text| shown.contains(text)) {
                return Ok(());
            }
            let lines: Vec<&str> = shown.lines().filter(|l| !l.trim().is_empty()).collect();
            ensure!(
                Instant::now() < until,
                "{name}: not all of {texts:?} in\n{}",
                lines.join("\n")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the terminal's program has ended.
    fn gone(&self, name: &str) -> Result<()> {
        let until = Instant::now() + LIMIT;
        while self.tmux(&["has-session", "-t", name]).is_ok() {
            ensure!(Instant::now() < until, "{name} does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

/// The command of a profanity of its own, with an account that connects at the start.
fn profanity(server: &Server, device: &str, gateway: usize) -> Result<String> {
    let home = server.home().join(device);
    let (config, data) = (home.join("config/profanity"), home.join("data/profanity"));
    std::fs::create_dir_all(&config)?;
    std::fs::create_dir_all(&data)?;
    std::fs::write(
        config.join("profrc"),
        "[ui]\nsplash=false\n[chatstates]\nenabled=true\n",
    )?;
    let domain = server.domain();
    let address = server.c2s[gateway % server.c2s.len()];
    let mut account = String::new();
    writeln!(account, "[alice]\nenabled=true\njid=alice@{domain}")?;
    writeln!(account, "server={}\nport={}", address.ip(), address.port())?;
    writeln!(account, "password={PASSWORD}\nresource={device}")?;
    writeln!(account, "tls.policy=force")?;
    std::fs::write(data.join("accounts"), account)?;
    let env = |name: &str, value: &Path| format!("{name}={}", value.display());
    Ok(format!(
        "env {} {} {} LC_ALL=C.UTF-8 profanity -f {} -a alice",
        env("XDG_CONFIG_HOME", &home.join("config")),
        env("XDG_DATA_HOME", &home.join("data")),
        env("SSL_CERT_FILE", &authorities(server)?),
        home.join("log").display(),
    ))
}

struct Bob(Child);

impl Bob {
    fn start(server: &Server) -> Result<Self> {
        let python = installed("python/bin/slixmpp-ready")?.with_file_name("python");
        let said = server.home().join("bob.out");
        let gateway = server.c2s.len() - 1;
        let child = Command::new(python)
            .arg(repository().join("tests/clients/echo.py"))
            .args(["--domain", server.domain()])
            .args(["--address", &server.c2s[gateway].to_string()])
            .arg("--authority")
            .arg(server.authority(gateway))
            .env("CHANCERY_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&said)?)
            .stderr(std::fs::File::create(server.home().join("bob.err"))?)
            .spawn()?;
        let bob = Self(child);
        let until = Instant::now() + LIMIT;
        while !std::fs::read_to_string(&said)?.contains("ready") {
            ensure!(
                Instant::now() < until,
                "Bob is not ready: {}",
                std::fs::read_to_string(server.home().join("bob.err"))?
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(bob)
    }
}

impl Drop for Bob {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn story(server: &Server) -> Result<()> {
    let bob = format!("bob@{}", server.domain());
    let _bob = Bob::start(server)?;
    let terminals = Terminals {
        socket: server.home().join("tmux"),
    };
    let (one, two) = (profanity(server, "one", 0)?, profanity(server, "two", 1)?);
    for (name, command) in [("one", &one), ("two", &two)] {
        terminals.open(name, command)?;
        let logged_in = format!("/{name} logged in successfully");
        terminals.shows(name, &[&logged_in, "[TLS] [online]"])?;
    }

    terminals.line("one", &format!("/sub request {bob}"))?;
    let asked = format!("Received authorization request from {bob}");
    let subscribed = format!("Subscription received from {bob}");
    for name in ["one", "two"] {
        terminals.shows(name, &[&subscribed, &asked])?;
    }
    terminals.line("one", &format!("/sub allow {bob}"))?;
    terminals.shows("one", &[&format!("Accepted subscription for {bob}")])?;
    terminals.line("one", "/roster")?;
    terminals.shows("one", &[&format!("{bob} - both")])?;

    let answer = format!("{bob}/desk: echo: hello Bob");
    terminals.line("one", &format!("/msg {bob} hello Bob"))?;
    let online = format!("{bob} [online]");
    terminals.shows("one", &[&online, "me: hello Bob", &answer])?;
    // The other device has carbons of both.
    terminals.line("two", "/win 2")?;
    terminals.shows("two", &["me: hello Bob", &answer])?;
    terminals.line("two", "and from here")?;
    let other = format!("{bob}/desk: echo: and from here");
    for name in ["one", "two"] {
        terminals.shows(name, &["me: and from here", &other])?;
    }

    // Away, and back: profanity has what both devices said.
    terminals.line("one", "/quit")?;
    terminals.gone("one")?;
    terminals.open("one", &one)?;
    terminals.shows("one", &["/one logged in successfully", "[TLS] [online]"])?;
    terminals.line("one", "/history on")?;
    terminals.line("one", &format!("/msg {bob}"))?;
    terminals.shows(
        "one",
        &["hello Bob", "echo: hello Bob", "echo: and from here"],
    )?;
    for name in ["one", "two"] {
        terminals.line(name, "/quit")?;
        terminals.gone(name)?;
    }
    let bodies = [
        "hello Bob",
        "echo: hello Bob",
        "and from here",
        "echo: and from here",
    ];
    recorded(server, &bodies)
}

#[test]
fn in_one_process() {
    play(Shape::One, &["alice", "bob"], async |server| story(server));
}

#[test]
fn over_two_gateways() {
    play(Shape::Many, &["alice", "bob"], async |server| story(server));
}
