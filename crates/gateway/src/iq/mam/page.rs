//! A page of the own archive, or an end of it, as policy lets it be seen today. Owns the questions to
//! policy about a page, one for each pair of people in it; refuses to write: what is shown is looked at
//! once more there.

use std::collections::{BTreeMap, BTreeSet};

use chancery_api::Kind;
use chancery_api::archive::{ArchivedMessage, QueryArchiveRequest, QueryArchiveResponse};
use chancery_xmpp::jid::bare;
use chancery_xmpp::{Condition, StanzaError};
use futures_util::future::try_join_all;

use crate::iq::Request;
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, allows};
use crate::service::Gateway;
use crate::session::outgoing::Archived;

/// Pages of which nothing may be shown that are passed over in one query.
const PASSED_OVER: u32 = 8;
/// Messages of the first look for an end of the archive, which most often is there, and of further ones.
const END_PAGE: u32 = 16;
const END_PAGE_MORE: u32 = 250;
/// Looks for one end: nearly 100,000 messages of which none may be shown are passed over.
pub(crate) const END_LOOKS: u32 = 400;

/// What may be shown.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of the archive.
    pub(super) messages: Vec<Archived>,
    pub(super) complete: bool,
    pub(super) count: Option<u64>,
    pub(super) index: Option<u64>,
    /// Where an empty page that is not the last one ends.
    cursor_id: String,
}

impl Found {
    /// What an archive without a message gives.
    fn nothing() -> Self {
        Self {
            complete: true,
            count: Some(0),
            ..Self::default()
        }
    }

    /// The ids that the next query may go on from.
    pub(super) fn ends(&self) -> Option<(&str, &str)> {
        match (self.messages.first(), self.messages.last()) {
            (Some(first), Some(last)) => {
                Some((&first.message.archive_id, &last.message.archive_id))
            }
            _ if self.cursor_id.is_empty() => None,
            _ => Some((&self.cursor_id, &self.cursor_id)),
        }
    }
}

/// Reads a page; where nothing of it may be shown, the next ones.
pub(super) async fn read(
    request: &Request,
    mut ask: QueryArchiveRequest,
) -> Result<Found, StanzaError> {
    let gateway = &request.gateway;
    followed(gateway)?;
    let with = !ask.with.is_empty();
    if with && ask.max == 0 && is_walled(gateway, &ask).await? {
        return Ok(Found::nothing());
    }
    let mut passed_over = 0;
    loop {
        let page = look(request, &ask).await?;
        let (stored, first_page) = (page.messages.len(), passed_over == 0);
        let (mut found, next) = decided(gateway, page).await?;
        if found.messages.len() < stored {
            // Whoever names what is hidden hears what an empty archive says.
            if !ask.ids.is_empty() {
                return Err(StanzaError::new(Condition::ItemNotFound));
            }
            if with && found.messages.is_empty() && is_walled(gateway, &ask).await? {
                return Ok(Found::nothing());
            }
            let whole = first_page && found.complete && found.count == Some(stored as u64);
            found.count = whole.then_some(found.messages.len() as u64);
            found.index = found.index.filter(|_| whole && !found.messages.is_empty());
        }
        if !first_page {
            (found.count, found.index) = (None, None);
        }
        passed_over += 1;
        let over = found.complete || ask.max == 0 || passed_over == PASSED_OVER;
        if over || !found.messages.is_empty() {
            found.complete |= ask.max == 0 && found.count == Some(0);
            return Ok(found);
        }
        ask.cursor = next;
    }
}

/// The first messages of the own archive that may be shown, or the last ones. None: there is none. Where
/// too much is hidden to know, an error: there is no page to go on from, and "empty" would be a lie.
pub(super) async fn end(request: &Request, backward: bool) -> Result<Found, StanzaError> {
    let gateway = &request.gateway;
    let mut ask = QueryArchiveRequest {
        jid: request.identity.account.to_string(),
        max: END_PAGE,
        backward,
        ..QueryArchiveRequest::default()
    };
    for _ in 0..END_LOOKS {
        followed(gateway)?;
        let page = look(request, &ask).await?;
        let (found, next) = decided(gateway, page).await?;
        if found.complete || !found.messages.is_empty() {
            return Ok(found);
        }
        (ask.cursor, ask.max) = (next, END_PAGE_MORE);
    }
    Err(answer::outage())
}

/// Else there may be a newer version, under which all of it is hidden.
fn followed(gateway: &Gateway) -> Result<(), StanzaError> {
    let is_followed = gateway.policy.is_followed(gateway.clock.monotonic());
    is_followed.then_some(()).ok_or_else(answer::outage)
}

/// One page as it is stored.
async fn look(
    request: &Request,
    ask: &QueryArchiveRequest,
) -> Result<QueryArchiveResponse, StanzaError> {
    let (cx, _span) = request.cx("archive.query_archive");
    let page = request
        .gateway
        .archive
        .query_archive(&cx, ask.clone())
        .await;
    page.map_err(|error| answer::api_error(&error))
}

/// May nothing pass between the owner and the other side of the query, either way?
async fn is_walled(gateway: &Gateway, ask: &QueryArchiveRequest) -> Result<bool, StanzaError> {
    let (owner, with) = (ask.jid.as_str(), bare(&ask.with));
    let pairs = [(owner, with), (with, owner)];
    Ok(verdicts(gateway, &pairs.into_iter().collect())
        .await?
        .is_empty())
}

/// What of a page may be shown, each under the version that allowed it; and where it ends.
async fn decided(
    gateway: &Gateway,
    page: QueryArchiveResponse,
) -> Result<(Found, u64), StanzaError> {
    // Before the first version is known nothing passes without a verdict of its own.
    let current = (*gateway.policy.in_force()).max(1);
    let allowed = {
        let older = page.messages.iter().filter(|m| m.policy_version < current);
        let pairs: BTreeSet<(&str, &str)> = older.map(pair).collect();
        let owned = |((from, to), version): ((&str, &str), u64)| {
            ((from.to_owned(), to.to_owned()), version)
        };
        let allowed = verdicts(gateway, &pairs).await?;
        allowed.into_iter().map(owned).collect::<BTreeMap<_, _>>()
    };
    let shown = |message: ArchivedMessage| {
        let policy_version = if message.policy_version < current {
            let (from, to) = pair(&message);
            *allowed.get(&(from.to_owned(), to.to_owned()))?
        } else {
            message.policy_version
        };
        Some(Archived {
            message,
            policy_version,
            queryid: None,
        })
    };
    let found = Found {
        messages: page.messages.into_iter().filter_map(shown).collect(),
        complete: page.complete,
        count: page.count,
        index: page.index,
        cursor_id: page.cursor_id,
    };
    Ok((found, page.cursor))
}

/// The pairs whose messages may pass, with the version that says so: one question a sender.
async fn verdicts<'a>(
    gateway: &Gateway,
    pairs: &BTreeSet<(&'a str, &'a str)>,
) -> Result<BTreeMap<(&'a str, &'a str), u64>, StanzaError> {
    let mut by_sender: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in pairs {
        by_sender.entry(from).or_default().push(to);
    }
    let asked = by_sender.into_iter().map(|(from, to)| async move {
        let question = Question {
            from: from.to_owned(),
            to: to.iter().map(|to| (*to).to_owned()).collect(),
            kind: Kind::Message,
            type_: String::new(),
            trace: None,
        };
        let verdicts = gateway.policy.decide(&question).await;
        let verdicts = verdicts.map_err(|_| answer::outage())?;
        Ok::<_, StanzaError>((from, to.into_iter().zip(verdicts)))
    });
    let mut allowed = BTreeMap::new();
    for (from, verdicts) in try_join_all(asked).await? {
        for (to, verdict) in verdicts.filter(|(_, verdict)| allows(verdict)) {
            allowed.insert((from, to), verdict.policy_version);
        }
    }
    Ok(allowed)
}

/// Policy looks at people, not at their resources.
fn pair(message: &ArchivedMessage) -> (&str, &str) {
    (bare(&message.from), bare(&message.to))
}
