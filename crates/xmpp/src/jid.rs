//! Addresses as they may come from a hostile peer: capped, normalised, or refused.
//!
//! Normalisation itself (stringprep) is the `jid` crate's. This file adds what RFC 7622 §3.2 asks
//! of a server and that crate leaves open: a trailing dot, IP literals, label form, total length.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

pub use ::jid::{BareJid, FullJid, Jid};

/// Longest part in bytes (RFC 7622 §3.1).
pub const PART_BYTES_MAX: usize = 1023;
/// Longest address in bytes (RFC 7622 §3.1).
pub const JID_BYTES_MAX: usize = 3 * PART_BYTES_MAX + 2;
/// Longest domain name in bytes (RFC 1035 §2.3.4).
pub const DOMAIN_BYTES_MAX: usize = 253;
/// Longest label of a domain name in bytes (RFC 1035 §2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// Rounds of normalisation after which an address must be stable (as RFC 8264 §7 has it).
const NORMALISATIONS_MAX: usize = 4;

/// Why an address was refused; always answered with `jid-malformed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JidError {
    #[error("address too long")]
    TooLong,
    #[error("localpart malformed")]
    Localpart,
    #[error("domainpart malformed")]
    Domainpart,
    #[error("domainpart is an ip address")]
    IpLiteral,
    #[error("resource malformed")]
    Resource,
    #[error("resource missing")]
    ResourceMissing,
    #[error("resource not allowed here")]
    ResourcePresent,
    #[error("address has no stable normal form")]
    Unstable,
}

/// Parses and normalises an address of any form.
pub fn parse(raw: &str) -> Result<Jid, JidError> {
    if raw.len() > JID_BYTES_MAX {
        return Err(JidError::TooLong);
    }
    let (bare, resource) = match raw.split_once('/') {
        Some((bare, resource)) => (bare, Some(resource)),
        None => (raw, None),
    };
    let (local, domain) = match bare.split_once('@') {
        Some((local, domain)) => (Some(local), domain),
        None => (None, bare),
    };
    if let Some(local) = local {
        check_local(local)?;
    }
    if resource.is_some_and(|resource| resource.is_empty() || !is_printable(resource)) {
        return Err(JidError::Resource);
    }
    let domain = strip_dot(domain);
    let mut text = Cow::Borrowed(raw);
    if domain.len() < bare.len() - local.map_or(0, |local| local.len() + 1) {
        let mut out = String::with_capacity(raw.len());
        if let Some(local) = local {
            out.push_str(local);
            out.push('@');
        }
        out.push_str(domain);
        if let Some(resource) = resource {
            out.push('/');
            out.push_str(resource);
        }
        text = Cow::Owned(out);
    }
    let jid = settle(
        Jid::new(&text).map_err(|error| refusal(&error))?,
        raw.is_ascii(),
    )?;
    // As it is written: a second dot at the end is in the text, and not in what the part says.
    check_domain(self::domain(jid.as_str()))?;
    if let Some(local) = jid.node() {
        // stringprep may map a harmless character to a forbidden one
        check_local(local.as_str())?;
    }
    Ok(jid)
}

/// Normalises until nothing changes: stringprep folds case before it decomposes, so that its
/// result may fold again, and one address would have two spellings.
fn settle(mut jid: Jid, ascii: bool) -> Result<Jid, JidError> {
    if ascii {
        return Ok(jid);
    }
    for _ in 0..NORMALISATIONS_MAX {
        let again = Jid::new(jid.as_str()).map_err(|error| refusal(&error))?;
        if again == jid {
            return Ok(jid);
        }
        jid = again;
    }
    Err(JidError::Unstable)
}

/// Parses an address that must not have a resource.
pub fn parse_bare(raw: &str) -> Result<BareJid, JidError> {
    parse(raw)?
        .try_into_full()
        .map_or_else(Ok, |_| Err(JidError::ResourcePresent))
}

/// Parses an address that must have a resource.
pub fn parse_full(raw: &str) -> Result<FullJid, JidError> {
    parse(raw)?
        .try_into_full()
        .map_err(|_| JidError::ResourceMissing)
}

/// Parses and normalises a domain name.
pub fn parse_domain(raw: &str) -> Result<String, JidError> {
    if raw.contains(['@', '/']) {
        return Err(JidError::Domainpart);
    }
    Ok(parse(raw)?.domain().as_str().to_owned())
}

/// Whether a domainpart is an IP address in any notation that a resolver might take for one.
///
/// A name whose last label is a number is no domain name (RFC 3696 §2); `inet_aton` also reads
/// `0x7f.1` and `2130706433`.
pub fn is_ip_literal(domain: &str) -> bool {
    if domain.starts_with('[') || domain.contains(':') {
        return true;
    }
    if domain.parse::<Ipv4Addr>().is_ok() || domain.parse::<Ipv6Addr>().is_ok() {
        return true;
    }
    let last = strip_dot(domain).rsplit('.').next().unwrap_or(domain);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// An address without its resource, as it stands: the first slash ends the account (RFC 7622 §3.1).
/// Checks nothing.
pub fn bare(address: &str) -> &str {
    address.split_once('/').map_or(address, |(bare, _)| bare)
}

/// The domainpart of an address, as it stands. Checks nothing.
pub fn domain(address: &str) -> &str {
    let bare = bare(address);
    bare.split_once('@').map_or(bare, |(_, domain)| domain)
}

fn strip_dot(domain: &str) -> &str {
    // RFC 7622 §3.2: the trailing dot of the root is stripped before any comparison
    domain.strip_suffix('.').unwrap_or(domain)
}

/// RFC 7622 §3.3.1: what a localpart may not contain.
fn check_local(local: &str) -> Result<(), JidError> {
    let forbidden = |c: char| matches!(c, '"' | '&' | '\'' | '/' | ':' | '<' | '>' | '@');
    if local.is_empty() || local.contains(forbidden) || !is_printable(local) || local.contains(' ')
    {
        return Err(JidError::Localpart);
    }
    Ok(())
}

fn is_printable(part: &str) -> bool {
    // U+FFFD stands for something lost; private use and noncharacters have no meaning to compare
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{fffd}' | '\u{fff0}'..='\u{fff8}' | '\u{e000}'..='\u{f8ff}')
    };
    !part.chars().any(bad)
}

/// RFC 7622 §3.2 and the host names of RFC 1123.
fn check_domain(domain: &str) -> Result<(), JidError> {
    if domain.is_empty() || domain.len() > DOMAIN_BYTES_MAX {
        return Err(JidError::Domainpart);
    }
    if is_ip_literal(domain) {
        return Err(JidError::IpLiteral);
    }
    for label in domain.split('.') {
        let edge = label.starts_with('-') || label.ends_with('-');
        if label.is_empty() || label.len() > LABEL_BYTES_MAX || edge {
            return Err(JidError::Domainpart);
        }
        let name = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !label.chars().all(name) || !is_printable(label) {
            return Err(JidError::Domainpart);
        }
    }
    Ok(())
}

fn refusal(error: &::jid::Error) -> JidError {
    use ::jid::Error;
    match error {
        Error::NodeEmpty | Error::NodeTooLong | Error::NodePrep => JidError::Localpart,
        Error::ResourceEmpty | Error::ResourceTooLong | Error::ResourcePrep => JidError::Resource,
        Error::ResourceMissingInFullJid => JidError::ResourceMissing,
        Error::ResourceInBareJid => JidError::ResourcePresent,
        Error::NamePrep | Error::TooManyAts | Error::Idna => JidError::Domainpart,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spellings_of_one_address_are_equal() {
        // attacks I2
        let alice = parse("alice@example.test").unwrap();
        for raw in [
            "ALICE@EXAMPLE.TEST",
            "alice@example.test.",
            "Alice@example.TEST.",
            "\u{ff41}lice@example.test",
            "alice@\u{ff45}xample.test",
            "\u{1f130}lice@example.test", // folds only after it was decomposed
        ] {
            assert_eq!(parse(raw).as_ref(), Ok(&alice), "{raw}");
        }
        assert_eq!(
            parse("A@Example.test./R").unwrap().as_str(),
            "a@example.test/R"
        );
        assert_eq!(parse_domain("Example.Test.").unwrap(), "example.test");
    }

    #[test]
    fn ip_addresses_are_no_domains() {
        // attacks I5
        for domain in [
            "127.0.0.1",
            "127.0.0.1.",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "::1",
            "0x7f.1",
            "0X7F.0x1",
            "2130706433",
            "10.1",
            "1.2.3.4.5",
            "017700000001",
        ] {
            assert!(parse(&format!("u@{domain}")).is_err(), "{domain}");
            assert!(parse(domain).is_err(), "{domain}");
        }
        for domain in [
            "example.test",
            "3com.test",
            "x0x7f.test",
            "a.b1",
            "xn--bcher-kva.test",
        ] {
            assert!(parse(&format!("u@{domain}")).is_ok(), "{domain}");
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        // attacks I6
        for raw in [
            "",
            "@d",
            "a@",
            "a@@d",
            "a@d/",
            "a@b@d",
            "/",
            "/r",
            "@",
            "@/",
            "a@/r",
            "a b@d",
            " a@d",
            "a@d d",
            "a@d..",
            "a@d../r",
            "d../r",
            "a@d.\u{3002}/r",
            "a@d\u{3002}\u{3002}",
            "a@.d",
            "a@d..d",
            "a@-d",
            "a@d-",
            "a@d:5222",
            "a@d?x",
            "a@d#",
            "a\u{1}@d",
            "a@d/\u{7}",
            "a\u{0}@d",
            "a@d\u{0}",
            "a\u{fffd}@d",
            "a@d/\u{fffd}",
        ] {
            assert!(parse(raw).is_err(), "{raw:?}");
        }
        for c in "\"&':<>@".chars() {
            assert!(parse(&format!("a{c}b@d")).is_err(), "{c}");
            assert!(parse(&format!("a{c}b@")).is_err(), "{c}");
            assert!(parse(&format!("{c}@d")).is_err(), "{c}");
        }
        // a slash ends the domainpart: this is a resource of a domain, not a localpart
        assert_eq!(parse("a/b@d").as_ref().map(Jid::is_full), Ok(true));
        assert!(parse("a/b@d").is_ok_and(|jid| jid.node().is_none()));
    }

    #[test]
    fn length_is_capped_in_every_part() {
        let long = "a".repeat(PART_BYTES_MAX);
        assert!(parse(&format!("{long}@d/{long}")).is_ok());
        assert!(parse(&format!("{long}a@d")).is_err());
        assert!(parse(&format!("a@d/{long}a")).is_err());
        assert!(parse(&format!("a@{}", "a".repeat(LABEL_BYTES_MAX + 1))).is_err());
        assert!(parse(&format!("a@{}d", "a.".repeat(127))).is_err());
        assert_eq!(
            parse(&"a".repeat(JID_BYTES_MAX + 1)),
            Err(JidError::TooLong)
        );
    }

    #[test]
    fn forms_are_told_apart() {
        assert!(parse_bare("a@d").is_ok() && parse_bare("d").is_ok());
        assert_eq!(parse_bare("a@d/r"), Err(JidError::ResourcePresent));
        assert_eq!(parse_full("a@d"), Err(JidError::ResourceMissing));
        assert_eq!(
            parse_full("a@d/r/s@t").unwrap().resource().as_str(),
            "r/s@t"
        );
        assert!(parse_domain("a@d").is_err());
    }
}
