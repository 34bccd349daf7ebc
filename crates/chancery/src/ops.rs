//! The operator's address: `/live` (the process schedules tasks), `/ready` (it can do its work
//! now, with the reason when not) and `/metrics` (Prometheus). Owns no measure: services bring
//! their own probes and metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chancery_runtime::{Clock, Metrics, Shutdown, Stage};
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// A probe that does not answer within this has failed.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Answers are kept this long, so that asking often costs nothing.
const KEPT: Duration = Duration::from_secs(1);

/// Asks one part whether it works; the error says what does not.
pub type Probe = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What readiness is made of.
pub struct Ops {
    clock: Clock,
    metrics: Metrics,
    shutdown: Shutdown,
    probes: Vec<(&'static str, Probe)>,
    last: tokio::sync::Mutex<Option<(Instant, Readiness)>>,
}

/// The answer of `/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Readiness {
    ready: bool,
    /// Name of the part, and `ok` or what is wrong.
    checks: BTreeMap<&'static str, String>,
}

impl Ops {
    pub fn new(
        clock: Clock,
        metrics: Metrics,
        shutdown: Shutdown,
        probes: Vec<(&'static str, Probe)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            metrics,
            shutdown,
            probes,
            last: tokio::sync::Mutex::default(),
        })
    }

    /// Serves until the last stage of the shutdown: who watches it sees the drain.
    pub fn serve(self: Arc<Self>, listener: TcpListener) {
        let tasks = self.shutdown.tasks(Stage::Log).clone();
        let router = Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self);
        let signal = tasks.signal().clone();
        tasks.spawn("ops", async move {
            tokio::select! {
                () = signal.cancelled() => {}
                served = async { axum::serve(listener, router).await } => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the ops listener failed");
                    }
                }
            }
        });
    }

    async fn readiness(&self) -> Readiness {
        if self.shutdown.is_requested() {
            let checks = BTreeMap::from([("shutdown", "under way".to_owned())]);
            return Readiness {
                ready: false,
                checks,
            };
        }
        let mut last = self.last.lock().await;
        let now = self.clock.monotonic();
        if let Some((at, known)) = &*last
            && now.duration_since(*at) < KEPT
        {
            return known.clone();
        }
        let asked = self.probes.iter().map(|(name, probe)| async {
            let answer = tokio::time::timeout(PROBE_LIMIT, probe()).await;
            (
                *name,
                answer.unwrap_or_else(|_| Err("no answer in time".into())),
            )
        });
        let answers = join_all(asked).await;
        let ready = answers.iter().all(|(_, answer)| answer.is_ok());
        let text = |answer: Result<(), String>| answer.map_or_else(|error| error, |()| "ok".into());
        let checks = answers
            .into_iter()
            .map(|(name, answer)| (name, text(answer)))
            .collect();
        let readiness = Readiness { ready, checks };
        *last = Some((now, readiness.clone()));
        readiness
    }
}

async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let readiness = ops.readiness().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = serde_json::to_string(&readiness).unwrap_or_default();
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body + "\n",
    )
        .into_response()
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        chancery_runtime::metrics::CONTENT_TYPE,
    )];
    (kind, ops.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readiness_names_what_fails_and_what_hangs() {
        let works = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicU32::new(0));
        let (switch, count) = (Arc::clone(&works), Arc::clone(&asked));
        let probes: Vec<(&'static str, Probe)> = vec![
            (
                "archive",
                Box::new(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                    let works = switch.load(Ordering::SeqCst);
                    Box::pin(async move {
                        if works {
                            Ok(())
                        } else {
                            Err("disk full".into())
                        }
                    })
                }),
            ),
            ("policy", Box::new(|| Box::pin(async { Ok(()) }))),
        ];
        let shutdown = Shutdown::new();
        let ops = Ops::new(Clock::real(), Metrics::new(), shutdown.clone(), probes);
        assert!(ops.readiness().await.ready);
        works.store(false, Ordering::SeqCst);
        assert!(ops.readiness().await.ready, "kept for a moment");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(KEPT * 2).await;
        let readiness = ops.readiness().await;
        assert!(!readiness.ready);
        assert_eq!(readiness.checks["archive"], "disk full");
        assert_eq!(readiness.checks["policy"], "ok");
        shutdown.request("test");
        assert_eq!(ops.readiness().await.checks["shutdown"], "under way");

        let hangs: Vec<(&'static str, Probe)> =
            vec![("roster", Box::new(|| Box::pin(std::future::pending())))];
        let ops = Ops::new(Clock::real(), Metrics::new(), Shutdown::new(), hangs);
        assert_eq!(ops.readiness().await.checks["roster"], "no answer in time");
    }
}
