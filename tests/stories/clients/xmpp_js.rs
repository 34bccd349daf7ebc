//! @xmpp/client on node: `tests/clients/chat.mjs`.

use std::process::Command;

use anyhow::Result;
use chancery_testkit::server::{PASSWORD, Server, Shape};

use super::{authorities, installed, repository, script};
use crate::play::play;

fn chat(server: &Server) -> Result<()> {
    let modules = installed("node/node_modules/@xmpp/client")?;
    let mut command = Command::new("node");
    command
        .arg(repository().join("tests/clients/chat.mjs"))
        .arg(modules)
        .arg(server.domain())
        .arg(server.c2s[0].to_string())
        .arg(server.c2s[server.c2s.len() - 1].to_string())
        .env("NODE_EXTRA_CA_CERTS", authorities(server)?)
        .env("CHANCERY_PASSWORD", PASSWORD);
    script(server, &mut command, 7)
}

#[test]
fn in_one_process() {
    play(Shape::One, &["erin", "frank"], async |server| chat(server));
}

#[test]
fn over_two_gateways() {
    play(Shape::Many, &["erin", "frank"], async |server| chat(server));
}
