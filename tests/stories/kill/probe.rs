//! One probe: a client that sends to its partner, reads everything, comes back after every break (some
//! break off by themselves, again and again), resumes its session where it can, and writes down what it sent, what was acknowledged, and what it read.
//!
//! Owns the client's half of XEP-0198; refuses to judge: that is [`super::load`]'s and the checker's.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use chancery_testkit::checker::{Delivered, Sent};
use chancery_testkit::client::{Login, authenticate};
use chancery_testkit::wire::{Incoming, Wire};
use chancery_xml::Element;
use tokio::sync::watch;

use super::notes::{Bounced, Notebook, Read, Shown};
use super::stanza::{attribute, condition, text, unwrapped};

const SM: &str = "urn:xmpp:sm:3";
const STREAMS: &str = "http://etherx.jabber.org/streams";
const CARBONS: &str = "urn:xmpp:carbons:2";
/// One attempt to log in.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(12);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(150);
/// Of so many acknowledged stanzas a probe remembers what they were.
const SETTLED: usize = 256;
/// How often a probe asks for an acknowledgement.
const ASK: Duration = Duration::from_millis(400);

/// Who a probe is.
#[derive(Clone)]
pub(super) struct Seat {
    pub(super) user: String,
    pub(super) resource: String,
    /// Bare JID written to.
    pub(super) partner: String,
    /// One a gateway.
    pub(super) logins: Vec<Login>,
    pub(super) home: usize,
    /// After a break it tries the other gateway too.
    pub(super) roams: bool,
    pub(super) every: Duration,
    /// Its connection breaks so often without anybody's doing.
    pub(super) breaks: Option<Duration>,
    /// It then ends its session, and begins another.
    pub(super) rebinds: bool,
    /// It sends so many messages, then none.
    pub(super) quota: u64,
    /// When it cannot log in for so long it has not recovered.
    pub(super) patience: Duration,
}

/// What all probes are told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    pub(super) sending: bool,
    /// Raised: whoever is at another gateway goes home.
    pub(super) home: u32,
    /// Raised: send a marker.
    pub(super) marker: u32,
    /// The marker goes the way of messages; else only to the own gateway, which waits for nothing.
    pub(super) routed: bool,
    pub(super) over: bool,
}

/// A stanza that is not acknowledged; with its id when it is a message.
#[derive(Clone)]
struct Unsettled {
    id: Option<String>,
    stanza: String,
}

/// What is left of a broken session.
#[derive(Default)]
struct Past {
    sm_id: String,
    /// The server's last `h`.
    acknowledged: u32,
    /// What it covered last: ids of messages.
    settled: VecDeque<Option<String>>,
    unsettled: VecDeque<Unsettled>,
    received: u32,
}

/// Why a session is over.
#[derive(PartialEq, Eq)]
enum Over {
    Broken,
    Finished,
}

struct Probe {
    seat: Seat,
    orders: watch::Receiver<Orders>,
    notes: Notebook,
    number: u64,
    past: Past,
    /// Known not to be in the log: sent again first thing.
    again: VecDeque<(String, String)>,
    /// As bound.
    jid: String,
    gateway: usize,
    /// Entries since `<enable/>` in the order received: places in the notes, if messages.
    received: Vec<Option<usize>>,
    told: usize,
}

/// Runs a probe until the orders say that it is over.
pub(super) async fn run(seat: Seat, orders: watch::Receiver<Orders>, notes: Notebook) {
    let mut probe = Probe {
        gateway: seat.home,
        jid: format!("{}@{}/{}", seat.user, seat.logins[0].domain, seat.resource),
        seat,
        orders,
        notes,
        number: 0,
        past: Past::default(),
        again: VecDeque::new(),
        received: Vec::new(),
        told: 0,
    };
    loop {
        let over = match probe.connect().await {
            Ok(wire) => probe.live(wire).await,
            Err(error) => Err(error.context("cannot come back")),
        };
        probe.notes.open().connected = false;
        match over {
            Ok(Over::Finished) => return,
            Ok(Over::Broken) => {}
            Err(error) => {
                let who = probe.jid.clone();
                probe
                    .notes
                    .open()
                    .problems
                    .push(format!("{who}: {error:#}"));
                return;
            }
        }
    }
}

impl Probe {
    /// A bound and managed session, within the limit.
    async fn connect(&mut self) -> Result<Wire> {
        let until = Instant::now() + self.seat.patience;
        for attempt in 0.. {
            let shift = if self.seat.roams { attempt } else { 0 };
            self.gateway = (self.seat.home + shift) % self.seat.logins.len();
            let error = match tokio::time::timeout(ATTEMPT_LIMIT, self.attempt()).await {
                Ok(Ok(wire)) => return Ok(wire),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("an attempt took too long"),
            };
            if Instant::now() > until {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("unreachable")
    }

    async fn attempt(&mut self) -> Result<Wire> {
        let mut wire = authenticate(&self.seat.logins[self.gateway]).await?;
        if !self.past.sm_id.is_empty() && self.resume(&mut wire).await? {
            let mut notes = self.notes.open();
            notes.connected = true;
            notes.resumed += 1;
            drop(notes);
            return Ok(wire);
        }
        let resource = &self.seat.resource;
        wire.send(format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <resource>{resource}</resource></bind></iq>"
        ))
        .await?;
        let bound = text(&wire.element().await?);
        if !bound.contains(&format!("<jid>{}</jid>", self.jid)) {
            bail!("not bound: {bound}");
        }
        wire.send(format!("<enable xmlns='{SM}' resume='true'/>"))
            .await?;
        let enabled = wire.element().await?;
        if !enabled.is("enabled", SM) {
            bail!("not managed: {}", text(&enabled));
        }
        let id = enabled
            .header
            .attr("id")
            .or(enabled.header.id.as_deref())
            .context("no id")?;
        self.past = Past {
            sm_id: id.to_owned(),
            ..Past::default()
        };
        self.received.clear();
        self.told = 0;
        self.send(
            &mut wire,
            None,
            format!("<iq type='set' id='c'><enable xmlns='{CARBONS}'/></iq>"),
        )
        .await?;
        self.send(&mut wire, None, "<presence/>".into()).await?;
        while let Some((id, stanza)) = self.again.pop_front() {
            self.send(&mut wire, Some(id), stanza).await?;
        }
        let mut notes = self.notes.open();
        notes.connected = true;
        notes.available = false;
        notes.sessions += 1;
        drop(notes);
        Ok(wire)
    }

    /// XEP-0198 §5: what was handled is acknowledged, the rest is sent again; without an `h`
    /// nothing is known, and it is not. True when the session goes on.
    async fn resume(&mut self, wire: &mut Wire) -> Result<bool> {
        let (id, h) = (&self.past.sm_id, self.past.received);
        wire.send(format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>"))
            .await?;
        let answer = wire.element().await?;
        let resumed = answer.is("resumed", SM);
        if !resumed && !answer.is("failed", SM) {
            bail!("neither <resumed/> nor <failed/>: {}", text(&answer));
        }
        let past = std::mem::take(&mut self.past);
        let Some(h) = answer.header.attr("h") else {
            return Ok(false);
        };
        let mut h: u32 = h.parse()?;
        if !resumed {
            h = self.at_least_acknowledged(&past, h);
        }
        let Some(past) = self.handled(past, h) else {
            return Ok(false);
        };
        if !resumed {
            let messages = past.unsettled.into_iter();
            self.again
                .extend(messages.filter_map(|u| Some((u.id?, u.stanza))));
            return Ok(false);
        }
        for unsettled in &past.unsettled {
            // A broken stream is seen by whoever reads it.
            let _ = wire.send(unsettled.stanza.clone()).await;
        }
        self.past = past;
        Ok(true)
    }

    /// After the death of the process that knew it, a session's count is what the log has. What was
    /// acknowledged last may not be in there: requests, presence, and messages that came back.
    fn at_least_acknowledged(&self, past: &Past, h: u32) -> u32 {
        let mut notes = self.notes.open();
        let unlogged = |id: &&Option<String>| {
            let returned = |id| notes.journal.errors.contains_key(id);
            id.as_ref().is_none_or(returned)
        };
        let unlogged = past.settled.iter().rev().take_while(unlogged).count();
        if h < past.acknowledged && (past.acknowledged - h) as usize <= unlogged {
            notes.low_counts.push(Instant::now());
            past.acknowledged
        } else {
            h
        }
    }

    /// The server has handled so many: leaves what has to be sent again. `None` if that cannot be.
    fn handled(&self, mut past: Past, h: u32) -> Option<Past> {
        let mut notes = self.notes.open();
        notes.told_h += 1;
        if h < past.acknowledged || (h - past.acknowledged) as usize > past.unsettled.len() {
            let (from, to) = (past.acknowledged, past.unsettled.len());
            notes.problems.push(format!(
                "{}: h='{h}', but {from} was acknowledged and {to} more sent",
                self.jid
            ));
            return None;
        }
        for settled in past.unsettled.drain(..(h - past.acknowledged) as usize) {
            notes.journal.acknowledged.extend(settled.id);
        }
        past.acknowledged = h;
        // What came back as an error has had its end.
        let over = |id: &String| notes.journal.errors.contains_key(id);
        past.unsettled.retain(|u| !u.id.as_ref().is_some_and(over));
        notes.unsettled = past.unsettled.len();
        notes.resent += u32::try_from(past.unsettled.len()).unwrap_or(u32::MAX);
        Some(past)
    }

    async fn live(&mut self, mut wire: Wire) -> Result<Over> {
        let begun = *self.orders.borrow_and_update();
        let mut marked = self.notes.open().marked;
        if begun.marker > marked {
            self.mark(&mut wire, begun).await?;
            marked = begun.marker;
        }
        let mut tick = tokio::time::interval(self.seat.every);
        let mut ask = tokio::time::interval(ASK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let breaks = self.seat.breaks.unwrap_or(Duration::MAX);
        let broken = tokio::time::sleep(breaks);
        tokio::pin!(broken);
        let mut sending = begun.sending;
        let mut closing = begun.over;
        if closing {
            wire.send("</stream:stream>").await?;
        }
        loop {
            let sent = tokio::select! {
                next = wire.next() => match next? {
                    // RFC 6120 §4.4: nothing is said behind the own closing tag.
                    Incoming::Element(element) if closing && element.is("r", SM) => Ok(()),
                    Incoming::Element(element) => self.on_element(&mut wire, &element).await,
                    Incoming::Open(_) => Ok(()),
                    Incoming::Close | Incoming::End => {
                        let over = self.orders.borrow().over;
                        return Ok(if over && closing { Over::Finished } else { Over::Broken });
                    }
                },
                () = &mut broken, if sending && !closing => {
                    if !self.seat.rebinds {
                        return Ok(Over::Broken);
                    }
                    closing = true;
                    wire.send("</stream:stream>").await
                }
                _ = tick.tick(), if sending && !closing => self.message(&mut wire).await,
                _ = ask.tick(), if !self.past.unsettled.is_empty() && !closing => {
                    wire.send(format!("<r xmlns='{SM}'/>")).await
                }
                changed = self.orders.changed() => {
                    changed?;
                    let now = *self.orders.borrow_and_update();
                    sending = now.sending;
                    if now.marker > marked {
                        marked = now.marker;
                        self.mark(&mut wire, now).await?;
                    }
                    let away = now.home > begun.home && self.gateway != self.seat.home;
                    if (now.over || away) && !closing {
                        closing = true;
                        wire.send("</stream:stream>").await
                    } else {
                        Ok(())
                    }
                }
            };
            if sent.is_err() {
                return Ok(Over::Broken);
            }
        }
    }

    /// Sends a stanza and counts it.
    async fn send(&mut self, wire: &mut Wire, id: Option<String>, stanza: String) -> Result<()> {
        let unsettled = Unsettled {
            id,
            stanza: stanza.clone(),
        };
        self.past.unsettled.push_back(unsettled);
        self.notes.open().unsettled = self.past.unsettled.len();
        wire.send(stanza).await
    }

    async fn message(&mut self, wire: &mut Wire) -> Result<()> {
        if self.number >= self.seat.quota {
            return Ok(());
        }
        self.number += 1;
        let id = format!("{}-{}-{}", self.seat.user, self.seat.resource, self.number);
        let to = self.seat.partner.clone();
        let stanza = format!(
            "<message to='{to}' type='chat' id='{id}'><body>{} &amp; mehr: ü</body>\
             <origin-id xmlns='urn:xmpp:sid:0' id='{id}'/></message>",
            self.number
        );
        {
            let mut notes = self.notes.open();
            notes.sent_at.insert(id.clone(), Instant::now());
            notes.journal.sent.push(Sent {
                from: self.jid.clone(),
                to,
                id: id.clone(),
            });
        }
        self.send(wire, Some(id), stanza).await
    }

    /// Sends a marker; a routed one is to the own full JID, and then to the own gateway.
    async fn mark(&mut self, wire: &mut Wire, orders: Orders) -> Result<()> {
        let (number, ping) = (orders.marker, "<ping xmlns='urn:xmpp:ping'/>");
        let marker = if orders.routed {
            let to = &self.jid;
            format!("<iq type='get' id='mark-{number}' to='{to}'>{ping}</iq>")
        } else {
            format!("<iq type='get' id='end-{number}'>{ping}</iq>")
        };
        // A broken stream is seen by whoever reads it; the marker is sent again on the next.
        let _ = self.send(wire, None, marker).await;
        Ok(())
    }

    async fn on_element(&mut self, wire: &mut Wire, element: &Element) -> Result<()> {
        if &*element.header.ns == SM {
            return self.on_stream_management(wire, element).await;
        }
        if element.is("error", STREAMS) {
            self.notes.open().stream_errors.push(text(element));
            return Ok(());
        }
        self.past.received += 1;
        match &*element.header.name {
            "message" => self.on_message(element),
            "presence" => {
                self.received.push(None);
                let shown = Shown {
                    from: element
                        .header
                        .from
                        .as_deref()
                        .unwrap_or_default()
                        .to_owned(),
                    kind: element
                        .header
                        .type_
                        .as_deref()
                        .unwrap_or_default()
                        .to_owned(),
                    at: Instant::now(),
                };
                let mut notes = self.notes.open();
                notes.available |= shown.from == self.jid && shown.kind.is_empty();
                notes.presences.push(shown);
            }
            "iq" => {
                self.received.push(None);
                return self.on_iq(wire, element).await;
            }
            other => bail!("what is <{other}/>?"),
        }
        Ok(())
    }

    async fn on_stream_management(&mut self, wire: &mut Wire, element: &Element) -> Result<()> {
        match &*element.header.name {
            "r" => {
                let h = self.past.received;
                wire.send(format!("<a xmlns='{SM}' h='{h}'/>")).await?;
                let now = Instant::now();
                let mut notes = self.notes.open();
                for place in self.received[self.told..].iter().flatten() {
                    notes.reads[*place].acknowledged = Some(now);
                }
                self.told = self.received.len();
            }
            "a" => {
                let h: u32 = element.header.attr("h").context("no h")?.parse()?;
                let mut notes = self.notes.open();
                let more = h.wrapping_sub(self.past.acknowledged) as usize;
                if more > self.past.unsettled.len() {
                    notes
                        .problems
                        .push(format!("{}: <a h='{h}'/> for more than sent", self.jid));
                    return Ok(());
                }
                self.past.acknowledged = h;
                for settled in self.past.unsettled.drain(..more) {
                    notes.journal.acknowledged.extend(settled.id.clone());
                    self.past.settled.push_back(settled.id);
                }
                let surplus = self.past.settled.len().saturating_sub(SETTLED);
                self.past.settled.drain(..surplus);
                notes.unsettled = self.past.unsettled.len();
            }
            _ => self
                .notes
                .open()
                .problems
                .push(format!("{}: {}", self.jid, text(element))),
        }
        Ok(())
    }

    fn on_message(&mut self, element: &Element) {
        let mut notes = self.notes.open();
        let id = element.header.id.as_deref().unwrap_or_default().to_owned();
        if element.header.type_.as_deref() == Some("error") {
            self.received.push(None);
            let (condition, kind) = condition(element);
            if let Some(other) = notes.journal.errors.insert(id.clone(), condition.clone()) {
                notes
                    .problems
                    .push(format!("{id} came back twice: {other}, {condition}"));
            }
            notes.bounced.push(Bounced {
                id,
                condition,
                kind,
            });
            return;
        }
        let stanza = text(element);
        if element.child("sent", CARBONS).is_some() {
            // A copy of what a device of the same user sent: not a delivery to a recipient.
            self.received.push(None);
            return;
        }
        let stanza = unwrapped(&stanza);
        let stanza_id = attribute(stanza, "<stanza-id", "id").unwrap_or_default();
        let id = attribute(stanza, "<message", "id").unwrap_or(id);
        let session = notes.sessions;
        notes.reads.push(Read {
            id,
            stanza_id,
            at: Instant::now(),
            session,
            acknowledged: None,
        });
        self.received.push(Some(notes.reads.len() - 1));
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis();
        notes.journal.delivered.push(Delivered {
            reader: self.jid.clone(),
            stanza: stanza.to_owned(),
            time_ms: i64::try_from(time_ms).unwrap(),
        });
    }

    async fn on_iq(&mut self, wire: &mut Wire, element: &Element) -> Result<()> {
        let id = element.header.id.as_deref().unwrap_or_default().to_owned();
        let kind = element.header.type_.as_deref().unwrap_or_default();
        if matches!(kind, "get" | "set") {
            let to = element
                .header
                .from
                .as_deref()
                .unwrap_or_default()
                .to_owned();
            return self
                .send(
                    wire,
                    None,
                    format!("<iq type='result' id='{id}' to='{to}'/>"),
                )
                .await;
        }
        let ping = "<ping xmlns='urn:xmpp:ping'/>";
        if let Some(number) = id.strip_prefix("mark-") {
            self.notes.open().mark_failed = kind == "error";
            let ping = format!("<iq type='get' id='end-{number}'>{ping}</iq>");
            return self.send(wire, None, ping).await;
        }
        if let Some(number) = id.strip_prefix("end-") {
            self.notes.open().marked = number.parse()?;
        }
        Ok(())
    }
}
