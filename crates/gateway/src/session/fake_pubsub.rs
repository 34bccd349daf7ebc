//! A pubsub service that keeps what it is given, as small as a test of a session needs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use chancery_api::pubsub::*;
use chancery_api::{ApiError, Cx};
use parking_lot::Mutex;

type Reply<T> = Result<T, ApiError>;

#[derive(Default)]
pub(crate) struct FakePubsub {
    private: Mutex<HashMap<(String, String), Bytes>>,
    vcards: Mutex<HashMap<String, Bytes>>,
    last: Mutex<HashMap<String, (i64, String)>>,
}

#[async_trait]
impl Pubsub for FakePubsub {
    async fn get_private(&self, _: &Cx, asked: GetPrivateRequest) -> Reply<GetPrivateResponse> {
        let xml = self.private.lock().get(&(asked.owner, asked.ns)).cloned();
        Ok(GetPrivateResponse { xml })
    }
    async fn set_private(&self, _: &Cx, asked: SetPrivateRequest) -> Reply<SetPrivateResponse> {
        for element in asked.elements {
            let key = (asked.owner.clone(), element.ns);
            self.private.lock().insert(key, element.xml);
        }
        Ok(SetPrivateResponse {})
    }
    async fn get_vcard(&self, _: &Cx, asked: GetVcardRequest) -> Reply<GetVcardResponse> {
        let xml = self.vcards.lock().get(&asked.owner).cloned();
        Ok(GetVcardResponse { xml })
    }
    async fn set_vcard(&self, _: &Cx, asked: SetVcardRequest) -> Reply<SetVcardResponse> {
        self.vcards.lock().insert(asked.owner, asked.xml);
        Ok(SetVcardResponse {})
    }
    async fn get_last(&self, _: &Cx, asked: GetLastRequest) -> Reply<GetLastResponse> {
        let (at_ms, status) = self.last.lock().get(&asked.owner).cloned().unzip();
        Ok(GetLastResponse {
            at_ms,
            status: status.unwrap_or_default(),
        })
    }
    async fn set_last(&self, _: &Cx, asked: SetLastRequest) -> Reply<SetLastResponse> {
        let last = (asked.at_ms, asked.status);
        self.last.lock().insert(asked.owner, last);
        Ok(SetLastResponse {})
    }
    async fn clear(&self, _: &Cx, _: ClearRequest) -> Reply<ClearResponse> {
        Ok(ClearResponse {})
    }
}
