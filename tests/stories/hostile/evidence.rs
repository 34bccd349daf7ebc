//! Row J7: what was said is what arrives, what the archive shows, and what the export has.
//!
//! proves: XEP-0313

use anyhow::{Context, Result, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::matching::parse;
use chancery_testkit::server::{Server, Shape};
use chancery_xml::{Element, escape_text};

use super::{DOMAIN, witness};
use crate::play::play;

/// Bodies that others alter.
fn bodies() -> Vec<String> {
    let mut bodies: Vec<String> = [
        "",
        " edge  spaces ",
        "\r\n lines \r and \n\n tabs\t\t",
        "e\u{301} \u{e9} \u{fb01} \u{212b} \u{1100}\u{1161}\u{11a8}",
        "\u{feff}\u{2028}\u{2029}\u{85}\u{a0}\u{200b}\u{200d}\u{202e}\u{2066}",
        "\u{1f642}\u{1f469}\u{200d}\u{1f692}\u{1f3f4}\u{e0067}\u{e007f}\u{1d11e}",
        "\u{fffd}\u{e000}\u{f8ff}\u{d7ff}\u{f0000}\u{10fffd}\u{10000}",
        "<>&'\"]]>&amp;&lt;&#65;<![CDATA[x]]><!-- x -->",
        "\u{7f}\u{80}\u{9f}\u{fdd0}",
        "';DROP TABLE x;-- %s \\n \\u0000 {\"a\":1}",
    ]
    .map(str::to_owned)
    .to_vec();
    bodies.push("x\u{e9}".repeat(40_000));
    bodies
}

/// As XML that a reader takes back unchanged: a lone CR would become a line end (XML 1.0 §2.11).
fn escaped(text: &str) -> String {
    let mut out = String::new();
    escape_text(&mut out, text);
    out.replace('\r', "&#13;").replace('>', "&gt;")
}

fn body_of(xml: &str) -> Result<String> {
    let tree = parse(xml)?;
    let body = tree.get_child("body", "jabber:client").context("no body")?;
    Ok(body.text())
}

fn round_trip(shape: Shape) {
    play(shape, &["alice", "bob"], async |server| {
        let mut bob = witness(server).await?;
        let mut alice = server.client("alice", "a", 1).await?;
        alice.enable().await?;
        let bodies = bodies();
        for (number, body) in bodies.iter().enumerate() {
            alice
                .send(format!(
                    "<message to='bob@{DOMAIN}' id='j7-{number}' type='chat'><body>{}</body></message>",
                    escaped(body)
                ))
                .await?;
            let got = bob.stanza().await?;
            let back = body_of(&String::from_utf8_lossy(&got.bytes))?;
            ensure!(back == *body, "delivered {back:?} for {body:?}");
        }
        alice.settled().await?;
        for client in [&mut bob, &mut alice] {
            for (number, shown) in page(client).await?.iter().enumerate() {
                ensure!(
                    *shown == bodies[number],
                    "archive: {shown:?} for {:?}",
                    bodies[number]
                );
            }
        }
        exported(server, &bodies)
    });
}

/// The bodies of the own archive.
async fn page(client: &mut Client) -> Result<Vec<String>> {
    let query = "<iq type='set' id='page'><query xmlns='urn:xmpp:mam:2'/></iq>";
    client.send(query).await?;
    let mut found = Vec::new();
    loop {
        let got: Element = client.stanza().await?;
        if &*got.header.name == "iq" {
            ensure!(got.header.type_.as_deref() == Some("result"), "{got:?}");
            break;
        }
        let tree = parse(&String::from_utf8_lossy(&got.bytes))?;
        let message = tree
            .get_child("result", "urn:xmpp:mam:2")
            .and_then(|result| result.get_child("forwarded", "urn:xmpp:forward:0"))
            .and_then(|forwarded| forwarded.get_child("message", "jabber:client"))
            .context("no message")?;
        let body = message
            .get_child("body", "jabber:client")
            .context("no body")?;
        found.push(body.text());
    }
    ensure!(
        found.len() == bodies().len(),
        "{} in the archive",
        found.len()
    );
    Ok(found)
}

/// Every body is in the export, in the order in which it was said.
fn exported(server: &Server, bodies: &[String]) -> Result<()> {
    let (file, _) = server.export(true)?;
    let mut found = Vec::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        for text in strings(&line) {
            if text.starts_with("<message") && text.contains("j7-") {
                found.push(body_of(text)?);
            }
        }
    }
    ensure!(found.len() == bodies.len(), "{} in the export", found.len());
    for (shown, body) in found.iter().zip(bodies) {
        ensure!(shown == body, "export: {shown:?} for {body:?}");
    }
    Ok(())
}

/// Every string in a JSON value, however deep.
fn strings(value: &serde_json::Value) -> Vec<&str> {
    match value {
        serde_json::Value::String(text) => vec![text],
        serde_json::Value::Array(all) => all.iter().flat_map(strings).collect(),
        serde_json::Value::Object(all) => all.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn j7_bodies_are_the_same_everywhere_in_one() {
    round_trip(Shape::One);
}

#[test]
fn j7_bodies_are_the_same_everywhere_in_many() {
    round_trip(Shape::Many);
}
