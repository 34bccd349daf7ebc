//! The administrator's commands, written once over handles: those of a running server, reached by
//! the socket in its data directory, or of services opened here under the data directory's lock.
//! Owns that choice, names and prompts. What a command does is in the file of its area.

pub mod evidence;
pub mod group;
pub mod import;
pub mod import_line;
pub mod policy;
pub mod roster;
pub mod user;

use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::{Archive, RemoteArchive};
use chancery_api::directory::{Directory, DomainsRequest, RemoteDirectory};
use chancery_api::policy::{Policy, RemotePolicy};
use chancery_api::pubsub::{Pubsub, RemotePubsub};
use chancery_api::roster::{RemoteRoster, Roster};
use chancery_api::{ApiError, Calls, Code, Cx, channel};
use chancery_runtime::{Ids, telemetry};
use chancery_store::{DataLock, StoreError};

use crate::cli::{Command, Place};
use crate::config::{Overrides, Settings};
use crate::error::{Failure, Outcome};
use crate::out::note;
use crate::process::{self, Process};
use crate::socket;
use crate::wiring::{Base, Opened};

/// A change waits for its followers (§3); this is beyond every wait that a service states itself.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// A server that starts listens for commands by then: tried so often, with such pauses.
const START_TRIES: u32 = 60;
const START_PAUSE: Duration = Duration::from_millis(50);
/// Longest line that is read as a password.
const PASSWORD_BYTES: u64 = 4096;

/// What commands are run on.
pub struct Admin {
    pub archive: Arc<dyn Archive>,
    pub directory: Arc<dyn Directory>,
    pub roster: Arc<dyn Roster>,
    pub pubsub: Arc<dyn Pubsub>,
    pub policy: Arc<dyn Policy>,
    /// Named by the command, not yet by the directory.
    domain: Option<String>,
    /// Services opened here, which have to be closed.
    opened: Option<Opened>,
    base: Base,
}

/// Runs one administrator's command.
pub async fn run(place: &Place, command: Command) -> Outcome {
    let admin = Admin::open(place).await?;
    let outcome = match command {
        Command::User(command) => user::run(&admin, command).await,
        Command::Group(command) => group::run(&admin, command).await,
        Command::Roster(command) => roster::run(&admin, command).await,
        Command::Policy(command) => policy::run(&admin, command).await,
        Command::Evidence(command) => evidence::run(&admin, command).await,
        _ => Err(Failure::new("not an administrator's command")),
    };
    let closed = admin.close().await;
    outcome.and_then(|code| closed.map(|()| code))
}

impl Admin {
    /// Over the socket when a server listens, else under the lock.
    pub async fn open(place: &Place) -> Result<Self, Failure> {
        let mut settings = Settings::load(&Overrides::place(place)).map_err(Failure::problems)?;
        let domain = place.domains.first().map(|_| settings.domains[0].clone());
        let base = Base::new(chancery_runtime::Failpoints::off());
        if let Some(admin) = Self::connect(&settings.data, domain.clone(), &base).await? {
            return Ok(admin);
        }
        // What the server last ran with says which domains and services live here.
        if let Some(process) = Process::load(&settings.data)? {
            if !process.is_whole() {
                let has_directory = process.roles.iter().any(|role| role == "directory");
                if has_directory
                    && let Some(admin) = Self::starting(&settings.data, domain, &base).await?
                {
                    return Ok(admin);
                }
                return Err(Failure::new(format!(
                    "{} belongs to a process that runs only {}; start the one with the directory and use its data directory",
                    settings.data.display(),
                    process.roles.join(", "),
                )));
            }
            if place.config.is_none() {
                settings.domains.clone_from(&process.domains);
            }
        } else if !settings.data.is_dir() {
            note!(
                "no data directory at {} yet, making one",
                settings.data.display()
            );
        }
        // Only what goes wrong: the screen belongs to the command.
        telemetry::init(telemetry::Format::Text, "warn")?;
        process::make_data_directory(&settings.data)?;
        let lock = match DataLock::acquire(&settings.data) {
            Ok(lock) => lock,
            Err(error @ StoreError::Locked { .. }) => {
                let starting = Self::starting(&settings.data, domain, &base).await?;
                return starting.ok_or_else(|| error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let opened = Opened::for_admin(&settings, &base, lock).await?;
        Process::of(&settings).keep(&settings.data)?;
        let services = opened.services()?;
        Ok(Self {
            archive: services.archive,
            directory: services.directory,
            roster: services.roster,
            pubsub: services.pubsub,
            policy: services.policy,
            domain,
            opened: Some(opened),
            base,
        })
    }

    /// The same of a server that has taken `data` and does not listen yet.
    async fn starting(
        data: &Path,
        domain: Option<String>,
        base: &Base,
    ) -> Result<Option<Self>, Failure> {
        for _ in 0..START_TRIES {
            if let Some(admin) = Self::connect(data, domain.clone(), base).await? {
                return Ok(Some(admin));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        Ok(None)
    }

    /// Over the socket of the server that has `data`; none when nobody listens.
    pub async fn connect(
        data: &Path,
        domain: Option<String>,
        base: &Base,
    ) -> Result<Option<Self>, Failure> {
        let path = socket::path(data);
        if !path.exists() {
            return Ok(None);
        }
        let Ok(channel) = channel::connect_socket(&path).await else {
            return Ok(None);
        };
        let calls = Calls::new(base.failpoints.clone(), &base.metrics);
        let tasks = base.shutdown.tasks(chancery_runtime::Stage::Accept).clone();
        let part = || (channel.clone(), calls.clone(), tasks.clone());
        let (archive, directory, roster) = (part(), part(), part());
        let (pubsub, policy) = (part(), part());
        Ok(Some(Self {
            archive: Arc::new(RemoteArchive::new(archive.0, archive.1, archive.2)),
            directory: Arc::new(RemoteDirectory::new(directory.0, directory.1, directory.2)),
            roster: Arc::new(RemoteRoster::new(roster.0, roster.1, roster.2)),
            pubsub: Arc::new(RemotePubsub::new(pubsub.0, pubsub.1, pubsub.2)),
            policy: Arc::new(RemotePolicy::new(policy.0, policy.1, policy.2)),
            domain,
            opened: None,
            base: base.clone(),
        }))
    }

    /// On the services of the process itself.
    pub fn within(opened: &Opened, base: &Base) -> Result<Self, Failure> {
        let services = opened.services()?;
        Ok(Self {
            archive: services.archive,
            directory: services.directory,
            roster: services.roster,
            pubsub: services.pubsub,
            policy: services.policy,
            domain: None,
            opened: None,
            base: base.clone(),
        })
    }

    /// Where new passwords come from.
    pub fn ids(&self) -> &Ids {
        &self.base.ids
    }

    /// Ends what was opened here; commits what is under way.
    pub async fn close(self) -> Result<(), Failure> {
        let Self {
            archive,
            directory,
            roster,
            pubsub,
            policy,
            opened,
            base,
            ..
        } = self;
        drop((archive, directory, roster, pubsub, policy));
        match opened {
            Some(opened) => opened.close(&base).await,
            None => Ok(()),
        }
    }

    /// The domains that are hosted, the default one first.
    pub async fn domains(&self) -> Result<Vec<String>, Failure> {
        Ok(self
            .directory
            .domains(&cx(), DomainsRequest {})
            .await?
            .domains)
    }

    /// The domain that the command is about: the named one, else the default one.
    pub async fn domain(&self) -> Result<String, Failure> {
        let hosted = self.domains().await?;
        match (&self.domain, hosted.first()) {
            (Some(named), _) if hosted.contains(named) => Ok(named.clone()),
            (Some(named), _) => Err(Failure::new(format!(
                "domain {named} is not hosted here, hosted are {}",
                hosted.join(", ")
            ))),
            (None, Some(default)) => Ok(default.clone()),
            (None, None) => Err(Failure::new("the server hosts no domain")),
        }
    }

    /// Only what `--domain` names, or all.
    pub async fn selected(&self) -> Result<Vec<String>, Failure> {
        match self.domain {
            Some(_) => Ok(vec![self.domain().await?]),
            None => self.domains().await,
        }
    }

    /// A bare JID as it is stored; a name alone is one of the command's domain.
    pub async fn jid(&self, text: &str) -> Result<String, Failure> {
        let whole = if text.contains('@') {
            text.to_owned()
        } else {
            format!("{text}@{}", self.domain().await?)
        };
        bare_jid(&whole).map_err(Failure::new)
    }
}

/// A local account's bare JID, normalised.
pub fn bare_jid(text: &str) -> Result<String, String> {
    let jid = chancery_xmpp::jid::parse_bare(text).map_err(|error| format!("{text}: {error}"))?;
    if jid.node().is_none() {
        return Err(format!("{text}: expected NAME@DOMAIN"));
    }
    Ok(jid.to_string())
}

/// The context of a change or a question by an administrator.
pub fn cx() -> Cx {
    Cx::local().within(CHANGE_LIMIT)
}

/// Who is at the terminal, for the record.
pub fn actor() -> String {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map(|user| user.name);
    format!("cli:{}", name.unwrap_or_else(|| uid.to_string()))
}

/// A new password: asked for twice at a terminal, else one line of standard input.
pub fn new_password(jid: &str) -> Result<String, Failure> {
    let password = if std::io::stdin().is_terminal() {
        let first = rpassword::prompt_password(format!("password for {jid}: "))?;
        if first != rpassword::prompt_password("once more: ")? {
            return Err(Failure::new("the two passwords differ"));
        }
        first
    } else {
        let mut line = String::new();
        std::io::stdin()
            .lock()
            .take(PASSWORD_BYTES)
            .read_line(&mut line)?;
        line.trim_end_matches(['\n', '\r']).to_owned()
    };
    if password.is_empty() {
        return Err(Failure::new("the password is empty"));
    }
    Ok(password)
}

/// Says that a change was made but not everybody follows it yet.
pub fn unconfirmed(names: &[String]) -> Outcome {
    if names.is_empty() {
        return Ok(crate::error::OK);
    }
    Err(Failure::new(format!(
        "done, but not confirmed in time by {}; it holds there once they follow again",
        names.join(", ")
    )))
}

/// An answer's error in the user's words: what it is about, then what the service said.
pub fn about(subject: &str) -> impl FnOnce(ApiError) -> Failure + '_ {
    move |error| {
        let text = match error.code {
            Code::Unavailable | Code::Deadline => {
                format!(
                    "{subject}: the service cannot be reached: {}",
                    error.message
                )
            }
            _ => format!("{subject}: {}", error.message),
        };
        Failure::new(text)
    }
}
