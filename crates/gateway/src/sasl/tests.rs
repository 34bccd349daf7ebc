//! Exchanges against a directory in memory, without a stream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use chancery_xml::{Limits, escape_attr};
use chancery_xmpp::ns;

use super::fake::{FakeDirectory, PASSWORD};
use super::scram::tests::answer;
use super::*;

const EXPORTER_DATA: [u8; 32] = [3; 32];
const END_POINT_DATA: [u8; 32] = [4; 32];

struct Test {
    directory: Arc<FakeDirectory>,
    clock: Clock,
    ids: Ids,
    bindings: ChannelBindings,
    exchange: Exchange,
}

impl Test {
    fn new() -> Self {
        Self {
            directory: FakeDirectory::new(),
            clock: Clock::real(),
            ids: Ids::seeded(9),
            bindings: ChannelBindings::for_test(Some(EXPORTER_DATA), Some(&END_POINT_DATA)),
            exchange: Exchange::None,
        }
    }

    fn without_bindings() -> Self {
        Self {
            bindings: ChannelBindings::default(),
            ..Self::new()
        }
    }

    async fn auth_text(&mut self, mechanism: &str, text: &str) -> Step {
        let mut name = String::new();
        escape_attr(&mut name, mechanism);
        let xml = format!(
            "<auth xmlns='{}' mechanism='{name}'>{text}</auth>",
            ns::SASL
        );
        self.step(&xml).await
    }

    async fn auth(&mut self, mechanism: &str, message: impl AsRef<[u8]>) -> Step {
        self.auth_text(mechanism, &STANDARD.encode(message)).await
    }

    async fn response(&mut self, message: impl AsRef<[u8]>) -> Step {
        let text = STANDARD.encode(message);
        self.step(&format!("<response xmlns='{}'>{text}</response>", ns::SASL))
            .await
    }

    async fn step(&mut self, xml: &str) -> Step {
        let limits = Limits::after_auth();
        let element = chancery_xml::scan(&Bytes::copy_from_slice(xml.as_bytes()), &limits).unwrap();
        let around = Surroundings {
            directory: &*self.directory,
            clock: &self.clock,
            ids: &self.ids,
            domain: "example.test",
            peer: "192.0.2.1",
            bindings: &self.bindings,
        };
        match &*element.header.name {
            "auth" => self.exchange.auth(&around, &element).await,
            "response" => self.exchange.response(&around, &element).await,
            _ => self.exchange.abort(),
        }
    }

    async fn challenge(&mut self, mechanism: &str, first: &str) -> String {
        match self.auth(mechanism, first).await {
            Step::Challenge(challenge) => String::from_utf8(challenge).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// A whole SCRAM exchange of an honest client.
    async fn scram(&mut self, mechanism: Mechanism, first: &str, password: &str) -> Step {
        let challenge = self.challenge(mechanism.name(), first).await;
        let data: &[u8] = match first.split(',').next().unwrap() {
            "p=tls-exporter" => &EXPORTER_DATA,
            "p=tls-server-end-point" => &END_POINT_DATA,
            _ => &[],
        };
        let last = answer(mechanism.hash().unwrap(), password, first, &challenge, data);
        self.response(last).await
    }
}

fn failure(step: &Step) -> SaslFailure {
    match step {
        Step::Failure(failure) => *failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_mechanism_opens_the_account() {
    for (mechanism, first) in [
        (Mechanism::ScramSha256Plus, "p=tls-exporter,,n=alice,r=abc"),
        (
            Mechanism::ScramSha256Plus,
            "p=tls-server-end-point,,n=alice,r=abc",
        ),
        (
            Mechanism::ScramSha1Plus,
            "p=tls-exporter,a=alice@example.test,n=Alice,r=abc",
        ),
        (Mechanism::ScramSha256, "n,,n=alice,r=abc"),
        (Mechanism::ScramSha1, "n,,n=alice,r=abc"),
    ] {
        let mut test = Test::new();
        let step = test.scram(mechanism, first, PASSWORD).await;
        let Step::Success(login, Some(verifier)) = step else {
            panic!("{mechanism}: {step:?}")
        };
        assert_eq!(login.account.as_str(), "alice@example.test");
        assert_eq!((login.credential_version, login.mechanism), (7, mechanism));
        assert!(verifier.starts_with(b"v="));
        assert!(matches!(&test.directory.reports.lock()[..], [(_, true)]));
    }
    let mut test = Test::new();
    for message in ["\0alice\0pencil", "alice@example.test\0Alice\0pencil"] {
        let step = test.auth("PLAIN", message).await;
        let Step::Success(login, None) = step else {
            panic!("{step:?}")
        };
        assert_eq!(login.account.as_str(), "alice@example.test");
    }
}

#[tokio::test]
async fn attack_d1_plain_for_another_account() {
    let mut test = Test::new();
    for message in [
        "alice@example.test\0bob\0pencil",
        "alice\0bob\0pencil",
        "bob@example.test.\0alice\0pencil",
        "bob@other.test\0bob\0pencil",
        "bob@example.test/r\0bob\0pencil",
    ] {
        let step = test.auth("PLAIN", message).await;
        assert_eq!(failure(&step), SaslFailure::InvalidAuthzid, "{message}");
    }
    let step = test
        .auth("SCRAM-SHA-256", "n,a=alice@example.test,n=bob,r=abc")
        .await;
    assert_eq!(failure(&step), SaslFailure::InvalidAuthzid);
    assert_eq!(
        test.directory.asked.load(Ordering::SeqCst),
        0,
        "nobody was asked"
    );
}

#[tokio::test]
async fn attack_d2_plain_malformed() {
    let mut test = Test::new();
    let text = |text: &'static str| text;
    for (wrong, expected) in [
        (text("!!!!"), SaslFailure::IncorrectEncoding),
        (
            text("AGFsaWNl AHBlbmNpbA=="),
            SaslFailure::IncorrectEncoding,
        ),
        (text("AGFsaWNlAHBlbmNpbA"), SaslFailure::IncorrectEncoding),
        (text("="), SaslFailure::MalformedRequest),
        (text("<x/>"), SaslFailure::MalformedRequest),
    ] {
        let step = test.auth_text("PLAIN", wrong).await;
        assert_eq!(failure(&step), expected, "{wrong}");
    }
    for wrong in [
        &b"alice\0pencil"[..],
        b"\0alice\0pencil\0",
        b"\0\0pencil",
        b"\0alice\0\xff",
    ] {
        assert_eq!(
            failure(&test.auth("PLAIN", wrong).await),
            SaslFailure::MalformedRequest
        );
    }
    for wrong in ["\0ali ce\0pencil", "\0a@b\0pencil", "\0alice/r\0pencil"] {
        assert_eq!(
            failure(&test.auth("PLAIN", wrong).await),
            SaslFailure::NotAuthorized
        );
    }
}

#[tokio::test]
async fn attack_d3_mechanisms_that_are_not_offered() {
    let mut test = Test::without_bindings();
    let names = [
        "ANONYMOUS",
        "EXTERNAL",
        "X",
        "",
        "plain",
        "PLAIN ",
        "SCRAM-SHA-512",
        "SCRAM-SHA-256-PLUS",
    ];
    for name in names {
        let step = test.auth(name, "n,,n=alice,r=abc").await;
        assert_eq!(failure(&step), SaslFailure::InvalidMechanism, "{name}");
    }
    let step = test.step(&format!("<auth xmlns='{}'/>", ns::SASL)).await;
    assert_eq!(failure(&step), SaslFailure::InvalidMechanism);
}

#[tokio::test]
async fn attack_d4_a_final_message_replayed() {
    let mut test = Test::new();
    let first = "n,,n=alice,r=abc";
    let challenge = test.challenge("SCRAM-SHA-256", first).await;
    let last = answer(Hash::Sha256, PASSWORD, first, &challenge, b"");
    assert!(matches!(test.response(&last).await, Step::Success(..)));
    assert_eq!(
        failure(&test.response(&last).await),
        SaslFailure::NotAuthorized
    );
    let other = test.challenge("SCRAM-SHA-256", first).await;
    assert_ne!(other, challenge, "our nonce is fresh");
    assert_eq!(
        failure(&test.response(&last).await),
        SaslFailure::NotAuthorized
    );
}

#[tokio::test]
async fn attack_d6_downgrade() {
    let mut test = Test::new();
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-1"] {
        let step = test.auth(mechanism, "y,,n=alice,r=abc").await;
        assert_eq!(failure(&step), SaslFailure::NotAuthorized, "{mechanism}");
    }
    // Where no binding was offered, the client is right.
    let mut test = Test::without_bindings();
    let step = test
        .scram(Mechanism::ScramSha256, "y,,n=alice,r=abc", PASSWORD)
        .await;
    assert!(matches!(step, Step::Success(..)));
}

#[tokio::test]
async fn bindings_have_to_fit_the_mechanism() {
    let mut test = Test::new();
    for (mechanism, flag, expected) in [
        ("SCRAM-SHA-256-PLUS", "n", SaslFailure::MalformedRequest),
        ("SCRAM-SHA-256-PLUS", "y", SaslFailure::MalformedRequest),
        (
            "SCRAM-SHA-256",
            "p=tls-exporter",
            SaslFailure::MalformedRequest,
        ),
        (
            "SCRAM-SHA-256-PLUS",
            "p=tls-unique",
            SaslFailure::NotAuthorized,
        ),
    ] {
        let step = test.auth(mechanism, format!("{flag},,n=alice,r=abc")).await;
        assert_eq!(failure(&step), expected, "{mechanism} {flag}");
    }
    // The other connection's binding: somebody sits in between.
    let first = "p=tls-exporter,,n=alice,r=abc";
    let challenge = test.challenge("SCRAM-SHA-256-PLUS", first).await;
    let last = answer(Hash::Sha256, PASSWORD, first, &challenge, &[9; 32]);
    assert_eq!(
        failure(&test.response(last).await),
        SaslFailure::NotAuthorized
    );
}

#[tokio::test]
async fn attack_d8_an_unknown_user_goes_through_it_all() {
    let mut test = Test::new();
    let shape = |challenge: &str| {
        let names: Vec<_> = challenge
            .split(',')
            .map(|a| (a[..2].to_owned(), a.len()))
            .collect();
        (
            names[0].clone(),
            names[2].clone(),
            challenge.rsplit(',').next().unwrap().to_owned(),
        )
    };
    let known = test.challenge("SCRAM-SHA-256", "n,,n=alice,r=abc").await;
    let unknown = test.challenge("SCRAM-SHA-256", "n,,n=nobod,r=abc").await;
    assert_eq!(shape(&known), shape(&unknown));
    for password in [PASSWORD, "invented"] {
        // Even a proof that fits the invented keys opens nothing.
        let step = test
            .scram(Mechanism::ScramSha256, "n,,n=nobod,r=abc", password)
            .await;
        assert_eq!(failure(&step), SaslFailure::NotAuthorized);
    }
    let plain = test.auth("PLAIN", "\0nobod\0pencil").await;
    assert_eq!(plain, test.auth("PLAIN", "\0alice\0wrong").await);
}

#[tokio::test]
async fn disabled_is_told_only_to_whoever_knows_the_password() {
    let mut test = Test::new();
    let first = "n,,n=dora,r=abc";
    let step = test.scram(Mechanism::ScramSha256, first, PASSWORD).await;
    assert_eq!(failure(&step), SaslFailure::AccountDisabled);
    let step = test.scram(Mechanism::ScramSha256, first, "wrong").await;
    assert_eq!(failure(&step), SaslFailure::NotAuthorized);
    let step = test.auth("PLAIN", "\0dora\0pencil").await;
    assert_eq!(failure(&step), SaslFailure::AccountDisabled);
    let step = test.auth("PLAIN", "\0dora\0wrong").await;
    assert_eq!(failure(&step), SaslFailure::NotAuthorized);
}

#[tokio::test]
async fn a_directory_that_is_away_says_nothing_about_accounts() {
    let mut test = Test::new();
    test.directory.unreachable.store(true, Ordering::SeqCst);
    let expected = SaslFailure::TemporaryAuthFailure;
    assert_eq!(
        failure(&test.auth("PLAIN", "\0alice\0pencil").await),
        expected
    );
    assert_eq!(
        failure(&test.auth("SCRAM-SHA-1", "n,,n=alice,r=abc").await),
        expected
    );
}

#[tokio::test]
async fn the_directory_refuses_and_is_told_how_attempts_end() {
    let mut test = Test::new();
    let step = test
        .scram(Mechanism::ScramSha256, "n,,n=alice,r=abc", "wrong")
        .await;
    assert_eq!(failure(&step), SaslFailure::NotAuthorized);
    assert_eq!(
        *test.directory.reports.lock(),
        [("alice".to_owned(), false)]
    );
    test.directory.refuses.store(true, Ordering::SeqCst);
    assert_eq!(
        test.auth("SCRAM-SHA-256", "n,,n=alice,r=abc").await,
        Step::Refused
    );
    assert_eq!(test.auth("PLAIN", "\0alice\0pencil").await, Step::Refused);
}

#[tokio::test(start_paused = true)]
async fn answers_are_held_back_as_long_as_the_directory_says() {
    let mut test = Test::new();
    test.directory.delay_ms.store(3_000, Ordering::SeqCst);
    for password in [PASSWORD, "wrong"] {
        let start = Instant::now();
        test.scram(Mechanism::ScramSha256, "n,,n=alice,r=abc", password)
            .await;
        assert!(start.elapsed() >= Duration::from_secs(3), "{password}");
        let start = Instant::now();
        test.auth("PLAIN", format!("\0alice\0{password}")).await;
        assert!(start.elapsed() >= Duration::from_secs(3), "{password}");
    }
    test.directory.delay_ms.store(u64::MAX, Ordering::SeqCst);
    let start = Instant::now();
    test.auth("PLAIN", "\0alice\0pencil").await;
    assert!(start.elapsed() <= HOLD_LIMIT + Duration::from_secs(1));
}

#[tokio::test]
async fn without_an_initial_response_it_is_asked_for() {
    let mut test = Test::new();
    assert_eq!(
        test.auth_text("PLAIN", "").await,
        Step::Challenge(Vec::new())
    );
    assert!(matches!(
        test.response("\0alice\0pencil").await,
        Step::Success(..)
    ));
    assert_eq!(
        test.auth_text("SCRAM-SHA-256", "").await,
        Step::Challenge(Vec::new())
    );
    assert!(matches!(
        test.response("n,,n=alice,r=abc").await,
        Step::Challenge(_)
    ));
    // `=` is an initial response of length zero
    let step = test.auth_text("SCRAM-SHA-256", "=").await;
    assert_eq!(failure(&step), SaslFailure::MalformedRequest);
}

#[tokio::test]
async fn an_aborted_exchange_is_over() {
    let mut test = Test::new();
    let first = "n,,n=alice,r=abc";
    let challenge = test.challenge("SCRAM-SHA-256", first).await;
    let step = test.step(&format!("<abort xmlns='{}'/>", ns::SASL)).await;
    assert_eq!(failure(&step), SaslFailure::Aborted);
    let last = answer(Hash::Sha256, PASSWORD, first, &challenge, b"");
    assert_eq!(
        failure(&test.response(last).await),
        SaslFailure::NotAuthorized
    );
}
