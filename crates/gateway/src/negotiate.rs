//! From an accepted socket to an authenticated stream: TLS, headers, features, SASL, restart
//! (RFC 6120 §4.3, §5, §6). Every phase has a deadline and every count a limit; all its state is
//! gone when the session begins.
//!
//! Refuses to own anything of a session: the features after authentication, and all that follows,
//! belong to whoever implements [`Established`].

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use jid::BareJid;
use tokio::net::TcpStream;

use chancery_xml::{Element, Frame, FrameError, Limit};
use chancery_xmpp::stanza::kind_of;
use chancery_xmpp::{SaslFailure, StreamCondition, StreamError, ns};

use crate::admission::Admitted;
use crate::features;
use crate::listen::Shared;
use crate::sasl::channel_binding::ChannelBindings;
use crate::sasl::{Exchange, Login, Mechanism, Step, Surroundings};
use crate::stream::{self, Checked, Opening};
use crate::tls::{Begins, Identity};
use crate::transport::{CLOSE_LIMIT, Transport, TransportError};

/// Elements out of place that are answered before authentication; the next ends the stream.
const OUT_OF_PLACE_LIMIT: u32 = 8;

/// A stream whose client has proven who it is. The client's second header was read and checked,
/// ours is queued, not yet flushed: the features that the session sends go out with it.
pub struct Authenticated {
    /// The connection.
    pub transport: Transport,
    /// Who it is, prepared.
    pub account: BareJid,
    /// The hosted domain of the stream.
    pub domain: String,
    /// Version of the credentials that were used; a later one ends the session.
    pub credential_version: u64,
    /// How it was proven.
    pub mechanism: Mechanism,
    /// Where the client is.
    pub peer: SocketAddr,
    /// The language of the stream, for stanzas that state none (RFC 6120 §4.7.4).
    pub stream_lang: Option<Box<str>>,
    /// The id that we gave the stream.
    pub stream_id: String,
    /// Of the TLS handshake.
    pub facts: TlsFacts,
}

/// What was negotiated in a TLS handshake, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// As the standard writes it.
    pub version: &'static str,
    /// The cipher suite's registered name.
    pub cipher: &'static str,
}

impl TlsFacts {
    fn of(session: &rustls::ServerConnection) -> Self {
        let version = session
            .protocol_version()
            .and_then(|version| version.as_str());
        let cipher = session.negotiated_cipher_suite();
        Self {
            version: version.unwrap_or("unknown"),
            cipher: cipher.and_then(|c| c.suite().as_str()).unwrap_or("unknown"),
        }
    }
}

/// Takes over authenticated streams.
pub trait Established: Send + Sync + 'static {
    /// Runs the session until its stream is over.
    fn run(self: Arc<Self>, authenticated: Authenticated) -> BoxFuture<'static, ()>;
}

/// Why there is no session.
enum Failed {
    /// The peer is gone, or is to be dropped without a word; with a label for the metrics.
    Gone(&'static str),
    /// The peer closed its stream.
    Closed,
    /// The stream ends with an error.
    Stream(StreamError),
}

impl From<TransportError> for Failed {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Frame(error) => Self::Stream(error.into()),
            TransportError::Io(_) => Self::Gone("io"),
        }
    }
}

impl From<std::io::Error> for Failed {
    fn from(_: std::io::Error) -> Self {
        Self::Gone("io")
    }
}

impl From<StreamError> for Failed {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl From<StreamCondition> for Failed {
    fn from(condition: StreamCondition) -> Self {
        Self::Stream(StreamError::new(condition))
    }
}

impl Failed {
    fn label(&self) -> &'static str {
        match self {
            Self::Gone(label) => label,
            Self::Closed => "closed",
            Self::Stream(error) => error.condition.as_str(),
        }
    }
}

/// Negotiates on one socket; `None` when it is over, and everything about it said and counted.
pub(crate) async fn negotiate(
    shared: &Shared,
    socket: TcpStream,
    peer: SocketAddr,
    begins: Begins,
    admitted: Admitted,
) -> Option<Authenticated> {
    let negotiation = Negotiation { shared, peer };
    let stream = match begins {
        Begins::Tls => negotiation.secure(socket, admitted, begins, None).await,
        Begins::Plain => negotiation.start_tls(socket, admitted).await,
    };
    match stream {
        Ok((transport, identity)) => negotiation.in_tls(transport, &identity).await,
        Err(failed) => {
            shared.counted.failure(failed.label());
            None
        }
    }
}

struct Negotiation<'a> {
    shared: &'a Shared,
    peer: SocketAddr,
}

impl Negotiation<'_> {
    /// The phase in clear text; ends the stream itself when it fails.
    async fn start_tls(
        &self,
        socket: TcpStream,
        admitted: Admitted,
    ) -> Result<(Transport, Arc<Identity>), Failed> {
        let limits = self.shared.config.limits_before_auth();
        let mut transport = Transport::plain(socket, limits, admitted);
        let domain = match self.before_tls(&mut transport).await {
            Ok(domain) => domain,
            Err(failed) => return Err(self.end(transport, failed).await),
        };
        // Nothing that came in clear text is believed in TLS: what came with `<starttls/>` was
        // refused before the answer, and from here on the socket is TLS's.
        let Some((socket, admitted)) = transport.into_socket() else {
            return Err(Failed::Gone("starttls-injection"));
        };
        self.secure(socket, admitted, Begins::Plain, Some(&domain))
            .await
    }

    /// Up to `<proceed/>` (RFC 6120 §5.4.2). Gives the domain that the client wants.
    async fn before_tls(&self, transport: &mut Transport) -> Result<String, Failed> {
        let limit = self.shared.config.header_limit();
        let checked = self.within(limit, self.header(transport)).await?;
        self.open(transport, &checked);
        transport.queue(features::before_tls().as_bytes());
        self.within(limit, async {
            transport.flush().await?;
            let mut out_of_place = 0;
            loop {
                let element = next_element(transport).await?;
                if element.is("starttls", ns::TLS) {
                    break;
                }
                let answer = if element.header.ns.as_ref() == ns::SASL {
                    SaslFailure::EncryptionRequired.write() // §6.5.4
                } else {
                    out_of_turn(&element)?
                };
                count_out_of_place(&mut out_of_place)?;
                transport.queue(answer.as_bytes());
                transport.flush().await?;
            }
            // Clients end lines; whatever else came in clear text is not to be believed.
            if transport.has_unread() {
                return Err(Failed::Gone("starttls-injection"));
            }
            transport.queue(format!("<proceed xmlns='{}'/>", ns::TLS).as_bytes());
            transport.flush().await?;
            Ok(checked.domain)
        })
        .await
    }

    /// The TLS handshake.
    async fn secure(
        &self,
        socket: TcpStream,
        admitted: Admitted,
        begins: Begins,
        domain: Option<&str>,
    ) -> Result<(Transport, Arc<Identity>), Failed> {
        let shared = self.shared;
        let accept = shared
            .certificates
            .accept(socket, begins, domain, &shared.handshakes);
        let limit = shared.config.handshake_limit();
        let done = tokio::select! {
            () = shared.streams.cancelled() => Err(Failed::Gone("shutdown")),
            done = tokio::time::timeout(limit, Box::pin(accept)) => match done {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    Err(Failed::Gone("handshake"))
                }
                Err(_) => Err(Failed::Gone("handshake-timeout")),
            },
        };
        shared.counted.handshake(done.is_ok());
        let (socket, identity) = done?;
        let limits = shared.config.limits_before_auth();
        Ok((Transport::tls(socket, limits, admitted), identity))
    }

    /// Everything in TLS; ends the stream itself when it fails.
    async fn in_tls(&self, mut transport: Transport, identity: &Identity) -> Option<Authenticated> {
        match self.authenticate(&mut transport, identity).await {
            Ok(found) => Some(Authenticated {
                transport,
                account: found.login.account,
                domain: found.domain,
                credential_version: found.login.credential_version,
                mechanism: found.login.mechanism,
                peer: self.peer,
                stream_lang: found.lang,
                stream_id: found.stream_id,
                facts: found.facts,
            }),
            Err(failed) => {
                let failed = self.end(transport, failed).await;
                self.shared.counted.failure(failed.label());
                None
            }
        }
    }

    async fn authenticate(
        &self,
        transport: &mut Transport,
        identity: &Identity,
    ) -> Result<Found, Failed> {
        let config = &self.shared.config;
        let session = transport.tls_session().ok_or(Failed::Gone("no-tls"))?;
        let bindings = ChannelBindings::of(session, identity.end_point());
        let facts = TlsFacts::of(session);
        let checked = self
            .within(config.header_limit(), self.header(transport))
            .await?;
        self.open(transport, &checked);
        let offered = features::before_auth(&bindings, config.bytes_before_auth);
        transport.queue(offered.as_bytes());
        let sasl = self.sasl(transport, &bindings, &checked.domain);
        let login = self.within(config.sasl_limit(), Box::pin(sasl)).await?;
        self.shared.counted.login(login.mechanism);
        // RFC 6120 §6.4.6: the old stream is void, also what it said of addresses and language.
        transport.authenticated();
        transport.set_limits(config.limits_after_auth());
        transport.restart();
        let again = self
            .within(config.header_limit(), self.header(transport))
            .await?;
        if again.domain != checked.domain {
            return Err(StreamCondition::NotAuthorized.into()); // authenticated for another domain
        }
        if again
            .from
            .as_ref()
            .is_some_and(|from| *from != login.account)
        {
            return Err(StreamCondition::InvalidFrom.into()); // §4.9.3.9
        }
        let stream_id = self.open(transport, &again);
        Ok(Found {
            login,
            domain: again.domain,
            lang: again.lang,
            stream_id,
            facts,
        })
    }

    /// Exchanges until one is won.
    async fn sasl(
        &self,
        transport: &mut Transport,
        bindings: &ChannelBindings,
        domain: &str,
    ) -> Result<Login, Failed> {
        let peer = self.peer.ip().to_canonical().to_string();
        let around = Surroundings {
            directory: &*self.shared.directory,
            clock: &self.shared.clock,
            ids: &self.shared.ids,
            domain,
            peer: &peer,
            bindings,
        };
        let mut tries = Tries::default();
        let mut exchange = Exchange::None;
        loop {
            transport.flush().await?;
            let element = match next_element(transport).await {
                Err(Failed::Stream(error)) if is_oversize(transport) => {
                    // Too long to be read is also too long to be a message of SASL.
                    transport.queue(SaslFailure::MalformedRequest.write().as_bytes());
                    return Err(Failed::Stream(error));
                }
                element => element?,
            };
            let sasl = element.header.ns.as_ref() == ns::SASL;
            let step = match &*element.header.name {
                "auth" if sasl && tries.failures >= self.shared.config.sasl_attempts => {
                    return Err(StreamCondition::PolicyViolation.into()); // §6.4.5
                }
                "auth" if sasl => exchange.auth(&around, &element).await,
                "response" if sasl => exchange.response(&around, &element).await,
                "abort" if sasl => exchange.abort(),
                "starttls" if element.is("starttls", ns::TLS) => {
                    // §5.4.2.2: there is no TLS in TLS; the failure ends the stream.
                    transport.queue(format!("<failure xmlns='{}'/>", ns::TLS).as_bytes());
                    return Err(Failed::Closed);
                }
                _ => {
                    let answer = out_of_turn(&element)?;
                    count_out_of_place(&mut tries.out_of_place)?;
                    transport.queue(answer.as_bytes());
                    continue;
                }
            };
            if let Some(login) = self.answer(transport, &mut tries, step)? {
                transport.flush().await?;
                return Ok(login);
            }
        }
    }

    /// Queues what a step of an exchange has to say.
    fn answer(
        &self,
        transport: &mut Transport,
        tries: &mut Tries,
        step: Step,
    ) -> Result<Option<Login>, Failed> {
        match step {
            Step::Challenge(data) => {
                transport.queue(data_element("challenge", &data).as_bytes());
            }
            Step::Success(login, data) => {
                let data = data.unwrap_or_default();
                transport.queue(data_element("success", &data).as_bytes());
                return Ok(Some(login));
            }
            Step::Failure(failure) => {
                self.shared.counted.login_failure(failure.condition());
                tries.failures += 1;
                if tries.failures > self.shared.config.sasl_attempts {
                    return Err(StreamCondition::PolicyViolation.into());
                }
                transport.queue(failure.write().as_bytes());
            }
            Step::Refused => {
                self.shared.counted.login_failure("refused");
                return Err(StreamCondition::PolicyViolation.into());
            }
        }
        Ok(None)
    }

    /// Reads and checks a stream header.
    async fn header(&self, transport: &mut Transport) -> Result<Checked, Failed> {
        match transport.next_frame().await? {
            None => Err(Failed::Gone("closed")),
            Some(Frame::Open(header)) => Ok(stream::check(&header, &self.shared.domains.load())?),
            Some(_) => Err(StreamCondition::BadFormat.into()),
        }
    }

    /// Queues our header; gives its id.
    fn open(&self, transport: &mut Transport, checked: &Checked) -> String {
        let id = self.shared.ids.token();
        transport.queue_header(&stream::write_header(&Opening {
            from: Some(&checked.domain),
            to: checked.from.as_ref().map(|from| from.as_str()),
            id: Some(&id),
        }));
        id
    }

    /// Runs a phase within its deadline, and no longer than the server runs.
    async fn within<T>(
        &self,
        limit: Duration,
        phase: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        tokio::select! {
            done = tokio::time::timeout(limit, phase) => {
                done.unwrap_or_else(|_| Err(StreamCondition::ConnectionTimeout.into()))
            }
            () = self.shared.streams.cancelled() => Err(StreamCondition::SystemShutdown.into()),
        }
    }

    /// Ends the stream as the failure wants it.
    async fn end(&self, mut transport: Transport, failed: Failed) -> Failed {
        let error = match &failed {
            Failed::Gone(_) => return failed,
            Failed::Closed => None,
            Failed::Stream(error) => Some(error),
        };
        if !transport.header_sent() {
            // RFC 6120 §4.9.1.1: our header goes first, also when the client's made no sense.
            let id = self.shared.ids.token();
            let domains = self.shared.domains.load();
            let opening = Opening {
                from: domains.first().map(String::as_str),
                to: None,
                id: Some(&id),
            };
            transport.queue_header(&stream::write_header(&opening));
        }
        transport.close_with(error, CLOSE_LIMIT).await;
        failed
    }
}

/// What one stream has tried before authentication.
#[derive(Default)]
struct Tries {
    failures: u32,
    out_of_place: u32,
}

/// What [`Authenticated`] has beside the transport.
struct Found {
    login: Login,
    domain: String,
    lang: Option<Box<str>>,
    stream_id: String,
    facts: TlsFacts,
}

async fn next_element(transport: &mut Transport) -> Result<Element, Failed> {
    match transport.next_frame().await? {
        None => Err(Failed::Gone("closed")),
        Some(Frame::Close) => Err(Failed::Closed),
        Some(Frame::Open(_)) => Err(StreamCondition::BadFormat.into()),
        Some(Frame::Element(element)) => Ok(element),
    }
}

fn is_oversize(transport: &mut Transport) -> bool {
    transport.frame_error() == Some(FrameError::PolicyViolation(Limit::StanzaBytes))
}

fn count_out_of_place(count: &mut u32) -> Result<(), Failed> {
    *count += 1;
    if *count > OUT_OF_PLACE_LIMIT {
        return Err(StreamCondition::PolicyViolation.into());
    }
    Ok(())
}

/// The answer to an element that has no place before authentication, or the end of the stream.
fn out_of_turn(element: &Element) -> Result<String, StreamError> {
    let name = &*element.header.name;
    match &*element.header.ns {
        // XEP-0198 §3: only after resource binding.
        ns::SM if matches!(name, "enable" | "resume") => Ok(format!(
            "<failed xmlns='{}'><unexpected-request xmlns='{}'/></failed>",
            ns::SM,
            ns::STANZA_ERRORS
        )),
        // Never offered (XEP-0138 §3).
        ns::COMPRESS if name == "compress" => Ok(format!(
            "<failure xmlns='{}'><unsupported-method/></failure>",
            ns::COMPRESS
        )),
        // RFC 6120 §4.9.3.12: a stanza before the stream is authenticated.
        _ if kind_of(element).is_some() => Err(StreamError::new(StreamCondition::NotAuthorized)),
        ns::SM => Err(StreamError::new(StreamCondition::NotAuthorized)),
        _ => Err(StreamError::new(StreamCondition::UnsupportedStanzaType)), // §4.9.3.24
    }
}

fn data_element(name: &str, data: &[u8]) -> String {
    format!(
        "<{name} xmlns='{}'>{}</{name}>",
        ns::SASL,
        STANDARD.encode(data)
    )
}
