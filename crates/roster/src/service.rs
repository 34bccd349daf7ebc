//! The service: each change of a roster in the owner's order, then its push. Administrators' changes
//! are recorded before they take effect.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, oneshot};

use chancery_api::archive::{Archive, RecordActRequest};
use chancery_api::roster::{
    ClearRequest, ClearResponse, GetRequest, GetResponse, Item, PutRequest, PutResponse, Roster,
    SetRequest, SetResponse, Subscription, SubscriptionsRequest, SubscriptionsResponse,
};
use chancery_api::{ApiError, Cx, LanePeer};
use chancery_runtime::{Clock, Ids, Metrics, Tasks};
use chancery_store::StoreError;

use crate::Config;
use crate::items::{checked, domain, owner, subscription_name};
use crate::push::Pushes;
use crate::store::{Change, Changed, Store};

/// The name under which the roster speaks on the append lane.
const LANE_NAME: &str = "roster";
/// Owners share so many locks: two that meet wait for each other, no more.
const ORDERS: usize = 64;
/// Changes under way at once; a further one is refused.
const CHANGES_LIMIT: usize = 256;
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

struct Inner {
    config: Config,
    store: Arc<dyn Store>,
    archive: Arc<dyn Archive>,
    pushes: Pushes,
    tasks: Tasks,
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
            tasks,
            orders: std::array::from_fn(|_| Mutex::new(())),
            changes: Arc::new(Semaphore::new(CHANGES_LIMIT)),
        })))
    }

    /// Makes a change and hands in its push, to the end also when the caller goes away.
    async fn change(&self, owner: String, change: Change) -> Result<String, ApiError> {
        let place = Arc::clone(&self.0.changes)
            .try_acquire_owned()
            .map_err(|_| ApiError::resource("too many roster changes under way"))?;
        let (done, result) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn("roster-change", async move {
            // The caller may be gone; the change is made all the same.
            let _ = done.send(inner.change(owner, change).await);
            drop(place);
        });
        result
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable("the roster ends")))
    }
}

impl Inner {
    async fn change(&self, owner: String, change: Change) -> Result<String, ApiError> {
        let _order = self.order(&owner).lock().await;
        let limit = self.config.items;
        match self
            .store
            .change(owner.clone(), change, limit)
            .await
            .map_err(store_error)?
        {
            Changed::Yes { version, item } => {
                let version = version.to_string();
                self.pushes.push(&owner, &version, &item);
                Ok(version)
            }
            // RFC 6121 §2.1.6: a push tells of a change; there was none.
            Changed::No { version } => Ok(version.to_string()),
            Changed::NotFound => Err(ApiError::not_found("no such item")),
            Changed::Full => Err(ApiError::resource("the roster is full")),
        }
    }

    fn order(&self, owner: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let [order, ..] = hasher.finish().to_le_bytes();
        &self.orders[usize::from(order) % ORDERS]
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

fn store_error(error: StoreError) -> ApiError {
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
            ..
        } = checked(&owner, request.item, &self.0.config)?;
        // RFC 6121 §2.1.2.5: of a client's `subscription` only `remove` means anything.
        let change = match Subscription::try_from(subscription) {
            Ok(Subscription::Remove) => Change::Remove { jid },
            _ => Change::Edit { jid, name, groups },
        };
        Ok(SetResponse {
            version: self.change(owner, change).await?,
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
        Ok(PutResponse {
            version: self.change(owner, change).await?,
        })
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

    /// For the deletion of an account, whose sessions end: nobody is left to push to.
    async fn clear(&self, _: &Cx, request: ClearRequest) -> Result<ClearResponse, ApiError> {
        let owner = owner(&request.owner)?;
        self.0
            .record(
                &owner,
                request.actor,
                "roster.clear",
                &json!({ "owner": owner }),
            )
            .await?;
        let _order = self.0.order(&owner).lock().await;
        self.0
            .store
            .clear(owner.clone())
            .await
            .map_err(store_error)?;
        Ok(ClearResponse {})
    }
}
