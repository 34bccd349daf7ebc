//! The service: each change of a roster in the owner's order, then its push; a handshake in the order
//! of both. Administrators' changes are recorded before they take effect.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, oneshot};

use chancery_api::archive::{Archive, RecordActRequest};
use chancery_api::roster::{
    BlockRequest, BlockResponse, BlocksRequest, BlocksResponse, ClearRequest, ClearResponse,
    GetRequest, GetResponse, HandshakeRequest, HandshakeResponse, Item, PutRequest, PutResponse,
    RequestsRequest, RequestsResponse, Roster, SetRequest, SetResponse, Subscription,
    SubscriptionAct, SubscriptionsRequest, SubscriptionsResponse, WatchDown, WatchUp,
};
use chancery_api::{ApiError, Cx, LanePeer, Link};
use chancery_runtime::{Clock, Ids, Metrics, Tasks};
use chancery_store::StoreError;
use chancery_xmpp::subscription::Act;

use crate::Config;
use crate::blocks::{self, Blocks};
use crate::items::{self, checked, domain, owner, subscription_name};
use crate::push::{Pushes, Said};
use crate::store::{Change, Changed, Handshake, Listing, Outcome, Pushed, Request, Store};

/// The name under which the roster speaks on the append lane.
const LANE_NAME: &str = "roster";
/// Owners share so many locks: two that meet wait for each other, no more.
const ORDERS: usize = 64;
/// Changes under way at once; a further one is refused.
const CHANGES_LIMIT: usize = 256;
/// The longest request that waits with all that it says.
const REQUEST_LIMIT_BYTES: usize = 16 * 1024;
/// The longest name of who did it.
const ACTOR_LIMIT_BYTES: usize = 1_023;

/// What the roster is made of.
pub struct Parts {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub archive: Arc<dyn Archive>,
    pub clock: Clock,
    pub ids: Ids,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// Why the roster does not start.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    #[error("roster.{field} {problem}")]
    Config {
        field: &'static str,
        problem: String,
    },
}

/// Implements [`Roster`]. Cloning shares it.
#[derive(Clone)]
pub struct RosterService(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    archive: Arc<dyn Archive>,
    pub(crate) pushes: Pushes,
    pub(crate) blocks: Blocks,
    pub(crate) tasks: Tasks,
    /// Held from a change until its push is handed in, so that pushes keep the order of versions.
    orders: [Mutex<()>; ORDERS],
    changes: Arc<Semaphore>,
}

impl RosterService {
    /// Starts the service and opens its lane to the archive.
    pub fn start(parts: Parts) -> Result<Self, RosterError> {
        if let Some((field, problem)) = parts.config.problems().into_iter().next() {
            return Err(RosterError::Config { field, problem });
        }
        let Parts {
            config,
            store,
            archive,
            clock,
            ids,
            metrics,
            tasks,
        } = parts;
        // Grows from one process to the next, so that the newer fences the older.
        let incarnation = u64::try_from(clock.now_unix_ms()).unwrap_or(1);
        let lane = archive.append(LanePeer {
            gateway: LANE_NAME.to_owned(),
            incarnation,
        });
        let pushes = Pushes::start(lane, ids, &metrics, &tasks);
        Ok(Self(Arc::new(Inner {
            config,
            store,
            archive,
            pushes,
            blocks: Blocks::default(),
            tasks,
            orders: std::array::from_fn(|_| Mutex::new(())),
            changes: Arc::new(Semaphore::new(CHANGES_LIMIT)),
        })))
    }

    /// Does `work` to its end, also when the caller goes away.
    async fn whole<T, W>(&self, work: impl FnOnce(Arc<Inner>) -> W) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let place = Arc::clone(&self.0.changes)
            .try_acquire_owned()
            .map_err(|_| ApiError::resource("too many roster changes under way"))?;
        let (done, result) = oneshot::channel();
        let work = work(Arc::clone(&self.0));
        self.0.tasks.spawn("roster-change", async move {
            // The caller may be gone; the change is made all the same.
            let _ = done.send(work.await);
            drop(place);
        });
        result
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable("the roster ends")))
    }

    async fn change(&self, owner: String, change: Change) -> Result<(String, bool), ApiError> {
        self.whole(|inner| async move { inner.change(owner, change).await })
            .await
    }
}

impl Inner {
    /// Gives the version, and whether anything has changed and was pushed.
    async fn change(&self, owner: String, change: Change) -> Result<(String, bool), ApiError> {
        let _order = self.order(&owner).lock().await;
        let limit = self.config.items;
        match self
            .store
            .change(owner.clone(), change, limit)
            .await
            .map_err(store_error)?
        {
            Changed::Yes { version, item } => {
                self.pushes.push(&Pushed {
                    owner,
                    version,
                    item,
                });
                Ok((version.to_string(), true))
            }
            // RFC 6121 §2.1.6: a push tells of a change; there was none.
            Changed::No { version } => Ok((version.to_string(), false)),
            Changed::NotFound => Err(ApiError::not_found("no such item")),
            Changed::Full => Err(ApiError::resource("the roster is full")),
        }
    }

    /// A handshake, and what both sides hear of it: the stanza before the push (RFC 6121 §3.1.6).
    /// Gives the version of the owner's roster where it has changed.
    async fn shake(&self, handshake: Handshake) -> Result<Option<u64>, ApiError> {
        let (one, two) = (order(&handshake.owner), order(&handshake.peer));
        let _first = self.orders[one.min(two)].lock().await;
        let _second = match one == two {
            true => None,
            false => Some(self.orders[one.max(two)].lock().await),
        };
        let outcome = self
            .store
            .shake(handshake.clone(), self.config.items)
            .await
            .map_err(store_error)?;
        let shaken = match outcome {
            Outcome::Done(shaken) => *shaken,
            Outcome::NotFound => return Err(ApiError::not_found("no such item")),
            Outcome::Full => return Err(ApiError::resource("the roster is full")),
        };
        let Handshake {
            owner,
            peer,
            request,
            ..
        } = handshake;
        for act in shaken.delivered {
            let stanza = match request.stanza.is_empty() {
                true => items::presence(act, &owner, &peer).into_bytes(),
                false => request.stanza.clone(),
            };
            self.pushes.presence(Said {
                act,
                from: owner.clone(),
                to: peer.clone(),
                stanza,
                policy_version: request.policy_version,
            });
        }
        if shaken.answered {
            let act = Act::Subscribed;
            self.pushes.presence(Said {
                act,
                stanza: items::presence(act, &peer, &owner).into_bytes(),
                from: peer,
                to: owner,
                policy_version: request.policy_version,
            });
        }
        let version = shaken.own.as_ref().map(|own| own.version);
        for pushed in [shaken.own, shaken.peer].into_iter().flatten() {
            self.pushes.push(&pushed);
        }
        Ok(version)
    }

    fn order(&self, owner: &str) -> &Mutex<()> {
        &self.orders[order(owner)]
    }

    async fn record(
        &self,
        owner: &str,
        actor: String,
        act: &str,
        detail: &serde_json::Value,
    ) -> Result<(), ApiError> {
        if actor.is_empty() || actor.len() > ACTOR_LIMIT_BYTES {
            return Err(ApiError::invalid("actor must have 1 to 1023 bytes"));
        }
        let request = RecordActRequest {
            domain: domain(owner).to_owned(),
            actor,
            act: act.to_owned(),
            detail: detail.to_string(),
        };
        self.archive
            .record_act(&Cx::local(), request)
            .await
            .map(drop)
    }
}

/// Which of the orders is an owner's.
fn order(owner: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    let [order, ..] = hasher.finish().to_le_bytes();
    usize::from(order) % ORDERS
}

/// The act of a stanza of the handshake.
fn act(act: SubscriptionAct) -> Result<Act, ApiError> {
    match act {
        SubscriptionAct::Subscribe => Ok(Act::Subscribe),
        SubscriptionAct::Subscribed => Ok(Act::Subscribed),
        SubscriptionAct::Unsubscribe => Ok(Act::Unsubscribe),
        SubscriptionAct::Unsubscribed => Ok(Act::Unsubscribed),
        SubscriptionAct::Unspecified => Err(ApiError::invalid("act is missing")),
    }
}

pub(crate) fn store_error(error: StoreError) -> ApiError {
    if error.is_full() || error.is_busy() {
        return ApiError::resource(error.to_string());
    }
    tracing::error!(%error, "the roster's store failed");
    match error {
        StoreError::Closed => ApiError::unavailable("the roster ends"),
        other => ApiError::internal(other.to_string()),
    }
}

#[async_trait]
impl Roster for RosterService {
    async fn get(&self, _: &Cx, request: GetRequest) -> Result<GetResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let roster = self.0.store.load(owner).await.map_err(store_error)?;
        let version = roster.version.to_string();
        // RFC 6121 §2.6.2: an empty `ver` means that nothing is cached, and equals no version.
        let unchanged = request.known_version.is_some_and(|known| known == version);
        let items = if unchanged { Vec::new() } else { roster.items };
        Ok(GetResponse {
            version,
            unchanged,
            items,
        })
    }

    async fn set(&self, _: &Cx, request: SetRequest) -> Result<SetResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let Item {
            jid,
            name,
            groups,
            subscription,
            colleague,
            ..
        } = checked(&owner, request.item, &self.0.config)?;
        // RFC 6121 §2.1.2.5: of a client's `subscription` only `remove` means anything.
        if subscription != i32::from(Subscription::Remove) {
            let change = Change::Edit {
                jid,
                name,
                groups,
                colleague,
            };
            let (version, changed) = self.change(owner, change).await?;
            return Ok(SetResponse { version, changed });
        }
        // §2.5.2: both directions end.
        let handshake = Handshake {
            owner,
            peer: jid,
            acts: vec![Act::Unsubscribe, Act::Unsubscribed],
            remove: true,
            heard: request.heard,
            answers: false,
            request: Request {
                stanza: Vec::new(),
                policy_version: request.policy_version,
            },
        };
        let version = self
            .whole(|inner| async move { inner.shake(handshake).await })
            .await?;
        Ok(SetResponse {
            changed: version.is_some(),
            version: version.unwrap_or_default().to_string(),
        })
    }

    async fn put(&self, _: &Cx, request: PutRequest) -> Result<PutResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let item = checked(&owner, request.item, &self.0.config)?;
        let Some(subscription) = subscription_name(item.subscription()) else {
            return Err(ApiError::invalid("subscription is missing"));
        };
        let detail = json!({ "owner": owner, "jid": item.jid, "subscription": subscription });
        self.0
            .record(&owner, request.actor, "roster.put", &detail)
            .await?;
        let change = match item.subscription() {
            Subscription::Remove => Change::Remove { jid: item.jid },
            _ => Change::Put(item),
        };
        let (version, _) = self.change(owner, change).await?;
        Ok(PutResponse { version })
    }

    async fn subscriptions(
        &self,
        _: &Cx,
        request: SubscriptionsRequest,
    ) -> Result<SubscriptionsResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let roster = self.0.store.load(owner).await.map_err(store_error)?;
        let mut response = SubscriptionsResponse::default();
        for item in roster.items {
            match item.subscription() {
                Subscription::From => response.from.push(item.jid),
                Subscription::To => response.to.push(item.jid),
                Subscription::Both => {
                    response.from.push(item.jid.clone());
                    response.to.push(item.jid);
                }
                Subscription::Unspecified | Subscription::None | Subscription::Remove => {}
            }
        }
        Ok(response)
    }

    async fn handshake(
        &self,
        _: &Cx,
        request: HandshakeRequest,
    ) -> Result<HandshakeResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let peer = chancery_xmpp::jid::parse_bare(&request.peer)
            .map_err(|_| ApiError::invalid("peer is not a bare jid"))?
            .to_string();
        if peer == owner {
            return Err(ApiError::invalid("a subscription to oneself"));
        }
        let act = act(request.act())?;
        let mut stanza = request.payload.to_vec();
        if stanza.len() > REQUEST_LIMIT_BYTES {
            // What it said was in the log before; what waits is that somebody has asked.
            stanza = items::presence(act, &owner, &peer).into_bytes();
        }
        let handshake = Handshake {
            owner,
            peer,
            acts: vec![act],
            remove: false,
            heard: request.heard,
            answers: request.answers,
            request: Request {
                stanza,
                policy_version: request.policy_version,
            },
        };
        self.whole(|inner| async move { inner.shake(handshake).await })
            .await?;
        Ok(HandshakeResponse {})
    }

    /// RFC 6121 §3.1.3: each time the contact sends initial presence, until they answer.
    async fn requests(
        &self,
        _: &Cx,
        request: RequestsRequest,
    ) -> Result<RequestsResponse, ApiError> {
        let session = chancery_xmpp::jid::parse_full(&request.session)
            .map_err(|_| ApiError::invalid("session is not a full jid"))?;
        let owner = owner(session.to_bare().as_str())?;
        // No answer may pass what it answers.
        let _order = self.0.order(&owner).lock().await;
        let requests = self.0.store.requests(owner).await.map_err(store_error)?;
        let waiting = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        for (from, request) in requests {
            self.0.pushes.presence(Said {
                act: Act::Subscribe,
                from,
                to: session.to_string(),
                stanza: request.stanza,
                policy_version: request.policy_version,
            });
        }
        Ok(RequestsResponse { waiting })
    }

    async fn blocks(&self, _: &Cx, request: BlocksRequest) -> Result<BlocksResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let jids = self.0.store.blocks_of(owner).await.map_err(store_error)?;
        Ok(BlocksResponse { jids })
    }

    async fn block(&self, _: &Cx, request: BlockRequest) -> Result<BlockResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let jids = blocks::prepared(&request.jids)?;
        let listing = match (request.unblock, jids.is_empty()) {
            (false, true) => return Err(ApiError::invalid("nobody to block")),
            (false, false) => Listing::Block(jids),
            (true, false) => Listing::Unblock(jids),
            (true, true) => Listing::UnblockAll,
        };
        self.whole(|inner| async move { inner.block(owner, listing).await })
            .await?;
        Ok(BlockResponse {})
    }

    async fn watch(&self, _: &Cx) -> Result<Link<WatchDown, WatchUp>, ApiError> {
        blocks::attach(&self.0)
    }

    /// For the deletion of an account, whose sessions end: nobody there is left to push to, but
    /// those who had it on their rosters are.
    async fn clear(&self, _: &Cx, request: ClearRequest) -> Result<ClearResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let detail = json!({ "owner": owner });
        self.0
            .record(&owner, request.actor, "roster.clear", &detail)
            .await?;
        self.whole(|inner| async move {
            let order = inner.order(&owner).lock().await;
            let left = inner.store.clear(owner.clone()).await;
            let left = left.map_err(store_error)?;
            inner.unlist(&owner).await;
            drop(order);
            // The peers' orders are not held: a push that is overtaken has the older version.
            for pushed in left {
                inner.pushes.push_later(&pushed).await;
            }
            Ok(ClearResponse {})
        })
        .await
    }
}
