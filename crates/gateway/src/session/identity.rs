//! Who a bound session is, and what its shard has been told of it.
//!
//! Shared by the session's task and by what runs for it (presence, handlers). Refuses to own
//! anything of the stream.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;
use chancery_api::archive::UpdateSession;
use chancery_api::directory::AccountFact;
use chancery_api::roster::SubscriptionsResponse;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::deliver::Reader;
use super::inbox::CutOff;
use super::table::cut_off;
use crate::colleagues::Pending;
use crate::colleagues::told::Told;
use crate::presence::Audience;

/// JIDs that one session may send directed presence to; who is not remembered could not be told
/// of the end, so that they hear nothing.
const DIRECTED: usize = 1000;

/// See the module.
pub(crate) struct Identity {
    /// Number of the session on this gateway.
    pub(crate) number: u64,
    /// Bare JID.
    pub(crate) account: Box<str>,
    /// Full JID.
    pub(crate) full: Box<str>,
    /// Domain of the account.
    pub(crate) domain: Arc<str>,
    /// Its stream-management id, which only its client knows.
    pub(crate) sm_id: [u8; 16],
    /// Key of what is recorded from `<enable/>` on: see [`log_id`].
    pub(crate) log_id: [u8; 16],
    /// Key of what is recorded before: the client's counts begin with `<enable/>` (XEP-0198 §4).
    pub(crate) early_id: [u8; 16],
    /// Version of the credentials that opened it, or that it has made since.
    pub(super) credential_version: AtomicU64,
    /// Generation of the account as first heard; 0 = not yet heard.
    generation: AtomicU64,
    /// What the shard knows, or is being told.
    pub(crate) followed: Mutex<Followed>,
    /// Held by a page of the archive until the last of it is written.
    pub(crate) paging: Arc<Semaphore>,
}

/// The key under which the log has the counts of a stream-management id. Whoever asks for the count of
/// an id asks under the own account: of another's id the log then knows nothing, on any gateway.
pub(crate) fn log_id(sm_id: &[u8; 16], account: &str) -> [u8; 16] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(sm_id);
    context.update(account.as_bytes());
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    id
}

/// The state of a session that its shard decides by.
#[derive(Default)]
pub(crate) struct Followed {
    pub(crate) available: bool,
    pub(crate) priority: i8,
    pub(crate) carbons: bool,
    pub(crate) interested: bool,
    /// When it may change the password again.
    pub(crate) password_after: Option<Instant>,
    /// Commands that wait for their form: their ids and nodes (XEP-0050).
    pub(crate) commands: Vec<(String, &'static str)>,
    /// When it may search the directory again.
    pub(crate) search_after: Option<Instant>,
    /// Whom it has sent directed presence to.
    pub(crate) directed: BTreeSet<Box<str>>,
    /// Has asked for the presence of those it hears since it became available.
    pub(crate) probed: bool,
    /// Updates sent, those that the shard has confirmed, and those that the last attachment covers.
    sent: u64,
    confirmed: u64,
    covered: u64,
    /// The shard has not confirmed that attachment.
    attaching: bool,
    /// The stream to the shard on which it said last that it attaches.
    pub(crate) attached_on: u64,
    waiting: Option<(u64, oneshot::Sender<()>)>,
    /// The shard has confirmed that messages to the bare JID come to it, and nothing since has taken
    /// that back.
    heard: bool,
    /// Until a push or a notice tells of a change.
    pub(crate) subscriptions: Option<Kept>,
    /// Changes of the roster heard of: an answer that one has overtaken is not kept.
    pub(crate) roster_changes: u64,
    /// Has asked for the block list, and is told of its changes (XEP-0191 §3.3).
    pub(crate) wants_blocks: bool,
    /// To whom its presence was last shown, as far as policy let it.
    pub(crate) shown: Option<Audience>,
    /// What its client holds of colleagues since it asked for the roster.
    pub(crate) roster: Option<Box<Told>>,
    /// Changes of colleagues that it has not acted on.
    pub(crate) moved: Pending,
    /// Whose presence it has still to ask for.
    pub(crate) probe: Vec<Arc<str>>,
}

/// Who hears whom, as the roster service has said.
pub(crate) struct Kept {
    pub(crate) answer: Arc<SubscriptionsResponse>,
    pub(crate) at: Instant,
    /// Since when it does not answer.
    pub(crate) unanswered: Option<Instant>,
}

/// One change of that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Available with a priority, or not.
    Presence(Option<i8>),
    /// Wants carbons (XEP-0280).
    Carbons(bool),
    /// Asked for the roster (RFC 6121 §2.2).
    Interested,
}

impl Identity {
    /// An identity that nothing has been told of.
    pub(crate) fn new(
        number: u64,
        full: &jid::FullJid,
        sm_id: [u8; 16],
        early_id: [u8; 16],
        credential_version: u64,
    ) -> Self {
        Self {
            number,
            account: full.to_bare().as_str().into(),
            full: full.as_str().into(),
            domain: full.domain().as_str().into(),
            log_id: log_id(&sm_id, full.to_bare().as_str()),
            sm_id,
            early_id,
            credential_version: AtomicU64::new(credential_version),
            generation: AtomicU64::new(0),
            followed: Mutex::new(Followed::default()),
            paging: Arc::new(Semaphore::new(1)),
        }
    }

    /// The three addresses.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader {
            bare: &self.account,
            full: &self.full,
            domain: &self.domain,
        }
    }

    /// Why a fact ends this session, if it does. Remembers the account's generation.
    pub(crate) fn cut_off(&self, fact: &AccountFact) -> Option<CutOff> {
        let known = self
            .generation
            .compare_exchange(0, fact.generation, Ordering::Relaxed, Ordering::Relaxed)
            .unwrap_or_else(|known| known);
        if known != 0 && known != fact.generation {
            return Some(CutOff::Deleted);
        }
        if *fact.changed_by == *self.full {
            self.credential_version
                .fetch_max(fact.credential_version, Ordering::Relaxed);
        }
        cut_off(fact, self.credentials())
    }

    /// Version of its credentials.
    pub(crate) fn credentials(&self) -> u64 {
        self.credential_version.load(Ordering::Relaxed)
    }
}

impl Followed {
    /// Applies a change. Gives the update to send and what waits for its confirmation, or `None`
    /// when the shard has it already.
    pub(crate) fn change(
        &mut self,
        session: u64,
        change: Change,
    ) -> Option<(UpdateSession, oneshot::Receiver<()>)> {
        let before = (self.available, self.priority, self.carbons, self.interested);
        match change {
            Change::Presence(Some(priority)) => {
                self.available = true;
                self.priority = priority;
            }
            Change::Presence(None) => self.available = false,
            Change::Carbons(on) => self.carbons = on,
            Change::Interested => self.interested = true,
        }
        let after = (self.available, self.priority, self.carbons, self.interested);
        if before == after && self.sent == self.confirmed {
            return None;
        }
        self.sent += 1;
        self.heard &= self.receives();
        let (done, wait) = oneshot::channel();
        self.waiting = Some((self.sent, done));
        Some((self.update(session), wait))
    }

    fn update(&self, session: u64) -> UpdateSession {
        UpdateSession {
            session,
            available: self.available,
            priority: self.priority.into(),
            carbons: self.carbons,
            interested: self.interested,
        }
    }

    /// Whether messages to the bare JID come to it (RFC 6121 §8.5.2.1.1).
    fn receives(&self) -> bool {
        self.available && self.priority >= 0
    }

    /// Whether it attaches again as available, and the update to send behind: what waits for who
    /// becomes available is handed out when the shard hears of that, not when it attaches. While it
    /// lags, what waited may not all have come.
    pub(crate) fn again(&mut self, session: u64, lags: bool) -> (bool, Option<UpdateSession>) {
        let comes = self.receives() && (!self.heard || lags);
        if comes && self.sent == self.confirmed {
            self.sent += 1;
        }
        // What was sent before is superseded.
        self.covered = self.sent.saturating_sub(u64::from(comes));
        self.attaching = true;
        (
            self.available && !comes,
            comes.then(|| self.update(session)),
        )
    }

    /// The roster has changed.
    pub(crate) fn roster_changed(&mut self) {
        self.subscriptions = None;
        self.roster_changes += 1;
    }

    /// Whom it has sent directed presence to.
    pub(crate) fn directed(&self) -> Vec<String> {
        self.directed.iter().map(ToString::to_string).collect()
    }

    /// Directed presence was sent, or taken back. False when there are too many.
    pub(crate) fn direct(&mut self, to: &str, unavailable: bool) -> bool {
        if unavailable {
            self.directed.remove(to);
            return true;
        }
        let known = self.directed.contains(to);
        if !known && self.directed.len() < DIRECTED {
            return self.directed.insert(to.into());
        }
        known
    }

    /// The shard confirms the oldest update that it has not confirmed.
    pub(crate) fn updated(&mut self) {
        if self.attaching {
            return; // it was said before the attachment, which covers it
        }
        self.confirm((self.confirmed + 1).min(self.sent));
    }

    /// Attached: whatever was sent before that is confirmed or superseded.
    pub(crate) fn attached(&mut self) {
        self.attaching = false;
        self.confirm(self.confirmed.max(self.covered));
    }

    fn confirm(&mut self, confirmed: u64) {
        self.confirmed = confirmed;
        if confirmed == self.sent {
            self.heard = self.receives();
        }
        if let Some((number, _)) = &self.waiting
            && *number <= self.confirmed
            && let Some((_, done)) = self.waiting.take()
        {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
impl Identity {
    /// An identity for tests.
    pub(crate) fn example(account: &str, resource: &str) -> Self {
        let full = chancery_xmpp::jid::parse_full(&format!("{account}/{resource}"));
        #[allow(clippy::unwrap_used)]
        Self::new(1, &full.unwrap(), [1; 16], [2; 16], 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_newest_update_confirms() {
        let mut followed = Followed::default();
        let (_, mut first) = followed.change(1, Change::Carbons(true)).unwrap();
        let (update, mut second) = followed.change(1, Change::Interested).unwrap();
        assert!(update.carbons && update.interested);
        followed.updated();
        assert!(first.try_recv().is_err());
        assert!(second.try_recv().is_err());
        followed.updated();
        assert!(second.try_recv().is_ok());
        assert!(followed.change(1, Change::Carbons(true)).is_none());
    }

    #[test]
    fn the_key_in_the_log_is_of_the_id_and_the_account() {
        let key = log_id(&[1; 16], "a@x");
        assert_eq!(key, log_id(&[1; 16], "a@x"));
        assert_ne!(key, log_id(&[1; 16], "b@x"));
        assert_ne!(key, log_id(&[2; 16], "a@x"));
        assert_ne!(key, [1; 16]);
    }

    #[test]
    fn directed_presence_is_remembered_within_bounds() {
        let mut followed = Followed::default();
        for n in 0..DIRECTED {
            assert!(followed.direct(&format!("u{n}@x"), false));
        }
        assert!(!followed.direct("more@x", false));
        assert!(followed.direct("u1@x", false));
        for n in 0..DIRECTED {
            assert!(followed.direct(&format!("u{n}@x"), true));
        }
        assert!(followed.directed.is_empty());
    }

    #[test]
    fn an_attachment_confirms_what_it_covers() {
        let mut followed = Followed::default();
        let (_, mut wait) = followed.change(1, Change::Carbons(true)).unwrap();
        followed.attached();
        assert!(wait.try_recv().is_err(), "of before");
        assert_eq!(followed.again(1, true), (false, None));
        followed.updated();
        assert_eq!(followed.confirmed, 0, "said before it attached");
        let (_, mut later) = followed.change(1, Change::Interested).unwrap();
        followed.attached();
        assert_eq!((followed.confirmed, followed.sent), (1, 2));
        followed.updated();
        assert!(later.try_recv().is_ok());
        assert!(followed.change(1, Change::Interested).is_none());
    }

    #[test]
    fn who_became_available_unheard_says_so_behind_the_attachment() {
        let mut followed = Followed::default();
        let (said, mut wait) = followed.change(1, Change::Presence(Some(3))).unwrap();
        for _ in 0..2 {
            assert_eq!(followed.again(1, false), (false, Some(said)));
            followed.attached();
            assert!(wait.try_recv().is_err());
        }
        followed.updated();
        assert!(wait.try_recv().is_ok());
        assert_eq!(followed.again(1, false), (true, None));
        followed.attached();
        // What waited may not all have come.
        assert_eq!(followed.again(1, true), (false, Some(said)));
        followed.attached();
        assert!(followed.confirmed < followed.sent);
        followed.updated();
        assert_eq!(followed.again(1, false), (true, None));
        followed.attached();
        // Away and back, of which the shard has heard the first only.
        followed.change(1, Change::Presence(None)).unwrap();
        followed.updated();
        followed.change(1, Change::Presence(Some(3))).unwrap();
        assert_eq!(followed.again(1, false), (false, Some(said)));
        // A negative priority gets nothing that waits.
        followed.change(1, Change::Presence(Some(-1))).unwrap();
        assert_eq!(followed.again(1, false), (true, None));
    }
}
