//! `demo`: a whole server with four accounts in two walled groups who know each other, and what to
//! try with it. Owns the cast and the text; the server is the one that `serve` runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use chancery_api::directory::{
    AccountAct, ChangeAccountRequest, ChangeGroupRequest, GroupAct, NewCredentials,
};
use chancery_api::roster::Subscription;
use chancery_api::{ApiError, Code};
use chancery_runtime::telemetry;

use crate::admin::{Admin, about, actor, cx, policy, roster};
use crate::cli::{self, Place};
use crate::config::{Overrides, Settings};
use crate::error::{Failure, Outcome};
use crate::out::{note, say};
use crate::serve::Running;
use crate::{listen, trust};

/// Name and group of everybody.
const CAST: [(&str, &str); 4] = [
    ("alice", "research"),
    ("bob", "research"),
    ("carol", "trading"),
    ("dave", "trading"),
];
const GROUPS: [&str; 2] = ["research", "trading"];
const POLICY: &str = r#"# Everybody may write to everybody, but for what a wall forbids.
default = "allow"

[[wall]]
name = "research-trading"
between = ["research", "trading"]
direction = "both"
kind = "open"
text = "research and trading may not write to each other"
"#;
/// Characters of a password: 48 random bits, for one machine and an afternoon.
const PASSWORD_CHARS: usize = 12;
/// Ports that are tried when the usual one is taken.
const PORTS_TRIED: u16 = 100;
/// Only what goes wrong: the screen belongs to the instructions.
const LOG_LEVEL: &str = "warn";

pub async fn run(place: &Place, demo: &cli::Demo) -> Outcome {
    let temporary = match &place.data {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("chancery-demo-")
                .tempdir()?,
        ),
    };
    let data = temporary
        .as_ref()
        .map(|dir| dir.path().to_owned())
        .or_else(|| place.data.clone());
    let settings = settings(place, demo, data)?;
    telemetry::init(settings.log_format, LOG_LEVEL)?;
    let running = Running::start(settings.clone()).await?;
    let admin = Admin::within(&running.opened, &running.base)?;
    let passwords = match set_up(&admin).await {
        Ok(passwords) => passwords,
        Err(failure) => {
            drop(admin);
            running
                .base
                .shutdown
                .request("the demo could not be set up");
            running.until_asked().await?;
            return Err(failure);
        }
    };
    drop(admin);
    explain(&settings, &passwords, temporary.is_some());
    running.until_asked().await
}

fn settings(place: &Place, demo: &cli::Demo, data: Option<PathBuf>) -> Result<Settings, Failure> {
    let place = Place {
        config: None,
        data,
        domains: place.domains.clone(),
    };
    let serve = cli::Serve {
        c2s: Some(address("--c2s", &demo.c2s, 5222)?),
        c2s_tls: Some(address("--c2s-tls", &demo.c2s_tls, 5223)?),
        ops: Some(address("--ops", &demo.ops, 5280)?),
        name: Some("demo".into()),
        ..cli::Serve::default()
    };
    Settings::load(&Overrides { place, serve }).map_err(Failure::problems)
}

/// What was asked for, or the usual port, or the next one that is free.
fn address(flag: &str, asked: &Option<String>, usual: u16) -> Result<String, Failure> {
    if let Some(asked) = asked {
        return Ok(asked.clone());
    }
    // Others of the demo's own ports lie between the usual ones: step over them.
    for port in (0..PORTS_TRIED).map(|n| usual.saturating_add(n * 100)) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if listen::bind(flag, address).is_ok() {
            if port != usual {
                note!("port {usual} is taken, using {port}; {flag} ADDR chooses another");
            }
            return Ok(address.to_string());
        }
    }
    Err(Failure::new(format!(
        "port {usual} and others are taken; choose an address with {flag} ADDR"
    )))
}

/// Accounts, groups, policy and rosters; gives everybody's password, in the order of the cast.
async fn set_up(admin: &Admin) -> Result<Vec<String>, Failure> {
    let domain = admin.domain().await?;
    let mut passwords = Vec::new();
    for (name, _) in CAST {
        let password: String = admin.ids().token().chars().take(PASSWORD_CHARS).collect();
        account(admin, &format!("{name}@{domain}"), &password).await?;
        passwords.push(password);
    }
    for group in GROUPS {
        let members = CAST.iter().filter(|(_, of)| *of == group);
        let members = members
            .map(|(name, _)| format!("{name}@{domain}"))
            .collect();
        change_group(admin, GroupAct::Create, group, &domain, Vec::new()).await?;
        change_group(admin, GroupAct::AddMembers, group, &domain, members).await?;
    }
    policy::submit(
        admin,
        std::path::Path::new("the demo's policy"),
        POLICY.into(),
        false,
    )
    .await?;
    for (owner, _) in CAST {
        for (contact, group) in CAST.iter().filter(|(contact, _)| *contact != owner) {
            roster::put(
                admin,
                &format!("{owner}@{domain}"),
                &format!("{contact}@{domain}"),
                Subscription::Both,
                capitalised(contact),
                vec![capitalised(group)],
            )
            .await?;
        }
    }
    Ok(passwords)
}

/// Adds the account, or in a directory that was used before gives it a new password.
async fn account(admin: &Admin, jid: &str, password: &str) -> Result<(), Failure> {
    let change = async |act: AccountAct| {
        let keys = Vec::new();
        let credentials = Some(NewCredentials {
            password: password.to_owned(),
            keys,
        });
        let (jid, actor) = (jid.to_owned(), actor());
        let request = ChangeAccountRequest {
            act: act.into(),
            jid,
            credentials,
            actor,
        };
        admin.directory.change_account(&cx(), request).await
    };
    let added = match change(AccountAct::Add).await {
        Err(ApiError {
            code: Code::Exists, ..
        }) => change(AccountAct::Password).await,
        other => other,
    };
    added.map(drop).map_err(about(jid))
}

async fn change_group(
    admin: &Admin,
    act: GroupAct,
    group: &str,
    domain: &str,
    members: Vec<String>,
) -> Result<(), Failure> {
    let request = ChangeGroupRequest {
        act: act.into(),
        domain: domain.to_owned(),
        group: group.to_owned(),
        members,
        actor: actor(),
        label: String::new(),
    };
    match admin.directory.change_group(&cx(), request).await {
        Err(ApiError {
            code: Code::Exists, ..
        })
        | Ok(_) => Ok(()),
        Err(error) => Err(about(group)(error)),
    }
}

fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

fn explain(settings: &Settings, passwords: &[String], temporary: bool) {
    let domain = settings.domains.first().map_or("localhost", String::as_str);
    let data = settings.data.display();
    let program = program();
    let shown = |address: Option<SocketAddr>| address.map_or("off".into(), |a| a.to_string());
    say!("Chancery demo, domain {domain}\n");
    say!("Connect with any XMPP client:");
    say!("  STARTTLS    {}", shown(settings.listen.c2s));
    say!("  direct TLS  {}", shown(settings.listen.c2s_tls));
    if let Some((path, sha256)) = trust::path(&settings.local_authority) {
        say!("  trust       {}", path.display());
        say!("              SHA-256 {sha256}");
    }
    say!("");
    for ((name, group), password) in CAST.iter().zip(passwords) {
        say!(
            "  {:24} password {password}   group {group}",
            format!("{name}@{domain}")
        );
    }
    say!("\nTry:");
    say!("  alice writes to bob          it arrives, and was in the log before");
    say!("  alice writes to carol        a wall: alice gets policy-violation with its text");
    say!("  alice logs out, bob writes   it is delivered when she is back");
    say!("\nIn another terminal:");
    say!("  {program} --data {data} policy explain alice carol");
    say!("  {program} --data {data} user disable bob");
    say!("  {program} --data {data} evidence export --output demo.jsonl");
    say!("  {program} --data {data} evidence key > demo.pub");
    say!("  {program} verify demo.jsonl --key demo.pub");
    if let Some(ops) = settings.listen.ops {
        say!("  curl http://{ops}/ready");
    }
    say!("");
    if temporary {
        say!("Ctrl-C ends it and removes {data}; --data DIR keeps what was written.");
    } else {
        say!("Ctrl-C ends it. Each start gives everybody a new password.");
    }
}

/// The program as it was called.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "chancery".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_policy_is_sound_and_walls_both_groups() {
        let policy = chancery_policy::check(POLICY, None).unwrap();
        assert_eq!(policy.walls.len(), 1);
        for group in GROUPS {
            assert!(CAST.iter().any(|(_, of)| *of == group));
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_stepped_over() {
        let taken = listen::bind("test", "127.0.0.1:0".parse().unwrap()).unwrap();
        let port = taken.local_addr().unwrap().port();
        if port < 60_000 {
            let chosen = address("--c2s", &None, port).unwrap();
            assert_ne!(chosen, taken.local_addr().unwrap().to_string());
        }
        assert_eq!(
            address("--c2s", &Some("1.2.3.4:5".into()), port).unwrap(),
            "1.2.3.4:5"
        );
    }
}
