//! Every command that README.md and docs/ show to a reader in a `sh` block is run, page by page and in
//! order, each page on a fresh data directory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What runs until it is stopped, and the words after which it serves. A demo has its own directory.
const SERVE: &[(&str, &str)] = &[
    ("cargo run --release -- demo", "Ctrl-C"),
    ("target/release/chancery demo", "Ctrl-C"),
    ("target/release/chancery serve", "serving"),
];
/// What runs this test.
const CALLER: &str = "cargo xtask test";
/// How long a server may take; the first may have to be built.
const START_LIMIT: Duration = Duration::from_secs(900);
/// Looks at a server that was interrupted, 50 ms apart, until it is killed: 30 s.
const STOP_TRIES: u32 = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
    found.sort();
}

/// The `sh` blocks of a page.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line == "```sh" => open = Some(String::new()),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// Interrupts it when the test is over, however it ends.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(-i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGINT);
        for _ in 0..STOP_TRIES {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
        assert!(
            std::thread::panicking(),
            "it does not stop when interrupted"
        );
    }
}

/// Starts it, waits until it serves, and stops it.
fn serve(command: &str, ready: &str, data: Option<&Path>) {
    use std::os::unix::process::CommandExt;
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec {command} 2>&1")])
        .current_dir(root())
        .env_remove("CHANCERY_DATA")
        .envs(data.map(|data| ("CHANCERY_DATA", data)))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let _serving = Serving(child);
    let (said, heard) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    let mut printed = String::new();
    while !printed.contains(ready) {
        match heard.recv_timeout(START_LIMIT) {
            Ok(line) => printed.push_str(&format!("{line}\n")),
            Err(_) => panic!("`{command}` does not serve:\n{printed}"),
        }
    }
}

fn run(block: &str, data: &Path) {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", block])
        .current_dir(root())
        .env("CHANCERY_DATA", data)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{block}ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_command_that_is_shown_works() {
    let mut files = vec![root().join("README.md")];
    pages(&root().join("docs"), &mut files);
    let mut ran = 0;
    for file in files {
        let data = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for block in blocks(&text) {
            let command = block.trim();
            if command.starts_with(CALLER) {
                continue;
            }
            match SERVE.iter().find(|(known, _)| *known == command) {
                Some((_, ready)) => {
                    let own = command.ends_with("demo");
                    serve(command, ready, (!own).then_some(data.path()));
                }
                None => run(&block, data.path()),
            }
            ran += 1;
        }
    }
    assert!(ran >= 20, "only {ran} blocks were found");
    std::fs::remove_dir_all(root().join("chancery-local")).unwrap();
}

/// Tables that pages show are the ones that the code makes.
#[test]
fn lists_in_pages_are_the_published_ones() {
    let evidence = std::fs::read_to_string(root().join("docs/comply/evidence.md")).unwrap();
    for table in [
        chancery_xmpp::exempt::markdown(),
        chancery_xmpp::strip::markdown(),
    ] {
        assert!(
            evidence.contains(table.trim()),
            "docs/comply/evidence.md is stale:\n{table}"
        );
    }
}

/// A row of a table: its first cell and its last one.
fn rows(page: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let rows = text.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let (first, rest) = row.split_once(" | ")?;
        let (_, last) = rest.rsplit_once(" | ")?;
        Some((first.to_owned(), last.to_owned()))
    });
    rows.filter(|(_, last)| !last.starts_with("test")).collect()
}

/// The tests that a cell names are there: scenarios by their file, others by their function too.
fn named_tests(row: &str, cell: &str) -> usize {
    let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    for name in &names {
        let (file, test) = name.split_once("::").unwrap_or((name, ""));
        let text = std::fs::read_to_string(root().join(file));
        let text = text.unwrap_or_else(|error| panic!("{row}: {name}: {error}"));
        let scenario = test.is_empty() && file.ends_with(".scenario");
        let defined = text.contains(&format!("fn {test}("));
        assert!(scenario || !test.is_empty() && defined, "{row}: no {name}");
    }
    names.len()
}

/// Each row of the page of attacks has a test or says why not, each limit has one, and they are there.
#[test]
fn tests_of_attacks_and_limits_are_there() {
    let attacks = rows("docs/develop/attacks.md");
    let mut named = 0;
    for (id, tests) in &attacks {
        let count = named_tests(id, tests);
        assert!(count > 0 || tests.contains("not yet: "), "{id}");
        named += count;
    }
    let ids: std::collections::BTreeSet<&String> = attacks.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), attacks.len(), "each once");
    assert!(
        ids.len() >= 60 && named >= 100,
        "{} rows, {named}",
        ids.len()
    );
    let limits = rows("docs/operate/limits.md");
    for (limit, test) in &limits {
        assert!(named_tests(limit, test) > 0, "{limit}");
    }
    assert!(limits.len() >= 30, "{} limits", limits.len());
}
