//! `group`: groups of accounts.

use chancery_api::directory::{ChangeGroupRequest, GroupAct, ListGroupsRequest};

use super::{Admin, about, actor, cx, unconfirmed};
use crate::cli::Group;
use crate::error::{OK, Outcome};
use crate::out::say;

/// Members of one change; more are given in further ones.
const MEMBERS: usize = 500;

pub async fn run(admin: &Admin, command: Group) -> Outcome {
    match command {
        Group::Create { group } => change(admin, GroupAct::Create, &group, &[]).await,
        Group::Delete { group } => change(admin, GroupAct::Delete, &group, &[]).await,
        Group::Show { group, label } => {
            let label = label.as_deref().unwrap_or(&group);
            shown(admin, GroupAct::Show, &group, label).await
        }
        Group::Hide { group } => shown(admin, GroupAct::Hide, &group, "").await,
        Group::Add { group, members } => {
            change(admin, GroupAct::AddMembers, &group, &members).await
        }
        Group::Remove { group, members } => {
            change(admin, GroupAct::RemoveMembers, &group, &members).await
        }
        Group::List => list(admin).await,
    }
}

async fn change(admin: &Admin, act: GroupAct, group: &str, named: &[String]) -> Outcome {
    let domain = admin.domain().await?;
    let mut members = Vec::with_capacity(named.len());
    for member in named {
        members.push(admin.jid(member).await?);
    }
    let chunks: Vec<&[String]> = if members.is_empty() {
        vec![&[]]
    } else {
        members.chunks(MEMBERS).collect()
    };
    let mut late = Vec::new();
    for chunk in chunks {
        let request = ChangeGroupRequest {
            act: act.into(),
            domain: domain.clone(),
            group: group.to_owned(),
            members: chunk.to_vec(),
            actor: actor(),
            label: String::new(),
        };
        let answer = admin
            .directory
            .change_group(&cx(), request)
            .await
            .map_err(about(group))?;
        late.extend(answer.unconfirmed);
    }
    match act {
        GroupAct::Create => say!("created {group} in {domain}"),
        GroupAct::Delete => say!("deleted {group} of {domain}"),
        GroupAct::AddMembers => say!("added {} to {group} of {domain}", members.join(", ")),
        _ => say!("removed {} from {group} of {domain}", members.join(", ")),
    }
    late.sort();
    late.dedup();
    unconfirmed(&late)
}

/// Shows a group in rosters, or takes it out.
async fn shown(admin: &Admin, act: GroupAct, group: &str, label: &str) -> Outcome {
    let domain = admin.domain().await?;
    let request = ChangeGroupRequest {
        act: act.into(),
        domain: domain.clone(),
        group: group.to_owned(),
        actor: actor(),
        label: label.to_owned(),
        ..ChangeGroupRequest::default()
    };
    let answer = admin
        .directory
        .change_group(&cx(), request)
        .await
        .map_err(about(group))?;
    match act {
        GroupAct::Show => say!("{group} of {domain} is in rosters as {label}"),
        _ => say!("{group} of {domain} is not in rosters"),
    }
    unconfirmed(&answer.unconfirmed)
}

async fn list(admin: &Admin) -> Outcome {
    for domain in admin.selected().await? {
        let request = ListGroupsRequest {
            domain: domain.clone(),
        };
        let answer = admin
            .directory
            .list_groups(&cx(), request)
            .await
            .map_err(about(&domain))?;
        for group in answer.groups.iter().filter(|group| !group.deleted) {
            let shown = match group.label.as_str() {
                "" => String::new(),
                label => format!(", in rosters as {label}"),
            };
            say!(
                "{} ({}{shown}): {}",
                group.group,
                group.domain,
                group.members.join(", ")
            );
        }
    }
    Ok(OK)
}
