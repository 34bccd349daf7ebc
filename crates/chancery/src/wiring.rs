//! Which concrete service stands behind each handle: the one place that names them. A service of
//! this process is called directly, the others over gRPC with mutual TLS; whoever holds a handle
//! cannot tell. Owns the order of start (archive, directory, roster, pubsub, policy, presence,
//! gateway)
//! and closes the stores behind the reversed end. Knows nothing of what a service does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::{Archive, RemoteArchive};
use chancery_api::channel::{self, Credentials, Served};
use chancery_api::directory::{Directory, RemoteDirectory};
use chancery_api::policy::{Policy, RemotePolicy};
use chancery_api::presence::{Presence, RemotePresence};
use chancery_api::pubsub::{Pubsub, RemotePubsub};
use chancery_api::roster::{RemoteRoster, Roster};
use chancery_api::{Calls, Role};
use chancery_archive::ArchiveService;
use chancery_directory::DirectoryService;
use chancery_gateway::{Certificates, Domains, Gateway, Listeners};
use chancery_policy::PolicyService;
use chancery_presence::PresenceService;
use chancery_pubsub::PubsubService;
use chancery_roster::RosterService;
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Shutdown, Stage, Tasks, Tracer};
use chancery_store::DataLock;
use tokio::net::{TcpListener, UnixListener};

use crate::config::Settings;
use crate::error::Failure;
use crate::{credentials, listen};

/// How long calls of other processes may still take when this one ends.
const CALLERS_LINGER: Duration = Duration::from_millis(500);
/// How long the last spans may take to their collector.
const SPANS_LIMIT: Duration = Duration::from_secs(2);
/// How long a command waits for the policy, and between two looks.
const POLICY_LIMIT: Duration = Duration::from_secs(5);
const POLICY_PAUSE: Duration = Duration::from_millis(5);

/// What every part of a process runs on.
#[derive(Clone)]
pub struct Base {
    pub clock: Clock,
    pub ids: Ids,
    pub metrics: Metrics,
    pub failpoints: Failpoints,
    pub shutdown: Shutdown,
    /// Off unless `[trace]` names a collector.
    pub tracer: Tracer,
    /// What exports spans: ends behind everything that makes some.
    exporting: Tasks,
}

impl Base {
    /// The real things.
    pub fn new(failpoints: Failpoints) -> Self {
        Self {
            clock: Clock::real(),
            ids: Ids::real(),
            metrics: Metrics::new(),
            failpoints,
            shutdown: Shutdown::new(),
            tracer: Tracer::off(),
            exporting: Tasks::new(),
        }
    }

    /// The same with traces, where the configuration wants them.
    #[cfg(feature = "otlp")]
    pub fn traced(mut self, settings: &Settings) -> Result<Self, Failure> {
        let Some(trace) = &settings.trace else {
            return Ok(self);
        };
        let (clock, ids) = (self.clock.clone(), self.ids.clone());
        let (tracer, spans) = Tracer::channel(trace.ratio, clock, ids, &self.metrics);
        // A process with one role is known by it, any other by the program's name.
        let mut roles = settings.roles.iter();
        let service = match (roles.next(), roles.next()) {
            (Some(role), None) => role.name(),
            _ => "chancery",
        };
        crate::otlp::start(trace, service, &settings.name, spans, &self.exporting)?;
        self.tracer = tracer;
        tracing::info!(collector = trace.endpoint, ratio = trace.ratio, "traces");
        Ok(self)
    }

    /// There are none in this program, and no configuration that wants them gets here.
    #[cfg(not(feature = "otlp"))]
    pub fn traced(self, _settings: &Settings) -> Result<Self, Failure> {
        Ok(self)
    }
}

/// Handles to everything that a process calls or runs.
pub struct Opened {
    /// Local or remote.
    handles: Served,
    /// Of these, the ones that run here.
    local: Served,
    /// Kept apart for what is not in their contract: probes and closing.
    pub policy: Option<PolicyService>,
    pub gateway: Option<Arc<Gateway>>,
    /// Of the domains, reloaded on demand.
    certificates: Option<Arc<Certificates>>,
    stores: Stores,
    credentials: Option<Credentials>,
    /// Let go of when everything is closed.
    lock: DataLock,
}

/// Stores that are closed behind their services.
#[derive(Default)]
struct Stores {
    directory: Option<Arc<chancery_directory::store::SqliteStore>>,
    roster: Option<Arc<chancery_roster::store::SqliteStore>>,
    pubsub: Option<Arc<chancery_pubsub::store::SqliteStore>>,
    policy: Option<Arc<chancery_policy::SqlitePolicyStore>>,
}

/// What the administrator reaches, where all of it is there.
pub struct Services {
    pub archive: Arc<dyn Archive>,
    pub directory: Arc<dyn Directory>,
    pub roster: Arc<dyn Roster>,
    pub pubsub: Arc<dyn Pubsub>,
    pub policy: Arc<dyn Policy>,
}

fn wired<T: ?Sized>(handle: Option<&Arc<T>>, role: Role) -> Result<Arc<T>, Failure> {
    handle
        .cloned()
        .ok_or_else(|| Failure::new(format!("{} is wired to nothing", role.name())))
}

impl Opened {
    /// The services of this process, without listeners and without the gateway.
    pub async fn start(settings: &Settings, base: &Base, lock: DataLock) -> Result<Self, Failure> {
        let credentials = credentials::credentials(settings, base)?;
        let mut opened = Self {
            handles: Served::default(),
            local: Served {
                tracer: base.tracer.clone(),
                ..Served::default()
            },
            policy: None,
            gateway: None,
            certificates: None,
            stores: Stores::default(),
            credentials,
            lock,
        };
        opened.connect(settings, base)?;
        for role in Role::SERVICES
            .into_iter()
            .filter(|role| settings.runs(*role))
        {
            tracing::debug!(role = role.name(), "starting");
            match role {
                Role::Archive => opened.start_archive(settings, base).await?,
                Role::Directory => opened.start_directory(settings, base).await?,
                Role::Roster => opened.start_roster(settings, base)?,
                Role::Pubsub => opened.start_pubsub(settings, base)?,
                Role::Policy => opened.start_policy(settings, base).await?,
                Role::Presence => opened.start_presence(settings, base),
                Role::Gateway | Role::Admin => {}
            }
        }
        Ok(opened)
    }

    /// All services in this process, for a command on a stopped server. Waits for the policy, which
    /// first has to follow the directory.
    pub async fn for_admin(
        settings: &Settings,
        base: &Base,
        lock: DataLock,
    ) -> Result<Self, Failure> {
        let mut settings = settings.clone();
        settings.roles = BTreeSet::from(Role::SERVICES);
        settings.remote.clear();
        settings.internal = None;
        let opened = Self::start(&settings, base, lock).await?;
        let in_force = async {
            while opened
                .policy
                .as_ref()
                .is_some_and(|policy| policy.version_in_force().is_none())
            {
                tokio::time::sleep(POLICY_PAUSE).await;
            }
        };
        if tokio::time::timeout(POLICY_LIMIT, in_force).await.is_err() {
            tracing::warn!("no policy is in force yet");
        }
        Ok(opened)
    }

    /// Handles to the services of other processes. They connect when they are used, and again.
    fn connect(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let calls = Calls::new(base.failpoints.clone(), &base.metrics);
        for (role, address) in &settings.remote {
            let Some(credentials) = &self.credentials else {
                return Err(Failure::new("[internal] is missing"));
            };
            let channel = channel::connect(address, *role, credentials)?;
            // Lanes have to outlive whoever still submits: they end with the service's own stage.
            let tasks = base.shutdown.tasks(stage(*role)).clone();
            let calls = calls.clone();
            match role {
                Role::Archive => {
                    self.handles.archive =
                        Some(Arc::new(RemoteArchive::new(channel, calls, tasks)));
                }
                Role::Directory => {
                    self.handles.directory =
                        Some(Arc::new(RemoteDirectory::new(channel, calls, tasks)));
                }
                Role::Roster => {
                    self.handles.roster = Some(Arc::new(RemoteRoster::new(channel, calls, tasks)));
                }
                Role::Pubsub => {
                    self.handles.pubsub = Some(Arc::new(RemotePubsub::new(channel, calls, tasks)));
                }
                Role::Policy => {
                    self.handles.policy = Some(Arc::new(RemotePolicy::new(channel, calls, tasks)));
                }
                Role::Presence => {
                    self.handles.presence =
                        Some(Arc::new(RemotePresence::new(channel, calls, tasks)));
                }
                Role::Gateway | Role::Admin => {}
            }
        }
        Ok(())
    }

    async fn start_archive(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let service = ArchiveService::start(chancery_archive::Parts {
            data_dir: settings.data.clone(),
            domains: settings.domains.clone(),
            config: settings.configs.archive.clone(),
            clock: base.clock.clone(),
            ids: base.ids.clone(),
            metrics: base.metrics.clone(),
            tracer: base.tracer.clone(),
            failpoints: base.failpoints.clone(),
            tasks: base.shutdown.tasks(Stage::Log).clone(),
            // What is on the disk is unknown then: only a start from it can tell.
            fatal: None,
        })
        .await?;
        let handle: Arc<dyn Archive> = service;
        self.local.archive = Some(Arc::clone(&handle));
        self.handles.archive = Some(handle);
        Ok(())
    }

    async fn start_directory(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let path = settings.data.join("directory.db");
        let store = Arc::new(chancery_directory::store::SqliteStore::open(&path)?);
        let service = DirectoryService::start(chancery_directory::Parts {
            config: settings.configs.directory.clone(),
            domains: settings.domains.clone(),
            administrators: settings.administrators.clone(),
            store: Arc::clone(&store) as _,
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            clock: base.clock.clone(),
            ids: base.ids.clone(),
            metrics: base.metrics.clone(),
            failpoints: base.failpoints.clone(),
            tasks: base.shutdown.tasks(Stage::Services).clone(),
        })
        .await?;
        self.stores.directory = Some(store);
        let handle: Arc<dyn Directory> = Arc::new(service);
        self.local.directory = Some(Arc::clone(&handle));
        self.handles.directory = Some(handle);
        Ok(())
    }

    fn start_roster(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let path = settings.data.join("roster.db");
        let store = Arc::new(chancery_roster::store::SqliteStore::open(&path)?);
        let service = RosterService::start(chancery_roster::Parts {
            config: settings.configs.roster.clone(),
            store: Arc::clone(&store) as _,
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            clock: base.clock.clone(),
            ids: base.ids.clone(),
            metrics: base.metrics.clone(),
            tasks: base.shutdown.tasks(Stage::Services).clone(),
        })?;
        self.stores.roster = Some(store);
        let handle: Arc<dyn Roster> = Arc::new(service);
        self.local.roster = Some(Arc::clone(&handle));
        self.handles.roster = Some(handle);
        Ok(())
    }

    fn start_pubsub(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let path = settings.data.join("pubsub.db");
        let store = Arc::new(chancery_pubsub::store::SqliteStore::open(&path)?);
        let service = PubsubService::start(chancery_pubsub::Parts {
            config: settings.configs.pubsub.clone(),
            store: Arc::clone(&store) as _,
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            metrics: base.metrics.clone(),
            tasks: base.shutdown.tasks(Stage::Services).clone(),
        })?;
        self.stores.pubsub = Some(store);
        let handle: Arc<dyn Pubsub> = Arc::new(service);
        self.local.pubsub = Some(Arc::clone(&handle));
        self.handles.pubsub = Some(handle);
        Ok(())
    }

    fn start_presence(&mut self, settings: &Settings, base: &Base) {
        let service = PresenceService::new(chancery_presence::Parts {
            config: settings.configs.presence.clone(),
            metrics: base.metrics.clone(),
            tracer: base.tracer.clone(),
            failpoints: base.failpoints.clone(),
            tasks: base.shutdown.tasks(Stage::Services).clone(),
        });
        let handle: Arc<dyn Presence> = Arc::new(service);
        self.local.presence = Some(Arc::clone(&handle));
        self.handles.presence = Some(handle);
    }

    async fn start_policy(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let path = settings.data.join("policy.db");
        let store = Arc::new(chancery_policy::SqlitePolicyStore::open(&path)?);
        let service = PolicyService::start(chancery_policy::Parts {
            name: settings.name.clone(),
            config: settings.configs.policy.clone(),
            store: Arc::clone(&store) as _,
            directory: wired(self.handles.directory.as_ref(), Role::Directory)?,
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            clock: base.clock.clone(),
            metrics: base.metrics.clone(),
            tracer: base.tracer.clone(),
            failpoints: base.failpoints.clone(),
            tasks: base.shutdown.tasks(Stage::Services).clone(),
        })
        .await?;
        self.stores.policy = Some(store);
        self.policy = Some(service.clone());
        let handle: Arc<dyn Policy> = Arc::new(service);
        self.local.policy = Some(Arc::clone(&handle));
        self.handles.policy = Some(handle);
        Ok(())
    }

    /// The gateway, last of all: from here on clients come in.
    pub fn start_gateway(&mut self, settings: &Settings, base: &Base) -> Result<(), Failure> {
        let mut config = settings.configs.gateway.clone();
        for address in config.c2s.iter_mut().chain(&mut config.c2s_tls) {
            *address = listen::usable(*address);
        }
        let config = Arc::new(config);
        let certificates = credentials::certificates(settings, base)?;
        let domains: Domains = Arc::new(Arc::new(settings.domains.clone()).into());
        let directory = wired(self.handles.directory.as_ref(), Role::Directory)?;
        let streams = base.shutdown.tasks(Stage::Streams);
        let gateway = Gateway::start(chancery_gateway::service::Parts {
            name: settings.name.clone(),
            config: Arc::clone(&config),
            domains: Arc::clone(&domains),
            directory: Arc::clone(&directory),
            roster: wired(self.handles.roster.as_ref(), Role::Roster)?,
            presence: wired(self.handles.presence.as_ref(), Role::Presence)?,
            pubsub: wired(self.handles.pubsub.as_ref(), Role::Pubsub)?,
            policy: wired(self.handles.policy.as_ref(), Role::Policy)?,
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            clock: base.clock.clone(),
            ids: base.ids.clone(),
            metrics: base.metrics.clone(),
            tracer: base.tracer.clone(),
            failpoints: base.failpoints.clone(),
            streams: streams.clone(),
            services: base.shutdown.tasks(Stage::Services).clone(),
        });
        // Behind the sessions and before the log: the last permit counters.
        let (edge, ending) = (
            base.shutdown.tasks(Stage::Edge).clone(),
            Arc::clone(&gateway),
        );
        let signal = edge.signal().clone();
        edge.spawn("gateway finish", async move {
            signal.cancelled().await;
            ending.finish().await;
        });
        let listeners = Listeners::start(chancery_gateway::listen::Parts {
            config,
            certificates: Arc::clone(&certificates),
            directory,
            domains,
            clock: base.clock.clone(),
            ids: base.ids.clone(),
            metrics: base.metrics.clone(),
            accept: base.shutdown.tasks(Stage::Accept).clone(),
            streams: streams.clone(),
            established: Arc::clone(&gateway) as _,
        })
        .map_err(|error| Failure::new(format!("cannot listen for clients: {error}")))?;
        for address in listeners.c2s() {
            tracing::info!(%address, "clients with STARTTLS");
        }
        for address in listeners.c2s_tls() {
            tracing::info!(%address, "clients with direct TLS");
        }
        self.certificates = Some(certificates);
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Reads the certificates of the domains again; the old ones stay when anything is wrong.
    pub fn reload(&self) {
        let Some(certificates) = &self.certificates else {
            return;
        };
        match certificates.reload() {
            Ok(()) => tracing::info!("certificates reloaded"),
            Err(problems) => {
                for problem in problems {
                    tracing::error!(%problem, "certificates not reloaded, the old ones stay");
                }
            }
        }
    }

    /// Serves what runs here to the other processes.
    pub fn serve_internal(&self, base: &Base, listener: TcpListener) -> Result<(), Failure> {
        let Some(credentials) = &self.credentials else {
            return Err(Failure::new("[internal] is missing"));
        };
        channel::serve(&callers(base), listener, credentials, self.local.clone())?;
        Ok(())
    }

    /// Serves everything to the administrator.
    pub fn serve_socket(&self, base: &Base, listener: UnixListener) {
        channel::serve_socket(&callers(base), listener, self.handles.clone());
    }

    /// What the administrator's commands are run on.
    pub fn services(&self) -> Result<Services, Failure> {
        Ok(Services {
            archive: wired(self.handles.archive.as_ref(), Role::Archive)?,
            directory: wired(self.handles.directory.as_ref(), Role::Directory)?,
            roster: wired(self.handles.roster.as_ref(), Role::Roster)?,
            pubsub: wired(self.handles.pubsub.as_ref(), Role::Pubsub)?,
            policy: wired(self.handles.policy.as_ref(), Role::Policy)?,
        })
    }

    /// Handles to what runs here.
    pub fn local(&self) -> &Served {
        &self.local
    }

    /// Ends everything in its order, each stage within its time, then closes the stores.
    pub async fn close(self, base: &Base) -> Result<(), Failure> {
        let Self {
            handles,
            local,
            policy,
            gateway,
            certificates,
            stores,
            lock,
            ..
        } = self;
        let drained = base.shutdown.drain(Stage::default_limit).await;
        drop((handles, local, policy, gateway, certificates));
        stores.close().await;
        drop(lock);
        base.exporting.drain(SPANS_LIMIT).await;
        if drained.panicked > 0 {
            return Err(Failure::new(format!(
                "tasks have failed: {drained}; the log says which"
            )));
        }
        Ok(())
    }
}

impl Stores {
    /// The log closes by itself, in its stage.
    async fn close(self) {
        if let Some(store) = self.policy {
            store.close().await;
        }
        if let Some(store) = self.pubsub {
            store.close().await;
        }
        if let Some(store) = self.roster {
            store.close().await;
        }
        if let Some(store) = self.directory {
            store.close().await;
        }
    }
}

/// What serves other processes. Lanes and links never end by themselves, so they are given a
/// moment for what is under way and then dropped, before the services behind them end: whoever
/// holds the other end settles.
fn callers(base: &Base) -> Tasks {
    let (callers, edge) = (Tasks::new(), base.shutdown.tasks(Stage::Edge).clone());
    let (ending, signal) = (callers.clone(), edge.signal().clone());
    edge.spawn("callers", async move {
        signal.cancelled().await;
        ending.drain(CALLERS_LINGER).await;
    });
    callers
}

/// When the handle to a service of another process ends.
fn stage(role: Role) -> Stage {
    if role == Role::Archive {
        Stage::Log
    } else {
        Stage::Services
    }
}
