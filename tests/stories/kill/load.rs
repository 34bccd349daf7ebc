//! The load that every kill happens under: probes in pairs on all gateways, and what is asked of them
//! together: who is back, what was read in between, and at the end the whole account.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chancery_testkit::checker::{self, Journal};
use chancery_testkit::server::{Server, Shape};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::notes::{Bounced, Notebook, Notes, Read};
use super::probe::{self, Orders, Seat};

/// Pairs of users, by the gateways of the two.
const PAIRS: [(usize, usize); 6] = [(0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (0, 0)];
/// A probe sends so often.
const EVERY: Duration = Duration::from_millis(80);
/// The connection of each third probe breaks about so often.
const BREAKS: Duration = Duration::from_millis(1300);
/// Acknowledgements that the shard may not have written down before a kill.
const CLOSES_LAG: Duration = Duration::from_secs(2);
/// After a return everybody is attached again by then.
const ATTACH_LAG: Duration = Duration::from_secs(6);
/// How long the load may take to settle in the end.
const SETTLE: Duration = Duration::from_secs(45);
/// A probe that cannot log in for so long has not recovered.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

/// The probes of one run.
pub(super) struct Load {
    orders: watch::Sender<Orders>,
    pub(super) seats: Vec<Seat>,
    pub(super) books: Vec<Notebook>,
    tasks: JoinSet<()>,
    /// When something was away, from and to.
    pub(super) outages: Vec<(Instant, Instant)>,
    settle: Duration,
}

/// Complaints that a failure shows.
const COMPLAINTS_SHOWN: usize = 20;

/// What a run came to.
#[derive(Debug, Default)]
#[allow(dead_code)] // printed
pub(super) struct Figures {
    pub(super) sent: usize,
    pub(super) acknowledged: usize,
    pub(super) read: usize,
    pub(super) bounced: usize,
    pub(super) sessions: u32,
    pub(super) resumed: u32,
    pub(super) told_h: u32,
    pub(super) resent: u32,
    pub(super) records: u64,
}

/// The accounts of a load: to be made first, and introduced in pairs.
pub(super) fn accounts() -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = (0..PAIRS.len())
        .map(|n| (format!("a{n}"), format!("b{n}")))
        .collect();
    pairs.push(("twin".into(), "pal".into()));
    pairs
}

fn seats(server: &Server) -> Result<Vec<Seat>> {
    let gateways = if server.shape() == Shape::One { 1 } else { 2 };
    let mut seats = Vec::new();
    let mut add = |user: &str, resource: &str, partner: &str, home: usize| -> Result<()> {
        let logins = (0..gateways)
            .map(|gateway| server.login(user, resource, gateway))
            .collect::<Result<Vec<_>>>()?;
        seats.push(Seat {
            user: user.into(),
            resource: resource.into(),
            partner: format!("{partner}@{}", server.domain()),
            logins,
            home: home % gateways,
            roams: seats.len() % 2 == 0,
            every: EVERY,
            breaks: (seats.len() % 3 == 0)
                .then(|| BREAKS + EVERY * u32::try_from(seats.len()).unwrap_or(0)),
            rebinds: false,
            quota: u64::MAX,
            patience: RETURN_LIMIT,
        });
        Ok(())
    };
    for ((one, other), homes) in accounts().iter().zip(PAIRS) {
        add(one, "r", other, homes.0)?;
        add(other, "r", one, homes.1)?;
    }
    add("twin", "left", "pal", 0)?;
    add("twin", "right", "pal", 1)?;
    add("pal", "r", "twin", 0)?;
    Ok(seats)
}

impl Load {
    /// Logs everybody in and begins to send.
    pub(super) async fn start(server: &Server) -> Result<Self> {
        let load = Self::seated(seats(server)?, SETTLE);
        let begun = Instant::now();
        load.recovered(begun, Duration::from_secs(30))
            .await
            .context("the load does not start")?;
        Ok(load)
    }

    /// The same for these probes, without waiting. In the end they may take `settle`.
    pub(super) fn seated(seats: Vec<Seat>, settle: Duration) -> Self {
        let (orders, _) = watch::channel(Orders {
            sending: true,
            ..Orders::default()
        });
        let mut load = Self {
            orders,
            seats,
            books: Vec::new(),
            tasks: JoinSet::new(),
            outages: Vec::new(),
            settle,
        };
        for seat in load.seats.clone() {
            let book = Notebook::default();
            load.books.push(book.clone());
            load.tasks
                .spawn(probe::run(seat, load.orders.subscribe(), book));
        }
        load
    }

    /// Waits until `holds`, within the limit, or a probe has a problem.
    pub(super) async fn until(
        &self,
        limit: Duration,
        what: &str,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let until = Instant::now() + limit;
        while !holds(self) {
            if let Some(problem) = self
                .books
                .iter()
                .find_map(|b| b.open().problems.first().cloned())
            {
                bail!("{problem}");
            }
            if Instant::now() > until {
                bail!("not within {limit:?}: {what}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until every probe has sent a message after `since` that reached its partner; gives the
    /// time since then.
    pub(super) async fn recovered(&self, since: Instant, limit: Duration) -> Result<Duration> {
        let limit = limit.saturating_sub(since.elapsed());
        self.until(limit, "a message of everybody arrives", |load| {
            load.waiting(since).is_empty()
        })
        .await
        .with_context(|| format!("missing: {:?}", self.waiting(since)))?;
        Ok(since.elapsed())
    }

    /// Probes of whom nothing sent after `since` was read.
    fn waiting(&self, since: Instant) -> Vec<String> {
        let sent = self.sent_at();
        let mut arrived = std::collections::HashSet::new();
        for book in &self.books {
            let notes = book.open();
            let fresh = notes.reads.iter().rev().take_while(|read| read.at > since);
            for read in fresh.filter(|read| sent.get(&read.id).is_some_and(|at| *at > since)) {
                arrived.insert(prefix(&read.id).to_owned());
            }
        }
        let name = |seat: &Seat| format!("{}-{}", seat.user, seat.resource);
        self.seats
            .iter()
            .map(name)
            .filter(|name| !arrived.contains(name))
            .collect()
    }

    /// When each message was sent.
    pub(super) fn sent_at(&self) -> HashMap<String, Instant> {
        let mut all = HashMap::new();
        for book in &self.books {
            all.extend(book.open().sent_at.iter().map(|(id, at)| (id.clone(), *at)));
        }
        all
    }

    /// What was read in an interval.
    pub(super) fn read_between(&self, from: Instant, to: Instant) -> Vec<Read> {
        let mut all = Vec::new();
        for book in &self.books {
            let notes = book.open();
            all.extend(
                notes
                    .reads
                    .iter()
                    .filter(|r| r.at > from && r.at <= to)
                    .cloned(),
            );
        }
        all
    }

    /// How many messages sent in the interval came back as errors.
    pub(super) fn bounced_between(&self, from: Instant, to: Instant) -> usize {
        let sent = self.sent_at();
        let within = |id: &str| sent.get(id).is_some_and(|at| *at > from && *at <= to);
        self.books
            .iter()
            .map(|book| book.open().bounced.iter().filter(|b| within(&b.id)).count())
            .sum()
    }

    /// Messages sent in the interval that are acknowledged and did not come back.
    pub(super) fn taken_between(&self, from: Instant, to: Instant) -> Vec<String> {
        let mut all = Vec::new();
        for book in &self.books {
            let notes = book.open();
            let sent = notes
                .sent_at
                .iter()
                .filter(|(_, at)| **at > from && **at <= to);
            let taken = sent.map(|(id, _)| id).filter(|id| {
                notes.journal.acknowledged.contains(*id) && !notes.journal.errors.contains_key(*id)
            });
            all.extend(taken.cloned());
        }
        all
    }

    /// Probes whose sessions live now.
    pub(super) fn connected(&self) -> usize {
        self.books
            .iter()
            .filter(|book| book.open().connected)
            .count()
    }

    /// Sends everybody to the gateway that it is at home at.
    pub(super) fn go_home(&self) {
        self.orders.send_modify(|orders| orders.home += 1);
    }

    /// Everybody sends a marker behind what it has sent; waits until each has come back. One
    /// that is not routed is asked only of those that have a stream. Gives how many were errors.
    pub(super) async fn mark(&self, routed: bool, limit: Duration) -> Result<usize> {
        self.orders.send_modify(|orders| {
            orders.marker += 1;
            orders.routed = routed;
        });
        let number = self.orders.borrow().marker;
        self.until(limit, "all markers", |load| {
            load.books.iter().all(|book| {
                let notes = book.open();
                notes.marked >= number || !(routed || notes.connected)
            })
        })
        .await?;
        Ok(self
            .books
            .iter()
            .filter(|book| book.open().mark_failed)
            .count())
    }

    fn reads(&self) -> usize {
        self.books.iter().map(|book| book.open().reads.len()).sum()
    }

    /// Nobody sends any more; waits until nothing is under way.
    async fn settle(&self) -> Result<()> {
        self.orders.send_modify(|orders| orders.sending = false);
        let count = self.books.len();
        let at_rest = |load: &Self| {
            let at_rest = |notes: &Notes| notes.available && notes.unsettled == 0;
            load.connected() == count && load.books.iter().all(|book| at_rest(&book.open()))
        };
        self.until(
            self.settle,
            "everybody is online and available, and all is acknowledged",
            at_rest,
        )
        .await?;
        let until = Instant::now() + self.settle;
        let mut quiet = 0;
        while quiet < 2 {
            if Instant::now() > until {
                bail!("the load does not come to rest");
            }
            let before = self.reads();
            let failed = self.mark(true, self.settle / 2).await?;
            quiet = if failed == 0 && self.reads() == before {
                quiet + 1
            } else {
                0
            };
        }
        Ok(())
    }

    /// Brings everything to rest, exports, verifies, and checks.
    pub(super) async fn finish(mut self, server: &Server) -> Result<Figures> {
        self.settle().await.context("in the end")?;
        self.orders.send_modify(|orders| orders.over = true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .context("probes do not end")?;
        let mut complaints = self.wrong_errors();
        complaints.extend(self.repeats());
        complaints.extend(self.low_counts());
        for complaint in &complaints {
            self.tell(complaint);
        }
        let (file, key) = server.export(true)?;
        server.must(&["verify", &file.display().to_string(), "--key", &key], "")?;
        let mut figures = Figures::default();
        let mut journal = Journal::default();
        for book in &self.books {
            let mut notes = book.open();
            complaints.append(&mut notes.problems);
            figures.sessions += notes.sessions;
            figures.resumed += notes.resumed;
            figures.told_h += notes.told_h;
            figures.resent += notes.resent;
            journal.absorb(std::mem::take(&mut notes.journal));
        }
        figures.sent = journal.sent.len();
        figures.acknowledged = journal.acknowledged.len();
        figures.read = journal.delivered.len();
        figures.bounced = journal.errors.len();
        let data = if server.shape() == Shape::One {
            "data"
        } else {
            "data-archive"
        };
        let keys = server.home().join(data).join("keys.json");
        let records = checker::stream(&file)?;
        match checker::check_stream(&journal, records, &keys, server.domain()) {
            Ok(count) => figures.records = count,
            Err(error) => {
                self.tell(&error.to_string());
                complaints.push(error.to_string());
            }
        }
        if complaints.is_empty() {
            return Ok(figures);
        }
        let (count, first) = (complaints.len(), COMPLAINTS_SHOWN.min(complaints.len()));
        bail!(
            "{figures:?}: {count} complaints: {:#?}",
            &complaints[..first]
        );
    }

    /// Our own outage is told as such, and as nothing else.
    fn wrong_errors(&self) -> Vec<String> {
        let wrong = |b: &&Bounced| b.condition != "resource-constraint" || b.kind != "wait";
        let mut found = Vec::new();
        for book in &self.books {
            let notes = book.open();
            let bounced = notes.bounced.iter().filter(wrong);
            found.extend(bounced.map(|bounced| format!("a wrong error: {bounced:?}")));
        }
        found
    }

    /// What comes again was not acknowledged, or not long before an outage (the shard writes down
    /// once a second what is closed); to one session nothing comes twice that is still out with it.
    fn repeats(&self) -> Vec<String> {
        let mut found = Vec::new();
        for book in &self.books {
            let notes = book.open();
            let mut first: HashMap<&str, &Read> = HashMap::new();
            for read in &notes.reads {
                let Some(before) = first.get(read.stanza_id.as_str()) else {
                    first.insert(&read.stanza_id, read);
                    continue;
                };
                // Only what was under way to a session may not be known to be with it.
                let acknowledged = before.acknowledged.filter(|at| *at < read.at);
                let Some(acknowledged) = acknowledged else {
                    if before.session == read.session {
                        found.push(format!("twice in one session: {before:?} {read:?}"));
                    }
                    continue;
                };
                let excused = self.outages.iter().any(|(from, to)| {
                    acknowledged + CLOSES_LAG > *from && acknowledged < *to + ATTACH_LAG
                });
                if !excused {
                    found.push(format!(
                        "acknowledged, and it comes again: {before:?} {read:?}"
                    ));
                }
            }
        }
        found
    }

    /// A count below what was acknowledged is told only where the process that knew better has died.
    fn low_counts(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (seat, book) in self.seats.iter().zip(&self.books) {
            for low in &book.open().low_counts {
                let died =
                    |(from, to): &(Instant, Instant)| *from < *low && *low < *to + ATTACH_LAG;
                if !self.outages.iter().any(died) {
                    found.push(format!(
                        "{}: <failed h=''/> below what was acknowledged",
                        seat.user
                    ));
                }
            }
        }
        found
    }

    /// Prints what is known of the ids that a complaint names.
    fn tell(&self, complaint: &str) {
        let start = self
            .books
            .iter()
            .flat_map(|b| b.open().sent_at.values().copied().min())
            .min();
        let Some(start) = start else { return };
        let ms = |at: Instant| at.saturating_duration_since(start).as_millis();
        let sent = self.sent_at();
        for (from, to) in &self.outages {
            println!("away from {} ms to {} ms", ms(*from), ms(*to));
        }
        let mut named: BTreeMap<&str, Instant> = BTreeMap::new();
        for word in complaint.split(|c: char| c.is_whitespace() || "'\",".contains(c)) {
            if let Some((id, at)) = sent.get_key_value(word) {
                named.insert(id, *at);
            }
        }
        for (id, at) in named.into_iter().take(10) {
            println!("{id}: sent at {} ms", ms(at));
            for (seat, book) in self.seats.iter().zip(&self.books) {
                for read in book.open().reads.iter().filter(|read| read.id == id) {
                    let (at, n) = (ms(read.at), read.session);
                    println!(
                        "  {}/{} read it at {at} ms in session {n}",
                        seat.user, seat.resource
                    );
                }
                if let Some(bounced) = book.open().bounced.iter().find(|b| b.id == id) {
                    println!("  {bounced:?}");
                }
            }
        }
    }
}

/// The sender's part of an id.
fn prefix(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(prefix, _)| prefix)
}
