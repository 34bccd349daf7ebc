//! The services that a session talks to, as small as a test of the session needs them: four whole
//! contracts, of which most methods only refuse. The log is in `fake_archive.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chancery_api::directory::{self, *};
use chancery_api::policy::{
    self, ApplyRequest, ApplyResponse, DecideAnswer, DecideItem, ExplainRequest, ExplainResponse,
    Policy, ShowRequest, ShowResponse,
};
use chancery_api::presence::{self, Act, Presence, PublishAnswer, PublishItem};
use chancery_api::roster::{self, *};
use chancery_api::{
    Answers, ApiError, Cx, Decision, Denial, Lane, LanePeer, LaneService, Link, Verdict,
};
use chancery_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::watch;

pub(super) type Reply<T> = Result<T, ApiError>;

pub(super) fn no<T>() -> Reply<T> {
    Err(ApiError::internal("not part of this test"))
}

/// A policy that denies what a list of pairs names, and may be away.
pub(crate) struct FakePolicy {
    pub(crate) version: watch::Sender<u64>,
    /// Accounts that nobody may write to, and how that looks.
    pub(crate) walled: Mutex<Vec<(String, Denial)>>,
    pub(crate) away: Mutex<bool>,
    /// Sends no heartbeat.
    pub(crate) silent: Mutex<bool>,
    pub(crate) confirmed: Mutex<u64>,
    pub(crate) asked: Mutex<Vec<DecideItem>>,
    pub(crate) tasks: Tasks,
}

impl FakePolicy {
    pub(crate) fn new() -> Self {
        Self {
            version: watch::channel(1).0,
            walled: Mutex::default(),
            away: Mutex::default(),
            silent: Mutex::default(),
            confirmed: Mutex::default(),
            asked: Mutex::default(),
            tasks: Tasks::new(),
        }
    }

    fn verdict(&self, to: &str) -> Verdict {
        let mut verdict = Verdict {
            policy_version: *self.version.borrow(),
            ..Verdict::default()
        };
        match self
            .walled
            .lock()
            .iter()
            .find(|(walled, _)| to.starts_with(walled.as_str()))
        {
            Some((_, denial)) => {
                verdict.set_decision(Decision::Deny);
                verdict.set_denial(*denial);
                verdict.text = "ask compliance".into();
            }
            None => verdict.set_decision(Decision::Allow),
        }
        verdict
    }
}

struct Decide(Arc<FakePolicy>);

#[async_trait]
impl LaneService<DecideItem, DecideAnswer> for Decide {
    async fn submit(
        &self,
        _: &LanePeer,
        batch: Vec<DecideItem>,
        answers: &Answers<DecideAnswer>,
    ) -> Reply<()> {
        if *self.0.away.lock() {
            return no();
        }
        for item in batch {
            let verdicts = item.to.iter().map(|to| self.0.verdict(to)).collect();
            answers.send(DecideAnswer {
                seq: item.seq,
                verdicts,
            });
            self.0.asked.lock().push(item);
        }
        Ok(())
    }
}

pub(crate) struct PolicyHandle(pub(crate) Arc<FakePolicy>);

#[async_trait]
impl Policy for PolicyHandle {
    async fn apply(&self, _: &Cx, _: ApplyRequest) -> Reply<ApplyResponse> {
        no()
    }
    async fn show(&self, _: &Cx, _: ShowRequest) -> Reply<ShowResponse> {
        no()
    }
    async fn explain(&self, _: &Cx, _: ExplainRequest) -> Reply<ExplainResponse> {
        no()
    }
    fn decide(&self, peer: LanePeer) -> Lane<DecideItem, DecideAnswer> {
        Lane::local(Arc::new(Decide(Arc::clone(&self.0))), peer)
    }
    fn decide_service(&self) -> Reply<Arc<dyn LaneService<DecideItem, DecideAnswer>>> {
        no()
    }
    async fn watch(&self, _: &Cx) -> Reply<Link<policy::WatchDown, policy::WatchUp>> {
        let (near, mut far): (Link<policy::WatchDown, _>, _) = Link::pair();
        let policy = Arc::clone(&self.0);
        let mut version = self.0.version.subscribe();
        self.0.tasks.spawn("fake policy", async move {
            loop {
                let current = *version.borrow_and_update();
                if *policy.silent.lock() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                if far.send(policy::WatchUp { version: current }).await.is_err() {
                    return;
                }
                tokio::select! {
                    down = far.recv() => match down.map(|down| down.item) {
                        Some(Some(policy::watch_down::Item::Confirm(confirm))) => {
                            *policy.confirmed.lock() = confirm.version;
                            let _ = tokio::time::timeout(Duration::from_secs(1), version.changed()).await;
                        }
                        Some(_) => {}
                        None => return,
                    },
                    _ = version.changed() => {}
                }
            }
        });
        Ok(near)
    }
}

/// Remembers what is published, and says what it is told to.
#[derive(Default)]
pub(crate) struct FakePresence {
    pub(crate) published: Mutex<Vec<PublishItem>>,
    pub(crate) up: Mutex<Option<Link<presence::AttachUp, presence::AttachDown>>>,
}

impl FakePresence {
    pub(crate) fn acts(&self) -> Vec<Act> {
        self.published.lock().iter().map(PublishItem::act).collect()
    }
}

struct Publish(Arc<FakePresence>);

#[async_trait]
impl LaneService<PublishItem, PublishAnswer> for Publish {
    async fn submit(
        &self,
        _: &LanePeer,
        batch: Vec<PublishItem>,
        answers: &Answers<PublishAnswer>,
    ) -> Reply<()> {
        for item in batch {
            answers.send(PublishAnswer {
                seq: item.seq,
                copies: 0,
            });
            self.0.published.lock().push(item);
        }
        Ok(())
    }
}

pub(crate) struct PresenceHandle(pub(crate) Arc<FakePresence>);

#[async_trait]
impl Presence for PresenceHandle {
    async fn sessions(
        &self,
        _: &Cx,
        _: presence::SessionsRequest,
    ) -> Reply<presence::SessionsResponse> {
        no()
    }
    fn publish(&self, peer: LanePeer) -> Lane<PublishItem, PublishAnswer> {
        Lane::local(Arc::new(Publish(Arc::clone(&self.0))), peer)
    }
    fn publish_service(&self) -> Reply<Arc<dyn LaneService<PublishItem, PublishAnswer>>> {
        no()
    }
    async fn attach(&self, _: &Cx) -> Reply<Link<presence::AttachDown, presence::AttachUp>> {
        let (near, far) = Link::pair();
        *self.0.up.lock() = Some(far);
        Ok(near)
    }
}

/// Everybody has bob on the roster. Holds the streams of its followers open.
#[derive(Default)]
pub(crate) struct FakeRoster {
    watched: Mutex<Vec<Link<roster::WatchUp, roster::WatchDown>>>,
    /// How often it was asked for subscriptions, and whether it answers.
    pub(crate) asked: AtomicUsize,
    pub(crate) away: AtomicBool,
}

#[async_trait]
impl Roster for FakeRoster {
    async fn get(&self, _: &Cx, _: roster::GetRequest) -> Reply<roster::GetResponse> {
        let item = roster::Item {
            jid: "bob@a.test".into(),
            subscription: Subscription::Both.into(),
            ..roster::Item::default()
        };
        Ok(GetResponse {
            version: "1".into(),
            unchanged: false,
            items: vec![item],
        })
    }
    async fn set(&self, _: &Cx, _: SetRequest) -> Reply<SetResponse> {
        Ok(SetResponse::default())
    }
    async fn put(&self, _: &Cx, _: PutRequest) -> Reply<PutResponse> {
        no()
    }
    async fn subscriptions(&self, _: &Cx, _: SubscriptionsRequest) -> Reply<SubscriptionsResponse> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return no();
        }
        let both = vec!["bob@a.test".to_owned(), "eve@a.test".to_owned()];
        Ok(SubscriptionsResponse {
            from: both.clone(),
            to: both,
        })
    }
    async fn handshake(
        &self,
        _: &Cx,
        _: roster::HandshakeRequest,
    ) -> Reply<roster::HandshakeResponse> {
        no()
    }
    async fn requests(
        &self,
        _: &Cx,
        _: roster::RequestsRequest,
    ) -> Reply<roster::RequestsResponse> {
        Ok(roster::RequestsResponse::default())
    }
    async fn blocks(&self, _: &Cx, _: roster::BlocksRequest) -> Reply<roster::BlocksResponse> {
        Ok(roster::BlocksResponse::default())
    }
    async fn block(&self, _: &Cx, _: roster::BlockRequest) -> Reply<roster::BlockResponse> {
        no()
    }
    async fn watch(&self, _: &Cx) -> Reply<Link<roster::WatchDown, roster::WatchUp>> {
        let (near, far) = Link::pair();
        // Nobody has blocked anybody.
        let nothing = roster::WatchUp {
            version: 1,
            snapshot: true,
            complete: true,
            ..roster::WatchUp::default()
        };
        far.send(nothing).await.unwrap();
        self.watched.lock().push(far);
        Ok(near)
    }
    async fn clear(&self, _: &Cx, _: ClearRequest) -> Reply<ClearResponse> {
        no()
    }
}

/// Says what it is told to.
pub(crate) struct FakeDirectory {
    pub(crate) facts: watch::Sender<(u64, Option<AccountFact>)>,
    pub(crate) confirmed: Arc<Mutex<u64>>,
    pub(crate) tasks: Tasks,
}

impl FakeDirectory {
    pub(crate) fn new() -> Self {
        Self {
            facts: watch::channel((1, None)).0,
            confirmed: Arc::default(),
            tasks: Tasks::new(),
        }
    }
}

#[async_trait]
impl Directory for FakeDirectory {
    async fn domains(&self, _: &Cx, _: DomainsRequest) -> Reply<DomainsResponse> {
        no()
    }
    async fn credentials(&self, _: &Cx, _: CredentialsRequest) -> Reply<CredentialsResponse> {
        no()
    }
    async fn verify_password(
        &self,
        _: &Cx,
        _: VerifyPasswordRequest,
    ) -> Reply<VerifyPasswordResponse> {
        no()
    }
    async fn report_attempt(
        &self,
        _: &Cx,
        _: ReportAttemptRequest,
    ) -> Reply<ReportAttemptResponse> {
        no()
    }
    async fn change_account(
        &self,
        _: &Cx,
        _: ChangeAccountRequest,
    ) -> Reply<ChangeAccountResponse> {
        no()
    }
    async fn change_password(
        &self,
        _: &Cx,
        _: ChangePasswordRequest,
    ) -> Reply<ChangePasswordResponse> {
        no()
    }
    async fn administrator(&self, _: &Cx, _: AdministratorRequest) -> Reply<AdministratorResponse> {
        no()
    }
    async fn administer(&self, _: &Cx, _: AdministerRequest) -> Reply<AdministerResponse> {
        no()
    }
    async fn import_accounts(
        &self,
        _: &Cx,
        _: ImportAccountsRequest,
    ) -> Reply<ImportAccountsResponse> {
        no()
    }
    async fn list_accounts(&self, _: &Cx, _: ListAccountsRequest) -> Reply<ListAccountsResponse> {
        no()
    }
    async fn search(&self, _: &Cx, _: SearchRequest) -> Reply<SearchResponse> {
        no()
    }
    async fn change_group(&self, _: &Cx, _: ChangeGroupRequest) -> Reply<ChangeGroupResponse> {
        no()
    }
    async fn list_groups(&self, _: &Cx, _: ListGroupsRequest) -> Reply<ListGroupsResponse> {
        no()
    }
    async fn watch(&self, _: &Cx) -> Reply<Link<directory::WatchDown, directory::WatchUp>> {
        let (near, far): (Link<directory::WatchDown, _>, _) = Link::pair();
        let (up, mut down) = far.split();
        let mut facts = self.facts.subscribe();
        let confirmed = Arc::clone(&self.confirmed);
        self.tasks.spawn("fake directory up", async move {
            loop {
                let (version, fact) = facts.borrow_and_update().clone();
                let item = directory::WatchUp {
                    version,
                    domains: vec!["a.test".into()],
                    accounts: fact.into_iter().collect(),
                    complete: true,
                    ..directory::WatchUp::default()
                };
                if up.send(item).await.is_err() || facts.changed().await.is_err() {
                    return;
                }
            }
        });
        self.tasks.spawn("fake directory down", async move {
            while let Some(item) = down.recv().await {
                if let Some(directory::watch_down::Item::Confirm(confirm)) = item.item {
                    *confirmed.lock() = confirm.version;
                }
            }
        });
        Ok(near)
    }
}
