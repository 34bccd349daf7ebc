//! A whole archive with its threads and its disk, and a gateway's half of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::{
    AppendAnswer, AppendItem, Archive, AttachDown, AttachHello, AttachSession, AttachUp, Deliver,
    ExportRequest, PublicKeyRequest, attach_down, attach_up,
};
use chancery_api::{Cx, Decision, Kind, Lane, LanePeer, Link, Verdict};
use chancery_evidence::PublicKey;
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks};

use crate::{ArchiveService, Config, Parts, StartError};

pub(super) const LIMIT: Duration = Duration::from_secs(30);

pub(super) struct House {
    pub(super) tasks: Tasks,
    pub(super) failpoints: Failpoints,
    pub(super) metrics: Metrics,
    pub(super) archive: Arc<ArchiveService>,
}

pub(super) fn parts(dir: &Path) -> Parts {
    Parts {
        data_dir: dir.to_owned(),
        domains: vec!["x".to_owned()],
        config: Config::default(),
        clock: Clock::real(),
        ids: Ids::real(),
        metrics: Metrics::new(),
        tracer: chancery_runtime::Tracer::off(),
        failpoints: Failpoints::off(),
        tasks: Tasks::new(),
        fatal: Some(Arc::new(|reason: &str| panic!("fatal: {reason}"))),
    }
}

pub(super) async fn try_open(dir: &Path) -> Result<House, StartError> {
    let parts = parts(dir);
    let (tasks, failpoints) = (parts.tasks.clone(), parts.failpoints.clone());
    let metrics = parts.metrics.clone();
    let archive = ArchiveService::start(parts).await?;
    Ok(House {
        tasks,
        failpoints,
        metrics,
        archive,
    })
}

pub(super) async fn open(dir: &Path) -> House {
    try_open(dir).await.unwrap()
}

impl House {
    pub(super) async fn close(self) {
        assert_eq!(
            self.tasks.drain(Duration::from_secs(10)).await,
            0,
            "a task is late"
        );
        assert_eq!(self.tasks.panicked(), 0);
    }

    pub(super) fn lane(&self) -> Lane<AppendItem, AppendAnswer> {
        self.archive.append(LanePeer {
            gateway: "gw1".to_owned(),
            incarnation: 1,
        })
    }

    pub(super) async fn export(&self, decrypt: bool) -> (Vec<u8>, PublicKey) {
        let request = ExportRequest {
            domain: "x".to_owned(),
            decrypt,
            actor: "officer".to_owned(),
            ..ExportRequest::default()
        };
        let mut chunks = self.archive.export(&Cx::local(), request).await.unwrap();
        let mut out = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.unwrap();
            assert!(chunk.data.len() <= 256 * 1024 && chunk.done <= chunk.total);
            out.extend_from_slice(&chunk.data);
        }
        let request = PublicKeyRequest {
            domain: "x".to_owned(),
        };
        let key = self
            .archive
            .public_key(&Cx::local(), request)
            .await
            .unwrap();
        assert_eq!(key.key.len(), 32);
        let key: PublicKey = self.archive.inner_ring().public_key("x").unwrap();
        (out, key)
    }
}

pub(super) fn message(sm_id: u8, count: u64) -> AppendItem {
    AppendItem {
        sm_id: vec![sm_id; 16].into(),
        count,
        gateway: "gw1".into(),
        session: 900 + u64::from(sm_id),
        from: format!("a{sm_id}@x/1"),
        to: "b@x".into(),
        kind: Kind::Message.into(),
        r#type: "chat".into(),
        id: format!("{sm_id}-{count}"),
        payload: format!("<message><body>{sm_id}-{count}</body></message>")
            .into_bytes()
            .into(),
        verdict: Some(Verdict {
            decision: Decision::Allow.into(),
            policy_version: 7,
            rule_id: "default".into(),
            ..Verdict::default()
        }),
        has_body: true,
        ..AppendItem::default()
    }
}

pub(super) fn down(item: attach_down::Item) -> AttachDown {
    AttachDown { item: Some(item) }
}

pub(super) async fn follow(
    archive: &dyn Archive,
    incarnation: u64,
    attach: AttachSession,
) -> Link<AttachDown, AttachUp> {
    let mut link = archive.attach(&Cx::local()).await.unwrap();
    let hello = AttachHello {
        gateway: "gw1".into(),
        incarnation,
        shard: 0,
    };
    link.send(down(attach_down::Item::Hello(hello)))
        .await
        .unwrap();
    link.send(down(attach_down::Item::Attach(attach)))
        .await
        .unwrap();
    loop {
        match next(&mut link).await {
            attach_up::Item::Attached(_) => return link,
            attach_up::Item::Head(_) => {}
            other => panic!("{other:?} before the confirmation"),
        }
    }
}

pub(super) async fn next(link: &mut Link<AttachDown, AttachUp>) -> attach_up::Item {
    let up = tokio::time::timeout(LIMIT, link.recv())
        .await
        .expect("something comes");
    up.expect("the link lives").item.expect("an item")
}

pub(super) async fn next_delivery(link: &mut Link<AttachDown, AttachUp>) -> Deliver {
    loop {
        if let attach_up::Item::Deliver(deliver) = next(link).await {
            return deliver;
        }
    }
}

pub(super) fn session(credit: u32) -> AttachSession {
    AttachSession {
        session: 1,
        full_jid: "b@x/1".into(),
        available: true,
        credit,
        ..AttachSession::default()
    }
}

pub(super) async fn call(lane: &Lane<AppendItem, AppendAnswer>, item: AppendItem) -> AppendAnswer {
    tokio::time::timeout(LIMIT, lane.call(item))
        .await
        .expect("an answer")
        .unwrap()
}
