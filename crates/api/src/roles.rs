//! Roles of processes, and the table of which role may call which method. Everything else is refused.

use std::str::FromStr;

/// A service a process may run, or the administrator's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Streams and sessions.
    Gateway,
    /// Accounts and groups.
    Directory,
    /// Roster items.
    Roster,
    /// Presence of sessions.
    Presence,
    /// Verdicts.
    Policy,
    /// Private XML, vCards, last activity.
    Pubsub,
    /// The log.
    Archive,
    /// The command line, through the socket in the data directory.
    Admin,
}

impl Role {
    /// All services, in the order in which a process starts them.
    pub const SERVICES: [Self; 7] = [
        Self::Archive,
        Self::Directory,
        Self::Roster,
        Self::Pubsub,
        Self::Policy,
        Self::Presence,
        Self::Gateway,
    ];

    /// Its name in configuration and certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Directory => "directory",
            Self::Roster => "roster",
            Self::Presence => "presence",
            Self::Policy => "policy",
            Self::Pubsub => "pubsub",
            Self::Archive => "archive",
            Self::Admin => "admin",
        }
    }

    /// The dNSName that a certificate of this role carries.
    pub fn dns_name(self) -> String {
        format!("{}.{INTERNAL_SUFFIX}", self.name())
    }
}

/// Certificates of the internal channels are for names below this.
pub const INTERNAL_SUFFIX: &str = "chancery.internal";

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::SERVICES
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or_else(|| format!("unknown role {name:?}"))
    }
}

/// Who is at the other end of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The same process.
    Local,
    /// A process whose certificate names these roles.
    Roles(Vec<Role>),
}

impl Caller {
    /// May this caller use `method` (`area.method`)?
    pub fn may(&self, method: &str) -> bool {
        match self {
            Self::Local => true,
            Self::Roles(roles) => allowed(method).iter().any(|role| roles.contains(role)),
        }
    }
}

use Role::{Admin, Directory, Gateway, Policy, Presence, Pubsub, Roster};

/// Method, and the roles that may call it.
pub const ALLOWED: &[(&str, &[Role])] = &[
    ("archive.append", &[Gateway, Roster]),
    ("archive.attach", &[Gateway]),
    ("archive.settle", &[Gateway, Roster]),
    (
        "archive.record_act",
        &[Gateway, Directory, Roster, Pubsub, Policy, Presence, Admin],
    ),
    ("archive.drop_mailbox", &[Directory]),
    ("archive.export", &[Admin]),
    ("archive.public_key", &[Admin]),
    ("archive.query_archive", &[Gateway]),
    ("archive.get_preferences", &[Gateway]),
    ("archive.set_preferences", &[Gateway]),
    ("archive.status", &[Admin]),
    ("directory.domains", &[Gateway, Roster, Policy, Admin]),
    ("directory.credentials", &[Gateway]),
    ("directory.verify_password", &[Gateway]),
    ("directory.report_attempt", &[Gateway]),
    ("directory.change_account", &[Admin]),
    ("directory.change_password", &[Gateway]),
    ("directory.import_accounts", &[Admin]),
    ("directory.administrator", &[Gateway]),
    ("directory.administer", &[Gateway]),
    // A gateway follows all accounts as it is.
    ("directory.list_accounts", &[Gateway, Admin]),
    ("directory.search", &[Gateway]),
    ("directory.change_group", &[Admin]),
    ("directory.list_groups", &[Admin, Policy]),
    ("directory.watch", &[Gateway, Policy]),
    ("roster.get", &[Gateway]),
    ("roster.set", &[Gateway]),
    ("roster.put", &[Admin]),
    ("roster.subscriptions", &[Gateway, Presence]),
    ("roster.handshake", &[Gateway]),
    ("roster.requests", &[Gateway]),
    ("roster.blocks", &[Gateway]),
    ("roster.block", &[Gateway]),
    ("roster.watch", &[Gateway]),
    ("roster.clear", &[Gateway, Admin]),
    ("pubsub.get_private", &[Gateway]),
    ("pubsub.set_private", &[Gateway]),
    ("pubsub.get_vcard", &[Gateway]),
    ("pubsub.set_vcard", &[Gateway]),
    ("pubsub.get_last", &[Gateway]),
    ("pubsub.set_last", &[Gateway]),
    ("pubsub.clear", &[Gateway, Admin]),
    ("presence.publish", &[Gateway]),
    ("presence.sessions", &[Gateway]),
    ("presence.attach", &[Gateway]),
    ("policy.decide", &[Gateway]),
    ("policy.apply", &[Admin]),
    ("policy.show", &[Admin]),
    ("policy.explain", &[Admin]),
    ("policy.watch", &[Gateway]),
];

/// Roles that may call `method`; none for a method that the table does not know.
pub fn allowed(method: &str) -> &'static [Role] {
    ALLOWED
        .iter()
        .find(|(name, _)| *name == method)
        .map_or(&[], |(_, roles)| roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_does_not_name_is_refused() {
        let gateway = Caller::Roles(vec![Role::Gateway]);
        assert!(gateway.may("archive.append"));
        assert!(!gateway.may("archive.drop_mailbox"));
        assert!(!gateway.may("archive.export"));
        assert!(!gateway.may("archive.no_such_method"));
        assert!(!Caller::Roles(vec![]).may("archive.append"));
    }
}
