//! What comes before a handler where one account's request concerns another's eyes: policy's word,
//! then the record.
//!
//! Fails closed: without a verdict, or without its record, nothing is handled. Refuses to know what
//! the request is about.

use chancery_api::archive::{AppendItem, Outcome};
use chancery_runtime::trace::TraceContext;
use chancery_xmpp::StanzaError;

use crate::pipeline::answer;
use crate::pipeline::decide::{Question, allows};
use crate::service::Gateway;
use crate::trace;

/// Decides, and records what is not ephemeral. `Ok(Some)`: denied, and how that looks.
pub(super) async fn admit(
    gateway: &Gateway,
    mut item: AppendItem,
    trace: Option<TraceContext>,
) -> Result<Option<StanzaError>, StanzaError> {
    let question = Question {
        from: item.from.clone(),
        to: vec![item.to.clone()],
        kind: item.kind(),
        type_: item.r#type.clone(),
        trace,
    };
    let Ok(verdict) = gateway.decide_one(&question).await else {
        gateway.metrics.undecided.inc();
        return Err(answer::outage());
    };
    gateway.permits.ruled(allows(&verdict));
    if !item.ephemeral {
        item.verdict = Some(verdict.clone());
        record(gateway, item, trace).await?;
    }
    Ok((!allows(&verdict)).then(|| answer::denied(&verdict)))
}

/// In the log, or an error: to nobody's session, because no session is addressed.
async fn record(
    gateway: &Gateway,
    mut item: AppendItem,
    trace: Option<TraceContext>,
) -> Result<(), StanzaError> {
    let span = gateway.tracer.calls(trace::APPEND, trace);
    item.traceparent = span.traceparent();
    let answered = gateway.append.call(item).await;
    match answered.map(|answered| (answered.outcome(), answered.number)) {
        Ok((Outcome::Committed | Outcome::Gone | Outcome::Full, number)) => {
            if number > 0 {
                gateway.permits.recorded();
            }
            Ok(())
        }
        _ => Err(answer::outage()),
    }
}
