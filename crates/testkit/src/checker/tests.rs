//! Each fault is named, and a good run has none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn record(number: u64, id: &str, from: &str) -> Record {
    Record {
        number,
        kind: "message".into(),
        verdict: "allow".into(),
        outcome: "logged".into(),
        policy_version: 1,
        time_ms: 5,
        gateway: "gw".into(),
        detail: String::new(),
        from: from.into(),
        to: vec!["b@x".into()],
        id: id.into(),
        payload: format!(
            "<message xmlns='jabber:client' id='{id}' to='b@x'><body>1</body></message>"
        ),
        delivered: None,
    }
}

fn keys(dir: &tempfile::TempDir) -> (std::path::PathBuf, KeyRing) {
    let mut n = 0u8;
    let mut random = |out: &mut [u8]| {
        for byte in out {
            n = n.wrapping_add(41);
            *byte = n;
        }
    };
    let mut ring = KeyRing::generate(&mut random);
    ring.add_domain("x", &mut random).unwrap();
    let path = dir.path().join("keys.json");
    std::fs::write(&path, ring.to_json().unwrap()).unwrap();
    (path, ring)
}

fn journal(ring: &KeyRing, number: u64, id: &str, body: &str) -> Journal {
    let archive_id = ring.archive_id("x", 0, number).unwrap();
    Journal {
        sent: vec![Sent {
            from: "a@x/1".into(),
            to: "b@x".into(),
            id: id.into(),
        }],
        acknowledged: [id.to_owned()].into(),
        delivered: vec![Delivered {
            reader: "b@x/1".into(),
            stanza: format!(
                "<message from='a@x/1' id='{id}' to='b@x'><body>{body}</body>\
                 <stanza-id xmlns='urn:xmpp:sid:0' by='b@x' id='{archive_id}'/></message>"
            ),
            time_ms: 9,
        }],
        errors: BTreeMap::new(),
    }
}

#[test]
fn what_is_decided_again_may_come_late_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ring) = keys(&dir);
    let mut two = journal(&ring, 2, "m2", "1");
    let mut late = journal(&ring, 1, "m1", "1");
    two.sent.insert(0, late.sent.remove(0));
    two.delivered.push(late.delivered.remove(0));
    let records = [record(1, "m1", "a@x/1"), record(2, "m2", "a@x/1")];
    let wrong = |journal: &Journal| {
        let checked = check(journal, &records, &path, "x");
        checked.is_err_and(|error| format!("{error:#}").contains("I5"))
    };
    assert!(wrong(&two));
    let delay = "<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></message>";
    let stanza = &mut two.delivered[1].stanza;
    *stanza = stanza.replace("</message>", delay);
    assert!(wrong(&two), "nobody else had it");
    let mut other = two.delivered[1].clone();
    other.reader = "b@x/2".into();
    two.delivered.insert(0, other);
    assert!(!wrong(&two));
}

#[test]
fn a_good_run_passes_and_each_fault_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ring) = keys(&dir);
    let good = journal(&ring, 1, "m1", "1");
    let records = [record(1, "m1", "a@x/1")];
    check(&good, &records, &path, "x").unwrap();

    let fails = |journal: &Journal, records: &[Record], name: &str| {
        let error = format!("{:#}", check(journal, records, &path, "x").unwrap_err());
        assert!(error.contains(name), "{error}");
    };
    fails(&journal(&ring, 2, "m1", "1"), &records, "I1");
    fails(&journal(&ring, 1, "m1", "2"), &records, "I2");
    fails(
        &good,
        &[record(1, "m1", "a@x/1"), record(2, "m1", "a@x/1")],
        "I3",
    );
    let mut lost = good.clone();
    lost.delivered.clear();
    fails(&lost, &records, "I4");
    let mut both = good.clone();
    both.errors
        .insert("m1".into(), "resource-constraint".into());
    fails(&both, &records, "I4");
    let mut denied = record(1, "m1", "a@x/1");
    denied.verdict = "deny".into();
    fails(&good, &[denied], "I6");
    let mut gap = vec![record(1, "m1", "a@x/1"), record(3, "", "a@x/1")];
    gap[1].kind = "heartbeat".into();
    fails(&good, &gap, "I7");
    let mut short = vec![record(1, "m1", "a@x/1"), record(2, "", "a@x/1")];
    short[1].kind = "heartbeat".into();
    short[1].detail = r#"{"gateways":{"gw":{"allow":2,"deny":0}}}"#.into();
    fails(&good, &short, "I7 heartbeat");
    let mut told = vec![record(1, "m1", "a@x/1"), record(2, "", "a@x/1")];
    told[1].kind = "act".into();
    told[1].detail = "gateway.permits".into();
    told[1].payload = r#"{"recorded":2}"#.into();
    fails(&good, &told, "I7 gateways");
}
