//! [`Link`]: one end of a long-lived two-way stream of items, in memory or over gRPC.
//!
//! Owns batching and its bounds. A link that is lost ends (`recv` gives `None`); opening another,
//! with a new incarnation, is the holder's affair.

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use chancery_runtime::Tasks;

use crate::{ApiError, Batch};

/// Items that wait in one direction of a link before its sender waits, or is told that it is full.
pub const LINK_ITEMS: usize = 1024;
/// Items of one batch on the wire.
pub const BATCH_ITEMS: usize = 64;
/// Bytes of one batch on the wire, above which no further item is added. The HTTP/2 window is larger.
pub const BATCH_BYTES: usize = 512 * 1024;
/// Batches handed to HTTP/2 but not yet taken by it.
pub const BATCHES_UNDER_WAY: usize = 4;

/// One end of a two-way stream: sends `Tx`, receives `Rx`.
#[derive(Debug)]
pub struct Link<Tx, Rx> {
    tx: mpsc::Sender<Tx>,
    rx: mpsc::Receiver<Rx>,
}

impl<Tx: Send + 'static, Rx: Send + 'static> Link<Tx, Rx> {
    /// Two ends in memory.
    pub fn pair() -> (Self, Link<Rx, Tx>) {
        let (tx, other_rx) = mpsc::channel(LINK_ITEMS);
        let (other_tx, rx) = mpsc::channel(LINK_ITEMS);
        (
            Self { tx, rx },
            Link {
                tx: other_tx,
                rx: other_rx,
            },
        )
    }

    /// Sends, waiting while the link is full.
    pub async fn send(&self, item: Tx) -> Result<(), ApiError> {
        self.tx
            .send(item)
            .await
            .map_err(|_| ApiError::unavailable("link lost"))
    }

    /// Next item; `None` when the link is lost.
    pub async fn recv(&mut self) -> Option<Rx> {
        self.rx.recv().await
    }

    /// The sending and receiving half, for separate tasks.
    pub fn split(self) -> (mpsc::Sender<Tx>, mpsc::Receiver<Rx>) {
        (self.tx, self.rx)
    }
}

/// Takes what is queued, up to a batch; never waits for more than the first item.
pub(crate) async fn next_batch<B: Batch>(rx: &mut mpsc::Receiver<B::Item>) -> Option<B> {
    let first = rx.recv().await?;
    let mut bytes = first.encoded_len();
    let mut items = vec![first];
    while items.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
        let Ok(item) = rx.try_recv() else { break };
        bytes += item.encoded_len();
        items.push(item);
    }
    Some(B::pack(items))
}

/// Moves batches from the wire into `tx` until either end is lost.
pub(crate) async fn pump_in<B: Batch>(mut inbound: Streaming<B>, tx: mpsc::Sender<B::Item>) {
    loop {
        let batch = tokio::select! {
            () = tx.closed() => return,
            batch = inbound.message() => batch,
        };
        let Ok(Some(batch)) = batch else { return };
        for item in batch.unpack() {
            if tx.send(item).await.is_err() {
                return;
            }
        }
    }
}

/// Moves items from `rx` onto the wire until either end is lost.
pub(crate) async fn pump_out<B: Batch>(
    mut rx: mpsc::Receiver<B::Item>,
    outbound: mpsc::Sender<Result<B, Status>>,
) {
    loop {
        let batch = tokio::select! {
            () = outbound.closed() => return,
            batch = next_batch::<B>(&mut rx) => batch,
        };
        let Some(batch) = batch else { return };
        if outbound.send(Ok(batch)).await.is_err() {
            return;
        }
    }
}

/// The serving side of a link: joins the local end that a service gave with the wire.
/// When either is lost both are.
pub(crate) fn serve<Down: Batch, Up: Batch>(
    tasks: &Tasks,
    link: Link<Down::Item, Up::Item>,
    inbound: Streaming<Down>,
) -> ReceiverStream<Result<Up, Status>> {
    let (tx, rx) = link.split();
    let (out, stream) = mpsc::channel(BATCHES_UNDER_WAY);
    tasks.spawn("link", async move {
        tokio::select! {
            () = pump_in(inbound, tx) => {}
            () = pump_out(rx, out) => {}
        }
    });
    ReceiverStream::new(stream)
}

/// The outgoing half of a link that is being opened.
pub(crate) struct Opening<Down: Batch, Up: Batch> {
    link: Link<Down::Item, Up::Item>,
    far: Link<Up::Item, Down::Item>,
    out: mpsc::Sender<Down>,
}

impl<Down: Batch, Up: Batch> Opening<Down, Up> {
    /// The opening, and the stream that becomes the request's body.
    pub(crate) fn start() -> (Self, ReceiverStream<Down>) {
        let (out, stream) = mpsc::channel(BATCHES_UNDER_WAY);
        let (link, far) = Link::pair();
        (Self { link, far, out }, ReceiverStream::new(stream))
    }

    /// Joins with the response; gives the caller's end.
    pub(crate) fn finish(
        self,
        tasks: &Tasks,
        inbound: Streaming<Up>,
    ) -> Link<Down::Item, Up::Item> {
        let (tx, mut rx) = self.far.split();
        let out = self.out;
        tasks.spawn("link", async move {
            let outgoing = async {
                while let Some(batch) = next_batch::<Down>(&mut rx).await {
                    if out.send(batch).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = pump_in(inbound, tx) => {}
                () = outgoing => {}
                () = out.closed() => {}
            }
        });
        self.link
    }
}
