//! Groups of a domain: created, deleted, given and taken members. It refuses to know what a group
//! is good for (policy builds walls from them, gateways show them in rosters).

use serde_json::json;

use chancery_api::ApiError;
use chancery_api::directory::{ChangeGroupRequest, ChangeGroupResponse, GroupAct};

use crate::accounts::recorded;
use crate::acts::actor;
use crate::service::{CONFIRM_LIMIT, Inner};
use crate::store::{Act, Change};

/// The longest name of a group.
const NAME_LIMIT_BYTES: usize = 255;
/// Members that one call may name.
const MEMBERS_LIMIT: usize = 1_000;

pub async fn change(
    inner: &Inner,
    request: ChangeGroupRequest,
) -> Result<ChangeGroupResponse, ApiError> {
    let act = request.act();
    let who = actor(&request.actor)?;
    let domain = inner.domains.hosted(&request.domain)?;
    let group = checked(&request.group)?;
    let members = members(inner, &domain, &request.members)?;
    let takes_members = matches!(act, GroupAct::AddMembers | GroupAct::RemoveMembers);
    if takes_members == members.is_empty() {
        return Err(ApiError::invalid(
            "members are missing, or given where none are taken",
        ));
    }
    let jids: Vec<String> = members
        .iter()
        .map(|member| format!("{member}@{domain}"))
        .collect();
    let (what, change) = {
        let (domain, group) = (domain.clone(), group.clone());
        match act {
            GroupAct::Unspecified => return Err(ApiError::invalid("act is missing")),
            GroupAct::AddMembers => (
                "group.add_members",
                Change::AddMembers {
                    domain,
                    group,
                    members,
                },
            ),
            GroupAct::RemoveMembers => (
                "group.remove_members",
                Change::RemoveMembers {
                    domain,
                    group,
                    members,
                },
            ),
            GroupAct::Create => ("group.create", Change::CreateGroup { domain, group }),
            GroupAct::Delete => ("group.delete", Change::DeleteGroup { domain, group }),
            GroupAct::Show => {
                let label = Some(labelled(&request.label)?);
                let change = Change::LabelGroup {
                    domain,
                    group,
                    label,
                };
                ("group.show", change)
            }
            GroupAct::Hide => (
                "group.hide",
                Change::LabelGroup {
                    domain,
                    group,
                    label: None,
                },
            ),
        }
    };
    let mut detail = json!({ "group": group, "members": jids });
    if request.act() == GroupAct::Show {
        detail["label"] = request.label.clone().into();
    }
    let detail = detail.to_string();
    let act = Act {
        domain,
        actor: who,
        act: what.to_owned(),
        detail,
    };
    let applied = recorded(inner, act, change, "").await?;
    let unconfirmed = inner
        .followers
        .confirmed(applied.version, CONFIRM_LIMIT)
        .await;
    Ok(ChangeGroupResponse {
        version: applied.version,
        unconfirmed,
    })
}

fn checked(group: &str) -> Result<String, ApiError> {
    if group.is_empty() || group.len() > NAME_LIMIT_BYTES {
        return Err(ApiError::invalid("group must have 1 to 255 bytes"));
    }
    if group.trim() != group || group.chars().any(char::is_control) {
        return Err(ApiError::invalid(
            "group holds control characters or space at an end",
        ));
    }
    Ok(group.to_owned())
}

/// The name of a group in rosters.
fn labelled(label: &str) -> Result<String, ApiError> {
    let label = checked(label)?;
    // No XML can hold them.
    if label.contains(['\u{fffe}', '\u{ffff}']) {
        return Err(ApiError::invalid("label holds what is no character"));
    }
    Ok(label)
}

fn members(inner: &Inner, domain: &str, jids: &[String]) -> Result<Vec<String>, ApiError> {
    if jids.len() > MEMBERS_LIMIT {
        return Err(ApiError::resource("more than 1000 members in one call"));
    }
    let mut members = Vec::with_capacity(jids.len());
    for jid in jids {
        let name = inner.domains.account(jid)?;
        if name.domain != domain {
            return Err(ApiError::invalid("a member is of another domain"));
        }
        members.push(name.localpart);
    }
    Ok(members)
}
