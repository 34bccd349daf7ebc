//! One load client: logs in as fast as it can, then reads by looking for a few words. No XML tree.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as B64;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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

/// A session.
pub struct Probe {
    /// The stream.
    pub tls: TlsStream<TcpStream>,
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
        let mut tcp = TcpStream::connect(account.address).await?;
        tcp.set_nodelay(true)?;
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
        write(
            &mut tls,
            &format!(
                "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                 <resource>{resource}</resource></bind></iq>"
            ),
        )
        .await?;
        let bound = until(&mut tls, &["</iq>"]).await?;
        if !bound.contains("<jid>") {
            bail!("not bound: {bound}");
        }
        Ok(Self { tls })
    }

    /// Stream management and carbons on.
    pub async fn equip(&mut self) -> Result<()> {
        write(&mut self.tls, "<enable xmlns='urn:xmpp:sm:3'/>").await?;
        until(&mut self.tls, &["<enabled", "<failed"]).await?;
        write(
            &mut self.tls,
            "<iq type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>",
        )
        .await?;
        let answer = until(&mut self.tls, &["id='c'", "id=\"c\""]).await?;
        // Only this answer: a peer may have sent other errors.
        let iq = answer.rfind("<iq").map_or("", |at| &answer[at..]);
        if iq.contains("type='error'") || iq.contains("type=\"error\"") {
            bail!("no carbons: {answer}");
        }
        Ok(())
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
