//! The serving side of a lane over gRPC: batches in, answers out, in separate tasks.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use chancery_runtime::Tasks;

use crate::lane::{Answers, LanePeer, LaneService};
use crate::lane_remote::IN_FLIGHT;
use crate::link::{BATCHES_UNDER_WAY, pump_out};
use crate::{Batch, Sequenced};

/// Runs one lane until either side is lost.
pub(crate) fn serve<QB: Batch, AB: Batch>(
    tasks: &Tasks,
    service: Arc<dyn LaneService<QB::Item, AB::Item>>,
    peer: LanePeer,
    mut inbound: Streaming<QB>,
) -> ReceiverStream<Result<AB, Status>>
where
    QB::Item: Sequenced,
    AB::Item: Sequenced,
{
    let (sender, answered) = mpsc::channel(IN_FLIGHT);
    let (out, stream) = mpsc::channel(BATCHES_UNDER_WAY);
    let answers = Answers::remote(sender);
    tasks.spawn("lane answers", pump_out::<AB>(answered, out));
    tasks.spawn("lane", async move {
        while let Ok(Some(batch)) = inbound.message().await {
            if let Err(error) = service.submit(&peer, batch.unpack(), &answers).await {
                tracing::warn!(gateway = peer.gateway, %error, "closing a lane");
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}
