//! One message followed through all services: what a collector of the OpenTelemetry protocol gets of
//! it, in both shapes. The collector here is a server of the protocol's own definition.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chancery_runtime::Tasks;
use chancery_testkit::server::{Server, Setup, Shape};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use tonic::{Request, Response, Status};

use crate::play::play_with;

/// Spans come by then: they are gathered for a moment and sent from the background.
const SPANS_LIMIT: Duration = Duration::from_secs(15);
/// Batches that the collector holds before they are looked at.
const BATCHES: usize = 4_096;
const BODY: &str = "the merger is off";

/// A span as the collector got it.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    process: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    said: BTreeMap<String, String>,
}

/// Hands on whatever comes.
struct Collector(mpsc::SyncSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let full = |_| Status::resource_exhausted("nobody looks");
        self.0.try_send(request.into_inner()).map_err(full)?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a thread of its own: it outlives every process that sends to it.
struct Collecting {
    address: SocketAddr,
    batches: mpsc::Receiver<ExportTraceServiceRequest>,
    spans: Vec<Span>,
    /// All that came, as text.
    text: String,
    _runtime: tokio::runtime::Runtime,
}

impl Collecting {
    fn start() -> Result<Self> {
        let (sender, batches) = mpsc::sync_channel(BATCHES);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let _entered = runtime.enter();
        Tasks::new().spawn("collector", async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(Collector(sender)))
                .serve_with_incoming(incoming)
                .await
                .expect("the collector serves");
        });
        let (spans, text) = (Vec::new(), String::new());
        drop(_entered);
        Ok(Self {
            address,
            batches,
            spans,
            text,
            _runtime: runtime,
        })
    }

    /// The spans of the one trace for which `whole` holds.
    fn until(&mut self, whole: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let until = Instant::now() + SPANS_LIMIT;
        loop {
            let mut traces: BTreeMap<&[u8], Vec<Span>> = BTreeMap::new();
            for span in &self.spans {
                traces.entry(&span.trace).or_default().push(span.clone());
            }
            if let Some(found) = traces.into_values().find(|spans| whole(spans)) {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            let batch = self
                .batches
                .recv_timeout(left)
                .with_context(|| format!("no whole trace in {:#?}", self.spans))?;
            self.take(batch);
        }
    }

    fn take(&mut self, batch: ExportTraceServiceRequest) {
        self.text.push_str(&format!("{batch:?}"));
        for of_resource in batch.resource_spans {
            let resource = said(&of_resource.resource.unwrap_or_default().attributes);
            let get = |key: &str| resource.get(key).cloned().unwrap_or_default();
            for span in of_resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                self.spans.push(Span {
                    service: get("service.name"),
                    process: get("service.instance.id"),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    said: said(&span.attributes),
                });
            }
        }
    }
}

fn said(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(&pair.value)))
        .collect()
}

#[test]
fn one_message_is_followed_through_all_services_in_one() {
    followed(Shape::One, &[("chancery", "one"); 5]);
}

#[test]
fn one_message_is_followed_through_all_services_in_many() {
    let (first, second) = (("gateway", "gw1"), ("gateway", "gw2"));
    followed(
        Shape::Many,
        &[
            first,
            ("policy", "policy"),
            first,
            ("archive", "archive"),
            second,
        ],
    );
}

/// `processes`: where the stanza, the verdict, the question to the log, the commit and the delivery
/// have to be from.
fn followed(shape: Shape, processes: &[(&str, &str); 5]) {
    let mut collecting = Collecting::start().unwrap();
    let config = format!(
        "[trace]\nendpoint = \"http://{}\"\nratio = 1.0\n",
        collecting.address
    );
    let setup = Setup {
        config,
        ..Setup::default()
    };
    play_with(shape, setup, &["alice", "bob"], &[], async |server| {
        say(server).await?;
        let spans = collecting.until(|spans| {
            let has = |name: &str| spans.iter().any(|span| span.name == name);
            NAMES.iter().all(|name| has(name))
        })?;
        check(&spans, processes)
    });
    // Everything that any process had to say, until its end.
    while let Ok(batch) = collecting.batches.try_recv() {
        collecting.take(batch);
    }
    for secret in [BODY, "alice", "bob", "example.test"] {
        assert!(!collecting.text.contains(secret), "{secret} is in a trace");
    }
}

/// The way of a message, in the order of `processes`, and the question to policy.
const NAMES: [&str; 6] = [
    "gateway.stanza",
    "policy.verdict",
    "archive.append",
    "archive.commit",
    "gateway.deliver",
    "policy.decide",
];

async fn say(server: &Server) -> Result<()> {
    let mut alice = server.client("alice", "a", 0).await?;
    let mut bob = server.client("bob", "b", 1).await?;
    bob.send("<presence/>").await?;
    bob.until_marker().await?;
    let to = bob.bare().to_owned();
    alice
        .send(format!(
            "<message type='chat' to='{to}' id='m1'><body>{BODY}</body></message>"
        ))
        .await?;
    bob.wait(|e| &*e.header.name == "message" && e.header.id.as_deref() == Some("m1"))
        .await?;
    alice.until_marker().await?;
    alice.close().await?;
    bob.close().await
}

fn check(spans: &[Span], processes: &[(&str, &str); 5]) -> Result<()> {
    let one = |name: &str| {
        let mut named = spans.iter().filter(|span| span.name == name);
        let found = named.next().with_context(|| format!("no {name}"))?;
        ensure!(named.next().is_none(), "{name} twice in {spans:#?}");
        anyhow::Ok(found)
    };
    for (name, (service, process)) in NAMES.iter().zip(processes) {
        let span = one(name)?;
        let from = (span.service.as_str(), span.process.as_str());
        ensure!(from == (*service, *process), "{name} is from {from:?}");
    }
    let stanza = one("gateway.stanza")?;
    ensure!(stanza.parent.is_empty(), "{stanza:?}");
    for (name, parent) in [
        ("policy.decide", "gateway.stanza"),
        ("policy.verdict", "policy.decide"),
        ("archive.append", "gateway.stanza"),
        ("archive.commit", "archive.append"),
        ("gateway.deliver", "archive.append"),
    ] {
        ensure!(
            one(name)?.parent == one(parent)?.id,
            "{name} does not hang below {parent}"
        );
    }
    let said = |name: &str, key: &str| {
        one(name).map(|span| span.said.get(key).cloned().unwrap_or_default())
    };
    ensure!(said("gateway.stanza", "kind")? == "message");
    ensure!(said("gateway.stanza", "type")? == "chat");
    ensure!(said("gateway.stanza", "outcome")? == "settled");
    ensure!(said("archive.commit", "outcome")? == "OUTCOME_COMMITTED");
    Ok(())
}
