//! The policy service's contract. See `proto/chancery/policy/v1/policy.proto`.

use crate::wire::policy::v1::policy_server as stub;
pub use crate::wire::policy::v1::*;
use tonic::transport::Channel;

service! {
    /// Verdicts, and the versioned policy behind them.
    service Policy, remote RemotePolicy, adapter PolicyAdapter,
    client policy_client::PolicyClient<Channel>, server policy_server::PolicyServer<PolicyAdapter>;
    calls {
        /// Checks a policy and puts it in force.
        apply(ApplyRequest) -> ApplyResponse, "policy.apply", false;
        /// A version's text.
        show(ShowRequest) -> ShowResponse, "policy.show", true;
        /// Why one may or may not write to the other.
        explain(ExplainRequest) -> ExplainResponse, "policy.explain", true;
    }
    lanes {
        /// One verdict per target.
        decide / decide_service (DecideItemBatch => DecideItem) -> (DecideAnswerBatch => DecideAnswer),
            DecideStream, "policy.decide", |_: &RemotePolicy| None;
    }
    links {
        /// Versions in force.
        watch (WatchDownBatch => WatchDown) -> (WatchUpBatch => WatchUp), WatchStream, "policy.watch";
    }
    streams {}
}
