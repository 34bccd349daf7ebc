//! A wall stops every kind of stanza, both ways, open and concealed, in both wirings; and of a
//! concealed one nothing shows: what comes back is what comes back from an account that never was.
//!
//! What passes by other ways has stories of its own: backlog, history, subscriptions, vCards, search
//! (`tests/scenarios/wall-*.scenario`, `alike.rs`).

use anyhow::{Result, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::server::{Server, Shape};

use crate::play::play;

/// What a stanza gets for an answer.
#[derive(Clone, Copy, PartialEq)]
enum Answered {
    /// With an error: a message, which an open wall tells of.
    Told,
    /// As where nobody is, which does not tell of a wall.
    Absent,
    /// Not at all.
    Silent,
}
use Answered::{Absent, Silent, Told};

/// Every kind: element, attributes and content; whether to the full JID; what comes back.
const KINDS: &[(&str, &str, &str, bool, Answered)] = &[
    ("message", "", "<body>k</body>", false, Told),
    ("message", "", "<body>k</body>", true, Told),
    ("message", "type='chat'", "<body>k</body>", false, Told),
    ("message", "type='chat'", "<body>k</body>", true, Told),
    ("message", "type='headline'", "<body>k</body>", false, Told),
    ("message", "type='headline'", "<body>k</body>", true, Told),
    ("message", "type='groupchat'", "<body>k</body>", false, Told),
    ("message", "type='groupchat'", "<body>k</body>", true, Told),
    ("message", "type='error'", "<body>k</body>", false, Silent),
    ("message", "type='error'", "<body>k</body>", true, Silent),
    ("message", "", "<subject>k</subject>", false, Told),
    (
        "message",
        "type='chat'",
        "<body>k</body><no-store xmlns='urn:xmpp:hints'/>",
        false,
        Told,
    ),
    (
        "message",
        "type='chat'",
        "<body>k</body><private xmlns='urn:xmpp:carbons:2'/>",
        false,
        Told,
    ),
    (
        "message",
        "type='chat'",
        "<composing xmlns='http://jabber.org/protocol/chatstates'/>",
        true,
        Told,
    ),
    (
        "message",
        "",
        "<received xmlns='urn:xmpp:receipts' id='r'/>",
        true,
        Told,
    ),
    (
        "message",
        "",
        "<displayed xmlns='urn:xmpp:chat-markers:0' id='r'/>",
        false,
        Told,
    ),
    (
        "message",
        "",
        "<reactions xmlns='urn:xmpp:reactions:0' id='r'><reaction>x</reaction></reactions>",
        false,
        Told,
    ),
    ("presence", "", "", true, Silent),
    ("presence", "", "<status>k</status>", false, Silent),
    (
        "presence",
        "type='unavailable'",
        "<status>k</status>",
        true,
        Silent,
    ),
    ("presence", "type='probe'", "", false, Silent),
    (
        "presence",
        "type='subscribe'",
        "<status>k</status>",
        false,
        Silent,
    ),
    ("presence", "type='subscribed'", "", false, Silent),
    ("presence", "type='unsubscribed'", "", false, Silent),
    ("presence", "type='unsubscribe'", "", false, Silent),
    (
        "iq",
        "type='get'",
        "<query xmlns='jabber:iq:version'/>",
        true,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<ping xmlns='urn:xmpp:ping'/>",
        true,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<query xmlns='http://jabber.org/protocol/disco#info'/>",
        true,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<query xmlns='http://jabber.org/protocol/disco#info'/>",
        false,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<query xmlns='http://jabber.org/protocol/disco#items'/>",
        false,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<vCard xmlns='vcard-temp'/>",
        false,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<query xmlns='jabber:iq:last'/>",
        true,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<query xmlns='jabber:iq:last'/>",
        false,
        Absent,
    ),
    (
        "iq",
        "type='get'",
        "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='urn:xmpp:avatar:metadata'/></pubsub>",
        false,
        Absent,
    ),
    ("iq", "type='set'", "<x xmlns='urn:x'>k</x>", true, Absent),
    ("iq", "type='set'", "<x xmlns='urn:x'>k</x>", false, Absent),
    (
        "iq",
        "type='result'",
        "<x xmlns='urn:x'>k</x>",
        true,
        Silent,
    ),
    ("iq", "type='error'", "<x xmlns='urn:x'>k</x>", true, Silent),
];

const TEXT: &str = "research and trading may not talk";

#[test]
fn every_kind_stops_at_a_wall_in_one() {
    play(Shape::One, &["alice", "bob"], async |server| {
        walls(server).await
    });
}

#[test]
fn every_kind_stops_at_a_wall_in_many() {
    play(Shape::Many, &["alice", "bob"], async |server| {
        walls(server).await
    });
}

async fn walls(server: &mut Server) -> Result<()> {
    for (group, member) in [("research", "alice"), ("trading", "bob")] {
        let jid = format!("{member}@{}", server.domain());
        server.must(&["group", "create", group], "")?;
        server.must(&["group", "add", group, &jid], "")?;
    }
    server.introduce("alice", "bob")?;
    for kind in ["open", "concealed"] {
        // Two devices on either side, on both gateways, which would see carbons.
        let mut devices = Vec::new();
        for (user, resource, gateway) in [
            ("alice", "one", 0),
            ("alice", "two", 1),
            ("bob", "one", 1),
            ("bob", "two", 0),
        ] {
            let mut client = server
                .client(user, &format!("{kind}-{resource}"), gateway)
                .await?;
            client.enable().await?;
            client
                .query("set", "<enable xmlns='urn:xmpp:carbons:2'/>")
                .await?;
            client
                .query("get", "<query xmlns='jabber:iq:roster'/>")
                .await?;
            client.send("<presence/>").await?;
            client.settled().await?;
            devices.push(client);
        }
        let policy = format!(
            "[[wall]]\nname = \"w\"\nbetween = [\"research\", \"trading\"]\nkind = \"{kind}\"\ntext = \"{TEXT}\"\n"
        );
        server.must(&["policy", "apply", "-"], &policy)?;
        for (from, to) in [(0, 2), (2, 0)] {
            for device in &mut devices {
                device.until_marker().await?;
            }
            for at in 0..KINDS.len() {
                let target = devices[to].jid.clone();
                one(&mut devices[from], &target, at, kind == "open").await?;
            }
            devices[from].settled().await?;
            // The other device of the sender, and both of the other side, have heard nothing; but
            // for the pushes of the own roster, which say that somebody has asked.
            for (at, device) in devices.iter_mut().enumerate() {
                let heard = device.until_marker().await?;
                let other = |e: &chancery_xml::Element| {
                    !(at / 2 == from / 2 && e.child("query", "jabber:iq:roster").is_some())
                };
                let heard: Vec<_> = heard.iter().filter(|e| other(e)).collect();
                ensure!(
                    heard.is_empty(),
                    "{kind}, {from} to {to}, device {at}: {heard:?}"
                );
            }
        }
        server.must(&["policy", "apply", "-"], "default = \"allow\"\n")?;
        for device in devices {
            device.close().await?;
        }
    }
    Ok(())
}

/// Sends one kind over the wall, and to an account that never was; compares what comes back.
async fn one(client: &mut Client, target: &str, at: usize, open: bool) -> Result<()> {
    let (name, attributes, content, full, answered) = KINDS[at];
    let (bare, resource) = target.split_once('/').unwrap_or((target, ""));
    let domain = bare.split_once('@').map_or(bare, |(_, domain)| domain);
    let nobody = format!("nobody@{domain}");
    let mut answers = Vec::new();
    for account in [bare, &nobody] {
        let to = match full {
            true => format!("{account}/{resource}"),
            false => account.to_owned(),
        };
        client
            .send(format!(
                "<{name} {attributes} id='k{at}' to='{to}'>{content}</{name}>"
            ))
            .await?;
        let heard = client.until_marker().await?;
        let back: Vec<String> = heard
            .iter()
            .filter(|e| e.child("query", "jabber:iq:roster").is_none())
            .map(|e| String::from_utf8_lossy(&e.bytes).replace(account, "WHO"))
            .collect();
        answers.push(back);
    }
    let what = format!("{name} {attributes} {content} {full}");
    let (walled, absent) = (&answers[0], &answers[1]);
    let expected = usize::from(answered != Silent);
    ensure!(walled.len() == expected, "{what}: {walled:?}");
    if open && answered == Told {
        ensure!(
            walled[0].contains("<policy-violation ") && walled[0].contains(TEXT),
            "{what}: {walled:?}"
        );
    } else {
        ensure!(walled == absent, "{what}:\n{walled:?}\n{absent:?}");
    }
    Ok(())
}
