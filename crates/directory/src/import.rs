//! Many accounts in one transaction. Passwords are worked on in parallel, at most as many at once
//! as the pool has threads, so that people who log in meanwhile wait for a few, not for hundreds.

use std::sync::Arc;

use aws_lc_rs::digest;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use chancery_api::ApiError;
use chancery_api::directory::{
    ImportAccount, ImportAccountsRequest, ImportAccountsResponse, ImportProblem,
};

use crate::accounts::refusal;
use crate::acts::actor;
use crate::names::Name;
use crate::scram::{self, Given};
use crate::service::{Inner, store_error};
use crate::store::{Act, Change, KeySet, State};

/// Accounts of one call.
pub const IMPORT_LIMIT: usize = 500;

/// An account that passed every check.
struct Item {
    index: u32,
    name: Name,
    given: Given,
}

pub async fn import(
    inner: &Arc<Inner>,
    request: ImportAccountsRequest,
) -> Result<ImportAccountsResponse, ApiError> {
    let who = actor(&request.actor)?;
    if request.accounts.len() > IMPORT_LIMIT {
        return Err(ApiError::resource("more than 500 accounts in one call"));
    }
    let mut problems = Vec::new();
    let items = check(inner, request.accounts, &mut problems).await?;
    if items.is_empty() {
        return Ok(ImportAccountsResponse { added: 0, problems });
    }
    let ready = derive(inner, items).await?;
    let acts = acts(&ready, &who);
    for act in &acts {
        inner.acts.record(act.clone()).await?;
    }
    let indexes: Vec<u32> = ready.iter().map(|(index, ..)| *index).collect();
    let changes = ready
        .into_iter()
        .map(|(_, name, keys)| Change::Add {
            name,
            keys,
            seen: None,
        })
        .collect();
    let applied = match inner.commit(changes, "").await {
        Ok(applied) => applied,
        Err(error) => {
            for act in acts {
                inner.acts.record_failure(act, &error.message).await;
            }
            return Err(error);
        }
    };
    for (position, why) in applied.refused {
        if let Some(index) = indexes.get(position) {
            problems.push(ImportProblem {
                index: *index,
                problem: refusal(why).message,
            });
        }
    }
    problems.sort_by_key(|problem| problem.index);
    Ok(ImportAccountsResponse {
        added: applied.accounts.len() as u64,
        problems,
    })
}

/// Names and credentials, before anything is worked on or recorded.
async fn check(
    inner: &Inner,
    accounts: Vec<ImportAccount>,
    problems: &mut Vec<ImportProblem>,
) -> Result<Vec<Item>, ApiError> {
    let mut items: Vec<Item> = Vec::with_capacity(accounts.len());
    let mut seen = std::collections::HashSet::new();
    for (index, account) in (0_u32..).zip(accounts) {
        let checked = inner.domains.new_account(&account.jid).and_then(|name| {
            let given = scram::check(account.credentials).map_err(ApiError::invalid)?;
            Ok((name, given))
        });
        let mut problem = |problem: String| problems.push(ImportProblem { index, problem });
        let (name, given) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                problem(error.message);
                continue;
            }
        };
        if !seen.insert(name.clone()) {
            problem("named twice in one call".to_owned());
            continue;
        }
        let found = inner
            .store
            .find(name.clone())
            .await
            .map_err(|error| store_error(&error))?;
        match found {
            Some((old, _)) if old.state != State::Deleted => {
                problem("exists already".to_owned());
                continue;
            }
            Some((old, _)) if old.drop_pending => inner.acts.finish_drop(&name).await?,
            _ => {}
        }
        items.push(Item { index, name, given });
    }
    Ok(items)
}

type Ready = (u32, Name, KeySet);

async fn derive(inner: &Arc<Inner>, items: Vec<Item>) -> Result<Vec<Ready>, ApiError> {
    let expected = items.len();
    let work = Arc::new(Mutex::new(items.into_iter()));
    let (done, mut results) = mpsc::channel(IMPORT_LIMIT);
    for _ in 0..inner.pool.threads().min(expected) {
        let (inner, work, done) = (Arc::clone(inner), Arc::clone(&work), done.clone());
        inner.clone().tasks.spawn("directory-import", async move {
            loop {
                let next = work.lock().await.next();
                let Some(Item { index, name, given }) = next else {
                    return;
                };
                let keys = inner.pool.keys(given, inner.config.iterations).await;
                let failed = keys.is_err();
                if done
                    .send(keys.map(|keys| (index, name, keys)))
                    .await
                    .is_err()
                    || failed
                {
                    return;
                }
            }
        });
    }
    drop(done);
    let mut ready = Vec::with_capacity(expected);
    while let Some(result) = results.recv().await {
        ready.push(result?);
    }
    if ready.len() != expected {
        return Err(ApiError::unavailable("the directory ends"));
    }
    ready.sort_by_key(|(index, ..)| *index);
    Ok(ready)
}

/// One act per domain named in the call: how many, and a digest of each name, so that a list that
/// somebody still has can be proven against the record.
fn acts(ready: &[Ready], who: &str) -> Vec<Act> {
    let mut domains: Vec<&str> = ready
        .iter()
        .map(|(_, name, _)| name.domain.as_str())
        .collect();
    domains.sort_unstable();
    domains.dedup();
    let act = |domain: &str| {
        let digests: Vec<String> = ready
            .iter()
            .filter(|(_, name, _)| name.domain == domain)
            .map(|(_, name, _)| digest::digest(&digest::SHA256, name.jid().as_bytes()))
            .map(|digest| hex::encode(digest.as_ref()))
            .collect();
        Act {
            domain: domain.to_owned(),
            actor: who.to_owned(),
            act: "account.import".to_owned(),
            detail: json!({ "count": digests.len(), "jid_sha256": digests }).to_string(),
        }
    };
    domains.into_iter().map(act).collect()
}
