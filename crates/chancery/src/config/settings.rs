//! [`Settings`]: the configuration in the form that starts processes, and the way there: defaults,
//! flags, addresses, roles, and what they need of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chancery_api::Role;
use chancery_directory::{Administrators, AdministratorsOf};
use chancery_gateway::{CertificateFiles, Contacts};
use chancery_runtime::telemetry::Format;

use super::read::{Place, Problem, Section, unknown_value};
use super::{Overrides, Raw, ServiceConfigs, TraceSection, network};
use crate::cli::DEFAULT_DATA;

/// So that a client on the same machine connects by name.
const DEFAULT_DOMAIN: &str = "localhost";
pub(super) const DEFAULT_C2S: &str = "[::]:5222";
pub(super) const DEFAULT_C2S_TLS: &str = "[::]:5223";
/// Only for this machine: metrics are nobody else's.
pub(super) const DEFAULT_OPS: &str = "127.0.0.1:5280";
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
pub enum Internal {
    /// Made in this directory for this process's roles.
    Directory(PathBuf),
    /// The operator's own.
    Files {
        authority: PathBuf,
        certificate: PathBuf,
        key: PathBuf,
    },
}

/// Where spans go, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub endpoint: String,
    pub ratio: f64,
}

/// A configuration that can be started.
#[derive(Debug, Clone)]
pub struct Settings {
    pub name: String,
    /// Never empty; the first is the default one.
    pub domains: Vec<String>,
    pub data: PathBuf,
    /// Directory of the local authority.
    pub local_authority: PathBuf,
    pub roles: BTreeSet<Role>,
    pub listen: Listen,
    /// Services in other processes that this one calls.
    pub remote: BTreeMap<Role, String>,
    /// There whenever something is remote or `listen.internal` is on.
    pub internal: Option<Internal>,
    pub tls: BTreeMap<String, TlsFiles>,
    pub log_format: Format,
    pub log_level: String,
    /// None: off.
    pub trace: Option<Trace>,
    /// Who may change accounts from a session.
    pub administrators: AdministratorsOf,
    pub configs: ServiceConfigs,
}

impl Settings {
    /// Does this process run `role`?
    pub fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Services that a process with `role` calls. The directory's process serves the administrator's
/// socket, which reaches everything that can be administered.
pub fn needs(role: Role) -> &'static [Role] {
    match role {
        Role::Archive | Role::Presence | Role::Admin => &[],
        Role::Directory => &[Role::Archive, Role::Roster, Role::Pubsub, Role::Policy],
        Role::Policy => &[Role::Archive, Role::Directory],
        Role::Roster | Role::Pubsub => &[Role::Archive],
        Role::Gateway => &[
            Role::Archive,
            Role::Directory,
            Role::Roster,
            Role::Pubsub,
            Role::Policy,
            Role::Presence,
        ],
    }
}

/// Collects problems while the settings are put together.
pub(super) struct Check<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    pub(super) fn report(&mut self, place: Place, text: impl Into<String>) {
        self.problems.push(Problem {
            place,
            text: text.into(),
        });
    }

    /// What the flag says, else the file, else the default; `off` is none.
    pub(super) fn address(
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
    let services = network::services(&mut check, &raw.services);
    let data = match (&overrides.place.data, &server.data) {
        (Some(flag), _) => flag.clone(),
        (None, Some(file)) => at_base(file),
        (None, None) => PathBuf::from(DEFAULT_DATA),
    };
    let listen = network::listen(&mut check, &raw, overrides, &roles, &services);
    let remote = network::remote(&mut check, &raw, &roles, &services);
    let whole = Role::SERVICES.iter().all(|role| roles.contains(role));
    let internal = network::internal(
        &mut check,
        &raw,
        &roles,
        !whole || listen.internal.is_some(),
    );
    let mut tls = BTreeMap::new();
    for (domain, files) in &raw.tls.value {
        if domains.contains(domain) {
            let (certificate, key) = (at_base(&files.certificate), at_base(&files.key));
            tls.insert(domain.clone(), TlsFiles { certificate, key });
        } else {
            let hosted = domains.join(", ");
            check.report(
                raw.tls.place(domain),
                format!("[tls] {domain} is not hosted, hosted are {hosted}"),
            );
        }
    }
    let contacts = contacts(&mut check, &raw, &domains);
    let administrators = administrators(&mut check, &raw);
    let log = &raw.log.value;
    let log_format = Format::from_str(&log.format);
    if log_format.is_err() {
        check.report(
            raw.log.place("format"),
            format!("[log] format: `{}` is neither text nor json", log.format),
        );
    }
    if let Err(error) =
        chancery_runtime::telemetry::subscriber(Format::Text, &log.level, std::io::sink)
    {
        check.report(raw.log.place("level"), format!("[log] level: {error}"));
    }
    let trace = trace(&mut check, &raw.trace);
    let mut configs = raw.configs;
    configs.gateway.c2s = listen.c2s.into_iter().collect();
    configs.gateway.c2s_tls = listen.c2s_tls.into_iter().collect();
    configs.gateway.contacts = contacts;
    configs.gateway.administered = administrators.keys().cloned().collect();
    configs.gateway.certificates = tls
        .iter()
        .map(|(domain, files)| CertificateFiles {
            domain: domain.clone(),
            chain: files.certificate.clone(),
            key: files.key.clone(),
        })
        .collect();
    Some(Settings {
        name: name?,
        local_authority: server
            .local_authority
            .as_deref()
            .map_or_else(|| data.join("tls"), at_base),
        domains,
        data,
        roles,
        listen,
        remote,
        internal,
        tls,
        log_format: log_format.ok()?,
        log_level: log.level.clone(),
        trace,
        administrators,
        configs,
    })
}

/// Of the hosted domains.
fn contacts(check: &mut Check<'_>, raw: &Raw, domains: &[String]) -> BTreeMap<String, Contacts> {
    let mut all = BTreeMap::new();
    for (domain, section) in &raw.domain.value {
        if !domains.contains(domain) {
            let hosted = domains.join(", ");
            check.report(
                raw.domain.place(domain),
                format!("[domain] {domain} is not hosted, hosted are {hosted}"),
            );
        }
        for (role, text) in section.contacts.problems() {
            check.report(
                raw.domain.place(&format!("{domain}.contacts.{role}")),
                format!("[domain.\"{domain}\".contacts] {role}: {text}"),
            );
        }
        if !section.contacts.is_empty() {
            all.insert(domain.clone(), section.contacts.clone());
        }
    }
    all
}

/// Of the hosted domains; none where nobody is named.
fn administrators(check: &mut Check<'_>, raw: &Raw) -> AdministratorsOf {
    let mut all = AdministratorsOf::new();
    for (domain, section) in &raw.domain.value {
        let mut of = Administrators {
            groups: section.administrator_groups.iter().cloned().collect(),
            ..Administrators::default()
        };
        for named in &section.administrators {
            match crate::admin::bare_jid(named) {
                Ok(jid) if jid.split_once('@').is_some_and(|(_, of)| of == domain) => {
                    of.accounts.insert(jid);
                }
                Ok(jid) => check.report(
                    raw.domain.place(&format!("{domain}.administrators")),
                    format!("[domain] administrators: {jid} is no account of {domain}"),
                ),
                Err(text) => check.report(
                    raw.domain.place(&format!("{domain}.administrators")),
                    format!("[domain] administrators: {text}"),
                ),
            }
        }
        if !of.accounts.is_empty() || !of.groups.is_empty() {
            all.insert(domain.clone(), of);
        }
    }
    all
}

fn trace(check: &mut Check<'_>, section: &Section<TraceSection>) -> Option<Trace> {
    let TraceSection { endpoint, ratio } = section.value.clone();
    if !(0.0..=1.0).contains(&ratio) {
        let text = format!("[trace] ratio: {ratio} is not between 0 and 1");
        check.report(section.place("ratio"), text);
    }
    let endpoint = endpoint?;
    let host = endpoint
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'));
    // Spans name no user and carry no text: a collector or an agent on this machine or network.
    let is_host = |host: &str| {
        let port = host.rsplit_once(':').map(|(_, port)| port);
        port.is_some_and(|port| port.parse::<u16>().is_ok()) && !host.contains(['/', '?', '#', ' '])
    };
    if !host.is_some_and(is_host) {
        let text = format!("[trace] endpoint: `{endpoint}`: expected http://HOST:PORT");
        check.report(section.place("endpoint"), text);
    } else if !cfg!(feature = "otlp") {
        let text = "[trace] endpoint: this program was built without the feature `otlp`";
        check.report(section.place("endpoint"), text);
    }
    Some(Trace { endpoint, ratio })
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
        check.report(
            place,
            format!("name `{name}`: expected 1 to {NAME_BYTES} of a-z A-Z 0-9 . _ -"),
        );
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

pub(super) fn role(name: &str) -> Result<Role, String> {
    Role::from_str(name).map_err(|_| unknown_value("role", name, &Role::SERVICES.map(Role::name)))
}

/// Roles as file names and messages write them.
pub fn joined(roles: &BTreeSet<Role>) -> String {
    let mut text = String::new();
    for role in Role::SERVICES.iter().filter(|role| roles.contains(role)) {
        let _ = write!(
            text,
            "{}{}",
            if text.is_empty() { "" } else { "+" },
            role.name()
        );
    }
    text
}
