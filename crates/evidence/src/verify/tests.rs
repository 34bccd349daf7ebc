//! Every way to change an export that the issue names, and every byte of a small one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::testing::{DOMAIN, OTHER, counter, log, ring};
use crate::{EvidenceError, ExportWriter, KeyRing, Sealed, Stored, record_hash};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

fn export(ring: &KeyRing, logs: &[Vec<Sealed>], open: bool) -> Vec<u8> {
    let keys = ring.domain(DOMAIN).unwrap();
    let mut writer = ExportWriter::new(Vec::new(), keys, ring.deployment());
    for record in logs.iter().flatten() {
        let opened = open.then(|| Stored::parse(&record.bytes).unwrap().open(ring).unwrap());
        writer.write(&record.bytes, opened.as_ref()).unwrap();
    }
    writer.finish(1_790_000_009_999).unwrap().0
}

fn sample(open: bool) -> (KeyRing, Vec<u8>) {
    let ring = ring();
    let file = export(&ring, &[log(&ring, 0, 6, false)], open);
    (ring, file)
}

fn check(ring: &KeyRing, file: &[u8]) -> Report {
    verify(file, &ring.public_key(DOMAIN).unwrap(), &mut |_| {})
}

fn lines(file: &[u8]) -> Vec<Vec<u8>> {
    file.split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

fn first_bad(report: &Report) -> Option<u64> {
    match &report.finding {
        Finding::Tampered { first_bad, .. } => *first_bad,
        other => panic!("not tampered: {other}"),
    }
}

#[test]
fn a_whole_export_is_clean() {
    for open in [false, true] {
        let (ring, file) = sample(open);
        let mut seen = Vec::new();
        let key = ring.public_key(DOMAIN).unwrap();
        let report = verify(&file[..], &key, &mut |progress| seen.push(progress));
        assert_eq!(report.finding, Finding::Clean, "{report}");
        assert_eq!(report.finding.exit_code(), 0);
        assert_eq!(
            (report.records, report.plaintexts),
            (6, if open { 6 } else { 0 })
        );
        assert_eq!(seen.last().unwrap().bytes, file.len() as u64);
        let manifest = report.manifest.unwrap();
        assert_eq!((manifest.lines, manifest.shards[0].count), (6, 6));
        assert_eq!(report.shards, manifest.shards);
    }
    let ring = ring();
    assert_eq!(
        check(&ring, &export(&ring, &[], false)).finding,
        Finding::Clean
    );
}

#[test]
fn shards_and_the_records_of_other_domains_are_followed() {
    let ring = ring();
    let mut logs = vec![log(&ring, 0, 9, true), log(&ring, 4, 3, false)];
    let file = export(&ring, &logs, false);
    let report = check(&ring, &file);
    assert_eq!(report.finding, Finding::Clean, "{report}");
    assert_eq!(
        (report.records, report.withheld, report.shards.len()),
        (12, 3, 2)
    );
    let text = String::from_utf8(file).unwrap();
    assert!(
        text.contains("\"heartbeat\""),
        "what is the deployment's is shown to every domain"
    );
    assert!(!text.contains(OTHER), "another domain shows nothing");
    // A part of a shard can be exported too.
    logs[0].drain(..4);
    assert_eq!(
        check(&ring, &export(&ring, &logs, false)).finding,
        Finding::Clean
    );
}

/// Each byte, in two ways, is found; in a record's line, that record is named.
#[test]
fn every_flipped_byte_is_found_and_its_record_named() {
    for open in [false, true] {
        let ring = ring();
        let file = export(
            &ring,
            &[log(&ring, 0, 3, true), log(&ring, 1, 1, false)],
            open,
        );
        // (shard, number) of each line; None for the manifest.
        let owner = [Some((0, 1)), Some((0, 2)), Some((0, 3)), Some((1, 1)), None];
        let mut line = 0;
        for at in 0..file.len() {
            for mask in [0x01, 0x80] {
                let mut bad = file.clone();
                bad[at] ^= mask;
                let report = check(&ring, &bad);
                if at == file.len() - 1 {
                    assert_eq!(
                        report.finding.exit_code(),
                        2,
                        "the last line has no end: {report}"
                    );
                    continue;
                }
                let Finding::Tampered {
                    shard, first_bad, ..
                } = &report.finding
                else {
                    panic!("byte {at} of line {line}: {report}");
                };
                let named = shard.zip(*first_bad);
                // A changed shard number looks like the end of the shard before.
                let gap = owner[line] == Some((1, 1)) && named == Some((0, 4));
                assert!(
                    gap || named == owner[line],
                    "byte {at} of line {line}: {report}"
                );
            }
            line += usize::from(file[at] == b'\n');
        }
    }
}

#[test]
fn every_cut_is_incomplete() {
    let (ring, file) = sample(true);
    let ends: Vec<usize> = (0..file.len()).filter(|at| file[*at] == b'\n').collect();
    for cut in 0..file.len() {
        let report = check(&ring, &file[..cut]);
        assert_eq!(report.finding.exit_code(), 2, "cut at {cut}: {report}");
        let whole = ends.iter().filter(|end| **end < cut).count() as u64;
        let Finding::Incomplete { missing_from, .. } = report.finding else {
            panic!()
        };
        assert_eq!(
            missing_from,
            (whole > 0).then_some(whole + 1),
            "cut at {cut}"
        );
    }
}

#[test]
fn swapped_deleted_and_doubled_lines_are_named() {
    let (ring, file) = sample(false);
    let all = lines(&file);
    for at in 0..all.len() - 2 {
        let mut swapped = all.clone();
        swapped.swap(at, at + 1);
        let report = check(&ring, &swapped.concat());
        assert_eq!(first_bad(&report), Some(at as u64 + 1), "{report}");
        let mut doubled = all.clone();
        doubled.insert(at, all[at].clone());
        assert_eq!(
            first_bad(&check(&ring, &doubled.concat())),
            Some(at as u64 + 2)
        );
    }
    for at in 1..all.len() - 2 {
        let mut deleted = all.clone();
        deleted.remove(at);
        assert_eq!(
            first_bad(&check(&ring, &deleted.concat())),
            Some(at as u64 + 1)
        );
    }
    let mut beheaded = all.clone();
    beheaded.remove(0);
    assert_eq!(first_bad(&check(&ring, &beheaded.concat())), Some(1));
    // The last record removed before its manifest: what is there is good, the end is missing.
    let mut shortened = all.clone();
    shortened.remove(all.len() - 2);
    let report = check(&ring, &shortened.concat());
    assert_eq!(report.finding.exit_code(), 2, "{report}");
    let Finding::Incomplete { missing_from, .. } = report.finding else {
        panic!()
    };
    assert_eq!(missing_from, Some(6));
    let mut more = all.clone();
    more.push(all[0].clone());
    assert_eq!(check(&ring, &more.concat()).finding.exit_code(), 1);
    let mut trailing = file.clone();
    trailing.extend_from_slice(b"x");
    assert_eq!(check(&ring, &trailing).finding.exit_code(), 1);
}

/// An attacker changes record `victim` in the log itself and computes everything after it anew
/// (records, chain, lines, manifest), but cannot sign.
fn recomputed(ring: &KeyRing, file: &[u8], victim: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut previous: Option<Hash> = None;
    let mut all = lines(file);
    let manifest = all.pop().unwrap();
    let mut head = String::new();
    for (at, line) in all.iter().enumerate() {
        let mut value: Value = serde_json::from_slice(line).unwrap();
        if at >= victim {
            let mut stored = STANDARD.decode(value["record"].as_str().unwrap()).unwrap();
            if at == victim {
                *stored.last_mut().unwrap() ^= 1;
            }
            if let Some(previous) = previous {
                // domain, shard, epoch, number stand before the previous hash.
                let start = 5 + 2 + DOMAIN.len() + 4 + 8 + 8;
                stored[start..start + 32].copy_from_slice(&previous);
                value["previous"] = hex::encode(previous).into();
            }
            let hash = record_hash(&stored);
            value["hash"] = hex::encode(hash).into();
            value["record"] = STANDARD.encode(&stored).into();
            let line: Line = {
                let mut body = value.clone();
                body.as_object_mut().unwrap().remove("signature");
                serde_json::from_value(body).unwrap()
            };
            let mut text = serde_json::to_string(&line).unwrap();
            text.pop();
            let signature = value["signature"].as_str().unwrap();
            out.extend_from_slice(format!("{text},\"signature\":\"{signature}\"}}\n").as_bytes());
            previous = Some(hash);
            head = hex::encode(hash);
        } else {
            out.extend_from_slice(line);
        }
    }
    let old: ManifestLine = {
        let (body, _) = split_signature(manifest.strip_suffix(b"\n").unwrap()).unwrap();
        serde_json::from_slice(&[body, b"}"].concat()).unwrap()
    };
    let mut context = Context::new(&SHA256);
    context.update(&out);
    let mut forged = old.manifest;
    forged.sha256 = hex::encode(seal::finish(context));
    forged.shards[0].head = head;
    let text = serde_json::to_string(&forged).unwrap();
    // The best that can be had: a real signature, of something else.
    let signature = ring.domain(OTHER).unwrap().sign(text.as_bytes()).unwrap();
    let signature = STANDARD.encode(signature);
    let line = format!("{{\"manifest\":{text},\"signature\":\"{signature}\"}}\n");
    out.extend_from_slice(line.as_bytes());
    out
}

#[test]
fn hashes_computed_anew_do_not_help() {
    let (ring, file) = sample(false);
    for victim in 0..6 {
        let forged = recomputed(&ring, &file, victim);
        assert_ne!(forged, file);
        let report = check(&ring, &forged);
        assert_eq!(first_bad(&report), Some(victim as u64 + 1), "{report}");
        assert!(report.finding.to_string().contains("signature"), "{report}");
        // The original manifest below the forged records does not help either.
        let mut kept = lines(&forged);
        *kept.last_mut().unwrap() = lines(&file).pop().unwrap();
        assert_eq!(
            first_bad(&check(&ring, &kept.concat())),
            Some(victim as u64 + 1)
        );
    }
}

#[test]
fn a_replaced_manifest_is_found() {
    let (ring, file) = sample(false);
    let short = export(&ring, &[log(&ring, 0, 5, false)], false);
    let mut all = lines(&file);
    // An authentic manifest of an earlier export, under more records than it knows.
    *all.last_mut().unwrap() = lines(&short).pop().unwrap();
    assert_eq!(first_bad(&check(&ring, &all.concat())), Some(6));
    // An authentic manifest over the same records, under lines with a different content shown.
    let opened = sample(true).1;
    *all.last_mut().unwrap() = lines(&opened).pop().unwrap();
    assert_eq!(first_bad(&check(&ring, &all.concat())), None);
    // A manifest above the end.
    let mut early = lines(&file);
    let last = early.len() - 1;
    early.swap(last, last - 1);
    assert_eq!(check(&ring, &early.concat()).finding.exit_code(), 1);
}

#[test]
fn an_opened_content_is_bound_to_its_record() {
    let (ring, file) = sample(true);
    let keys = ring.domain(DOMAIN).unwrap();
    // Even the holder of the signing key cannot show other words for a sealed record.
    let mut all = lines(&file);
    let (body, _) = split_signature(all[2].strip_suffix(b"\n").unwrap()).unwrap();
    let body = String::from_utf8(body.to_vec())
        .unwrap()
        .replace("bob@example.test", "eve@example.test");
    let signature = STANDARD.encode(keys.sign(&line_digest(body.as_bytes())).unwrap());
    all[2] = format!("{body},\"signature\":\"{signature}\"}}\n").into_bytes();
    let report = check(&ring, &all.concat());
    assert_eq!(first_bad(&report), Some(3));
    assert!(
        report.finding.to_string().contains("opened content"),
        "{report}"
    );
}

#[test]
fn what_cannot_be_decided_is_not_called_anything_else() {
    let (ring, file) = sample(false);
    let stranger = {
        let mut random = counter(99);
        let mut ring = KeyRing::generate(&mut random);
        ring.add_domain(DOMAIN, &mut random).unwrap();
        ring.public_key(DOMAIN).unwrap()
    };
    let code = |file: &[u8], key: &PublicKey| verify(file, key, &mut |_| {}).finding.exit_code();
    assert_eq!(code(&file, &stranger), 3);
    assert_eq!(code(&lines(&file)[..3].concat(), &stranger), 3);
    let key = ring.public_key(DOMAIN).unwrap();
    assert_eq!(code(b"{\"hello\":1}\n", &key), 3);
    assert_eq!(code(b"PK\x03\x04 not text", &key), 3);
    assert_eq!(code(&vec![b'x'; LINE_LIMIT_BYTES + 2], &key), 3);
    assert_eq!(code(b"", &key), 2);
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let report = verify(io::BufReader::new(Broken), &key, &mut |_| {});
    assert_eq!(report.finding.exit_code(), 3);
    // A format of the future, signed by the right key.
    let body = "{\"manifest\":{\"format\":\"chancery-evidence-export/2\"}";
    let signature = ring
        .domain(DOMAIN)
        .unwrap()
        .sign(&line_digest(body.as_bytes()))
        .unwrap();
    let line = format!(
        "{body},\"signature\":\"{}\"}}\n",
        STANDARD.encode(signature)
    );
    assert_eq!(code(line.as_bytes(), &key), 3);
}

#[test]
fn a_broken_log_is_not_signed() {
    let ring = ring();
    let keys = ring.domain(DOMAIN).unwrap();
    let mut records = log(&ring, 0, 5, false);
    let fails = |records: &[Sealed], deployment: &str| {
        let mut writer = ExportWriter::new(Vec::new(), keys, deployment);
        let error = records
            .iter()
            .find_map(|r| writer.write(&r.bytes, None).err())
            .unwrap();
        match error {
            EvidenceError::BrokenLog { number, .. } => number,
            other => panic!("{other}"),
        }
    };
    assert_eq!(fails(&records, "another deployment"), 1);
    let gone = records.remove(2);
    assert_eq!(fails(&records, ring.deployment()), 3);
    let mut changed = gone;
    *changed.bytes.last_mut().unwrap() ^= 1;
    records.insert(2, changed);
    assert_eq!(
        fails(&records, ring.deployment()),
        4,
        "the next one does not fit"
    );
}
