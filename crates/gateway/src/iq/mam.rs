//! The own archive (XEP-0313): queries, their form, and what it spans; preferences (XEP-0441). The
//! archive service pages; policy is asked again about what is older than the version in force, so
//! that a wall hides history too. Refuses everybody else's archive (`pipeline/filters.rs`).

mod page;
mod preferences;

#[cfg(test)]
pub(crate) use page::END_LOOKS;

use std::sync::Arc;
use std::time::Duration;

use chancery_api::archive::QueryArchiveRequest;
use chancery_xmpp::mam::{self, Query};
use chancery_xmpp::tree::{self, minidom};
use chancery_xmpp::{Condition, StanzaError, ns, rsm};
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Answer, Handler, Manifest, Page, PageAnswer, Registrar, Request, Scope, Specification, Verb,
};
use crate::pipeline::answer;
use crate::session::deliver::stamp;
use crate::session::outgoing::Source;

/// Messages of a page when the client names no number, and at most.
const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 250;
/// A query waits so long for the page before it to be written: the client has to take that first.
const TURN_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "mam",
        specifications: &[
            Specification {
                name: "XEP-0313",
                version: "1.1.3",
                status: "complete for users' own archives, which hold no groupchat",
            },
            Specification {
                name: "XEP-0059",
                version: "1.0",
                status: "complete, without pages by index",
            },
            Specification {
                name: "XEP-0441",
                version: "0.2.0",
                status: "partial: without the default roster",
            },
        ],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let query = Handler::page(Verb::Any, |request| query(request).boxed());
    let metadata = Handler::ask(Verb::Get, |request| metadata(request).boxed());
    let prefs = Handler::ask(Verb::Any, |request| preferences::run(request).boxed());
    registrar.handle(Scope::Account, ns::MAM, "query", query);
    registrar.handle(Scope::Account, ns::MAM, "metadata", metadata);
    registrar.handle(Scope::Account, ns::MAM, "prefs", prefs);
    for feature in [ns::MAM, mam::EXTENDED, mam::GROUPCHAT_FIELD] {
        registrar.disco(Scope::Account, feature);
    }
}

/// The payload as a tree: it is the server's own, and small.
fn payload(request: &Request) -> Result<minidom::Element, StanzaError> {
    let root = tree::tree(&request.element)?;
    let payload = root.children().next().cloned();
    payload.ok_or_else(|| StanzaError::new(Condition::BadRequest))
}

async fn query(request: Request) -> PageAnswer {
    if !request.is_set() {
        return Ok(Page {
            before: Vec::new(),
            payload: mam::form(),
            turn: None,
        });
    }
    let query = Query::read(&payload(&request)?)?;
    let turn = turn(&request).await?;
    let found = page::read(&request, asked(&request, &query)).await?;
    let ids = found.ends();
    let shown = rsm::Page {
        first: ids.map(|(first, _)| first),
        last: ids.map(|(_, last)| last),
        // COMPAT(slixmpp 1.17): takes a page that reaches the end of the set for the last one, also
        // when it goes backward.
        index: found.index.filter(|_| !query.page.is_backward()),
        count: found.count,
    };
    let payload = mam::fin(found.complete, &shown);
    let queryid: Option<Arc<str>> = query.queryid.as_deref().map(Arc::from);
    let source = |mut archived: crate::session::outgoing::Archived| {
        archived.queryid.clone_from(&queryid);
        Source::Archived(Arc::new(archived))
    };
    let mut before: Vec<Source> = found.messages.into_iter().map(source).collect();
    if query.flip_page {
        before.reverse();
    }
    Ok(Page {
        before,
        payload,
        turn: Some(turn),
    })
}

/// What the archive service is asked. `include-groupchat` changes nothing: there is none.
fn asked(request: &Request, query: &Query) -> QueryArchiveRequest {
    let id = |id: &Option<String>| id.clone().unwrap_or_default();
    QueryArchiveRequest {
        jid: request.identity.account.to_string(),
        with: query
            .with
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        start_ms: query.start_ms,
        end_ms: query.end_ms,
        after_id: id(&query.after_id),
        before_id: id(&query.before_id),
        ids: query.ids.clone(),
        page_after: id(&query.page.after),
        page_before: id(&query.page.before),
        backward: query.page.is_backward(),
        max: query.page.max.unwrap_or(PAGE_DEFAULT).min(PAGE_MAX),
        cursor: 0,
    }
}

/// XEP-0313 §5: of what may be shown.
async fn metadata(request: Request) -> Answer {
    // The looks for the ends may be many: one question of a session at a time.
    let _turn = turn(&request).await?;
    let first = page::end(&request, false).await?;
    let last = match first.complete {
        true => None,
        false => Some(page::end(&request, true).await?),
    };
    let last = last.as_ref().unwrap_or(&first).messages.last();
    let (Some(first), Some(last)) = (first.messages.first(), last) else {
        return Ok(mam::metadata(None));
    };
    let stamps = [first, last].map(|archived| stamp(archived.message.stamp_ms));
    Ok(mam::metadata(Some([
        (&first.message.archive_id, &stamps[0]),
        (&last.message.archive_id, &stamps[1]),
    ])))
}

/// The session's turn to ask its archive.
async fn turn(request: &Request) -> Result<OwnedSemaphorePermit, StanzaError> {
    let paging = Arc::clone(&request.identity.paging);
    let turn = tokio::time::timeout(TURN_LIMIT, paging.acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or_else(answer::outage)
}
