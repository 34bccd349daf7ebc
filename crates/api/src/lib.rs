//! The contract between services: messages from `proto/`, one trait per service, and the two wirings.
//!
//! Owns handles, lanes and links (the long-lived streams), the channel with its mutual TLS and its
//! table of who may call what. Knows no service.

#[macro_use]
mod service;
pub mod archive;
mod batch;
mod call;
pub mod channel;
pub mod directory;
mod error;
mod lane;
mod lane_remote;
mod lane_serve;
mod link;
pub mod policy;
pub mod presence;
pub mod pubsub;
pub mod roles;
pub mod roster;
#[cfg(feature = "testing")]
pub mod testing;

mod watch;

pub use batch::{Batch, Sequenced};
pub use call::{Calls, Cx};
pub use error::ApiError;
pub use lane::{Answer, Answers, Lane, LaneError, LanePeer, LaneService};
pub use link::Link;
pub use roles::{Caller, Role};
pub use watch::{Confirmations, Feeds, Followers, Watched, serve as serve_follower};
pub use wire::api::v1::{Code, Decision, Denial, Kind, Verdict};

/// The generated messages and gRPC stubs, laid out as their packages are.
pub mod wire {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    /// What all areas share.
    pub mod api {
        pub mod v1 {
            include!("gen/api.rs");
        }
    }
    pub mod archive {
        pub mod v1 {
            include!("gen/archive.rs");
        }
    }
    pub mod directory {
        pub mod v1 {
            include!("gen/directory.rs");
        }
    }
    pub mod policy {
        pub mod v1 {
            include!("gen/policy.rs");
        }
    }
    pub mod presence {
        pub mod v1 {
            include!("gen/presence.rs");
        }
    }
    pub mod pubsub {
        pub mod v1 {
            include!("gen/pubsub.rs");
        }
    }
    pub mod roster {
        pub mod v1 {
            include!("gen/roster.rs");
        }
    }
}
