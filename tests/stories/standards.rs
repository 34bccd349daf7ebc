//! The table of standards: it is the one that the code makes, every row is proved, and a feature that
//! is switched off is gone with its advertisement and its scenarios.
//!
//! proves: XEP-0478

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use chancery_gateway::iq::{advertised, markdown, optional, standards};
use chancery_testkit::runner;
use chancery_testkit::scenario::{self, Scenario};
use chancery_testkit::server::{Setup, Shape};

use crate::play::{play, play_with};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every scenario, by name.
fn scenarios() -> BTreeMap<String, Scenario> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        all.insert(name, scenario::parse(&text).unwrap());
    }
    all
}

/// Files below a directory.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// By standard, what proves it: scenarios, and stories in italics.
fn proofs() -> BTreeMap<String, Vec<String>> {
    let mut proofs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, scenario) in scenarios() {
        for standard in scenario.proves {
            proofs.entry(standard).or_default().push(name.clone());
        }
    }
    for path in below(&root().join("tests/stories")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let Some(line) = text
            .lines()
            .find_map(|line| line.strip_prefix("//! proves: "))
        else {
            continue;
        };
        let name = format!("*{}*", path.file_stem().unwrap().to_string_lossy());
        for standard in line.split(',') {
            let standard = standard.trim().to_owned();
            proofs.entry(standard).or_default().push(name.clone());
        }
    }
    for names in proofs.values_mut() {
        names.sort();
    }
    proofs
}

fn table() -> String {
    let mut proofs = proofs();
    let mut out = String::from(
        "| standard | version | what | may be switched off | proved by scenarios, *stories* |\n\
         |---|---|---|---|---|\n",
    );
    for row in standards() {
        let proved = proofs.remove(row.name).unwrap_or_default();
        assert!(!proved.is_empty(), "{} is proved by nothing", row.name);
        let switch = optional().find(|name| *name == row.feature);
        let switch = switch.map(|name| format!("`{name}`")).unwrap_or_default();
        out.push_str(&format!(
            "| {} | {} | {} | {switch} | {} |\n",
            row.name,
            row.version,
            row.status,
            proved.join(", ")
        ));
    }
    assert!(proofs.is_empty(), "no such standards: {proofs:?}");
    out
}

/// Compares what stands between two marks of a page, or writes it.
fn compare(page: &str, mark: &str, made: &str) {
    let path = root().join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let from = text.find(&open).unwrap() + open.len();
    let to = text.find(&close).unwrap();
    if std::env::var_os("CHANCERY_WRITE_DOCS").is_some() {
        let written = format!("{}{made}{}", &text[..from], &text[to..]);
        std::fs::write(&path, written).unwrap();
    } else {
        assert!(
            text[from..to] == *made,
            "{page} is stale between the marks {mark}; it should be\n{made}"
        );
    }
}

#[test]
fn the_manual_has_the_table() {
    compare("docs/xeps.md", "standards", &table());
    compare("docs/xeps.md", "requests", &markdown());
}

/// What a server without this feature, and with it, says of itself.
async fn said(server: &mut chancery_testkit::server::Server) -> Result<String> {
    let mut client = server.client("alice", "a", 0).await?;
    let mut said = client.wire.features.clone();
    let query = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
    for to in [server.domain().to_owned(), client.bare().to_owned()] {
        client
            .send(format!("<iq type='get' id='d' to='{to}'>{query}</iq>"))
            .await?;
        let answer = client.wait(|e| e.header.id.as_deref() == Some("d")).await?;
        said.push_str(&String::from_utf8_lossy(&answer.bytes));
    }
    client.close().await?;
    Ok(said)
}

#[test]
fn limits_are_advertised_after_authentication() {
    play(Shape::One, &["alice"], async |server| {
        let said = said(server).await?;
        ensure!(
            said.contains("<limits xmlns='urn:xmpp:stream-limits:0'>")
                && said.contains("<max-bytes>"),
            "{said}"
        );
        Ok(())
    });
}

/// Features under test at once: most of the time a scenario waits for what does not come.
const AT_ONCE: usize = 4;

#[test]
fn a_feature_that_is_off_is_gone_with_its_advertisement_and_its_scenarios() {
    let (scenarios, proofs) = (scenarios(), proofs());
    let features: Vec<&str> = optional().collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(feature) = features.get(next.fetch_add(1, Ordering::Relaxed)) {
                    is_gone(feature, &scenarios, &proofs);
                }
            });
        }
    });
}

fn is_gone(
    feature: &str,
    scenarios: &BTreeMap<String, Scenario>,
    proofs: &BTreeMap<String, Vec<String>>,
) {
    let config = format!("[gateway]\nfeatures_off = [{feature:?}]\n");
    let left = advertised(&[feature.to_owned()]);
    let all = advertised(&[]).into_iter();
    let gone: Vec<String> = all.filter(|one| !left.contains(one)).collect();
    let setup = Setup {
        config: config.clone(),
        ..Setup::default()
    };
    play_with(Shape::One, setup, &["alice"], &[], async |server| {
        let said = said(server).await?;
        for one in &gone {
            // A namespace stands in quotes, an element as it is.
            let written = match one.starts_with('<') {
                true => one.clone(),
                false => format!("'{one}'"),
            };
            ensure!(
                !said.contains(&written),
                "{feature} is off, and {one} advertised"
            );
        }
        Ok(())
    });
    let proving = standards()
        .into_iter()
        .filter(|row| row.feature == feature)
        .filter_map(|row| proofs.get(row.name))
        .flatten();
    for name in proving {
        let Some(scenario) = scenarios.get(name) else {
            continue; // a story
        };
        let mut scenario = scenario.clone();
        scenario.config = match scenario.config.find("[gateway]") {
            Some(_) => scenario.config.replace("[gateway]\n", &config),
            None => format!("{}\n{config}", scenario.config),
        };
        let ran = runner::run(&scenario, Shape::One);
        assert!(ran.is_err(), "{name} passes without {feature}");
    }
}

#[test]
fn the_core_cannot_be_switched_off() {
    for name in chancery_gateway::iq::CORE {
        let config = format!("[gateway]\nfeatures_off = [{name:?}]\n");
        let setup = Setup {
            config,
            ..Setup::default()
        };
        let started = chancery_testkit::server::Server::start(Shape::One, setup);
        let error = started.err().context("it starts").unwrap();
        assert!(format!("{error:#}").contains("switched off"), "{error:#}");
    }
}
