//! The command line as an administrator uses it: on a running server, on a stopped one, and on nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::client::{Client, Login, authenticate};
use chancery_testkit::server::{Shape, binary, free_address};
use chancery_testkit::wire::trusting;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::play::play;

fn run(arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(binary()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A command that needs no input may have ended before it is written.
    let _ = child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}

/// Must succeed; what it printed.
fn must(arguments: &[&str], input: &str) -> Result<String> {
    let output = run(arguments, input)?;
    ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// Must fail; what it said.
fn must_not(arguments: &[&str], input: &str) -> Result<String> {
    let output = run(arguments, input)?;
    ensure!(
        !output.status.success(),
        "{arguments:?} succeeded: {}",
        said(&output)
    );
    Ok(said(&output))
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGTERM)?;
        let until = Instant::now() + Duration::from_secs(25);
        loop {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "ended with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < until, "does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn accounts_on_a_running_server() {
    play(Shape::One, &["alice"], async |server| {
        // The keys of RFC 7677's example: user, pencil.
        let keys = "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,\
                    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let lines =
            format!("# people\n\nuser@example.test {keys}\ncarol@example.test two words \n");
        server.must(&["user", "import", "-"], &lines)?;
        server.must(&["user", "add", "dave@example.test"], "pass dave\n")?;
        let mut login = server.login("user", "u", 0)?;
        login.password = "pencil".into();
        Client::login(&login)
            .await
            .context("imported keys")?
            .close()
            .await?;
        login.user = "dave".into();
        login.password = "pass dave".into();
        login.mechanism = "PLAIN".into();
        Client::login(&login)
            .await
            .context("added")?
            .close()
            .await?;
        login.user = "carol".into();
        login.password = "two words ".into();
        Client::login(&login)
            .await
            .context("imported, with spaces")?
            .close()
            .await?;
        server.must(&["user", "disable", "dave@example.test"], "")?;
        let listed = server.must(&["user", "list"], "")?;
        for line in [
            "alice@example.test",
            "user@example.test",
            "dave@example.test disabled",
        ] {
            ensure!(listed.lines().any(|l| l == line), "no {line} in {listed}");
        }
        // What cannot be done, says why.
        for (arguments, input, reason) in [
            (&["user", "add", "alice@example.test"][..], "x\n", "exists"),
            (
                &["user", "add", "x@elsewhere.test"],
                "x\n",
                "elsewhere.test",
            ),
            (&["user", "add", "@example.test"], "x\n", "@example.test"),
            (&["user", "add", "x@example.test"], "\n", "password"),
            (&["user", "passwd", "nobody@example.test"], "x\n", "nobody"),
            (&["user", "delete", "nobody@example.test"], "", "nobody"),
            (
                &["group", "add", "nogroup", "alice@example.test"],
                "",
                "nogroup",
            ),
            (
                &["user", "import", "-"],
                "broken\nuser2@example.test {SCRAM-SHA-256}1,x\n",
                "1",
            ),
            (&["policy", "explain", "alice@example.test", "@"], "", "@"),
        ] {
            let output = server.admin(arguments, input)?;
            let said = said(&output);
            ensure!(!output.status.success(), "{arguments:?} succeeded: {said}");
            ensure!(
                said.contains(reason),
                "{arguments:?} says no reason: {said}"
            );
        }
        // Secrets are in no log and in no store.
        server.must(
            &["user", "passwd", "alice@example.test"],
            "a telling secret\n",
        )?;
        for file in std::fs::read_dir(server.data())? {
            let path = file?.path();
            if path.is_file() {
                let bytes = std::fs::read(&path)?;
                let found = bytes.windows(16).any(|w| w == b"a telling secret");
                ensure!(!found, "a password in {}", path.display());
            }
        }
        // The socket is its owner's alone.
        let mode = std::fs::metadata(server.data().join("chancery.sock"))?
            .permissions()
            .mode();
        ensure!(mode & 0o777 == 0o600, "the socket has mode {mode:o}");
        // One server a directory.
        let second = server.admin(
            &[
                "serve",
                "--c2s",
                "off",
                "--c2s-tls",
                "127.0.0.1:1",
                "--ops",
                "off",
            ],
            "",
        )?;
        ensure!(
            !second.status.success(),
            "two servers on one data directory"
        );
        Ok(())
    });
}

#[test]
fn policies_are_checked_shown_and_explained() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        let file = server.home().join("rules.toml");
        let path = file.display().to_string();
        std::fs::write(
            &file,
            "default = \"allow\"\n[[wall]]\nname = \"w\"\nbetween = [\"red\", \"blue\"]\nkind = \"opne\"\ncolour = 1\n",
        )?;
        for command in ["check", "apply"] {
            let output = server.admin(&["policy", command, &path], "")?;
            let said = said(&output);
            ensure!(!output.status.success(), "{command}: {said}");
            for part in ["opne", "colour", ":5", ":6"] {
                ensure!(said.contains(part), "{command}: no {part} in {said}");
            }
        }
        server.must(&["group", "create", "red"], "")?;
        server.must(&["group", "create", "blue"], "")?;
        server.must(&["group", "add", "red", "alice@example.test"], "")?;
        let explained = [
            "policy",
            "explain",
            "alice@example.test",
            "bob@example.test",
        ];
        // Without the version, which each change of a group raises.
        let explain = || -> Result<String> {
            let said = server.must(&explained, "")?;
            let lines = said.lines().map(|l| {
                let (rule, rest) = l.split_once(", version ").unwrap_or((l, ""));
                format!(
                    "{rule}{}\n",
                    rest.trim_start_matches(|c: char| c.is_ascii_digit())
                )
            });
            Ok(lines.collect())
        };
        let before = explain()?;
        std::fs::write(
            &file,
            "[[wall]]\nname = \"w\"\nbetween = [\"red\", \"blue\"]\ntext = \"no\"\n",
        )?;
        server.must(&["policy", "check", &path], "")?;
        server.must(&["policy", "apply", &path], "")?;
        ensure!(
            server
                .must(&["policy", "show"], "")?
                .contains("name = \"w\"")
        );
        ensure!(
            before == explain()?,
            "nobody is in blue yet: {before} {}",
            explain()?
        );
        server.must(&["group", "add", "blue", "bob@example.test"], "")?;
        let walled = explain()?;
        ensure!(walled.contains("wall:w") && walled != before, "{walled}");
        ensure!(
            server
                .must(&["group", "list"], "")?
                .contains("bob@example.test")
        );
        server.must(&["group", "remove", "blue", "bob@example.test"], "")?;
        ensure!(explain()? == before);
        server.must(&["group", "delete", "red"], "")?;
        Ok(())
    });
}

/// The same commands when nobody serves, under the store's lock; then a server on what they made.
#[test]
fn accounts_on_a_stopped_server() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").display().to_string();
    let on = ["--data", &data, "--domain", "stopped.test"];
    let with = |arguments: &[&str]| -> Vec<String> {
        arguments
            .iter()
            .chain(&on)
            .map(|s| (*s).to_owned())
            .collect()
    };
    let must = |arguments: &[&str], input: &str| {
        let all = with(arguments);
        must(&all.iter().map(String::as_str).collect::<Vec<_>>(), input).unwrap()
    };
    must(&["user", "add", "alice@stopped.test"], "her secret\n");
    assert!(must(&["user", "list"], "").contains("alice@stopped.test"));
    let key = must(&["evidence", "key"], "");
    let (c2s, ops) = (free_address().unwrap().to_string(), free_address().unwrap());
    let shown = ops.to_string();
    let arguments = with(&["serve", "--c2s", &c2s, "--c2s-tls", "off", "--ops", &shown]);
    let child = Command::new(binary().unwrap())
        .args(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    wait_ready(ops).unwrap();
    let trust = must(&["trust", "show"], "");
    assert!(trust.contains("BEGIN CERTIFICATE"), "{trust}");
    let login = Login {
        address: c2s.parse().unwrap(),
        direct: false,
        tls: trusting(trust.as_bytes(), None).unwrap(),
        domain: "stopped.test".into(),
        user: "alice".into(),
        password: "her secret".into(),
        resource: None,
        mechanism: "SCRAM-SHA-256-PLUS".into(),
    };
    block_on(async {
        let mut alice = Client::login(&login).await.unwrap();
        alice
            .send("<message to='alice@stopped.test'><body>note</body></message>")
            .await
            .unwrap();
        alice.until_marker().await.unwrap();
    });
    running.end().unwrap();
    must(&["user", "disable", "alice@stopped.test"], "");
    assert_eq!(must(&["evidence", "key"], ""), key, "the key changed");
    let export = home.path().join("export.jsonl").display().to_string();
    must(&["evidence", "export", "--decrypt", "-o", &export], "");
    let text = std::fs::read_to_string(&export).unwrap();
    assert!(
        text.contains("<body>note</body>") && text.contains("account."),
        "{text}"
    );
    must(&["verify", &export, "--key", key.trim()], "");
}

fn wait_ready(ops: std::net::SocketAddr) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(40);
    loop {
        if let Ok((200, _)) = chancery_testkit::server::get(ops, "/ready") {
            return Ok(());
        }
        if Instant::now() > until {
            bail!(
                "not ready: {:?}",
                chancery_testkit::server::get(ops, "/ready")
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that is wrong is named at once, with its line, and nothing starts.
#[test]
fn a_bad_configuration_starts_nothing() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("chancery.toml");
    let path = file.display().to_string();
    let data = home.path().join("data");
    std::fs::write(
        &file,
        format!(
            "[server]\ndomains = [\"a b\"]\ndata = {data:?}\nrols = [\"gateway\"]\n\n\
             [listen]\nc2s = \"nowhere\"\n\n[gateway]\nsasl_attempts = 50\n\n[gatway]\nx = 1\n"
        ),
    )
    .unwrap();
    for arguments in [
        &["config", "check", "--config", &path][..],
        &["serve", "--config", &path],
    ] {
        let said = must_not(arguments, "").unwrap();
        for part in [
            "a b",
            "rols",
            "roles",
            "nowhere",
            "sasl_attempts",
            "gatway",
            &format!("{path}:2"),
            &format!("{path}:4"),
            &format!("{path}:7"),
        ] {
            assert!(said.contains(part), "{arguments:?}: no {part} in\n{said}");
        }
    }
    assert!(!data.exists(), "something was started");
    std::fs::write(
        &file,
        format!("[server]\ndomains = [\"good.test\"]\ndata = {data:?}\n"),
    )
    .unwrap();
    must(&["config", "check", "--config", &path], "").unwrap();
    let shown = must(&["config", "show", "--config", &path], "").unwrap();
    std::fs::write(&file, &shown).unwrap();
    assert_eq!(
        must(&["config", "show", "--config", &path], "").unwrap(),
        shown,
        "show is not a file"
    );
}

/// K8: what would be unsafe does not start, and says why.
#[test]
fn unsafe_files_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(vec!["k8.test".to_owned()]).unwrap();
    let (chain, private) = (home.path().join("c.pem"), home.path().join("k.pem"));
    std::fs::write(&chain, key.cert.pem()).unwrap();
    std::fs::write(&private, key.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = home.path().join("chancery.toml");
    std::fs::write(
        &file,
        format!(
            "[server]\ndomains = [\"k8.test\"]\ndata = {:?}\n[listen]\nc2s = \"127.0.0.1:0\"\nc2s_tls = \"off\"\nops = \"off\"\n\
             [tls.\"k8.test\"]\ncertificate = {chain:?}\nkey = {private:?}\n",
            home.path().join("data")
        ),
    )
    .unwrap();
    let said = must_not(&["serve", "--config", &file.display().to_string()], "").unwrap();
    assert!(
        said.contains("k.pem") && said.contains("open to everybody"),
        "{said}"
    );
}

/// `demo`: what it prints is enough to connect, and the wall that it speaks of is there.
#[test]
fn the_demo_does_what_it_says() {
    let (c2s, tls, ops) = (
        free_address().unwrap(),
        free_address().unwrap(),
        free_address().unwrap(),
    );
    let mut child = Command::new(binary().unwrap())
        .args([
            "demo",
            "--c2s",
            &c2s.to_string(),
            "--c2s-tls",
            &tls.to_string(),
            "--ops",
            &ops.to_string(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut running = Running(child);
    let mut printed = String::new();
    while !printed.contains("Ctrl-C") {
        assert!(
            output.read_line(&mut printed).unwrap() > 0,
            "the demo ended: {printed}"
        );
    }
    let password = |name: &str| {
        let line = printed
            .lines()
            .find(|l| l.trim().starts_with(&format!("{name}@localhost")));
        let rest = line.and_then(|l| l.split_once("password ")).unwrap().1;
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let trust = printed
        .lines()
        .find_map(|l| l.trim().strip_prefix("trust"))
        .unwrap()
        .trim();
    let pem = std::fs::read(Path::new(trust)).unwrap();
    let login = |name: &str, direct: bool| Login {
        address: if direct { tls } else { c2s },
        direct,
        tls: trusting(&pem, None).unwrap(),
        domain: "localhost".into(),
        user: name.into(),
        password: password(name),
        resource: None,
        mechanism: "SCRAM-SHA-256".into(),
    };
    block_on(async {
        let mut alice = Client::login(&login("alice", false)).await.unwrap();
        let mut bob = Client::login(&login("bob", true)).await.unwrap();
        bob.send("<presence/>").await.unwrap();
        bob.until_marker().await.unwrap();
        alice
            .send("<message to='bob@localhost' type='chat'><body>hi</body></message>")
            .await
            .unwrap();
        assert_eq!(&*bob.stanza().await.unwrap().header.name, "message");
        alice
            .send("<message to='carol@localhost' type='chat'><body>hi</body></message>")
            .await
            .unwrap();
        let bounce = alice.stanza().await.unwrap();
        let text = String::from_utf8_lossy(&bounce.bytes).into_owned();
        assert!(
            text.contains("<policy-violation") && text.contains("research and trading"),
            "{text}"
        );
        let mut wrong = login("dave", false);
        wrong.password = "wrong".into();
        assert!(authenticate(&wrong).await.is_err());
    });
    running.end().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(!Path::new(trust).exists(), "the demo left its data behind");
}
