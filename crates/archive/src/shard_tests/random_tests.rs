//! Random walks, by seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use chancery_api::archive::*;

use super::rig::*;

/// SplitMix64, so that a seed replays.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Two devices come, go, stall and acknowledge at random while messages arrive: at the end
/// everything was given to somebody or is open, live entries came in order, and nothing leaks.
#[test]
fn at_random_nothing_is_lost_and_order_holds() {
    for seed in 1..=60 {
        let mut dice = Dice(seed);
        let mut rig = Rig::new();
        let mut stream = 1;
        rig.hello(stream, "gw1", stream);
        let mut session = 0;
        let mut live: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        // Told to end; their gateway has not confirmed it yet.
        let mut ending: Vec<u64> = Vec::new();
        let mut given: Vec<u64> = Vec::new();
        for _ in 0..400 {
            rig.full = dice.roll(10) == 0;
            match dice.roll(12) {
                0..=3 => {
                    rig.append(chat("a@x/1", "b@x"));
                }
                4 => {
                    session += 1;
                    let jid = format!("b@x/{}", dice.roll(2));
                    let ends: Vec<u64> = live.keys().copied().collect();
                    let credit = u32::try_from(dice.roll(5)).unwrap();
                    let attach = AttachSession {
                        credit,
                        ..attaching(session, &jid)
                    };
                    rig.down(stream, attach_down::Item::Attach(attach));
                    ending.extend(live.keys().filter(|s| rig.end_of(stream, **s).is_some()));
                    live.retain(|s, _| rig.end_of(stream, *s).is_none());
                    live.insert(session, Vec::new());
                    assert!(ends.len() <= 2, "seed {seed}");
                }
                5 if !live.is_empty() => {
                    let (gone, _) = live.pop_first().unwrap();
                    rig.detach(stream, gone);
                }
                6..=8 => {
                    for s in live.keys() {
                        rig.credit(stream, *s, u32::try_from(dice.roll(4)).unwrap());
                    }
                }
                9 => {
                    for (s, unacknowledged) in &mut live {
                        let count = usize::try_from(dice.roll(4)).unwrap();
                        let count = count.min(unacknowledged.len());
                        let acked: Vec<u64> = unacknowledged.drain(..count).collect();
                        rig.acknowledge(stream, *s, &acked);
                    }
                }
                10 if dice.roll(3) == 0 => {
                    rig.shard.stream_lost(stream);
                    rig.ups.clear();
                    stream += 1;
                    rig.hello(stream, "gw1", stream);
                    rig.pass(Duration::from_secs(16));
                    live.clear();
                    ending.clear();
                }
                11 => {
                    for gone in ending.drain(..) {
                        rig.detach(stream, gone);
                    }
                }
                _ => rig.pass(Duration::from_millis(200)),
            }
            for (s, unacknowledged) in &mut live {
                let now = rig.given(stream, *s);
                let fresh: Vec<u64> = now.iter().filter(|g| !g.2).map(|g| g.0).collect();
                assert!(fresh.is_sorted(), "seed {seed}: {fresh:?}");
                given.extend(now.iter().map(|g| g.0));
                unacknowledged.extend(now.iter().map(|g| g.0));
            }
        }
        rig.full = false;
        let open = rig.open("b@x");
        assert!(rig.envelopes.len() > 50, "seed {seed}");
        for number in rig.envelopes.keys() {
            let there = given.contains(number) || open.contains(number);
            assert!(there, "seed {seed}: {number} is lost");
        }
        for s in live.keys().chain(&ending) {
            rig.detach(stream, *s);
        }
        rig.ups.clear();
        let rest = rig.open("b@x");
        rig.down(
            stream,
            attach_down::Item::Attach(AttachSession {
                credit: 9_999,
                ..attaching(9_999, "b@x/z")
            }),
        );
        assert_eq!(
            rig.numbers(stream, 9_999),
            rest,
            "seed {seed}: all that is open comes"
        );
        rig.acknowledge(stream, 9_999, &rest);
        assert!(rig.open("b@x").is_empty() && rig.room == 0, "seed {seed}");
        assert_eq!(rig.shard.mailboxes["b@x"].open_bytes, 0, "seed {seed}");
    }
}

/// A session as its gateway sees it.
#[derive(Default)]
struct Held {
    jid: String,
    /// While it lags; afterwards the place where that ended.
    own: u64,
    lagging: bool,
    unacknowledged: Vec<u64>,
    /// Its client has no stream.
    away: bool,
    /// Everything that it was given live, and late.
    live: Vec<u64>,
    late: Vec<u64>,
    acknowledged: Vec<u64>,
}

/// A gateway that follows the rules of the contract, on a link that loses its tail.
struct GatewayModel {
    stream: u64,
    position: u64,
    sessions: BTreeMap<u64, Held>,
    given: Vec<u64>,
    /// What was acknowledged shortly before a start may come again, late.
    restarts: bool,
}

impl GatewayModel {
    /// Takes what came up, but for the last `lost`, which never arrive.
    fn take(&mut self, rig: &mut Rig, lost: usize, seed: u64) {
        let ups = std::mem::take(rig.ups.entry(self.stream).or_default());
        let arrives = ups.len().saturating_sub(lost);
        for up in ups.into_iter().take(arrives).filter_map(|up| up.item) {
            match up {
                attach_up::Item::Head(head) => self.position = self.position.max(head.number),
                attach_up::Item::Attached(attached) => {
                    let Some(held) = self.sessions.get_mut(&attached.session) else {
                        continue;
                    };
                    held.own = attached.head;
                }
                attach_up::Item::Lagging(lagging) => {
                    let Some(held) = self.sessions.get_mut(&lagging.session) else {
                        continue;
                    };
                    held.lagging = lagging.lagging;
                    held.own = lagging.position;
                }
                attach_up::Item::End(end) => drop(self.sessions.remove(&end.session)),
                attach_up::Item::Deliver(deliver) => self.deliver(&deliver, seed),
                _ => {}
            }
        }
    }

    fn deliver(&mut self, deliver: &Deliver, seed: u64) {
        let number = deliver.number;
        for target in &deliver.targets {
            let Some(held) = self.sessions.get_mut(&target.session) else {
                continue;
            };
            assert!(!held.away, "seed {seed}: {number} to a client that is away");
            let excused = self.restarts && target.delayed;
            let again = held.acknowledged.contains(&number) && !excused;
            assert!(
                !again,
                "seed {seed}: {number} came again after it was acknowledged"
            );
            self.given.push(number);
            held.unacknowledged.retain(|n| *n != number);
            held.unacknowledged.push(number);
            if target.delayed {
                held.late.push(number);
                continue;
            }
            let last = held.live.last().copied().unwrap_or(0);
            assert!(number > last, "seed {seed}: {number} live after {last}");
            held.live.push(number);
            if held.lagging {
                held.own = number;
            } else {
                self.position = self.position.max(number);
            }
        }
    }

    fn attach_again(&mut self, rig: &mut Rig) {
        self.stream += 1;
        rig.hello(self.stream, "gw1", self.stream);
        for (session, held) in &mut self.sessions {
            let position = if held.lagging {
                held.own
            } else {
                held.own.max(self.position)
            };
            let again = AttachSession {
                again: true,
                position,
                unacknowledged: held.unacknowledged.clone(),
                away: held.away,
                credit: 3,
                ..attaching(*session, &held.jid)
            };
            (held.lagging, held.own) = (false, position);
            rig.down(self.stream, attach_down::Item::Attach(again));
        }
    }
}

/// The link is lost at random with a part of what was on it, in both directions, while sessions
/// lag, acknowledge, lose their clients and get them back, come and go: nothing comes twice to a session that acknowledged it, live
/// entries come in order and once, nothing is lost.
#[test]
fn over_a_link_that_is_lost_at_random_everything_comes_once() {
    for seed in 1..=200 {
        walk(seed, false);
    }
}

/// The same, and now and then the archive starts again with what was durable: then what was
/// acknowledged in the last second may stay open, but nothing is lost or out of order.
#[test]
fn over_restarts_at_random_nothing_is_lost() {
    for seed in 1..=200 {
        walk(seed, true);
    }
}

fn say_away(rig: &mut Rig, stream: u64, session: u64, away: bool) {
    rig.down(stream, attach_down::Item::Away(Away { session, away }));
}

fn walk(seed: u64, restarts: bool) {
    let mut dice = Dice(seed);
    let mut rig = Rig::new();
    let mut gateway = GatewayModel {
        stream: 1,
        position: 0,
        sessions: BTreeMap::new(),
        given: Vec::new(),
        restarts,
    };
    rig.hello(1, "gw1", 1);
    let mut next = 0;
    for _ in 0..300 {
        match dice.roll(10) {
            0..=3 => drop(rig.append(chat("a@x/1", "b@x"))),
            4 if gateway.sessions.len() < 2 => {
                next += 1;
                let jid = format!("b@x/{next}");
                let credit = u32::try_from(dice.roll(4)).unwrap();
                gateway.sessions.insert(
                    next,
                    Held {
                        jid: jid.clone(),
                        ..Held::default()
                    },
                );
                let attach = AttachSession {
                    credit,
                    ..attaching(next, &jid)
                };
                rig.down(gateway.stream, attach_down::Item::Attach(attach));
            }
            5 if dice.roll(4) == 0 => {
                if let Some((gone, _)) = gateway.sessions.pop_first() {
                    rig.detach(gateway.stream, gone);
                }
            }
            6 if dice.roll(3) == 0 => {
                let lost = usize::try_from(dice.roll(5)).unwrap();
                gateway.take(&mut rig, lost, seed);
                let acks_lost = dice.roll(2) == 0;
                for (session, held) in &mut gateway.sessions {
                    // The client acknowledges while the link dies.
                    let late = held.late.clone();
                    let acked = held.unacknowledged.pop();
                    let Some(acked) = acked else { continue };
                    if acks_lost && late.contains(&acked) {
                        // Of what came late the shard cannot know: it may come again.
                        held.unacknowledged.push(acked);
                        continue;
                    }
                    held.acknowledged.push(acked);
                    if !acks_lost {
                        rig.acknowledge(gateway.stream, *session, &[acked]);
                    }
                }
                rig.shard.stream_lost(gateway.stream);
                let restarted = restarts && dice.roll(3) == 0;
                if restarted {
                    rig.restart();
                }
                if dice.roll(2) == 0 {
                    rig.append(chat("a@x/1", "b@x"));
                }
                gateway.attach_again(&mut rig);
            }
            7 | 8 => {
                for (session, held) in &mut gateway.sessions {
                    let count = usize::try_from(dice.roll(4)).unwrap();
                    let count = count.min(held.unacknowledged.len());
                    let acked: Vec<u64> = held.unacknowledged.drain(..count).collect();
                    rig.acknowledge(gateway.stream, *session, &acked);
                    held.acknowledged.extend(acked);
                    rig.credit(gateway.stream, *session, u32::try_from(count).unwrap() + 1);
                }
            }
            9 if dice.roll(2) == 0 => {
                for (session, held) in &mut gateway.sessions {
                    held.away = dice.roll(2) == 0;
                    say_away(&mut rig, gateway.stream, *session, held.away);
                }
            }
            _ => rig.pass(Duration::from_millis(300)),
        }
        gateway.take(&mut rig, 0, seed);
    }
    // After a start the mailbox may not be in memory yet.
    rig.append(chat("a@x/1", "b@x"));
    gateway.take(&mut rig, 0, seed);
    let open = rig.open("b@x");
    for number in rig.envelopes.keys() {
        let there = gateway.given.contains(number) || open.contains(number);
        assert!(there, "seed {seed}: {number} is lost");
    }
    // With credit enough, whoever is there gets all that waits for it.
    let sessions: Vec<u64> = gateway.sessions.keys().copied().collect();
    for held in gateway.sessions.values_mut() {
        held.away = false;
    }
    for session in &sessions {
        say_away(&mut rig, gateway.stream, *session, false);
        rig.credit(gateway.stream, *session, 10_000);
    }
    gateway.take(&mut rig, 0, seed);
    if !sessions.is_empty() && !restarts {
        for number in rig.open("b@x") {
            assert!(
                gateway.given.contains(&number),
                "seed {seed}: {number} is stuck"
            );
        }
    }
    assert!(rig.shard.lagging.is_empty() && rig.room == 0, "seed {seed}");
}
