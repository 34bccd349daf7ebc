//! G2 of the hostile inputs: what must not be told apart is compared byte for byte. A colleague behind
//! a wall, one that is disabled, one that never was, one that blocks who asks, a stranger with nothing to
//! show: the same answers, to every question.

use anyhow::{Result, ensure};
use chancery_testkit::client::Client;
use chancery_testkit::server::{Server, Shape};

use crate::play::play;

/// Questions that the server may answer on behalf of an account, and some that it never does.
const QUESTIONS: &[&str] = &[
    "type='get'><vCard xmlns='vcard-temp'/>",
    "type='get'><vCard xmlns='vcard-temp' prodid='more than a question'/>",
    "type='set'><vCard xmlns='vcard-temp'><FN>Mallory</FN></vCard>",
    "type='get'><query xmlns='jabber:iq:last'/>",
    "type='set'><query xmlns='jabber:iq:last'/>",
    "type='get'><query xmlns='jabber:iq:private'><x xmlns='u:x'/></query>",
    "type='set'><query xmlns='jabber:iq:private'><x xmlns='u:x'>1</x></query>",
    "type='get'><query xmlns='jabber:iq:roster'/>",
    "type='get'><query xmlns='jabber:iq:search'/>",
    "type='get'><query xmlns='jabber:iq:version'/>",
    "type='get'><query xmlns='http://jabber.org/protocol/disco#info'/>",
    "type='get'><query xmlns='http://jabber.org/protocol/disco#info' node='n'/>",
    "type='get'><query xmlns='http://jabber.org/protocol/disco#items'/>",
    "type='get'><query xmlns='http://jabber.org/protocol/disco#items' node='n'/>",
];

/// What is said of nobody: of items that there are none (XEP-0030 §8), else that nobody is there.
fn is_absence(question: &str, answer: &str) -> bool {
    match question.contains("disco#items") {
        true => answer.contains("type='result'") && !answer.contains("<item"),
        false => answer.contains("<service-unavailable "),
    }
}

const WALL: &str = "[[wall]]\nname = \"w\"\nbetween = [\"research\", \"trading\"]\nkind = \"";

#[test]
fn the_walled_and_the_absent_are_answered_alike_in_one() {
    play(Shape::One, &["alice", "bob", "gone"], async |server| {
        alike(server).await
    });
}

#[test]
fn the_walled_and_the_absent_are_answered_alike_in_many() {
    play(Shape::Many, &["alice", "bob", "gone"], async |server| {
        alike(server).await
    });
}

async fn alike(server: &mut Server) -> Result<()> {
    for (group, member) in [("research", "alice"), ("trading", "bob")] {
        let jid = format!("{member}@{}", server.domain());
        server.must(&["group", "create", group], "")?;
        server.must(&["group", "add", group, &jid], "")?;
    }
    let gone = format!("gone@{}", server.domain());
    server.must(&["user", "disable", &gone], "")?;
    // Subscribed to each other, there, and with something to show.
    server.introduce("alice", "bob")?;
    let mut alice = server.client("alice", "a", 0).await?;
    alice.send("<presence/>").await?;
    let vcard = "<vCard xmlns='vcard-temp'><FN>Alice</FN></vCard>";
    let set = alice.query("set", vcard).await?;
    ensure!(set.header.type_.as_deref() == Some("result"), "{set:?}");

    let mut bob = server.client("bob", "b", 1).await?;
    let alices = format!("alice@{}", server.domain());
    let nobody = format!("nobody@{}", server.domain());
    let before = answers(&mut bob, &alices).await?;
    ensure!(before[0].contains("<FN>Alice</FN>"), "{}", before[0]);
    let registered = |answer: &String| answer.contains("type='registered'");
    ensure!(before.iter().any(registered), "{before:#?}");
    for kind in ["concealed", "open"] {
        let policy = format!("{WALL}{kind}\"\ntext = \"t\"\n");
        server.must(&["policy", "apply", "-"], &policy)?;
        bob.until_marker().await?;
        let walled = answers(&mut bob, &alices).await?;
        for other in [&nobody, &gone] {
            let absent = answers(&mut bob, other).await?;
            for (at, question) in QUESTIONS.iter().enumerate() {
                ensure!(
                    walled[at] == absent[at],
                    "{kind}, {question}:\n{}\n{}",
                    walled[at],
                    absent[at]
                );
                ensure!(is_absence(question, &walled[at]), "{}", walled[at]);
            }
        }
    }
    Ok(())
}

#[test]
fn the_stranger_and_the_absent_are_answered_alike_in_one() {
    play(Shape::One, &["alice", "mallory"], async |server| {
        to_strangers(server).await
    });
}

#[test]
fn the_stranger_and_the_absent_are_answered_alike_in_many() {
    play(Shape::Many, &["alice", "mallory"], async |server| {
        to_strangers(server).await
    });
}

/// Who is not in the roster learns nothing that was not published; who is blocked, not even that.
async fn to_strangers(server: &mut Server) -> Result<()> {
    let mut alice = server.client("alice", "a", 0).await?;
    alice.enable().await?;
    alice.send("<presence/>").await?;
    let mut mallory = server.client("mallory", "m", 1).await?;
    let alices = format!("alice@{}", server.domain());
    let absent = answers(&mut mallory, &format!("nobody@{}", server.domain())).await?;
    let stranger = answers(&mut mallory, &alices).await?;
    ensure!(
        stranger == absent,
        "a stranger:\n{stranger:#?}\n{absent:#?}"
    );
    let vcard = "<vCard xmlns='vcard-temp'><FN>Alice</FN></vCard>";
    alice.query("set", vcard).await?;
    let published = answers(&mut mallory, &alices).await?;
    ensure!(published[0].contains("<FN>Alice</FN>"), "{}", published[0]);
    ensure!(published[3..] == absent[3..], "more than was published");
    let block = format!(
        "<block xmlns='urn:xmpp:blocking'><item jid='mallory@{}'/></block>",
        server.domain()
    );
    let set = alice.query("set", &block).await?;
    ensure!(set.header.type_.as_deref() == Some("result"), "{set:?}");
    let blocked = answers(&mut mallory, &alices).await?;
    ensure!(blocked == absent, "blocked:\n{blocked:#?}\n{absent:#?}");
    // Nor do sessions answer: a full address of hers, right or guessed, is nobody's.
    let right = answers(&mut mallory, &format!("{alices}/a")).await?;
    let guessed = answers(&mut mallory, &format!("{alices}/b")).await?;
    ensure!(right == guessed, "{right:#?}\n{guessed:#?}");
    Ok(())
}

#[test]
fn the_hidden_colleague_and_nobody_are_alike_in_the_own_roster_in_one() {
    let people = ["alice", "bob", "carol"];
    play(Shape::One, &people, async |server| {
        in_the_roster(server).await
    });
}

#[test]
fn the_hidden_colleague_and_nobody_are_alike_in_the_own_roster_in_many() {
    let people = ["alice", "bob", "carol"];
    play(Shape::Many, &people, async |server| {
        in_the_roster(server).await
    });
}

/// Items, requests and removals, and how many answers and pushes come of each.
const CHANGES: &[(&str, usize)] = &[
    (
        "<iq type='set' id='s'><query xmlns='jabber:iq:roster'>\
         <item jid='WHO' subscription='remove'/></query></iq>",
        1,
    ),
    ("<presence type='subscribe' to='WHO'/>", 1),
    (
        "<iq type='set' id='s'><query xmlns='jabber:iq:roster'>\
         <item jid='WHO' name='N'><group>Staff</group></item></query></iq>",
        2,
    ),
    ("<presence type='subscribed' to='WHO'/>", 1),
    ("<presence type='unsubscribed' to='WHO'/>", 1),
    ("<presence type='unsubscribe' to='WHO'/>", 1),
    (
        "<iq type='set' id='s'><query xmlns='jabber:iq:roster'>\
         <item jid='WHO' subscription='remove'/></query></iq>",
        2,
    ),
];

/// A colleague by a group that rosters show, behind a concealed wall.
async fn in_the_roster(server: &mut Server) -> Result<()> {
    let groups: [(&str, &[&str]); 3] = [
        ("staff", &["alice", "bob", "carol"]),
        ("research", &["alice"]),
        ("trading", &["bob"]),
    ];
    for (group, members) in groups {
        server.must(&["group", "create", group], "")?;
        server.must(&[&["group", "add", group], members].concat(), "")?;
    }
    server.must(&["group", "show", "staff", "--label", "Staff"], "")?;
    let policy = format!("{WALL}concealed\"\n");
    server.must(&["policy", "apply", "-"], &policy)?;
    let mut bob = server.client("bob", "b", 1).await?;
    bob.send("<presence/>").await?;
    bob.until_marker().await?;
    let mut alice = server.client("alice", "a", 0).await?;
    let roster = alice
        .query("get", "<query xmlns='jabber:iq:roster'/>")
        .await?;
    let roster = String::from_utf8_lossy(&roster.bytes).into_owned();
    ensure!(
        roster.contains("carol@") && !roster.contains("bob@"),
        "{roster}"
    );
    let mut all = Vec::new();
    for name in ["bob", "nobody"] {
        let who = format!("{name}@{}", server.domain());
        let mut came = Vec::new();
        for (change, answers) in CHANGES {
            alice.send(change.replace("WHO", &who)).await?;
            let mut of_this = Vec::new();
            for _ in 0..*answers {
                let answer = alice.stanza().await?;
                let text = String::from_utf8_lossy(&answer.bytes).into_owned();
                of_this.push(nameless(&text.replace(&who, "WHO")));
            }
            of_this.sort();
            came.push(of_this);
        }
        ensure!(alice.until_marker().await?.is_empty());
        all.push(came);
    }
    ensure!(all[0] == all[1], "{:#?}\n{:#?}", all[0], all[1]);
    ensure!(bob.until_marker().await?.is_empty());
    Ok(())
}

/// Without the numbers of pushes and of the roster's version, which count.
fn nameless(stanza: &str) -> String {
    let mut out = stanza.to_owned();
    for (begins, ends) in [(" id='push-", "'"), (" ver='", "-")] {
        if let Some((before, rest)) = out.clone().split_once(begins)
            && let Some((_, after)) = rest.split_once(ends)
        {
            out = format!("{before}{begins}{ends}{after}");
        }
    }
    out
}

/// The answers, with the address that was asked taken out.
async fn answers(client: &mut Client, to: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for question in QUESTIONS {
        client
            .send(format!("<iq id='same' to='{to}' {question}</iq>"))
            .await?;
        let answer = client
            .wait(|e| &*e.header.name == "iq" && e.header.id.as_deref() == Some("same"))
            .await?;
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        ensure!(text.contains(to), "{text}");
        all.push(text.replace(to, "WHO"));
    }
    Ok(all)
}
