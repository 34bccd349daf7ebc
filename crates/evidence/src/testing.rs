//! What the tests of this crate share: a replayable source of bytes, and a small log.

use crate::{
    ContentRef, DEPLOYMENT, Direction, Draft, Hash, IdempotencyKey, KeyRing, Kind, Outcome, Sealed,
    Verdict,
};

pub const DOMAIN: &str = "example.test";
pub const OTHER: &str = "other.test";

/// A replayable source of bytes.
pub fn counter(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut state = seed;
    move |out| {
        for byte in out {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
    }
}

pub fn ring() -> KeyRing {
    let mut random = counter(11);
    let mut ring = KeyRing::generate(&mut random);
    for domain in [DEPLOYMENT, DOMAIN, OTHER] {
        let added = ring.add_domain(domain, &mut random);
        assert!(added.is_ok_and(|added| added));
    }
    ring
}

/// A message from alice to bob.
pub fn draft<'a>(number: u64, payload: &'a [u8]) -> Draft<'a> {
    Draft {
        domain: DOMAIN,
        shard: 0,
        epoch: 2,
        number,
        time_ms: 1_790_000_000_000 + i64::try_from(number).unwrap_or(0),
        kind: Kind::Message,
        direction: Direction::Internal,
        outcome: Outcome::Logged,
        verdict: Verdict::Allow,
        policy_version: 7,
        rule: "default",
        reason: "",
        retention: "standard",
        gateway: "gateway-1",
        key: Some(IdempotencyKey {
            stream: [9; 16],
            count: number,
        }),
        sender: Some([1; 16]),
        recipients: &[[2; 16], [3; 16]],
        detail: "",
        content: ContentRef {
            from: "alice@example.test/phone",
            to: &["bob@example.test", "carol@example.test"],
            stanza_id: "m1",
            stanza_type: "chat",
            payload,
            delivered: None,
        },
    }
}

/// A chained log of `count` records of one shard; every third is another domain's if `mixed`,
/// and the fifth the deployment's.
pub fn log(ring: &KeyRing, shard: u32, count: u64, mixed: bool) -> Vec<Sealed> {
    let mut random = counter(u64::from(shard) + 5);
    let mut previous: Hash = ring.genesis(shard);
    let mut records = Vec::new();
    for number in 1..=count {
        let body =
            format!("<message xmlns='jabber:client'><body>\"{number}\" é\n</body></message>");
        let mut draft = Draft {
            shard,
            ..draft(number, body.as_bytes())
        };
        if number % 2 == 0 {
            draft.content.delivered = Some(b"<message>\xff binary</message>");
            draft.key = None;
            draft.detail = r#"{"gateway-1":{"permits":12}}"#;
        }
        if mixed && number % 3 == 0 {
            draft.domain = OTHER;
        }
        if mixed && number == 5 {
            draft.domain = DEPLOYMENT;
            draft.kind = Kind::Heartbeat;
        }
        let Ok(sealed) = draft.seal(ring, &previous, &mut random) else {
            break;
        };
        previous = sealed.hash;
        records.push(sealed);
    }
    records
}
