//! Versions: equal for equal lists, with or without pushes, and silent about whom policy hides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::super::Colleagues;
use super::super::tests::fact;
use super::*;

fn own(jid: &str, name: &str, colleague: bool) -> Item {
    Item {
        jid: jid.into(),
        name: name.into(),
        subscription: Subscription::None.into(),
        ask: !colleague,
        groups: vec!["Own".into()],
        colleague,
        ..Item::default()
    }
}

fn whole(table: &Colleagues, own: Vec<Item>, hidden: &[&str]) -> (Vec<Item>, Told) {
    let circle = table.of("me@x");
    let (mut hidden, seen): (Vec<Arc<str>>, Vec<Arc<str>>) = circle
        .names("me@x")
        .cloned()
        .partition(|jid| hidden.contains(&&**jid));
    hidden.sort_unstable();
    let mut told = Told {
        version: circle.version,
        untold: hidden.into(),
        ..Told::default()
    };
    let seen = seen.iter().map(ToString::to_string).collect();
    (merged(own, &circle, &seen, &mut told), told)
}

#[test]
fn a_roster_is_the_own_items_and_the_colleagues_that_may_be_known() {
    let table = Colleagues::default();
    table.apply(vec![fact("g", "G", &["me@x", "a@x", "b@x", "c@x"])], true);
    let items = vec![
        own("a@x", "Anna", false),
        own("b@x", "Bob", true),
        own("z@x", "Zoe", false),
        own("y@x", "Yan", true),
    ];
    let (all, told) = whole(&table, items.clone(), &["c@x"]);
    let line = |item: &Item| {
        let subscription = item.subscription().as_str_name();
        let subscription = subscription.trim_start_matches("SUBSCRIPTION_");
        format!(
            "{} {} {subscription} {} {:?}",
            item.jid, item.name, item.ask, item.groups
        )
    };
    let lines: Vec<String> = all.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            r#"a@x Anna BOTH false ["G", "Own"]"#,
            r#"b@x Bob BOTH false ["G", "Own"]"#,
            r#"z@x Zoe NONE true ["Own"]"#,
        ]
    );
    assert_eq!(told.version().len(), "0-".len() + 32);
    // Hidden, they are as if they were not there: also what was kept of a name.
    let (all, told) = whole(&table, items.clone(), &["a@x", "b@x", "c@x"]);
    let names: Vec<&str> = all.iter().map(|item| &*item.name).collect();
    assert_eq!((names, told.version()), (vec!["Anna", "Zoe"], "0".into()));
    table.apply(Vec::new(), true);
    assert_eq!(whole(&table, items, &[]).0, all);
}

#[test]
fn a_push_of_the_roster_service_says_whom_it_is_about() {
    let push = "<iq xmlns='jabber:client' type='set' id='p' from='me@x'><query xmlns='jabber:iq:roster' \
                ver='7'><item jid='a&apos;b@x' name='N'/></query></iq>";
    let about = Some(("a'b@x".to_owned(), "7".to_owned()));
    assert_eq!(pushed(&push.into()), about);
    assert_eq!(pushed(&"<iq xmlns='jabber:client'/>".into()), None);
}

/// Groups with their labels, and who is hidden, at one moment.
type Moment = (Vec<(bool, Vec<bool>)>, Vec<bool>);

const PEOPLE: [&str; 5] = ["a@x", "b@x", "c@x", "d@x", "me@x"];

fn moments() -> impl Strategy<Value = Vec<(Moment, bool)>> {
    let group = (
        any::<bool>(),
        prop::collection::vec(any::<bool>(), PEOPLE.len()),
    );
    let groups = prop::collection::vec(group, 2);
    let hidden = prop::collection::vec(any::<bool>(), PEOPLE.len());
    prop::collection::vec(((groups, hidden), any::<bool>()), 1..12)
}

proptest! {
    /// Whatever is pushed or asked for: a client that shows the newest version to the server and is told
    /// that it is current has the roster that the server would give; and nobody hidden at that moment is
    /// in a push that the client was not told of before.
    #[test]
    fn a_version_stands_for_what_the_client_holds(moments in moments()) {
        let table = Colleagues::default();
        let (items, mut told) = whole(&table, Vec::new(), &[]);
        let mut client: BTreeMap<String, Item> =
            items.into_iter().map(|item| (item.jid.clone(), item)).collect();
        for ((groups, hides), asks) in moments {
            let facts = groups.into_iter().enumerate().map(|(n, (other, members))| {
                let members: Vec<&str> = PEOPLE.into_iter().zip(members)
                    .filter_map(|(jid, member)| member.then_some(jid)).collect();
                fact(&format!("g{n}"), if other { "Other" } else { "Label" }, &members)
            });
            let moved = table.apply(facts.collect(), true);
            let hidden: Vec<&str> = PEOPLE.into_iter().zip(&hides)
                .filter_map(|(jid, hidden)| hidden.then_some(jid)).collect();
            let mine = moved.into_iter().filter(|m| m.accounts.iter().any(|a| **a == *"me@x"));
            let shifts: Vec<Arc<Shift>> = mine.flat_map(|moved| moved.shifts).collect();
            let news: Vec<&Shift> = shifts.iter().map(AsRef::as_ref).collect();
            let circle = table.of("me@x");
            let jids: BTreeSet<&str> = news.iter().flat_map(|shift| shift.jids())
                .map(AsRef::as_ref).filter(|jid| **jid != *"me@x").collect();
            for jid in jids {
                let may = !hidden.contains(&jid);
                if !tell(&mut told, &news, (jid, may, false), &circle) {
                    continue;
                }
                prop_assert!(may || client.contains_key(jid), "{jid} was hidden");
                let now = (may && circle.has(jid)).then_some(&circle);
                let item = item(&GetResponse::default(), jid, now);
                if item.subscription() == Subscription::Remove {
                    client.remove(jid);
                } else {
                    client.insert(jid.to_owned(), item);
                }
            }
            let (server, fresh) = whole(&table, Vec::new(), &hidden);
            if fresh.version() == told.version() {
                let held: Vec<Item> = client.values().cloned().collect();
                prop_assert_eq!(held, server.clone());
            }
            if asks {
                told = fresh;
                client = server.into_iter().map(|item| (item.jid.clone(), item)).collect();
            }
        }
    }
}
