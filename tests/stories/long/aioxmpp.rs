//! aioxmpp's own end-to-end tests, against a deployment of ours. None may fail; which ones it does not
//! run, and why, has to be known here, and is told in docs/develop/tests.md.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};

use crate::clients::{authorities, installed, must};
use crate::play::play_with;

/// The suite takes as many accounts as a test wants; the first looks for what the server can do.
const ACCOUNTS: [&str; 8] = [
    "user1", "user2", "user3", "user4", "user5", "user6", "user7", "user8",
];
/// How many of its tests run.
const PASSING: usize = 39;
/// Why others do not: what the server does not have yet, and what the suite itself leaves out.
const LEFT_OUT: [(&str, usize); 6] = [
    ("the provisioned account does not support PEP", 7),
    (
        "no peer could provide a subset of {'http://jabber.org/protocol/pubsub",
        2,
    ),
    (
        "provisioner does not provide a peer with ['urn:xmpp:http:upload:0']",
        1,
    ),
    (
        "provisioner does not provide a peer with ['http://jabber.org/protocol/muc']",
        17,
    ),
    ("provisioner has quirk <Quirk.NO_ADHOC_PING", 2),
    ("this test breaks with SM", 2),
];
/// Administrators see commands.
const CONFIG: &str = "[domain.\"example.test\"]\nadministrators = [\"user1@example.test\"]\n";

fn configuration(server: &Server) -> String {
    let accounts: Vec<String> = ACCOUNTS
        .iter()
        .map(|name| format!("({name:?}, {PASSWORD:?})"))
        .collect();
    let address = server.c2s[server.c2s.len() - 1];
    format!(
        "[global]\n\
         provisioner=aioxmpp.e2etest.provision.StaticPasswordProvisioner\n\
         timeout=20\n\
         [aioxmpp.e2etest.provision.StaticPasswordProvisioner]\n\
         host={}\nport={}\ndomain={}\naccounts=[{}]\n\
         quirks=[\"https://zombofant.net/xmlns/aioxmpp/e2etest/quirks#no-adhoc-ping\"]\n",
        address.ip(),
        address.port(),
        server.domain(),
        accounts.join(", ")
    )
}

fn suite(server: &Server) -> Result<()> {
    let source = installed("aioxmpp/source/tests/test_e2e.py")?;
    let source = source.ancestors().nth(2).context("no source")?;
    let config = server.home().join("e2etest.ini");
    std::fs::write(&config, configuration(server))?;
    let python = installed("aioxmpp/python/bin/aioxmpp-ready")?.with_file_name("python");
    let mut command = Command::new(python);
    command
        .current_dir(source)
        .args([
            "-m",
            "pytest",
            "-p",
            "aioxmpp.e2etest",
            "-p",
            "no:cacheprovider",
        ])
        .args(["-q", "-rsfE", "-W", "ignore", "-m", "aioxmpp_e2etest"])
        .arg("--e2etest-config")
        .arg(&config)
        .args(["tests/test_e2e.py", "tests/im/test_p2p.py"]);
    let mut files: Vec<_> = std::fs::read_dir(source.join("tests"))?
        .filter_map(|entry| Some(entry.ok()?.path().join("test_e2e.py")))
        .filter(|file| file.exists())
        .collect();
    files.sort();
    command
        .args(files)
        .env("SSL_CERT_FILE", authorities(server)?)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("COLUMNS", "400");
    judge(&must(&mut command)?)
}

/// Each test that did not run is known, in number and reason.
fn judge(said: &str) -> Result<()> {
    let mut left_out = [0; LEFT_OUT.len()];
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        let known = LEFT_OUT.iter().position(|(why, _)| line.contains(why));
        let count: usize = line
            .split(['[', ']'])
            .nth(1)
            .and_then(|n| n.parse().ok())
            .context("no count")?;
        match known {
            Some(at) => left_out[at] += count,
            None => bail!("not run, and nobody knows why: {line}"),
        }
    }
    let expected = LEFT_OUT.map(|(_, count)| count);
    ensure!(left_out == expected, "not run: {left_out:?}\n{said}");
    let total = said.lines().last().unwrap_or_default();
    let wanted = format!(
        "{PASSING} passed, {} skipped",
        expected.iter().sum::<usize>()
    );
    ensure!(
        total.starts_with(&wanted),
        "{total:?}, not {wanted:?}\n{said}"
    );
    Ok(())
}

fn passes(shape: Shape) {
    let setup = Setup {
        config: CONFIG.into(),
        ..Setup::default()
    };
    play_with(shape, setup, &ACCOUNTS, &[], async |server| suite(server));
}

#[test]
fn own_tests_against_one_process() {
    passes(Shape::One);
}

#[test]
fn own_tests_against_eight_processes() {
    passes(Shape::Many);
}
