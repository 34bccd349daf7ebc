//! Search for colleagues (XEP-0055), over the directory: by the beginning of an account's name. Who is
//! found is asked of policy, one by one: whoever may not be reached is not there.

use std::time::Duration;

use bytes::Bytes;
use chancery_api::Kind;
use chancery_api::directory::SearchRequest;
use chancery_xml::{Limits, escape_text, push_attr, scan};
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;

use super::data_form::{self, Field, Submitted};
use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, allows};

/// Accounts of one result.
const RESULTS: usize = 50;
/// Accounts that are looked at for one result: a page of the directory, and how many of them.
const PAGE: u32 = 100;
const PAGES: usize = 5;
/// A session searches no more often: a further search waits, and what comes behind it.
const PAUSE: Duration = Duration::from_millis(250);
/// Fields of the standard that our accounts have none of: who searches by one finds nobody.
const UNKNOWN: &[&str] = &["first", "last", "email"];
const NAME: Field = Field::optional("nick", "Name", "text-single");
const INSTRUCTIONS: &str = "The name of an account, or how it begins.";

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "search",
        specifications: &[Specification {
            name: "XEP-0055",
            version: "1.3",
            status: "complete: by name of the account, aware of walls",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    let handler = Handler::ask(Verb::Any, |request| run(request).boxed());
    registrar.handle(Scope::Server, ns::SEARCH, "query", handler);
    registrar.disco(Scope::Server, ns::SEARCH);
}

async fn run(request: Request) -> Answer {
    if !request.is_set() {
        return Ok(form());
    }
    let query = request
        .payload()
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    let wanted = read(request.element.child_bytes(query)).map_err(StanzaError::new)?;
    pause(&request).await;
    let found = match &wanted.name {
        Some(name) => find(&request, name).await?,
        None => Vec::new(),
    };
    Ok(if wanted.by_form {
        write_form(&found)
    } else {
        write_legacy(&found)
    })
}

/// Slows down who searches on and on, and nobody else.
async fn pause(request: &Request) {
    let now = request.gateway.clock.monotonic();
    let until = {
        let mut followed = request.identity.followed.lock();
        let until = followed.search_after.map_or(now, |after| after.max(now));
        followed.search_after = Some(until + PAUSE);
        until
    };
    if until > now {
        tokio::time::sleep_until(until).await;
    }
}

/// What is looked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// How the name begins; `None` finds nobody.
    name: Option<String>,
    by_form: bool,
}

/// Reads the legacy fields or the submitted form. Nothing to look for is not acceptable: it would
/// be a listing.
fn read(query: &[u8]) -> Result<Wanted, Condition> {
    let bytes = Bytes::copy_from_slice(query);
    let query = scan(&bytes, &Limits::internal()).map_err(|_| Condition::BadRequest)?;
    let form = Submitted::read(&query, ns::SEARCH).transpose()?;
    let (name, alien) = match &form {
        Some(form) => (form.one("nick"), form.has_any(UNKNOWN)),
        None => {
            let field = |name: &str| {
                let child = query.child(name, ns::SEARCH)?;
                Some(query.child_text(child)).filter(|text| !text.trim().is_empty())
            };
            let alien = UNKNOWN.iter().any(|name| field(name).is_some());
            (field("nick"), alien)
        }
    };
    let name = name.map(|name| name.trim().trim_end_matches('*').to_owned());
    let name = match name {
        _ if alien => None,
        Some(name) if !name.is_empty() => Some(name),
        _ => return Err(Condition::NotAcceptable),
    };
    Ok(Wanted {
        name,
        by_form: form.is_some(),
    })
}

/// Accounts that begin so and that policy lets the person reach.
async fn find(request: &Request, name: &str) -> Result<Vec<String>, StanzaError> {
    let gateway = &request.gateway;
    let mut found = Vec::new();
    let mut after = String::new();
    for _ in 0..PAGES {
        let (cx, _span) = request.cx("directory.search");
        let ask = SearchRequest {
            domain: request.domain().to_owned(),
            prefix: name.to_owned(),
            after,
            limit: PAGE,
        };
        let page = gateway.directory.search(&cx, ask).await;
        let page = page.map_err(|error| answer::api_error(&error))?;
        let question = Question {
            from: request.identity.full.to_string(),
            to: page.jids,
            kind: Kind::Iq,
            // A request: it passes both ways or not at all.
            type_: "get".to_owned(),
            trace: request.trace,
        };
        let verdicts = gateway.decide(&question).await;
        let verdicts = verdicts.map_err(|_| answer::outage())?;
        after = question.to.last().cloned().unwrap_or_default();
        let seen = question.to.into_iter().zip(&verdicts);
        found.extend(seen.filter(|(_, v)| allows(v)).map(|(jid, _)| jid));
        if !page.more || found.len() >= RESULTS {
            break;
        }
    }
    found.truncate(RESULTS);
    Ok(found)
}

fn form() -> String {
    let mut out = format!("<query xmlns='{}'><instructions>", ns::SEARCH);
    escape_text(&mut out, INSTRUCTIONS);
    out.push_str("</instructions><nick/>");
    let title = "Search for colleagues";
    data_form::write(&mut out, ns::SEARCH, title, INSTRUCTIONS, &[NAME]);
    out.push_str("</query>");
    out
}

fn write_legacy(found: &[String]) -> String {
    let mut out = format!("<query xmlns='{}'>", ns::SEARCH);
    for jid in found {
        out.push_str("<item");
        push_attr(&mut out, "jid", jid);
        out.push_str("><nick>");
        escape_text(&mut out, localpart(jid));
        out.push_str("</nick></item>");
    }
    out.push_str("</query>");
    out
}

fn write_form(found: &[String]) -> String {
    let mut out = format!("<query xmlns='{}'>", ns::SEARCH);
    out.push_str(&format!("<x xmlns='{}' type='result'>", ns::DATA_FORMS));
    data_form::hidden(&mut out, ns::SEARCH);
    out.push_str("<reported><field var='nick' label='Name' type='text-single'/>");
    out.push_str("<field var='jid' label='Address' type='jid-single'/></reported>");
    for jid in found {
        out.push_str("<item>");
        data_form::value(&mut out, "nick", None, &[localpart(jid).to_owned()]);
        data_form::value(&mut out, "jid", None, std::slice::from_ref(jid));
        out.push_str("</item>");
    }
    out.push_str("</x></query>");
    out
}

fn localpart(jid: &str) -> &str {
    jid.split_once('@').map_or(jid, |(localpart, _)| localpart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(inner: &str) -> Result<Wanted, Condition> {
        read(format!("<query xmlns='jabber:iq:search'>{inner}</query>").as_bytes())
    }

    fn wanted(name: Option<&str>, by_form: bool) -> Result<Wanted, Condition> {
        Ok(Wanted {
            name: name.map(str::to_owned),
            by_form,
        })
    }

    #[test]
    fn legacy_fields() {
        assert_eq!(of("<nick>al</nick>"), wanted(Some("al"), false));
        assert_eq!(of("<nick> al* </nick><first/>"), wanted(Some("al"), false));
        assert_eq!(of("<nick>al</nick><last>x</last>"), wanted(None, false));
        assert_eq!(of("<email>x</email>"), wanted(None, false));
        for empty in ["", "<nick/>", "<nick>*</nick>", "<nick xmlns='x'>al</nick>"] {
            assert_eq!(of(empty), Err(Condition::NotAcceptable), "{empty}");
        }
    }

    #[test]
    fn a_submitted_form() {
        let form = |type_: &str, fields: &str| {
            of(&format!(
                "<x xmlns='jabber:x:data' type='{type_}'>{fields}</x>"
            ))
        };
        let nick = "<field var='FORM_TYPE'><value>jabber:iq:search</value></field>\
                    <field var='nick'><value>b&amp;b</value></field>";
        assert_eq!(form("submit", nick), wanted(Some("b&b"), true));
        let first = format!("{nick}<field var='first'><value>x</value></field>");
        assert_eq!(form("submit", &first), wanted(None, true));
        assert_eq!(form("result", nick), Err(Condition::BadRequest));
        assert_eq!(form("submit", ""), Err(Condition::NotAcceptable));
        assert_eq!(
            form("submit", "<field var='nick'/>"),
            Err(Condition::NotAcceptable)
        );
    }

    #[test]
    fn results_in_both_ways() {
        let found = ["al&ice@a.test".to_owned()];
        assert_eq!(
            write_legacy(&found),
            "<query xmlns='jabber:iq:search'><item jid='al&amp;ice@a.test'>\
             <nick>al&amp;ice</nick></item></query>"
        );
        assert_eq!(
            write_legacy(&[]),
            "<query xmlns='jabber:iq:search'></query>"
        );
        assert!(write_form(&found).contains("<field var='jid'><value>al&amp;ice@a.test</value>"));
    }
}
