//! Certificates of the hosted domains, their reload, and the TLS handshake of a client (RFC 6120
//! §5, RFC 7590, XEP-0368).
//!
//! Refuses to make certificates (`authority` does) and to send anything in clear text.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use chancery_runtime::Clock;

use crate::sasl::channel_binding;
use crate::transport::TLS_SEND_LIMIT;

/// Bytes of one certificate or key file.
const FILE_BYTES: u64 = 1024 * 1024;
/// The protocol name of a direct TLS client (XEP-0368 §4).
const ALPN: &[u8] = b"xmpp-client";

/// Where the certificate of a domain is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The hosted domain.
    pub domain: String,
    /// PEM file with the certificate and its intermediates.
    pub chain: PathBuf,
    /// PEM file with the private key, not readable for others.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("certificate of {domain}: {problem}")]
pub struct TlsError {
    /// The domain it is for.
    pub domain: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has no certificate or key in it, or a broken one.
    #[error("{path} is not PEM with a {what}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// Certificate or key.
        what: &'static str,
    },
    /// Others may read the private key.
    #[error("{path} is readable for everybody")]
    Exposed {
        /// The key file.
        path: PathBuf,
    },
    /// The certificate is no X.509.
    #[error("{path} has a certificate that cannot be decoded")]
    Decode {
        /// The chain file.
        path: PathBuf,
    },
    /// The key is another one's, or of a kind that is not supported.
    #[error("the private key does not fit: {0}")]
    Key(rustls::Error),
    /// It is over.
    #[error("expired")]
    Expired,
    /// It has not begun.
    #[error("not valid yet")]
    NotYet,
    /// Its subjectAltName does not name the domain; the common name does not count (RFC 9525).
    #[error("does not name the domain")]
    Name,
    /// There is no certificate at all.
    #[error("none given")]
    None,
}

/// The certificate of one domain, ready to be shown.
#[derive(Debug)]
pub struct Identity {
    domain: String,
    starttls: Arc<ServerConfig>,
    direct: Arc<ServerConfig>,
    end_point: Option<Box<[u8]>>,
    not_after: i64,
}

impl Identity {
    /// The hash of this certificate for `tls-server-end-point`, if its signature defines one.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// When it expires, in seconds since the Unix epoch.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
}

/// How a client stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// In clear text, with STARTTLS.
    Plain,
    /// With TLS.
    Tls,
}

/// The certificates of all domains, the default one first.
pub struct Certificates {
    files: Vec<CertificateFiles>,
    clock: Clock,
    provider: Arc<CryptoProvider>,
    loaded: ArcSwap<Vec<Arc<Identity>>>,
}

impl Certificates {
    /// Reads all; names every problem.
    pub fn load(files: Vec<CertificateFiles>, clock: Clock) -> Result<Arc<Self>, Vec<TlsError>> {
        if files.is_empty() {
            return Err(vec![TlsError {
                domain: "any domain".into(),
                problem: Problem::None,
            }]);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let loaded = ArcSwap::from_pointee(read_all(&files, &clock, &provider)?);
        Ok(Arc::new(Self {
            files,
            clock,
            provider,
            loaded,
        }))
    }

    /// Reads the files again. All are in order and replace the old ones for new handshakes, or
    /// the old ones stay and every problem is named. Live connections keep what they saw.
    pub fn reload(&self) -> Result<(), Vec<TlsError>> {
        let fresh = read_all(&self.files, &self.clock, &self.provider)?;
        self.loaded.store(Arc::new(fresh));
        Ok(())
    }

    /// Domains, and when their certificates expire in seconds since the Unix epoch.
    pub fn expiries(&self) -> Vec<(String, i64)> {
        let loaded = self.loaded.load();
        loaded
            .iter()
            .map(|identity| (identity.domain.clone(), identity.not_after))
            .collect()
    }

    /// The certificate for the name that the client asks TLS for, else for the domain it named
    /// in its stream header (RFC 6120 §13.7.2), else the default one, which it will refuse.
    fn pick(&self, sni: Option<&str>, header: Option<&str>) -> Option<Arc<Identity>> {
        let loaded = self.loaded.load();
        let of = |name: &str| {
            loaded
                .iter()
                .find(|identity| identity.domain.eq_ignore_ascii_case(name))
        };
        let named = sni.and_then(of).or_else(|| header.and_then(of));
        named.or_else(|| loaded.first()).cloned()
    }

    /// Makes the TLS handshake; `room` bounds how many are under way once a client hello is
    /// complete. Returns the certificate that this connection saw. The deadline is the caller's.
    pub async fn accept(
        &self,
        socket: TcpStream,
        begins: Begins,
        domain: Option<&str>,
        room: &Semaphore,
    ) -> io::Result<(TlsStream<TcpStream>, Arc<Identity>)> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let _room = room.acquire().await.map_err(io::Error::other)?;
        let sni = start.client_hello().server_name().map(str::to_owned);
        let identity = self
            .pick(sni.as_deref(), domain)
            .ok_or_else(|| io::Error::other("no certificate"))?;
        let config = match begins {
            Begins::Plain => Arc::clone(&identity.starttls),
            Begins::Tls => Arc::clone(&identity.direct),
        };
        let accept = start.into_stream_with(config, |connection| {
            connection.set_buffer_limit(Some(TLS_SEND_LIMIT));
        });
        Ok((accept.await?, identity))
    }
}

fn read_all(
    files: &[CertificateFiles],
    clock: &Clock,
    provider: &Arc<CryptoProvider>,
) -> Result<Vec<Arc<Identity>>, Vec<TlsError>> {
    let mut identities = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    for one in files {
        match read(one, clock.now_unix_ms() / 1000, provider) {
            Ok(identity) => identities.push(Arc::new(identity)),
            Err(problem) => problems.push(TlsError {
                domain: one.domain.clone(),
                problem,
            }),
        }
    }
    if problems.is_empty() {
        Ok(identities)
    } else {
        Err(problems)
    }
}

fn read(
    files: &CertificateFiles,
    now: i64,
    provider: &Arc<CryptoProvider>,
) -> Result<Identity, Problem> {
    let (chain, key) = read_pem(&files.chain, &files.key)?;
    let undecoded = || Problem::Decode {
        path: files.chain.clone(),
    };
    let leaf = chain.first().ok_or_else(undecoded)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| undecoded())?;
    let not_after = parsed.validity().not_after.timestamp();
    if now >= not_after {
        return Err(Problem::Expired);
    }
    if now < parsed.validity().not_before.timestamp() {
        return Err(Problem::NotYet);
    }
    if !names(&parsed, &files.domain) {
        return Err(Problem::Name);
    }
    let end_point = channel_binding::end_point_hash(leaf, &parsed);
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(Problem::Key)?;
    let starttls = server_config(certified, provider).map_err(Problem::Key)?;
    let mut direct = starttls.clone();
    // A client that offers other protocols only is refused; one that offers none is let in.
    direct.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Identity {
        domain: files.domain.clone(),
        starttls: Arc::new(starttls),
        direct: Arc::new(direct),
        end_point,
        not_after,
    })
}

/// Reads a chain and its key.
pub(crate) fn read_pem(
    chain: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Problem> {
    let bad = |path: &Path, what| Problem::Pem {
        path: path.to_owned(),
        what,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read_file(chain)?)
        .collect::<Result<_, _>>()
        .map_err(|_| bad(chain, "certificate"))?;
    if certificates.is_empty() {
        return Err(bad(chain, "certificate"));
    }
    if is_exposed(key) {
        return Err(Problem::Exposed {
            path: key.to_owned(),
        });
    }
    let private =
        PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(|_| bad(key, "private key"))?;
    Ok((certificates, private))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let failed = |error| Problem::Read {
        path: path.to_owned(),
        error,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES {
        return Err(failed(io::Error::other("too large")));
    }
    std::fs::read(path).map_err(failed)
}

fn is_exposed(key: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(key).is_ok_and(|found| found.permissions().mode() & 0o007 != 0)
}

/// Whether the subjectAltName has the domain, as a dNSName with or without a wildcard.
fn names(certificate: &X509Certificate<'_>, domain: &str) -> bool {
    let Ok(Some(san)) = certificate.subject_alternative_name() else {
        return false;
    };
    let parent = domain.split_once('.').map(|(_, parent)| parent);
    san.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(name) => {
            name.eq_ignore_ascii_case(domain)
                || name
                    .strip_prefix("*.")
                    .is_some_and(|rest| parent.is_some_and(|p| p.eq_ignore_ascii_case(rest)))
        }
        _ => false,
    })
}

fn server_config(
    certified: CertifiedKey,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // RFC 9266 §4.2: without the extended master secret an exporter binds nothing.
    config.require_ems = true;
    // Sessions are resumed by tickets, not from memory. The keys are of this certificate alone: a
    // session made under an earlier one is not resumed, so that tls-server-end-point is always
    // that of the certificate which the client has seen.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}
