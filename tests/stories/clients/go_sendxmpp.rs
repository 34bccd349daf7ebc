//! go-sendxmpp, for scripts: it sends to somebody, and listens. It asks for a subscription with its
//! raw mode; the devices beside it, and the reader of the history, are the testkit's own client.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Result, ensure};
use chancery_testkit::server::{PASSWORD, Server, Shape};

use super::{LIMIT, authorities, named, recorded, run};
use crate::play::play;

struct Account<'a> {
    server: &'a Server,
    config: PathBuf,
    authorities: PathBuf,
}

impl<'a> Account<'a> {
    fn new(server: &'a Server, name: &str, gateway: usize) -> Result<Self> {
        use std::io::Write;
        let config = server.home().join(format!("{name}.sendxmpprc"));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&config)?;
        let domain = server.domain();
        let address = server.c2s[gateway % server.c2s.len()];
        writeln!(
            file,
            "username: {name}@{domain}\njserver: {address}\npassword: {PASSWORD}"
        )?;
        Ok(Self {
            server,
            config,
            authorities: authorities(server)?,
        })
    }

    fn command(&self, trusted: &Path) -> Command {
        let mut command = Command::new("go-sendxmpp");
        command
            .arg("--file")
            .arg(&self.config)
            .env("SSL_CERT_FILE", trusted)
            .env("SSL_CERT_DIR", "/nonexistent");
        command
    }

    /// What it is to send it reads from its standard input.
    fn said(&self, command: &mut Command, text: &str) -> Result<bool> {
        let input = self.server.home().join("input");
        std::fs::write(&input, text)?;
        let output = run(command.stdin(std::fs::File::open(&input)?), LIMIT)?;
        Ok(output.status.success())
    }

    fn send(&self, to: &str, body: &str) -> Result<()> {
        let sent = self.said(self.command(&self.authorities).arg(to), body)?;
        ensure!(sent, "{body:?} was not sent");
        Ok(())
    }

    fn raw(&self, to: &str, xml: &str) -> Result<()> {
        let sent = self.said(self.command(&self.authorities).args(["--raw", to]), xml)?;
        ensure!(sent, "{xml:?} was not sent");
        Ok(())
    }

    fn listen(&self) -> Result<Listener> {
        let heard = self.config.with_extension("heard");
        let child = self
            .command(&self.authorities)
            .arg("--listen")
            .stdout(std::fs::File::create(&heard)?)
            .stderr(std::fs::File::create(self.config.with_extension("err"))?)
            .spawn()?;
        Ok(Listener { child, heard })
    }
}

struct Listener {
    child: Child,
    heard: PathBuf,
}

impl Listener {
    /// Waits until it has printed these, in this order, each once, as from `sender`.
    async fn hears(&self, sender: &str, bodies: &[&str]) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let text = std::fs::read_to_string(&self.heard)?;
            let heard: Vec<&str> = text
                .lines()
                .filter_map(|line| line.split_once(&format!(" {sender}: ")))
                .map(|(_, body)| body)
                .collect();
            if heard == bodies {
                return Ok(());
            }
            ensure!(Instant::now() < until, "heard {text:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn sends_and_listens(server: &Server) -> Result<()> {
    let domain = server.domain();
    let (alice, bob) = (format!("alice@{domain}"), format!("bob@{domain}"));
    let sender = Account::new(server, "alice", 0)?;
    let receiver = Account::new(server, "bob", 1)?;

    // Whom it does not trust it does not tell a password.
    let untrusted = sender.said(sender.command(Path::new("/dev/null")).arg(&bob), "unsaid")?;
    ensure!(!untrusted, "it trusts anybody");

    let mut desk = server.client("bob", "desk", 0).await?;
    desk.query("get", "<query xmlns='jabber:iq:roster'/>")
        .await?;
    desk.send("<presence/>").await?;
    sender.raw(&bob, &format!("<presence type='subscribe' to='{bob}'/>"))?;
    named(&mut desk, "presence", &alice, Some("subscribe")).await?;
    desk.send(format!("<presence type='subscribed' to='{alice}'/>"))
        .await?;

    let listener = receiver.listen()?;
    named(&mut desk, "presence", &format!("{bob}/go-sendxmpp"), None).await?;
    let bodies = [
        "good morning <&>",
        "\u{e4}\u{20ac}\u{1F642}",
        "and good night",
    ];
    for body in bodies {
        sender.send(&bob, body)?;
        let got = named(&mut desk, "message", &alice, Some("chat")).await?;
        ensure!(got.contains("<stanza-id"), "{got}");
    }
    listener.hears(&alice, &bodies).await?;

    // Who is not there hears it later.
    desk.send(format!(
        "<message to='{alice}' type='chat'><body>good night to you</body></message>"
    ))
    .await?;
    let back = sender.listen()?;
    back.hears(&bob, &["good night to you"]).await?;

    // A third device reads what was said.
    let mut third = server.client("alice", "third", 1).await?;
    third
        .send("<iq type='set' id='h'><query xmlns='urn:xmpp:mam:2'/></iq>")
        .await?;
    third
        .wait(|e| e.header.id.as_deref() == Some("h") && &*e.header.name == "iq")
        .await?;
    for body in [
        "good morning &lt;&amp;&gt;",
        bodies[1],
        bodies[2],
        "good night to you",
    ] {
        let text = third.stanza().await?;
        let text = String::from_utf8_lossy(&text.bytes).into_owned();
        ensure!(text.contains(&format!("<body>{body}</body>")), "{text}");
    }
    drop((listener, back));
    recorded(server, &[&bodies[..], &["good night to you"]].concat())
}

#[test]
fn in_one_process() {
    play(Shape::One, &["alice", "bob"], async |server| {
        sends_and_listens(server).await
    });
}

#[test]
fn over_two_gateways() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        sends_and_listens(server).await
    });
}
