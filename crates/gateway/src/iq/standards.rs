//! The table of standards: what the features say of themselves, and what stands below them. Pure.
//!
//! Which scenarios prove a row the tests know; they compare the table with the manual.

use super::manifests;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standard {
    /// `XEP-0199`, `RFC 6120 §7`.
    pub name: &'static str,
    /// The version implemented; empty for an RFC.
    pub version: &'static str,
    /// What it is, for what has no feature of its own; else how much of it is there.
    pub status: &'static str,
    /// The feature, by the name that switches it; empty for what stands below.
    pub feature: &'static str,
}

/// What is there without a feature of its own.
const BELOW: &[(&str, &str, &str)] = &[
    ("RFC 6120 §4", "", "streams and their errors"),
    ("RFC 6120 §5", "", "STARTTLS, and nothing before it"),
    ("RFC 6120 §6", "", "SASL"),
    ("RFC 6120 §8", "", "stanzas and their errors"),
    ("RFC 6120 §10", "", "processing in order"),
    ("RFC 6120 §11", "", "XML as XMPP restricts it"),
    ("RFC 6121 §3", "", "subscriptions, both sides, pre-approval"),
    ("RFC 6121 §4", "", "presence"),
    ("RFC 6121 §5", "", "messages"),
    ("RFC 6121 §8", "", "rules for every kind and address"),
    ("RFC 7590", "", "TLS 1.2 and 1.3"),
    ("RFC 5802", "", "SCRAM-SHA-1, with -PLUS"),
    ("RFC 7677", "", "SCRAM-SHA-256, with -PLUS"),
    ("RFC 4616", "", "PLAIN, inside TLS only"),
    ("RFC 9266", "", "tls-exporter"),
    ("RFC 5929 §4", "", "tls-server-end-point"),
    ("RFC 6122", "", "addresses; why not RFC 7622: adr/0001"),
    ("XEP-0004", "2.13.1", "data forms, as submitted"),
    ("XEP-0082", "1.1.1", "date and time in UTC"),
    (
        "XEP-0205",
        "1.0.1",
        "limits on connections, logins, stanzas, lists",
    ),
    (
        "XEP-0297",
        "1.0",
        "forwarded stanzas in carbons and history",
    ),
    (
        "XEP-0334",
        "1.0.0",
        "for carbons, offline and the own archive; never for evidence",
    ),
    ("XEP-0368", "1.1.1", "direct TLS, with ALPN"),
    ("XEP-0440", "0.4.2", "types of channel binding"),
    (
        "XEP-0478",
        "0.2.1",
        "limits, before and after authentication",
    ),
];

/// All rows, sorted by name.
pub fn standards() -> Vec<Standard> {
    let mut rows: Vec<Standard> = BELOW
        .iter()
        .map(|(name, version, status)| Standard {
            name,
            version,
            status,
            feature: "",
        })
        .collect();
    for manifest in manifests() {
        rows.extend(manifest.specifications.iter().map(|one| Standard {
            name: one.name,
            version: one.version,
            status: one.status,
            feature: manifest.name,
        }));
    }
    rows.sort_by_key(|row| row.name);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_standard_stands_twice_and_every_xep_has_its_version() {
        let rows = standards();
        for pair in rows.windows(2) {
            assert_ne!(pair[0].name, pair[1].name);
        }
        for row in rows {
            let is_xep = row.name.starts_with("XEP-");
            assert_eq!(is_xep, !row.version.is_empty(), "{}", row.name);
        }
    }
}
