//! All features, what they register, and what a domain shows of them: the table of handlers, disco,
//! stream features. Refuses to handle anything.

use std::collections::{BTreeMap, HashMap};

use chancery_xmpp::ns;

use super::{Handler, Manifest, Scope};
use super::{
    bind, blocking, caps, carbons, client_state, commands, contact_addresses, disco, last, mam,
    offline, ping, private, register, roster, search, session, stanza_id, stream_management, time,
    vcard, version,
};
use crate::config::Config;
use crate::contacts::Contacts;

/// Where features register.
#[derive(Default)]
pub(crate) struct Registrar {
    table: HashMap<(Scope, &'static str, &'static str), Handler>,
    disco: Vec<(Scope, &'static str)>,
    stream_features: String,
}

impl Registrar {
    /// Handles requests of a scope with this payload.
    pub(crate) fn handle(
        &mut self,
        scope: Scope,
        ns: &'static str,
        name: &'static str,
        handler: Handler,
    ) {
        self.table.insert((scope, ns, name), handler);
    }

    /// Advertises a feature in a scope (XEP-0030).
    pub(crate) fn disco(&mut self, scope: Scope, feature: &'static str) {
        self.disco.push((scope, feature));
    }

    /// Advertises a feature of the authenticated stream.
    pub(crate) fn stream_feature(&mut self, xml: &str) {
        self.stream_features.push_str(xml);
    }
}

/// Features that cannot be switched off: the core of RFC 6120 and RFC 6121, and what the log does in
/// any case.
pub const CORE: &[&str] = &["bind", "roster", "disco", "offline", "stanza_id", "caps"];

type Feature = (fn() -> Manifest, fn(&mut Registrar));

/// All features, in the order in which the stream advertises them.
const FEATURES: &[Feature] = &[
    (bind::manifest, bind::register),
    (session::manifest, session::register),
    (stream_management::manifest, stream_management::register),
    (client_state::manifest, client_state::register),
    (roster::manifest, roster::register),
    (disco::manifest, disco::register),
    (version::manifest, version::register),
    (ping::manifest, ping::register),
    (time::manifest, time::register),
    (carbons::manifest, carbons::register),
    (private::manifest, private::register),
    (vcard::manifest, vcard::register),
    (last::manifest, last::register),
    (search::manifest, search::register),
    (offline::manifest, offline::register),
    (stanza_id::manifest, stanza_id::register),
    (register::manifest, register::register),
    (blocking::manifest, blocking::register),
    (mam::manifest, mam::register),
    (commands::manifest, commands::register),
    (contact_addresses::manifest, contact_addresses::register),
    (caps::manifest, caps::register),
];

/// What was registered, ready for use.
pub(crate) struct Handlers {
    table: HashMap<(Scope, &'static str, &'static str), Handler>,
    disco: Vec<(Scope, &'static str)>,
    stream_features: String,
    /// Names of the features that are switched off.
    off: Vec<String>,
    /// Verification string of a domain's capabilities that are like all others'.
    caps: String,
    /// Domains that show something of their own.
    shown: BTreeMap<String, Shown>,
}

/// What one domain shows beside the features.
struct Shown {
    contacts: Option<Contacts>,
    /// It has administrators, hence commands.
    commands: bool,
    caps: String,
}

impl Shown {
    fn of(domain: &str, config: &Config, disco: &[(Scope, &'static str)]) -> Self {
        let is_on = |feature: &str| !config.features_off.iter().any(|off| off == feature);
        let contacts = config.contacts.get(domain);
        let contacts = contacts.filter(|c| !c.is_empty() && is_on("contact_addresses"));
        let commands = config.administered.contains(domain) && is_on("commands");
        let mut disco = disco.to_vec();
        disco.extend(commands.then_some((Scope::Server, ns::COMMANDS)));
        let forms: Vec<_> = contacts.iter().map(|contacts| contacts.form()).collect();
        Self {
            caps: caps::own(&disco, &forms),
            contacts: contacts.cloned(),
            commands,
        }
    }
}

impl Handlers {
    /// Everything that is there by default.
    #[cfg(test)]
    pub(crate) fn standard() -> Self {
        Self::new(&Config::default())
    }

    /// Everything that is there, but for what is switched off.
    pub(crate) fn new(config: &Config) -> Self {
        let mut registrar = Registrar::default();
        for (manifest, register) in FEATURES {
            if !config
                .features_off
                .iter()
                .any(|name| name == manifest().name)
            {
                register(&mut registrar);
            }
        }
        registrar.disco.sort_unstable();
        registrar.disco.dedup();
        let Registrar {
            table,
            disco,
            stream_features,
            ..
        } = registrar;
        let domains = config.contacts.keys().chain(&config.administered);
        let shown = domains
            .map(|domain| (domain.clone(), Shown::of(domain, config, &disco)))
            .collect();
        Self {
            caps: caps::own(&disco, &[]),
            table,
            disco,
            stream_features,
            off: config.features_off.clone(),
            shown,
        }
    }

    /// Is this feature, by the name of its manifest, there?
    pub(crate) fn is_on(&self, feature: &str) -> bool {
        !self.off.iter().any(|name| name == feature)
    }

    /// What handles this payload.
    pub(crate) fn find(&self, scope: Scope, ns: &str, name: &str) -> Option<Handler> {
        // The table has names of the program's life; a look-up only borrows.
        self.table
            .get(&(scope, ns, name) as &(Scope, &str, &str))
            .copied()
    }

    /// Features of a scope, sorted.
    pub(crate) fn features(&self, scope: Scope) -> impl Iterator<Item = &'static str> + '_ {
        self.disco
            .iter()
            .filter(move |(of, _)| *of == scope)
            .map(|(_, feature)| *feature)
    }

    /// What was registered for the stream after authentication, with the domain's capabilities.
    pub(crate) fn stream_features(&self, domain: &str) -> String {
        let caps = caps::advertise(self.caps(domain));
        format!("{}{caps}", self.stream_features)
    }

    /// Verification string of a domain's capabilities (XEP-0115).
    pub(crate) fn caps(&self, domain: &str) -> &str {
        self.shown
            .get(domain)
            .map_or(&self.caps, |shown| &shown.caps)
    }

    /// Whom to write to about a domain.
    pub(crate) fn contacts(&self, domain: &str) -> Option<&Contacts> {
        self.shown.get(domain)?.contacts.as_ref()
    }

    /// Has the domain commands?
    pub(crate) fn has_commands(&self, domain: &str) -> bool {
        self.shown.get(domain).is_some_and(|shown| shown.commands)
    }

    /// The table, sorted, for the manual and its snapshot.
    pub(crate) fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self
            .table
            .iter()
            .map(|((scope, ns, name), handler)| {
                format!("{scope:?} {:?} {{{ns}}}{name}", handler.verb)
            })
            .collect();
        rows.sort();
        rows
    }
}

/// What every feature says of itself, for the table of supported specifications.
pub fn manifests() -> Vec<Manifest> {
    FEATURES.iter().map(|(manifest, _)| manifest()).collect()
}

/// Features that may be switched off in the configuration.
pub fn optional() -> impl Iterator<Item = &'static str> {
    let names = FEATURES.iter().map(|(manifest, _)| manifest().name);
    names.filter(|name| !CORE.contains(name))
}

/// What is advertised without the features that are `off`: namespaces in disco, of the server and of
/// accounts, and elements of the stream features.
pub fn advertised(off: &[String]) -> Vec<String> {
    let handlers = Handlers::new(&Config {
        features_off: off.to_vec(),
        ..Config::default()
    });
    let disco = handlers
        .disco
        .iter()
        .map(|(_, feature)| (*feature).to_owned());
    let stream = handlers
        .stream_features
        .split_inclusive('>')
        .map(str::to_owned);
    disco.chain(stream).collect()
}

/// The handler table for the manual.
pub fn markdown() -> String {
    let mut out = String::new();
    for row in Handlers::new(&Config::default()).rows() {
        out.push_str("- ");
        out.push_str(&row);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_written_down() {
        let expected = [
            "Account Any {urn:ietf:params:xml:ns:xmpp-bind}bind",
            "Account Any {jabber:iq:roster}query",
            "Account Any {jabber:iq:private}query",
            "Account Any {jabber:iq:register}query",
            "Account Any {vcard-temp}vCard",
            "Account Get {jabber:iq:last}query",
            "Other Get {http://jabber.org/protocol/disco#info}query",
            "Other Get {http://jabber.org/protocol/disco#items}query",
            "Other Get {jabber:iq:last}query",
            "Other Get {vcard-temp}vCard",
            "Server Any {jabber:iq:search}query",
            "Server Set {http://jabber.org/protocol/commands}command",
            "Server Get {jabber:iq:last}query",
            "Server Any {jabber:iq:register}query",
            "Account Get {http://jabber.org/protocol/disco#info}query",
            "Account Get {http://jabber.org/protocol/disco#items}query",
            "Account Get {urn:xmpp:blocking}blocklist",
            "Account Any {urn:xmpp:mam:2}prefs",
            "Account Any {urn:xmpp:mam:2}query",
            "Account Get {urn:xmpp:mam:2}metadata",
            "Account Get {urn:xmpp:ping}ping",
            "Account Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Account Set {urn:xmpp:blocking}block",
            "Account Set {urn:xmpp:blocking}unblock",
            "Account Set {urn:xmpp:carbons:2}disable",
            "Account Set {urn:xmpp:carbons:2}enable",
            "Server Any {urn:ietf:params:xml:ns:xmpp-bind}bind",
            "Server Get {http://jabber.org/protocol/disco#info}query",
            "Server Get {http://jabber.org/protocol/disco#items}query",
            "Server Get {jabber:iq:version}query",
            "Server Get {urn:xmpp:blocking}blocklist",
            "Server Get {urn:xmpp:ping}ping",
            "Server Get {urn:xmpp:time}time",
            "Server Set {urn:ietf:params:xml:ns:xmpp-session}session",
            "Server Set {urn:xmpp:blocking}block",
            "Server Set {urn:xmpp:blocking}unblock",
            "Server Set {urn:xmpp:carbons:2}disable",
            "Server Set {urn:xmpp:carbons:2}enable",
        ];
        let mut expected: Vec<String> = expected.iter().map(|row| (*row).to_owned()).collect();
        expected.sort();
        assert_eq!(Handlers::standard().rows(), expected);
    }

    #[test]
    fn what_is_off_is_not_there() {
        let off = Handlers::new(&Config {
            features_off: vec!["search".to_owned()],
            ..Config::default()
        });
        let on = Handlers::standard();
        for (handlers, expected) in [(&off, false), (&on, true)] {
            let found = handlers.find(Scope::Server, ns::SEARCH, "query");
            assert_eq!(found.is_some(), expected);
            let shown = handlers.features(Scope::Server).any(|f| f == ns::SEARCH);
            assert_eq!(shown, expected);
            assert_eq!(handlers.is_on("search"), expected);
        }
        assert_ne!(off.caps("a.test"), on.caps("a.test"));
    }

    #[test]
    fn every_feature_names_its_specifications() {
        let manifests = manifests();
        assert!(manifests.iter().all(|m| !m.specifications.is_empty()));
        let names: std::collections::BTreeSet<_> = manifests.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), manifests.len());
    }

    #[test]
    fn the_stream_advertises_what_is_there() {
        let handlers = Handlers::standard();
        let features = handlers.stream_features("a.test");
        for part in [
            "xmpp-bind'",
            "xmpp-session'><optional/>",
            "urn:xmpp:sm:3",
            "urn:xmpp:csi:0",
            "rosterver",
            "hash='sha-1'",
        ] {
            assert!(features.contains(part), "{part} in {features}");
        }
        assert!(features.contains(handlers.caps("a.test")));
    }

    #[test]
    fn a_domain_with_contacts_has_capabilities_of_its_own() {
        let mut config = Config::default();
        let contacts = Contacts {
            abuse: vec!["mailto:a@b.test".into()],
            ..Contacts::default()
        };
        config.contacts.insert("b.test".into(), contacts);
        config.contacts.insert("c.test".into(), Contacts::default());
        let handlers = Handlers::new(&config);
        assert_ne!(handlers.caps("b.test"), handlers.caps("a.test"));
        assert_eq!(handlers.caps("c.test"), handlers.caps("a.test"));
        assert!(handlers.contacts("b.test").is_some());
        assert!(handlers.contacts("c.test").is_none());
        let features = handlers.stream_features("b.test");
        assert!(features.contains(handlers.caps("b.test")));
    }
}
