//! Changes of one account: add, password (an administrator's or the person's own), disable, enable,
//! delete, end of sessions. It owns their order: what is refused is refused before anything is recorded, what is
//! recorded is recorded before it takes effect, and the answer waits for the followers. Disabling
//! alone takes effect first.

use serde_json::json;

use chancery_api::directory::{
    AccountAct, ChangeAccountRequest, ChangeAccountResponse, ChangePasswordRequest,
    ChangePasswordResponse, NewCredentials,
};
use chancery_api::{ApiError, Code};

use crate::acts::actor;
use crate::names::Name;
use crate::scram;
use crate::service::{CONFIRM_LIMIT, Inner, store_error};
use crate::store::{Account, Act, Applied, Change, KeySet, Refusal, State};

/// Passed after an act is recorded and before it takes effect.
const RECORDED: &str = "directory::change::recorded";

pub async fn change(
    inner: &Inner,
    request: ChangeAccountRequest,
) -> Result<ChangeAccountResponse, ApiError> {
    let who = actor(&request.actor)?;
    let act = request.act();
    let name = match act {
        AccountAct::Add => inner.domains.new_account(&request.jid)?,
        _ => inner.domains.account(&request.jid)?,
    };
    let applied = match act {
        AccountAct::Unspecified => return Err(ApiError::invalid("act is missing")),
        AccountAct::Add => add(inner, name, request.credentials, who).await?,
        AccountAct::Password => password(inner, name, request.credentials, who, "").await?,
        AccountAct::Disable => disable(inner, name, who).await?,
        AccountAct::Enable => enable(inner, name, who).await?,
        AccountAct::Delete => delete(inner, name, who).await?,
        AccountAct::EndSessions => end_sessions(inner, name, who).await?,
    };
    let unconfirmed = inner
        .followers
        .confirmed(applied.version, CONFIRM_LIMIT)
        .await;
    Ok(ChangeAccountResponse {
        version: applied.version,
        unconfirmed,
    })
}

/// A person's own change: that session goes on with the new credentials.
pub async fn change_password(
    inner: &Inner,
    request: ChangePasswordRequest,
) -> Result<ChangePasswordResponse, ApiError> {
    let session = request.session;
    let (account, _) = session
        .split_once('/')
        .ok_or_else(|| ApiError::invalid("session is not a full jid"))?;
    let name = inner.domains.account(account)?;
    let new = NewCredentials {
        password: request.password,
        ..NewCredentials::default()
    };
    let applied = password(inner, name, Some(new), actor(&session)?, &session).await?;
    // Who has not confirmed ends the sessions once it has heard.
    inner
        .followers
        .confirmed(applied.version, CONFIRM_LIMIT)
        .await;
    Ok(ChangePasswordResponse {})
}

async fn add(
    inner: &Inner,
    name: Name,
    credentials: Option<NewCredentials>,
    who: String,
) -> Result<Applied, ApiError> {
    let given = scram::check(credentials).map_err(ApiError::invalid)?;
    let old = find(inner, &name).await?;
    if old.as_ref().is_some_and(|old| old.state != State::Deleted) {
        return Err(refusal(Refusal::Exists));
    }
    let keys = inner.pool.keys(given, inner.config.iterations).await?;
    if old.as_ref().is_some_and(|old| old.drop_pending) {
        inner.acts.finish_drop(&name).await?;
    }
    let seen = Some(old.map_or(0, |old| old.version));
    let act = account_act("account.add", &name, who);
    recorded(inner, act, Change::Add { name, keys, seen }, "").await
}

async fn password(
    inner: &Inner,
    name: Name,
    credentials: Option<NewCredentials>,
    who: String,
    session: &str,
) -> Result<Applied, ApiError> {
    let given = scram::check(credentials).map_err(ApiError::invalid)?;
    let account = live(inner, &name).await?;
    let keys: KeySet = inner.pool.keys(given, inner.config.iterations).await?;
    let act = account_act("account.password", &name, who);
    recorded(
        inner,
        act,
        Change::SetKeys {
            name,
            keys,
            seen: account.version,
        },
        session,
    )
    .await
}

/// Sessions are of a version of the credentials: the same keys under the next one end them all.
async fn end_sessions(inner: &Inner, name: Name, who: String) -> Result<Applied, ApiError> {
    let found = inner.store.find(name.clone()).await;
    let found = found.map_err(|error| store_error(&error))?;
    let Some((account, keys)) = found.filter(|(account, _)| account.state != State::Deleted) else {
        return Err(refusal(Refusal::NotFound));
    };
    let act = account_act("account.end_sessions", &name, who);
    let change = Change::SetKeys {
        name,
        keys,
        seen: account.version,
    };
    recorded(inner, act, change, "").await
}

/// The leaver's cut-off waits for nothing: the act is stored with the change, and the worker
/// records it as soon as the log can be reached. A deletion begins with it, also one that is asked for
/// again: where only the mailbox is left, nobody is left to cut off.
async fn disable(inner: &Inner, name: Name, who: String) -> Result<Applied, ApiError> {
    if let Some(account) = find(inner, &name)
        .await?
        .filter(|account| account.drop_pending)
    {
        return Ok(Applied {
            version: account.version,
            ..Applied::default()
        });
    }
    let act = account_act("account.disable", &name, who);
    let applied = inner
        .commit(vec![Change::Disable { name, act }], "")
        .await?;
    inner.acts.look();
    first_refusal(applied)
}

async fn enable(inner: &Inner, name: Name, who: String) -> Result<Applied, ApiError> {
    let account = live(inner, &name).await?;
    if account.state == State::Active {
        return Ok(Applied {
            version: account.version,
            ..Applied::default()
        });
    }
    let act = account_act("account.enable", &name, who);
    recorded(
        inner,
        act,
        Change::Enable {
            name,
            seen: account.version,
        },
        "",
    )
    .await
}

async fn delete(inner: &Inner, name: Name, who: String) -> Result<Applied, ApiError> {
    let account = match find(inner, &name).await? {
        // Asked again because the first answer was an error: only the mailbox is left.
        Some(account) if account.drop_pending => {
            inner.acts.finish_drop(&name).await?;
            return Ok(Applied {
                version: account.version,
                ..Applied::default()
            });
        }
        Some(account) if account.state != State::Deleted => account,
        _ => return Err(refusal(Refusal::NotFound)),
    };
    let act = account_act("account.delete", &name, who);
    let change = Change::Delete {
        name: name.clone(),
        seen: account.version,
    };
    let applied = recorded(inner, act, change, "").await?;
    if let Err(error) = inner.acts.finish_drop(&name).await {
        inner.acts.look();
        return Err(ApiError::new(
            error.code,
            format!(
                "the account is deleted, its mailbox not yet dropped: {}",
                error.message
            ),
        ));
    }
    Ok(applied)
}

/// Records the act, then makes the change; it ends the sessions that it concerns but `session`.
pub async fn recorded(
    inner: &Inner,
    act: Act,
    change: Change,
    session: &str,
) -> Result<Applied, ApiError> {
    inner.acts.record(act.clone()).await?;
    let outcome = match inner.failpoints.hit(RECORDED).await {
        Ok(()) => inner
            .commit(vec![change], session)
            .await
            .and_then(first_refusal),
        Err(_) => Err(ApiError::unavailable("failpoint")),
    };
    if let Err(error) = &outcome {
        inner.acts.record_failure(act, &error.message).await;
    }
    outcome
}

fn first_refusal(applied: Applied) -> Result<Applied, ApiError> {
    match applied.refused.first() {
        Some((_, why)) => Err(refusal(*why)),
        None => Ok(applied),
    }
}

/// Why a change was not made, as an error.
pub fn refusal(why: Refusal) -> ApiError {
    match why {
        Refusal::Exists => ApiError::exists("exists already"),
        Refusal::NotFound => ApiError::not_found("does not exist"),
        Refusal::Changed => ApiError::new(Code::Conflict, "was changed by somebody else meanwhile"),
        Refusal::Full => ApiError::resource("a limit is reached"),
        Refusal::DropPending => {
            ApiError::unavailable("the mailbox of the name's last holder is not dropped yet")
        }
        Refusal::NoSuchMember => ApiError::not_found("a member does not exist in the domain"),
    }
}

/// An account, deleted ones too.
pub async fn find(inner: &Inner, name: &Name) -> Result<Option<Account>, ApiError> {
    let found = inner
        .store
        .find(name.clone())
        .await
        .map_err(|error| store_error(&error))?;
    Ok(found.map(|(account, _)| account))
}

async fn live(inner: &Inner, name: &Name) -> Result<Account, ApiError> {
    let account = find(inner, name)
        .await?
        .filter(|account| account.state != State::Deleted);
    account.ok_or_else(|| refusal(Refusal::NotFound))
}

fn account_act(act: &str, name: &Name, actor: String) -> Act {
    Act {
        domain: name.domain.clone(),
        actor,
        act: act.to_owned(),
        detail: json!({ "jid": name.jid() }).to_string(),
    }
}
