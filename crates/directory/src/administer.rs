//! Administrators of a domain, who change its accounts from a session of theirs: who they are, and the
//! changes that they ask for. Each change is that of `accounts.rs`, recorded under the administrator's
//! full JID. It refuses to let anybody reach into another domain, and to make half of what was asked
//! when the other half can be seen not to work.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use chancery_api::ApiError;
use chancery_api::directory::{
    AccountAct, AdministerRequest, AdministerResponse, AdministratorRequest, AdministratorResponse,
    ChangeAccountRequest,
};

use crate::accounts::{self, find};
use crate::names::Name;
use crate::service::{Inner, store_error};
use crate::store::State;

/// Accounts that one request may name.
pub const ACCOUNTS_LIMIT: usize = 100;

/// Who administers a domain: accounts of the domain, and its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Administrators {
    /// Bare JIDs, prepared.
    pub accounts: BTreeSet<String>,
    /// Groups of the directory.
    pub groups: BTreeSet<String>,
}

/// By domain.
pub type AdministratorsOf = BTreeMap<String, Administrators>;

/// Is the session's account an administrator of its domain?
pub async fn administrator(
    inner: &Inner,
    request: &AdministratorRequest,
) -> Result<AdministratorResponse, ApiError> {
    let name = account_of(inner, &request.session)?;
    Ok(AdministratorResponse {
        administrator: is_administrator(inner, &name).await?,
    })
}

/// Changes accounts for an administrator: all of them, or none when it can be seen before.
pub async fn administer(
    inner: &Inner,
    request: AdministerRequest,
) -> Result<AdministerResponse, ApiError> {
    let act = request.act();
    let who = account_of(inner, &request.session)?;
    if !is_administrator(inner, &who).await? {
        return Err(ApiError::denied("not an administrator"));
    }
    let names = named(inner, &who, &request.jids, act)?;
    let takes_credentials = matches!(act, AccountAct::Add | AccountAct::Password);
    if takes_credentials != request.credentials.is_some() || (takes_credentials && names.len() > 1)
    {
        return Err(ApiError::invalid(
            "credentials are missing, or given where none are taken",
        ));
    }
    for name in &names {
        let account = find(inner, name).await?;
        let there = account.as_ref().is_some_and(|a| a.state != State::Deleted);
        let half_gone = account.is_some_and(|account| account.drop_pending);
        match act {
            AccountAct::Add if there => return Err(ApiError::exists("exists already")),
            AccountAct::Add => {}
            // A deletion that is asked for again, whose first answer was an error.
            AccountAct::Disable | AccountAct::Delete if half_gone => {}
            _ if !there => return Err(ApiError::not_found(format!("no account {}", name.jid()))),
            _ => {}
        }
    }
    let mut response = AdministerResponse::default();
    for name in &names {
        let change = ChangeAccountRequest {
            act: act.into(),
            jid: name.jid(),
            credentials: request.credentials.clone(),
            actor: request.session.clone(),
        };
        match accounts::change(inner, change).await {
            Ok(changed) => {
                response.done.push(name.jid());
                for follower in changed.unconfirmed {
                    if !response.unconfirmed.contains(&follower) {
                        response.unconfirmed.push(follower);
                    }
                }
            }
            Err(error) if response.done.is_empty() => return Err(error),
            Err(error) => {
                response.failed = format!("{}: {}", name.jid(), error.message);
                break;
            }
        }
    }
    Ok(response)
}

/// The account that a full JID belongs to.
fn account_of(inner: &Inner, session: &str) -> Result<Name, ApiError> {
    let (account, _) = session
        .split_once('/')
        .ok_or_else(|| ApiError::invalid("session is not a full jid"))?;
    inner.domains.account(account)
}

async fn is_administrator(inner: &Inner, name: &Name) -> Result<bool, ApiError> {
    let Some(of) = inner.administrators.get(&name.domain) else {
        return Ok(false);
    };
    // Whoever was disabled meanwhile administers nothing.
    let account = find(inner, name).await?;
    if account.is_none_or(|account| account.state != State::Active) {
        return Ok(false);
    }
    if of.accounts.contains(&name.jid()) {
        return Ok(true);
    }
    if of.groups.is_empty() {
        return Ok(false);
    }
    let groups = inner.store.groups(name.domain.clone()).await;
    let groups = groups.map_err(|error| store_error(&error))?;
    Ok(groups.iter().any(|group| {
        !group.deleted
            && of.groups.contains(&group.group)
            && group.members.contains(&name.localpart)
    }))
}

/// The accounts that are named: of the administrator's own domain, each once.
fn named(
    inner: &Inner,
    who: &Name,
    jids: &[String],
    act: AccountAct,
) -> Result<Vec<Name>, ApiError> {
    if jids.is_empty() || jids.len() > ACCOUNTS_LIMIT {
        return Err(ApiError::invalid("1 to 100 accounts have to be named"));
    }
    let mut names = Vec::with_capacity(jids.len());
    for jid in jids {
        let name = match act {
            AccountAct::Unspecified => return Err(ApiError::invalid("act is missing")),
            AccountAct::Add => inner.domains.new_account(jid)?,
            _ => inner.domains.account(jid)?,
        };
        if name.domain != who.domain {
            return Err(ApiError::denied("an account of another domain"));
        }
        if names.contains(&name) {
            return Err(ApiError::invalid("the same account twice"));
        }
        names.push(name);
    }
    Ok(names)
}
