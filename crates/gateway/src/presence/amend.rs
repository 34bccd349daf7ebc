//! Colleagues came, went, were renamed or blocked: a session shows itself to the new ones, and takes
//! itself back from those who are not any more; its client is pushed what its roster needs. A difference,
//! whatever the size of the group.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chancery_api::presence::{Act, PublishItem};

use super::{Away, Own, again, allowed, audience, said, send};
use crate::colleagues::{Pending, told};
use crate::service::Gateway;
use crate::session::identity::Identity;

/// Does it, and gives the pushes. Presence and pushes do not wait for each other; what could not be done
/// is kept.
pub(super) async fn moved(
    gateway: &Gateway,
    identity: &Identity,
    own: Option<&Own>,
) -> (Vec<Bytes>, Result<(), Away>) {
    let mut taken = std::mem::take(&mut identity.followed.lock().moved);
    if taken.is_empty() {
        return (Vec::new(), Ok(()));
    }
    if taken.whole {
        told::lost(gateway, identity);
    }
    let pushes = told::pushes(gateway, identity, &taken).await;
    let own = own.filter(|own| own.available);
    let shown = match own {
        Some(_) if taken.whole => again(gateway, identity, own, Act::Refresh).await,
        Some(own) => amend(gateway, identity, own, &taken).await,
        None => Ok(()),
    };
    if pushes.is_ok() {
        taken.items.clear();
    }
    let done = shown.and(pushes.as_ref().map(drop).map_err(|away| *away));
    if done.is_err() {
        identity.followed.lock().moved.put_back(taken);
    }
    (pushes.unwrap_or_default(), done)
}

async fn amend(
    gateway: &Gateway,
    identity: &Identity,
    own: &Own,
    moved: &Pending,
) -> Result<(), Away> {
    let jids: BTreeSet<&str> = moved
        .shifts
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
    let mut followed = identity.followed.lock();
    if moved.late {
        // Those who have shown themselves meanwhile did so when this session was not known yet.
        let known = |jid: &&&str| audience.circle.has(jid);
        let joined = jids.iter().filter(known).map(|jid| Arc::from(*jid));
        followed.probe.extend(joined);
    }
    followed.shown = Some(audience);
    Ok(())
}
