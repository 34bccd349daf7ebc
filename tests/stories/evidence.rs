//! The log as an officer gets it: exported, checked, tampered with, and complete; and what operators
//! see of the processes that write it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chancery_testkit::checker::{self, Record};
use chancery_testkit::server::{Server, Setup, Shape};

use crate::play::{play, play_with};

/// A short conversation that ends up in the log.
async fn converse(server: &Server, count: usize) -> Result<()> {
    let mut alice = server.client("alice", "a", 0).await?;
    alice.enable().await?;
    let mut bob = server.client("bob", "b", 1).await?;
    bob.enable().await?;
    bob.send("<presence/>").await?;
    for number in 0..count {
        alice
            .send(format!(
                "<message to='bob@example.test' type='chat' id='e{number}'><body>text {number}</body></message>"
            ))
            .await?;
    }
    alice.settled().await?;
    let mut came = 0;
    while came < count {
        came += usize::from(&*bob.stanza().await?.header.name == "message");
    }
    bob.close().await?;
    alice.close().await
}

/// Exit code and text of `verify`.
fn verify(server: &Server, file: &Path, key: &str) -> Result<(i32, String)> {
    let output = server.admin(&["verify", &file.display().to_string(), "--key", key], "")?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.status.code().context("no exit code")?, text))
}

#[test]
fn every_change_of_an_export_is_found() {
    play(Shape::One, &["alice", "bob"], async |server| {
        converse(server, 12).await?;
        let (file, key) = server.export(true)?;
        let (code, said) = verify(server, &file, &key)?;
        ensure!(code == 0, "clean: {code} {said}");
        let clean = std::fs::read(&file)?;
        let changed = server.home().join("changed.jsonl");
        let check = |bytes: &[u8]| -> Result<(i32, String)> {
            std::fs::write(&changed, bytes)?;
            verify(server, &changed, &key)
        };
        let starts: Vec<usize> = std::iter::once(0)
            .chain(
                clean
                    .iter()
                    .enumerate()
                    .filter(|(_, b)| **b == b'\n')
                    .map(|(at, _)| at + 1),
            )
            .collect();
        let lines: Vec<&[u8]> = clean.split_inclusive(|b| *b == b'\n').collect();
        let first: u64 = number(lines[0])?;

        // Any byte flipped: not clean, and the record is named when it is in one.
        let step = clean.len() / 60;
        for at in (0..clean.len())
            .step_by(step.max(1))
            .chain([clean.len() - 2])
        {
            let mut bytes = clean.clone();
            bytes[at] ^= 1;
            let (code, said) = check(&bytes)?;
            let line = starts.iter().rposition(|start| *start <= at).unwrap();
            ensure!(code == 1, "byte {at} of line {line}: {code} {said}");
            if line + 1 < lines.len() {
                let named = format!("number {} ", first + line as u64);
                ensure!(said.contains(&named), "byte {at} of line {line}: {said}");
            }
        }
        // The tail cut, with and without the manifest's line.
        for keep in [lines.len() - 1, lines.len() - 4, 1] {
            let (code, said) = check(&lines[..keep].concat())?;
            ensure!(code == 2, "{keep} lines: {code} {said}");
        }
        let (code, said) = check(&clean[..clean.len() - 10])?;
        ensure!(code == 2 || code == 1, "cut in the manifest: {code} {said}");
        // Two lines swapped, one taken out, one twice.
        let mut swapped = lines.clone();
        swapped.swap(4, 5);
        let (code, said) = check(&swapped.concat())?;
        ensure!(
            code == 1 && said.contains(&format!("number {} ", first + 4)),
            "swapped: {code} {said}"
        );
        let mut without = lines.clone();
        without.remove(3);
        let (code, said) = check(&without.concat())?;
        ensure!(
            code == 1 && said.contains(&format!("number {} ", first + 3)),
            "taken out: {code} {said}"
        );
        let mut twice = lines.clone();
        twice.insert(3, lines[2]);
        let (code, said) = check(&twice.concat())?;
        ensure!(code == 1, "twice: {code} {said}");
        // Nothing that can be read; and another key.
        let (code, said) = check(b"nonsense\n")?;
        ensure!(code == 3, "nonsense: {code} {said}");
        let (code, said) = check(b"")?;
        ensure!(code == 3 || code == 2, "empty: {code} {said}");
        ensure!(
            verify(server, &file, "ed25519:AAAA")?.0 == 3,
            "a key that is none"
        );
        ensure!(
            verify(server, &server.home().join("none"), &key)?.0 == 3,
            "no file"
        );
        Ok(())
    });
}

fn number(line: &[u8]) -> Result<u64> {
    let value: serde_json::Value = serde_json::from_slice(line)?;
    value["number"].as_u64().context("no number")
}

/// One record changed and every hash behind it computed anew, the manifest's as well: whoever has no
/// key cannot sign the lines, and the first of them is named.
#[test]
fn a_chain_computed_anew_is_found_at_its_first_record() {
    play(Shape::One, &["alice", "bob"], async |server| {
        converse(server, 6).await?;
        let (file, key) = server.export(false)?;
        let clean = std::fs::read_to_string(&file)?;
        let mut lines: Vec<String> = clean.lines().map(str::to_owned).collect();
        let manifest = lines.pop().context("no manifest")?;
        let at = 4;
        let named = format!("number {} ", number(lines[at].as_bytes())?);
        // What the record before said of itself, and what it says now.
        let mut hashes = None;
        for line in &mut lines[at..] {
            let value: serde_json::Value = serde_json::from_str(line)?;
            let member = |name: &str| value[name].as_str().context("no such member");
            let (record, hash) = (member("record")?, member("hash")?);
            let mut stored = STANDARD.decode(record)?;
            match &hashes {
                // The first is changed where its content is sealed.
                None => *stored.last_mut().context("empty")? ^= 1,
                Some((before, now)) => replace(&mut stored, before, now)?,
            }
            let anew = chancery_evidence::record_hash(&stored);
            let (old, new) = (hash.to_owned(), hex(&anew));
            *line = line
                .replace(record, &STANDARD.encode(&stored))
                .replace(&old, &new);
            if let Some((before, now)) = &hashes {
                *line = line.replace(&hex(before), &hex(now));
            }
            hashes = Some((bytes_of(&old)?, anew));
        }
        let (before, now) = hashes.context("nothing was computed")?;
        let manifest = manifest.replace(&hex(&before), &hex(&now));
        ensure!(manifest.contains(&hex(&now)), "the head is in the manifest");
        lines.push(manifest);
        let forged = server.home().join("forged.jsonl");
        std::fs::write(&forged, lines.join("\n") + "\n")?;
        let (code, said) = verify(server, &forged, &key)?;
        ensure!(code == 1 && said.contains(&named), "anew: {code} {said}");
        Ok(())
    });
}

/// Puts `now` where `before` is.
fn replace(bytes: &mut [u8], before: &[u8; 32], now: &[u8; 32]) -> Result<()> {
    let at = bytes.windows(32).position(|window| window == before);
    let at = at.context("the record does not name the one before it")?;
    bytes[at..at + 32].copy_from_slice(now);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = hex.get(2 * at..2 * at + 2).context("a short hash")?;
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(bytes)
}

/// All hashes and signatures computed anew, by another log: only the right key is believed.
#[test]
fn a_log_signed_by_somebody_else_is_not_believed() {
    play(Shape::One, &["alice", "bob"], async |server| {
        converse(server, 3).await?;
        let (file, key) = server.export(false)?;
        let other = Server::start(Shape::One, Setup::default())?;
        other.accounts(&["alice", "bob"])?;
        converse(&other, 3).await?;
        let (forged, forged_key) = other.export(false)?;
        ensure!(forged_key != key, "two deployments, one key");
        ensure!(
            verify(server, &forged, &forged_key)?.0 == 0,
            "the other log is clean in itself"
        );
        let (code, said) = verify(server, &forged, &key)?;
        ensure!(code == 1 || code == 3, "recomputed: {code} {said}");
        // One record of ours replaced by one of theirs, all else in place.
        let ours = std::fs::read_to_string(&file)?;
        let theirs = std::fs::read_to_string(&forged)?;
        let mut lines: Vec<&str> = ours.lines().collect();
        let at = lines.len() - 3;
        let first = number(lines[0].as_bytes())?;
        lines[at] = theirs
            .lines()
            .nth(at.min(theirs.lines().count() - 2))
            .context("no line")?;
        let mixed = server.home().join("mixed.jsonl");
        std::fs::write(&mixed, lines.join("\n") + "\n")?;
        let (code, said) = verify(server, &mixed, &key)?;
        let named = format!("number {} ", first + at as u64);
        ensure!(code == 1 && said.contains(&named), "mixed: {code} {said}");
        Ok(())
    });
}

/// I7: numbers without gaps, what gateways counted equals what is there, and acts are records.
#[test]
fn the_log_is_complete_over_a_restart() {
    for shape in [Shape::One, Shape::Many] {
        let complaints = ["lost", "lane", "link", "unreachable", "transport"];
        play_with(
            shape,
            Setup::default(),
            &["alice", "bob"],
            &complaints,
            async |server| {
                converse(server, 25).await?;
                server.must(&["group", "create", "research"], "")?;
                server.must(&["group", "add", "research", "alice@example.test"], "")?;
                let policy = server.home().join("rules.toml");
                std::fs::write(&policy, "default = \"allow\"\n")?;
                server.must(&["policy", "apply", &policy.display().to_string()], "")?;
                server.must(&["user", "disable", "bob@example.test"], "")?;
                server.must(&["user", "enable", "bob@example.test"], "")?;
                server.export(false)?;
                server.stop()?;
                server.start_all()?;
                converse(server, 5).await?;
                // The counters of what came after the restart are told at the end.
                server.stop()?;
                server.start_all()?;
                let (file, key) = server.export(true)?;
                let (code, said) = verify(server, &file, &key)?;
                ensure!(code == 0, "{code} {said}");
                let records = checker::read(&file)?;
                for pair in records.windows(2) {
                    ensure!(
                        pair[1].number == pair[0].number + 1,
                        "a gap behind {}",
                        pair[0].number
                    );
                    ensure!(
                        pair[1].time_ms >= pair[0].time_ms,
                        "time went back at {}",
                        pair[1].number
                    );
                }
                let messages: Vec<&Record> =
                    records.iter().filter(|r| r.kind == "message").collect();
                ensure!(messages.len() == 30, "{} messages", messages.len());
                ensure!(
                    messages
                        .iter()
                        .all(|r| r.verdict == "allow" && r.policy_version > 0)
                );
                counted(&records)?;
                let text: String = records
                    .iter()
                    .map(|r| r.detail.as_str())
                    .collect::<Vec<_>>()
                    .join("\n");
                for act in ["account.", "group.", "policy.", "evidence."] {
                    ensure!(text.contains(act), "no record of {act}: {text}");
                }
                Ok(())
            },
        );
    }
}

/// What the gateways said they had recorded, against what is there.
fn counted(records: &[Record]) -> Result<()> {
    let mut told = 0;
    for record in records
        .iter()
        .filter(|r| r.detail.contains("gateway.permits"))
    {
        let said: serde_json::Value = serde_json::from_str(&record.payload)?;
        told += said["recorded"]
            .as_u64()
            .with_context(|| format!("no count in {said}"))?;
    }
    let there = records
        .iter()
        .filter(|r| ["message", "presence", "iq"].contains(&r.kind.as_str()))
        .count();
    ensure!(
        told == there as u64,
        "gateways told of {told} records, {there} are there"
    );
    Ok(())
}

/// Without the officer's flag nothing is readable; JIDs and bodies are in no file in clear text.
#[test]
fn what_is_sealed_stays_sealed() {
    play(Shape::One, &["alice", "bob"], async |server| {
        converse(server, 3).await?;
        let (file, _) = server.export(false)?;
        let text = std::fs::read_to_string(&file)?;
        ensure!(
            !text.contains("text 1") && !text.contains("alice@"),
            "an export without --decrypt"
        );
        let log = std::fs::read(server.data().join("log.db"))?;
        let wal = std::fs::read(server.data().join("log.db-wal")).unwrap_or_default();
        for bytes in [log, wal] {
            ensure!(
                !bytes.windows(12).any(|w| w == b"<body>text 1"),
                "a body in the store"
            );
        }
        let (file, _) = server.export(true)?;
        ensure!(std::fs::read_to_string(&file)?.contains("text 1"));
        Ok(())
    });
}

#[test]
fn several_domains_have_logs_of_their_own() {
    let setup = Setup {
        domains: vec!["example.test".into(), "second.test".into()],
        ..Setup::default()
    };
    play_with(Shape::One, setup, &["alice", "bob"], &[], async |server| {
        server.must(&["user", "add", "eve@second.test"], "her secret\n")?;
        converse(server, 4).await?;
        let file = server.home().join("second.jsonl");
        let path = file.display().to_string();
        let of = ["--domain", "second.test"];
        server.must(
            &["evidence", "export", "--decrypt", "-o", &path, of[0], of[1]],
            "",
        )?;
        let key = server.must(&["evidence", "key", of[0], of[1]], "")?;
        ensure!(
            key != server.must(&["evidence", "key"], "")?,
            "one key for two domains"
        );
        let (code, said) = verify(server, &file, key.trim())?;
        ensure!(code == 0, "{code} {said}");
        let text = std::fs::read_to_string(&file)?;
        ensure!(
            !text.contains("text 1") && !text.contains("alice"),
            "another domain's record"
        );
        Ok(())
    });
}

/// What operators see: alive, ready, and counted.
#[test]
fn metrics_and_readiness_mean_something() {
    let complaints = [
        "lost",
        "lane",
        "link",
        "unreachable",
        "transport",
        "policy",
        "directory",
    ];
    play_with(
        Shape::Many,
        Setup::default(),
        &["alice", "bob"],
        &complaints,
        async |server| {
            converse(server, 5).await?;
            let gateway = server.metrics("gw1")?;
            // What is shown may be a moment old.
            let until = Instant::now() + Duration::from_secs(15);
            let mut archive = server.metrics("archive")?;
            while !archive
                .lines()
                .any(|line| counts(line, "chancery_archive_records_total", 5.0))
            {
                ensure!(Instant::now() < until, "not counted: {archive}");
                std::thread::sleep(Duration::from_millis(100));
                archive = server.metrics("archive")?;
            }
            for (text, service) in [(&gateway, "gateway"), (&archive, "archive")] {
                ensure!(
                    text.contains(&format!("# HELP chancery_{service}_")),
                    "{service}: {text}"
                );
                ensure!(
                    text.contains(&format!("# TYPE chancery_{service}_")),
                    "{service}: {text}"
                );
                ensure!(!text.contains("alice"), "a JID in the metrics");
            }
            ensure!(server.probe("gw1", "/live")?.0 == 200);
            ensure!(server.probe("gw1", "/ready")?.0 == 200);
            server.kill("policy")?;
            wait_for(server, "gw1", 503)?;
            ensure!(
                server.probe("gw1", "/live")?.0 == 200,
                "not ready is not dead"
            );
            let reason = server.probe("gw1", "/ready")?.1;
            ensure!(reason.contains("policy"), "no reason: {reason}");
            server.start_again("policy")?;
            wait_for(server, "gw1", 200)?;
            converse(server, 1).await
        },
    );
}

/// Is this the sample of a counter of this prefix that reached `least`?
fn counts(line: &str, prefix: &str, least: f64) -> bool {
    line.starts_with(prefix)
        && line
            .rsplit(' ')
            .next()
            .and_then(|v| v.parse::<f64>().ok())
            .is_some_and(|v| v >= least)
}

fn wait_for(server: &Server, role: &str, status: u16) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let (got, body) = server.probe(role, "/ready")?;
        if got == status {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{role} is {got}, not {status}: {body}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
