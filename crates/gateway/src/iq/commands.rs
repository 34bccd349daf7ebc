//! Ad-hoc commands (XEP-0050) of a domain: who may run them, the steps of one, and what service
//! discovery tells of them. The commands themselves are in `administration.rs`.
//!
//! Every command is an administrator's: anybody else is answered `forbidden` before it is even looked
//! whether the command exists. The gateway only asks; the directory checks again before it acts.

use bytes::Bytes;
use chancery_api::directory::AdministratorRequest;
use chancery_xml::{Element, Limits, alone, escape_text, push_attr, scan};
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::administration::{COMMANDS, FORM_TYPE};
use super::data_form::{self, Field, Submitted};
use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;

/// Commands of one session that wait for their form; the oldest is forgotten for a further one.
const SESSIONS: usize = 8;

/// One command: what it asks for, and what it does with the answer.
pub(crate) struct Command {
    pub(crate) node: &'static str,
    pub(crate) name: &'static str,
    pub(crate) instructions: &'static str,
    pub(crate) fields: &'static [Field],
    pub(crate) run: fn(Request, Submitted) -> BoxFuture<'static, Result<Done, StanzaError>>,
}

/// What a command that is done has to show.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// For the person; the second says that something went wrong.
    pub(crate) note: Option<(String, bool)>,
    /// A form of type `result`.
    pub(crate) result: Option<String>,
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "commands",
        specifications: &[
            Specification {
                name: "XEP-0050",
                version: "1.3.0",
                status: "complete: of one step each",
            },
            Specification {
                name: "XEP-0133",
                version: "1.3.1",
                status: "partial: add, delete, disable, re-enable, end sessions, password, lists, announcement",
            },
        ],
    }
}

/// Advertised only by domains that have administrators; see `Shown` in `mod.rs`.
pub(crate) fn register(registrar: &mut Registrar) {
    let handler = Handler::ask(Verb::Set, |request| run(request).boxed());
    registrar.handle(Scope::Server, ns::COMMANDS, "command", handler);
}

/// May this session run commands of the domain that it asks?
pub(crate) async fn may(request: &Request) -> Result<bool, StanzaError> {
    let own = *request.identity.domain == *request.domain();
    if !own
        || !request
            .gateway
            .config
            .administered
            .contains(request.domain())
    {
        return Ok(false);
    }
    let ask = AdministratorRequest {
        session: request.identity.full.to_string(),
    };
    let (cx, _span) = request.cx("directory.administrator");
    let said = request.gateway.directory.administrator(&cx, ask).await;
    Ok(said
        .map_err(|error| answer::api_error(&error))?
        .administrator)
}

async fn run(request: Request) -> Answer {
    if !may(&request).await? {
        return Err(StanzaError::new(Condition::Forbidden));
    }
    let call = Call::read(&request)?;
    let Some(command) = COMMANDS.iter().find(|command| command.node == call.node) else {
        return Err(StanzaError::new(Condition::ItemNotFound));
    };
    let Some(session) = call.session else {
        return match call.action {
            Action::Execute => Ok(begin(&request, command)),
            _ => Err(refused("bad-action")),
        };
    };
    if !is_waiting(&request, &session, command) {
        return Err(refused("bad-sessionid"));
    }
    let submitted = match call.action {
        // §Flow: there is nothing before the first step.
        Action::Prev => return Err(refused("bad-action")),
        Action::Cancel => None,
        Action::Execute => match Submitted::read(&call.payload, FORM_TYPE) {
            None | Some(Err(_)) => return Err(refused("bad-payload")),
            Some(Ok(submitted)) => Some(submitted).filter(|submitted| !submitted.cancelled),
        },
    };
    let identity = std::sync::Arc::clone(&request.identity);
    let outcome = match submitted {
        None => write(command, &session, "canceled", ""),
        Some(submitted) => {
            if let Some(missing) = command
                .fields
                .iter()
                .find(|field| field.required && submitted.one(field.var).is_none())
            {
                let text = format!("the field {} is missing", missing.var);
                return Err(refused("bad-payload").with_text(text));
            }
            // What goes wrong may be mended in the same form.
            let done = (command.run)(request, submitted).await?;
            write(command, &session, "completed", &inside(&done))
        }
    };
    let mut followed = identity.followed.lock();
    followed.commands.retain(|(waiting, _)| *waiting != session);
    Ok(outcome)
}

/// §4.4: the general condition, and the one of this protocol.
fn refused(name: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).with_app(ns::COMMANDS, name)
}

/// The first step: the form.
fn begin(request: &Request, command: &Command) -> String {
    let session = request.gateway.ids.token().to_string();
    let mut followed = request.identity.followed.lock();
    if followed.commands.len() >= SESSIONS {
        followed.commands.remove(0);
    }
    followed.commands.push((session.clone(), command.node));
    drop(followed);
    let mut out = String::from("<actions execute='complete'><complete/></actions>");
    data_form::write(
        &mut out,
        FORM_TYPE,
        command.name,
        command.instructions,
        command.fields,
    );
    write(command, &session, "executing", &out)
}

fn is_waiting(request: &Request, session: &str, command: &Command) -> bool {
    let followed = request.identity.followed.lock();
    let known = |(waiting, node): &(String, &str)| waiting == session && *node == command.node;
    followed.commands.iter().any(known)
}

fn inside(done: &Done) -> String {
    let mut out = String::new();
    if let Some((text, bad)) = &done.note {
        out.push_str("<note");
        push_attr(&mut out, "type", if *bad { "warn" } else { "info" });
        out.push('>');
        escape_text(&mut out, text);
        out.push_str("</note>");
    }
    out.extend(done.result.as_deref());
    out
}

fn write(command: &Command, session: &str, status: &str, inside: &str) -> String {
    let mut out = String::from("<command");
    for (name, value) in [
        ("xmlns", ns::COMMANDS),
        ("node", command.node),
        ("sessionid", session),
        ("status", status),
    ] {
        push_attr(&mut out, name, value);
    }
    out.push('>');
    out.push_str(inside);
    out.push_str("</command>");
    out
}

/// What is wanted of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The form is filled in, or there is none yet.
    Execute,
    Cancel,
    Prev,
}

struct Call {
    node: String,
    session: Option<String>,
    action: Action,
    payload: Element,
}

impl Call {
    fn read(request: &Request) -> Result<Self, StanzaError> {
        let bad = || StanzaError::new(Condition::BadRequest);
        let child = request.payload().ok_or_else(bad)?;
        let bytes: Bytes = alone(&request.element, &[], child);
        let payload = scan(&bytes, &Limits::internal()).map_err(|_| bad())?;
        let node = payload.header.attr("node").ok_or_else(bad)?.to_owned();
        let session = payload.header.attr("sessionid").map(str::to_owned);
        let action = match payload.header.attr("action") {
            None | Some("execute" | "complete" | "next") => Action::Execute,
            Some("cancel") => Action::Cancel,
            Some("prev") => Action::Prev,
            Some(_) => return Err(refused("malformed-action")),
        };
        Ok(Self {
            node,
            session,
            action,
            payload,
        })
    }
}

/// The commands as items of the domain (§2.1); none for who may not run them.
pub(crate) async fn items(request: &Request) -> Answer {
    let mut out = String::from("<query");
    push_attr(&mut out, "xmlns", ns::DISCO_ITEMS);
    push_attr(&mut out, "node", ns::COMMANDS);
    out.push('>');
    if may(request).await? {
        for command in COMMANDS {
            out.push_str("<item");
            push_attr(&mut out, "jid", request.domain());
            push_attr(&mut out, "node", command.node);
            push_attr(&mut out, "name", command.name);
            out.push_str("/>");
        }
    }
    out.push_str("</query>");
    Ok(out)
}

/// What a node of ours is; `None` for another's.
pub(crate) async fn info(request: &Request, node: &str) -> Option<Answer> {
    let (type_, name) = if node == ns::COMMANDS {
        ("command-list", "Commands")
    } else {
        let command = COMMANDS.iter().find(|command| command.node == node)?;
        match may(request).await {
            Ok(true) => {}
            // §2.2
            Ok(false) => return Some(Err(StanzaError::new(Condition::Forbidden))),
            Err(error) => return Some(Err(error)),
        }
        ("command-node", command.name)
    };
    let mut out = String::from("<query");
    push_attr(&mut out, "xmlns", ns::DISCO_INFO);
    push_attr(&mut out, "node", node);
    out.push_str("><identity");
    push_attr(&mut out, "category", "automation");
    push_attr(&mut out, "type", type_);
    push_attr(&mut out, "name", name);
    out.push_str("/>");
    for feature in [ns::COMMANDS, ns::DATA_FORMS] {
        out.push_str("<feature");
        push_attr(&mut out, "var", feature);
        out.push_str("/>");
    }
    out.push_str("</query>");
    Some(Ok(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_names_are_unique_and_every_command_asks_for_something() {
        for (at, command) in COMMANDS.iter().enumerate() {
            let earlier = &COMMANDS[..at];
            assert!(earlier.iter().all(|other| other.node != command.node));
            assert!(earlier.iter().all(|other| other.name != command.name));
            assert!(command.node.starts_with(FORM_TYPE));
            assert!(!command.fields.is_empty());
        }
    }

    #[test]
    fn a_note_and_a_result() {
        let done = Done {
            note: Some(("a < b".into(), true)),
            result: Some("<x/>".into()),
        };
        assert_eq!(inside(&done), "<note type='warn'>a &lt; b</note><x/>");
    }
}
