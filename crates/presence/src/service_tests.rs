//! The service with gateways of our own: links, their loss, resync, fencing, overflow; and over gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chancery_api::channel::{Served, pipe};
use chancery_api::presence::RemotePresence;
use chancery_api::{Calls, LaneError, Role};
use tokio::time::{Instant, timeout};

use super::*;
use crate::outbox::OUTBOX_ITEMS;

struct House {
    service: PresenceService,
    failpoints: Failpoints,
    metrics: Metrics,
    tasks: Tasks,
}

impl House {
    fn new() -> Self {
        let (failpoints, metrics, tasks) = (Failpoints::off(), Metrics::new(), Tasks::new());
        let service = PresenceService::new(Parts {
            config: Config::default(),
            metrics: metrics.clone(),
            tracer: chancery_runtime::Tracer::off(),
            failpoints: failpoints.clone(),
            tasks: tasks.clone(),
        });
        Self {
            service,
            failpoints,
            metrics,
            tasks,
        }
    }
}

/// A gateway with its lane and its link.
struct Gw {
    name: &'static str,
    lane: Lane<PublishItem, PublishAnswer>,
    link: Link<AttachDown, AttachUp>,
}

fn peer(name: &str, incarnation: u64) -> LanePeer {
    LanePeer {
        gateway: name.into(),
        incarnation,
    }
}

async fn attach(
    presence: &dyn Presence,
    name: &str,
    incarnation: u64,
) -> Link<AttachDown, AttachUp> {
    let link = presence.attach(&Cx::local()).await.unwrap();
    let hello = AttachHello {
        gateway: name.into(),
        incarnation,
    };
    link.send(AttachDown {
        item: Some(Item::Hello(hello)),
    })
    .await
    .unwrap();
    link
}

impl Gw {
    async fn attached(presence: &dyn Presence, name: &'static str, incarnation: u64) -> Self {
        let lane = presence.publish(peer(name, incarnation));
        while !lane.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut link = attach(presence, name, incarnation).await;
        assert!(
            link.recv().await.unwrap().resync,
            "the first thing is to publish again"
        );
        Self { name, lane, link }
    }

    async fn act(&self, act: Act, session: u64, from: &str, targets: &[&str]) -> u32 {
        let item = PublishItem {
            act: act.into(),
            gateway: self.name.into(),
            session,
            from: from.into(),
            payload: format!("<presence from='{from}'/>").into(),
            targets: targets.iter().map(ToString::to_string).collect(),
            policy_version: 4,
            ..PublishItem::default()
        };
        self.lane.call(item).await.unwrap().copies
    }

    /// `from[!] > sessions`.
    async fn hears(&mut self) -> String {
        let up = timeout(Duration::from_secs(60), self.link.recv())
            .await
            .unwrap()
            .unwrap();
        let mark = if up.unavailable { "!" } else { "" };
        format!("{}{mark} > {:?}", up.from, up.sessions)
    }

    /// Marks the end of what was sent before by an echo to itself.
    async fn quiet(&mut self) {
        self.act(Act::Available, 999, "marker@x.example/m", &[])
            .await;
        assert_eq!(self.hears().await, "marker@x.example/m > [999]");
    }
}

const ALICE: &str = "alice@x.example/a";
const BOB: &str = "bob@x.example/b";

async fn pair(presence: &dyn Presence) -> (Gw, Gw) {
    let mut one = Gw::attached(presence, "gw1", 1).await;
    let mut two = Gw::attached(presence, "gw2", 1).await;
    assert_eq!(
        one.act(Act::Available, 1, ALICE, &["bob@x.example"]).await,
        1
    );
    assert_eq!(one.hears().await, format!("{ALICE} > [1]"));
    assert_eq!(
        two.act(Act::Available, 1, BOB, &["alice@x.example"]).await,
        2
    );
    assert_eq!(one.hears().await, format!("{BOB} > [1]"));
    assert_eq!(two.hears().await, format!("{BOB} > [1]"));
    assert_eq!(two.act(Act::Probe, 1, BOB, &["alice@x.example"]).await, 1);
    assert_eq!(two.hears().await, format!("{ALICE} > [1]"));
    (one, two)
}

#[tokio::test(start_paused = true)]
async fn two_gateways_hear_each_other() {
    let house = House::new();
    let (one, mut two) = pair(&house.service).await;
    assert_eq!(one.act(Act::Unavailable, 1, ALICE, &[]).await, 1);
    assert_eq!(two.hears().await, format!("{ALICE}! > [1]"));
    two.quiet().await;
    let text = house.metrics.render();
    for line in [
        "chancery_presence_acts_total{act=\"available\"} 3",
        "chancery_presence_acts_total{act=\"unavailable\"} 1",
        "chancery_presence_acts_total{act=\"probe\"} 1",
        "chancery_presence_sessions_count 2",
        "chancery_presence_gateways_count 2",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_lost_gateway_end_after_the_grace() {
    let house = House::new();
    let (one, mut two) = pair(&house.service).await;
    let start = Instant::now();
    drop(one);
    assert_eq!(two.hears().await, format!("{ALICE}! > [1]"));
    assert!(start.elapsed() >= Duration::from_secs(15));
    assert!(start.elapsed() < Duration::from_secs(16));
    assert!(
        house
            .metrics
            .render()
            .contains("chancery_presence_sessions_count 1")
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_returns_in_time_keeps_what_it_publishes_again() {
    let house = House::new();
    let (one, mut two) = pair(&house.service).await;
    one.act(Act::Available, 2, "carol@x.example/c", &["bob@x.example"])
        .await;
    assert_eq!(two.hears().await, "carol@x.example/c > [1]");
    drop(one);
    tokio::time::sleep(Duration::from_secs(5)).await;
    two.act(Act::Unavailable, 1, BOB, &[]).await;
    let mut one = Gw::attached(&house.service, "gw1", 2).await;
    assert_eq!(one.act(Act::Resync, 1, ALICE, &["bob@x.example"]).await, 1);
    assert_eq!(one.hears().await, format!("{BOB}! > [1]"), "what it missed");
    two.act(Act::Available, 1, BOB, &["alice@x.example"]).await;
    assert_eq!(one.hears().await, format!("{BOB} > [1]"));
    assert_eq!(two.hears().await, format!("{BOB} > [1]"));
    let start = Instant::now();
    assert_eq!(
        two.hears().await,
        "carol@x.example/c! > [1]",
        "was not published again"
    );
    assert!(start.elapsed() <= Duration::from_secs(15));
    tokio::time::sleep(Duration::from_secs(60)).await;
    two.quiet().await;
    assert_eq!(one.act(Act::Unavailable, 1, ALICE, &[]).await, 1);
    assert_eq!(two.hears().await, format!("{ALICE}! > [1]"));
}

#[tokio::test(start_paused = true)]
async fn a_newer_link_fences_the_older_and_not_the_reverse() {
    let house = House::new();
    let mut first = attach(&house.service, "gw1", 5).await;
    assert!(first.recv().await.unwrap().resync);
    let mut stale = attach(&house.service, "gw1", 4).await;
    assert_eq!(stale.recv().await, None);
    let mut second = attach(&house.service, "gw1", 6).await;
    assert!(second.recv().await.unwrap().resync);
    assert_eq!(first.recv().await, None);
    drop(second);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut again = attach(&house.service, "gw1", 1).await;
    assert!(
        again.recv().await.unwrap().resync,
        "a gateway that started again counts from one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_publishes_and_never_attaches_is_forgotten() {
    let house = House::new();
    let mut two = Gw::attached(&house.service, "gw2", 1).await;
    two.act(Act::Available, 1, BOB, &[]).await;
    assert_eq!(two.hears().await, format!("{BOB} > [1]"));
    let lane = house.service.publish(peer("gw1", 1));
    let item = PublishItem {
        act: Act::Available.into(),
        session: 1,
        from: ALICE.into(),
        payload: "<presence/>".into(),
        targets: vec!["bob@x.example".into()],
        ..PublishItem::default()
    };
    assert_eq!(lane.call(item).await.unwrap().copies, 1);
    assert_eq!(two.hears().await, format!("{ALICE} > [1]"));
    assert_eq!(two.hears().await, format!("{ALICE}! > [1]"));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_keep_up_loses_its_link_and_delays_nobody() {
    let house = House::new();
    let (one, mut two) = pair(&house.service).await;
    let tasks = house.tasks.clone();
    let reading = tasks.spawn("gw1", {
        let lane = one.lane.clone();
        async move {
            for _ in 0..OUTBOX_ITEMS + 2_000 {
                let item = PublishItem {
                    act: Act::Available.into(),
                    session: 1,
                    from: ALICE.into(),
                    payload: "<presence/>".into(),
                    targets: vec!["bob@x.example".into()],
                    ..PublishItem::default()
                };
                lane.call(item).await.unwrap();
            }
        }
    });
    reading.await.unwrap();
    // Neither read anything: each was dropped, once, and no publish waited.
    let text = house.metrics.render();
    assert!(
        text.contains("chancery_presence_links_dropped_total 2"),
        "{text}"
    );
    let mut envelopes = 0;
    while two.link.recv().await.is_some() {
        envelopes += 1;
    }
    assert!(envelopes < OUTBOX_ITEMS);
    let mut two = Gw::attached(&house.service, "gw2", 2).await;
    two.act(Act::Resync, 1, BOB, &[]).await;
    assert_eq!(
        two.hears().await,
        format!("{ALICE} > [1]"),
        "the latest of what it missed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failpoint_closes_the_lane() {
    let house = House::new();
    house
        .failpoints
        .set("presence::publish::before", "error")
        .unwrap();
    let lane = house.service.publish(peer("gw1", 1));
    assert_eq!(
        lane.call(PublishItem::default()).await,
        Err(LaneError::NotSubmitted)
    );
    house.failpoints.configure("").unwrap();
    assert!(lane.call(PublishItem::default()).await.is_ok());
}

#[tokio::test]
async fn the_same_over_grpc() {
    let house = House::new();
    let served = Served {
        presence: Some(Arc::new(house.service.clone())),
        ..Served::default()
    };
    let calls = Calls::new(Failpoints::off(), &Metrics::new());
    let channel = pipe(&house.tasks, served, Role::Gateway);
    let remote = RemotePresence::new(channel, calls, house.tasks.clone());
    let (one, mut two) = pair(&remote).await;
    one.act(Act::Directed, 1, ALICE, &[BOB]).await;
    let up = two.link.recv().await.unwrap();
    assert_eq!((up.to.as_str(), up.policy_version), (BOB, 4));
    one.act(Act::Unavailable, 1, ALICE, &[]).await;
    assert_eq!(two.hears().await, format!("{ALICE}! > [1]"));
    assert_eq!(house.tasks.panicked(), 0);
}
