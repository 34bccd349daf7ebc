//! Block lists (XEP-0191) and those who follow them: gateways hold all lists and screen by them. A
//! change is durable, then with every follower, then told to the sessions that it concerns. It
//! refuses to screen anything itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use chancery_api::roster::{BlockList, Subscription, WatchDown, WatchUp, watch_down};
use chancery_api::{ApiError, Feeds, Followers, Link, Watched, serve_follower};
use chancery_xml::push_attr;
use chancery_xmpp::jid;

use crate::service::{Inner, store_error};
use crate::store::{Listed, Listing};

/// JIDs of one part of a snapshot.
const PART_JIDS: usize = 1_000;
/// Followers have a change by then.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);
/// JIDs of one request.
const REQUEST_JIDS: usize = 1_000;
/// Contacts whose sessions look anew whom they reach; others do so with their next presence.
const CONCERNED_LIMIT: usize = 256;

/// See the module.
#[derive(Default)]
pub struct Blocks {
    feeds: Feeds<WatchUp>,
    followers: Followers,
    version: AtomicU64,
    /// Held from a change until it is published, and while a snapshot is read.
    order: Mutex<()>,
}

impl Blocks {
    /// Publishes one list as it is now. Called with the order held.
    fn publish(&self, owner: &str, jids: Vec<String>) -> u64 {
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        let list = BlockList {
            owner: owner.to_owned(),
            jids,
        };
        let let_go = self.feeds.publish(&WatchUp {
            version,
            lists: vec![list],
            complete: true,
            ..WatchUp::default()
        });
        if let_go > 0 {
            tracing::warn!(let_go, "followers of block lists did not keep up");
        }
        version
    }
}

/// The JIDs of a request, prepared. An empty list is for the caller to judge.
pub fn prepared(jids: &[String]) -> Result<Vec<String>, ApiError> {
    if jids.len() > REQUEST_JIDS {
        return Err(ApiError::resource("too many jids"));
    }
    jids.iter()
        .map(|raw| jid::parse(raw).map(|jid| jid.to_string()))
        .collect::<Result<_, _>>()
        .map_err(|_| ApiError::invalid("a jid is malformed"))
}

impl Inner {
    /// Changes a list to its end.
    pub(crate) async fn block(&self, owner: String, listing: Listing) -> Result<(), ApiError> {
        let limit = self.config.blocks;
        let (version, changed) = {
            let _order = self.blocks.order.lock().await;
            let before = self.store.blocks_of(owner.clone()).await;
            let before = before.map_err(store_error)?;
            let listed = self
                .store
                .list(owner.clone(), listing.clone(), limit)
                .await
                .map_err(store_error)?;
            match listed {
                Listed::Yes(now) => {
                    let changed = difference(&before, &now);
                    (self.blocks.publish(&owner, now), changed)
                }
                // An earlier change may not be with every follower yet: asking again waits for it.
                Listed::No => (self.blocks.version.load(Ordering::Acquire), Vec::new()),
                Listed::Full => return Err(ApiError::resource("the block list is full")),
            }
        };
        let late = self
            .blocks
            .followers
            .confirmed(version, CONFIRM_LIMIT)
            .await;
        if !changed.is_empty() {
            // The list is changed, whoever is late: the sessions hear of it once.
            self.pushes.blocks(&owner, &payload(&listing));
            for contact in self.concerned(&owner, &changed).await? {
                self.pushes.blocks(&contact, "");
            }
        }
        if late.is_empty() {
            return Ok(());
        }
        tracing::warn!(followers = late.len(), "a block list was not confirmed");
        Err(ApiError::unavailable(
            "not every gateway has the block list",
        ))
    }

    /// An account is gone, and its list with it. Called after the store has dropped it.
    pub(crate) async fn unlist(&self, owner: &str) {
        let _order = self.blocks.order.lock().await;
        self.blocks.publish(owner, Vec::new());
    }

    /// Those on the owner's roster that see him, or are seen, and that `changed` speaks of.
    async fn concerned(&self, owner: &str, changed: &[String]) -> Result<Vec<String>, ApiError> {
        let roster = self.store.load(owner.to_owned()).await;
        let items = roster.map_err(store_error)?.items.into_iter();
        let linked = |subscription| {
            use Subscription::{Both, From, To};
            matches!(subscription, Both | From | To)
        };
        Ok(items
            .filter(|item| linked(item.subscription()))
            .filter(|item| changed.iter().any(|jid| speaks_of(jid, &item.jid)))
            .map(|item| item.jid)
            .take(CONCERNED_LIMIT)
            .collect())
    }
}

/// What is on one of the lists only.
fn difference(before: &[String], now: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|jid| !now.contains(jid));
    let new = now.iter().filter(|jid| !before.contains(jid));
    gone.chain(new).cloned().collect()
}

/// Whether what is on a block list has to do with a bare JID.
fn speaks_of(listed: &str, bare: &str) -> bool {
    let listed = jid::bare(listed);
    listed == bare || listed == jid::domain(bare)
}

/// XEP-0191 §3.3: what was asked is what is pushed.
fn payload(listing: &Listing) -> String {
    let (name, jids): (_, &[String]) = match listing {
        Listing::Block(jids) => ("block", jids),
        Listing::Unblock(jids) => ("unblock", jids),
        Listing::UnblockAll => ("unblock", &[]),
    };
    let mut out = format!("<{name} xmlns='urn:xmpp:blocking'>");
    for jid in jids {
        out.push_str("<item");
        push_attr(&mut out, "jid", jid);
        out.push_str("/>");
    }
    out.push_str("</");
    out.push_str(name);
    out.push('>');
    out
}

/// Opens a link and serves it until either side is gone.
pub fn attach(inner: &Arc<Inner>) -> Result<Link<WatchDown, WatchUp>, ApiError> {
    let changes = inner
        .blocks
        .feeds
        .feed()
        .ok_or_else(|| ApiError::resource("too many followers of the block lists"))?;
    let (theirs, ours) = Link::pair();
    let follower = Arc::clone(inner);
    inner.tasks.spawn("roster-watch", async move {
        tokio::select! {
            () = follower.tasks.cancelled() => {}
            () = serve_follower(&*follower, &follower.blocks.followers, ours, changes) => {}
        }
    });
    Ok(theirs)
}

#[async_trait]
impl Watched for Inner {
    type Up = WatchUp;
    type Down = WatchDown;

    fn hello(down: WatchDown) -> Option<String> {
        match down.item {
            Some(watch_down::Item::Hello(hello)) => Some(hello.follower),
            _ => None,
        }
    }

    fn confirmed(down: WatchDown) -> Option<u64> {
        match down.item {
            Some(watch_down::Item::Confirm(confirm)) => Some(confirm.version),
            _ => None,
        }
    }

    fn version(up: &WatchUp) -> u64 {
        up.version
    }

    fn alive(version: u64) -> WatchUp {
        WatchUp {
            version,
            complete: true,
            ..WatchUp::default()
        }
    }

    async fn snapshot(&self) -> Option<(u64, Vec<WatchUp>)> {
        let _order = self.blocks.order.lock().await;
        let version = self.blocks.version.load(Ordering::Acquire);
        match self.store.blocks().await {
            Ok(lists) => Some((version, parts(version, &lists))),
            Err(error) => {
                tracing::error!(%error, "no snapshot for a follower");
                None
            }
        }
    }
}

/// All lists in parts, the last one complete.
fn parts(version: u64, lists: &[(String, String)]) -> Vec<WatchUp> {
    let mut parts: Vec<WatchUp> = lists
        .chunks(PART_JIDS)
        .map(|pairs| {
            let mut of: BTreeMap<&String, Vec<String>> = BTreeMap::new();
            for (owner, jid) in pairs {
                of.entry(owner).or_default().push(jid.clone());
            }
            let list = |(owner, jids): (&String, Vec<String>)| BlockList {
                owner: owner.clone(),
                jids,
            };
            WatchUp {
                version,
                lists: of.into_iter().map(list).collect(),
                snapshot: true,
                complete: false,
            }
        })
        .collect();
    parts.push(WatchUp {
        version,
        snapshot: true,
        complete: true,
        ..WatchUp::default()
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_parted_and_only_its_last_part_complete() {
        let pairs = (0..2_500).map(|n| (format!("u{}@x", n / 3), format!("b{n}@y")));
        let parts = parts(4, &pairs.collect::<Vec<_>>());
        assert!(parts.iter().all(|part| part.snapshot && part.version == 4));
        let complete = parts.iter().filter(|part| part.complete).count();
        assert!(complete == 1 && parts.last().is_some_and(|part| part.complete));
        let jids = parts.iter().flat_map(|part| &part.lists);
        assert_eq!(jids.map(|list| list.jids.len()).sum::<usize>(), 2_500);
    }

    #[test]
    fn contacts_are_found_by_account_and_domain() {
        for (listed, bare, speaks) in [
            ("b@x", "b@x", true),
            ("b@x/r", "b@x", true),
            ("x", "b@x", true),
            ("x/r", "b@x", true),
            ("c@x", "b@x", false),
            ("y", "b@x", false),
            ("x", "x", true),
        ] {
            assert_eq!(speaks_of(listed, bare), speaks, "{listed} {bare}");
        }
    }

    #[test]
    fn a_push_says_what_was_asked() {
        let block = Listing::Block(vec!["o'x@y".into()]);
        assert_eq!(
            payload(&block),
            "<block xmlns='urn:xmpp:blocking'><item jid='o&apos;x@y'/></block>"
        );
        assert_eq!(
            payload(&Listing::UnblockAll),
            "<unblock xmlns='urn:xmpp:blocking'></unblock>"
        );
    }
}
