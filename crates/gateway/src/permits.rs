//! How many stanzas this gateway was permitted, denied and had recorded: reported to the log each
//! minute and at the end, so that completeness can be checked against what the log itself has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chancery_api::Cx;
use chancery_api::archive::RecordActRequest;

use crate::service::Gateway;

/// Time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Counters since the last report that the log has taken.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    allowed: AtomicU64,
    denied: AtomicU64,
    recorded: AtomicU64,
}

/// What a report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    allowed: u64,
    denied: u64,
    recorded: u64,
}

impl Permits {
    /// Policy spoke.
    pub(crate) fn ruled(&self, allowed: bool) {
        let counter = if allowed { &self.allowed } else { &self.denied };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The log has a record.
    pub(crate) fn recorded(&self) {
        self.recorded.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        Counts {
            allowed: self.allowed.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            recorded: self.recorded.load(Ordering::Relaxed),
        }
    }

    /// What was reported is no longer owed; what came meanwhile is.
    fn reported(&self, counts: Counts) {
        self.allowed.fetch_sub(counts.allowed, Ordering::Relaxed);
        self.denied.fetch_sub(counts.denied, Ordering::Relaxed);
        self.recorded.fetch_sub(counts.recorded, Ordering::Relaxed);
    }
}

/// Reports each minute, for ever.
pub(crate) async fn report(gateway: Arc<Gateway>) {
    let mut from_ms = gateway.clock.now_unix_ms();
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        from_ms = report_once(&gateway, from_ms).await;
    }
}

/// Reports what is owed. A report that is not taken is part of the next one.
pub(crate) async fn report_once(gateway: &Gateway, from_ms: i64) -> i64 {
    let counts = gateway.permits.read();
    let to_ms = gateway.clock.now_unix_ms();
    let Some(domain) = gateway.domains.load().first().cloned() else {
        return from_ms;
    };
    let Counts {
        allowed,
        denied,
        recorded,
    } = counts;
    let detail = format!(
        "{{\"gateway\":\"{}\",\"from_ms\":{from_ms},\"to_ms\":{to_ms},\"allowed\":{allowed},\"denied\":{denied},\"recorded\":{recorded}}}",
        gateway.name
    );
    let request = RecordActRequest {
        domain,
        actor: format!("gateway-{}", gateway.name),
        act: "gateway.permits".to_owned(),
        detail,
    };
    match gateway.archive.record_act(&Cx::local(), request).await {
        Ok(_) => {
            gateway.permits.reported(counts);
            to_ms
        }
        Err(error) => {
            tracing::debug!(%error, "permit counters not recorded");
            from_ms
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_during_a_report_is_owed() {
        let permits = Permits::default();
        permits.ruled(true);
        permits.ruled(false);
        permits.recorded();
        let counts = permits.read();
        permits.ruled(true);
        permits.reported(counts);
        assert_eq!(
            permits.read(),
            Counts {
                allowed: 1,
                denied: 0,
                recorded: 0
            }
        );
    }
}
