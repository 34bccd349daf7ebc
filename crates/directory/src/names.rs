//! Names of accounts: a hosted domain and a localpart, both prepared, so that one account has one
//! name however it is typed. It refuses to know whether the account exists.

use chancery_api::ApiError;

/// The longest username that is looked at (RFC 6122 §2.1).
const USERNAME_LIMIT_BYTES: usize = 1_023;

/// The name of an account, prepared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub domain: String,
    pub localpart: String,
}

impl Name {
    /// The account's bare JID.
    pub fn jid(&self) -> String {
        format!("{}@{}", self.localpart, self.domain)
    }
}

/// The domains that this deployment hosts, the default one first.
#[derive(Clone, Debug)]
pub struct Domains(Vec<String>);

impl Domains {
    /// Prepares the list; at least one, without repeats.
    pub fn new(domains: &[String]) -> Result<Self, String> {
        let mut prepared: Vec<String> = Vec::with_capacity(domains.len());
        for domain in domains {
            let name = chancery_xmpp::jid::parse_domain(domain)
                .map_err(|error| format!("domain {domain:?}: {error}"))?;
            if prepared.contains(&name) {
                return Err(format!("domain {domain:?} is listed twice"));
            }
            prepared.push(name);
        }
        if prepared.is_empty() {
            return Err("no domain is hosted".to_owned());
        }
        Ok(Self(prepared))
    }

    /// As listed.
    pub fn list(&self) -> &[String] {
        &self.0
    }

    /// The domain as prepared, when it is hosted.
    pub fn hosted(&self, domain: &str) -> Result<String, ApiError> {
        let name = chancery_xmpp::jid::parse_domain(domain)
            .map_err(|_| ApiError::invalid("not a domain"))?;
        if self.0.contains(&name) {
            Ok(name)
        } else {
            Err(ApiError::not_found("domain is not hosted"))
        }
    }

    /// The account that a person names in a change.
    pub fn account(&self, jid: &str) -> Result<Name, ApiError> {
        let bare =
            chancery_xmpp::jid::parse_bare(jid).map_err(|_| ApiError::invalid("not a bare jid"))?;
        let node = bare
            .node()
            .ok_or_else(|| ApiError::invalid("jid has no localpart"))?;
        let domain = self.hosted(bare.domain().as_str())?;
        Ok(Name {
            domain,
            localpart: node.as_str().to_owned(),
        })
    }

    /// The same for a name that is about to be created. Characters that preparation drops without
    /// a trace (RFC 3454 B.1: zero-width space and its kind) are refused, since whoever types them
    /// believes to create another name than he gets.
    pub fn new_account(&self, jid: &str) -> Result<Name, ApiError> {
        if jid
            .chars()
            .any(stringprep::tables::commonly_mapped_to_nothing)
        {
            return Err(ApiError::invalid("jid holds invisible characters"));
        }
        self.account(jid)
    }
}

/// What a client typed as username, prepared by the stringprep profile for localparts; `None` when
/// it cannot be any account's.
pub fn username(domain: &str, typed: &str) -> Option<Name> {
    if typed.is_empty() || typed.len() > USERNAME_LIMIT_BYTES {
        return None;
    }
    let node = jid::NodePart::new(typed).ok()?;
    let whole = format!("{}@{domain}", node.as_str());
    let bare = chancery_xmpp::jid::parse_bare(&whole).ok()?;
    let localpart = bare.node()?.as_str().to_owned();
    Some(Name {
        domain: domain.to_owned(),
        localpart,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn domains() -> Domains {
        Domains::new(&["Example.Test".to_owned(), "b.test".to_owned()]).unwrap()
    }

    #[test]
    fn one_account_however_it_is_typed() {
        let alice = Name {
            domain: "example.test".into(),
            localpart: "alice".into(),
        };
        for jid in [
            "ALICE@EXAMPLE.TEST",
            "alice@example.test.",
            "ａｌｉｃｅ@example.test",
        ] {
            assert_eq!(domains().account(jid).unwrap(), alice, "{jid}");
        }
        for typed in ["Alice", "ａｌｉｃｅ"] {
            assert_eq!(username("example.test", typed).unwrap(), alice, "{typed}");
        }
    }

    #[test]
    fn look_alikes_are_refused_or_other_names() {
        for jid in [
            "аdmin@example.test",
            "admin\u{200b}@example.test",
            "ADMİN@example.test",
        ] {
            if let Ok(name) = domains().new_account(jid) {
                assert_ne!(name.localpart, "admin", "{jid}");
            }
        }
    }

    #[test]
    fn what_is_no_account_is_refused() {
        for jid in [
            "example.test",
            "a@other.test",
            "a@example.test/r",
            "@example.test",
            "a@",
            "",
        ] {
            assert!(domains().account(jid).is_err(), "{jid}");
        }
        for typed in ["", "a@b", "a/b", "a\0b", "a b", "a'b", "\u{e000}"] {
            assert!(username("example.test", typed).is_none(), "{typed:?}");
        }
        assert!(username("example.test", &"x".repeat(2_000)).is_none());
    }

    #[test]
    fn the_list_of_domains_is_checked() {
        assert_eq!(domains().list(), ["example.test", "b.test"]);
        assert!(Domains::new(&[]).is_err());
        assert!(Domains::new(&["a.test".into(), "A.test".into()]).is_err());
        assert!(Domains::new(&["a b".into()]).is_err());
    }
}
