//! Every file of the fuzz corpus through the entry that its target calls, on a stable compiler: what
//! once was found, and what is known to be tricky, stays right. Owns no corpus.

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/lib.rs"]
mod entries;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_file_of_the_corpus_is_taken() {
    let targets: Vec<&str> = entries::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names(&corpus()), targets, "a directory for each target");
    let sources = names(&corpus().join("../fuzz_targets"));
    let wanted: Vec<String> = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(sources, wanted, "a source for each target");
    for (name, entry) in entries::TARGETS {
        let dir = corpus().join(name);
        let files = names(&dir);
        assert!(files.len() >= 10, "{name} has {} files", files.len());
        for file in files {
            let data = std::fs::read(dir.join(&file)).unwrap();
            let taken = std::panic::catch_unwind(|| entry(&data));
            assert!(taken.is_ok(), "{name}/{file}");
        }
    }
}

/// The files, cut short anywhere and with any one byte changed: many inputs for little.
#[test]
fn every_file_cut_and_changed_is_taken() {
    for (name, entry) in entries::TARGETS {
        let dir = corpus().join(name);
        for file in names(&dir) {
            let data = std::fs::read(dir.join(&file)).unwrap();
            let data = &data[..data.len().min(512)];
            for at in 0..data.len() {
                entry(&data[..at]);
                let mut changed = data.to_vec();
                for byte in [b'<', b'\'', b'&', 0, 0xff] {
                    changed[at] = byte;
                    entry(&changed);
                }
            }
        }
    }
}
