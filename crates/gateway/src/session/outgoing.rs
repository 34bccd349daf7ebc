//! What came up for a session and waits to be written: in order, and decided again where a newer
//! policy version is in force than the one it was allowed under.
//!
//! Refuses to write: it hands out what may be written now.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use chancery_api::archive::{ArchivedMessage, Form, Target};
use chancery_api::{Kind, Verdict};
use chancery_runtime::trace::TraceContext;
use chancery_xmpp::mam;
use tokio::sync::OwnedSemaphorePermit;

use super::deliver::{Delivered, PresenceUp, Reader, stamp};
use super::window::Ruling;
use crate::pipeline::decide::{Question, allows};

/// Stanzas that may wait for a second verdict; then no more is taken from the inbox.
pub(crate) const OUTGOING_STANZAS: usize = 64;

/// Something that came up.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// From the log, or through its sequencer; with the index of the target.
    Log(Arc<Delivered>, u32),
    /// From the presence service.
    Presence(Arc<PresenceUp>),
    /// A message of the session's own archive.
    Archived(Arc<Archived>),
    /// The answer behind such messages.
    Answer(Arc<Answered>),
    /// A push of the own roster, made here.
    Roster(Bytes),
}

/// A message of an archive, for whoever asked.
#[derive(Debug)]
pub(crate) struct Archived {
    pub(crate) message: ArchivedMessage,
    /// Version it was decided under last.
    pub(crate) policy_version: u64,
    pub(crate) queryid: Option<Arc<str>>,
}

/// An answer that has its turn behind a page; until then no other page is read.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) bytes: Bytes,
    /// Said in its place when policy goes out of reach before its turn.
    pub(crate) outage: Bytes,
    pub(crate) _turn: OwnedSemaphorePermit,
}

struct Waiting {
    source: Source,
    /// Version it is allowed under.
    version: u64,
    ruling: Option<Ruling>,
}

/// What to do with the first.
#[derive(Debug)]
pub(crate) enum Next {
    /// Write it.
    Write(Source),
    /// It may not be written.
    Denied(Source, Verdict),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Outgoing {
    waiting: VecDeque<Waiting>,
    /// None that waits was allowed under an older version than this; it may be too low.
    oldest: u64,
}

impl Source {
    /// The target of this session.
    pub(crate) fn target(&self) -> Option<&Target> {
        match self {
            Self::Log(delivered, at) => delivered.up.targets.get(*at as usize),
            Self::Presence(_) | Self::Archived(_) | Self::Answer(_) | Self::Roster(_) => None,
        }
    }

    /// Its number when it is an entry, which takes a credit and is acknowledged; 0 otherwise.
    pub(crate) fn entry(&self) -> u64 {
        match self {
            Self::Log(delivered, _) if self.target().is_some_and(|target| target.entry) => {
                delivered.up.number
            }
            _ => 0,
        }
    }

    /// Its bytes, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Log(delivered, _) => delivered.up.payload.len(),
            Self::Presence(presence) => presence.payload.len(),
            Self::Archived(archived) => archived.message.payload.len(),
            Self::Answer(answered) => answered.bytes.len(),
            Self::Roster(push) => push.len(),
        }
    }

    /// An IQ that somebody waits for the answer of.
    pub(crate) fn is_request(&self) -> bool {
        match self {
            Self::Log(delivered, _) => {
                delivered.up.kind() == Kind::Iq && matches!(&*delivered.up.r#type, "get" | "set")
            }
            Self::Presence(_) | Self::Archived(_) | Self::Answer(_) | Self::Roster(_) => false,
        }
    }

    /// The trace that it belongs to; empty when it is not followed.
    pub(crate) fn traceparent(&self) -> &str {
        match self {
            Self::Log(delivered, _) => &delivered.up.traceparent,
            Self::Presence(presence) => &presence.traceparent,
            Self::Archived(_) | Self::Answer(_) | Self::Roster(_) => "",
        }
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Log(delivered, _) => delivered.up.kind(),
            Self::Presence(_) => Kind::Presence,
            Self::Archived(_) => Kind::Message,
            Self::Answer(_) | Self::Roster(_) => Kind::Iq,
        }
    }

    /// A roster push.
    pub(crate) fn is_push(&self) -> bool {
        self.target().is_some_and(|t| t.form() == Form::Push)
    }

    /// Only word that the roster has changed: nothing to write.
    pub(crate) fn is_notice(&self) -> bool {
        self.target().is_some_and(|t| t.form() == Form::Notice)
    }

    /// A push of the block list, or with `false` only word of one.
    pub(crate) fn is_blocks(&self) -> Option<bool> {
        match self {
            Self::Log(delivered, _) if self.target()?.form() == Form::Blocks => {
                Some(!delivered.up.payload.is_empty())
            }
            _ => None,
        }
    }

    /// The bytes as written.
    pub(crate) fn form(&self, reader: Reader<'_>) -> Option<Bytes> {
        match self {
            Self::Log(delivered, _) => delivered.form(self.target()?, reader),
            Self::Presence(presence) => Some(presence.form(reader)),
            Self::Archived(archived) => Some(archived.form(reader)),
            Self::Answer(answered) => Some(answered.bytes.clone()),
            Self::Roster(push) => Some(push.clone()),
        }
    }

    /// The version it was allowed under; `None` when it needs no verdict: a service said it, or it
    /// says that somebody is gone.
    fn version(&self) -> Option<u64> {
        match self {
            Self::Log(delivered, _) => Some(delivered.up.policy_version).filter(|v| *v != 0),
            Self::Presence(presence) => (!presence.unavailable).then_some(presence.policy_version),
            Self::Archived(archived) => Some(archived.policy_version),
            Self::Answer(_) | Self::Roster(_) => None,
        }
    }

    /// What policy is asked about it.
    pub(crate) fn question(&self, reader: Reader<'_>) -> Question {
        match self {
            Self::Archived(archived) => archived.question(),
            // Never asked about: it has no version.
            Self::Answer(_) | Self::Roster(_) => Question {
                from: reader.domain.to_owned(),
                to: vec![reader.bare.to_owned()],
                kind: Kind::Iq,
                type_: "result".to_owned(),
                trace: None,
            },
            Self::Log(delivered, _) => Question {
                from: delivered.up.from.clone(),
                to: vec![delivered.up.to.clone()],
                kind: delivered.up.kind(),
                type_: delivered.up.r#type.clone(),
                trace: TraceContext::parse(&delivered.up.traceparent),
            },
            Self::Presence(presence) => Question {
                from: presence.from.clone(),
                to: vec![reader.bare.to_owned()],
                kind: Kind::Presence,
                type_: String::new(),
                trace: TraceContext::parse(&presence.traceparent),
            },
        }
    }
}

impl Archived {
    fn form(&self, reader: Reader<'_>) -> Bytes {
        let found = mam::Found {
            from: reader.bare,
            to: reader.full,
            queryid: self.queryid.as_deref(),
            id: &self.message.archive_id,
            stamp: &stamp(self.message.stamp_ms),
            message: &self.message.payload,
        };
        found.write().into()
    }

    fn question(&self) -> Question {
        Question {
            from: self.message.from.clone(),
            to: vec![self.message.to.clone()],
            kind: Kind::Message,
            type_: String::new(),
            trace: None,
        }
    }
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// May more be taken from the inbox?
    pub(crate) fn takes_more(&self) -> bool {
        self.waiting.len() < OUTGOING_STANZAS
    }

    pub(crate) fn push(&mut self, source: Source) {
        let version = source.version().unwrap_or(u64::MAX);
        self.oldest = if self.waiting.is_empty() {
            version
        } else {
            version.min(self.oldest)
        };
        self.waiting.push_back(Waiting {
            source,
            version,
            ruling: None,
        });
    }

    /// The next one, under `current`. `ask` starts a question; while policy is away it is asked
    /// again and everything behind waits, in order. What is denied holds up nobody.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        current: u64,
        ask: &dyn Fn(&Source) -> Ruling,
    ) -> Poll<Next> {
        if let Some((at, verdict)) = self.poll_rulings(cx, current, ask)
            && let Some(denied) = self.waiting.remove(at)
        {
            return Poll::Ready(Next::Denied(denied.source, verdict));
        }
        match self.waiting.front() {
            Some(first) if first.version >= current && first.ruling.is_none() => {}
            _ => return Poll::Pending,
        }
        self.waiting
            .pop_front()
            .map_or(Poll::Pending, |w| Poll::Ready(Next::Write(w.source)))
    }

    /// Asks about what needs it and takes over verdicts; stops at a denial.
    fn poll_rulings(
        &mut self,
        cx: &mut Context<'_>,
        current: u64,
        ask: &dyn Fn(&Source) -> Ruling,
    ) -> Option<(usize, Verdict)> {
        if self.oldest >= current {
            return None;
        }
        let mut oldest = u64::MAX;
        for (at, waiting) in self.waiting.iter_mut().enumerate() {
            if waiting.version >= current {
                oldest = oldest.min(waiting.version);
                continue;
            }
            let ruling = waiting.ruling.get_or_insert_with(|| ask(&waiting.source));
            match ruling.as_mut().poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(verdict)) if allows(&verdict) => {
                    waiting.ruling = None;
                    // Under a version that is older still it is asked again at the next look.
                    waiting.version = verdict.policy_version;
                    if waiting.version < current {
                        cx.waker().wake_by_ref();
                    }
                }
                Poll::Ready(Ok(verdict)) => return Some((at, verdict)),
                Poll::Ready(Err(_)) => {
                    waiting.ruling = None;
                    cx.waker().wake_by_ref();
                }
            }
            oldest = oldest.min(waiting.version);
        }
        self.oldest = oldest;
        None
    }

    /// How many wait here that are no entries, and their bytes.
    pub(crate) fn extras(&self) -> (usize, usize) {
        let extras = self.waiting.iter().filter(|w| w.source.entry() == 0);
        extras.fold((0, 0), |(count, bytes), waiting| {
            (count + 1, bytes + waiting.source.size())
        })
    }

    /// Takes back what was not written of a page; gives the answer in its place.
    pub(crate) fn give_up_page(&mut self) -> Option<Bytes> {
        let answer = self
            .waiting
            .iter()
            .find_map(|waiting| match &waiting.source {
                Source::Answer(answered) => Some(answered.outage.clone()),
                _ => None,
            })?;
        self.waiting
            .retain(|waiting| !matches!(waiting.source, Source::Archived(_) | Source::Answer(_)));
        Some(answer)
    }

    /// Entries that wait here.
    pub(crate) fn entries(&self) -> impl Iterator<Item = u64> + '_ {
        self.waiting
            .iter()
            .map(|waiting| waiting.source.entry())
            .filter(|n| *n != 0)
    }

    /// Takes everything.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Source> + '_ {
        self.waiting.drain(..).map(|waiting| waiting.source)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;
    use std::collections::HashMap;

    use chancery_api::Decision;
    use chancery_api::archive::{Deliver, Form};
    use futures_util::FutureExt;
    use futures_util::task::noop_waker;
    use tokio::sync::oneshot;

    use super::*;
    use crate::pipeline::decide::Undecided;

    type Answer = oneshot::Sender<Result<Verdict, Undecided>>;

    #[derive(Default)]
    struct Bench {
        outgoing: Outgoing,
        asked: RefCell<HashMap<u64, Answer>>,
    }

    impl Bench {
        fn entry(&mut self, number: u64, policy_version: u64) {
            let target = Target {
                entry: true,
                form: Form::Original.into(),
                ..Target::default()
            };
            let up = Deliver {
                number,
                policy_version,
                targets: vec![target],
                ..Deliver::default()
            };
            self.outgoing
                .push(Source::Log(Arc::new(Delivered::new(up)), 0));
        }

        fn next(&mut self, current: u64) -> String {
            let waker = noop_waker();
            let asked = &self.asked;
            let ask = |source: &Source| -> Ruling {
                let (tx, rx) = oneshot::channel();
                asked.borrow_mut().insert(source.entry(), tx);
                rx.map(|got| got.unwrap_or(Err(Undecided))).boxed()
            };
            match self
                .outgoing
                .poll_next(&mut Context::from_waker(&waker), current, &ask)
            {
                Poll::Ready(Next::Write(source)) => format!("write {}", source.entry()),
                Poll::Ready(Next::Denied(source, _)) => format!("denied {}", source.entry()),
                Poll::Pending => "wait".into(),
            }
        }

        fn rule(&self, number: u64, answer: Result<(Decision, u64), Undecided>) {
            let answer = answer.map(|(decision, policy_version)| Verdict {
                decision: decision.into(),
                policy_version,
                ..Verdict::default()
            });
            self.asked
                .borrow_mut()
                .remove(&number)
                .unwrap()
                .send(answer)
                .unwrap();
        }
    }

    #[test]
    fn an_older_verdict_is_asked_again_and_order_is_kept() {
        let mut bench = Bench::default();
        for (number, version) in [(1, 1), (2, 2), (3, 1), (4, 2)] {
            bench.entry(number, version);
        }
        assert_eq!(bench.next(2), "wait");
        bench.rule(3, Ok((Decision::Deny, 2)));
        assert_eq!(bench.next(2), "denied 3");
        assert_eq!(bench.next(2), "wait", "2 does not pass 1");
        bench.rule(1, Ok((Decision::Allow, 2)));
        let order: Vec<String> = (0..4).map(|_| bench.next(2)).collect();
        assert_eq!(order, ["write 1", "write 2", "write 4", "wait"]);
    }

    #[test]
    fn while_policy_is_away_nothing_is_written() {
        let mut bench = Bench::default();
        bench.entry(1, 1);
        assert_eq!(bench.next(2), "wait");
        bench.rule(1, Err(Undecided));
        assert_eq!(bench.next(2), "wait");
        assert_eq!(bench.next(2), "wait");
        bench.rule(1, Ok((Decision::Allow, 2)));
        // a newer version came meanwhile
        assert_eq!(bench.next(3), "wait");
        assert_eq!(bench.next(3), "wait");
        bench.rule(1, Ok((Decision::Allow, 3)));
        assert_eq!(bench.next(3), "write 1");
    }

    #[test]
    fn what_a_service_says_needs_no_verdict_and_presence_does() {
        let mut bench = Bench::default();
        bench.entry(1, 0);
        let presence = |unavailable| PresenceUp {
            from: "a@x/r".into(),
            payload: Bytes::from_static(b"<presence/>"),
            policy_version: 0,
            unavailable,
            to: String::new(),
            traceparent: String::new(),
        };
        bench
            .outgoing
            .push(Source::Presence(Arc::new(presence(true))));
        bench
            .outgoing
            .push(Source::Presence(Arc::new(presence(false))));
        assert_eq!(bench.next(1), "write 1");
        assert_eq!(bench.next(1), "write 0");
        assert_eq!(bench.next(1), "wait");
        bench.rule(0, Ok((Decision::Allow, 1)));
        assert_eq!(bench.next(1), "write 0");
    }
}
