//! Keys: their file, pseudonyms, archive ids, signatures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::testing::counter;

fn ring() -> KeyRing {
    let mut random = counter(1);
    let mut ring = KeyRing::generate(&mut random);
    assert!(ring.add_domain("example.test", &mut random).unwrap());
    assert!(!ring.add_domain("example.test", &mut random).unwrap());
    ring.add_domain("other.test", &mut random).unwrap();
    ring
}

#[test]
fn a_key_file_leads_back_to_the_same_keys() {
    let ring = ring();
    let again = KeyRing::from_json(&ring.to_json().unwrap()).unwrap();
    assert_eq!(again.deployment(), ring.deployment());
    assert_eq!(again.genesis(3), ring.genesis(3));
    assert_ne!(again.genesis(3), again.genesis(4));
    for domain in ["example.test", "other.test"] {
        assert_eq!(
            again.public_key(domain).unwrap(),
            ring.public_key(domain).unwrap()
        );
        let (a, b) = (
            again.pseudonym(domain, "a@b").unwrap(),
            ring.pseudonym(domain, "a@b"),
        );
        assert_eq!(a, b.unwrap());
        assert_eq!(
            again.archive_id(domain, 1, 2).unwrap(),
            ring.archive_id(domain, 1, 2).unwrap()
        );
    }
    assert!(ring.domain(DEPLOYMENT).is_err(), "made only when asked for");
    assert_eq!(
        again.domains().collect::<Vec<_>>(),
        ["example.test", "other.test"]
    );
}

#[test]
fn bad_key_files_are_refused_without_their_secrets() {
    let good = ring().to_json().unwrap();
    let secret = STANDARD.encode(ring().domain("other.test").unwrap().secrets.signing);
    assert!(good.contains(&secret));
    for bad in [
        good.replace("keys/1", "keys/9"),
        good.replace(&secret, &secret[..20]),
        good.replace("\"signing\"", "\"sining\""),
        good.replace(&ring().deployment, "zz"),
        good[..good.len() / 2].to_owned(),
    ] {
        let error = KeyRing::from_json(&bad).unwrap_err().to_string();
        assert!(error.starts_with("key file is not valid"), "{error}");
        assert!(!error.contains(&secret[..20]), "{error}");
    }
    assert!(!format!("{:?}", ring()).contains(&secret));
}

#[test]
fn pseudonyms_are_per_domain() {
    let ring = ring();
    let alice = ring
        .pseudonym("example.test", "alice@example.test")
        .unwrap();
    assert_ne!(
        alice,
        ring.pseudonym("example.test", "bob@example.test").unwrap()
    );
    assert_ne!(
        alice,
        ring.pseudonym("other.test", "alice@example.test").unwrap()
    );
    assert!(matches!(
        ring.pseudonym("no.test", "x"),
        Err(EvidenceError::UnknownDomain(_))
    ));
}

#[test]
fn archive_ids_lead_back_and_strangers_do_not() {
    let ring = ring();
    let keys = ring.domain("example.test").unwrap();
    let mut seen = std::collections::HashSet::new();
    for (shard, number) in [(0, 1), (0, 2), (1, 1), (63, u64::MAX), (u32::MAX, 0)] {
        let id = keys.archive_id(shard, number).unwrap();
        assert_eq!(id.len(), 22);
        assert_eq!(keys.decode_archive_id(&id), Some((shard, number)));
        assert_eq!(ring.decode_archive_id("other.test", &id), None);
        assert!(seen.insert(id));
    }
    for bad in ["", "x", "AAAAAAAAAAAAAAAAAAAAAA", "not base64 at all!", "é"] {
        assert_eq!(keys.decode_archive_id(bad), None, "{bad}");
    }
}

#[test]
fn a_public_key_is_text() {
    let key = ring().public_key("example.test").unwrap();
    assert_eq!(format!(" {key}\n").parse::<PublicKey>().unwrap(), key);
    assert_eq!(key.id().len(), 16);
    assert!("ed25519:AAAA".parse::<PublicKey>().is_err());
    let signature = ring().domain("example.test").unwrap().sign(b"m").unwrap();
    assert!(key.verifies(b"m", &signature) && !key.verifies(b"n", &signature));
}
