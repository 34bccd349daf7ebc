//! Whatever sessions do, nobody is left with a ghost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::tests::*;
use super::*;

fn acts() -> impl Strategy<Value = Vec<(i32, bool, u64, usize, Vec<usize>, bool)>> {
    let one = (
        0..8i32,
        any::<bool>(),
        1..4u64,
        0..5usize,
        prop::collection::vec(0..7usize, 0..4),
        any::<bool>(),
    );
    prop::collection::vec(one, 0..60)
}

proptest! {
    /// Whoever was sent presence of a session, and is still there, is told when the session ends.
    #[test]
    fn nobody_is_left_with_a_ghost(acts in acts()) {
        const FULL: [&str; 5] = ["a@x/1", "a@x/2", "b@x/1", "c@x/1", "c@x/2/3"];
        const TARGETS: [&str; 7] = ["a@x", "b@x", "c@x", "a@x/1", "c@x/2/3", "", "/"];
        let mut case = Case::new();
        // By receiver (gateway, session): whom it believes to be available.
        let mut believes: HashMap<(Arc<str>, u64), HashSet<String>> = HashMap::new();
        let note = |believes: &mut HashMap<(Arc<str>, u64), HashSet<String>>, effects: &Effects| {
            for (gateway, up) in &effects.deliveries {
                for session in &up.sessions {
                    let seen = believes.entry((Arc::clone(gateway), *session)).or_default();
                    if up.unavailable {
                        seen.remove(&up.from);
                    } else {
                        seen.insert(up.from.clone());
                    }
                }
            }
        };
        for (act, second, session, full, targets, unavailable) in acts {
            // A probe answers once; what follows it is the broadcast's affair.
            let act = Act::try_from(act).unwrap();
            if act == Act::Probe { continue; }
            let gateway = if second { "gw2" } else { "gw1" };
            let targets: Vec<&str> = targets.into_iter().map(|n| TARGETS[n]).collect();
            let mut item = item(act, session, FULL[full], &targets);
            item.unavailable = unavailable;
            if act == Act::Amend {
                item.hidden = item.targets.split_off(item.targets.len() / 2);
            }
            let key = SessionKey { gateway: gateway.into(), session };
            if case.registry.store.get(&key).is_none_or(|known| *known.full != *item.from) {
                // Another client now, which has seen nothing.
                believes.remove(&(gateway.into(), session));
            }
            let effects = case.act(gateway, &item);
            note(&mut believes, &effects);
        }
        for gateway in ["gw1", "gw2"] {
            let there: Vec<(SessionKey, Arc<str>)> = case.registry.store.of_gateway(gateway).into_iter()
                .map(|key| { let full = Arc::clone(&case.registry.store.get(&key).unwrap().full); (key, full) })
                .collect();
            for (key, full) in there {
                let effects = case.act(gateway, &item(Act::Unavailable, key.session, &full, &[]));
                note(&mut believes, &effects);
                for other in ["gw1", "gw2"] {
                    for receiver in case.registry.store.of_gateway(other) {
                        // One that is not available itself was not told on purpose.
                        let available = case.registry.store.get(&receiver).unwrap().said.is_some();
                        let seen = believes.get(&(Arc::clone(&receiver.gateway), receiver.session));
                        let ghost = seen.is_some_and(|seen| seen.contains(&*full));
                        prop_assert!(!available || !ghost, "{receiver:?} still sees {full}");
                    }
                }
            }
        }
        prop_assert_eq!(case.registry.names.len(), 0, "names of nobody");
    }
}
