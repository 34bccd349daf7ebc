//! `roster`: an administrator's hand in somebody's roster.

use chancery_api::roster::{Item, PutRequest, Subscription};

use super::{Admin, about, actor, cx};
use crate::cli;
use crate::error::{OK, Outcome};
use crate::out::say;

pub async fn run(admin: &Admin, command: cli::Roster) -> Outcome {
    let cli::Roster::Put {
        owner,
        contact,
        subscription,
        name,
        groups,
    } = command;
    let owner = admin.jid(&owner).await?;
    let contact = admin.jid(&contact).await?;
    let subscription = match subscription {
        cli::Subscription::None => Subscription::None,
        cli::Subscription::To => Subscription::To,
        cli::Subscription::From => Subscription::From,
        cli::Subscription::Both => Subscription::Both,
        cli::Subscription::Remove => Subscription::Remove,
    };
    put(admin, &owner, &contact, subscription, name, groups).await?;
    say!(
        "{owner}: {contact} {}",
        subscription
            .as_str_name()
            .trim_start_matches("SUBSCRIPTION_")
            .to_lowercase()
    );
    Ok(OK)
}

/// Writes one item.
pub async fn put(
    admin: &Admin,
    owner: &str,
    contact: &str,
    subscription: Subscription,
    name: String,
    groups: Vec<String>,
) -> Result<(), crate::error::Failure> {
    let item = Item {
        jid: contact.to_owned(),
        name,
        subscription: subscription.into(),
        groups,
        ..Item::default()
    };
    let request = PutRequest {
        owner: owner.to_owned(),
        item: Some(item),
        actor: actor(),
    };
    admin
        .roster
        .put(&cx(), request)
        .await
        .map_err(about(owner))?;
    Ok(())
}
