//! Who may view the presence of an account: who is subscribed to it, and colleagues by a group that is
//! shown. What is answered on behalf of an account to nobody else asks here (XEP-0012, XEP-0030).
//!
//! Refuses to know walls and blocks: policy was asked before.

use chancery_api::roster::SubscriptionsRequest;
use chancery_xmpp::StanzaError;

use super::Request;
use crate::pipeline::answer;

/// May who asks view the presence of the account `owner`?
pub(super) async fn has(request: &Request, owner: &str) -> Result<bool, StanzaError> {
    let gateway = &request.gateway;
    let viewer = &*request.identity.account;
    let (cx, _span) = request.cx("roster.subscriptions");
    let asked = SubscriptionsRequest {
        owner: owner.to_owned(),
    };
    // In any case: a colleague is answered no sooner than who is none.
    let heard_by = gateway.roster.subscriptions(&cx, asked).await;
    let heard_by = heard_by.map_err(|error| answer::api_error(&error))?;
    let is_subscribed = heard_by.from.iter().any(|jid| jid == viewer);
    Ok(is_subscribed || gateway.colleagues.are(owner, viewer))
}
