//! The configuration: one TOML file for all processes, flags above it, defaults below. Raw sections
//! are read here and turned into [`Settings`], which cannot hold an impossible combination. Owns
//! the sections that no crate owns (`server listen services internal tls domain log
//! trace`); every other section
//! is its crate's `Config`. Starts nothing.

mod files;
mod nearest;
mod network;
mod read;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chancery_gateway::Contacts;
use serde::{Deserialize, Serialize};

pub use read::Problem;
#[cfg(feature = "otlp")]
pub use settings::Trace;
pub use settings::{Internal, Settings, joined};

use crate::cli;
use read::{Document, Section};

/// Sections of the file, in the order in which they are shown.
const SECTIONS: [&str; 15] = [
    "server",
    "listen",
    "services",
    "internal",
    "tls",
    "domain",
    "log",
    "trace",
    "gateway",
    "directory",
    "roster",
    "pubsub",
    "policy",
    "presence",
    "archive",
];

/// `[server]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServerSection {
    /// This process's name among the others; unique among the gateways.
    name: Option<String>,
    /// Hosted domains, the default one first.
    domains: Vec<String>,
    /// Data directory.
    data: Option<PathBuf>,
    /// Services of this process; all when absent.
    roles: Vec<String>,
    /// Directory of the local authority and the certificates that it made; `tls` in the data
    /// directory when absent. Gateways of one deployment share it.
    local_authority: Option<PathBuf>,
}

/// `[listen]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenSection {
    /// Clients with STARTTLS.
    c2s: Option<String>,
    /// Clients with direct TLS.
    c2s_tls: Option<String>,
    /// Health and metrics.
    ops: Option<String>,
    /// Other processes; the address that `[services]` gives the roles of this process when absent.
    internal: Option<String>,
}

/// `[internal]`: the operator's own files, or a directory of made ones. `{roles}` in a path stands
/// for the process's roles joined by `+`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct InternalSection {
    /// An authority and certificates are made here at the first start; all processes of a machine
    /// share it.
    directory: Option<PathBuf>,
    /// PEM of the authority that all processes trust.
    authority: Option<PathBuf>,
    /// PEM of this process's certificate.
    certificate: Option<PathBuf>,
    /// PEM of its private key.
    key: Option<PathBuf>,
}

/// `[tls."DOMAIN"]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    /// PEM of the certificate chain, the leaf first.
    certificate: PathBuf,
    /// PEM of the private key.
    key: PathBuf,
}

/// `[domain."DOMAIN"]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DomainSection {
    /// Accounts of the domain that may administer it (XEP-0133).
    administrators: Vec<String>,
    /// Groups of the directory whose members may.
    administrator_groups: Vec<String>,
    /// Whom to write to about it (XEP-0157).
    contacts: Contacts,
}

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogSection {
    /// `text` or `json`.
    format: String,
    /// A level, or a list of `target=level`.
    level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            format: "text".into(),
            level: "info".into(),
        }
    }
}

/// `[trace]`: OpenTelemetry traces, which follow a stanza through all services.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TraceSection {
    /// The collector that spans are sent to, OTLP over gRPC, e.g. `http://127.0.0.1:4317`. Off when
    /// absent.
    endpoint: Option<String>,
    /// The share of inbound stanzas that is followed, 0 to 1. Gateways choose; the other services
    /// follow what gateways chose.
    ratio: f64,
}

impl Default for TraceSection {
    fn default() -> Self {
        Self {
            endpoint: None,
            ratio: 0.01,
        }
    }
}

/// What the services' crates own, as read.
#[derive(Debug, Clone, Default)]
pub struct ServiceConfigs {
    pub gateway: chancery_gateway::Config,
    pub directory: chancery_directory::Config,
    pub roster: chancery_roster::Config,
    pub pubsub: chancery_pubsub::Config,
    pub policy: chancery_policy::Config,
    pub presence: chancery_presence::Config,
    pub archive: chancery_archive::Config,
}

/// The file's sections as read, before they are held against each other.
struct Raw {
    server: Section<ServerSection>,
    listen: Section<ListenSection>,
    services: Section<BTreeMap<String, String>>,
    internal: Section<InternalSection>,
    tls: Section<BTreeMap<String, TlsSection>>,
    domain: Section<BTreeMap<String, DomainSection>>,
    log: Section<LogSection>,
    trace: Section<TraceSection>,
    configs: ServiceConfigs,
    /// The directory that relative paths of the file start from.
    base: PathBuf,
}

/// What the command line says, which goes above the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub place: cli::Place,
    pub serve: cli::Serve,
}

impl Overrides {
    /// Only the place, for commands that do not serve.
    pub fn place(place: &cli::Place) -> Self {
        Self {
            place: place.clone(),
            serve: cli::Serve::default(),
        }
    }
}

impl Settings {
    /// Reads, completes and checks; all problems at once, or settings that can be started.
    pub fn load(overrides: &Overrides) -> Result<Self, Vec<Problem>> {
        let none = PathBuf::from("configuration");
        match &overrides.place.config {
            Some(path) => {
                let text = read::load(path).map_err(|problem| vec![problem])?;
                Self::parse(path, &text, overrides)
            }
            None => Self::parse(&none, "", overrides),
        }
    }

    /// The same from a text that was read already.
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, Vec<Problem>> {
        let mut document = Document::parse(path, text);
        let mut problems = Vec::new();
        let raw = Raw {
            server: document.section("server"),
            listen: document.section("listen"),
            services: document.section("services"),
            internal: document.section("internal"),
            tls: document.section("tls"),
            domain: document.section("domain"),
            log: document.section("log"),
            trace: document.section("trace"),
            configs: ServiceConfigs {
                gateway: service(
                    &mut document,
                    "gateway",
                    chancery_gateway::Config::problems,
                    &mut problems,
                ),
                directory: service(
                    &mut document,
                    "directory",
                    chancery_directory::Config::problems,
                    &mut problems,
                ),
                roster: service(
                    &mut document,
                    "roster",
                    chancery_roster::Config::problems,
                    &mut problems,
                ),
                pubsub: service(
                    &mut document,
                    "pubsub",
                    chancery_pubsub::Config::problems,
                    &mut problems,
                ),
                policy: service(
                    &mut document,
                    "policy",
                    chancery_policy::Config::problems,
                    &mut problems,
                ),
                presence: service(
                    &mut document,
                    "presence",
                    chancery_presence::Config::problems,
                    &mut problems,
                ),
                archive: service(
                    &mut document,
                    "archive",
                    chancery_archive::Config::problems,
                    &mut problems,
                ),
            },
            base: path.parent().map(Path::to_owned).unwrap_or_default(),
        };
        let settings = settings::validate(raw, overrides, &mut problems);
        problems.extend(document.finish(&SECTIONS));
        problems.sort();
        problems.dedup();
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems),
        }
    }
}

/// What the gateway's `Config` holds too, and where the file says it.
const SAID_ELSEWHERE: [(&str, &str); 5] = [
    ("c2s", "[listen] c2s"),
    ("c2s_tls", "[listen] c2s_tls"),
    ("certificates", "[tls.\"DOMAIN\"]"),
    ("administered", "[domain.\"DOMAIN\"] administrators"),
    ("contacts", "[domain.\"DOMAIN\".contacts]"),
];

/// Is `field` of a service's `Config` said in another section?
pub fn is_said_elsewhere(field: &str) -> bool {
    SAID_ELSEWHERE.iter().any(|(known, _)| *known == field)
}

/// Takes a service's section and asks its crate what is wrong with it.
fn service<C>(
    document: &mut Document<'_>,
    name: &str,
    check: impl Fn(&C) -> Vec<(&'static str, String)>,
    problems: &mut Vec<Problem>,
) -> C
where
    C: serde::de::DeserializeOwned + Default,
{
    let section = document.section::<C>(name);
    for (field, place) in SAID_ELSEWHERE
        .into_iter()
        .filter(|(field, _)| section.has(field))
    {
        let text = format!("[{name}] {field}: say it in {place}");
        problems.push(Problem {
            place: section.place(field),
            text,
        });
    }
    for (field, text) in check(&section.value) {
        problems.push(Problem {
            place: section.place(field),
            text: format!("[{name}] {field}: {text}"),
        });
    }
    section.value
}

#[cfg(test)]
mod tests;
