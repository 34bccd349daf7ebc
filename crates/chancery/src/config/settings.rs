//! [`Settings`]: the configuration in the form that starts processes, and the way there: defaults,
//! flags, addresses, roles, and what they need of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chancery_api::Role;
use chancery_runtime::telemetry::Format;

use super::read::{Place, Problem, Section, unknown_value};
use super::{Overrides, Raw, ServiceConfigs};
use crate::cli::DEFAULT_DATA;

/// So that a client on the same machine connects by name.
const DEFAULT_DOMAIN: &str = "localhost";
const DEFAULT_C2S: &str = "[::]:5222";
const DEFAULT_C2S_TLS: &str = "[::]:5223";
/// Only for this machine: metrics are nobody else's.
const DEFAULT_OPS: &str = "127.0.0.1:5280";
/// Longest name of a process: it is in records and metrics.
const NAME_BYTES: usize = 64;

/// Addresses to listen on; none where it is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub c2s: Option<SocketAddr>,
    pub c2s_tls: Option<SocketAddr>,
    pub ops: Option<SocketAddr>,
    pub internal: Option<SocketAddr>,
}

/// Certificate and key of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What this process shows to the others and trusts in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalFiles {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A configuration that can be started.
#[derive(Debug, Clone)]
pub struct Settings {
    pub name: String,
    /// Never empty; the first is the default one.
    pub domains: Vec<String>,
    /// False when nobody named a domain.
    pub domains_given: bool,
    pub data: PathBuf,
    /// Directory of the local authority.
    pub local_authority: PathBuf,
    pub roles: BTreeSet<Role>,
    pub listen: Listen,
    /// Services in other processes that this one calls.
    pub remote: BTreeMap<Role, String>,
    /// There whenever something is remote or `listen.internal` is on.
    pub internal: Option<InternalFiles>,
    pub tls: BTreeMap<String, TlsFiles>,
    pub log_format: Format,
    pub log_level: String,
    pub configs: ServiceConfigs,
}

impl Settings {
    /// Does this process run everything?
    pub fn all_in_one(&self) -> bool {
        Role::SERVICES.iter().all(|role| self.roles.contains(role))
    }

    /// Does this process run `role`?
    pub fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Services that a process with `role` calls. The directory's process serves the administrator's
/// socket, which reaches everything that can be administered.
pub fn needs(role: Role) -> &'static [Role] {
    match role {
        Role::Archive | Role::Admin => &[],
        Role::Directory => &[Role::Archive, Role::Roster, Role::Policy],
        Role::Roster | Role::Policy => &[Role::Archive, Role::Directory],
        Role::Presence => &[Role::Archive, Role::Roster],
        Role::Gateway => {
            &[Role::Archive, Role::Directory, Role::Roster, Role::Policy, Role::Presence]
        }
    }
}

/// Collects problems while the settings are put together.
struct Check<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn report(&mut self, place: Place, text: impl Into<String>) {
        self.problems.push(Problem { place, text: text.into() });
    }

    /// What the flag says, else the file, else the default; `off` is none.
    fn address(
        &mut self,
        flag: (&'static str, &Option<String>),
        file: (Place, &Option<String>),
        default: Option<&str>,
    ) -> Option<SocketAddr> {
        let (place, text) = match (flag.1, file.1) {
            (Some(text), _) => (Place::Flag(flag.0), text.as_str()),
            (None, Some(text)) => (file.0, text.as_str()),
            (None, None) => (Place::Nowhere, default?),
        };
        if text == "off" {
            return None;
        }
        let address = SocketAddr::from_str(text).ok();
        if address.is_none() {
            self.report(
                place,
                format!("`{text}` is no address; expected e.g. 127.0.0.1:5222, [::]:5222, or off"),
            );
        }
        address
    }
}

/// Holds the sections against each other. None where it could not be completed; then a problem says why.
pub(super) fn validate(
    raw: Raw,
    overrides: &Overrides,
    problems: &mut Vec<Problem>,
) -> Option<Settings> {
    let mut check = Check { problems };
    let at_base = |path: &Path| raw.base.join(path);
    let server = &raw.server.value;
    let name = name(&mut check, &raw, overrides);
    let domains = domains(&mut check, &raw, overrides);
    let roles = roles(&mut check, &raw, overrides);
    let services = services(&mut check, &raw.services);
    let data = match (&overrides.place.data, &server.data) {
        (Some(flag), _) => flag.clone(),
        (None, Some(file)) => at_base(file),
        (None, None) => PathBuf::from(DEFAULT_DATA),
    };
    let listen = listen(&mut check, &raw, overrides, &roles, &services);
    let remote = remote(&mut check, &raw, &roles, &services);
    let internal = internal(&mut check, &raw, &roles, !remote.is_empty() || listen.internal.is_some());
    let mut tls = BTreeMap::new();
    for (domain, files) in &raw.tls.value {
        if domains.contains(domain) {
            let (certificate, key) = (at_base(&files.certificate), at_base(&files.key));
            tls.insert(domain.clone(), TlsFiles { certificate, key });
        } else {
            let hosted = domains.join(", ");
            check.report(raw.tls.place(domain), format!("[tls] {domain} is not hosted, hosted are {hosted}"));
        }
    }
    let log = &raw.log.value;
    let log_format = Format::from_str(&log.format);
    if log_format.is_err() {
        check.report(raw.log.place("format"), format!("[log] format: `{}` is neither text nor json", log.format));
    }
    if let Err(error) =
        chancery_runtime::telemetry::subscriber(Format::Text, &log.level, std::io::sink)
    {
        check.report(raw.log.place("level"), format!("[log] level: {error}"));
    }
    Some(Settings {
        name: name?,
        domains_given: !(overrides.place.domains.is_empty() && server.domains.is_empty()),
        local_authority: server.local_authority.as_deref().map_or_else(|| data.join("tls"), at_base),
        domains,
        data,
        roles,
        listen,
        remote,
        internal,
        tls,
        log_format: log_format.ok()?,
        log_level: log.level.clone(),
        configs: raw.configs,
    })
}

fn name(check: &mut Check<'_>, raw: &Raw, overrides: &Overrides) -> Option<String> {
    let (place, name) = match (&overrides.serve.name, &raw.server.value.name) {
        (Some(flag), _) => (Place::Flag("--name"), flag.clone()),
        (None, Some(file)) => (raw.server.place("name"), file.clone()),
        (None, None) => {
            let host = std::env::var("HOSTNAME").ok().filter(|host| is_name(host));
            (Place::Nowhere, host.unwrap_or_else(|| "chancery".into()))
        }
    };
    if !is_name(&name) {
        check.report(place, format!("name `{name}`: expected 1 to {NAME_BYTES} of a-z A-Z 0-9 . _ -"));
        return None;
    }
    Some(name)
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(allowed)
}

fn domains(check: &mut Check<'_>, raw: &Raw, overrides: &Overrides) -> Vec<String> {
    let (place, named) = if overrides.place.domains.is_empty() {
        (raw.server.place("domains"), &raw.server.value.domains)
    } else {
        (Place::Flag("--domain"), &overrides.place.domains)
    };
    let mut domains: Vec<String> = Vec::new();
    for domain in named {
        match chancery_xmpp::jid::parse_domain(domain) {
            Ok(domain) if domains.contains(&domain) => {
                check.report(place.clone(), format!("domain `{domain}` is named twice"));
            }
            Ok(domain) => domains.push(domain),
            Err(error) => check.report(place.clone(), format!("domain `{domain}`: {error}")),
        }
    }
    if domains.is_empty() {
        domains.push(DEFAULT_DOMAIN.into());
    }
    domains
}

fn roles(check: &mut Check<'_>, raw: &Raw, overrides: &Overrides) -> BTreeSet<Role> {
    let (place, named) = if overrides.serve.roles.is_empty() {
        (raw.server.place("roles"), &raw.server.value.roles)
    } else {
        (Place::Flag("--roles"), &overrides.serve.roles)
    };
    let mut roles = BTreeSet::new();
    for name in named {
        match role(name.trim()) {
            Ok(role) => {
                roles.insert(role);
            }
            Err(text) => check.report(place.clone(), text),
        }
    }
    if roles.is_empty() {
        roles.extend(Role::SERVICES);
    }
    roles
}

fn role(name: &str) -> Result<Role, String> {
    Role::from_str(name)
        .map_err(|_| unknown_value("role", name, &Role::SERVICES.map(Role::name)))
}

fn services(
    check: &mut Check<'_>,
    section: &Section<BTreeMap<String, String>>,
) -> BTreeMap<Role, String> {
    let mut services = BTreeMap::new();
    for (name, address) in &section.value {
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty()).then_some(())?;
            port.parse::<u16>().ok().filter(|port| *port > 0)
        });
        match role(name) {
            Err(text) => check.report(section.place(name), format!("[services] {text}")),
            Ok(Role::Gateway) => check.report(
                section.place(name),
                "[services] gateway: nobody calls a gateway, it has no address",
            ),
            Ok(_) if port.is_none() => check.report(
                section.place(name),
                format!("[services] {name}: `{address}` is no address; expected HOST:PORT"),
            ),
            Ok(role) => {
                services.insert(role, address.clone());
            }
        }
    }
    services
}

fn listen(
    check: &mut Check<'_>,
    raw: &Raw,
    overrides: &Overrides,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> Listen {
    let (section, flags) = (&raw.listen, &overrides.serve);
    let file = |key: &str, value: &'_ Option<String>| (section.place(key), value.clone());
    let gateway = roles.contains(&Role::Gateway);
    let mut one = |flag, said: &Option<String>, key, value: &Option<String>, default| {
        let (place, value) = file(key, value);
        check.address((flag, said), (place, &value), default)
    };
    let c2s = one("--c2s", &flags.c2s, "c2s", &section.value.c2s, Some(DEFAULT_C2S));
    let c2s_tls =
        one("--c2s-tls", &flags.c2s_tls, "c2s_tls", &section.value.c2s_tls, Some(DEFAULT_C2S_TLS));
    let ops = one("--ops", &flags.ops, "ops", &section.value.ops, Some(DEFAULT_OPS));
    let internal = one("--internal", &flags.internal, "internal", &section.value.internal, None);
    let (c2s, c2s_tls) = if gateway { (c2s, c2s_tls) } else { (None, None) };
    if gateway && c2s.is_none() && c2s_tls.is_none() {
        check.report(section.place("c2s"), "a gateway with both c2s and c2s_tls off serves nobody");
    }
    let all = [("c2s", c2s), ("c2s_tls", c2s_tls), ("ops", ops), ("internal", internal)];
    for (i, (name, address)) in all.iter().enumerate() {
        let twin = all.iter().take(i).find(|(_, other)| {
            address.is_some_and(|a| a.port() != 0) && address == other
        });
        if let (Some((other, _)), Some(address)) = (twin, address) {
            check.report(section.place(name), format!("{name} and {other} are both {address}"));
        }
    }
    let internal_said = flags.internal.is_some() || section.value.internal.is_some();
    let whole = Role::SERVICES.iter().all(|role| roles.contains(role));
    let internal = if internal_said || whole || *roles == BTreeSet::from([Role::Gateway]) {
        internal
    } else {
        own_address(check, raw, roles, services)
    };
    Listen { c2s, c2s_tls, ops, internal }
}

/// The address that `[services]` gives the roles of this process.
fn own_address(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> Option<SocketAddr> {
    let own: BTreeSet<&String> = roles.iter().filter_map(|role| services.get(role)).collect();
    let mut own = own.into_iter();
    let (first, second) = (own.next(), own.next());
    match (first.and_then(|a| SocketAddr::from_str(a).ok()), second) {
        (Some(address), None) => Some(address),
        _ => {
            let names = joined(roles);
            check.report(
                raw.listen.place("internal"),
                format!(
                    "[listen] internal is missing: [services] names no one IP:PORT to listen on for {names}"
                ),
            );
            None
        }
    }
}

fn remote(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> BTreeMap<Role, String> {
    let needed: BTreeSet<Role> = roles.iter().flat_map(|role| needs(*role)).copied().collect();
    let mut remote = BTreeMap::new();
    for role in needed.difference(roles) {
        if let Some(address) = services.get(role) {
            remote.insert(*role, address.clone());
        } else {
            let name = role.name();
            check.report(
                raw.services.place(name),
                format!("[services] {name} is missing: {} must reach it", joined(roles)),
            );
        }
    }
    remote
}

fn internal(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    needed: bool,
) -> Option<InternalFiles> {
    if !needed {
        return None;
    }
    let section = &raw.internal;
    let joined = joined(roles);
    let mut file = |key: &str, path: &Option<PathBuf>| {
        let Some(path) = path else {
            check.report(
                section.place(key),
                format!("[internal] {key} is missing: processes prove to each other who they are"),
            );
            return None;
        };
        let path = path.to_string_lossy().replace("{roles}", &joined);
        Some(raw.base.join(path))
    };
    let authority = file("authority", &section.value.authority);
    let certificate = file("certificate", &section.value.certificate);
    let key = file("key", &section.value.key);
    Some(InternalFiles { authority: authority?, certificate: certificate?, key: key? })
}

/// Roles as file names and messages write them.
pub fn joined(roles: &BTreeSet<Role>) -> String {
    let mut text = String::new();
    for role in Role::SERVICES.iter().filter(|role| roles.contains(role)) {
        let _ = write!(text, "{}{}", if text.is_empty() { "" } else { "-" }, role.name());
    }
    text
}
