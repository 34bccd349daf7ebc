//! Pages of the archive through a session: what is decided again, in which order things are
//! written, and what waits for room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use chancery_api::Denial;
use chancery_api::archive::{ArchivedMessage, QueryArchiveResponse};

use super::harness::{Client, Server};
use crate::config::Config;
use crate::iq::mam::END_LOOKS;

fn archived(id: &str, from: &str, to: &str, policy_version: u64) -> ArchivedMessage {
    ArchivedMessage {
        archive_id: id.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        payload: format!("<message xmlns='jabber:client' id='{id}'/>")
            .into_bytes()
            .into(),
        stamp_ms: 1_709_251_199_042,
        policy_version,
    }
}

/// Alice to Bob, Bob to Alice, Alice to Carol.
fn talk(policy_version: u64) -> Vec<ArchivedMessage> {
    let of = |id, from, to| archived(id, from, to, policy_version);
    vec![
        of("one", "alice@a.test/desk", "bob@a.test"),
        of("two", "bob@a.test/phone", "alice@a.test/desk"),
        of("three", "alice@a.test/desk", "carol@a.test"),
    ]
}

fn page(messages: Vec<ArchivedMessage>) -> QueryArchiveResponse {
    QueryArchiveResponse {
        count: Some(messages.len() as u64),
        index: Some(0),
        complete: true,
        messages,
        ..QueryArchiveResponse::default()
    }
}

fn holds(server: &Server, pages: impl IntoIterator<Item = QueryArchiveResponse>) {
    server.archive.state.lock().pages.extend(pages);
}

fn asked(server: &Server) -> Vec<(String, Vec<String>)> {
    let asked = server.policy.asked.lock();
    asked
        .iter()
        .map(|item| (item.from.clone(), item.to.clone()))
        .collect()
}

const QUERY: &str = "<iq type='set' id='q'><query xmlns='urn:xmpp:mam:2'/></iq>";

#[tokio::test]
async fn what_is_older_than_the_version_in_force_is_decided_again_once_a_pair() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    // Under the version in force nobody is asked.
    holds(&server, [page(talk(1))]);
    let before = asked(&server).len();
    alice.send(QUERY).await;
    for id in ["one", "two", "three"] {
        let id = format!("id='{id}'");
        alice
            .expect(&["to='alice@a.test/desk'", "2024-02-29T23:59:59.042Z", &id])
            .await;
    }
    alice
        .expect(&["<fin", "complete='true'", "<count>3</count>", "index='0'"])
        .await;
    assert_eq!(asked(&server).len(), before);

    // Older ones are, and what is denied is left out, as if it had never been there.
    let denied = ("carol@a.test".to_owned(), Denial::ServiceUnavailable);
    server.policy.walled.lock().push(denied);
    let twice = talk(0).into_iter().chain(talk(0)).collect();
    holds(&server, [page(twice)]);
    alice.send(QUERY).await;
    for id in ["one", "two", "one", "two"] {
        alice.expect(&[&format!("id='{id}'")]).await;
    }
    alice
        .expect(&["<first index='0'>one", "<last>two", "<count>4</count>"])
        .await;
    let asked = asked(&server).split_off(before);
    let pair = |from: &str, to: &[&str]| {
        (
            from.to_owned(),
            to.iter().map(|to| (*to).to_owned()).collect::<Vec<_>>(),
        )
    };
    let expected = [
        pair("alice@a.test", &["bob@a.test", "carol@a.test"]),
        pair("bob@a.test", &["alice@a.test"]),
    ];
    assert!(
        expected.iter().all(|pair| asked.contains(pair)) && asked.len() == 2,
        "{asked:?}"
    );
}

#[tokio::test]
async fn without_policy_there_is_no_page() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    *server.policy.away.lock() = true;
    holds(&server, [page(talk(0))]);
    alice.send(QUERY).await;
    alice
        .expect(&["type='error'", "type='wait'", "resource-constraint"])
        .await;
    // Nor without the archive.
    *server.policy.away.lock() = false;
    alice.send(QUERY).await;
    alice
        .expect(&["type='error'", "type='wait'", "resource-constraint"])
        .await;
    alice.nothing().await;
}

#[tokio::test]
async fn pages_of_which_nothing_may_be_shown_are_passed_over_and_not_for_ever() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let denied = ("bob@a.test".to_owned(), Denial::ServiceUnavailable);
    server.policy.walled.lock().push(denied);
    let hidden = |cursor: u64| QueryArchiveResponse {
        complete: false,
        cursor,
        cursor_id: format!("at{cursor}"),
        ..page(vec![archived("x", "alice@a.test/desk", "bob@a.test", 0)])
    };
    let last = talk(0).split_off(2);
    holds(&server, [hidden(5), hidden(6), page(last)]);
    alice.send(QUERY).await;
    alice.expect(&["id='three'"]).await;
    let end = alice
        .expect(&["complete='true'", "<first>three</first><last>three</last>"])
        .await;
    assert!(
        !end.contains("count"),
        "what is hidden is not counted: {end}"
    );
    let cursors: Vec<u64> = {
        let state = server.archive.state.lock();
        state.queries.iter().map(|query| query.cursor).collect()
    };
    assert_eq!(cursors, [0, 5, 6]);

    holds(&server, (1..=20).map(hidden));
    alice.send(QUERY).await;
    let end = alice.expect(&["<first>at8</first><last>at8</last>"]).await;
    assert!(!end.contains("complete") && !end.contains("count"), "{end}");
    assert_eq!(server.archive.state.lock().pages.len(), 12);
}

const METADATA: &str = "<iq type='get' id='m'><metadata xmlns='urn:xmpp:mam:2'/></iq>";

/// Messages that a wall hides, at either end of the archive, do not make it empty (XEP-0313 §5).
#[tokio::test]
async fn the_ends_of_an_archive_are_looked_for_behind_what_is_hidden() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let denied = ("bob@a.test".to_owned(), Denial::ServiceUnavailable);
    server.policy.walled.lock().push(denied);
    let hidden = |n: usize| {
        let message = |n| archived(&format!("h{n}"), "alice@a.test/desk", "bob@a.test", 0);
        (0..n).map(message).collect::<Vec<_>>()
    };
    let seen = |id: &str| vec![archived(id, "alice@a.test/desk", "carol@a.test", 0)];
    let (start, end) = ("<start id='old' ", "<end id='new' ");
    for (mailbox, expected) in [
        ([seen("old"), seen("new"), hidden(200)], [start, end]),
        ([hidden(200), seen("old"), seen("new")], [start, end]),
        (
            [hidden(600), seen("old"), hidden(600)],
            [start, "<end id='old' "],
        ),
        ([seen("old"), hidden(600), seen("new")], [start, end]),
        (
            [hidden(1), seen("old"), hidden(1)],
            [start, "<end id='old' "],
        ),
        (
            [hidden(600), hidden(1), hidden(1)],
            ["<metadata ", "></metadata>"],
        ),
    ] {
        server.archive.state.lock().mailbox = mailbox.concat();
        alice.send(METADATA).await;
        alice
            .expect(&["type='result'", expected[0], expected[1]])
            .await;
    }
}

/// Not for ever; and then it is not called empty.
#[tokio::test]
async fn an_archive_of_which_too_much_is_hidden_is_not_called_empty() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let denied = ("bob@a.test".to_owned(), Denial::ServiceUnavailable);
    server.policy.walled.lock().push(denied);
    let hidden = |cursor: u64| QueryArchiveResponse {
        complete: false,
        cursor,
        ..page(vec![archived("x", "alice@a.test/desk", "bob@a.test", 0)])
    };
    let looks = u64::from(END_LOOKS);
    holds(&server, (1..=looks).map(hidden));
    alice.send(METADATA).await;
    alice
        .expect(&["type='error'", "type='wait'", "resource-constraint"])
        .await;
    {
        let state = server.archive.state.lock();
        assert!(state.pages.is_empty(), "as many looks as there may be");
        assert_eq!(state.queries.len() as u64, looks);
        assert!(state.queries.iter().skip(1).all(|query| query.max == 250));
    }
    // The turn is free again.
    server.archive.state.lock().mailbox = talk(0).split_off(2);
    alice.send(METADATA).await;
    alice
        .expect(&["<start id='three' ", "<end id='three' "])
        .await;
}

#[tokio::test]
async fn with_somebody_behind_a_wall_is_as_with_nobody() {
    let server = Server::start().await;
    let mut alice = server.login("alice@a.test", "desk").await;
    let ask = |id: &str, max: &str| {
        format!(
            "<iq type='set' id='{id}'><query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data' \
             type='submit'><field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>\
             <field var='with'><value>bob@a.test</value></field></x>\
             <set xmlns='http://jabber.org/protocol/rsm'><max>{max}</max></set></query></iq>"
        )
    };
    holds(&server, [page(Vec::new())]);
    let nothing = QueryArchiveResponse {
        index: None,
        ..page(Vec::new())
    };
    server.archive.state.lock().pages = [nothing].into();
    alice.send(&ask("w", "5")).await;
    let empty = alice.expect(&["<count>0</count>", "complete='true'"]).await;
    for account in ["bob@a.test", "alice@a.test"] {
        let denied = (account.to_owned(), Denial::ServiceUnavailable);
        server.policy.walled.lock().push(denied);
    }
    let mut talk = talk(0);
    talk.truncate(2);
    let more = QueryArchiveResponse {
        complete: false,
        cursor: 9,
        cursor_id: "at9".into(),
        ..page(talk)
    };
    for (max, left) in [("5", 0), ("0", 1)] {
        server.archive.state.lock().pages = [more.clone()].into();
        alice.send(&ask("w", max)).await;
        assert_eq!(alice.receive().await, empty, "max {max}");
        assert_eq!(server.archive.state.lock().pages.len(), left);
    }
    alice.nothing().await;
}

/// What the client has not acknowledged fills its queue: a page waits for room and does not end
/// the session, and the next page waits for its turn.
#[tokio::test]
async fn a_page_waits_for_room_and_the_next_for_the_page() {
    let config = Config {
        sm_queue_stanzas: 8,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<enabled"]).await;
    let large = |name: &str| {
        let message = |n| archived(&format!("{name}{n}"), "alice@a.test/desk", "bob@a.test", 1);
        page((0..20).map(message).collect())
    };
    holds(&server, [large("a"), large("b")]);
    alice.send(QUERY).await;
    alice.send(&QUERY.replace("'q'", "'r'")).await;
    let (mut seen, mut handled) = (Vec::new(), 0);
    while handled < 42 {
        let got = alice.receive().await;
        if got.starts_with("<r ") {
            alice
                .send(&format!("<a xmlns='urn:xmpp:sm:3' h='{handled}'/>"))
                .await;
            continue;
        }
        handled += 1;
        seen.push(got);
        if handled % 4 == 0 {
            alice
                .send(&format!("<a xmlns='urn:xmpp:sm:3' h='{handled}'/>"))
                .await;
        }
    }
    for (at, name) in [(0, "a"), (21, "b")] {
        for n in 0..20 {
            assert!(
                seen[at + n].contains(&format!("id='{name}{n}'")),
                "{}",
                seen[at + n]
            );
        }
        assert!(seen[at + 20].contains("<fin"), "the answer comes last");
    }
}

/// A newer version that came while a page waited: what is not written yet is decided again.
#[tokio::test]
async fn a_wall_that_comes_while_a_page_waits_hides_the_rest_of_it() {
    let config = Config {
        sm_queue_stanzas: 4,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<enabled"]).await;
    let message = |n| archived(&format!("m{n}"), "alice@a.test/desk", "bob@a.test", 1);
    holds(&server, [page((0..20).map(message).collect())]);
    alice.send(QUERY).await;
    for n in 0..4 {
        wait_for(&mut alice, &format!("id='m{n}'")).await;
    }
    let denied = ("bob@a.test".to_owned(), Denial::ServiceUnavailable);
    server.policy.walled.lock().push(denied);
    server.policy.version.send_replace(2);
    server
        .until("confirmed", || *server.policy.confirmed.lock() == 2)
        .await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    alice.send("<a xmlns='urn:xmpp:sm:3' h='4'/>").await;
    let next = wait_for(&mut alice, "<iq").await;
    assert!(next.contains("<fin"), "{next}");
}

/// A page that waits is not held until policy is back: who asked is told, and may ask again.
#[tokio::test]
async fn a_page_is_given_up_when_policy_goes_out_of_reach() {
    let config = Config {
        sm_queue_stanzas: 4,
        ..Config::default()
    };
    let server = Server::with(config).await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    alice.expect(&["<enabled"]).await;
    let message = |n| archived(&format!("m{n}"), "alice@a.test/desk", "bob@a.test", 1);
    holds(&server, [page((0..20).map(message).collect())]);
    alice.send(QUERY).await;
    for n in 0..4 {
        wait_for(&mut alice, &format!("id='m{n}'")).await;
    }
    *server.policy.silent.lock() = true;
    server.gateway.policy.lost();
    alice.send("<a xmlns='urn:xmpp:sm:3' h='4'/>").await;
    let next = wait_for(&mut alice, "<iq").await;
    assert!(
        next.contains("id='q'") && next.contains("resource-constraint"),
        "{next}"
    );
    // The turn is free again: the next query has its own answer.
    alice.send(&QUERY.replace("'q'", "'r'")).await;
    let next = wait_for(&mut alice, "<iq").await;
    assert!(
        next.contains("id='r'") && next.contains("resource-constraint"),
        "{next}"
    );
}

/// The next stanza, which has to hold this.
async fn wait_for(client: &mut Client, part: &str) -> String {
    loop {
        let got = client.receive().await;
        if !got.starts_with("<r ") {
            assert!(got.contains(part), "{part} in {got}");
            return got;
        }
    }
}
