//! The presence service's contract. See `proto/chancery/presence/v1/presence.proto`.

use crate::wire::presence::v1::presence_server as stub;
pub use crate::wire::presence::v1::*;
use tonic::transport::Channel;

service! {
    /// Presence of sessions and who hears of it.
    service Presence, remote RemotePresence, adapter PresenceAdapter,
    client presence_client::PresenceClient<Channel>, server presence_server::PresenceServer<PresenceAdapter>;
    calls {
        /// Available sessions.
        sessions(SessionsRequest) -> SessionsResponse, "presence.sessions", true;
    }
    lanes {
        /// Presence going out.
        publish / publish_service (PublishItemBatch => PublishItem) -> (PublishAnswerBatch => PublishAnswer),
            PublishStream, "presence.publish", |_: &RemotePresence| None;
    }
    links {
        /// Presence coming up to a gateway.
        attach (AttachDownBatch => AttachDown) -> (AttachUpBatch => AttachUp), AttachStream, "presence.attach";
    }
    streams {}
}
