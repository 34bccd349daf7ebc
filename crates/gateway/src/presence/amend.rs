//! Colleagues came, went, were renamed or blocked: a session shows itself to the new ones, and takes
//! itself back from those who are not any more; its client is pushed what its roster needs. A difference,
//! whatever the size of the group.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chancery_api::presence::{Act, PublishItem};

use super::{Away, Own, again, allowed, audience, said, send};
use crate::colleagues::{Pending, Shift, told};
use crate::service::Gateway;
use crate::session::identity::Identity;

/// Does it, and gives the pushes. What could not be done is kept.
pub(super) async fn moved(
    gateway: &Gateway,
    identity: &Identity,
    own: Option<&Own>,
) -> Result<Vec<Bytes>, Away> {
    let taken = std::mem::take(&mut identity.followed.lock().moved);
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    let done = act(gateway, identity, own, &taken).await;
    if done.is_err() {
        identity.followed.lock().moved.put_back(taken);
    }
    done
}

async fn act(
    gateway: &Gateway,
    identity: &Identity,
    own: Option<&Own>,
    moved: &Pending,
) -> Result<Vec<Bytes>, Away> {
    let own = own.filter(|own| own.available);
    if moved.whole {
        if own.is_some() {
            again(gateway, identity, own, Act::Refresh).await?;
        }
        told::lost(gateway, identity);
    } else if let Some(own) = own {
        amend(gateway, identity, own, &moved.shifts).await?;
    }
    told::pushes(gateway, identity, moved).await
}

async fn amend(
    gateway: &Gateway,
    identity: &Identity,
    own: &Own,
    shifts: &[Arc<Shift>],
) -> Result<(), Away> {
    let jids: BTreeSet<&str> = shifts
        .iter()
        .flat_map(|shift| shift.jids())
        .map(AsRef::as_ref)
        .filter(|jid| **jid != *identity.account)
        .collect();
    if jids.is_empty() {
        return Ok(());
    }
    let audience = audience(gateway, identity, None).await?;
    let hear = audience.hear(jids.iter().copied());
    let (targets, verdict) = allowed(gateway, identity, hear.into_iter(), None).await?;
    let hidden = {
        let shown: BTreeSet<&str> = targets.iter().map(String::as_str).collect();
        jids.difference(&shown).map(ToString::to_string).collect()
    };
    let item = PublishItem {
        payload: own.payload.clone(),
        priority: own.priority.into(),
        targets,
        hidden,
        policy_version: verdict.policy_version,
        ..said(gateway, identity, Act::Amend)
    };
    send(gateway, item, None).await?;
    identity.followed.lock().shown = Some(audience);
    Ok(())
}
