//! `serve`: the life of a process, from the first check to the last commit. Owns signals, the
//! order of start and end, and what is said meanwhile. What is started is `wiring`'s.

use std::time::Duration;

use chancery_api::Role;
use chancery_runtime::{Failpoints, Stage, telemetry};
use chancery_store::DataLock;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Place, Serve};
use crate::config::{Overrides, Settings, joined};
use crate::error::{FAILED, Failure, OK, Outcome};
use crate::out::note;
use crate::process::{self, Process};
use crate::wiring::{Base, Opened};
use crate::{listen, ops, probes, socket};

/// Failpoints for tests of faults; nothing without it.
const FAILPOINTS: &str = "CHANCERY_FAILPOINTS";

pub async fn run(place: &Place, serve: &Serve) -> Outcome {
    let overrides = Overrides {
        place: place.clone(),
        serve: serve.clone(),
    };
    let settings = Settings::load(&overrides).map_err(Failure::problems)?;
    telemetry::init(settings.log_format, &settings.log_level)?;
    let running = Running::start(settings).await?;
    running.until_asked().await
}

/// A process that serves.
pub struct Running {
    pub opened: Opened,
    pub base: Base,
    settings: Settings,
    signals: Signals,
}

impl Running {
    /// Starts everything in its order, or nothing.
    pub async fn start(settings: Settings) -> Result<Self, Failure> {
        let missing = settings.missing_files();
        if !missing.is_empty() {
            return Err(Failure::problems(missing));
        }
        listen::raise_open_files();
        process::make_data_directory(&settings.data)?;
        let lock = DataLock::acquire(&settings.data)?;
        let failpoints = failpoints()?;
        let base = Base::new(failpoints).traced(&settings)?;
        let bind = |what, address: Option<std::net::SocketAddr>| {
            address
                .map(|address| listen::bind(what, address))
                .transpose()
        };
        let ops_listener = bind("ops", settings.listen.ops)?;
        let internal = bind("internal", settings.listen.internal)?;
        let signals = Signals::hear()?;
        let started = Self::open(&settings, &base, lock, internal).await;
        let opened = match started {
            Ok(opened) => opened,
            Err(failure) => {
                // What did start ends in the usual order before the reason is told.
                base.shutdown.drain(Stage::default_limit).await;
                return Err(failure);
            }
        };
        if let Some(listener) = ops_listener {
            let address = listener.local_addr()?;
            let probes = probes::all(&settings, &base, &opened);
            let ops = ops::Ops::new(
                base.clock.clone(),
                base.metrics.clone(),
                base.shutdown.clone(),
                probes,
            );
            ops.serve(listener);
            tracing::info!(%address, "operations");
        }
        Process::of(&settings).keep(&settings.data)?;
        tracing::info!(
            name = settings.name,
            roles = joined(&settings.roles),
            domains = settings.domains.join(","),
            data = %settings.data.display(),
            "serving"
        );
        Ok(Self {
            opened,
            base,
            settings,
            signals,
        })
    }

    async fn open(
        settings: &Settings,
        base: &Base,
        lock: DataLock,
        internal: Option<TcpListener>,
    ) -> Result<Opened, Failure> {
        let mut opened = Opened::start(settings, base, lock).await?;
        if let Some(listener) = internal {
            let address = listener.local_addr()?;
            opened.serve_internal(base, listener)?;
            tracing::info!(%address, "internal");
        }
        if settings.runs(Role::Directory) {
            opened.serve_socket(base, socket::listen(&settings.data)?);
        }
        if settings.runs(Role::Gateway) {
            opened.start_gateway(settings, base)?;
        }
        Ok(opened)
    }

    /// Serves until a signal or an error asks for the end, then ends in order (§9).
    pub async fn until_asked(self) -> Outcome {
        let Self {
            opened,
            base,
            settings,
            signals,
        } = self;
        let Signals {
            mut terminate,
            mut interrupt,
            mut hangup,
        } = signals;
        let by_signal = loop {
            tokio::select! {
                _ = terminate.recv() => break Some("SIGTERM"),
                _ = interrupt.recv() => break Some("SIGINT"),
                _ = hangup.recv() => opened.reload(),
                _ = base.shutdown.requested() => break None,
            }
        };
        if let Some(name) = by_signal {
            base.shutdown.request(name);
        }
        let reason = base.shutdown.requested().await.to_owned();
        tracing::info!(reason, limit_s = limit().as_secs(), "shutting down");
        socket::remove(&settings.data);
        let clean = tokio::select! {
            closed = opened.close(&base) => closed,
            _ = terminate.recv() => Err(Failure::new("ended at once by a second signal")),
            _ = interrupt.recv() => Err(Failure::new("ended at once by a second signal")),
        };
        clean?;
        tracing::info!("ended");
        Ok(if by_signal.is_some() { OK } else { FAILED })
    }
}

/// What people and supervisors send. Heard from before anything is opened: whoever reads that the
/// server serves may end it at once.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn hear() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The longest that the end may take.
fn limit() -> Duration {
    Stage::ORDER.into_iter().map(Stage::default_limit).sum()
}

fn failpoints() -> Result<Failpoints, Failure> {
    let Ok(text) = std::env::var(FAILPOINTS) else {
        return Ok(Failpoints::off());
    };
    let failpoints =
        Failpoints::parse(&text).map_err(|error| Failure::new(format!("{FAILPOINTS}: {error}")))?;
    if !text.trim().is_empty() {
        note!("failpoints are on: {text}");
    }
    Ok(failpoints)
}
