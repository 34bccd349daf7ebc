//! The pubsub service's contract. See `proto/chancery/pubsub/v1/pubsub.proto`.

use crate::wire::pubsub::v1::pubsub_server as stub;
pub use crate::wire::pubsub::v1::*;
use tonic::transport::Channel;

service! {
    /// What accounts publish or keep: private XML, vCards, when they were last there.
    service Pubsub, remote RemotePubsub, adapter PubsubAdapter,
    client pubsub_client::PubsubClient<Channel>, server pubsub_server::PubsubServer<PubsubAdapter>;
    calls {
        /// An element of private XML.
        get_private(GetPrivateRequest) -> GetPrivateResponse, "pubsub.get_private", true;
        /// Keeps elements, all or none.
        set_private(SetPrivateRequest) -> SetPrivateResponse, "pubsub.set_private", false;
        /// An account's vCard.
        get_vcard(GetVcardRequest) -> GetVcardResponse, "pubsub.get_vcard", true;
        /// Replaces it.
        set_vcard(SetVcardRequest) -> SetVcardResponse, "pubsub.set_vcard", false;
        /// When an account was last there.
        get_last(GetLastRequest) -> GetLastResponse, "pubsub.get_last", true;
        /// A session of it has ended.
        set_last(SetLastRequest) -> SetLastResponse, "pubsub.set_last", true;
        /// Removes everything of an account.
        clear(ClearRequest) -> ClearResponse, "pubsub.clear", true;
    }
    lanes {}
    links {}
    streams {}
}
