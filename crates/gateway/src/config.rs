//! The gateway's section of the configuration: where it listens, and every limit that an operator
//! may move. Refuses to read files; the binary parses and merges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use chancery_xml::Limits;

use crate::admission::Caps;
use crate::contacts::Contacts;
use crate::session::shaping::Rate;
use crate::tls::CertificateFiles;

/// The section `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses for client streams that begin in clear text and must use STARTTLS.
    pub c2s: Vec<SocketAddr>,
    /// Features that are not there and not advertised, by the names in the table of standards.
    pub features_off: Vec<String>,
    /// Addresses for client streams that begin with TLS (XEP-0368).
    pub c2s_tls: Vec<SocketAddr>,
    /// Certificates of the domains. A domain without one gets a leaf of the local authority.
    pub certificates: Vec<CertificateFiles>,
    /// Whom to write to about a domain (XEP-0157).
    pub contacts: BTreeMap<String, Contacts>,
    /// Domains that have administrators (XEP-0133).
    pub administered: BTreeSet<String>,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address (of one /64 with IPv6); many people may share one.
    pub connections_per_address: usize,
    /// New connections of one address a second, in the long run...
    pub connections_per_address_per_second: u32,
    /// ...and at once.
    pub connections_per_address_burst: u32,
    /// Connections in all that have not authenticated.
    pub half_open: usize,
    /// Connections of one address that have not authenticated.
    pub half_open_per_address: usize,
    /// TLS handshakes under way; further ones wait, within their own deadline.
    pub handshakes: usize,
    /// Seconds for a TLS handshake.
    pub handshake_seconds: u64,
    /// Seconds for a stream header, and from it to `<starttls/>`.
    pub header_seconds: u64,
    /// Seconds from the offer of mechanisms to success, retries included.
    pub sasl_seconds: u64,
    /// Seconds from success to a bound resource.
    pub bind_seconds: u64,
    /// Failed attempts to authenticate on one stream; the next one ends it.
    pub sasl_attempts: u32,
    /// Bytes of one element before authentication.
    pub bytes_before_auth: u32,
    /// Bytes of one stanza after authentication.
    pub stanza_bytes: u32,
    /// Stanzas a second that one session may send in the long run; it is read slower beyond.
    pub stanzas_per_second: u32,
    /// Stanzas that a session may send at once after a pause.
    pub stanzas_burst: u32,
    /// Bytes a second that one session may send in the long run.
    pub bytes_per_second: u32,
    /// Bytes that a session may send at once after a pause.
    pub bytes_burst: u32,
    /// Stanzas a second of all sessions of one account on this gateway.
    pub account_stanzas_per_second: u32,
    /// Stanzas that these may send at once after a pause.
    pub account_stanzas_burst: u32,
    /// Bytes a second of all sessions of one account on this gateway.
    pub account_bytes_per_second: u32,
    /// Bytes that these may send at once after a pause.
    pub account_bytes_burst: u32,
    /// Stanzas a second of all sessions of one domain on this gateway.
    pub domain_stanzas_per_second: u32,
    /// Stanzas that these may send at once after a pause.
    pub domain_stanzas_burst: u32,
    /// Bytes a second of all sessions of one domain on this gateway.
    pub domain_bytes_per_second: u32,
    /// Bytes that these may send at once after a pause.
    pub domain_bytes_burst: u32,
    /// Stanzas that a stream management queue holds until they are acknowledged (XEP-0198).
    pub sm_queue_stanzas: u32,
    /// Bytes that a stream management queue holds.
    pub sm_queue_bytes: u32,
    /// Seconds for which a session outlasts its stream and may be resumed (XEP-0198); 0 = none does.
    pub resume_seconds: u32,
    /// Where clients should come back to resume, as HOST:PORT; not told when it is empty.
    pub location: String,
    /// Seconds that written bytes may stay unacknowledged by the peer's TCP.
    pub tcp_user_timeout_seconds: u64,
    /// Seconds of silence after which TCP probes the peer.
    pub tcp_keepalive_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            features_off: Vec::new(),
            c2s: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5222))],
            c2s_tls: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5223))],
            certificates: Vec::new(),
            contacts: BTreeMap::new(),
            administered: BTreeSet::new(),
            connections: 100_000,
            connections_per_address: 20_000,
            connections_per_address_per_second: 100,
            connections_per_address_burst: 20_000,
            half_open: 16_384,
            half_open_per_address: 2_048,
            handshakes: 1_024,
            handshake_seconds: 10,
            header_seconds: 10,
            sasl_seconds: 30,
            bind_seconds: 30,
            sasl_attempts: 3,
            bytes_before_auth: 16 * 1024,
            stanza_bytes: 256 * 1024,
            stanzas_per_second: 1_000,
            stanzas_burst: 2_000,
            bytes_per_second: 1024 * 1024,
            bytes_burst: 2 * 1024 * 1024,
            account_stanzas_per_second: 2_000,
            account_stanzas_burst: 4_000,
            account_bytes_per_second: 4 * 1024 * 1024,
            account_bytes_burst: 8 * 1024 * 1024,
            domain_stanzas_per_second: 100_000,
            domain_stanzas_burst: 200_000,
            domain_bytes_per_second: 256 * 1024 * 1024,
            domain_bytes_burst: 512 * 1024 * 1024,
            sm_queue_stanzas: 512,
            sm_queue_bytes: 1024 * 1024,
            resume_seconds: 300,
            location: String::new(),
            tcp_user_timeout_seconds: 60,
            tcp_keepalive_seconds: 60,
        }
    }
}

/// A stanza larger than this does not fit the lanes.
const STANZA_BYTES_MAX: u32 = 1024 * 1024;
/// RFC 6120 §13.12: no server may refuse a stanza below this.
const STANZA_BYTES_MIN: u32 = 10_000;
/// Seconds that any deadline may have.
const SECONDS_MAX: u64 = 600;
/// Seconds that a session may wait to be resumed.
const RESUME_SECONDS_MAX: u32 = 3_600;
/// Bytes of a location: the longest host name, and a port.
const LOCATION_BYTES_MAX: usize = 263;

impl Config {
    /// Everything that is wrong, by field.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.c2s.is_empty() && self.c2s_tls.is_empty() {
            problems.push(("c2s", "the gateway listens nowhere".to_owned()));
        }
        for name in &self.features_off {
            if !crate::iq::optional().any(|optional| optional == name) {
                let text = format!("{name:?} is no feature that can be switched off");
                problems.push(("features_off", text));
            }
        }
        for (field, value) in [
            ("connections", self.connections),
            ("connections_per_address", self.connections_per_address),
            ("half_open", self.half_open),
            ("half_open_per_address", self.half_open_per_address),
            ("handshakes", self.handshakes),
        ] {
            if value == 0 {
                problems.push((field, "must be at least 1".to_owned()));
            }
        }
        if self.handshakes > tokio::sync::Semaphore::MAX_PERMITS {
            problems.push(("handshakes", "is too large".to_owned()));
        }
        for (field, value) in [
            ("handshake_seconds", self.handshake_seconds),
            ("header_seconds", self.header_seconds),
            ("sasl_seconds", self.sasl_seconds),
            ("bind_seconds", self.bind_seconds),
            ("tcp_user_timeout_seconds", self.tcp_user_timeout_seconds),
            ("tcp_keepalive_seconds", self.tcp_keepalive_seconds),
        ] {
            if value == 0 || value > SECONDS_MAX {
                problems.push((field, format!("must be from 1 to {SECONDS_MAX}")));
            }
        }
        if !(2..=6).contains(&self.sasl_attempts) {
            problems.push((
                "sasl_attempts",
                "must be from 2 to 6 (RFC 6120 §6.4.5)".to_owned(),
            ));
        }
        if !(2_048..=65_536).contains(&self.bytes_before_auth) {
            problems.push(("bytes_before_auth", "must be from 2048 to 65536".to_owned()));
        }
        if !(STANZA_BYTES_MIN..=STANZA_BYTES_MAX).contains(&self.stanza_bytes) {
            let range = format!("must be from {STANZA_BYTES_MIN} to {STANZA_BYTES_MAX}");
            problems.push(("stanza_bytes", range));
        }
        for (field, value, least) in self.leasts() {
            if value < least {
                problems.push((field, format!("must be at least {least}")));
            }
        }
        if self.resume_seconds > RESUME_SECONDS_MAX {
            let range = format!("must be from 0 to {RESUME_SECONDS_MAX}");
            problems.push(("resume_seconds", range));
        }
        if !(self.location.is_empty() || is_location(&self.location)) {
            problems.push(("location", "must be HOST:PORT".to_owned()));
        }
        let mut seen = std::collections::HashSet::new();
        for files in &self.certificates {
            if !seen.insert(&files.domain) {
                problems.push(("certificates", format!("{} is named twice", files.domain)));
            }
        }
        problems
    }

    /// What is a number of its own, and the least that it may be.
    fn leasts(&self) -> [(&'static str, u32, u32); 16] {
        let rate = |per_second: u32| per_second.max(1);
        [
            (
                "connections_per_address_per_second",
                self.connections_per_address_per_second,
                1,
            ),
            (
                "connections_per_address_burst",
                self.connections_per_address_burst,
                1,
            ),
            ("stanzas_per_second", self.stanzas_per_second, 1),
            (
                "stanzas_burst",
                self.stanzas_burst,
                rate(self.stanzas_per_second),
            ),
            ("bytes_per_second", self.bytes_per_second, 1),
            ("bytes_burst", self.bytes_burst, self.stanza_bytes),
            (
                "account_stanzas_per_second",
                self.account_stanzas_per_second,
                1,
            ),
            (
                "account_stanzas_burst",
                self.account_stanzas_burst,
                rate(self.account_stanzas_per_second),
            ),
            ("account_bytes_per_second", self.account_bytes_per_second, 1),
            (
                "account_bytes_burst",
                self.account_bytes_burst,
                self.stanza_bytes,
            ),
            (
                "domain_stanzas_per_second",
                self.domain_stanzas_per_second,
                1,
            ),
            (
                "domain_stanzas_burst",
                self.domain_stanzas_burst,
                rate(self.domain_stanzas_per_second),
            ),
            ("domain_bytes_per_second", self.domain_bytes_per_second, 1),
            (
                "domain_bytes_burst",
                self.domain_bytes_burst,
                self.stanza_bytes,
            ),
            ("sm_queue_stanzas", self.sm_queue_stanzas, 16),
            ("sm_queue_bytes", self.sm_queue_bytes, self.stanza_bytes),
        ]
    }

    /// Stanzas and bytes: of a session, of an account, of a domain.
    pub(crate) fn rates(&self) -> [(Rate, Rate); 3] {
        let rate = |per_second, burst| Rate { per_second, burst };
        [
            (
                rate(self.stanzas_per_second, self.stanzas_burst),
                rate(self.bytes_per_second, self.bytes_burst),
            ),
            (
                rate(self.account_stanzas_per_second, self.account_stanzas_burst),
                rate(self.account_bytes_per_second, self.account_bytes_burst),
            ),
            (
                rate(self.domain_stanzas_per_second, self.domain_stanzas_burst),
                rate(self.domain_bytes_per_second, self.domain_bytes_burst),
            ),
        ]
    }

    /// The caps on connections.
    pub fn caps(&self) -> Caps {
        Caps {
            connections: self.connections,
            per_address: self.connections_per_address,
            half_open: self.half_open,
            half_open_per_address: self.half_open_per_address,
            rate_per_address: Rate {
                per_second: self.connections_per_address_per_second,
                burst: self.connections_per_address_burst,
            },
        }
    }

    /// The caps on what is read before authentication.
    pub fn limits_before_auth(&self) -> Limits {
        let limits = Limits::before_auth();
        Limits {
            stanza_bytes: self.bytes_before_auth,
            ..limits
        }
    }

    /// The caps on what is read after it.
    pub fn limits_after_auth(&self) -> Limits {
        Limits {
            stanza_bytes: self.stanza_bytes,
            ..Limits::after_auth()
        }
    }

    /// The deadline of a TLS handshake.
    pub fn handshake_limit(&self) -> Duration {
        Duration::from_secs(self.handshake_seconds)
    }

    /// The deadline of a stream header.
    pub fn header_limit(&self) -> Duration {
        Duration::from_secs(self.header_seconds)
    }

    /// The deadline of SASL.
    pub fn sasl_limit(&self) -> Duration {
        Duration::from_secs(self.sasl_seconds)
    }

    /// The deadline of resource binding.
    pub fn bind_limit(&self) -> Duration {
        Duration::from_secs(self.bind_seconds)
    }
}

/// HOST:PORT, as XEP-0198 §5 has it.
fn is_location(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    text.len() <= LOCATION_BYTES_MAX
        && !host.is_empty()
        && host.chars().all(plain)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_default_is_in_order() {
        assert_eq!(Config::default().problems(), Vec::new());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let config = Config {
            c2s: Vec::new(),
            c2s_tls: Vec::new(),
            half_open: 0,
            sasl_seconds: 0,
            sasl_attempts: 50,
            stanza_bytes: 9_999,
            resume_seconds: 3_601,
            location: "gw1.example".into(),
            ..Config::default()
        };
        let fields: Vec<_> = config
            .problems()
            .into_iter()
            .map(|(field, _)| field)
            .collect();
        assert_eq!(
            fields,
            [
                "c2s",
                "half_open",
                "sasl_seconds",
                "sasl_attempts",
                "stanza_bytes",
                "resume_seconds",
                "location"
            ]
        );
    }
}
