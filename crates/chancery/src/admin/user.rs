//! `user`: accounts, one at a time, and their list.

use chancery_api::directory::{
    AccountAct, AccountState, ChangeAccountRequest, ChangeAccountResponse, ListAccountsRequest,
    NewCredentials,
};
use chancery_api::{pubsub, roster};

use super::{Admin, about, actor, cx, import, new_password, unconfirmed};
use crate::cli::User;
use crate::error::{Failure, OK, Outcome};
use crate::out::{note, say};

/// Accounts of one page of the list.
const PAGE: u32 = 500;

pub async fn run(admin: &Admin, command: User) -> Outcome {
    match command {
        User::Add { jid } => with_password(admin, AccountAct::Add, &jid, "added").await,
        User::Passwd { jid } => {
            with_password(admin, AccountAct::Password, &jid, "password changed:").await
        }
        User::Disable { jid } => change(admin, AccountAct::Disable, &jid, "disabled").await,
        User::Enable { jid } => change(admin, AccountAct::Enable, &jid, "enabled").await,
        User::Delete { jid } => delete(admin, &jid).await,
        User::List => list(admin).await,
        User::Import { file } => import::run(admin, &file).await,
    }
}

async fn with_password(admin: &Admin, act: AccountAct, jid: &str, done: &str) -> Outcome {
    let jid = admin.jid(jid).await?;
    let password = new_password(&jid)?;
    let credentials = Some(NewCredentials {
        password,
        keys: Vec::new(),
    });
    submit(admin, act, jid, credentials, done).await
}

async fn change(admin: &Admin, act: AccountAct, jid: &str, done: &str) -> Outcome {
    let jid = admin.jid(jid).await?;
    submit(admin, act, jid, None, done).await
}

async fn submit(
    admin: &Admin,
    act: AccountAct,
    jid: String,
    credentials: Option<NewCredentials>,
    done: &str,
) -> Outcome {
    let answer = ask(admin, act, &jid, credentials).await?;
    say!("{done} {jid}");
    unconfirmed(&answer.unconfirmed)
}

async fn ask(
    admin: &Admin,
    act: AccountAct,
    jid: &str,
    credentials: Option<NewCredentials>,
) -> Result<ChangeAccountResponse, Failure> {
    let request = ChangeAccountRequest {
        act: act.into(),
        jid: jid.to_owned(),
        credentials,
        actor: actor(),
    };
    let answer = admin.directory.change_account(&cx(), request).await;
    answer.map_err(about(jid))
}

/// The account last: whatever fails before, it is still there, disabled, and nobody gets its name with
/// what is left of it. What was done may be done again.
async fn delete(admin: &Admin, jid: &str) -> Outcome {
    let jid = admin.jid(jid).await?;
    let disabled = ask(admin, AccountAct::Disable, &jid, None).await?;
    let again = |left: &str| {
        note!("{jid} is disabled, {left} not yet gone: run the command again");
    };
    let clear = roster::ClearRequest {
        owner: jid.clone(),
        actor: actor(),
    };
    if let Err(error) = admin.roster.clear(&cx(), clear).await {
        again("its roster is");
        return Err(about(&jid)(error));
    }
    let clear = pubsub::ClearRequest {
        owner: jid.clone(),
        actor: actor(),
    };
    if let Err(error) = admin.pubsub.clear(&cx(), clear).await {
        again("its vcard and private xml are");
        return Err(about(&jid)(error));
    }
    let deleted = ask(admin, AccountAct::Delete, &jid, None).await;
    let deleted = deleted.inspect_err(|_| {
        note!("the deletion of {jid} is not finished: run the command again");
    })?;
    say!("deleted {jid}");
    let mut late = disabled.unconfirmed;
    late.extend(deleted.unconfirmed);
    late.sort_unstable();
    late.dedup();
    unconfirmed(&late)
}

async fn list(admin: &Admin) -> Outcome {
    for domain in admin.selected().await? {
        let mut after = String::new();
        loop {
            let request = ListAccountsRequest {
                domain: domain.clone(),
                after,
                limit: PAGE,
            };
            let page = admin
                .directory
                .list_accounts(&cx(), request)
                .await
                .map_err(about(&domain))?;
            for account in &page.accounts {
                match account.state() {
                    AccountState::Disabled => say!("{} disabled", account.jid),
                    AccountState::Deleted => {}
                    _ => say!("{}", account.jid),
                }
            }
            match page.accounts.last() {
                Some(last) if page.more => after = last.jid.clone(),
                _ => break,
            }
        }
    }
    Ok(OK)
}
