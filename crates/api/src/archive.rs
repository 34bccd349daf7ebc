//! The archive's contract. See `proto/chancery/archive/v1/archive.proto`.

use crate::LanePeer;
use crate::lane_remote::Settle;
use crate::wire::archive::v1::archive_server as stub;
pub use crate::wire::archive::v1::*;
use tonic::transport::Channel;

service! {
    /// The log: evidence, mailboxes, and their delivery to those who follow them.
    service Archive, remote RemoteArchive, adapter ArchiveAdapter,
    client archive_client::ArchiveClient<Channel>, server archive_server::ArchiveServer<ArchiveAdapter>;
    calls {
        /// What became of items submitted on an older incarnation of the lane.
        settle(SettleRequest) -> SettleResponse, "archive.settle", true;
        /// Records an act without entries.
        record_act(RecordActRequest) -> RecordActResponse, "archive.record_act", false;
        /// Raises a mailbox's floor to the head.
        drop_mailbox(DropMailboxRequest) -> DropMailboxResponse, "archive.drop_mailbox", true;
        /// The key that exports of a domain are signed with.
        public_key(PublicKeyRequest) -> PublicKeyResponse, "archive.public_key", true;
        /// A page of one mailbox as its owner may see it.
        query_archive(QueryArchiveRequest) -> QueryArchiveResponse, "archive.query_archive", true;
        /// What a mailbox's owner wants in the own archive.
        get_preferences(GetPreferencesRequest) -> GetPreferencesResponse, "archive.get_preferences", true;
        /// Changes that.
        set_preferences(SetPreferencesRequest) -> SetPreferencesResponse, "archive.set_preferences", true;
        /// Where the log stands.
        status(StatusRequest) -> StatusResponse, "archive.status", true;
    }
    lanes {
        /// Stanzas into the log.
        append / append_service (AppendItemBatch => AppendItem) -> (AppendAnswerBatch => AppendAnswer),
            AppendStream, "archive.append", settler;
    }
    links {
        /// Sessions follow their mailboxes.
        attach (AttachDownBatch => AttachDown) -> (AttachUpBatch => AttachUp), AttachStream, "archive.attach";
    }
    streams {
        /// The evidence log as JSON lines with a signed manifest.
        export (ExportRequest) -> ExportChunk, ExportStream, "archive.export";
    }
}

/// Keys of one settle call; more are asked in further calls.
const SETTLE_KEYS: usize = 4096;

fn settler(remote: &RemoteArchive) -> Option<Settle<AppendItem, AppendAnswer>> {
    let client = remote.client.clone();
    Some(Box::new(move |peer: LanePeer, items: Vec<AppendItem>| {
        let mut client = client.clone();
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(items.len());
            // Also without keys: the call fences the older incarnation.
            let chunks = if items.is_empty() {
                vec![&items[..]]
            } else {
                items.chunks(SETTLE_KEYS).collect()
            };
            for chunk in chunks {
                let keys = chunk
                    .iter()
                    .map(|item| Key {
                        sm_id: item.sm_id.clone(),
                        count: item.count,
                    })
                    .collect();
                let request = SettleRequest {
                    gateway: peer.gateway.clone(),
                    incarnation: peer.incarnation,
                    keys,
                };
                let answers = client.settle(request).await?.into_inner().answers;
                outcomes.extend(
                    answers
                        .into_iter()
                        .map(|answer| (answer.outcome() != Outcome::Never).then_some(answer)),
                );
            }
            Ok(outcomes)
        })
    }))
}
