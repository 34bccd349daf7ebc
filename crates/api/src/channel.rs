//! Both ends of the channel between processes: HTTP/2 with mutual TLS, its keep-alive, windows and
//! sizes; the administrator's socket; and the in-memory pipe of tests. Who a caller is, is read here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tonic::transport::server::{Router, TcpIncoming, TlsConnectInfo};
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};

use chancery_runtime::{Tasks, Tracer};

use crate::archive::{Archive, ArchiveAdapter};
use crate::directory::{Directory, DirectoryAdapter};
use crate::policy::{Policy, PolicyAdapter};
use crate::presence::{Presence, PresenceAdapter};
use crate::pubsub::{Pubsub, PubsubAdapter};
use crate::roster::{Roster, RosterAdapter};
use crate::{ApiError, Caller, Role};

/// One gRPC message: a batch of 64 items, of which one may be a whole stanza over the batch's limit.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// HTTP/2 windows, above what a lane may have in flight.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// A stopped process still accepts TCP: only pings tell.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_LIMIT: Duration = Duration::from_secs(2);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Streams of one connection.
const STREAMS: u32 = 1024;

/// What a process shows to the others.
#[derive(Clone)]
pub struct Credentials {
    /// PEM of the internal authority.
    pub authority: Vec<u8>,
    /// PEM of this process's certificate chain.
    pub chain: Vec<u8>,
    /// PEM of its private key.
    pub key: Vec<u8>,
}

/// How the serving side knows who calls.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By the roles in the client's certificate.
    Certificate,
    /// Whoever can reach it has this role: a socket with mode 0600, or a test's pipe.
    Reach(Role),
}

impl Trust {
    pub(crate) fn caller<T>(&self, request: &tonic::Request<T>) -> Result<Caller, ApiError> {
        match self {
            Self::Reach(role) => Ok(Caller::Roles(vec![*role])),
            Self::Certificate => {
                let info = request
                    .extensions()
                    .get::<TlsConnectInfo<tonic::transport::server::TcpConnectInfo>>();
                let certificates = info
                    .and_then(TlsConnectInfo::peer_certs)
                    .ok_or_else(|| ApiError::denied("no certificate"))?;
                let leaf = certificates
                    .first()
                    .ok_or_else(|| ApiError::denied("no certificate"))?;
                Ok(Caller::Roles(roles_of(leaf)?))
            }
        }
    }
}

/// Roles named by a certificate's dNSNames.
fn roles_of(certificate: &[u8]) -> Result<Vec<Role>, ApiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| ApiError::denied("unreadable certificate"))?;
    let names = parsed
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|san| san.value.general_names.clone())
        .unwrap_or_default();
    let mut roles = Vec::new();
    for name in names {
        if let x509_parser::extensions::GeneralName::DNSName(name) = name {
            let known = Role::SERVICES.into_iter().chain([Role::Admin]);
            roles.extend(known.filter(|role| role.dns_name() == name));
        }
    }
    Ok(roles)
}

/// The services that a process serves to others.
#[derive(Clone, Default)]
pub struct Served {
    /// The log.
    pub archive: Option<Arc<dyn Archive>>,
    /// Accounts.
    pub directory: Option<Arc<dyn Directory>>,
    /// Rosters.
    pub roster: Option<Arc<dyn Roster>>,
    /// Verdicts.
    pub policy: Option<Arc<dyn Policy>>,
    /// Presence.
    pub presence: Option<Arc<dyn Presence>>,
    /// Private XML, vCards, last activity.
    pub pubsub: Option<Arc<dyn Pubsub>>,
    /// For the spans of unary calls; lanes record their own.
    pub tracer: Tracer,
}

fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_LIMIT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
}

fn route(mut server: Server, served: Served, trust: &Trust, tasks: &Tasks) -> Router {
    let tracer = served.tracer;
    let made = |_: &()| (trust.clone(), tasks.clone(), tracer.clone());
    server
        .add_optional_service(served.archive.map(|s| {
            let (trust, tasks, tracer) = made(&());
            ArchiveAdapter::server(s, trust, tasks, tracer)
        }))
        .add_optional_service(served.directory.map(|s| {
            let (trust, tasks, tracer) = made(&());
            DirectoryAdapter::server(s, trust, tasks, tracer)
        }))
        .add_optional_service(served.roster.map(|s| {
            let (trust, tasks, tracer) = made(&());
            RosterAdapter::server(s, trust, tasks, tracer)
        }))
        .add_optional_service(served.policy.map(|s| {
            let (trust, tasks, tracer) = made(&());
            PolicyAdapter::server(s, trust, tasks, tracer)
        }))
        .add_optional_service(served.presence.map(|s| {
            let (trust, tasks, tracer) = made(&());
            PresenceAdapter::server(s, trust, tasks, tracer)
        }))
        .add_optional_service(served.pubsub.map(|s| {
            let (trust, tasks, tracer) = made(&());
            PubsubAdapter::server(s, trust, tasks, tracer)
        }))
}

/// Serves to other processes, with mutual TLS, until the tasks are asked to end.
pub fn serve(
    tasks: &Tasks,
    listener: TcpListener,
    credentials: &Credentials,
    served: Served,
) -> Result<(), ApiError> {
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&credentials.chain, &credentials.key))
        .client_ca_root(Certificate::from_pem(&credentials.authority));
    let server = builder()
        .tls_config(tls)
        .map_err(|e| ApiError::invalid(format!("internal certificate: {e}")))?;
    // TCP_NODELAY on the accepting side too: without it small answers wait for the peer's ACK.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = route(server, served, &Trust::Certificate, tasks);
    let signal = tasks.signal().clone();
    tasks.spawn("grpc", async move {
        let end = async move { signal.cancelled().await };
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, end).await {
            tracing::error!(%error, "the internal listener failed");
        }
    });
    Ok(())
}

/// Serves the administrator's socket.
pub fn serve_socket(tasks: &Tasks, listener: UnixListener, served: Served) {
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let router = route(builder(), served, &Trust::Reach(Role::Admin), tasks);
    let signal = tasks.signal().clone();
    tasks.spawn("socket", async move {
        let end = async move { signal.cancelled().await };
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, end).await {
            tracing::error!(%error, "the socket failed");
        }
    });
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// A channel to the process at `address` that runs `role`. Connects when first used, and again.
pub fn connect(address: &str, role: Role, credentials: &Credentials) -> Result<Channel, ApiError> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&credentials.authority))
        .identity(Identity::from_pem(&credentials.chain, &credentials.key))
        .domain_name(role.dns_name());
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|e| ApiError::invalid(format!("address {address:?}: {e}")))?;
    let endpoint = tuned(endpoint)
        .tls_config(tls)
        .map_err(|e| ApiError::invalid(format!("internal certificate: {e}")))?;
    Ok(endpoint.connect_lazy())
}

/// A channel to the administrator's socket; fails when nobody listens.
pub async fn connect_socket(path: &Path) -> Result<Channel, ApiError> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://chancery.sock")
        .connect_with_connector(connector)
        .await
        .map_err(|e| ApiError::unavailable(e.to_string()))
}

/// A channel to `served` through memory, with everything that the wire would do to a message.
/// Ends when `tasks` end. `role` is what the caller is taken for.
pub fn pipe(tasks: &Tasks, served: Served, role: Role) -> Channel {
    let (tx, rx) = tokio::sync::mpsc::channel::<Result<tokio::io::DuplexStream, std::io::Error>>(4);
    let router = route(builder(), served, &Trust::Reach(role), tasks);
    let signal = tasks.signal().clone();
    tasks.spawn("pipe", async move {
        let incoming = tokio_stream::wrappers::ReceiverStream::new(rx);
        let end = async move { signal.cancelled().await };
        let _ = router.serve_with_incoming_shutdown(incoming, end).await;
    });
    let connector = tower::service_fn(move |_| {
        let tx = tx.clone();
        async move {
            let (near, far) = tokio::io::duplex(256 * 1024);
            tx.send(Ok(far))
                .await
                .map_err(|_| std::io::ErrorKind::ConnectionRefused)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(near))
        }
    });
    tuned(Endpoint::from_static("http://pipe")).connect_with_connector_lazy(connector)
}
