//! What processes need of each other and where they listen: `[listen]`, `[services]` and
//! `[internal]` held against the roles of this process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use chancery_api::Role;

use super::read::Section;
use super::settings::{
    Check, DEFAULT_C2S, DEFAULT_C2S_TLS, DEFAULT_OPS, Internal, Listen, joined, needs, role,
};
use super::{Overrides, Raw};

pub(super) fn services(
    check: &mut Check<'_>,
    section: &Section<BTreeMap<String, String>>,
) -> BTreeMap<Role, String> {
    let mut services = BTreeMap::new();
    for (name, address) in &section.value {
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty()).then_some(())?;
            port.parse::<u16>().ok().filter(|port| *port > 0)
        });
        match role(name) {
            Err(text) => check.report(section.place(name), format!("[services] {text}")),
            Ok(Role::Gateway) => check.report(
                section.place(name),
                "[services] gateway: nobody calls a gateway, it has no address",
            ),
            Ok(_) if port.is_none() => check.report(
                section.place(name),
                format!("[services] {name}: `{address}` is no address; expected HOST:PORT"),
            ),
            Ok(role) => {
                services.insert(role, address.clone());
            }
        }
    }
    services
}

pub(super) fn listen(
    check: &mut Check<'_>,
    raw: &Raw,
    overrides: &Overrides,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> Listen {
    let (section, flags) = (&raw.listen, &overrides.serve);
    let file = |key: &str, value: &'_ Option<String>| (section.place(key), value.clone());
    let gateway = roles.contains(&Role::Gateway);
    let mut one = |flag, said: &Option<String>, key, value: &Option<String>, default| {
        let (place, value) = file(key, value);
        check.address((flag, said), (place, &value), default)
    };
    let c2s = one(
        "--c2s",
        &flags.c2s,
        "c2s",
        &section.value.c2s,
        Some(DEFAULT_C2S),
    );
    let c2s_tls = one(
        "--c2s-tls",
        &flags.c2s_tls,
        "c2s_tls",
        &section.value.c2s_tls,
        Some(DEFAULT_C2S_TLS),
    );
    let ops = one(
        "--ops",
        &flags.ops,
        "ops",
        &section.value.ops,
        Some(DEFAULT_OPS),
    );
    let internal = one(
        "--internal",
        &flags.internal,
        "internal",
        &section.value.internal,
        None,
    );
    let (c2s, c2s_tls) = if gateway {
        (c2s, c2s_tls)
    } else {
        (None, None)
    };
    if gateway && c2s.is_none() && c2s_tls.is_none() {
        check.report(
            section.place("c2s"),
            "a gateway with both c2s and c2s_tls off serves nobody",
        );
    }
    let all = [
        ("c2s", c2s),
        ("c2s_tls", c2s_tls),
        ("ops", ops),
        ("internal", internal),
    ];
    for (i, (name, address)) in all.iter().enumerate() {
        let twin = all
            .iter()
            .take(i)
            .find(|(_, other)| address.is_some_and(|a| a.port() != 0) && address == other);
        if let (Some((other, _)), Some(address)) = (twin, address) {
            check.report(
                section.place(name),
                format!("{name} and {other} are both {address}"),
            );
        }
    }
    let internal_said = flags.internal.is_some() || section.value.internal.is_some();
    let whole = Role::SERVICES.iter().all(|role| roles.contains(role));
    let internal = if internal_said || whole || *roles == BTreeSet::from([Role::Gateway]) {
        internal
    } else {
        own_address(check, raw, roles, services)
    };
    Listen {
        c2s,
        c2s_tls,
        ops,
        internal,
    }
}

/// The address that `[services]` gives the roles of this process.
fn own_address(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> Option<SocketAddr> {
    let own: BTreeSet<&String> = roles.iter().filter_map(|role| services.get(role)).collect();
    let mut own = own.into_iter();
    let (first, second) = (own.next(), own.next());
    match (first.and_then(|a| SocketAddr::from_str(a).ok()), second) {
        (Some(address), None) => Some(address),
        _ => {
            let names = joined(roles);
            check.report(
                raw.listen.place("internal"),
                format!(
                    "[listen] internal is missing: [services] names no one IP:PORT to listen on for {names}"
                ),
            );
            None
        }
    }
}

pub(super) fn remote(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    services: &BTreeMap<Role, String>,
) -> BTreeMap<Role, String> {
    let needed: BTreeSet<Role> = roles
        .iter()
        .flat_map(|role| needs(*role))
        .copied()
        .collect();
    let mut remote = BTreeMap::new();
    for role in needed.difference(roles) {
        if let Some(address) = services.get(role) {
            remote.insert(*role, address.clone());
        } else {
            let name = role.name();
            check.report(
                raw.services.place(name),
                format!(
                    "[services] {name} is missing: {} must reach it",
                    joined(roles)
                ),
            );
        }
    }
    remote
}

pub(super) fn internal(
    check: &mut Check<'_>,
    raw: &Raw,
    roles: &BTreeSet<Role>,
    needed: bool,
) -> Option<Internal> {
    let section = &raw.internal;
    let said = &section.value;
    if let Some(directory) = &said.directory {
        for (key, path) in [
            ("authority", &said.authority),
            ("certificate", &said.certificate),
            ("key", &said.key),
        ] {
            if path.is_some() {
                check.report(
                    section.place(key),
                    format!("[internal] {key}: certificates are made in directory already"),
                );
            }
        }
        return needed.then(|| Internal::Directory(raw.base.join(directory)));
    }
    if !needed {
        return None;
    }
    let joined = joined(roles);
    let mut file = |key: &str, path: &Option<PathBuf>| {
        let Some(path) = path else {
            check.report(
                section.place(key),
                format!("[internal] {key} is missing (or directory = \"DIR\" for made ones): processes prove to each other who they are"),
            );
            return None;
        };
        let path = path.to_string_lossy().replace("{roles}", &joined);
        Some(raw.base.join(path))
    };
    let authority = file("authority", &said.authority);
    let certificate = file("certificate", &said.certificate);
    let key = file("key", &said.key);
    Some(Internal::Files {
        authority: authority?,
        certificate: certificate?,
        key: key?,
    })
}
