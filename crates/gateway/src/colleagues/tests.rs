//! The table of groups: who is told what, and what is held once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

pub(crate) fn fact(group: &str, label: &str, members: &[&str]) -> GroupFact {
    GroupFact {
        domain: "x".into(),
        group: group.into(),
        members: members.iter().map(ToString::to_string).collect(),
        deleted: false,
        label: label.into(),
    }
}

/// `who, who: +label joined -label left`, in order.
fn told(moved: &[Moved]) -> Vec<String> {
    let list = |jids: &[Arc<str>]| jids.join(" ");
    let shift = |shift: &Arc<Shift>| match &**shift {
        Shift::Joined(_, label, jids) => format!("+{label} {}", list(jids)),
        Shift::Left(_, label, jids) => format!("-{label} {}", list(jids)),
        Shift::Blocked(jids) => format!("!{}", list(jids)),
    };
    let line = |moved: &Moved| {
        let shifts: Vec<String> = moved.shifts.iter().map(shift).collect();
        format!("{}: {}", list(&moved.accounts), shifts.join(" "))
    };
    moved.iter().map(line).collect()
}

fn names(table: &Colleagues, account: &str) -> Vec<String> {
    let circle = table.of(account);
    circle.names(account).map(ToString::to_string).collect()
}

#[test]
fn who_stays_is_told_of_the_difference_and_who_moves_of_all() {
    let table = Colleagues::default();
    let apply = |facts: Vec<GroupFact>, whole| told(&table.apply(facts, whole));
    assert_eq!(apply(vec![fact("g", "", &["a@x", "b@x"])], true), [""; 0]);
    assert_eq!(
        apply(vec![fact("g", "G", &["b@x", "a@x"])], false),
        ["a@x b@x: +G a@x b@x"],
        "who comes is told of himself too, and passes over it"
    );
    assert_eq!(apply(vec![fact("g", "G", &["a@x", "b@x"])], false), [""; 0]);
    assert_eq!(
        apply(vec![fact("g", "G", &["a@x", "b@x", "c@x"])], false),
        ["a@x b@x: +G c@x", "c@x: +G a@x b@x c@x"]
    );
    assert_eq!(
        apply(vec![fact("g", "G", &["a@x", "c@x", "d@x"])], false),
        [
            "a@x c@x: -G b@x +G d@x",
            "d@x: +G a@x c@x d@x",
            "b@x: -G a@x b@x c@x"
        ]
    );
    assert_eq!(
        apply(vec![fact("g", "H", &["a@x", "c@x", "d@x"])], false),
        ["a@x c@x d@x: -G a@x c@x d@x +H a@x c@x d@x"]
    );
    assert_eq!(
        apply(vec![fact("h", "I", &["a@x"])], true),
        ["a@x: +I a@x", "a@x c@x d@x: -H a@x c@x d@x"],
        "a snapshot takes the place of everything"
    );
    let mut gone = fact("h", "I", &["a@x"]);
    gone.deleted = true;
    assert_eq!(apply(vec![gone], false), ["a@x: -I a@x"]);
    let held = table.held.read();
    assert!(held.of.is_empty() && held.groups.is_empty(), "nothing left");
}

#[test]
fn colleagues_of_several_groups_are_named_once_with_all_labels() {
    let table = Colleagues::default();
    let facts = vec![
        fact("one", "One", &["a@x", "b@x", "c@x"]),
        fact("two", "Two", &["a@x", "b@x", "d@x"]),
        fact("off", "", &["a@x", "e@x"]),
    ];
    table.apply(facts, true);
    assert_eq!(names(&table, "a@x"), ["b@x", "c@x", "d@x"]);
    assert_eq!(names(&table, "c@x"), ["a@x", "b@x"]);
    assert_eq!(names(&table, "e@x"), [""; 0]);
    let circle = table.of("a@x");
    assert_eq!(circle.labels("b@x").collect::<Vec<_>>(), ["One", "Two"]);
    assert_eq!(circle.labels("d@x").collect::<Vec<_>>(), ["Two"]);
    for (one, other, are) in [
        ("a@x", "b@x", true),
        ("c@x", "d@x", false),
        ("a@x", "e@x", false),
        ("a@x", "a@x", false),
        ("a@x", "nobody@x", false),
    ] {
        assert_eq!(table.are(one, other), are, "{one} {other}");
        assert_eq!(table.are(other, one), are, "{other} {one}");
    }
}

#[test]
fn more_colleagues_than_a_roster_shows_are_cut() {
    let table = Colleagues::default();
    let many = |from: usize| {
        (from..from + 8_000)
            .map(|n| format!("u{n}@x"))
            .chain(["a@x".into()])
    };
    let group = |name: &str, members: Vec<String>| GroupFact {
        members,
        ..fact(name, name, &[])
    };
    let facts = vec![
        group("g", many(0).collect()),
        group("h", many(4_000).collect()),
    ];
    table.apply(facts, true);
    assert_eq!(table.of("a@x").names("a@x").count(), COLLEAGUES_LIMIT);
    assert_eq!(table.of("u1@x").names("u1@x").count(), 8_000);
}

#[test]
fn a_block_concerns_colleagues_by_account_and_by_domain() {
    let table = Colleagues::default();
    table.apply(vec![fact("g", "G", &["a@x", "b@x", "c@x"])], true);
    let concerned = |owner: &str, jids: &[&str]| {
        let moved = table.concerned(owner, jids);
        told(&moved.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(concerned("a@x", &["b@x/r", "z@x"]), ["b@x: !a@x"]);
    assert_eq!(concerned("a@x", &["x"]), ["b@x c@x: !a@x"]);
    assert_eq!(concerned("a@x", &["y"]), [""; 0]);
    assert_eq!(concerned("z@x", &["b@x"]), [""; 0]);
}

/// 5,000 people in one group: each name, and the list of them, is there once for all.
#[test]
fn a_large_group_is_held_once() {
    let table = Colleagues::default();
    let people: Vec<String> = (0..5_000).map(|n| format!("u{n}@x")).collect();
    let group = |members: Vec<String>| GroupFact {
        members,
        ..fact("g", "G", &[])
    };
    table.apply(vec![group(people.clone())], true);
    let circles: Vec<Circle> = people.iter().map(|jid| table.of(jid)).collect();
    let first = Arc::clone(&circles[0].groups[0]);
    for circle in &circles {
        assert_eq!(circle.groups.len(), 1);
        assert!(Arc::ptr_eq(&circle.groups[0], &first));
    }
    // Somebody comes: one difference for all who stay, and the names are those that were there.
    let mut more = people.clone();
    more.push("new@x".into());
    let moved = table.apply(vec![group(more)], false);
    assert_eq!(moved.len(), 2);
    assert_eq!(moved[0].accounts.len(), 5_000);
    assert_eq!(moved[0].shifts.len(), 1);
    assert_eq!(moved[0].shifts[0].jids().len(), 1);
    let now = table.of("u7@x");
    let has = |jid: &Arc<str>| first.members.iter().any(|known| Arc::ptr_eq(known, jid));
    assert!(
        now.groups[0]
            .members
            .iter()
            .filter(|jid| **jid != "new@x".into())
            .all(has)
    );
    // What some may not know is one list for all of whom it is so.
    let hidden: Vec<Arc<str>> = now.names("u7@x").take(2_500).cloned().collect();
    let one = table.share(hidden.clone());
    assert!(Arc::ptr_eq(&one, &table.share(hidden.clone())));
    assert!(!Arc::ptr_eq(&one, &table.share(hidden[1..].to_vec())));
    drop(one);
    for n in 0..500 {
        drop(table.share(hidden[n..].to_vec()));
    }
    assert!(table.lists.lock().held.len() < 500, "nobody holds them");
}

#[test]
fn sessions_act_on_a_change_at_a_pace() {
    let in_second = |second| {
        let second = Duration::from_secs(second)..Duration::from_secs(second + 1);
        (0..5_000)
            .filter(|told| second.contains(&pace(*told)))
            .count()
    };
    assert_eq!((0..5).map(in_second).sum::<usize>(), 5_000);
    assert!((0..5).all(|second| in_second(second) <= 1_000));
    assert_eq!(pace(0), Duration::ZERO);
}

#[test]
fn what_waits_for_a_session_is_bounded_and_put_back_in_order() {
    let shift = |name: &str| Arc::new(Shift::Blocked(Arc::from([Arc::from(name)])));
    let mut pending = Pending::default();
    pending.add(shift("a@x"));
    pending.add_item("a@x".into());
    let taken = std::mem::take(&mut pending);
    assert!(pending.is_empty() && !taken.is_empty());
    pending.add(shift("b@x"));
    pending.put_back(taken);
    assert_eq!(pending.shifts, [shift("a@x"), shift("b@x")]);
    assert_eq!(pending.items.len(), 1);
    for n in 0..PENDING_LIMIT {
        pending.add(shift(&format!("u{n}@x")));
    }
    assert!(pending.whole && pending.shifts.len() == PENDING_LIMIT);
    let mut items = Pending::default();
    for n in 0..=ITEMS_LIMIT {
        items.add_item(format!("u{n}@x").into());
    }
    assert!(items.whole && items.items.len() == ITEMS_LIMIT);
}
