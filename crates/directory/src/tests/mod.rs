//! The service as its callers see it, on a real store and with a log that can be taken away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
mod administer;
mod follow;
mod logins;
mod many;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chancery_api::archive::*;
use chancery_api::directory::{WatchDown as Down, WatchUp as Up, *};
use chancery_api::testing::Log;
use chancery_api::{ApiError, Code, Cx, Link};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};

use crate::store::{MemoryStore, SqliteStore, Store};
use crate::{Administrators, Config, DirectoryService, Parts};

struct House {
    directory: DirectoryService,
    log: Arc<Log>,
    tasks: Tasks,
    failpoints: Failpoints,
    clock: Clock,
}

async fn house_on(store: Arc<dyn Store>, seed: u64) -> House {
    let log = Arc::new(Log::default());
    let (tasks, failpoints) = (Tasks::new(), Failpoints::off());
    let clock = Clock::manual(1_000_000);
    let parts = Parts {
        config: Config {
            iterations: 4_096,
            ..Config::default()
        },
        domains: vec!["a.test".into(), "b.test".into()],
        administrators: [(
            "a.test".to_owned(),
            Administrators {
                accounts: ["alice@a.test".to_owned()].into(),
                groups: ["staff".to_owned()].into(),
            },
        )]
        .into(),
        store,
        archive: Arc::clone(&log) as Arc<dyn Archive>,
        clock: clock.clone(),
        ids: Ids::seeded(seed),
        metrics: Metrics::new(),
        failpoints: failpoints.clone(),
        tasks: tasks.clone(),
    };
    let directory = DirectoryService::start(parts).await.unwrap();
    House {
        directory,
        log,
        tasks,
        failpoints,
        clock,
    }
}

async fn house() -> House {
    house_on(Arc::new(MemoryStore::default()), 1).await
}

fn password(password: &str) -> Option<NewCredentials> {
    Some(NewCredentials {
        password: password.into(),
        keys: vec![],
    })
}

impl House {
    async fn change(
        &self,
        act: AccountAct,
        jid: &str,
        secret: Option<&str>,
    ) -> Result<ChangeAccountResponse, ApiError> {
        let request = ChangeAccountRequest {
            act: act.into(),
            jid: jid.into(),
            credentials: secret.and_then(password),
            actor: "root".into(),
        };
        self.directory.change_account(&Cx::local(), request).await
    }

    async fn add(&self, jid: &str) {
        self.change(AccountAct::Add, jid, Some("right"))
            .await
            .unwrap();
    }

    async fn keys(&self, username: &str, hash: Hash) -> CredentialsResponse {
        let request = CredentialsRequest {
            domain: "a.test".into(),
            username: username.into(),
            hash: hash.into(),
            peer: "192.0.2.1".into(),
        };
        self.directory
            .credentials(&Cx::local(), request)
            .await
            .unwrap()
    }

    async fn login(&self, username: &str, password: &str, peer: &str) -> VerifyPasswordResponse {
        let request = VerifyPasswordRequest {
            domain: "a.test".into(),
            username: username.into(),
            password: password.into(),
            peer: peer.into(),
        };
        self.directory
            .verify_password(&Cx::local(), request)
            .await
            .unwrap()
    }

    async fn group(
        &self,
        act: GroupAct,
        members: &[&str],
    ) -> Result<ChangeGroupResponse, ApiError> {
        let request = ChangeGroupRequest {
            act: act.into(),
            domain: "a.test".into(),
            group: "staff".into(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
            actor: "root".into(),
            ..ChangeGroupRequest::default()
        };
        self.directory.change_group(&Cx::local(), request).await
    }

    async fn list(&self) -> Vec<AccountFact> {
        let request = ListAccountsRequest {
            domain: "a.test".into(),
            ..Default::default()
        };
        self.directory
            .list_accounts(&Cx::local(), request)
            .await
            .unwrap()
            .accounts
    }

    async fn follow(&self, name: &str) -> Link<Down, Up> {
        let link = self.directory.watch(&Cx::local()).await.unwrap();
        let hello = WatchHello {
            follower: name.into(),
            since: 0,
        };
        link.send(Down {
            item: Some(watch_down::Item::Hello(hello)),
        })
        .await
        .unwrap();
        link
    }
}

async fn confirm(link: &Link<Down, Up>, version: u64) {
    let confirm = WatchConfirm { version };
    link.send(Down {
        item: Some(watch_down::Item::Confirm(confirm)),
    })
    .await
    .unwrap();
}

/// The next part that is not a mere sign of life.
async fn next(link: &mut Link<Down, Up>) -> Up {
    loop {
        let up = link.recv().await.expect("the link is there");
        if up.snapshot || !up.accounts.is_empty() || !up.groups.is_empty() {
            return up;
        }
    }
}
