//! A raw connection to a server: bytes out, frames in, plain or under TLS. For hostile input too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chancery_xml::{Element, Frame, Framer, Limits, StreamHeader};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a client takes from a server: more than a server takes, a roster of thousands.
const LIMITS: Limits = Limits {
    stanza_bytes: 4 * 1024 * 1024,
    elements: 100_000,
    ..Limits::internal()
};

/// A byte stream, plain or under TLS.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// A connection.
pub struct Wire {
    io: Box<dyn Bytes>,
    framer: Framer,
    /// RFC 9266 exporter, once TLS is up.
    pub exporter: Option<[u8; 32]>,
    /// The certificate that the server showed.
    pub certificate: Option<Vec<u8>>,
    /// The features of the authenticated stream, as written.
    pub features: String,
}

/// What comes in.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// The server's stream header.
    Open(Box<StreamHeader>),
    /// A top-level element.
    Element(Element),
    /// The closing tag.
    Close,
    /// The end of TCP or TLS.
    End,
}

/// TLS configuration that trusts one authority.
pub fn trusting(authority_pem: &[u8], alpn: Option<&str>) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn
        .map(|name| name.as_bytes().to_vec())
        .into_iter()
        .collect();
    Ok(Arc::new(config))
}

impl Wire {
    /// Connects, without TLS.
    pub async fn plain(address: SocketAddr) -> Result<Self> {
        Ok(Self::over(Box::new(connect(address).await?)))
    }

    /// Connects with TLS from the first byte.
    pub async fn direct(
        address: SocketAddr,
        domain: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self> {
        let name = ServerName::try_from(domain.to_owned())?;
        let stream = TlsConnector::from(tls)
            .connect(name, connect(address).await?)
            .await?;
        Self::under_tls(stream)
    }

    /// Connects, asks for STARTTLS (RFC 6120 §5), and is under TLS when this returns.
    pub async fn starttls(
        address: SocketAddr,
        domain: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self> {
        Self::starttls_from(None, address, domain, tls).await
    }

    /// The same, from a given address of this machine.
    pub async fn starttls_from(
        source: Option<IpAddr>,
        address: SocketAddr,
        domain: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self> {
        let mut tcp = connect_from(source, address).await?;
        let mut framer = Framer::new(LIMITS);
        tcp.write_all(header(domain).as_bytes()).await?;
        read_until(&mut tcp, &mut framer, "features").await?;
        tcp.write_all(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .await?;
        read_until(&mut tcp, &mut framer, "proceed").await?;
        let name = ServerName::try_from(domain.to_owned())?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await?;
        Self::under_tls(stream)
    }

    /// The handshake on a connection that is in clear text; what was read of it is forgotten.
    pub async fn upgrade(self, domain: &str, tls: Arc<rustls::ClientConfig>) -> Result<Self> {
        let name = ServerName::try_from(domain.to_owned())?;
        let connecting = TlsConnector::from(tls).connect(name, self.io);
        Self::under_tls(tokio::time::timeout(PATIENCE, connecting).await??)
    }

    fn under_tls<S: Bytes + 'static>(stream: TlsStream<S>) -> Result<Self> {
        let (_, session) = stream.get_ref();
        // RFC 9266 §2: a context of length zero, which before TLS 1.3 is not the same as none.
        let exporter = session
            .export_keying_material([0u8; 32], b"EXPORTER-Channel-Binding", Some(b""))
            .ok();
        let certificate = session
            .peer_certificates()
            .and_then(|all| all.first())
            .map(|c| c.to_vec());
        let mut wire = Self::over(Box::new(stream));
        wire.exporter = exporter;
        wire.certificate = certificate;
        Ok(wire)
    }

    fn over(io: Box<dyn Bytes>) -> Self {
        let framer = Framer::new(LIMITS);
        Self {
            io,
            framer,
            exporter: None,
            certificate: None,
            features: String::new(),
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let write = async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        };
        tokio::time::timeout(PATIENCE, write)
            .await
            .context("the server does not read")??;
        Ok(())
    }

    /// Sends a stream header and expects a new one.
    pub async fn open(&mut self, domain: &str) -> Result<()> {
        self.framer.reset();
        self.send(header(domain)).await
    }

    /// The next thing that comes in. Cancel-safe.
    pub async fn next(&mut self) -> Result<Incoming> {
        loop {
            match self
                .framer
                .next()
                .map_err(|e| anyhow::anyhow!("server sent bad XML: {e:?}"))?
            {
                Some(Frame::Open(header)) => return Ok(Incoming::Open(Box::new(header))),
                Some(Frame::Element(element)) => return Ok(Incoming::Element(element)),
                Some(Frame::Close) => return Ok(Incoming::Close),
                None => {}
            }
            let mut buffer = [0u8; 8192];
            match self.io.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(Incoming::End),
                Ok(n) => self.framer.push(&buffer[..n]),
            }
        }
    }

    /// The next thing, within the patience of a test.
    pub async fn expect(&mut self) -> Result<Incoming> {
        tokio::time::timeout(PATIENCE, self.next())
            .await
            .context("nothing came")?
    }

    /// The next element.
    pub async fn element(&mut self) -> Result<Element> {
        loop {
            match self.expect().await? {
                Incoming::Open(_) => {}
                Incoming::Element(element) => return Ok(element),
                other => bail!("expected an element, got {other:?}"),
            }
        }
    }

    /// Sends bytes, whether they are read or not, and gives what comes back until the connection ends:
    /// for hostile input. Fails when it does not end.
    pub async fn answer_to(self, bytes: &[u8]) -> Result<String> {
        let (mut reading, mut writing) = tokio::io::split(self.io);
        let write = async {
            // The server may close before it has read everything.
            for chunk in bytes.chunks(16 * 1024) {
                if writing.write_all(chunk).await.is_err() || writing.flush().await.is_err() {
                    break;
                }
            }
        };
        let read = async {
            let mut all = Vec::new();
            let mut buffer = [0u8; 8192];
            loop {
                match reading.read(&mut buffer).await {
                    Ok(0) | Err(_) => break String::from_utf8_lossy(&all).into_owned(),
                    Ok(n) => all.extend_from_slice(&buffer[..n]),
                }
            }
        };
        let both = async { tokio::join!(write, read).1 };
        tokio::time::timeout(PATIENCE, both)
            .await
            .context("the connection does not end")
    }
}

/// A client's stream header.
pub fn header(domain: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='{domain}' version='1.0'>"
    )
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    connect_from(None, address).await
}

async fn connect_from(source: Option<IpAddr>, address: SocketAddr) -> Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let tcp = tokio::time::timeout(PATIENCE, socket.connect(address)).await??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn read_until(tcp: &mut TcpStream, framer: &mut Framer, name: &str) -> Result<()> {
    let mut buffer = [0u8; 4096];
    loop {
        while let Some(frame) = framer
            .next()
            .map_err(|e| anyhow::anyhow!("server sent bad XML: {e:?}"))?
        {
            if let Frame::Element(element) = frame {
                if &*element.header.name == name {
                    return Ok(());
                }
                bail!("expected <{name}/>, got {:?}", element.bytes);
            }
        }
        let n = tokio::time::timeout(PATIENCE, tcp.read(&mut buffer)).await??;
        if n == 0 {
            bail!("closed before <{name}/>");
        }
        framer.push(&buffer[..n]);
    }
}
