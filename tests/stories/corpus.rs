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

/// Files put together and changed at random, without guidance: `CHANCERY_FUZZ_TIMES` is the number for
/// each target, `CHANCERY_FUZZ_SEED` replays.
#[test]
fn files_changed_at_random_are_taken() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap())
    };
    let times = number("CHANCERY_FUZZ_TIMES", 2_000);
    let seed = number("CHANCERY_FUZZ_SEED", 1);
    for (name, entry) in entries::TARGETS {
        let dir = corpus().join(name);
        let files: Vec<Vec<u8>> = names(&dir)
            .iter()
            .map(|file| std::fs::read(dir.join(file)).unwrap())
            .collect();
        for round in 0..times {
            let ids = chancery_runtime::Ids::seeded(seed.wrapping_add(round));
            let data = changed(&files, &ids);
            let taken = std::panic::catch_unwind(|| entry(&data));
            let round_seed = seed.wrapping_add(round);
            assert!(taken.is_ok(), "{name}, seed {round_seed}: {data:?}");
        }
    }
}

/// A file with up to eight changes: a byte, a piece of another file, a piece less, a piece twice.
fn changed(files: &[Vec<u8>], ids: &chancery_runtime::Ids) -> Vec<u8> {
    let below = |limit: usize| {
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from(ids.number() % limit).unwrap()
    };
    let mut data = files[below(files.len())].clone();
    for _ in 0..=below(8) {
        let at = below(data.len() + 1);
        match below(4) {
            0 => {
                let byte = [
                    b'<', b'>', b'/', b'\'', b'"', b'&', b';', b'=', b' ', 0, 0xc0,
                ];
                data.insert(at, byte[below(byte.len())]);
            }
            1 => {
                let other = &files[below(files.len())];
                let from = below(other.len() + 1);
                let to = from + below((other.len() - from).min(64) + 1);
                data.splice(at..at, other[from..to].iter().copied());
            }
            2 => {
                let to = at + below((data.len() - at).min(16) + 1);
                data.drain(at..to);
            }
            _ => {
                let to = at + below((data.len() - at).min(64) + 1);
                let piece = data[at..to].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}
