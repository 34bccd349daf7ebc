//! What people find in their own archives, against a plain list; in one process and over gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use chancery_api::archive::{
    AppendItem, Archive, ArchivedMessage, DropMailboxRequest, GetPreferencesRequest, Keep, Outcome,
    Preferences, QueryArchiveRequest, QueryArchiveResponse, RemoteArchive, SetPreferencesRequest,
};
use chancery_api::channel::{Served, pipe};
use chancery_api::{ApiError, Calls, Code, Cx, Kind, Role};
use chancery_runtime::{Failpoints, Metrics, Tasks};

use super::house::*;

/// What everybody wrote, in the order of the log, with its number and archive id.
struct Written(Vec<(AppendItem, u64, String)>);

impl Written {
    /// Writes one message after the other.
    async fn write(&mut self, house: &House, from: &str, to: &str, change: fn(&mut AppendItem)) {
        let count = self.0.len() as u64 + 1;
        let mut item = AppendItem {
            from: from.to_owned(),
            to: to.to_owned(),
            ..message(1, count)
        };
        change(&mut item);
        let answer = call(&house.lane(), item.clone()).await;
        // Nobody is there: what is not kept for later is in the log all the same.
        let logged = [Outcome::Committed, Outcome::Gone];
        assert!(logged.contains(&answer.outcome()), "{from} to {to}");
        self.0.push((item, answer.number, answer.archive_id));
    }

    /// What the owner finds, by payload, in order; with somebody.
    fn of(&self, owner: &str, with: &str) -> Vec<&(AppendItem, u64, String)> {
        let bare = |jid: &str| jid.split('/').next().unwrap().to_owned();
        let listed = |(item, ..): &&(AppendItem, u64, String)| {
            let hinted = item.no_store || item.no_archive;
            let other_side = if bare(&item.to) == owner {
                &item.from
            } else {
                &item.to
            };
            let exact = with.contains('/');
            let matched =
                with.is_empty() || (exact && other_side == with) || bare(other_side) == with;
            (bare(&item.from) == owner || bare(&item.to) == owner)
                && item.kind() == Kind::Message
                && matches!(&*item.r#type, "chat" | "normal" | "")
                && !hinted
                && matched
        };
        self.0.iter().filter(listed).collect()
    }
}

fn ask(jid: &str) -> QueryArchiveRequest {
    QueryArchiveRequest {
        jid: jid.to_owned(),
        max: 250,
        ..QueryArchiveRequest::default()
    }
}

async fn query(
    archive: &dyn Archive,
    request: QueryArchiveRequest,
) -> Result<QueryArchiveResponse, ApiError> {
    archive.query_archive(&Cx::local(), request).await
}

/// All pages, from the beginning or the end, by the ids that they give.
async fn all(
    archive: &dyn Archive,
    request: QueryArchiveRequest,
    backward: bool,
) -> Vec<ArchivedMessage> {
    let mut request = QueryArchiveRequest {
        backward,
        ..request
    };
    let mut found = Vec::new();
    loop {
        let mut page = query(archive, request.clone()).await.unwrap();
        let ends = page.messages.first().zip(page.messages.last());
        if let Some((first, last)) = ends {
            let (first, last) = (first.archive_id.clone(), last.archive_id.clone());
            if backward {
                request.page_before = first;
            } else {
                request.page_after = last;
            }
        } else {
            assert!(page.complete, "a page has messages or is the last");
        }
        if backward {
            page.messages.append(&mut found);
            found = page.messages;
        } else {
            found.append(&mut page.messages);
        }
        if page.complete {
            return found;
        }
    }
}

async fn agree(archive: &dyn Archive, written: &Written) {
    for owner in ["a@x", "b@x", "c@x", "d@y", "nobody@x"] {
        for with in [
            "", "a@x", "b@x", "b@x/2", "c@x", "d@y", "d@y/1", "nobody@x", "z@z",
        ] {
            let expected = written.of(owner, with);
            let payloads: Vec<_> = expected.iter().map(|w| w.0.payload.clone()).collect();
            for (max, backward) in [(250, false), (7, false), (7, true), (1, true), (250, true)] {
                let request = QueryArchiveRequest {
                    with: with.to_owned(),
                    max,
                    ..ask(owner)
                };
                let found = all(archive, request, backward).await;
                let got: Vec<_> = found.iter().map(|m| m.payload.clone()).collect();
                assert_eq!(got, payloads, "{owner} with {with:?} by {max} {backward}");
                let ids = expected
                    .iter()
                    .map(|w| &w.2)
                    .eq(found.iter().map(|m| &m.archive_id));
                assert!(ids, "with the ids that the log answered");
            }
            let none = QueryArchiveRequest {
                with: with.to_owned(),
                max: 0,
                ..ask(owner)
            };
            let counted = query(archive, none).await.unwrap();
            assert!(counted.messages.is_empty());
            // Of a resource it would take opening every record; nobody's archive is empty at once.
            let count = Some(expected.len() as u64);
            let exact = !with.contains('/') || owner == "nobody@x";
            assert_eq!(
                counted.count,
                count.filter(|_| exact),
                "{owner} with {with:?}"
            );
        }
    }
}

async fn talk(house: &House, rounds: usize) -> Written {
    let mut written = Written(Vec::new());
    for round in 0..rounds {
        written.write(house, "a@x/1", "b@x", |_| {}).await;
        written.write(house, "b@x/2", "a@x/1", |_| {}).await;
        written
            .write(house, "b@x/2", "c@x", |item| item.r#type.clear())
            .await;
        written.write(house, "d@y/1", "b@x/2", |_| {}).await;
        written.write(house, "b@x/1", "d@y", |_| {}).await;
        written.write(house, "a@x/1", "a@x", |_| {}).await;
        match round % 4 {
            0 => {
                written
                    .write(house, "a@x/1", "b@x", |item| item.no_store = true)
                    .await;
            }
            1 => {
                written
                    .write(house, "a@x/1", "b@x", |item| item.no_archive = true)
                    .await;
            }
            2 => {
                let change = |item: &mut AppendItem| item.r#type = "headline".into();
                written.write(house, "b@x/1", "b@x", change).await;
            }
            _ => {
                let change = |item: &mut AppendItem| item.r#type = "groupchat".into();
                written.write(house, "c@x/1", "d@y", change).await;
            }
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_the_same_before_rows_are_made_after_and_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    // Nothing has a row for now.
    house
        .failpoints
        .set("archive::entries::before", "error")
        .unwrap();
    let written = talk(&house, 12).await;
    agree(&*house.archive, &written).await;
    house
        .failpoints
        .set("archive::entries::before", "off")
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    agree(&*house.archive, &written).await;
    house.close().await;

    let house = open(dir.path()).await;
    let served = Served {
        archive: Some(house.archive.clone()),
        ..Served::default()
    };
    let (wire, ours) = (Tasks::new(), Tasks::new());
    let calls = Calls::new(Failpoints::off(), &Metrics::new());
    let channel = pipe(&wire, served.clone(), Role::Gateway);
    let remote = RemoteArchive::new(channel, calls.clone(), ours.clone());
    agree(&remote, &written).await;
    let channel = pipe(&wire, served, Role::Roster);
    let roster = RemoteArchive::new(channel, calls, ours.clone());
    let refused = query(&roster, ask("a@x")).await.unwrap_err();
    assert_eq!(refused.code, Code::Denied, "only a gateway reads archives");
    ours.drain(Duration::from_secs(5)).await;
    wire.drain(Duration::from_secs(5)).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_and_ids_bound_a_set() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let written = talk(&house, 4).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut later = talk_more(&house, written).await;
    let archive = &*house.archive;
    let everything = all(archive, ask("b@x"), false).await;
    let stamps: Vec<i64> = everything.iter().map(|m| m.stamp_ms).collect();
    assert!(stamps.is_sorted() && stamps.first() < stamps.last());
    let times: BTreeSet<i64> = stamps.iter().flat_map(|t| [t - 1, *t, t + 1]).collect();
    for start in times.iter().copied().chain([i64::MIN, i64::MAX]) {
        for end in [
            stamps[0],
            stamps[stamps.len() / 2],
            start,
            i64::MAX,
            i64::MIN,
        ] {
            let request = QueryArchiveRequest {
                start_ms: Some(start),
                end_ms: Some(end),
                ..ask("b@x")
            };
            let got = query(archive, request).await.unwrap();
            let expected: Vec<_> = everything
                .iter()
                .filter(|m| m.stamp_ms >= start && m.stamp_ms <= end)
                .collect();
            assert!(
                got.complete && got.messages.iter().eq(expected),
                "{start} to {end}"
            );
        }
    }
    // Between two ids; the count is that of the set, the index the place in it.
    let id = |at: usize| everything[at].archive_id.clone();
    let request = QueryArchiveRequest {
        after_id: id(1),
        before_id: id(9),
        page_after: id(4),
        max: 2,
        ..ask("b@x")
    };
    let got = query(archive, request).await.unwrap();
    assert_eq!(got.messages[..], everything[5..7]);
    assert_eq!(
        (got.complete, got.count, got.index),
        (false, Some(7), Some(3))
    );
    let request = QueryArchiveRequest {
        ids: vec![id(7), id(2), id(2)],
        ..ask("b@x")
    };
    let got = query(archive, request).await.unwrap();
    assert_eq!(got.messages, [everything[2].clone(), everything[7].clone()]);
    assert_eq!((got.complete, got.count), (true, Some(2)));
    // A cursor goes on where the page ended.
    let mut request = QueryArchiveRequest {
        max: 5,
        backward: true,
        ..ask("b@x")
    };
    let first = query(archive, request.clone()).await.unwrap();
    assert!(!first.cursor_id.is_empty());
    request.cursor = first.cursor;
    let second = query(archive, request).await.unwrap();
    let ends = everything.len();
    assert_eq!(second.messages[..], everything[ends - 10..ends - 5]);

    refuse_ids(archive, &mut later).await;
    house.close().await;
}

async fn talk_more(house: &House, mut written: Written) -> Written {
    written.write(house, "b@x/1", "b@x", |_| {}).await;
    written.write(house, "a@x/1", "c@x", |_| {}).await;
    written
        .write(house, "a@x/1", "b@x", |item| item.no_store = true)
        .await;
    written
}

/// Ids that b's archive does not have: of others, hidden, invented, of no form at all.
async fn refuse_ids(archive: &dyn Archive, written: &mut Written) {
    let hidden = written.0.pop().unwrap().2;
    let others = written.0.pop().unwrap().2;
    let own = written.0.pop().unwrap().2;
    let fields: [fn(&mut QueryArchiveRequest, String); 5] = [
        |ask, id| ask.after_id = id,
        |ask, id| ask.before_id = id,
        |ask, id| ask.page_after = id,
        |ask, id| ask.page_before = id,
        |ask, id| ask.ids = vec![id],
    ];
    let invented = ["AAAAAAAAAAAAAAAAAAAAAA", "' OR 1=1", "é", "1"].map(str::to_owned);
    for field in fields {
        for id in invented.iter().chain([&others]) {
            for owner in ["b@x", "nobody@x"] {
                let mut request = ask(owner);
                field(&mut request, id.clone());
                let error = query(archive, request).await.unwrap_err();
                assert_eq!(error.code, Code::NotFound, "{id}");
            }
        }
        let mut request = ask("b@x");
        field(&mut request, own.clone());
        assert!(query(archive, request).await.is_ok());
    }
    // A stanza that is not in the archive had an id all the same: it is a place, and no message.
    for (at, field) in fields.into_iter().enumerate() {
        let mut request = ask("b@x");
        field(&mut request, hidden.clone());
        assert_eq!(query(archive, request).await.is_ok(), at < 4);
    }
    for (jid, with, ids) in [
        ("b@x/1", "", 0),
        ("b@x", "@", 0),
        ("b@x", "", 251),
        ("", "", 0),
    ] {
        let request = QueryArchiveRequest {
            with: with.to_owned(),
            ids: vec![own.clone(); ids],
            ..ask(jid)
        };
        let error = query(archive, request).await.unwrap_err();
        assert_eq!(error.code, Code::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_ends_before_it_is_too_large_and_nothing_dropped_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let mut written = Written(Vec::new());
    for _ in 0..12 {
        let large = |item: &mut AppendItem| item.payload = vec![b'x'; 200 * 1024].into();
        written.write(&house, "a@x/1", "b@x", large).await;
    }
    let archive = &*house.archive;
    let page = query(archive, ask("b@x")).await.unwrap();
    assert_eq!((page.messages.len(), page.complete), (6, false));
    assert_eq!(all(archive, ask("b@x"), false).await.len(), 12);
    assert_eq!(all(archive, ask("b@x"), true).await.len(), 12);
    let dropped = DropMailboxRequest { jid: "b@x".into() };
    archive.drop_mailbox(&Cx::local(), dropped).await.unwrap();
    let page = query(archive, ask("b@x")).await.unwrap();
    assert!(page.messages.is_empty() && page.complete);
    let old = QueryArchiveRequest {
        page_after: written.0[0].2.clone(),
        ..ask("b@x")
    };
    assert_eq!(query(archive, old).await.unwrap_err().code, Code::NotFound);
    written.write(&house, "a@x/1", "b@x", |_| {}).await;
    assert_eq!(all(archive, ask("b@x"), false).await.len(), 1);
    assert_eq!(all(archive, ask("a@x"), false).await.len(), 13);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preferences_hold_for_what_comes_afterwards_and_end_with_the_mailbox() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let mut written = Written(Vec::new());
    let never = |jid: &str| Preferences {
        fallback: Keep::Always.into(),
        never: vec![jid.to_owned()],
        ..Preferences::default()
    };
    let set = |preferences| SetPreferencesRequest {
        jid: "b@x".into(),
        preferences: Some(preferences),
        actor: "b@x/1".into(),
    };
    let get = || GetPreferencesRequest { jid: "b@x".into() };
    written.write(&house, "a@x/1", "b@x", |_| {}).await;
    let archive = &*house.archive;
    archive
        .set_preferences(&Cx::local(), set(never("a@x")))
        .await
        .unwrap();
    let got = archive.get_preferences(&Cx::local(), get()).await.unwrap();
    assert_eq!((got.preferences, got.locked), (Some(never("a@x")), false));
    written.write(&house, "a@x/1", "b@x", |_| {}).await;
    written.write(&house, "b@x/1", "a@x", |_| {}).await;
    written.write(&house, "c@x/1", "b@x", |_| {}).await;
    let found = all(archive, ask("b@x"), false).await;
    let ids: Vec<_> = found.iter().map(|m| &m.archive_id).collect();
    assert_eq!(ids, [&written.0[0].2, &written.0[3].2]);
    assert_eq!(
        all(archive, ask("a@x"), false).await.len(),
        3,
        "the other's is his"
    );
    for bad in [
        SetPreferencesRequest::default(),
        set(Preferences::default()),
        SetPreferencesRequest {
            actor: String::new(),
            ..set(never("a@x"))
        },
        SetPreferencesRequest {
            jid: "b@x/1".into(),
            ..set(never("a@x"))
        },
    ] {
        let error = archive
            .set_preferences(&Cx::local(), bad)
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Invalid);
    }
    house.close().await;

    let house = open(dir.path()).await;
    let archive = &*house.archive;
    written.write(&house, "a@x/1", "b@x", |_| {}).await;
    assert_eq!(
        all(archive, ask("b@x"), false).await.len(),
        2,
        "after a start too"
    );
    let dropped = DropMailboxRequest { jid: "b@x".into() };
    archive.drop_mailbox(&Cx::local(), dropped).await.unwrap();
    let got = archive.get_preferences(&Cx::local(), get()).await.unwrap();
    assert_eq!(got.preferences.unwrap().never, [""; 0]);
    written.write(&house, "a@x/1", "b@x", |_| {}).await;
    assert_eq!(all(archive, ask("b@x"), false).await.len(), 1);
    // The change is a record, and what was not kept is one too.
    let (export, _) = house.export(true).await;
    let text = String::from_utf8(export).unwrap();
    assert_eq!(text.matches("mailbox.preferences").count() % 2, 0);
    assert!(text.contains("mailbox.preferences") && text.contains("<body>1-2</body>"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_preferences_are_everything() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let never = SetPreferencesRequest {
        jid: "b@x".into(),
        preferences: Some(Preferences {
            fallback: Keep::Never.into(),
            ..Preferences::default()
        }),
        actor: "b@x/1".into(),
    };
    let archive = &*house.archive;
    archive
        .set_preferences(&Cx::local(), never.clone())
        .await
        .unwrap();
    house.close().await;
    let mut parts = parts(dir.path());
    parts.config.preferences = crate::PreferencesBy::Locked;
    let tasks = parts.tasks.clone();
    let archive = crate::ArchiveService::start(parts).await.unwrap();
    let error = archive
        .set_preferences(&Cx::local(), never)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Denied);
    let get = GetPreferencesRequest { jid: "b@x".into() };
    let got = archive.get_preferences(&Cx::local(), get).await.unwrap();
    assert!(got.locked);
    assert_eq!(got.preferences.unwrap().fallback(), Keep::Always);
    let lane = archive.append(chancery_api::LanePeer {
        gateway: "gw1".to_owned(),
        incarnation: 1,
    });
    call(&lane, message(1, 1)).await;
    assert_eq!(all(&*archive, ask("b@x"), false).await.len(), 1);
    drop(lane);
    drop(archive);
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, 0);
}
