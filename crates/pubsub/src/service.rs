//! The service: sizes are checked, then it is the store's. The clearing of an account is recorded
//! before it takes effect.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use chancery_api::archive::{Archive, RecordActRequest};
use chancery_api::pubsub::{
    ClearRequest, ClearResponse, GetLastRequest, GetLastResponse, GetPrivateRequest,
    GetPrivateResponse, GetVcardRequest, GetVcardResponse, PrivateElement, Pubsub, SetLastRequest,
    SetLastResponse, SetPrivateRequest, SetPrivateResponse, SetVcardRequest, SetVcardResponse,
};
use chancery_api::{ApiError, Cx};
use chancery_runtime::{Metrics, Tasks};
use chancery_store::StoreError;

use crate::Config;
use crate::last::LastSeen;
use crate::store::{Kept, Last, Private, Store};

/// The longest name of who did it.
const ACTOR_LIMIT_BYTES: usize = 1_023;
/// The longest namespace or name of an element.
const NAME_LIMIT_BYTES: usize = 1_024;

/// What the service is made of.
pub struct Parts {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub archive: Arc<dyn Archive>,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum PubsubError {
    #[error("pubsub.{field} {problem}")]
    Config {
        field: &'static str,
        problem: String,
    },
}

/// Implements [`Pubsub`]. Cloning shares it.
#[derive(Clone)]
pub struct PubsubService(Arc<Inner>);

struct Inner {
    config: Config,
    store: Arc<dyn Store>,
    archive: Arc<dyn Archive>,
    last: Arc<LastSeen>,
}

impl PubsubService {
    /// Starts the service.
    pub fn start(parts: Parts) -> Result<Self, PubsubError> {
        if let Some((field, problem)) = parts.config.problems().into_iter().next() {
            return Err(PubsubError::Config { field, problem });
        }
        let last = LastSeen::start(Arc::clone(&parts.store), &parts.metrics, &parts.tasks);
        Ok(Self(Arc::new(Inner {
            config: parts.config,
            store: parts.store,
            archive: parts.archive,
            last,
        })))
    }

    #[cfg(test)]
    pub(crate) fn last(&self) -> &LastSeen {
        &self.0.last
    }
}

/// The owner: a bare JID with localpart, prepared.
fn owner(jid: &str) -> Result<String, ApiError> {
    let bare = chancery_xmpp::jid::parse_bare(jid)
        .map_err(|_| ApiError::invalid("owner is not a bare jid"))?;
    if bare.node().is_none() {
        return Err(ApiError::invalid("owner has no localpart"));
    }
    Ok(bare.to_string())
}

fn domain(owner: &str) -> &str {
    owner.split_once('@').map_or(owner, |(_, domain)| domain)
}

fn store_error(error: StoreError) -> ApiError {
    if error.is_full() || error.is_busy() {
        return ApiError::resource(error.to_string());
    }
    tracing::error!(%error, "the store of pubsub failed");
    match error {
        StoreError::Closed => ApiError::unavailable("pubsub ends"),
        other => ApiError::internal(other.to_string()),
    }
}

/// Namespace and name of an element, neither empty nor too long.
fn named(ns: &str, name: &str) -> Result<(), ApiError> {
    let fits = |text: &str| !text.is_empty() && text.len() <= NAME_LIMIT_BYTES;
    if fits(ns) && fits(name) {
        Ok(())
    } else {
        Err(ApiError::invalid("an element needs a namespace and a name"))
    }
}

#[async_trait]
impl Pubsub for PubsubService {
    async fn get_private(
        &self,
        _: &Cx,
        request: GetPrivateRequest,
    ) -> Result<GetPrivateResponse, ApiError> {
        let owner = owner(&request.owner)?;
        named(&request.ns, &request.name)?;
        let found = self.0.store.private(owner, request.ns, request.name).await;
        Ok(GetPrivateResponse {
            xml: found.map_err(store_error)?,
        })
    }

    async fn set_private(
        &self,
        _: &Cx,
        request: SetPrivateRequest,
    ) -> Result<SetPrivateResponse, ApiError> {
        let owner = owner(&request.owner)?;
        let config = &self.0.config;
        let mut elements = Vec::new();
        for PrivateElement { ns, name, xml } in request.elements {
            named(&ns, &name)?;
            if xml.len() > config.private_bytes {
                return Err(ApiError::invalid("an element is too long"));
            }
            elements.push(Private { ns, name, xml });
        }
        if elements.len() > config.private_elements {
            return Err(ApiError::resource("too many elements"));
        }
        let kept = self
            .0
            .store
            .set_private(owner, elements, config.private_elements)
            .await
            .map_err(store_error)?;
        match kept {
            Kept::Yes => Ok(SetPrivateResponse {}),
            Kept::Full => Err(ApiError::resource("too many elements")),
        }
    }

    async fn get_vcard(
        &self,
        _: &Cx,
        request: GetVcardRequest,
    ) -> Result<GetVcardResponse, ApiError> {
        let found = self.0.store.vcard(owner(&request.owner)?).await;
        Ok(GetVcardResponse {
            xml: found.map_err(store_error)?,
        })
    }

    async fn set_vcard(
        &self,
        _: &Cx,
        request: SetVcardRequest,
    ) -> Result<SetVcardResponse, ApiError> {
        let owner = owner(&request.owner)?;
        if request.xml.len() > self.0.config.vcard_bytes {
            return Err(ApiError::invalid("the vcard is too long"));
        }
        let set = self.0.store.set_vcard(owner, request.xml).await;
        set.map_err(store_error)?;
        Ok(SetVcardResponse {})
    }

    async fn get_last(&self, _: &Cx, request: GetLastRequest) -> Result<GetLastResponse, ApiError> {
        let found = self.0.last.get(owner(&request.owner)?).await;
        let found = found.map_err(store_error)?;
        Ok(
            found.map_or_else(GetLastResponse::default, |last| GetLastResponse {
                at_ms: Some(last.at_ms),
                status: last.status,
            }),
        )
    }

    async fn set_last(&self, _: &Cx, request: SetLastRequest) -> Result<SetLastResponse, ApiError> {
        let last = Last {
            at_ms: request.at_ms,
            status: request.status,
        };
        self.0.last.set(owner(&request.owner)?, last);
        Ok(SetLastResponse {})
    }

    async fn clear(&self, _: &Cx, request: ClearRequest) -> Result<ClearResponse, ApiError> {
        let owner = owner(&request.owner)?;
        if request.actor.is_empty() || request.actor.len() > ACTOR_LIMIT_BYTES {
            return Err(ApiError::invalid("actor must have 1 to 1023 bytes"));
        }
        let act = RecordActRequest {
            domain: domain(&owner).to_owned(),
            actor: request.actor,
            act: "pubsub.clear".to_owned(),
            detail: json!({ "owner": owner }).to_string(),
        };
        self.0.archive.record_act(&Cx::local(), act).await?;
        self.0.last.clear(owner).await.map_err(store_error)?;
        Ok(ClearResponse {})
    }
}
