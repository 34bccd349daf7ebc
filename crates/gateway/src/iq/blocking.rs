//! Blocking (XEP-0191), with reports of abuse (XEP-0377). The roster service owns the lists; what
//! they mean for a stanza is in `blocks.rs`.

use chancery_api::archive::RecordActRequest;
use chancery_api::roster::{BlockRequest, BlocksRequest};
use chancery_xml::{Child, Element, Limits, alone, push_attr, scan};
use chancery_xmpp::{Condition, StanzaError, jid, ns};
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;

/// JIDs of one request.
const ITEMS: usize = 1_000;
/// Stanza ids that one report may name.
const REPORTED: usize = 64;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "blocking",
        specifications: &[
            Specification {
                name: "XEP-0191",
                version: "1.3",
                status: "complete",
            },
            Specification {
                name: "XEP-0377",
                version: "0.4.0",
                status: "complete: a report is a record in the log, for officers",
            },
        ],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let list = Handler::ask(Verb::Get, |request| list(request).boxed());
    let block = Handler::ask(Verb::Set, |request| change(request).boxed());
    // Clients send it to either.
    for scope in [Scope::Server, Scope::Account] {
        registrar.handle(scope, ns::BLOCKING, "blocklist", list);
        registrar.handle(scope, ns::BLOCKING, "block", block);
        registrar.handle(scope, ns::BLOCKING, "unblock", block);
    }
    registrar.disco(Scope::Server, ns::BLOCKING);
    registrar.disco(Scope::Server, ns::REPORTING);
}

async fn list(request: Request) -> Answer {
    // §3.3: who asks is told of changes, from before the answer on.
    request.identity.followed.lock().wants_blocks = true;
    let ask = BlocksRequest {
        owner: request.identity.account.to_string(),
    };
    let (cx, _span) = request.cx("roster.blocks");
    let blocks = request.gateway.roster.blocks(&cx, ask).await;
    let blocks = blocks.map_err(|error| answer::api_error(&error))?;
    let mut out = format!("<blocklist xmlns='{}'>", ns::BLOCKING);
    for jid in blocks.jids {
        out.push_str("<item");
        push_attr(&mut out, "jid", &jid);
        out.push_str("/>");
    }
    out.push_str("</blocklist>");
    Ok(out)
}

/// What is asked of the lists.
struct Asked {
    unblock: bool,
    jids: Vec<String>,
    /// As JSON, for the record.
    reports: Vec<Value>,
}

async fn change(request: Request) -> Answer {
    let Asked {
        unblock,
        jids,
        reports,
    } = read(&request)?;
    let owner = request.identity.account.to_string();
    for report in reports {
        let act = RecordActRequest {
            domain: request.identity.domain.to_string(),
            actor: owner.clone(),
            act: "account.report".to_owned(),
            detail: report.to_string(),
        };
        let (cx, _span) = request.cx("archive.record_act");
        let recorded = request.gateway.archive.record_act(&cx, act).await;
        recorded.map_err(|error| answer::api_error(&error))?;
    }
    let ask = BlockRequest {
        owner,
        jids,
        unblock,
    };
    let (cx, _span) = request.cx("roster.block");
    match request.gateway.roster.block(&cx, ask).await {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(answer::api_error(&error)),
    }
}

fn read(request: &Request) -> Result<Asked, StanzaError> {
    let bad = || StanzaError::new(Condition::BadRequest);
    let payload = request.payload().ok_or_else(bad)?;
    let element = inner(&request.element, payload).ok_or_else(bad)?;
    let unblock = &*element.header.name == "unblock";
    let mut asked = Asked {
        unblock,
        jids: Vec::new(),
        reports: Vec::new(),
    };
    for item in &element.header.children {
        if !item.is("item", ns::BLOCKING) {
            continue;
        }
        if asked.jids.len() == ITEMS {
            return Err(answer::outage());
        }
        let jid = jid::parse(item.attr("jid").ok_or_else(bad)?)?.to_string();
        let is_report = |child: &Child| child.is("report", ns::REPORTING);
        if !unblock && item.children.iter().any(is_report) {
            let item = inner(&element, item).ok_or_else(bad)?;
            let report = item.header.children.iter().find(|child| is_report(child));
            let read = report.and_then(|report| reported(&item, &jid, report));
            asked.reports.push(read.ok_or_else(bad)?);
        }
        asked.jids.push(jid);
    }
    // §3.4: only an `unblock` of nobody means all.
    if asked.jids.is_empty() && !unblock {
        return Err(bad());
    }
    Ok(asked)
}

/// A child as an element of its own: a scan names two levels below it.
fn inner(element: &Element, child: &Child) -> Option<Element> {
    let bytes = alone(element, &[], child);
    scan(&bytes, &Limits::after_auth()).ok()
}

/// XEP-0377 §3: the reason, a text, and which stanzas it is about.
fn reported(element: &Element, jid: &str, report: &Child) -> Option<Value> {
    let reason = report.attr("reason")?;
    let text = report.children.iter().find(|c| c.is("text", ns::REPORTING));
    let stanzas: Vec<Value> = report
        .children
        .iter()
        .filter(|child| child.is("stanza-id", ns::SID))
        .take(REPORTED)
        .map(|child| json!({ "by": child.attr("by"), "id": child.attr("id") }))
        .collect();
    Some(json!({
        "jid": jid,
        "reason": reason,
        "text": text.map(|text| element.child_text(text)),
        "stanzas": stanzas,
    }))
}
