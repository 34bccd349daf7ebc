//! What waits for one gateway, bounded in items and bytes. Never blocks whoever publishes: a gateway
//! that does not keep up loses its link, and publishes its sessions again on the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chancery_api::presence::AttachUp;
use tokio::sync::mpsc;

/// Envelopes that wait for one gateway: above what one probe of a full roster brings.
pub(crate) const OUTBOX_ITEMS: usize = 32 * 1024;
/// Bytes of the payloads that wait for one gateway.
pub(crate) const OUTBOX_BYTES: usize = 64 * 1024 * 1024;

/// The sending end.
pub(crate) struct Outbox {
    tx: mpsc::Sender<AttachUp>,
    bytes: Arc<AtomicUsize>,
}

/// The end that is emptied onto the link.
pub(crate) struct Waiting {
    rx: mpsc::Receiver<AttachUp>,
    bytes: Arc<AtomicUsize>,
}

pub(crate) fn outbox() -> (Outbox, Waiting) {
    let (tx, rx) = mpsc::channel(OUTBOX_ITEMS);
    let bytes = Arc::new(AtomicUsize::new(0));
    (
        Outbox {
            tx,
            bytes: Arc::clone(&bytes),
        },
        Waiting { rx, bytes },
    )
}

impl Outbox {
    /// Queues one envelope, or gives it back when there is no room: the gateway does not keep up.
    #[allow(clippy::result_large_err)] // it goes straight into what was missed
    pub(crate) fn send(&self, up: AttachUp) -> Result<(), AttachUp> {
        let size = up.payload.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > OUTBOX_BYTES {
            return Err(up);
        }
        self.tx.try_send(up).map_err(|error| match error {
            mpsc::error::TrySendError::Full(up) | mpsc::error::TrySendError::Closed(up) => up,
        })
    }
}

impl Waiting {
    /// The next envelope; `None` when the sending end is gone and nothing waits.
    pub(crate) async fn next(&mut self) -> Option<AttachUp> {
        let up = self.rx.recv().await?;
        self.bytes.fetch_sub(up.payload.len(), Ordering::Relaxed);
        Some(up)
    }

    /// What waits and will not be sent any more.
    pub(crate) fn rest(&mut self) -> Vec<AttachUp> {
        self.rx.close();
        std::iter::from_fn(|| self.rx.try_recv().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn up(bytes: usize) -> AttachUp {
        AttachUp {
            payload: vec![b'x'; bytes].into(),
            ..AttachUp::default()
        }
    }

    #[tokio::test]
    async fn bounded_in_items() {
        let (outbox, mut waiting) = outbox();
        for _ in 0..OUTBOX_ITEMS {
            outbox.send(up(1)).unwrap();
        }
        assert_eq!(outbox.send(up(1)), Err(up(1)));
        assert!(waiting.next().await.is_some());
        outbox.send(up(1)).unwrap();
    }

    #[tokio::test]
    async fn bounded_in_bytes() {
        let (outbox, mut waiting) = outbox();
        outbox.send(up(OUTBOX_BYTES)).unwrap();
        waiting.next().await.unwrap();
        outbox.send(up(OUTBOX_BYTES - 1)).unwrap();
        outbox.send(up(1)).unwrap();
        assert_eq!(outbox.send(up(1)), Err(up(1)));
        drop(outbox);
        assert!(waiting.next().await.is_some() && waiting.next().await.is_some());
        assert!(waiting.next().await.is_none());
    }
}
