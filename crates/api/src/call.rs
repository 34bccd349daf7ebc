//! The one function that every unary call to another process passes through: deadline, cap on what
//! is under way, retry of idempotent methods, failpoint, metrics. Also the call context.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::Status;
use tonic::metadata::MetadataValue;

use chancery_runtime::metrics::Counters;
use chancery_runtime::trace::Span;
use chancery_runtime::{Failpoints, Metrics, Tracer};

use crate::{ApiError, Caller, Code, LanePeer};

/// Calls of one process to one service under way; a further one is refused.
const CALLS_UNDER_WAY: usize = 512;
/// A call without a stated deadline has this.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// Times that an idempotent call is tried in all, within its deadline.
const TRIES: u32 = 3;
/// Pause before the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The context of one call: who asks, how long it may take, and the trace it belongs to.
#[derive(Debug, Clone)]
pub struct Cx {
    /// Who asks; set by the serving side from the channel, never from the request.
    pub caller: Caller,
    /// How long the call may take from now.
    pub deadline: Duration,
    /// W3C trace context, if traced.
    pub traceparent: Option<String>,
}

impl Cx {
    /// A call from this process with the usual deadline.
    pub fn local() -> Self {
        Self {
            caller: Caller::Local,
            deadline: DEFAULT_DEADLINE,
            traceparent: None,
        }
    }

    /// The same with another deadline.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same on behalf of a span; an empty header is none.
    #[must_use]
    pub fn traced(mut self, traceparent: String) -> Self {
        self.traceparent = Some(traceparent).filter(|header| !header.is_empty());
        self
    }
}

/// Shared state of all calls that one process makes.
#[derive(Clone)]
pub struct Calls {
    room: Arc<Semaphore>,
    failpoints: Failpoints,
    counted: Counters,
}

impl Calls {
    /// No calls yet; registers `chancery_calls_total`.
    pub fn new(failpoints: Failpoints, metrics: &Metrics) -> Self {
        let counted = metrics.counters(
            "chancery_calls",
            "calls to other services, by method and outcome",
            &["method", "outcome"],
        );
        Self {
            room: Arc::new(Semaphore::new(CALLS_UNDER_WAY)),
            failpoints,
            counted,
        }
    }

    /// Runs `attempt` under the rules above.
    pub(crate) async fn run<T, F>(
        &self,
        cx: &Cx,
        method: &'static str,
        idempotent: bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let Ok(_room) = self.room.try_acquire() else {
            self.count(method, "refused");
            return Err(ApiError::resource("too many calls under way"));
        };
        let tries = async {
            for left in (0..TRIES).rev() {
                if self.failpoints.hit(method).await.is_err() {
                    return Err(ApiError::unavailable("failpoint"));
                }
                match attempt().await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) => {
                        let error = ApiError::from(status);
                        if left == 0 || !idempotent || error.code != Code::Unavailable {
                            return Err(error);
                        }
                    }
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(ApiError::unavailable("no try left"))
        };
        let outcome = tokio::time::timeout(cx.deadline, tries)
            .await
            .unwrap_or_else(|_| Err(ApiError::new(Code::Deadline, method)));
        self.count(method, if outcome.is_ok() { "ok" } else { "error" });
        outcome
    }

    fn count(&self, method: &'static str, outcome: &'static str) {
        self.counted.with(&[method, outcome]).inc();
    }
}

const GATEWAY: &str = "chancery-gateway";
const INCARNATION: &str = "chancery-incarnation";
const TRACEPARENT: &str = "traceparent";

/// A request that carries the context.
pub(crate) fn outgoing<T>(cx: &Cx, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(cx.deadline);
    if let Some(trace) = cx
        .traceparent
        .as_ref()
        .and_then(|t| MetadataValue::try_from(t).ok())
    {
        request.metadata_mut().insert(TRACEPARENT, trace);
    }
    request
}

/// A request that opens a lane; no deadline.
pub(crate) fn opening<T>(peer: &LanePeer, body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    if let Ok(gateway) = MetadataValue::try_from(&peer.gateway) {
        request.metadata_mut().insert(GATEWAY, gateway);
    }
    request
        .metadata_mut()
        .insert(INCARNATION, peer.incarnation.into());
    request
}

/// The peer that a lane's request names.
pub(crate) fn lane_peer<T>(request: &tonic::Request<T>) -> Result<LanePeer, ApiError> {
    let text = |name| request.metadata().get(name).and_then(|v| v.to_str().ok());
    let gateway = text(GATEWAY).ok_or_else(|| ApiError::invalid("lane without a name"))?;
    let incarnation = text(INCARNATION)
        .and_then(|v| v.parse().ok())
        .ok_or_else(|| ApiError::invalid("lane without an incarnation"))?;
    Ok(LanePeer {
        gateway: gateway.to_owned(),
        incarnation,
    })
}

/// The context of a request that came in for `method`, or the refusal.
pub(crate) fn incoming<T>(
    trust: &crate::channel::Trust,
    request: &tonic::Request<T>,
    method: &'static str,
) -> Result<Cx, ApiError> {
    let caller = trust.caller(request)?;
    if !caller.may(method) {
        tracing::warn!(
            method,
            ?caller,
            "refused a call that the table does not allow"
        );
        return Err(ApiError::denied(method));
    }
    let traceparent = request
        .metadata()
        .get(TRACEPARENT)
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    Ok(Cx {
        caller,
        deadline: DEFAULT_DEADLINE,
        traceparent,
    })
}

/// The span of a call that is served, where its caller follows one.
pub(crate) fn served(tracer: &Tracer, cx: &Cx, method: &'static str) -> Span {
    tracer.served(method, cx.traceparent.as_deref().unwrap_or_default())
}
