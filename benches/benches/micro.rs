//! What one stanza costs at the places it passes: framing, scan, splice, verdict, seal, append. Owns
//! no load and no sockets: that is the load generator.
#![allow(clippy::expect_used)] // a bench that cannot go on ends

use std::collections::{BTreeSet, HashMap};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{AppendAnswer, AppendItem, Archive, Outcome as Appended};
use chancery_api::{Decision, Kind as StanzaKind, Lane, LanePeer, Verdict as Decided};
use chancery_archive::{ArchiveService, Config, Parts};
use chancery_evidence::{
    ContentRef, DEPLOYMENT, Direction, Draft, IdempotencyKey, KeyRing, Kind, Outcome, Verdict,
};
use chancery_policy::{Decider, Facts, GroupKey, check};
use chancery_runtime::{Clock, Failpoints, Ids, Metrics, Tasks, Tracer};
use chancery_xml::{Element, Framer, Limits, Splice, scan};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A full batch of a lane.
const BATCH: u64 = 64;
const DOMAIN: &str = "example.test";
const HEADER: &[u8] = b"<stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' version='1.0' to='example.test'>";

/// What the load generator sends: 100 bytes of body.
fn stanza() -> Bytes {
    let body = "x".repeat(100);
    Bytes::from(format!(
        "<message to='user1@example.test' type='chat' id='l17'><body>{body}</body></message>"
    ))
}

fn element() -> Element {
    scan(&stanza(), &Limits::after_auth()).expect("well-formed")
}

fn framing(c: &mut Criterion) {
    let mut group = c.benchmark_group("framing");
    for count in [1, BATCH] {
        let bytes = stanza().repeat(usize::try_from(count).expect("small"));
        let mut framer = Framer::new(Limits::after_auth());
        framer.push(HEADER);
        framer.next().expect("a header").expect("complete");
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} in one push"), |b| {
            b.iter(|| {
                framer.push(&bytes);
                let mut frames = 0;
                while let Some(frame) = framer.next().expect("well-formed") {
                    black_box(frame);
                    frames += 1;
                }
                assert_eq!(frames, count);
            });
        });
    }
    group.finish();
}

fn scanning(c: &mut Criterion) {
    let (bytes, limits) = (stanza(), Limits::after_auth());
    c.bench_function("scan", |b| {
        b.iter(|| scan(black_box(&bytes), &limits).expect("well-formed"));
    });
}

fn splice(c: &mut Criterion) {
    let element = element();
    let id =
        "<stanza-id xmlns='urn:xmpp:sid:0' by='user1@example.test' id='AAAAAAAAAAAAAAAAAAAAAA'/>";
    c.bench_function("splice from, xmlns and a child", |b| {
        b.iter(|| {
            Splice::new(black_box(&element))
                .set_attr("from", Some("user0@example.test/phone"))
                .ensure_ns("jabber:client")
                .append_child(id)
                .finish()
        });
    });
}

/// 10,000 accounts in 100 groups, and a wall between each group and the next.
fn decide(c: &mut Criterion) {
    let mut groups: HashMap<GroupKey, BTreeSet<Arc<str>>> = HashMap::new();
    let mut facts = Facts {
        domains: vec![DOMAIN.into()],
        ..Facts::default()
    };
    for n in 0..10_000 {
        let jid: Arc<str> = format!("user{n}@{DOMAIN}").into();
        facts.accounts.insert(Arc::clone(&jid), true);
        let key = GroupKey::new(DOMAIN, format!("group{}", n % 100));
        groups.entry(key).or_default().insert(jid);
    }
    facts.groups = groups.into_iter().collect();
    let walls: String = (0..100)
        .map(|n| {
            format!(
                "[[wall]]\nname = \"w{n}\"\nbetween = [\"group{n}\", \"group{}\"]\n\
                 direction = \"both\"\nkind = \"open\"\ntext = \"no\"\n",
                (n + 1) % 100
            )
        })
        .collect();
    let policy = check(&walls, Some(&facts)).expect("a correct policy");
    let decider = Decider::compile(1, Arc::new(policy), &facts);
    for (name, to, expected) in [
        ("allowed", "user2@example.test", Decision::Allow),
        ("walled", "user1@example.test", Decision::Deny),
    ] {
        c.bench_function(&format!("decide, {name}"), |b| {
            b.iter(|| {
                let from = black_box("user0@example.test");
                let verdict = decider.decide(from, to, StanzaKind::Message, "chat");
                assert_eq!(verdict.decision(), expected);
                verdict
            });
        });
    }
}

fn seal(c: &mut Criterion) {
    let ids = Ids::seeded(7);
    let mut random = |out: &mut [u8]| ids.fill(out);
    let mut ring = KeyRing::generate(&mut random);
    for domain in [DEPLOYMENT, DOMAIN] {
        ring.add_domain(domain, &mut random).expect("new keys");
    }
    let payload = stanza();
    let draft = Draft {
        domain: DOMAIN,
        shard: 0,
        epoch: 1,
        number: 1,
        time_ms: 1_790_000_000_000,
        kind: Kind::Message,
        direction: Direction::Internal,
        outcome: Outcome::Logged,
        verdict: Verdict::Allow,
        policy_version: 1,
        rule: "default",
        reason: "",
        retention: "standard",
        gateway: "gw1",
        key: Some(IdempotencyKey {
            stream: [9; 16],
            count: 1,
        }),
        sender: Some([1; 16]),
        recipients: &[[2; 16]],
        detail: "",
        content: ContentRef {
            from: "user0@example.test/phone",
            to: &["user1@example.test"],
            stanza_id: "l17",
            stanza_type: "chat",
            payload: &payload,
            delivered: None,
        },
    };
    let previous = ring.genesis(0);
    c.bench_function("evidence seal", |b| {
        b.iter(|| {
            draft
                .seal(&ring, black_box(&previous), &mut random)
                .expect("sealed")
        });
    });
}

/// One durable append, and a batch of them, with everything behind it: sequencer, seal, commit.
fn append(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .expect("a directory");
    let tasks = Tasks::new();
    let parts = Parts {
        data_dir: directory.path().to_owned(),
        domains: vec![DOMAIN.into()],
        config: Config::default(),
        clock: Clock::real(),
        ids: Ids::real(),
        metrics: Metrics::new(),
        failpoints: Failpoints::off(),
        tasks: tasks.clone(),
        tracer: Tracer::off(),
        fatal: None,
    };
    let archive = runtime
        .block_on(ArchiveService::start(parts))
        .expect("an archive");
    let peer = LanePeer {
        gateway: "gw1".into(),
        incarnation: 1,
    };
    let lane = runtime.block_on(async { archive.append(peer) });
    let mut number = 0;
    let mut group = c.benchmark_group("append");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(3));
    for count in [1, BATCH] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} at once"), |b| {
            b.iter(|| runtime.block_on(append_all(&lane, &mut number, count)));
        });
    }
    group.finish();
    drop(lane);
    runtime.block_on(tasks.drain(Duration::from_secs(10)));
}

async fn append_all(lane: &Lane<AppendItem, AppendAnswer>, number: &mut u64, count: u64) {
    let mut answers = Vec::new();
    for _ in 0..count {
        *number += 1;
        answers.push(lane.submit(item(*number)).await.expect("submitted"));
    }
    for answer in answers {
        assert_eq!(
            answer.await.expect("answered").outcome(),
            Appended::Committed
        );
    }
}

/// To many mailboxes: nobody reads them, and each holds a bounded number.
fn item(number: u64) -> AppendItem {
    AppendItem {
        sm_id: Bytes::from_static(&[7; 16]),
        count: number,
        gateway: "gw1".into(),
        session: 1,
        from: "user0@example.test/phone".into(),
        to: format!("user{}@{DOMAIN}", number % 1000),
        kind: StanzaKind::Message.into(),
        r#type: "chat".into(),
        id: "l17".into(),
        payload: stanza(),
        verdict: Some(Decided {
            decision: Decision::Allow.into(),
            policy_version: 1,
            rule_id: "default".into(),
            ..Decided::default()
        }),
        has_body: true,
        ..AppendItem::default()
    }
}

criterion_group!(stanza_path, framing, scanning, splice, decide, seal, append);
criterion_main!(stanza_path);
