//! What happens by time: the end of sessions that lag or whose stream stays lost, the writing of
//! open sets, expiry, heartbeats, clock steps, and forgetting mailboxes that nobody needs.

use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::EndReason;
use chancery_evidence::{DEPLOYMENT, Kind};
use tokio::time::Instant;

use crate::follower::FollowerKey;
use crate::memory::KEYS_LIMIT;
use crate::shard::{Act, Effect, Now, Recovered, Shard};

/// Lag without progress, while the gateway is there, after which the session ends.
pub(crate) const LAG_LIMIT: Duration = Duration::from_secs(60);
/// Sessions of a lost stream stay for so long.
pub(crate) const STREAM_GRACE: Duration = Duration::from_secs(15);
/// Changed open sets are written this often.
pub(crate) const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Open sets of one write; the others follow with the next.
const SAVE_LIMIT: usize = 1_000;
/// A sign of life, after so long...
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(60);
/// ...or so many records: a start reads the last [`KEYS_LIMIT`], and has to find in them whatever
/// the next one counts.
pub(crate) const HEARTBEAT_RECORDS: u64 = KEYS_LIMIT as u64 / 4;
/// One that was not written is tried again after this.
const HEARTBEAT_PAUSE: Duration = Duration::from_secs(1);
/// Expiry and forgetting.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// A mailbox that nobody needs stays in memory for so long.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// A step of the wall clock that is worth a record.
const STEP_MS: i64 = 1_000;

/// When what was done last.
#[derive(Debug)]
pub(crate) struct Ticks {
    last: Now,
    saved: Instant,
    beat: Instant,
    /// The last heartbeat in the log.
    beaten: u64,
    swept: Instant,
}

impl Ticks {
    pub(crate) fn new(now: Now, recovered: &Recovered) -> Self {
        let at = now.monotonic;
        Self {
            last: now,
            saved: at,
            beat: at,
            beaten: recovered.beaten,
            swept: at,
        }
    }

    /// A heartbeat is in the log.
    pub(crate) fn beaten(&mut self, number: u64) {
        self.beaten = number;
    }

    fn is_heartbeat_due(&self, at: Instant, head: u64) -> bool {
        let waited = at.duration_since(self.beat);
        let many = head.saturating_sub(self.beaten) >= HEARTBEAT_RECORDS;
        waited >= HEARTBEAT || (many && waited >= HEARTBEAT_PAUSE)
    }
}

impl<T> Shard<T> {
    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let at = self.now.monotonic;
        self.check_clock();
        if self.window_until.is_some_and(|until| at >= until) {
            self.end_window();
        }
        if std::mem::take(&mut self.pressed) {
            for key in self.lagging.iter().copied().collect::<Vec<_>>() {
                self.feed(key);
            }
        }
        self.end_late_sessions(at);
        self.end_handovers();
        self.announce_heads(true);
        if at.duration_since(self.ticks.saved) >= SAVE_INTERVAL {
            self.ticks.saved = at;
            self.save_open_sets();
        }
        if self.ticks.is_heartbeat_due(at, self.head) {
            self.ticks.beat = at;
            self.heartbeat();
        }
        if at.duration_since(self.ticks.swept) >= SWEEP_INTERVAL {
            self.ticks.swept = at;
            self.sweep(at);
        }
    }

    fn end_late_sessions(&mut self, at: Instant) {
        let mut late: Vec<(FollowerKey, Option<EndReason>)> = Vec::new();
        for key in &self.lagging {
            let Some(follower) = self.followers.get(key) else {
                continue;
            };
            if let Some(lost_at) = follower.lost_at {
                if at.duration_since(lost_at) >= STREAM_GRACE {
                    late.push((*key, None));
                }
            } else if !follower.away
                && follower
                    .lag
                    .as_ref()
                    .is_some_and(|lag| at.duration_since(lag.progress) >= LAG_LIMIT)
            {
                late.push((*key, Some(EndReason::Lag)));
            }
        }
        for (key, reason) in late {
            self.end_session(key, reason);
        }
    }

    /// Order never comes from the clock, but a reader of the evidence must know that it moved.
    fn check_clock(&mut self) {
        let (last, now) = (self.ticks.last, self.now);
        self.ticks.last = now;
        let passed = now.monotonic.saturating_duration_since(last.monotonic);
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let step_ms = now
            .wall_ms
            .saturating_sub(last.wall_ms)
            .saturating_sub(passed_ms);
        if step_ms.abs() > STEP_MS {
            let domain = DEPLOYMENT.to_owned();
            tracing::warn!(step_ms, "the wall clock moved");
            let detail = serde_json::json!({ "act": "clock.step", "step_ms": step_ms });
            self.act(
                own_act(Kind::ClockStep, domain, "clock.step", detail.to_string()),
                None,
            );
        }
    }

    /// One record for each domain; `group.rs` fills in the counts of the records before it.
    fn heartbeat(&mut self) {
        for domain in self.domains.clone() {
            self.act(
                own_act(Kind::Heartbeat, domain, "heartbeat", String::new()),
                None,
            );
        }
    }

    /// Has changed open sets written.
    pub(crate) fn save_open_sets(&mut self) {
        let head = self.head;
        let mut saves = Vec::new();
        for (jid, mailbox) in &mut self.mailboxes {
            if mailbox.dirty && mailbox.created && !mailbox.saving && saves.len() < SAVE_LIMIT {
                mailbox.dirty = false;
                mailbox.saving = true;
                saves.push(mailbox.save(jid, head));
            }
        }
        if !saves.is_empty() {
            self.effects.push(Effect::Save(saves));
        }
    }

    /// Open sets were written, or not.
    pub(crate) fn saved(&mut self, jids: &[Arc<str>], written: bool) {
        for jid in jids {
            if let Some(mailbox) = self.mailboxes.get_mut(jid) {
                mailbox.saving = false;
                mailbox.dirty |= !written;
            }
        }
    }

    fn sweep(&mut self, at: Instant) {
        let before_ms = self.now.wall_ms - self.settings.expiry_ms;
        let mut expired = 0;
        for mailbox in self.mailboxes.values_mut() {
            expired += mailbox.expire(before_ms);
        }
        if expired > 0 {
            tracing::info!(expired, "entries expired");
        }
        self.mailboxes.retain(|_, mailbox| {
            !mailbox.is_idle() || at.duration_since(mailbox.idle_since) < IDLE_LIMIT
        });
        self.figures.open_entries = self.mailboxes.values().map(|m| m.open.len() as u64).sum();
    }

    /// Whether nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.is_none() && self.arrived.is_empty()
    }
}

/// A record that the log makes about itself.
pub(crate) fn own_act(kind: Kind, domain: String, act: &str, detail: String) -> Act {
    Act {
        kind,
        domain,
        actor: "archive".to_owned(),
        act: act.to_owned(),
        detail,
        sealed: String::new(),
        change: None,
    }
}
