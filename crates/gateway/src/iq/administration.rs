//! Service administration (XEP-0133): the commands that administrators run from a session. Accounts are
//! changed by the directory, which checks the administrator again and records each change under that
//! session's full JID; what nobody else records (the reading of a list) is recorded here first.

use std::time::Duration;

use bytes::Bytes;
use chancery_api::archive::{AppendItem, Outcome, RecordActRequest};
use chancery_api::directory::{
    AccountAct, AccountState, AdministerRequest, AdministerResponse, ListAccountsRequest,
    NewCredentials,
};
use chancery_api::presence::SessionsRequest;
use chancery_api::{ApiError, Code, Kind};
use chancery_xml::{escape_text, push_attr};
use chancery_xmpp::{Condition, StanzaError, ns};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

mod deletion;

use super::Request;
use super::commands::{Command, Done};
use super::data_form::{self, Field, Submitted};
use crate::pipeline::answer;
use crate::pipeline::decide::{Question, allows};

/// Also what every node begins with.
pub(crate) const FORM_TYPE: &str = "http://jabber.org/protocol/admin";
/// Changes wait for their followers, one account after the other.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Entries of one list, and accounts of one page of the directory.
const LIST: usize = 1_000;
const PAGE: u32 = 500;
/// Sessions that are looked at for who is online.
const SESSIONS: u32 = 10_000;
/// Accounts of one announcement, and how many are under way at once.
const ANNOUNCED: usize = 10_000;
const UNDER_WAY: usize = 64;
/// Bytes of an announcement.
const ANNOUNCEMENT_BYTES: usize = 16 * 1024;

const ACCOUNT: Field = Field::required("accountjid", "Address of the account", "jid-single");
const ACCOUNTS: &[Field] = &[Field::required(
    "accountjids",
    "Addresses of the accounts",
    "jid-multi",
)];
const PASSWORD: Field = Field::required("password", "Password", "text-private");
const MAX_ITEMS: &[Field] = &[
    Field::optional("max_items", "At most so many", "list-single")
        .of(&["25", "50", "100", "200", "1000"]),
];

/// All commands, in the order in which they are listed.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        node: "http://jabber.org/protocol/admin#add-user",
        name: "Add a user",
        instructions: "An account of this domain, and its first password.",
        fields: &[
            ACCOUNT,
            PASSWORD,
            Field::required("password-verify", "The password once more", "text-private"),
        ],
        run: |request, form| add(request, form).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#delete-user",
        name: "Delete users",
        instructions: "The accounts are disabled, then they, their rosters and undelivered messages go; evidence stays.",
        fields: ACCOUNTS,
        run: |request, form| deletion::delete(request, form).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#disable-user",
        name: "Disable users",
        instructions: "Logins are refused, live sessions end.",
        fields: ACCOUNTS,
        run: |request, form| change(request, form, AccountAct::Disable),
    },
    Command {
        node: "http://jabber.org/protocol/admin#reenable-user",
        name: "Re-enable users",
        instructions: "Logins are allowed again.",
        fields: ACCOUNTS,
        run: |request, form| change(request, form, AccountAct::Enable),
    },
    Command {
        node: "http://jabber.org/protocol/admin#end-user-session",
        name: "End sessions of users",
        instructions: "All sessions of the accounts end; who knows the password may come again.",
        fields: ACCOUNTS,
        run: |request, form| change(request, form, AccountAct::EndSessions),
    },
    Command {
        node: "http://jabber.org/protocol/admin#change-user-password",
        name: "Change a user's password",
        instructions: "Live sessions of the account end.",
        fields: &[ACCOUNT, PASSWORD],
        run: |request, form| password(request, form).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#get-registered-users-list",
        name: "List registered users",
        instructions: "The accounts of this domain.",
        fields: MAX_ITEMS,
        run: |request, form| accounts(request, form, None).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#get-disabled-users-list",
        name: "List disabled users",
        instructions: "Those that may not log in.",
        fields: MAX_ITEMS,
        run: |request, form| accounts(request, form, Some(AccountState::Disabled)).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#get-online-users-list",
        name: "List online users",
        instructions: "Those with an available session.",
        fields: MAX_ITEMS,
        run: |request, form| online(request, form).boxed(),
    },
    Command {
        node: "http://jabber.org/protocol/admin#announce",
        name: "Send an announcement to online users",
        instructions: "Sent in your name to everybody of this domain who is online and whom policy lets you reach.",
        fields: &[Field::required(
            "announcement",
            "Announcement",
            "text-multi",
        )],
        run: |request, form| announce(request, form).boxed(),
    },
];

/// An error of the directory as the administrator sees it.
fn refused(error: &ApiError) -> StanzaError {
    match error.code {
        Code::Denied => StanzaError::new(Condition::Forbidden),
        Code::Invalid => {
            StanzaError::new(Condition::NotAcceptable).with_text(error.message.as_str())
        }
        Code::NotFound | Code::Exists | Code::Conflict => {
            answer::api_error(error).with_text(error.message.as_str())
        }
        _ => answer::api_error(error),
    }
}

/// Asks the directory for a change.
async fn ask(
    request: &Request,
    act: AccountAct,
    jids: Vec<String>,
    password: Option<String>,
) -> Result<AdministerResponse, StanzaError> {
    let credentials = password.map(|password| NewCredentials {
        password,
        keys: Vec::new(),
    });
    let change = AdministerRequest {
        session: request.identity.full.to_string(),
        act: act.into(),
        jids,
        credentials,
    };
    let (cx, _span) = request.cx("directory.administer");
    let directory = &request.gateway.directory;
    let changed = directory.administer(&cx.within(CHANGE_LIMIT), change).await;
    changed.map_err(|error| refused(&error))
}

/// What a change has to show.
fn told(changed: &AdministerResponse) -> Done {
    let note = if !changed.failed.is_empty() {
        let done = changed.done.len();
        (format!("done for {done}, then: {}", changed.failed), true)
    } else if changed.unconfirmed.is_empty() {
        ("done".to_owned(), false)
    } else {
        let late = changed.unconfirmed.join(", ");
        (format!("done, but not confirmed in time by {late}"), true)
    };
    Done {
        note: Some(note),
        result: None,
    }
}

fn change(
    request: Request,
    form: Submitted,
    act: AccountAct,
) -> BoxFuture<'static, Result<Done, StanzaError>> {
    async move {
        let jids = form.all("accountjids");
        Ok(told(&ask(&request, act, jids, None).await?))
    }
    .boxed()
}

async fn add(request: Request, form: Submitted) -> Result<Done, StanzaError> {
    let password = form.one("password");
    if password != form.one("password-verify") {
        let error = StanzaError::new(Condition::NotAcceptable);
        return Err(error.with_text("the two passwords differ"));
    }
    let jids = form.one("accountjid").into_iter().collect();
    let added = ask(&request, AccountAct::Add, jids, password).await?;
    Ok(told(&added))
}

async fn password(request: Request, form: Submitted) -> Result<Done, StanzaError> {
    let jids = form.one("accountjid").into_iter().collect();
    let password = form.one("password");
    let changed = ask(&request, AccountAct::Password, jids, password).await?;
    Ok(told(&changed))
}

/// Reading a list is an act like any other: on record before it is shown.
async fn on_record(request: &Request, which: &str) -> Result<(), StanzaError> {
    let act = RecordActRequest {
        domain: request.domain().to_owned(),
        actor: request.identity.full.to_string(),
        act: "account.list".to_owned(),
        detail: format!("{{\"which\":\"{which}\"}}"),
    };
    let (cx, _span) = request.cx("archive.record_act");
    let recorded = request.gateway.archive.record_act(&cx, act).await;
    recorded
        .map(drop)
        .map_err(|error| answer::api_error(&error))
}

/// How many entries are wanted: a number, or as many as there may be.
fn max_items(form: &Submitted) -> Result<usize, StanzaError> {
    match form.one("max_items").as_deref() {
        None | Some("none") => Ok(LIST),
        Some(number) => match number.parse::<usize>() {
            Ok(number) if (1..=LIST).contains(&number) => Ok(number),
            _ => Err(StanzaError::new(Condition::NotAcceptable)),
        },
    }
}

fn list(var: &str, jids: &[String], more: bool) -> Done {
    let mut out = format!("<x xmlns='{}' type='result'>", ns::DATA_FORMS);
    data_form::hidden(&mut out, FORM_TYPE);
    data_form::value(&mut out, var, Some("jid-multi"), jids);
    out.push_str("</x>");
    Done {
        note: more.then(|| ("there are more".to_owned(), true)),
        result: Some(out),
    }
}

async fn accounts(
    request: Request,
    form: Submitted,
    only: Option<AccountState>,
) -> Result<Done, StanzaError> {
    let limit = max_items(&form)?;
    let (which, var) = match only {
        None => ("registered", "registereduserjids"),
        Some(_) => ("disabled", "disableduserjids"),
    };
    on_record(&request, which).await?;
    let mut found = Vec::new();
    let mut after = String::new();
    let (cx, _span) = request.cx("directory.list_accounts");
    loop {
        let ask = ListAccountsRequest {
            domain: request.domain().to_owned(),
            after,
            limit: PAGE,
        };
        let page = request.gateway.directory.list_accounts(&cx, ask).await;
        let page = page.map_err(|error| answer::api_error(&error))?;
        let wanted = page.accounts.iter().filter(|account| match only {
            None => account.state() != AccountState::Deleted,
            Some(state) => account.state() == state,
        });
        found.extend(wanted.map(|account| account.jid.clone()));
        match page.accounts.last() {
            Some(last) if page.more && found.len() <= limit => after = last.jid.clone(),
            _ => break,
        }
    }
    let more = found.len() > limit;
    found.truncate(limit);
    Ok(list(var, &found, more))
}

async fn online(request: Request, form: Submitted) -> Result<Done, StanzaError> {
    let limit = max_items(&form)?;
    on_record(&request, "online").await?;
    let (jids, more) = there(&request, limit).await?;
    Ok(list("onlineuserjids", &jids, more))
}

/// Accounts of the domain with an available session, and whether there are more.
async fn there(request: &Request, limit: usize) -> Result<(Vec<String>, bool), StanzaError> {
    let (cx, _span) = request.cx("presence.sessions");
    let ask = SessionsRequest {
        of: request.domain().to_owned(),
        limit: SESSIONS,
    };
    let found = request.gateway.presence.sessions(&cx, ask).await;
    let found = found.map_err(|error| answer::api_error(&error))?;
    let (jids, more) = accounts_of(&found.full_jids, limit);
    Ok((jids, more || found.more))
}

/// Each account once, sorted, and only then cut: one with many sessions takes one place.
fn accounts_of(full_jids: &[String], limit: usize) -> (Vec<String>, bool) {
    let bare = |full: &String| full.split('/').next().unwrap_or_default().to_owned();
    let mut jids: Vec<String> = full_jids.iter().map(bare).collect();
    jids.sort_unstable();
    jids.dedup();
    let more = jids.len() > limit;
    jids.truncate(limit);
    (jids, more)
}

/// In the administrator's own name, so that the record says who spoke, and walls hold: from the domain
/// (§4.23) it would be nobody's word.
async fn announce(request: Request, form: Submitted) -> Result<Done, StanzaError> {
    let text = form.lines("announcement");
    if text.len() > ANNOUNCEMENT_BYTES {
        return Err(StanzaError::new(Condition::NotAcceptable));
    }
    let gateway = &request.gateway;
    let (to, more) = there(&request, ANNOUNCED).await?;
    let question = Question {
        from: request.identity.full.to_string(),
        to,
        kind: Kind::Message,
        type_: "headline".to_owned(),
        trace: request.trace,
    };
    let verdicts = gateway.decide(&question).await;
    let verdicts = verdicts.map_err(|_| answer::outage())?;
    let sending = question.to.into_iter().zip(verdicts).map(|(to, verdict)| {
        let allowed = allows(&verdict);
        gateway.permits.ruled(allowed);
        let item = AppendItem {
            sm_id: Bytes::copy_from_slice(&gateway.ids.id()),
            count: 1,
            gateway: gateway.name.to_string(),
            session: request.identity.number,
            from: request.identity.full.to_string(),
            kind: Kind::Message.into(),
            r#type: "headline".to_owned(),
            payload: announcement(&request.identity.full, &to, &text),
            to,
            verdict: Some(verdict),
            has_body: true,
            ..AppendItem::default()
        };
        async move {
            let answered = gateway.append.call(item).await;
            let number = match answered {
                Ok(a) if matches!(a.outcome(), Outcome::Committed | Outcome::Gone) => a.number,
                _ => return (false, false),
            };
            if number > 0 {
                gateway.permits.recorded();
            }
            (allowed, true)
        }
    });
    let outcomes: Vec<(bool, bool)> = futures_util::stream::iter(sending)
        .buffer_unordered(UNDER_WAY)
        .collect()
        .await;
    let lost = outcomes.iter().filter(|(_, recorded)| !recorded).count();
    let reached = outcomes.iter().filter(|(allowed, _)| *allowed).count();
    // Whoever is behind a wall is not counted: the number would tell of it.
    let note = match (lost, more) {
        (0, false) => (format!("sent to {reached}"), false),
        (0, true) => (format!("sent to {reached}, others are online too"), true),
        _ => (
            format!("sent to {reached}, not to all: the log is out of reach"),
            true,
        ),
    };
    Ok(Done {
        note: Some(note),
        result: None,
    })
}

fn announcement(from: &str, to: &str, text: &str) -> Bytes {
    let mut out = String::from("<message");
    for (name, value) in [
        ("xmlns", ns::CLIENT),
        ("type", "headline"),
        ("from", from),
        ("to", to),
    ] {
        push_attr(&mut out, name, value);
    }
    out.push_str("><body>");
    escape_text(&mut out, text);
    out.push_str("</body></message>");
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sessions_of_one_account_take_one_place_of_a_list() {
        let mut sessions: Vec<String> = (0..30).map(|n| format!("bob@a.test/{n}")).collect();
        sessions.push("carol@a.test/x/y".to_owned());
        sessions.push("alice@a.test/x".to_owned());
        let three = ["alice@a.test", "bob@a.test", "carol@a.test"].map(str::to_owned);
        assert_eq!(accounts_of(&sessions, 25), (three.to_vec(), false));
        assert_eq!(accounts_of(&sessions, 2), (three[..2].to_vec(), true));
    }

    #[test]
    fn lists_say_what_there_is() {
        let done = list("onlineuserjids", &["a@b".to_owned()], true);
        let result = done.result.unwrap_or_default();
        assert!(
            result.contains(
                "<field var='onlineuserjids' type='jid-multi'><value>a@b</value></field>"
            )
        );
        assert!(done.note.is_some());
    }

    #[test]
    fn an_announcement_is_escaped() {
        let text = announcement("a@b/c", "d@b", "1 < 2\n& 3");
        assert_eq!(
            text,
            "<message xmlns='jabber:client' type='headline' from='a@b/c' to='d@b'>\
             <body>1 &lt; 2\n&amp; 3</body></message>"
        );
    }
}
