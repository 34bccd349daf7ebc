//! The deletion of accounts (XEP-0133 §4.2). Owns its order: whoever it is about is disabled, then what
//! belongs to them is cleared, and the accounts go last. Whatever fails before, they are still there, and
//! nobody gets their names with what is left of them. What was done may be done again.

use chancery_api::directory::{AccountAct, AdministerResponse};
use chancery_api::{Cx, pubsub, roster};
use chancery_xmpp::{Condition, StanzaError, jid};

use super::{ask, told};
use crate::iq::Request;
use crate::iq::commands::Done;
use crate::iq::data_form::Submitted;

pub(super) async fn delete(request: Request, form: Submitted) -> Result<Done, StanzaError> {
    let jids = form.all("accountjids");
    let own = |named: &String| {
        jid::parse_bare(named).is_ok_and(|named| *named.as_str() == *request.identity.account)
    };
    // Once disabled, who asks administers nothing, and could not finish.
    if jids.iter().any(own) {
        let error = StanzaError::new(Condition::NotAllowed);
        return Err(error.with_text("another administrator has to delete this account"));
    }
    let mut disabled = ask(&request, AccountAct::Disable, jids, None).await?;
    let mut cleared = Vec::new();
    for owner in &disabled.done {
        if clear(&request, owner).await {
            cleared.push(owner.clone());
        }
    }
    let deleted = match cleared.is_empty() {
        true => AdministerResponse::default(),
        // Who is not deleted is named all the same.
        false => ask(&request, AccountAct::Delete, cleared, None)
            .await
            .unwrap_or_default(),
    };
    disabled
        .done
        .retain(|account| !deleted.done.contains(account));
    Ok(told_of(&disabled, deleted))
}

/// Whether all that belongs to an account is gone.
async fn clear(request: &Request, owner: &str) -> bool {
    let actor = request.identity.full.to_string();
    let roster = roster::ClearRequest {
        owner: owner.to_owned(),
        actor: actor.clone(),
    };
    let pubsub = pubsub::ClearRequest {
        owner: owner.to_owned(),
        actor,
    };
    let cx = Cx::local();
    let roster = request.gateway.roster.clear(&cx, roster).await;
    let pubsub = request.gateway.pubsub.clear(&cx, pubsub).await;
    roster.is_ok() && pubsub.is_ok()
}

/// What it has to show; `left` are those who were disabled and not deleted.
fn told_of(left: &AdministerResponse, mut deleted: AdministerResponse) -> Done {
    for late in &left.unconfirmed {
        if !deleted.unconfirmed.contains(late) {
            deleted.unconfirmed.push(late.clone());
        }
    }
    if left.done.is_empty() && left.failed.is_empty() {
        return told(&deleted);
    }
    let mut text = format!("deleted: {}", deleted.done.len());
    if !left.done.is_empty() {
        text.push_str("; disabled and not yet deleted, run the command again for them: ");
        text.push_str(&left.done.join(", "));
    }
    for failed in [&left.failed, &deleted.failed] {
        if !failed.is_empty() {
            text.push_str("; ");
            text.push_str(failed);
        }
    }
    Done {
        note: Some((text, true)),
        result: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(done: &[&str], failed: &str, unconfirmed: &[&str]) -> AdministerResponse {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        AdministerResponse {
            done: owned(done),
            unconfirmed: owned(unconfirmed),
            failed: failed.to_owned(),
        }
    }

    #[test]
    fn who_is_left_is_named() {
        for (left, deleted, note, problem) in [
            (
                answer(&[], "", &[]),
                answer(&["a@x"], "", &[]),
                "done",
                false,
            ),
            (
                answer(&[], "", &["gw1"]),
                answer(&["a@x"], "", &["gw1", "gw2"]),
                "done, but not confirmed in time by gw1, gw2",
                true,
            ),
            (
                answer(&["b@x", "c@x"], "", &[]),
                answer(&["a@x"], "b@x: no log", &[]),
                "deleted: 1; disabled and not yet deleted, run the command again for them: \
                 b@x, c@x; b@x: no log",
                true,
            ),
            (
                answer(&[], "b@x: no store", &[]),
                answer(&["a@x"], "", &[]),
                "deleted: 1; b@x: no store",
                true,
            ),
        ] {
            let done = told_of(&left, deleted);
            assert_eq!(done.note, Some((note.to_owned(), problem)));
        }
    }
}
