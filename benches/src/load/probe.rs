//! One load client: logs in as fast as it can, then reads by looking for a few words. No XML tree.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as B64;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::live::is_end;

/// Salted passwords by user and salt: only the server's work is to be measured.
pub type Salted = Arc<Mutex<HashMap<(String, String), [u8; 20]>>>;

/// Where and as whom.
#[derive(Clone)]
pub struct Account {
    /// STARTTLS listener.
    pub address: SocketAddr,
    /// Domain.
    pub domain: String,
    /// Localpart.
    pub user: String,
    /// Password.
    pub password: String,
    /// TLS.
    pub tls: Arc<rustls::ClientConfig>,
    /// Shared cache.
    pub salted: Salted,
}

impl Account {
    /// Its bare JID.
    pub fn bare(&self) -> String {
        format!("{}@{}", self.user, self.domain)
    }
}

/// What a session turns on after bind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Equip {
    /// Nothing.
    Nothing,
    /// Stream management and carbons.
    Chat,
    /// The same, and it asks for the roster.
    Roster,
    /// The same, and it may be resumed where the server has that.
    Resumable,
}

/// A session.
pub struct Probe {
    /// The stream.
    pub tls: TlsStream<TcpStream>,
    /// By which it may be resumed.
    pub sm_id: Option<String>,
    /// Stanzas that came since stream management was enabled.
    pub stanzas: u64,
}

/// Source addresses that take turns: the ports of one are soon all in TIME_WAIT.
const SOURCES: u8 = 8;
static SOURCE: AtomicU8 = AtomicU8::new(0);

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let source = SOURCE.fetch_add(1, Ordering::Relaxed) % SOURCES;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + source), 0)))?;
    let tcp = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                      xmlns:stream='http://etherx.jabber.org/streams' version='1.0' to='";

async fn until(stream: &mut (impl AsyncReadExt + Unpin), ends: &[&str]) -> Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            bail!("closed: {}", String::from_utf8_lossy(&text));
        }
        text.extend_from_slice(&chunk[..n]);
        let so_far = String::from_utf8_lossy(&text);
        if ends.iter().any(|end| so_far.contains(end)) {
            return Ok(so_far.into_owned());
        }
    }
}

fn between<'a>(text: &'a str, open: &str, close: char) -> Option<&'a str> {
    let from = text.find(open)? + open.len();
    let rest = &text[from..];
    Some(&rest[..rest.find(close)?])
}

impl Probe {
    /// TCP connect to bind.
    pub async fn login(account: &Account, resource: &str) -> Result<Self> {
        let mut probe = Self::authenticate(account).await?;
        probe.bind(resource).await?;
        Ok(probe)
    }

    /// TCP connect to the features behind SASL.
    pub async fn authenticate(account: &Account) -> Result<Self> {
        let mut tcp = connect(account.address).await?;
        let header = format!("{HEADER}{}'>", account.domain);
        tcp.write_all(header.as_bytes()).await?;
        until(&mut tcp, &["</stream:features>"]).await?;
        tcp.write_all(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .await?;
        until(&mut tcp, &["<proceed"]).await?;
        let name = ServerName::try_from(account.domain.clone())?;
        let mut tls = TlsConnector::from(Arc::clone(&account.tls))
            .connect(name, tcp)
            .await?;
        write(&mut tls, &header).await?;
        until(&mut tls, &["</stream:features>"]).await?;
        scram(&mut tls, account).await?;
        write(&mut tls, &header).await?;
        until(&mut tls, &["</stream:features>"]).await?;
        Ok(Self {
            tls,
            sm_id: None,
            stanzas: 0,
        })
    }

    /// Binds a resource.
    pub async fn bind(&mut self, resource: &str) -> Result<()> {
        write(
            &mut self.tls,
            &format!(
                "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                 <resource>{resource}</resource></bind></iq>"
            ),
        )
        .await?;
        let bound = until(&mut self.tls, &["</iq>"]).await?;
        if !bound.contains("<jid>") {
            bail!("not bound: {bound}");
        }
        Ok(())
    }

    /// Turns on what `equip` says.
    pub async fn equip(&mut self, equip: Equip) -> Result<()> {
        if equip == Equip::Nothing {
            return Ok(());
        }
        let enable = if equip == Equip::Resumable {
            "<enable xmlns='urn:xmpp:sm:3' resume='true'/>"
        } else {
            "<enable xmlns='urn:xmpp:sm:3'/>"
        };
        write(&mut self.tls, enable).await?;
        let enabled = until(&mut self.tls, &["<enabled", "<failed"]).await?;
        self.sm_id = ["id='", "id=\""]
            .iter()
            .find_map(|id| between(&enabled, &format!(" {id}"), id.chars().last()?))
            .filter(|_| equip == Equip::Resumable && enabled.contains("resume="))
            .map(ToOwned::to_owned);
        write(
            &mut self.tls,
            "<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>",
        )
        .await?;
        let answer = self.answer("c").await?;
        if answer.contains("type='error'") || answer.contains("type=\"error\"") {
            bail!("no carbons: {answer}");
        }
        if equip != Equip::Chat {
            self.roster().await?;
        }
        // A server may have asked with the first answer; one that gets no answer to that may ask
        // no more, keep all that it sends, and end the session (XEP-0198 §4, ejabberd).
        if !enabled.contains("<failed") {
            let h = self.stanzas;
            self.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>"))
                .await?;
        }
        Ok(())
    }

    /// Asks for the roster.
    pub async fn roster(&mut self) -> Result<String> {
        let get = "<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>";
        write(&mut self.tls, get).await?;
        self.answer("roster").await
    }

    /// Resumes a session on this stream; false where the server does not.
    pub async fn resume(&mut self, id: &str, h: u64) -> Result<bool> {
        let resume = format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{h}'/>");
        write(&mut self.tls, &resume).await?;
        let answer = until(&mut self.tls, &["<resumed", "<failed"]).await?;
        Ok(answer.contains("<resumed"))
    }

    /// What comes until the answer to this IQ is whole; counts the stanzas in it.
    async fn answer(&mut self, id: &str) -> Result<String> {
        let ids = [format!("id='{id}'"), format!("id=\"{id}\"")];
        let mut text = String::new();
        loop {
            text.push_str(&until(&mut self.tls, &[">"]).await?);
            // Only this answer: a peer may have sent other errors.
            let found = ids.iter().find_map(|id| text.rfind(id.as_str()));
            let Some(from) = found.and_then(|at| text[..at].rfind("<iq")) else {
                continue;
            };
            let iq = &text[from..];
            let alone = iq.find('>').is_some_and(|end| iq[..end].ends_with('/'));
            if alone || iq.contains("</iq>") {
                let tags = text.split_inclusive('>').map(str::as_bytes);
                self.stanzas += tags.filter(|tag| is_end(tag)).count() as u64;
                return Ok(iq.to_owned());
            }
        }
    }

    /// Writes.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        write(&mut self.tls, text).await
    }
}

async fn write(tls: &mut TlsStream<TcpStream>, text: &str) -> Result<()> {
    tls.write_all(text.as_bytes()).await?;
    tls.flush().await?;
    Ok(())
}

async fn scram(tls: &mut TlsStream<TcpStream>, account: &Account) -> Result<()> {
    let first = format!("n={},r=loadloadload", account.user);
    write(
        tls,
        &format!(
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>{}</auth>",
            B64.encode(format!("n,,{first}"))
        ),
    )
    .await?;
    let challenge = until(tls, &["</challenge>", "</failure>"]).await?;
    let at = challenge.find("<challenge").context("no challenge")?;
    let data = between(&challenge[at..], ">", '<').context("no data")?;
    let server_first = String::from_utf8(B64.decode(data)?)?;
    let field = |name: &str| server_first.split(',').find_map(|f| f.strip_prefix(name));
    let (nonce, salt) = (field("r=").context("r")?, field("s=").context("s")?);
    let iterations: std::num::NonZeroU32 = field("i=").context("i")?.parse()?;
    let key = (account.user.clone(), salt.to_owned());
    let known = account
        .salted
        .lock()
        .ok()
        .and_then(|cache| cache.get(&key).copied());
    let salted = match known {
        Some(salted) => salted,
        None => {
            let mut out = [0u8; 20];
            pbkdf2::derive(
                pbkdf2::PBKDF2_HMAC_SHA1,
                iterations,
                &B64.decode(salt)?,
                account.password.as_bytes(),
                &mut out,
            );
            if let Ok(mut cache) = account.salted.lock() {
                cache.insert(key, out);
            }
            out
        }
    };
    let mac = |key: &[u8], data: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
        hmac::sign(&key, data).as_ref().to_vec()
    };
    let client_key = mac(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &client_key);
    let without_proof = format!("c=biws,r={nonce}");
    let auth = format!("{first},{server_first},{without_proof}");
    let signature = mac(stored.as_ref(), auth.as_bytes());
    let proof: Vec<u8> = client_key
        .iter()
        .zip(signature)
        .map(|(a, b)| a ^ b)
        .collect();
    let last = B64.encode(format!("{without_proof},p={}", B64.encode(proof)));
    write(
        tls,
        &format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{last}</response>"),
    )
    .await?;
    let outcome = until(tls, &["</success>", "</failure>", "<success"]).await?;
    if !outcome.contains("<success") {
        bail!("refused: {outcome}");
    }
    Ok(())
}
