//! Sessions that ended while the presence service could not tell: it was away, or had just returned without its
//! state. Who saw them is told when it is back, and everybody else's sessions are known to it again.
//!
//! Refuses to outlive the gateway: what nobody knows of any more is told by nobody.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::presence;
use crate::service::Gateway;
use crate::session::identity::Identity;

/// Sessions that are kept; the oldest are forgotten, and the log says so.
const DEPARTED_LIMIT: usize = 10_000;
/// So long after its return all gateways have said their sessions again.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// Pause between two looks while there is something to tell.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether the presence service knows who is there.
#[derive(Clone, Copy, Default)]
enum Knowledge {
    /// It never was away.
    #[default]
    Whole,
    Away,
    /// From this moment on.
    WholeFrom(Instant),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Departed {
    knowledge: Mutex<Knowledge>,
    waiting: Mutex<VecDeque<Arc<Identity>>>,
    filled: Notify,
}

impl Departed {
    /// The link to the presence service is lost.
    pub(crate) fn lost(&self) {
        *self.knowledge.lock() = Knowledge::Away;
    }

    /// The link is open.
    pub(crate) fn back(&self, now: Instant) {
        let mut knowledge = self.knowledge.lock();
        if !matches!(*knowledge, Knowledge::Whole) {
            *knowledge = Knowledge::WholeFrom(now + SETTLED_AFTER);
        }
    }

    /// Whether an end that is told now reaches everybody.
    pub(crate) fn may_tell(&self, now: Instant) -> bool {
        match *self.knowledge.lock() {
            Knowledge::Whole => true,
            Knowledge::Away => false,
            Knowledge::WholeFrom(moment) => now >= moment,
        }
    }

    /// Whether it may have lost who saw a session.
    pub(crate) fn was_away(&self) -> bool {
        !matches!(*self.knowledge.lock(), Knowledge::Whole)
    }

    /// To be told later.
    pub(crate) fn keep(&self, identity: Arc<Identity>) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= DEPARTED_LIMIT {
            tracing::warn!("too many sessions ended without presence, one is forgotten");
            waiting.pop_front();
        }
        waiting.push_back(identity);
        drop(waiting);
        self.filled.notify_one();
    }

    fn first(&self) -> Option<Arc<Identity>> {
        self.waiting.lock().pop_front()
    }

    fn again(&self, identity: Arc<Identity>) {
        self.waiting.lock().push_front(identity);
    }
}

/// Tells what is kept, for ever.
pub(crate) async fn tell_departed(gateway: Arc<Gateway>) {
    let departed = &gateway.departed;
    loop {
        if departed.may_tell(gateway.clock.monotonic()) {
            let Some(identity) = departed.first() else {
                departed.filled.notified().await;
                continue;
            };
            if presence::departed(&gateway, &identity).await.is_ok() {
                continue;
            }
            departed.again(identity);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_when_everybody_is_known_again() {
        let (departed, now) = (Departed::default(), Instant::now());
        departed.back(now);
        assert!(departed.may_tell(now), "it never was away");
        departed.lost();
        assert!(!departed.may_tell(now + 2 * SETTLED_AFTER));
        departed.back(now);
        assert!(!departed.may_tell(now));
        assert!(departed.may_tell(now + SETTLED_AFTER));
        departed.lost();
        assert!(!departed.may_tell(now + SETTLED_AFTER));
    }
}
