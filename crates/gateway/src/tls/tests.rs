//! Loading and swapping certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use chancery_runtime::Ids;
use tempfile::TempDir;

use super::*;
use crate::authority;

const START_MS: i64 = 1_900_000_000_000;

fn made(dir: &TempDir, clock: &Clock, seed: u64) -> CertificateFiles {
    let domains = ["example.test".to_owned()];
    let files = authority::certificates(dir.path(), &domains, clock, &Ids::seeded(seed)).unwrap();
    files.into_iter().next().unwrap()
}

struct Test {
    clock: Clock,
    _live: TempDir,
    _spare: TempDir,
    files: CertificateFiles,
    other: CertificateFiles,
    certificates: Arc<Certificates>,
}

impl Test {
    fn new() -> Self {
        let clock = Clock::manual(START_MS);
        let (live, spare) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (files, other) = (made(&live, &clock, 1), made(&spare, &clock, 2));
        let certificates = Certificates::load(vec![files.clone()], clock.clone()).unwrap();
        Self {
            clock,
            _live: live,
            _spare: spare,
            files,
            other,
            certificates,
        }
    }

    fn shown(&self) -> Vec<u8> {
        let identity = self.certificates.pick(Some("example.test"), None).unwrap();
        identity.end_point().unwrap().to_vec()
    }

    fn put(&self, chain: bool, key: bool) {
        if chain {
            fs::copy(&self.other.chain, &self.files.chain).unwrap();
        }
        if key {
            fs::copy(&self.other.key, &self.files.key).unwrap();
        }
    }
}

#[test]
fn attack_c10_a_good_swap_is_taken_whole() {
    let test = Test::new();
    let before = test.shown();
    let held = test.certificates.pick(None, None).unwrap();
    test.put(true, true);
    assert_eq!(test.shown(), before, "nothing changes before the reload");
    test.certificates.reload().unwrap();
    assert_ne!(test.shown(), before);
    assert_eq!(
        held.end_point().unwrap(),
        before,
        "a live connection keeps what it saw"
    );
}

#[test]
fn attack_c10_anything_else_keeps_the_old() {
    let kept = |change: &dyn Fn(&Test)| {
        let test = Test::new();
        let before = test.shown();
        change(&test);
        let mut problems = test.certificates.reload().unwrap_err();
        assert_eq!(test.shown(), before);
        assert_eq!(problems.len(), 1);
        problems.remove(0).problem
    };
    let broken = kept(&|test| {
        let text = fs::read_to_string(&test.files.chain).unwrap();
        fs::write(&test.files.chain, &text[..text.len() / 2]).unwrap();
    });
    assert!(matches!(broken, Problem::Pem { .. }), "{broken}");
    let garbled = kept(&|test| {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&test.files.chain, pem).unwrap();
    });
    assert!(matches!(garbled, Problem::Decode { .. }), "{garbled}");
    let gone = kept(&|test| fs::remove_file(&test.files.key).unwrap());
    assert!(matches!(gone, Problem::Read { .. }), "{gone}");
    let wrong_key = kept(&|test| test.put(false, true));
    assert!(matches!(wrong_key, Problem::Key(_)), "{wrong_key}");
    let expired = kept(&|test| test.clock.advance(Duration::from_secs(400 * 24 * 60 * 60)));
    assert!(matches!(expired, Problem::Expired), "{expired}");
    let early = kept(&|test| test.clock.step_wall(-2 * 60 * 60 * 1000));
    assert!(matches!(early, Problem::NotYet), "{early}");
    let exposed = kept(&|test| {
        fs::set_permissions(&test.files.key, fs::Permissions::from_mode(0o644)).unwrap();
    });
    assert!(matches!(exposed, Problem::Exposed { .. }), "{exposed}");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let test = Test::new();
    let files = CertificateFiles {
        domain: "bank.test".into(),
        ..test.files.clone()
    };
    let problems = Certificates::load(vec![files], test.clock.clone())
        .err()
        .unwrap();
    assert!(matches!(problems[0].problem, Problem::Name));
    assert!(Certificates::load(Vec::new(), test.clock.clone()).is_err());
}

#[test]
fn the_name_decides_which_certificate_is_shown() {
    let clock = Clock::manual(START_MS);
    let dir = tempfile::tempdir().unwrap();
    let domains = ["example.test".to_owned(), "second.test".to_owned()];
    let files = authority::certificates(dir.path(), &domains, &clock, &Ids::seeded(1)).unwrap();
    let certificates = Certificates::load(files, clock).unwrap();
    let of = |sni, header| certificates.pick(sni, header).unwrap().domain.clone();
    assert_eq!(of(Some("SECOND.test"), Some("example.test")), "second.test");
    assert_eq!(of(None, Some("second.test")), "second.test");
    assert_eq!(of(Some("unknown.test"), None), "example.test");
    assert_eq!(of(None, None), "example.test");
}
