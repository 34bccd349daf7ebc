//! How ejabberd is configured: Mnesia, SCRAM keys, no shapers. Erlang is started directly and
//! without distribution, so that there is no port mapper and nothing else beside the one process.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use chancery_testkit::server::PASSWORD;

use super::{DOMAIN, Place};

/// The script of the package; it also says where the package keeps its libraries.
pub const PROGRAM: &str = "/usr/sbin/ejabberdctl";
/// Debian's Erlang.
const ERLANG: &str = "/usr/bin/erl";

/// The file that appears once all accounts exist.
pub fn told(place: &Place) -> PathBuf {
    place.home.join("ready")
}

/// Writes the configuration; gives the command that starts it.
pub fn command(place: &Place) -> Result<Command> {
    let script = std::fs::read_to_string(PROGRAM)?;
    let libraries = script
        .lines()
        .find_map(|line| line.strip_prefix("ERL_LIBS="))
        .context("ejabberdctl does not say where its libraries are")?
        .trim_matches(['\'', '"']);
    let (config, inetrc) = (place.home.join("ejabberd.yml"), place.home.join("inetrc"));
    std::fs::write(&config, configuration(place))?;
    // Names from files only: no name server is asked.
    std::fs::write(
        &inetrc,
        "{lookup, [\"file\"]}.\n{host, {127,0,0,1}, [\"localhost\"]}.\n",
    )?;
    let mut command = Command::new(ERLANG);
    command
        .env("ERL_LIBS", libraries)
        .env("ERL_INETRC", &inetrc)
        .env("ERL_MAX_PORTS", "100000")
        .env("ERL_CRASH_DUMP_BYTES", "0")
        .env("HOME", &place.home)
        .env("EJABBERD_CONFIG_PATH", &config)
        .env("EJABBERD_LOG_PATH", place.home.join("server.log"))
        // As ejabberdctl has it.
        .args([
            "+K", "true", "+P", "250000", "+Bd", "-noinput", "-mnesia", "dir",
        ])
        .arg(format!("\"{}\"", place.home.join("mnesia").display()))
        .args(["-s", "ejabberd", "-eval", &accounts(place)]);
    Ok(command)
}

/// Erlang that makes the accounts, then the file that says so.
fn accounts(place: &Place) -> String {
    format!(
        "lists:foreach(fun(N) -> ok = ejabberd_auth:try_register(\
         <<\"user\", (integer_to_binary(N))/binary>>, <<\"{DOMAIN}\">>, <<\"{PASSWORD}\">>) end, \
         lists:seq(0, {users} - 1)), ok = file:write_file(\"{told}\", <<>>).",
        users = place.users,
        told = told(place).display(),
    )
}

fn configuration(place: &Place) -> String {
    let archive = if place.archive {
        "  mod_mam:\n    default: always\n    db_type: mnesia\n"
    } else {
        ""
    };
    format!(
        r#"# One process on loopback, made for one measurement.
hosts:
  - {DOMAIN}
loglevel: warning
certfiles:
  - "{both}"
acme:
  auto: false
auth_method: internal
auth_password_format: scram
default_db: mnesia
new_sql_schema: false
listen:
  -
    port: {port}
    ip: "{ip}"
    module: ejabberd_c2s
    backlog: 4096
    max_stanza_size: 262144
    access: all
    starttls: true
    starttls_required: true
    shaper: none
max_fsm_queue: 1000000
oom_killer: false
shaper_rules:
  max_user_sessions: infinity
  max_user_offline_messages: infinity
modules:
  mod_carboncopy: {{}}
  mod_disco: {{}}
  mod_offline: {{}}
  mod_ping: {{}}
  mod_roster: {{}}
  mod_stream_mgmt:
    max_ack_queue: infinity
{archive}"#,
        both = place.both.display(),
        ip = place.address.ip(),
        port = place.address.port(),
    )
}
