//! A group of thousands, seen from sessions over sockets: what each change of it costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chancery_api::archive::{Deliver, Form, Target, attach_up};
use chancery_api::directory::GroupFact;
use chancery_api::presence::{Act, PublishItem};
use chancery_api::{Denial, Kind};

use super::harness::{Client, Server};
use crate::colleagues;
use crate::colleagues::told::PUSHED_LIMIT;

const PEOPLE: usize = 5_000;
const THERE: usize = 20;
const GET: &str = "<iq type='get' id='r'><query xmlns='jabber:iq:roster'/></iq>";

fn people(from: usize, count: usize) -> Vec<String> {
    (from..from + count)
        .map(|n| format!("u{n}@a.test"))
        .collect()
}

fn apply(server: &Server, members: Vec<String>) {
    let fact = GroupFact {
        domain: "a.test".into(),
        group: "staff".into(),
        members,
        deleted: false,
        label: "Staff".into(),
    };
    let moved = server.gateway.colleagues.apply(vec![fact], false);
    colleagues::tell(&server.gateway, moved);
}

fn published(server: &Server, act: Act) -> Vec<PublishItem> {
    let all = server.presence.published.lock();
    all.iter()
        .filter(|item| item.act() == act)
        .cloned()
        .collect()
}

fn ver(stanza: &str) -> &str {
    let (_, rest) = stanza.split_once(" ver='").unwrap();
    rest.split('\'').next().unwrap()
}

async fn roster(client: &mut Client) -> String {
    client.send(GET).await;
    client.expect(&["<query xmlns='jabber:iq:roster'"]).await
}

#[tokio::test]
async fn a_change_of_a_group_of_thousands_is_a_difference_for_each_session() {
    let server = Server::start().await;
    apply(&server, people(0, PEOPLE));
    let mut clients = Vec::new();
    let mut versions = Vec::new();
    for n in 0..THERE {
        let mut client = server.login(&format!("u{n}@a.test"), "r").await;
        let got = roster(&mut client).await;
        assert_eq!(
            got.matches("<item").count(),
            PEOPLE,
            "bob, and all but oneself"
        );
        versions.push(ver(&got).to_owned());
        client.send("<presence/>").await;
        clients.push(client);
    }
    let shown = || published(&server, Act::Available);
    server
        .until("all are there", || shown().len() == THERE)
        .await;
    let broadcast = shown();
    assert!(
        broadcast
            .iter()
            .all(|item| item.targets.len() == PEOPLE + 1)
    );
    let probes = || {
        published(&server, Act::Probe)
            .into_iter()
            .map(|item| item.targets.len())
    };
    server
        .until("all are asked", || {
            probes().sum::<usize>() == THERE * (PEOPLE + 2)
        })
        .await;
    assert!(probes().all(|count| count <= 250), "so many at once");

    // The list is there once: each session points to it.
    let circles = server.gateway.colleagues.of("u1@a.test");
    let members = |n: usize| server.gateway.colleagues.of(&format!("u{n}@a.test"));
    assert!((0..THERE).all(|n| members(n).shares_with(&circles)));

    // One comes: one push and one name in a difference, for each.
    apply(&server, people(0, PEOPLE + 1));
    let new = format!("u{PEOPLE}@a.test");
    for (n, client) in clients.iter_mut().enumerate() {
        let push = client
            .expect(&[
                "type='set'",
                &format!("jid='{new}'"),
                "<group>Staff</group>",
            ])
            .await;
        assert_eq!(push.matches("<item").count(), 1);
        assert_ne!(ver(&push), versions[n]);
        versions[n] = ver(&push).to_owned();
        client.nothing().await;
    }
    let amended = || published(&server, Act::Amend);
    server
        .until("all are amended", || amended().len() == THERE)
        .await;
    assert!(
        amended()
            .iter()
            .all(|item| item.targets == [new.as_str()] && item.hidden.is_empty())
    );
    assert_eq!(shown().len(), THERE, "nobody says all of it again");
    assert!(published(&server, Act::Refresh).is_empty());

    // What was pushed is what is asked for.
    for (client, version) in clients.iter_mut().zip(&versions) {
        client
            .send(&GET.replace("/></iq>", &format!(" ver='{version}'/></iq>")))
            .await;
        let got = client.expect(&["type='result'", "id='r'"]).await;
        assert!(!got.contains("<query"), "{got}");
    }

    // Many come: a difference for presence, and no push at all.
    let many = PUSHED_LIMIT + 1;
    apply(&server, people(0, PEOPLE + 1 + many));
    server
        .until("amended again", || amended().len() == 2 * THERE)
        .await;
    assert!(
        amended()[THERE..]
            .iter()
            .all(|item| item.targets.len() == many)
    );
    for client in &mut clients {
        client.nothing().await;
    }
    let again = GET.replace("/></iq>", &format!(" ver='{}'/></iq>", versions[0]));
    clients[0].send(&again).await;
    let got = clients[0].expect(&["type='result'", "<query"]).await;
    assert_eq!(got.matches("<item").count(), PEOPLE + 1 + many);

    // As many as are pushed go: for who has the roster, a push each.
    apply(&server, people(0, PEOPLE + 1 + many - PUSHED_LIMIT));
    for _ in 0..PUSHED_LIMIT {
        clients[0].expect(&["subscription='remove'"]).await;
    }
    clients[0].nothing().await;
    server
        .until("taken back", || amended().len() == 3 * THERE)
        .await;
    let hidden = |item: &PublishItem| item.targets.is_empty() && item.hidden.len() == PUSHED_LIMIT;
    assert!(amended()[2 * THERE..].iter().all(hidden));
    // To who has not asked since, nothing is said of those who were not pushed.
    clients[1].nothing().await;
}

#[tokio::test]
async fn whom_policy_hides_is_in_no_roster_no_version_and_no_push() {
    let server = Server::start().await;
    let hidden = "u1@a.test";
    server
        .policy
        .walled
        .lock()
        .push((hidden.into(), Denial::ServiceUnavailable));
    apply(&server, vec!["u0@a.test".into(), "u2@a.test".into()]);
    let mut client = server.login("u0@a.test", "r").await;
    let without = roster(&mut client).await;
    apply(&server, people(0, 3));
    let mut other = server.login("u0@a.test", "s").await;
    let with = roster(&mut other).await;
    assert_eq!(
        with.replace("u0@a.test/s", ""),
        without.replace("u0@a.test/r", "")
    );
    apply(&server, vec!["u0@a.test".into(), "u2@a.test".into()]);
    apply(&server, people(0, 4));
    for client in [&mut client, &mut other] {
        client.expect(&["jid='u3@a.test'"]).await;
        client.nothing().await;
    }
    // An open wall: he is there.
    server.policy.walled.lock()[0].1 = Denial::PolicyViolation;
    let got = roster(&mut client).await;
    assert!(got.contains(hidden), "{got}");
}

/// A push of the roster service to the first session.
fn push(version: u64, jid: &str) -> attach_up::Item {
    let target = Target {
        session: 1,
        form: Form::Push.into(),
        ..Target::default()
    };
    let payload = format!(
        "<iq xmlns='jabber:client' type='set' id='push-{version}' from='alice@a.test'>\
         <query xmlns='jabber:iq:roster' ver='{version}'><item jid='{jid}' subscription='both'/></query></iq>"
    );
    attach_up::Item::Deliver(Deliver {
        from: "alice@a.test".into(),
        to: "alice@a.test".into(),
        kind: Kind::Iq.into(),
        r#type: "set".into(),
        payload: payload.into(),
        policy_version: 1,
        targets: vec![target],
        ..Deliver::default()
    })
}

/// RFC 6121 §2.6.2: whoever has missed a push holds no version that there is.
#[tokio::test]
async fn a_push_that_was_lost_is_found_out_by_the_next() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    server.archive.say(push(1, "bob@a.test"));
    alice.nothing().await;
    assert_eq!(ver(&roster(&mut alice).await), "1");
    // Nobody is told before they ask, and one that is late is made anew.
    for (version, told) in [(2, "2"), (1, "2"), (3, "3"), (5, "5?"), (6, "6?")] {
        server.archive.say(push(version, "bob@a.test"));
        let pushed = alice.expect(&["type='set'", "jid='bob@a.test'"]).await;
        assert_eq!(ver(&pushed), told);
    }
    // It asks again, and has all.
    assert_eq!(ver(&roster(&mut alice).await), "1");
    server.archive.say(push(2, "bob@a.test"));
    assert_eq!(ver(&alice.expect(&["jid='bob@a.test'"]).await), "2");
}
