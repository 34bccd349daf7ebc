//! The roster's contract. See `proto/chancery/roster/v1/roster.proto`.

use crate::wire::roster::v1::roster_server as stub;
pub use crate::wire::roster::v1::*;
use tonic::transport::Channel;

service! {
    /// Roster items and subscription state.
    service Roster, remote RemoteRoster, adapter RosterAdapter,
    client roster_client::RosterClient<Channel>, server roster_server::RosterServer<RosterAdapter>;
    calls {
        /// The roster, or that the client's copy is current.
        get(GetRequest) -> GetResponse, "roster.get", true;
        /// A client's change.
        set(SetRequest) -> SetResponse, "roster.set", false;
        /// An administrator's change.
        put(PutRequest) -> PutResponse, "roster.put", true;
        /// Who hears whom.
        subscriptions(SubscriptionsRequest) -> SubscriptionsResponse, "roster.subscriptions", true;
        /// A subscription stanza.
        handshake(HandshakeRequest) -> HandshakeResponse, "roster.handshake", true;
        /// Requests that wait for an answer.
        requests(RequestsRequest) -> RequestsResponse, "roster.requests", true;
        /// Whom an account has blocked.
        blocks(BlocksRequest) -> BlocksResponse, "roster.blocks", true;
        /// Blocks or unblocks.
        block(BlockRequest) -> BlockResponse, "roster.block", true;
        /// Removes a whole roster.
        clear(ClearRequest) -> ClearResponse, "roster.clear", true;
    }
    lanes {}
    links {
        /// Block lists and their changes.
        watch (WatchDownBatch => WatchDown) -> (WatchUpBatch => WatchUp), WatchStream, "roster.watch";
    }
    streams {}
}
