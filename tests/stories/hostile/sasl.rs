//! Rows D1 to D8: single SASL exchanges that are wrong, and what must not be learnt from them.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as B64;
use chancery_testkit::scram::Scram;
use chancery_testkit::server::{PASSWORD, Server, Setup, Shape};
use chancery_testkit::wire::Wire;
use futures_util::future::join_all;

use super::{before_auth, undisturbed, witness};
use crate::play::{play, play_with};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const MALFORMED: &[&str] = &["malformed-request", "incorrect-encoding", "not-authorized"];
const REFUSED: &[&str] = &["not-authorized"];

/// Sends one element of SASL; gives the answer's name, and its data or its condition.
pub(crate) async fn say(wire: &mut Wire, element: &str) -> Result<(String, String)> {
    wire.send(element).await?;
    let answer = wire.element().await?;
    let name = answer.header.name.to_string();
    if name == "failure" {
        let condition = answer.header.children.first().context("no condition")?;
        return Ok((name, condition.name.to_string()));
    }
    let data = B64.decode(answer.text()).unwrap_or_default();
    Ok((name, String::from_utf8_lossy(&data).into_owned()))
}

pub(crate) fn auth(mechanism: &str, message: impl AsRef<[u8]>) -> String {
    let data = B64.encode(message);
    format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{data}</auth>")
}

fn response(message: impl AsRef<[u8]>) -> String {
    format!(
        "<response xmlns='{SASL}'>{}</response>",
        B64.encode(message)
    )
}

/// Elements sent one after the other, and the conditions one of which ends the exchange.
struct Row {
    id: &'static str,
    elements: Vec<String>,
    right: &'static [&'static str],
}

async fn check(server: &Server, rows: Vec<Row>) -> Result<()> {
    let answers = join_all(rows.iter().map(|row| async {
        let mut wire = before_auth(server).await?;
        let mut last = (String::new(), String::new());
        for element in &row.elements {
            last = say(&mut wire, element).await?;
            if last.0 != "challenge" {
                break;
            }
        }
        anyhow::Ok(last)
    }))
    .await;
    let mut wrong = Vec::new();
    for (row, answer) in rows.iter().zip(answers) {
        match answer {
            Ok((name, said)) if name == "failure" && row.right.contains(&said.as_str()) => {}
            other => wrong.push(format!("{}: {other:?}", row.id)),
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("wrong answers:\n{}", wrong.join("\n"))
    }
}

#[test]
fn plain_and_mechanisms_in_one() {
    plain_and_mechanisms(Shape::One);
}

#[test]
fn plain_and_mechanisms_in_many() {
    plain_and_mechanisms(Shape::Many);
}

fn plain_and_mechanisms(shape: Shape) {
    play(shape, &["alice", "bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let plain = |id, message: &[u8], right| Row {
            id,
            elements: vec![auth("PLAIN", message)],
            right,
        };
        let raw = |id, mechanism: &str, data: &str, right| Row {
            id,
            elements: vec![format!(
                "<auth xmlns='{SASL}' mechanism='{mechanism}'>{data}</auth>"
            )],
            right,
        };
        let own = |authzid: &str| format!("{authzid}\0mallory\0{PASSWORD}");
        let long = [b"\0mallory\0".as_slice(), &vec![b'x'; 8 * 1024]].concat();
        check(
            server,
            vec![
                plain(
                    "D1 full",
                    own("alice@example.test").as_bytes(),
                    &["invalid-authzid"],
                ),
                plain("D1 local", own("alice").as_bytes(), &["invalid-authzid"]),
                plain(
                    "D1 other domain",
                    own("mallory@other.test").as_bytes(),
                    &["invalid-authzid"],
                ),
                plain("D2 one nul", b"mallory\0pw", MALFORMED),
                plain("D2 three nuls", b"\0mallory\0pw\0x", MALFORMED),
                plain("D2 no user", b"\0\0pw", MALFORMED),
                plain("D2 no password", b"\0mallory\0", MALFORMED),
                plain("D2 not utf-8", b"\0mallory\0p\xff\xfe", MALFORMED),
                plain("D2 long", &long, MALFORMED),
                raw("D2 not base64", "PLAIN", "!!!!", MALFORMED),
                raw("D3 anonymous", "ANONYMOUS", "", &["invalid-mechanism"]),
                raw("D3 unknown", "X", "=", &["invalid-mechanism"]),
                raw("D3 empty", "", "=", &["invalid-mechanism"]),
                raw("D3 external", "EXTERNAL", "=", &["invalid-mechanism"]),
                plain("wrong", b"\0mallory\0nonsense", REFUSED),
            ],
        )
        .await?;
        // D2: 100 KiB are more than anybody says before he is known.
        let wire = before_auth(server).await?;
        let said = wire
            .answer_to(auth("PLAIN", vec![b'x'; 100 * 1024]).as_bytes())
            .await?;
        ensure!(
            said.contains("policy-violation") || said.contains("malformed-request"),
            "D2: {said}"
        );
        // The own address as authzid is fine.
        let mut wire = before_auth(server).await?;
        let (name, said) = say(&mut wire, &auth("PLAIN", own("mallory@example.test"))).await?;
        ensure!(name == "success", "own authzid: {said}");
        undisturbed(&mut bob).await
    });
}

#[test]
fn scram_messages_in_one() {
    scram_messages(Shape::One);
}

#[test]
fn scram_messages_in_many() {
    scram_messages(Shape::Many);
}

fn scram_messages(shape: Shape) {
    play(shape, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        let first = |id, message: String, right| Row {
            id,
            elements: vec![
                auth("SCRAM-SHA-256", message),
                response("c=biws,r=x,p=AAAA"),
            ],
            right,
        };
        let long = "x".repeat(5 * 1024);
        check(
            server,
            vec![
                first("D5 extension", "n,,m=ext,n=mallory,r=abc".into(), MALFORMED),
                first("D5 =4A", "n,,n=mallor=4A,r=abc".into(), MALFORMED),
                first("D5 =", "n,,n=mallory=,r=abc".into(), MALFORMED),
                first("D5 nul", "n,,n=mall\0ory,r=abc".into(), MALFORMED),
                first("D5 long name", format!("n,,n={long},r=abc"), MALFORMED),
                first("D5 long nonce", format!("n,,n=mallory,r={long}"), MALFORMED),
                first("D5 no nonce", "n,,n=mallory".into(), MALFORMED),
                first("D5 empty", String::new(), MALFORMED),
                first("D6 downgrade", "y,,n=mallory,r=abc".into(), REFUSED),
                first(
                    "D6 wrong binding type",
                    "p=tls-unique,,n=mallory,r=abc".into(),
                    MALFORMED,
                ),
                first(
                    "D1 authzid",
                    "n,a=bob@example.test,n=mallory,r=abc".into(),
                    &["invalid-authzid", "not-authorized"],
                ),
                Row {
                    id: "-PLUS without binding",
                    elements: vec![auth("SCRAM-SHA-256-PLUS", "n,,n=mallory,r=abc")],
                    right: MALFORMED,
                },
                Row {
                    id: "a response to nothing",
                    elements: vec![response("x")],
                    right: &["not-authorized", "malformed-request", "unexpected-request"],
                },
                Row {
                    id: "abort",
                    elements: vec![
                        auth("SCRAM-SHA-256", "n,,n=mallory,r=abc"),
                        format!("<abort xmlns='{SASL}'/>"),
                    ],
                    right: &["aborted"],
                },
            ],
        )
        .await?;
        undisturbed(&mut bob).await
    });
}

/// D4, D5, and channel binding to somebody else's channel: the final message is for one exchange.
#[test]
fn scram_final_messages_in_one() {
    scram_final_messages(Shape::One);
}

#[test]
fn scram_final_messages_in_many() {
    scram_final_messages(Shape::Many);
}

fn scram_final_messages(shape: Shape) {
    play(shape, &["bob", "mallory"], async |server| {
        let mut bob = witness(server).await?;
        type Change = fn(&str) -> String;
        let changes: [(&str, Change, &[&str]); 10] = [
            (
                "D4 changed",
                |last| change_nonce(last, |n| format!("X{}", &n[1..])),
                REFUSED,
            ),
            (
                "D4 shorter",
                |last| change_nonce(last, |n| n[..n.len() - 1].to_owned()),
                REFUSED,
            ),
            (
                "D4 longer",
                |last| change_nonce(last, |n| format!("{n}x")),
                REFUSED,
            ),
            ("D5 two proofs", |last| format!("{last},p=AAAA"), MALFORMED),
            (
                "D5 no c",
                |last| last.split_once(',').map_or("", |(_, rest)| rest).to_owned(),
                MALFORMED,
            ),
            (
                "D5 short proof",
                |last| change_proof(last, |p| p[..31].to_vec()),
                MALFORMED,
            ),
            (
                "D5 empty proof",
                |last| change_proof(last, |_| Vec::new()),
                MALFORMED,
            ),
            (
                "D5 a bit of the proof",
                |last| {
                    change_proof(last, |mut p| {
                        p[0] ^= 1;
                        p
                    })
                },
                REFUSED,
            ),
            (
                "other binding",
                |last| last.replacen("biws", &B64.encode("n,a=x,"), 1),
                REFUSED,
            ),
            ("empty", |_| String::new(), MALFORMED),
        ];
        for (id, change, right) in changes {
            let mut wire = before_auth(server).await?;
            let mut scram = Scram::new(true, "mallory", PASSWORD, "abc", None);
            let (_, challenge) = say(&mut wire, &auth("SCRAM-SHA-256", scram.first())).await?;
            let last = scram.last(&challenge)?;
            let (name, said) = say(&mut wire, &response(change(&last))).await?;
            ensure!(
                name == "failure" && right.contains(&said.as_str()),
                "{id}: {name} {said}"
            );
        }
        // D4: the right one, a second time, on another stream and on the same.
        let mut wire = before_auth(server).await?;
        let mut scram = Scram::new(true, "mallory", PASSWORD, "abc", None);
        let (_, challenge) = say(&mut wire, &auth("SCRAM-SHA-256", scram.first())).await?;
        let last = scram.last(&challenge)?;
        let mut other = before_auth(server).await?;
        say(&mut other, &auth("SCRAM-SHA-256", scram.first())).await?;
        let (name, said) = say(&mut other, &response(&last)).await?;
        ensure!(
            name == "failure" && said == "not-authorized",
            "D4 replayed: {name} {said}"
        );
        let (name, _) = say(&mut wire, &response(&last)).await?;
        ensure!(name == "success", "the right one was refused");
        // The channel of one connection proves nothing on another.
        let mut wire = before_auth(server).await?;
        let foreign = [7u8; 32];
        let mut scram = Scram::new(
            true,
            "mallory",
            PASSWORD,
            "abc",
            Some(("tls-exporter", &foreign)),
        );
        let (_, challenge) = say(&mut wire, &auth("SCRAM-SHA-256-PLUS", scram.first())).await?;
        let (name, said) = say(&mut wire, &response(scram.last(&challenge)?)).await?;
        ensure!(
            name == "failure" && said == "not-authorized",
            "foreign channel: {name} {said}"
        );
        undisturbed(&mut bob).await
    });
}

fn change_nonce(last: &str, change: impl Fn(&str) -> String) -> String {
    let (before, rest) = last.split_once("r=").unwrap_or_default();
    let (nonce, after) = rest.split_once(",p=").unwrap_or_default();
    format!("{before}r={},p={after}", change(nonce))
}

fn change_proof(last: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> String {
    let (before, proof) = last.split_once(",p=").unwrap_or_default();
    format!(
        "{before},p={}",
        B64.encode(change(B64.decode(proof).unwrap_or_default()))
    )
}

/// D8: an unknown user looks like any other, each time, on each gateway, and after a restart.
#[test]
fn unknown_users_have_a_stable_salt() {
    let complaints = ["lost", "lane", "link", "unreachable", "transport"];
    play_with(
        Shape::Many,
        Setup::default(),
        &["alice"],
        &complaints,
        async |server| {
            let known = challenge(server, "alice", 0).await?;
            let unknown = challenge(server, "nobody", 0).await?;
            let (salt, iterations) = fields(&unknown)?;
            let (known_salt, known_iterations) = fields(&known)?;
            ensure!(
                iterations == known_iterations,
                "{iterations} for {known_iterations} iterations"
            );
            ensure!(salt.len() == known_salt.len(), "salts of different lengths");
            ensure!(
                fields(&challenge(server, "nobody", 1).await?)?.0 == salt,
                "another gateway, another salt"
            );
            ensure!(
                fields(&challenge(server, "somebody", 0).await?)?.0 != salt,
                "one salt for all"
            );
            server.stop()?;
            server.start_all()?;
            ensure!(
                fields(&challenge(server, "nobody", 1).await?)?.0 == salt,
                "another salt after a restart"
            );
            ensure!(
                fields(&challenge(server, "alice", 0).await?)?.0 == known_salt,
                "a known salt changed"
            );
            Ok(())
        },
    );
}

async fn challenge(server: &Server, user: &str, gateway: usize) -> Result<String> {
    let mut wire =
        Wire::starttls(server.c2s[gateway], super::DOMAIN, server.trust(gateway)?).await?;
    wire.open(super::DOMAIN).await?;
    wire.element().await?;
    let (name, said) = say(
        &mut wire,
        &auth("SCRAM-SHA-256", format!("n,,n={user},r=abc")),
    )
    .await?;
    ensure!(name == "challenge", "{name} {said}");
    Ok(said)
}

/// Salt and iterations.
fn fields(challenge: &str) -> Result<(String, String)> {
    let field = |name| {
        challenge
            .split(',')
            .find_map(|f: &str| f.strip_prefix(name))
            .map(str::to_owned)
    };
    Ok((
        field("s=").context("no salt")?,
        field("i=").context("no iterations")?,
    ))
}
