//! What `config check` says of broken files, and what defaults and flags come to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use chancery_api::Role;

fn problems(text: &str) -> Vec<String> {
    problems_with(text, &Overrides::default())
}

fn problems_with(text: &str, overrides: &Overrides) -> Vec<String> {
    match Settings::parse(Path::new("x.toml"), text, overrides) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn has(found: &[String], place: &str, text: &str) {
    assert!(
        found
            .iter()
            .any(|p| p.starts_with(place) && p.contains(text)),
        "no {place} .. {text} in\n{}",
        found.join("\n")
    );
}

#[test]
fn no_file_at_all_serves_localhost() {
    let settings = Settings::load(&Overrides::default()).unwrap();
    assert_eq!(settings.domains, ["localhost"]);
    assert!(Role::SERVICES.iter().all(|role| settings.runs(*role)));
    assert!(settings.remote.is_empty() && settings.internal.is_none());
    assert_eq!(settings.listen.c2s.unwrap().port(), 5222);
    assert_eq!(settings.listen.c2s_tls.unwrap().port(), 5223);
    assert_eq!(settings.listen.ops.unwrap().to_string(), "127.0.0.1:5280");
}

#[test]
fn every_problem_is_named_at_once_with_its_line() {
    let text = "\
[server]
domains = [\"example.org\", \"127.0.0.1\"]
nam = \"x\"
dta = \"y\"

[listn]
c2s = \"off\"

[listen]
c2s = \"5222\"
c2s-tls = \"off\"
ops = 7

[services]
rooster = \"a:1\"
policy = \"nowhere\"
gateway = \"a:1\"

[tls.\"other.org\"]
certificate = \"a\"
key = \"b\"

[tls.\"example.org\"]
certificate = \"a\"

[log]
format = \"xml\"
level = \"a=b=c\"
";
    let found = problems(text);
    has(&found, "x.toml:2:", "domain `127.0.0.1`");
    has(
        &found,
        "x.toml:3:",
        "unknown key in [server] `nam`, did you mean `name`?",
    );
    has(&found, "x.toml:4:", "did you mean `data`?");
    has(
        &found,
        "x.toml:6:",
        "unknown section `listn`, did you mean `listen`?",
    );
    has(&found, "x.toml:10:", "`5222` is no address");
    has(&found, "x.toml:11:", "did you mean `c2s_tls`?");
    has(&found, "x.toml:12:", "[listen]: invalid type");
    has(&found, "x.toml:15:", "did you mean `roster`?");
    has(&found, "x.toml:16:", "expected HOST:PORT");
    has(&found, "x.toml:17:", "nobody calls a gateway");
    has(&found, "x.toml:19:", "other.org is not hosted");
    has(&found, "x.toml:23:", "missing field `key`");
    has(&found, "x.toml:27:", "neither text nor json");
    has(&found, "x.toml:28:", "[log] level");
    assert_eq!(found.len(), 14, "{}", found.join("\n"));
}

#[test]
fn contacts_are_uris_of_hosted_domains() {
    let text = "\
[server]
domains = [\"a.example\"]
[domain.\"a.example\".contacts]
abuse = [\"mailto:abuse@a.example\", \"xmpp:abuse@a.example\"]
support = [\"somebody\"]
admins = [\"mailto:x@a.example\"]
[domain.\"other.example\".contacts]
";
    let found = problems(text);
    has(&found, "x.toml:5:", "`somebody` is no URI");
    has(&found, "x.toml:6:", "did you mean `admin`?");
    has(&found, "x.toml:7:", "other.example is not hosted");
    assert_eq!(found.len(), 3, "{}", found.join("\n"));
    has(
        &problems("[gateway]\ncontacts = {}\n"),
        "x.toml:2:",
        "say it in [domain.",
    );
    let good = "[domain.\"localhost\".contacts]\nabuse = [\"mailto:a@b\"]\n[domain.localhost]\n";
    let settings = Settings::parse(Path::new("x.toml"), good, &Overrides::default());
    let contacts = settings.unwrap().configs.gateway.contacts;
    assert_eq!(contacts["localhost"].abuse, ["mailto:a@b"]);
}

#[test]
fn administrators_are_accounts_of_their_domain() {
    let text = "\
[server]
domains = [\"a.example\", \"b.example\"]
[domain.\"a.example\"]
administrators = [\"Alice@A.example\", \"bob@b.example\", \"@\"]
administrator_groups = [\"it\"]
[domain.\"b.example\"]
administrators = []
";
    let found = problems(text);
    has(
        &found,
        "x.toml:4:",
        "bob@b.example is no account of a.example",
    );
    assert_eq!(found.len(), 2, "{}", found.join("\n"));
    let text = text.replace(", \"bob@b.example\", \"@\"", "");
    let settings = Settings::parse(Path::new("x.toml"), &text, &Overrides::default()).unwrap();
    let of = &settings.administrators["a.example"];
    assert!(of.accounts.contains("alice@a.example") && of.groups.contains("it"));
    assert_eq!(settings.administrators.len(), 1);
    assert!(settings.configs.gateway.administered.contains("a.example"));
}

#[test]
fn broken_toml_is_named_beside_the_rest() {
    let found = problems("[server]\nname = \nnam = 1\n[listen]\nc2s = \"x\"\n");
    has(&found, "x.toml:2:", "");
    has(&found, "x.toml:3:", "did you mean `name`");
    has(&found, "x.toml:5:", "is no address");
}

#[test]
fn services_own_sections_are_checked_for_unknown_keys() {
    for name in [
        "gateway",
        "directory",
        "roster",
        "pubsub",
        "policy",
        "presence",
        "archive",
    ] {
        let found = problems(&format!("[{name}]\nno_such_key_at_all = 1\nnor_this = 2\n"));
        has(&found, "x.toml:2:", "no_such_key_at_all");
        has(&found, "x.toml:3:", "nor_this");
    }
}

#[test]
fn a_part_needs_addresses_and_certificates() {
    let mut overrides = Overrides::default();
    overrides.serve.roles = vec!["gateway".into()];
    let found = problems_with("", &overrides);
    for role in [
        "archive",
        "directory",
        "roster",
        "pubsub",
        "policy",
        "presence",
    ] {
        has(
            &found,
            "configuration",
            &format!("[services] {role} is missing"),
        );
    }
    has(&found, "configuration", "[internal] certificate is missing");

    let text = "\
[services]
archive = \"127.0.0.1:7001\"
directory = \"127.0.0.1:7002\"
roster = \"127.0.0.1:7003\"
policy = \"127.0.0.1:7004\"
presence = \"127.0.0.1:7005\"
pubsub = \"127.0.0.1:7006\"
[internal]
authority = \"i/a.pem\"
certificate = \"i/{roles}.pem\"
key = \"i/{roles}.key\"
";
    assert_eq!(problems_with(text, &overrides), Vec::<String>::new());
    let both = format!("{text}directory = \"i\"\n");
    has(
        &problems_with(&both, &overrides),
        "x.toml:9:",
        "made in directory already",
    );
    overrides.serve.roles = vec!["presence".into(), "roster".into()];
    has(
        &problems_with(text, &overrides),
        "configuration",
        "names no one IP:PORT",
    );
    overrides.serve.roles = vec!["directory".into()];
    let settings = Settings::parse(Path::new("/etc/x.toml"), text, &overrides).unwrap();
    assert_eq!(settings.listen.internal.unwrap().port(), 7002);
    assert_eq!(settings.listen.c2s, None);
    let Some(Internal::Files { certificate, .. }) = settings.internal else {
        panic!("no files")
    };
    assert_eq!(certificate, Path::new("/etc/i/directory.pem"));
    assert_eq!(
        settings.remote.keys().copied().collect::<Vec<_>>(),
        [Role::Roster, Role::Policy, Role::Pubsub, Role::Archive]
    );
}

#[test]
fn flags_go_above_the_file() {
    let mut overrides = Overrides::default();
    overrides.serve.c2s = Some("127.0.0.1:6222".into());
    overrides.place.domains = vec!["Flag.example".into()];
    overrides.place.data = Some("d".into());
    let text = "[server]\ndomains = [\"file.example\"]\ndata = \"e\"\n[listen]\nc2s = \"off\"\n";
    let settings = Settings::parse(Path::new("/etc/x.toml"), text, &overrides).unwrap();
    assert_eq!(settings.domains, ["flag.example"]);
    assert_eq!(settings.listen.c2s.unwrap().port(), 6222);
    assert_eq!(settings.data, Path::new("d"));
    overrides.place.data = None;
    let settings = Settings::parse(Path::new("/etc/x.toml"), text, &overrides).unwrap();
    assert_eq!(settings.data, Path::new("/etc/e"));
    overrides.serve.ops = Some("nonsense".into());
    has(
        &problems_with(text, &overrides),
        "--ops:",
        "`nonsense` is no address",
    );
}

#[test]
fn nothing_serves_nobody() {
    let found = problems("[listen]\nc2s = \"off\"\nc2s_tls = \"off\"\n");
    has(&found, "x.toml:2:", "serves nobody");
    let found = problems("[listen]\nc2s = \"127.0.0.1:1\"\nops = \"127.0.0.1:1\"\n");
    has(&found, "x.toml:3:", "are both 127.0.0.1:1");
}

#[test]
fn traces_are_off_until_a_collector_is_named() {
    let parse = |text: &str| {
        let parsed = Settings::parse(Path::new("x.toml"), text, &Overrides::default());
        parsed.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert!(parse("").unwrap().trace.is_none());
    assert!(parse("[trace]\nratio = 1.0\n").unwrap().trace.is_none());
    let found =
        parse("[trace]\nratio = 1.5\nendpoint = \"https://x:4317\"\nratios = 1\n").unwrap_err();
    has(&found, "x.toml:2:", "1.5 is not between 0 and 1");
    has(&found, "x.toml:3:", "expected http://HOST:PORT");
    has(&found, "x.toml:4:", "did you mean `ratio`?");
    let named = parse("[trace]\nendpoint = \"http://127.0.0.1:4317\"\n");
    if cfg!(feature = "otlp") {
        let trace = named.unwrap().trace.unwrap();
        assert_eq!(
            (trace.endpoint.as_str(), trace.ratio),
            ("http://127.0.0.1:4317", 0.01)
        );
    } else {
        has(
            &named.unwrap_err(),
            "x.toml:2:",
            "without the feature `otlp`",
        );
    }
}

#[test]
fn files_are_looked_at_before_anything_starts() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    std::fs::write(&key, "k").unwrap();
    let text = "[server]\ndomains = [\"a.example\"]\n[tls.\"a.example\"]\n\
                certificate = \"none.pem\"\nkey = \"key.pem\"\n";
    let file = dir.path().join("x.toml");
    let check = |mode| {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let settings = Settings::parse(&file, text, &Overrides::default()).unwrap();
        settings
            .missing_files()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let found = check(0o644);
    has(
        &found,
        &dir.path().join("none.pem").display().to_string(),
        "[tls] certificate",
    );
    has(
        &found,
        &key.display().to_string(),
        "open to everybody (mode 644)",
    );
    assert_eq!(check(0o640).len(), 1);
}
