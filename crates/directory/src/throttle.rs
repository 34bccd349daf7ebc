//! Who guesses, and what it costs him: rising delays per account and address, refusal of an address
//! that fails too often. In memory, bounded. It refuses to hold answers back (the gateway does) and
//! to lock an account: an attacker must not be able to shut anybody out (XEP-0205, D10).
//!
//! Three figures: failures of an (account, address) pair, of an address over all accounts, of an
//! account over all addresses. The last is not held against an address from which the account has
//! logged in, so strangers cannot slow the owner down where he usually is; neither is the second,
//! so a guesser behind the same address translation cannot keep him out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::digest;
use parking_lot::Mutex;
use tokio::time::Instant;

use chancery_runtime::Clock;

/// Attempts of one account from one address before each next one is delayed.
pub const PAIR_FREE: u32 = 5;
/// Failures of one address, or of one account, before each next attempt is delayed.
pub const WIDE_FREE: u32 = 20;
/// Failures in one window after which an address is refused.
pub const REFUSED_ABOVE: u32 = 100;
/// The window in which failures are counted, from the first on.
pub const WINDOW: Duration = Duration::from_secs(600);
/// The first delay; each further failure doubles it.
const DELAY_FIRST: Duration = Duration::from_millis(125);
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(5);
/// Entries of each table; beyond it those not used for longest are forgotten.
const TABLE_LIMIT: usize = 100_000;

/// What an attempt that begins has to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The final answer is held back for so long.
    Delay(Duration),
    /// The stream ends with `policy-violation`.
    Refused,
}

type Key = [u8; 16];

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    since: Instant,
}

/// The counting, behind one lock that is held for a few look-ups.
pub struct Throttle {
    clock: Clock,
    tables: Mutex<Tables>,
}

struct Tables {
    /// Attempts that began and have not been reported as successful.
    pairs: Recent<(Key, Key), Failures>,
    addresses: Recent<Key, Failures>,
    accounts: Recent<Key, Failures>,
    /// Pairs that have logged in. A table of its own, so that failures cannot push them out.
    usual: Recent<(Key, Key), ()>,
}

impl Throttle {
    /// Nobody has tried anything.
    pub fn new(clock: Clock) -> Self {
        let tables = Tables {
            pairs: Recent::new(TABLE_LIMIT),
            addresses: Recent::new(TABLE_LIMIT),
            accounts: Recent::new(TABLE_LIMIT),
            usual: Recent::new(TABLE_LIMIT),
        };
        Self {
            clock,
            tables: Mutex::new(tables),
        }
    }

    /// An attempt begins. It counts against its pair at once, so that many begun in parallel do
    /// not all pass as the first; a success takes that back.
    pub fn begin(&self, account: &str, peer: &str) -> Check {
        let (account, address) = (account_key(account), address_key(peer));
        let now = self.clock.monotonic();
        let mut tables = self.tables.lock();
        let usual = tables.usual.get(&(account, address)).is_some();
        let pair = current(tables.pairs.get(&(account, address)), now);
        let wide = current(tables.addresses.get(&address), now);
        let strangers = current(tables.accounts.get(&account), now);
        if pair > REFUSED_ABOVE || (!usual && wide > REFUSED_ABOVE) {
            return Check::Refused;
        }
        count(&mut tables.pairs, (account, address), now);
        let mut delay = delay(pair, PAIR_FREE);
        if !usual {
            delay = delay
                .max(self::delay(wide, WIDE_FREE))
                .max(self::delay(strangers, WIDE_FREE));
        }
        Check::Delay(delay)
    }

    /// How an attempt ended.
    pub fn report(&self, account: &str, peer: &str, success: bool) {
        let (account, address) = (account_key(account), address_key(peer));
        let now = self.clock.monotonic();
        let mut tables = self.tables.lock();
        if success {
            tables.pairs.remove(&(account, address));
            tables.usual.insert((account, address), ());
        } else {
            count(&mut tables.addresses, address, now);
            count(&mut tables.accounts, account, now);
        }
    }

    /// Entries of all tables.
    pub fn len(&self) -> usize {
        let tables = self.tables.lock();
        tables.pairs.len() + tables.addresses.len() + tables.accounts.len() + tables.usual.len()
    }
}

fn current(entry: Option<&mut Failures>, now: Instant) -> u32 {
    match entry {
        Some(entry) if now.duration_since(entry.since) < WINDOW => entry.count,
        _ => 0,
    }
}

fn count<K: Eq + Hash + Copy>(table: &mut Recent<K, Failures>, key: K, now: Instant) {
    match table.get(&key) {
        Some(entry) if now.duration_since(entry.since) < WINDOW => {
            entry.count = entry.count.saturating_add(1);
        }
        Some(entry) => {
            *entry = Failures {
                count: 1,
                since: now,
            }
        }
        None => table.insert(
            key,
            Failures {
                count: 1,
                since: now,
            },
        ),
    }
}

fn delay(failures: u32, free: u32) -> Duration {
    match failures.checked_sub(free) {
        None => Duration::ZERO,
        Some(steps) => DELAY_FIRST
            .saturating_mul(1 << steps.min(16))
            .min(DELAY_MAX),
    }
}

fn hashed(kind: u8, bytes: &[u8]) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[kind]);
    context.update(bytes);
    let digest = context.finish();
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_ref()[..16]);
    key
}

fn account_key(account: &str) -> Key {
    hashed(0, account.as_bytes())
}

/// An IPv4 address, or the /64 of an IPv6 one: whoever has one address of a /64 has them all.
fn address_key(peer: &str) -> Key {
    let ip = peer
        .parse::<IpAddr>()
        .or_else(|_| peer.parse::<SocketAddr>().map(|address| address.ip()))
        .map(|ip| ip.to_canonical());
    match ip {
        Ok(IpAddr::V4(ip)) => hashed(4, &ip.octets()),
        Ok(IpAddr::V6(ip)) => hashed(6, &network(ip)),
        Err(_) => hashed(1, peer.as_bytes()),
    }
}

fn network(ip: Ipv6Addr) -> [u8; 8] {
    let [a, b, c, d, ..] = ip.segments();
    let (a, b, c, d) = (
        a.to_be_bytes(),
        b.to_be_bytes(),
        c.to_be_bytes(),
        d.to_be_bytes(),
    );
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
}

/// A map that forgets what was not used for longest, half a limit at a time.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash + Copy, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: (limit / 2).max(1),
        }
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        if let Some(value) = self.old.remove(key) {
            self.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const HOME: &str = "192.0.2.1";
    const EVIL: &str = "198.51.100.66";

    fn throttle() -> (Throttle, Clock) {
        let clock = Clock::manual(1_000_000);
        (Throttle::new(clock.clone()), clock)
    }

    fn fail(throttle: &Throttle, account: &str, peer: &str) -> Check {
        let check = throttle.begin(account, peer);
        if check != Check::Refused {
            throttle.report(account, peer, false);
        }
        check
    }

    const NONE: Check = Check::Delay(Duration::ZERO);

    #[test]
    fn delays_rise_to_their_limit_and_end_with_the_window() {
        let (throttle, clock) = throttle();
        let delays: Vec<_> = (0..14)
            .map(|_| match fail(&throttle, "alice", EVIL) {
                Check::Delay(delay) => delay.as_millis(),
                Check::Refused => panic!("refused"),
            })
            .collect();
        assert_eq!(
            delays,
            [
                0, 0, 0, 0, 0, 125, 250, 500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000
            ]
        );
        clock.advance(WINDOW);
        assert_eq!(throttle.begin("alice", EVIL), NONE);
    }

    #[test]
    fn parallel_attempts_do_not_all_pass_as_the_first() {
        let (throttle, _clock) = throttle();
        let free = (0..50)
            .filter(|_| throttle.begin("alice", EVIL) == NONE)
            .count();
        assert_eq!(free, PAIR_FREE as usize);
    }

    #[test]
    fn one_address_over_many_accounts_is_delayed_then_refused_for_the_window() {
        let (throttle, clock) = throttle();
        let mut delayed = 0;
        let mut tries = 0;
        loop {
            match fail(&throttle, &format!("user{tries}"), EVIL) {
                NONE => {}
                Check::Delay(_) => delayed += 1,
                Check::Refused => break,
            }
            tries += 1;
            assert!(tries < 1_000);
        }
        assert_eq!(tries, REFUSED_ABOVE + 1);
        assert_eq!(delayed, tries - WIDE_FREE);
        assert_eq!(
            throttle.begin("user0", HOME),
            NONE,
            "others are not refused"
        );
        clock.advance(WINDOW);
        assert_eq!(throttle.begin("fresh", EVIL), NONE);
    }

    #[test]
    fn strangers_cannot_keep_the_owner_out() {
        let (throttle, _clock) = throttle();
        throttle.begin("alice", HOME);
        throttle.report("alice", HOME, true);
        for host in 0..1_000 {
            fail(
                &throttle,
                "alice",
                &format!("10.0.{}.{}", host / 250, host % 250),
            );
        }
        assert_eq!(throttle.begin("alice", HOME), NONE, "usual address");
        // From a new address it is slow, never impossible.
        assert_eq!(
            throttle.begin("alice", "203.0.113.9"),
            Check::Delay(DELAY_MAX)
        );
        // A guesser behind the owner's own address, on other accounts.
        throttle.report("alice", HOME, true);
        for user in 0..200 {
            fail(&throttle, &format!("user{user}"), HOME);
        }
        assert_eq!(throttle.begin("bob", HOME), Check::Refused);
        assert_eq!(throttle.begin("alice", HOME), NONE);
    }

    #[test]
    fn a_thousand_tries_on_one_account_from_one_address_are_refused() {
        let (throttle, _clock) = throttle();
        throttle.report("mallory", EVIL, true);
        let refused = (0..1_000)
            .filter(|_| fail(&throttle, "alice", EVIL) == Check::Refused)
            .count();
        assert!(refused >= 890, "{refused}");
        // An own account at the same address does not help against another's.
        throttle.report("mallory", EVIL, true);
        assert_eq!(throttle.begin("alice", EVIL), Check::Refused);
        let usual = (0..1_000)
            .filter(|_| fail(&throttle, "mallory", EVIL) == Check::Refused)
            .count();
        assert!(usual >= 890, "a usual address is no licence: {usual}");
    }

    #[test]
    fn a_success_resets_the_pair() {
        let (throttle, _clock) = throttle();
        for _ in 0..9 {
            fail(&throttle, "alice", HOME);
        }
        assert_ne!(throttle.begin("alice", HOME), NONE);
        throttle.report("alice", HOME, true);
        assert_eq!(throttle.begin("alice", HOME), NONE);
    }

    #[test]
    fn addresses_are_folded() {
        let same = [
            ("192.0.2.1", "192.0.2.1:5555"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("2001:db8:1:2::1", "[2001:db8:1:2:ffff::9]:77"),
        ];
        for (a, b) in same {
            assert_eq!(address_key(a), address_key(b), "{a} {b}");
        }
        for (a, b) in [
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ] {
            assert_ne!(address_key(a), address_key(b), "{a} {b}");
        }
    }

    #[test]
    fn tables_are_bounded_and_keep_what_is_used() {
        let mut recent = Recent::new(10);
        recent.insert(0, ());
        for key in 1..1_000 {
            recent.insert(key, ());
            assert!(recent.get(&0).is_some(), "{key}");
            assert!(recent.len() <= 10);
        }
        assert!(recent.get(&1).is_none());
        recent.remove(&0);
        assert!(recent.get(&0).is_none());
    }
}
