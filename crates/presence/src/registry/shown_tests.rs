//! Differences of whom a session is shown to, and what a large group costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::tests::*;
use super::*;
use crate::store::MemoryPresenceStore;

#[test]
fn a_difference_is_shown_to_the_new_and_hidden_from_the_gone_and_from_nobody_else() {
    let mut case = crowd();
    let targets = ["bob@example.org"];
    case.act("gw1", &item(Act::Available, 1, ALICE, &targets));
    let amend = |targets: &[&str], hidden: &[&str]| PublishItem {
        hidden: hidden.iter().map(ToString::to_string).collect(),
        ..item(Act::Amend, 1, ALICE, targets)
    };
    assert_eq!(
        case.sent(
            "gw1",
            &amend(&["carol@example.org", "bob@example.org"], &[])
        ),
        ["gw2 alice@example.org/phone > [3]"],
        "bob has seen it"
    );
    let nobody = ["eve@example.org", "dan@example.org"];
    assert_eq!(
        case.sent("gw1", &amend(&nobody[..1], &nobody[1..])),
        [""; 0]
    );
    assert_eq!(
        case.sent("gw1", &amend(&[], &["bob@example.org", "dan@example.org"])),
        [
            "gw1 alice@example.org/phone! > [2]",
            "gw2 alice@example.org/phone! > [2]"
        ]
    );
    assert_eq!(case.sent("gw1", &amend(&[], &["bob@example.org"])), [""; 0]);
    // What was directed to somebody stays with them, and so does the word of the end.
    case.act(
        "gw1",
        &item(Act::Directed, 1, ALICE, &["carol@example.org"]),
    );
    assert_eq!(
        case.sent("gw1", &amend(&[], &["carol@example.org"])),
        [""; 0]
    );
    assert_eq!(
        case.sent("gw1", &item(Act::Unavailable, 1, ALICE, &[])),
        [
            "gw1 alice@example.org/phone! > [1]",
            "gw2 alice@example.org/phone! > [1, 3]"
        ][1..]
    );
    assert_eq!(case.sent("gw1", &amend(&["bob@example.org"], &[])), [""; 0]);
    // A session that has said nothing shows nothing.
    case.act(
        "gw1",
        &item(Act::Directed, 9, ALICE, &["carol@example.org"]),
    );
    let silent = PublishItem {
        session: 9,
        ..amend(&["bob@example.org"], &[])
    };
    assert_eq!(case.sent("gw1", &silent), [""; 0]);
}

/// 5,000 people in one group, 200 of them there: a name is held once, and each session holds a bit a
/// member.
#[test]
fn a_group_of_thousands_costs_each_of_its_sessions_a_bit_a_member() {
    const PEOPLE: u64 = 5_000;
    const THERE: u64 = 200;
    let mut registry = Registry::new(MemoryPresenceStore::default(), 10_000);
    let gateway: Arc<str> = "gw1".into();
    registry.reach(&gateway, Some(1));
    let names: Vec<String> = (0..PEOPLE).map(|n| format!("u{n}@example.org")).collect();
    for (n, name) in (0..THERE).zip(&names) {
        let mut said = item(Act::Available, n, &format!("{name}/x"), &[]);
        let others = names.iter().filter(|other| *other != name);
        said.targets = others.cloned().collect();
        let effects = registry.act(&gateway, 1, &said);
        assert_eq!(effects.refused, 0);
        assert_eq!(u64::from(effects.copies), n + 1, "those there, and itself");
    }
    assert_eq!(registry.names.len(), names.len());
    let sets = registry.store.all().map(|session| session.shown.bytes());
    let most = sets.max().unwrap();
    assert!(most <= 2_048, "{most} bytes for one of them");
    // One more comes: each is amended by one name, and only the new one is sent anything.
    let new = "new@example.org";
    let said = item(Act::Available, PEOPLE, &format!("{new}/x"), &[]);
    registry.act(&gateway, 1, &said);
    let mut copies = 0;
    for (n, name) in (0..THERE).zip(&names) {
        let amend = item(Act::Amend, n, &format!("{name}/x"), &[new]);
        let effects = registry.act(&gateway, 1, &amend);
        let to_new = |(_, up): &(Arc<str>, AttachUp)| up.sessions == [PEOPLE];
        assert!(effects.deliveries.iter().all(to_new));
        copies += effects.copies;
    }
    assert_eq!(u64::from(copies), THERE);
    assert_eq!(registry.names.len(), names.len() + 1);
    for (n, name) in (0..THERE).zip(&names) {
        registry.act(
            &gateway,
            1,
            &item(Act::Unavailable, n, &format!("{name}/x"), &[]),
        );
    }
    assert_eq!(registry.names.len(), 0);
}
