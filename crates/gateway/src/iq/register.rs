//! A person's own password (XEP-0077 §3.3). Accounts are made and removed by administrators only.

use std::time::Duration;

use bytes::Bytes;
use chancery_api::Code;
use chancery_api::directory::ChangePasswordRequest;
use chancery_xml::{Limits, escape_text, scan};
use chancery_xmpp::{Condition, StanzaError, jid, ns};
use futures_util::FutureExt;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::pipeline::answer;

/// A session changes the password no more often: each costs what many logins cost.
const PAUSE: Duration = Duration::from_secs(10);

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "register",
        specifications: &[Specification {
            name: "XEP-0077",
            version: "2.4",
            status: "partial: change of the password only",
        }],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    for scope in [Scope::Server, Scope::Account] {
        let handler = Handler::ask(Verb::Any, |request| ask(request).boxed());
        registrar.handle(scope, ns::REGISTER, "query", handler);
    }
    registrar.disco(Scope::Server, ns::REGISTER);
}

async fn ask(request: Request) -> Answer {
    let localpart = localpart(&request).to_owned();
    if !request.is_set() {
        let mut out = format!("<query xmlns='{}'><registered/><username>", ns::REGISTER);
        escape_text(&mut out, &localpart);
        out.push_str("</username><password/></query>");
        return Ok(out);
    }
    let wanted = wanted(&request)?;
    let named = jid::parse_bare(&format!("{}@{}", wanted.username, request.identity.domain));
    // §3.3: whoever is logged in changes his own, and nobody else's.
    if !named.is_ok_and(|named| *named.as_str() == *request.identity.account) {
        return Err(StanzaError::new(Condition::NotAllowed));
    }
    let now = request.gateway.clock.monotonic();
    {
        let mut followed = request.identity.followed.lock();
        if followed.password_after.is_some_and(|after| now < after) {
            return Err(StanzaError::new(Condition::ResourceConstraint));
        }
        followed.password_after = Some(now + PAUSE);
    }
    let change = ChangePasswordRequest {
        session: request.identity.full.to_string(),
        password: wanted.password,
    };
    let (cx, _span) = request.cx("directory.change_password");
    let changed = request.gateway.directory.change_password(&cx, change).await;
    match changed {
        Ok(_) => Ok(String::new()),
        // What may not be a password has cost nothing: the next may come at once.
        Err(error) if error.code == Code::Invalid => {
            request.identity.followed.lock().password_after = None;
            Err(StanzaError::new(Condition::NotAcceptable))
        }
        Err(error) => Err(answer::api_error(&error)),
    }
}

fn localpart(request: &Request) -> &str {
    let account = &request.identity.account;
    account
        .split_once('@')
        .map_or(account, |(localpart, _)| localpart)
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    username: String,
    password: String,
}

fn wanted(request: &Request) -> Result<Wanted, StanzaError> {
    let query = request
        .payload()
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))?;
    read(request.element.child_bytes(query)).map_err(StanzaError::new)
}

fn read(query: &[u8]) -> Result<Wanted, Condition> {
    let bytes = Bytes::copy_from_slice(query);
    let query = scan(&bytes, &Limits::after_auth()).map_err(|_| Condition::BadRequest)?;
    let text = |name: &str| {
        let child = query.child(name, ns::REGISTER);
        child.map(|child| query.child_text(child))
    };
    // §3.2: an account is removed by an administrator.
    if text("remove").is_some() {
        return Err(Condition::NotAllowed);
    }
    match (text("username"), text("password")) {
        (Some(username), Some(password)) if !username.is_empty() => {
            Ok(Wanted { username, password })
        }
        _ => Err(Condition::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_password_or_nothing() {
        let of = |inner: &str| {
            read(format!("<query xmlns='jabber:iq:register'>{inner}</query>").as_bytes())
        };
        let got = of("<username>bill</username><password>a &amp; b</password>");
        assert_eq!(
            got.as_ref().map(|w| (&*w.username, &*w.password)),
            Ok(("bill", "a & b"))
        );
        for (inner, condition) in [
            ("<remove/>", Condition::NotAllowed),
            (
                "<remove/><username>b</username><password>p</password>",
                Condition::NotAllowed,
            ),
            ("", Condition::BadRequest),
            ("<username>b</username>", Condition::BadRequest),
            ("<password>p</password>", Condition::BadRequest),
            ("<username/><password>p</password>", Condition::BadRequest),
            (
                "<username xmlns='x'>b</username><password>p</password>",
                Condition::BadRequest,
            ),
        ] {
            assert_eq!(of(inner), Err(condition), "{inner}");
        }
    }
}
