//! Who may connect: caps on connections, in all and per address, those that have not shown who
//! they are counted apart, and how fast one address may open them. Counts are held by guards, so
//! that none is forgotten.
//!
//! Refuses to touch a socket: the listener refuses what gets no guard.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::session::shaping::Rate;

/// Addresses without a connection whose rate is remembered; at this all of them are forgotten, and may
/// open a burst again.
const REMEMBERED: usize = 65_536;

/// The caps. Reaching one refuses the newest connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub per_address: usize,
    /// Connections in all that have not authenticated.
    pub half_open: usize,
    /// Connections of one address that have not authenticated.
    pub half_open_per_address: usize,
    /// New connections of one address.
    pub rate_per_address: Rate,
}

/// Which cap refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server is full.
    Server,
    /// This address has too many.
    Address,
    /// This address opens them too fast.
    Rate,
}

impl Refusal {
    /// Its label in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Address => "address",
            Self::Rate => "rate",
        }
    }
}

/// The counts.
#[derive(Debug)]
pub struct Admission {
    caps: Caps,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    /// Those that have a connection, at most `Caps::connections`, and up to [`REMEMBERED`] others.
    addresses: HashMap<Key, Count>,
    without: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    open: usize,
    half_open: usize,
    /// When the address will have its whole burst again; `None` when it has.
    full_at: Option<Instant>,
}

impl Count {
    /// With one more connection now, when its burst will be whole again; `None` when it has none left.
    fn opens(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let each = Duration::from_secs(1) / rate.per_second.max(1);
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + each;
        (full_at - now <= each * rate.burst.max(1)).then_some(full_at)
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: whoever has one of its addresses has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(Ipv6Addr);

impl Key {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Self(v6),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        }
    }
}

impl Admission {
    /// Nobody is connected.
    pub fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            caps,
            counts: Mutex::default(),
        })
    }

    /// Counts a new connection, half open, or refuses it.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Admitted, Refusal> {
        let key = Key::of(address);
        let mut counts = self.counts.lock();
        let all = counts.all;
        let known = counts.addresses.get(&key).copied();
        let one = known.unwrap_or_default();
        if one.open >= self.caps.per_address || one.half_open >= self.caps.half_open_per_address {
            return Err(Refusal::Address);
        }
        if all.open >= self.caps.connections || all.half_open >= self.caps.half_open {
            return Err(Refusal::Server);
        }
        let Some(full_at) = one.opens(self.caps.rate_per_address, now) else {
            return Err(Refusal::Rate);
        };
        let counts = &mut *counts;
        if known.is_some_and(|one| one.open == 0) {
            counts.without -= 1;
        }
        let one = counts.addresses.entry(key).or_default();
        one.full_at = Some(full_at);
        for count in [&mut counts.all, one] {
            count.open += 1;
            count.half_open += 1;
        }
        Ok(Admitted {
            admission: Some((Arc::clone(self), key)),
            half_open: true,
        })
    }

    /// Connections now, and how many of them are half open.
    pub fn open(&self) -> (usize, usize) {
        let counts = self.counts.lock();
        (counts.all.open, counts.all.half_open)
    }

    fn release(&self, key: Key, open: usize, half_open: usize) {
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        let Some(one) = counts.addresses.get_mut(&key) else {
            return;
        };
        for count in [&mut counts.all, &mut *one] {
            count.open -= open;
            count.half_open -= half_open;
        }
        if open > 0 && one.open == 0 {
            counts.without += 1;
            if counts.without >= REMEMBERED {
                counts.forget();
            }
        }
    }
}

impl Counts {
    /// Forgets whoever has no connection.
    fn forget(&mut self) {
        self.addresses.retain(|_, one| one.open > 0);
        self.addresses.shrink_to(self.addresses.len() * 2);
        self.without = 0;
    }
}

/// One counted connection; ends its count when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Option<(Arc<Admission>, Key)>,
    half_open: bool,
}

impl Admitted {
    /// A connection that nobody counts, as in tests of what comes after.
    pub fn uncounted() -> Self {
        Self {
            admission: None,
            half_open: false,
        }
    }

    /// It is no longer half open.
    pub fn authenticated(&mut self) {
        if std::mem::take(&mut self.half_open)
            && let Some((admission, key)) = &self.admission
        {
            admission.release(*key, 0, 1);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some((admission, key)) = &self.admission {
            admission.release(*key, 1, usize::from(self.half_open));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const CAPS: Caps = Caps {
        connections: 6,
        per_address: 3,
        half_open: 4,
        half_open_per_address: 2,
        rate_per_address: Rate {
            per_second: 1,
            burst: 100,
        },
    };

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn attack_b9_caps_of_one_address_leave_the_others_alone() {
        let admission = Admission::new(CAPS);
        let mut first = admission.admit(v4(1), Instant::now()).unwrap();
        let _second = admission.admit(v4(1), Instant::now()).unwrap();
        assert_eq!(
            admission.admit(v4(1), Instant::now()).unwrap_err(),
            Refusal::Address
        );
        let _other = admission.admit(v4(2), Instant::now()).unwrap();
        first.authenticated();
        first.authenticated();
        let third = admission.admit(v4(1), Instant::now()).unwrap();
        drop(third);
        let mut third = admission.admit(v4(1), Instant::now()).unwrap();
        third.authenticated();
        assert_eq!(
            admission.admit(v4(1), Instant::now()).unwrap_err(),
            Refusal::Address,
            "three are open"
        );
        assert_eq!(admission.open(), (4, 2));
    }

    #[test]
    fn caps_in_all() {
        let admission = Admission::new(CAPS);
        let mut held: Vec<_> = (1..=4)
            .map(|last| admission.admit(v4(last), Instant::now()).unwrap())
            .collect();
        assert_eq!(
            admission.admit(v4(5), Instant::now()).unwrap_err(),
            Refusal::Server,
            "four are half open"
        );
        held.iter_mut().for_each(Admitted::authenticated);
        held.push(admission.admit(v4(5), Instant::now()).unwrap());
        held.push(admission.admit(v4(6), Instant::now()).unwrap());
        assert_eq!(
            admission.admit(v4(7), Instant::now()).unwrap_err(),
            Refusal::Server,
            "six are open"
        );
        drop(held);
        assert_eq!(admission.open(), (0, 0));
        let mut counts = admission.counts.lock();
        assert_eq!(counts.addresses.len(), counts.without);
        counts.forget();
        assert!(counts.addresses.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let admission = Admission::new(CAPS);
        let at = |text: &str| admission.admit(text.parse().unwrap(), Instant::now());
        let _held = [
            at("2001:db8:0:1::1").unwrap(),
            at("2001:db8:0:1:ffff::2").unwrap(),
        ];
        assert_eq!(at("2001:db8:0:1::3").unwrap_err(), Refusal::Address);
        let _next = at("2001:db8:0:2::3").unwrap();
        let _mapped = at("::ffff:192.0.2.9").unwrap();
        assert_eq!(admission.open().0, 4);
    }

    #[test]
    fn an_address_opens_its_burst_and_then_goes_by_the_rate() {
        let rate_per_address = Rate {
            per_second: 10,
            burst: 3,
        };
        let admission = Admission::new(Caps {
            rate_per_address,
            ..CAPS
        });
        let start = Instant::now();
        let at = |ms| admission.admit(v4(1), start + Duration::from_millis(ms));
        // Each ends at once: that there is none now does not help.
        for _ in 0..3 {
            drop(at(0).unwrap());
        }
        assert_eq!(at(0).unwrap_err(), Refusal::Rate);
        assert_eq!(
            at(99).unwrap_err(),
            Refusal::Rate,
            "and a refusal costs nothing"
        );
        drop(at(100).unwrap());
        assert_eq!(at(101).unwrap_err(), Refusal::Rate);
        drop(admission.admit(v4(2), start).unwrap());
        for _ in 0..3 {
            drop(at(10_000).unwrap());
        }
        assert_eq!(
            at(10_000).unwrap_err(),
            Refusal::Rate,
            "never more than the burst"
        );
    }

    #[test]
    fn addresses_without_a_connection_are_bounded() {
        let admission = Admission::new(CAPS);
        let now = Instant::now();
        let _held = admission.admit(v4(1), now).unwrap();
        for last in 0..u32::try_from(REMEMBERED).unwrap() + 10 {
            let address = IpAddr::from(last.to_be_bytes());
            drop(admission.admit(address, now).unwrap());
        }
        let counts = admission.counts.lock();
        assert_eq!((counts.addresses.len(), counts.without), (11, 10));
    }
}
