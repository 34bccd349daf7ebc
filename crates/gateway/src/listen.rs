//! Listening sockets of client streams: accept, admit, tune, hand to negotiation. An error of
//! `accept` never ends a listener.
//!
//! Refuses to read a byte; negotiation does.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use chancery_api::directory::Directory;
use chancery_runtime::metrics::{Counter, Counters};
use chancery_runtime::{Clock, Ids, Metrics, Tasks};
use chancery_xmpp::{StreamCondition, StreamError};

use crate::admission::{Admission, Admitted, Refusal};
use crate::config::Config;
use crate::negotiate::{Established, negotiate};
use crate::sasl::Mechanism;
use crate::stream::{self, Opening};
use crate::tls::{Begins, Certificates};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// The first pause after `accept` failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause: files that were given back are noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Probes that TCP sends before it gives a silent peer up.
const KEEPALIVE_PROBES: u32 = 3;
/// Time between them.
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(20);

/// The hosted domains, the default one first. Whoever follows the directory replaces them.
pub type Domains = Arc<ArcSwap<Vec<String>>>;

/// What the listeners use.
pub struct Parts {
    /// The section `[gateway]`.
    pub config: Arc<Config>,
    /// Of all domains.
    pub certificates: Arc<Certificates>,
    /// Checks credentials.
    pub directory: Arc<dyn Directory>,
    /// The hosted domains.
    pub domains: Domains,
    /// For holding answers back.
    pub clock: Clock,
    /// For stream ids and nonces.
    pub ids: Ids,
    /// For `chancery_gateway_…`.
    pub metrics: Metrics,
    /// The listeners themselves; they end with it, connections do not.
    pub accept: Tasks,
    /// Connections, negotiating and established.
    pub streams: Tasks,
    /// Takes over authenticated streams.
    pub established: Arc<dyn Established>,
}

/// What all connections of a gateway share.
pub(crate) struct Shared {
    pub config: Arc<Config>,
    pub certificates: Arc<Certificates>,
    pub directory: Arc<dyn Directory>,
    pub domains: Domains,
    pub clock: Clock,
    pub ids: Ids,
    pub streams: Tasks,
    pub handshakes: Semaphore,
    pub counted: Counted,
    established: Arc<dyn Established>,
    admission: Arc<Admission>,
}

/// The open listeners.
pub struct Listeners {
    c2s: Vec<SocketAddr>,
    c2s_tls: Vec<SocketAddr>,
    admission: Arc<Admission>,
}

impl Listeners {
    /// Binds every address and begins to accept. Nothing is accepted when one cannot be bound.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let bind = |addresses: &[SocketAddr]| {
            addresses
                .iter()
                .map(|at| listener(*at))
                .collect::<io::Result<Vec<_>>>()
        };
        let plain = bind(&parts.config.c2s)?;
        let tls = bind(&parts.config.c2s_tls)?;
        let admission = Admission::new(parts.config.caps());
        register(&parts.metrics, &admission, &parts.certificates);
        let shared = Arc::new(Shared {
            handshakes: Semaphore::new(parts.config.handshakes),
            counted: Counted::new(&parts.metrics),
            config: parts.config,
            certificates: parts.certificates,
            directory: parts.directory,
            domains: parts.domains,
            clock: parts.clock,
            ids: parts.ids,
            streams: parts.streams,
            established: parts.established,
            admission: Arc::clone(&admission),
        });
        let local = |listeners: &[TcpListener]| {
            listeners
                .iter()
                .map(TcpListener::local_addr)
                .collect::<io::Result<Vec<_>>>()
        };
        let (c2s, c2s_tls) = (local(&plain)?, local(&tls)?);
        let plain = plain.into_iter().map(|listener| (listener, Begins::Plain));
        for (listener, begins) in plain.chain(tls.into_iter().map(|l| (l, Begins::Tls))) {
            let shared = Arc::clone(&shared);
            let signal = parts.accept.signal().clone();
            parts.accept.spawn("listener", async move {
                tokio::select! {
                    () = signal.cancelled() => {}
                    () = accept(&shared, &listener, begins) => {}
                }
            });
        }
        Ok(Self {
            c2s,
            c2s_tls,
            admission,
        })
    }

    /// Where streams with STARTTLS are accepted.
    pub fn c2s(&self) -> &[SocketAddr] {
        &self.c2s
    }

    /// Where streams in TLS are accepted.
    pub fn c2s_tls(&self) -> &[SocketAddr] {
        &self.c2s_tls
    }

    /// Connections now, and how many of them have not authenticated.
    pub fn open(&self) -> (usize, usize) {
        self.admission.open()
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener, begins: Begins) {
    let mut pause = PAUSE_MIN;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = PAUSE_MIN;
                admit(shared, socket, peer, begins);
            }
            Err(error) => {
                // Out of files, most likely, or a connection that is gone again: in either case
                // the next one may succeed.
                shared.counted.accept_errors.inc();
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, socket: TcpStream, peer: SocketAddr, begins: Begins) {
    match shared.admission.admit(peer.ip(), shared.clock.monotonic()) {
        Ok(admitted) => {
            shared.counted.accepted(begins);
            if let Err(error) = tune(&socket, &shared.config) {
                tracing::debug!(%error, "a socket could not be tuned");
                return; // it is closed already
            }
            let shared_by_task = Arc::clone(shared);
            shared.streams.spawn("negotiation", async move {
                run(shared_by_task, socket, peer, begins, admitted).await;
            });
        }
        Err(refusal) => {
            shared.counted.refused.with(&[refusal.label()]).inc();
            if begins == Begins::Plain {
                refuse(shared, socket, refusal);
            }
        }
    }
}

/// Negotiates, then begins the session in a task of its own: nothing of the negotiation stays
/// with an idle connection, not even the size of its task.
async fn run(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    begins: Begins,
    admitted: Admitted,
) {
    let negotiation = Box::pin(negotiate(&shared, socket, peer, begins, admitted));
    if let Some(authenticated) = negotiation.await {
        let session = Arc::clone(&shared.established).run(authenticated);
        shared.streams.spawn("session", session);
    }
}

fn tune(socket: &TcpStream, config: &Config) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(config.tcp_keepalive_seconds))
        .with_interval(KEEPALIVE_PAUSE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(config.tcp_user_timeout_seconds)))
}

/// Tells a client in clear text why it is not let in, if its socket takes that at once.
fn refuse(shared: &Shared, socket: TcpStream, refusal: Refusal) {
    let condition = match refusal {
        Refusal::Server => StreamCondition::ResourceConstraint,
        Refusal::Address | Refusal::Rate => StreamCondition::PolicyViolation,
    };
    let id = shared.ids.token();
    let domains = shared.domains.load();
    let opening = Opening {
        from: domains.first().map(String::as_str),
        to: None,
        id: Some(&id),
    };
    let mut text = stream::write_header(&opening);
    text.push_str(&StreamError::new(condition).write());
    text.push_str(stream::CLOSE);
    if let Ok(mut socket) = socket.into_std() {
        // A socket this young has room; if not, closing it says enough.
        let _ = socket.write(text.as_bytes());
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
}

/// What is counted of connections and logins.
pub(crate) struct Counted {
    accepted: Counters,
    refused: Counters,
    accept_errors: Counter,
    handshakes: Counters,
    failures: Counters,
    logins: Counters,
    login_failures: Counters,
}

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        let counters = |name: &str, help: &str, labels| {
            metrics.counters(&format!("chancery_gateway_{name}"), help, labels)
        };
        Self {
            accepted: counters("connections_accepted", "connections let in", &["port"]),
            refused: counters("connections_refused", "connections over a cap", &["cap"]),
            accept_errors: metrics.counter("chancery_gateway_accept_errors", "failures of accept"),
            handshakes: counters("handshakes", "TLS handshakes, by outcome", &["outcome"]),
            failures: counters(
                "negotiation_failures",
                "connections that ended before a session, by reason",
                &["reason"],
            ),
            logins: counters("logins", "successful authentications", &["mechanism"]),
            login_failures: counters(
                "login_failures",
                "failed authentications, by condition",
                &["condition"],
            ),
        }
    }

    fn accepted(&self, begins: Begins) {
        let port = if begins == Begins::Plain {
            "c2s"
        } else {
            "c2s_tls"
        };
        self.accepted.with(&[port]).inc();
    }

    pub fn handshake(&self, done: bool) {
        self.handshakes
            .with(&[if done { "done" } else { "failed" }])
            .inc();
    }

    pub fn failure(&self, reason: &str) {
        self.failures.with(&[reason]).inc();
    }

    pub fn login(&self, mechanism: Mechanism) {
        self.logins.with(&[mechanism.name()]).inc();
    }

    pub fn login_failure(&self, condition: &str) {
        self.login_failures.with(&[condition]).inc();
    }
}

fn register(metrics: &Metrics, admission: &Arc<Admission>, certificates: &Arc<Certificates>) {
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let (open, half_open) = (Arc::clone(admission), Arc::clone(admission));
    metrics.gauge_fn(
        "chancery_gateway_connections",
        "open connections",
        move || count(open.open().0),
    );
    metrics.gauge_fn(
        "chancery_gateway_connections_half_open",
        "open connections that have not authenticated",
        move || count(half_open.open().1),
    );
    let certificates = Arc::clone(certificates);
    metrics.gauge_fn(
        "chancery_gateway_certificate_expiry_unix_seconds",
        "when the first certificate expires",
        move || {
            certificates
                .expiries()
                .into_iter()
                .map(|(_, at)| at)
                .min()
                .unwrap_or(0)
        },
    );
}
