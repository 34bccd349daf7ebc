//! slixmpp: `tests/clients/chat.py` is two people who know each other, `tests/clients/contacts.py` two
//! who get to know each other, with three devices, history and a block.

use std::process::Command;

use anyhow::Result;
use chancery_testkit::server::{PASSWORD, Server, Shape};

use super::{installed, repository, script};
use crate::play::play;

fn run(server: &Server, file: &str, at_least: usize) -> Result<()> {
    let mut command = Command::new(installed("python/bin/slixmpp-ready")?.with_file_name("python"));
    command
        .arg(repository().join("tests/clients").join(file))
        .arg("--domain")
        .arg(server.domain())
        .arg("--first")
        .arg(server.c2s[0].to_string())
        .arg("--first-authority")
        .arg(server.authority(0))
        .arg("--second")
        .arg(server.c2s[server.c2s.len() - 1].to_string())
        .arg("--second-authority")
        .arg(server.authority(1))
        .env("CHANCERY_PASSWORD", PASSWORD);
    script(server, &mut command, at_least)
}

fn chat(shape: Shape) {
    play(shape, &["alice", "bob"], async |server| {
        server.introduce("alice", "bob")?;
        run(server, "chat.py", 8)
    });
}

fn contacts(shape: Shape) {
    play(shape, &["carol", "dave"], async |server| {
        run(server, "contacts.py", 10)
    });
}

#[test]
fn chat_in_one_process() {
    chat(Shape::One);
}

#[test]
fn chat_over_two_gateways() {
    chat(Shape::Many);
}

#[test]
fn contacts_in_one_process() {
    contacts(Shape::One);
}

#[test]
fn contacts_over_two_gateways() {
    contacts(Shape::Many);
}
