//! Records: seal and open, strictness of the encoding, and the cost of sealing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::record_hash;
use crate::testing::{DOMAIN, OTHER, counter, draft, log, ring};
use proptest::prelude::*;

#[test]
fn a_sealed_record_opens_to_what_was_said() {
    let ring = ring();
    let body = b"<message><body>hello</body></message>";
    let mut draft = draft(5, body);
    draft.content.delivered = Some(b"<message/>");
    let sealed = draft.seal(&ring, &[7; 32], &mut counter(3)).unwrap();
    assert_eq!(sealed.hash, record_hash(&sealed.bytes));
    let stored = Stored::parse(&sealed.bytes).unwrap();
    let header = &stored.header;
    assert_eq!(
        (header.domain.as_str(), header.number, header.previous),
        (DOMAIN, 5, [7; 32])
    );
    assert_eq!(
        (header.kind, header.verdict),
        (Kind::Message, Verdict::Allow)
    );
    assert_eq!(header.recipients, [[2; 16], [3; 16]]);
    assert_eq!(header.key, draft.key);
    let opened = stored.open(&ring).unwrap();
    opened
        .content
        .with_ref(|content| assert_eq!(content, draft.content));
    let bytes = &sealed.bytes;
    for secret in [&body[..], b"alice@example.test", b"hello"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
    let again = draft.seal(&ring, &[7; 32], &mut counter(4)).unwrap();
    assert_ne!(again.bytes, sealed.bytes, "another nonce, another salt");
    let other = Stored::parse(&again.bytes).unwrap();
    assert_ne!(other.header.content_digest, header.content_digest);
}

/// No byte of a stored record can change unseen: it does not parse, or it does not open.
#[test]
fn every_changed_byte_is_found_by_the_seal() {
    let ring = ring();
    let sealed = draft(1, b"<message/>")
        .seal(&ring, &[0; 32], &mut counter(3))
        .unwrap();
    for at in 0..sealed.bytes.len() {
        for mask in [1, 0x10, 0x80] {
            let mut bytes = sealed.bytes.clone();
            bytes[at] ^= mask;
            let opened = Stored::parse(&bytes).and_then(|stored| stored.open(&ring));
            assert!(opened.is_err(), "byte {at}");
        }
        assert!(Stored::parse(&sealed.bytes[..at]).is_err());
    }
    let longer = [&sealed.bytes[..], b"x"].concat();
    assert!(matches!(
        Stored::parse(&longer),
        Err(EvidenceError::Malformed("bytes left over"))
    ));
}

#[test]
fn the_keys_of_another_domain_do_not_open() {
    let ring = ring();
    let sealed = draft(1, b"x")
        .seal(&ring, &[0; 32], &mut counter(3))
        .unwrap();
    let mut stored = Stored::parse(&sealed.bytes).unwrap();
    stored.header.domain = OTHER.to_owned();
    assert!(matches!(
        stored.open(&ring),
        Err(EvidenceError::DoesNotOpen)
    ));
    stored.header.domain = "no.test".to_owned();
    assert!(matches!(
        stored.open(&ring),
        Err(EvidenceError::UnknownDomain(_))
    ));
}

#[test]
fn a_rotated_key_seals_anew_and_opens_the_old() {
    let mut ring = ring();
    let old = draft(1, b"old")
        .seal(&ring, &[0; 32], &mut counter(3))
        .unwrap();
    assert_eq!(ring.rotate_data_key(DOMAIN, &mut counter(8)).unwrap(), 2);
    let new = draft(2, b"new")
        .seal(&ring, &old.hash, &mut counter(4))
        .unwrap();
    let ring = KeyRing::from_json(&ring.to_json().unwrap()).unwrap();
    for (sealed, key_id, payload) in [(&old, 1, &b"old"[..]), (&new, 2, b"new")] {
        let stored = Stored::parse(&sealed.bytes).unwrap();
        assert_eq!(stored.header.key_id, key_id);
        assert_eq!(stored.open(&ring).unwrap().content.payload, payload);
    }
}

#[test]
fn limits_are_errors() {
    let ring = ring();
    let huge = vec![b'x'; RECORD_LIMIT_BYTES];
    let error = draft(1, &huge)
        .seal(&ring, &[0; 32], &mut counter(3))
        .unwrap_err();
    assert!(matches!(error, EvidenceError::TooLong("record")), "{error}");
    let long = "r".repeat(70_000);
    let error = Draft {
        reason: &long,
        ..draft(1, b"")
    }
    .seal(&ring, &[0; 32], &mut counter(3));
    assert!(matches!(error, Err(EvidenceError::TooLong("reason"))));
    let crowd = vec![[0; 16]; 70_000];
    let error = Draft {
        recipients: &crowd,
        ..draft(1, b"")
    }
    .seal(&ring, &[0; 32], &mut counter(3));
    assert!(matches!(error, Err(EvidenceError::TooLong("recipients"))));
    assert!(Stored::parse(&vec![1; RECORD_LIMIT_BYTES + 1]).is_err());
}

/// Prints the cost; fails only if it is out of all proportion (an unoptimised build included).
#[test]
fn sealing_is_cheap() {
    let ring = ring();
    let payload = [b'x'; 400];
    let mut previous = ring.genesis(0);
    let mut random = counter(3);
    #[allow(clippy::disallowed_methods)] // a measurement of this machine, not of the product's time
    let start = std::time::Instant::now();
    const RECORDS: u64 = 20_000;
    for number in 1..=RECORDS {
        previous = draft(number, &payload)
            .seal(&ring, &previous, &mut random)
            .unwrap()
            .hash;
    }
    let nanos = start.elapsed().as_nanos() / u128::from(RECORDS);
    println!("{nanos} ns a record");
    assert!(nanos < 100_000, "{nanos} ns a record");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Stored::parse(&bytes);
        let _ = Content::decode(&bytes);
    }

    /// Whatever still parses after a change is encoded in exactly one way.
    #[test]
    fn one_record_has_one_encoding(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let ring = ring();
        let mut bytes = log(&ring, 0, 2, false).pop().unwrap().bytes;
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(stored) = Stored::parse(&bytes) {
            prop_assert_eq!(encode_again(&stored), bytes);
        }
    }

    #[test]
    fn any_content_comes_back(
        from in ".{0,40}", to in proptest::collection::vec(".{0,20}", 0..5), id in ".{0,9}",
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        delivered in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30)),
    ) {
        let content = Content {
            from, to, stanza_id: id, stanza_type: String::new(), payload, delivered,
        };
        let mut bytes = Vec::new();
        content.with_ref(|content| content.encode(&mut bytes)).unwrap();
        prop_assert_eq!(Content::decode(&bytes).unwrap(), content);
    }
}

fn encode_again(stored: &Stored<'_>) -> Vec<u8> {
    let h = &stored.header;
    let draft = Draft {
        domain: &h.domain,
        shard: h.shard,
        epoch: h.epoch,
        number: h.number,
        time_ms: h.time_ms,
        kind: h.kind,
        direction: h.direction,
        outcome: h.outcome,
        verdict: h.verdict,
        policy_version: h.policy_version,
        rule: &h.rule,
        reason: &h.reason,
        retention: &h.retention,
        gateway: &h.gateway,
        key: h.key,
        sender: h.sender,
        recipients: &h.recipients,
        detail: &h.detail,
        content: ContentRef::default(),
    };
    let binding = Binding {
        previous: &h.previous,
        key_id: h.key_id,
        algorithm: h.algorithm,
        content_digest: h.content_digest,
    };
    let mut header = Vec::new();
    draft.encode_header(&mut header, &binding).unwrap();
    let mut bytes = vec![RECORD_FORMAT];
    bytes.extend_from_slice(&u32::try_from(header.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(&stored.nonce);
    bytes.extend_from_slice(&u32::try_from(stored.sealed.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(stored.sealed);
    bytes
}
