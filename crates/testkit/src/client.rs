//! A client for tests: logs in, sends what it is told, hands out what comes, keeps XEP-0198 counts.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as B64;
use chancery_xml::Element;

use crate::scram::Scram;
use crate::wire::{Incoming, PATIENCE, Wire};

const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const SM: &str = "urn:xmpp:sm:3";

/// How a client logs in.
#[derive(Clone)]
pub struct Login {
    /// Address of the listener.
    pub address: SocketAddr,
    /// TLS from the first byte, or STARTTLS.
    pub direct: bool,
    /// Trust.
    pub tls: Arc<rustls::ClientConfig>,
    /// Domain of the account.
    pub domain: String,
    /// Localpart.
    pub user: String,
    /// Password.
    pub password: String,
    /// Resource asked for.
    pub resource: Option<String>,
    /// SASL mechanism.
    pub mechanism: String,
}

/// A bound session.
pub struct Client {
    /// The connection.
    pub wire: Wire,
    /// Full JID as the server bound it.
    pub jid: String,
    /// Stanzas received so far, as XEP-0198 counts them; from `<enable/>`.
    pub received: u32,
    /// Stanzas sent so far, from `<enable/>`.
    pub sent: u32,
    /// The server's last `h`.
    pub acknowledged: u32,
    /// Stanzas sent that the server has not acknowledged.
    pub unsettled: VecDeque<String>,
    /// Whether stream management is on.
    pub managed: bool,
    /// Whether `<r/>` is answered by itself.
    pub answers: bool,
    /// Whether the last broadcast presence was an available one.
    pub available: bool,
    /// Read ahead while something else was awaited.
    pub waiting: VecDeque<Incoming>,
    next_id: u32,
}

/// What is left of a client that lost its stream.
#[derive(Clone)]
pub struct Past {
    /// Full JID.
    pub jid: String,
    /// Stanzas received.
    pub received: u32,
    sent: u32,
    acknowledged: u32,
    unsettled: VecDeque<String>,
    available: bool,
    next_id: u32,
}

/// Connects and goes through SASL; the stream is restarted and its features read.
pub async fn authenticate(login: &Login) -> Result<Wire> {
    let mut wire = if login.direct {
        Wire::direct(login.address, &login.domain, Arc::clone(&login.tls)).await?
    } else {
        Wire::starttls(login.address, &login.domain, Arc::clone(&login.tls)).await?
    };
    wire.open(&login.domain).await?;
    wire.element().await?;
    if login.mechanism == "PLAIN" {
        let text = B64.encode(format!("\0{}\0{}", login.user, login.password));
        wire.send(format!(
            "<auth xmlns='{SASL}' mechanism='PLAIN'>{text}</auth>"
        ))
        .await?;
        let answer = wire.element().await?;
        if !answer.is("success", SASL) {
            bail!("{}", String::from_utf8_lossy(&answer.bytes));
        }
    } else {
        scram(&mut wire, login).await?;
    }
    wire.open(&login.domain).await?;
    let features = wire.element().await?;
    wire.features = String::from_utf8_lossy(&features.bytes).into_owned();
    Ok(wire)
}

async fn scram(wire: &mut Wire, login: &Login) -> Result<()> {
    let sha256 = login.mechanism.contains("SHA-256");
    let exporter = wire.exporter;
    let endpoint = wire
        .certificate
        .as_ref()
        .map(|der| digest::digest(&digest::SHA256, der).as_ref().to_vec());
    let (mechanism, binding) = if let Some(name) = login.mechanism.strip_suffix("/endpoint") {
        (
            name,
            Some(("tls-server-end-point", endpoint.context("no certificate")?)),
        )
    } else if login.mechanism.ends_with("-PLUS") {
        let data = exporter.context("no exporter")?.to_vec();
        (login.mechanism.as_str(), Some(("tls-exporter", data)))
    } else {
        (login.mechanism.as_str(), None)
    };
    let nonce = format!("n{:x}", std::process::id());
    let bound = binding
        .as_ref()
        .map(|(name, data)| (*name, data.as_slice()));
    let mut scram = Scram::new(sha256, &login.user, &login.password, &nonce, bound);
    let first = B64.encode(scram.first());
    wire.send(format!(
        "<auth xmlns='{SASL}' mechanism='{mechanism}'>{first}</auth>"
    ))
    .await?;
    let challenge = wire.element().await?;
    if !challenge.is("challenge", SASL) {
        bail!("{}", String::from_utf8_lossy(&challenge.bytes));
    }
    let server_first = String::from_utf8(B64.decode(challenge.text())?)?;
    let last = B64.encode(scram.last(&server_first)?);
    wire.send(format!("<response xmlns='{SASL}'>{last}</response>"))
        .await?;
    let outcome = wire.element().await?;
    if !outcome.is("success", SASL) {
        bail!("{}", String::from_utf8_lossy(&outcome.bytes));
    }
    scram.verify(&String::from_utf8(B64.decode(outcome.text())?)?)
}

impl Client {
    /// Logs in and binds.
    pub async fn login(login: &Login) -> Result<Self> {
        Self::bind(authenticate(login).await?, login).await
    }

    /// Binds on an authenticated stream.
    pub async fn bind(mut wire: Wire, login: &Login) -> Result<Self> {
        let resource = login
            .resource
            .as_ref()
            .map(|r| format!("<resource>{r}</resource>"))
            .unwrap_or_default();
        wire.send(format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>{resource}</bind></iq>"
        ))
        .await?;
        let bound = wire.element().await?;
        let text = String::from_utf8_lossy(&bound.bytes).into_owned();
        let jid = text
            .split_once("<jid>")
            .and_then(|(_, rest)| rest.split_once("</jid>"))
            .map(|(jid, _)| jid.to_owned());
        let Some(jid) = jid else {
            bail!("not bound: {text}")
        };
        Ok(Self {
            wire,
            jid,
            received: 0,
            sent: 0,
            acknowledged: 0,
            unsettled: VecDeque::new(),
            managed: false,
            answers: true,
            available: false,
            waiting: VecDeque::new(),
            next_id: 0,
        })
    }

    /// The bare JID.
    pub fn bare(&self) -> &str {
        self.jid.split('/').next().unwrap_or(&self.jid)
    }

    /// Goes on with the session of a client that lost its stream, on an authenticated stream which
    /// has `<resumed h=''/>` behind it: says again what the server has not handled.
    pub async fn resume(wire: Wire, past: Past, h: u32) -> Result<Self> {
        let mut client = Self {
            wire,
            jid: past.jid,
            received: past.received,
            sent: past.sent,
            acknowledged: past.acknowledged,
            unsettled: past.unsettled,
            managed: true,
            answers: true,
            available: past.available,
            waiting: VecDeque::new(),
            next_id: past.next_id,
        };
        client.settle(h);
        for stanza in client.unsettled.clone() {
            client.wire.send(&stanza).await?;
        }
        Ok(client)
    }

    /// What has to be known of it to go on with another stream.
    pub fn past(&self) -> Past {
        Past {
            jid: self.jid.clone(),
            received: self.received,
            sent: self.sent,
            acknowledged: self.acknowledged,
            unsettled: self.unsettled.clone(),
            available: self.available,
            next_id: self.next_id,
        }
    }

    /// The server has handled so many.
    fn settle(&mut self, h: u32) {
        // A test may have written to the wire by itself.
        let count = h.wrapping_sub(self.acknowledged) as usize;
        self.unsettled.drain(..count.min(self.unsettled.len()));
        self.acknowledged = h;
    }

    /// Turns stream management on; gives its id.
    pub async fn enable(&mut self) -> Result<String> {
        self.enable_with("").await
    }

    /// The same, with attributes of `<enable/>`.
    pub async fn enable_with(&mut self, attributes: &str) -> Result<String> {
        self.wire
            .send(format!("<enable xmlns='{SM}'{attributes}/>"))
            .await?;
        let enabled = self
            .wait(|e| e.is("enabled", SM) || e.is("failed", SM))
            .await?;
        if !enabled.is("enabled", SM) {
            bail!("{}", String::from_utf8_lossy(&enabled.bytes));
        }
        self.managed = true;
        self.received = 0;
        self.sent = 0;
        self.unsettled.clear();
        Ok(enabled
            .header
            .attr("id")
            .or(enabled.header.id.as_deref())
            .unwrap_or("")
            .to_owned())
    }

    /// Sends a stanza.
    pub async fn send(&mut self, stanza: impl AsRef<str>) -> Result<()> {
        let text = stanza.as_ref();
        if ["<message", "<presence", "<iq"]
            .iter()
            .any(|name| text.starts_with(name))
        {
            self.sent = self.sent.wrapping_add(1);
            if self.managed {
                self.unsettled.push_back(text.to_owned());
            }
        }
        if text.starts_with("<presence") {
            let tag = text.split('>').next().unwrap_or(text);
            if !tag.contains(" to=") {
                self.available = !tag.contains(" type=");
            }
        }
        self.wire.send(text).await
    }

    /// The next stanza or end; stream management's own elements are taken care of.
    pub async fn next(&mut self) -> Result<Incoming> {
        if let Some(first) = self.waiting.pop_front() {
            return Ok(first);
        }
        self.next_from_wire().await
    }

    async fn next_from_wire(&mut self) -> Result<Incoming> {
        loop {
            let incoming = self.wire.next().await?;
            let Incoming::Element(element) = &incoming else {
                return Ok(incoming);
            };
            if &*element.header.ns == SM {
                match &*element.header.name {
                    "r" if self.answers => {
                        let h = self.received;
                        self.wire.send(format!("<a xmlns='{SM}' h='{h}'/>")).await?;
                        continue;
                    }
                    "r" => continue,
                    "a" => {
                        if let Some(h) = element.header.attr("h") {
                            let h = h.parse()?;
                            self.settle(h);
                        }
                        continue;
                    }
                    _ => {}
                }
            } else if matches!(&*element.header.name, "message" | "presence" | "iq") {
                self.received = self.received.wrapping_add(1);
            }
            return Ok(incoming);
        }
    }

    /// The next stanza within the patience of a test.
    pub async fn stanza(&mut self) -> Result<Element> {
        let next = tokio::time::timeout(PATIENCE, self.next())
            .await
            .context("nothing came")??;
        match next {
            Incoming::Element(element) => Ok(element),
            other => bail!("expected a stanza, got {other:?}"),
        }
    }

    /// Waits for an element; what comes before it stays to be read.
    pub async fn wait(&mut self, wanted: impl Fn(&Element) -> bool) -> Result<Element> {
        let mut aside = VecDeque::new();
        let found = loop {
            let next = tokio::time::timeout(PATIENCE, self.next_from_wire())
                .await
                .context("nothing came")??;
            match next {
                Incoming::Element(element) if wanted(&element) => break element,
                Incoming::Element(_) | Incoming::Open(_) => aside.push_back(next),
                other => bail!("ended while waiting: {other:?}"),
            }
        };
        self.waiting.append(&mut aside);
        Ok(found)
    }

    /// Sends an IQ to the server and waits for its answer.
    pub async fn query(&mut self, type_: &str, payload: &str) -> Result<Element> {
        self.next_id += 1;
        let id = format!("q{}", self.next_id);
        self.send(format!("<iq type='{type_}' id='{id}'>{payload}</iq>"))
            .await?;
        self.wait(|e| &*e.header.name == "iq" && e.header.id.as_deref() == Some(&id))
            .await
    }

    /// Everything that comes before markers sent now: how "receives nothing" is shown.
    ///
    /// An answered ping alone would only show that the own gateway has nothing more. So a ping to the
    /// own full JID goes the way of messages, and (when available) a presence to it the way of presence:
    /// what was accepted before them arrives before them.
    pub async fn until_marker(&mut self) -> Result<Vec<Element>> {
        let own = self.jid.clone();
        let to = own
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('\'', "&apos;");
        self.next_id += 1;
        let id = format!("marker{}", self.next_id);
        let marks = |e: &Element, name: &str| {
            let back = e.header.from.as_deref() == Some(&own)
                || e.header.type_.as_deref() == Some("error");
            &*e.header.name == name && e.header.id.as_deref() == Some(&id) && back
        };
        let ping = "<ping xmlns='urn:xmpp:ping'/>";
        self.send(format!("<iq type='get' id='{id}' to='{to}'>{ping}</iq>"))
            .await?;
        self.wait(|e| marks(e, "iq"))
            .await
            .context("the marker did not come back")?;
        if self.available {
            self.send(format!("<presence id='{id}' to='{to}'/>"))
                .await?;
            self.wait(|e| marks(e, "presence"))
                .await
                .context("the presence marker did not come back")?;
        }
        self.query("get", ping).await?;
        let aside = std::mem::take(&mut self.waiting);
        Ok(aside
            .into_iter()
            .filter_map(|incoming| match incoming {
                Incoming::Element(element) => Some(element),
                _ => None,
            })
            .collect())
    }

    /// Asks for `h` and waits until the server has acknowledged everything sent.
    pub async fn settled(&mut self) -> Result<()> {
        while self.acknowledged != self.sent {
            self.wire.send(format!("<r xmlns='{SM}'/>")).await?;
            let a = loop {
                let next = tokio::time::timeout(PATIENCE, self.wire.next())
                    .await
                    .context("no acknowledgement")??;
                match next {
                    Incoming::Element(e) if e.is("a", SM) => break e,
                    Incoming::Element(e) if e.is("r", SM) => {
                        let h = self.received;
                        self.wire.send(format!("<a xmlns='{SM}' h='{h}'/>")).await?;
                    }
                    Incoming::Element(e) => {
                        if matches!(&*e.header.name, "message" | "presence" | "iq") {
                            self.received = self.received.wrapping_add(1);
                        }
                        self.waiting.push_back(Incoming::Element(e));
                    }
                    other => bail!("ended while settling: {other:?}"),
                }
            };
            let h = a.header.attr("h").context("no h")?.parse()?;
            self.settle(h);
        }
        Ok(())
    }

    /// Closes the stream politely.
    pub async fn close(mut self) -> Result<()> {
        if self.managed {
            // XEP-0198 §4: what was received is not to come again.
            let h = self.received;
            self.wire.send(format!("<a xmlns='{SM}' h='{h}'/>")).await?;
        }
        self.wire.send("</stream:stream>").await?;
        loop {
            match tokio::time::timeout(PATIENCE, self.wire.next())
                .await
                .context("not closed")??
            {
                Incoming::Close | Incoming::End => return Ok(()),
                _ => {}
            }
        }
    }
}
