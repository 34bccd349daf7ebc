//! Hostile XML on a client's stream: each row is an input and the answers that are right for it. No
//! row may disturb another session, reach anybody, or bring the server to complain.
//!
//! proves: XEP-0205

mod auth;
mod caps;
mod evidence;
mod flood;
mod sasl;
mod xml;

use anyhow::{Result, bail};
use chancery_testkit::client::Client;
use chancery_testkit::server::Server;
use chancery_testkit::wire::{Wire, header};
use futures_util::future::join_all;

pub(crate) const DOMAIN: &str = "example.test";

/// What is sent, and the stream errors of which one has to come back.
pub(crate) struct Row {
    /// Number in the catalogue, and which variant.
    id: &'static str,
    input: Vec<u8>,
    right: &'static [&'static str],
}

pub(crate) fn row(
    id: &'static str,
    input: impl Into<Vec<u8>>,
    right: &'static [&'static str],
) -> Row {
    Row {
        id,
        input: input.into(),
        right,
    }
}

/// Where a row is played.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// The first bytes on the plain listener.
    First,
    /// Under TLS, behind the header, before authentication.
    BeforeAuth,
    /// In a session of mallory.
    Session,
}

/// Plays rows, each on a connection of its own, some at a time; names every wrong answer.
pub(crate) async fn check(server: &Server, place: Place, rows: &[Row]) -> Result<()> {
    let mut wrong = Vec::new();
    for some in rows.chunks(8) {
        let answers = join_all(some.iter().map(|row| async {
            let wire = match place {
                Place::First => Wire::plain(server.c2s[0]).await?,
                Place::BeforeAuth => before_auth(server).await?,
                Place::Session => {
                    let mut login = server.login("mallory", "", 0)?;
                    login.resource = None;
                    Client::login(&login).await?.wire
                }
            };
            wire.answer_to(&row.input).await
        }))
        .await;
        for (row, answer) in some.iter().zip(answers) {
            match answer {
                Ok(answer) if is_right(place, &answer, row.right) => {}
                Ok(answer) => wrong.push(format!("{}: {}", row.id, clip(&answer))),
                Err(error) => wrong.push(format!("{}: {error:#}", row.id)),
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("wrong answers:\n{}", wrong.join("\n"))
}

/// A stream error with one of the conditions, and the closing tag behind it.
fn is_right(place: Place, answer: &str, right: &[&str]) -> bool {
    let Some((_, error)) = answer.split_once("<stream:error>") else {
        return false;
    };
    // RFC 6120 §4.9.1.1: the first error is preceded by our own header.
    let begun = !matches!(place, Place::First) || answer.contains("<stream:stream");
    begun
        && answer.trim_end().ends_with("</stream:stream>")
        && right.iter().any(|name| {
            error.contains(&format!("<{name} ")) || error.contains(&format!("<{name}/"))
        })
}

pub(crate) fn clip(text: &str) -> String {
    text.chars().take(400).collect()
}

/// Under TLS; the server's features are read.
pub(crate) async fn before_auth(server: &Server) -> Result<Wire> {
    let mut wire = Wire::starttls(server.c2s[0], DOMAIN, server.trust(0)?).await?;
    wire.open(DOMAIN).await?;
    wire.element().await?;
    Ok(wire)
}

/// The victim's session.
pub(crate) async fn witness(server: &Server) -> Result<Client> {
    let mut bob = server.client("bob", "b", 0).await?;
    bob.enable().await?;
    bob.send("<presence/>").await?;
    bob.until_marker().await?;
    Ok(bob)
}

/// Nothing came to the victim, and its session works.
pub(crate) async fn undisturbed(bob: &mut Client) -> Result<()> {
    let came = bob.until_marker().await?;
    match came.first() {
        None => Ok(()),
        Some(first) => bail!("{} reached bob", String::from_utf8_lossy(&first.bytes)),
    }
}

/// A stream header of which one thing is otherwise.
pub(crate) fn header_with(attributes: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' {attributes}>"
    )
}

/// A header, and what follows it.
pub(crate) fn after_header(rest: &str) -> String {
    format!("{}{rest}", header(DOMAIN))
}
