//! Hostile negotiations: rows of the list of attacks, by their ids.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use chancery_xmpp::ns;

use super::{HEADER, LIMIT, STARTTLS, Server, assert_error, has_error};
use crate::config::Config;

#[tokio::test]
async fn attack_a16_other_protocols() {
    let server = Server::start();
    let hello = client_hello(&server);
    let inputs: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &hello,
        &[0; 64],
        b"\xff\xfe",
    ];
    for input in inputs {
        let mut client = server.plain().await;
        client.send(input).await;
        let answer = client.rest().await;
        let expected = [
            "not-well-formed",
            "bad-format",
            "unsupported-encoding",
            "restricted-xml",
        ];
        assert!(
            expected
                .iter()
                .any(|condition| has_error(&answer, condition)),
            "{answer}"
        );
        assert!(answer.len() <= 400, "{} bytes: {answer}", answer.len());
    }
    server.settled().await;
}

#[tokio::test]
async fn attack_a19_headers() {
    let server = Server::start();
    for (header, condition) in [
        (
            HEADER.replace(" version='1.0'>", ">"),
            "unsupported-version",
        ),
        (
            HEADER.replace(" version='1.0'>", " version='0.9'>"),
            "unsupported-version",
        ),
        (
            HEADER.replace("jabber:client", "jabber:server"),
            "invalid-namespace",
        ),
        (
            HEADER.replace(" to='example.test'", ""),
            "improper-addressing",
        ),
        (
            HEADER.replace("example.test", "unknown.test"),
            "host-unknown",
        ),
        (
            HEADER.replace("stream:stream", "stream:other"),
            "bad-format",
        ),
    ] {
        let mut client = server.plain().await;
        client.send(&header).await;
        assert_error(&client.rest().await, condition);
    }
    let mut client = server.plain().await;
    let answer = client
        .ask(
            &HEADER.replace(" version='1.0'>", " version='99.0'>"),
            "</stream:features>",
        )
        .await;
    assert!(answer.contains("<stream:stream ") && answer.contains(" version='1.0'"));
}

#[tokio::test]
async fn attack_a17_text_and_unknown_elements() {
    let server = Server::start();
    for (input, conditions) in [
        ("<foo xmlns='urn:x'/>", &["unsupported-stanza-type"][..]),
        ("text<message/>", &["bad-format", "invalid-xml"]),
        (
            "</message>text<message/>",
            &["bad-format", "invalid-xml", "not-well-formed"],
        ),
    ] {
        let mut client = server.in_tls().await;
        client.send(input).await;
        let answer = format!("<stream:stream {}", client.rest().await);
        assert!(conditions.iter().any(|c| has_error(&answer, c)), "{answer}");
    }
}

#[tokio::test]
async fn attack_b2_sizes_before_authentication() {
    let server = Server::start();
    let attribute = HEADER.replace(" version=", &format!(" x='{}' version=", "y".repeat(8_193)));
    let mut client = server.plain().await;
    client.send(&attribute).await;
    assert_error(&client.rest().await, "policy-violation");
    let mut client = server.in_tls().await;
    client
        .auth("PLAIN", &format!("\0alice\0{}", "x".repeat(100 * 1024)))
        .await;
    let answer = format!("<stream:stream {}", client.rest().await);
    assert!(
        answer.contains("<malformed-request"),
        "attack D2, 100 KiB: {answer}"
    );
    assert_error(&answer, "policy-violation");
}

#[tokio::test]
async fn attack_b9_every_phase_has_a_deadline() {
    let server = Server::with(Config {
        handshake_seconds: 1,
        header_seconds: 1,
        sasl_seconds: 1,
        ..Config::default()
    });
    let mut silent = server.plain().await;
    let mut after_header = server.plain().await;
    after_header.ask(HEADER, "</stream:features>").await;
    let mut mid_tls = server.plain().await;
    mid_tls.io = TcpStream::connect(server.listeners.c2s_tls()[0])
        .await
        .unwrap();
    mid_tls.send(&client_hello(&server)[..20]).await;
    let mut mid_sasl = server.in_tls().await;
    mid_sasl.auth("SCRAM-SHA-256", "n,,n=alice,r=abc").await;
    mid_sasl.until("</challenge>").await;
    let mut restarting = server.in_tls().await;
    restarting.plain_login().await;
    assert_error(&silent.rest().await, "connection-timeout");
    assert!(after_header.rest().await.contains("<connection-timeout"));
    assert_eq!(mid_tls.rest().await, "");
    assert!(mid_sasl.rest().await.contains("<connection-timeout"));
    assert_error(&restarting.rest().await, "connection-timeout");
    drop((silent, after_header, mid_tls, mid_sasl, restarting));
    server.settled().await;
}

#[tokio::test]
async fn attack_b9_caps_and_who_is_told() {
    let server = Server::with(Config {
        half_open_per_address: 2,
        ..Config::default()
    });
    let held = [server.plain().await, server.plain().await];
    let mut client = server.plain().await;
    let answer = client.rest().await;
    assert_error(&answer, "policy-violation");
    drop(held);
    server.settled().await;
    server.in_tls().await;
    let server = Server::with(Config {
        connections: 1,
        ..Config::default()
    });
    let _held = server.plain().await;
    let mut client = server.plain().await;
    assert_error(&client.rest().await, "resource-constraint");
}

#[tokio::test]
async fn attack_b10_resets_leave_nothing() {
    let server = Server::start();
    for round in 0..40 {
        let mut client = server.plain().await;
        match round % 4 {
            1 => client.send("<?xml version='1.0'?><stream:str").await,
            2 => drop(client.ask(HEADER, "</stream:features>").await),
            3 => {
                client.ask(HEADER, "</stream:features>").await;
                client.ask(STARTTLS, "/>").await;
                client.send(&client_hello(&server)[..40]).await;
            }
            _ => {}
        }
        reset(client.io);
        let mut client = server.in_tls().await;
        match round % 3 {
            1 => client.auth("SCRAM-SHA-256", "n,,n=alice,r=abc").await,
            2 => client.plain_login().await,
            _ => {}
        }
        reset(client.io.into_inner().0);
    }
    server.settled().await;
}

#[allow(clippy::needless_pass_by_value)] // it is closed here
fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test]
async fn attack_c1_bytes_behind_starttls() {
    let server = Server::start();
    let auth = format!(
        "<auth xmlns='{}' mechanism='PLAIN'>AGFsaWNlAHBlbmNpbA==</auth>",
        ns::SASL
    );
    for injected in [&auth, " x", "x", HEADER] {
        let mut client = server.plain().await;
        client.ask(HEADER, "</stream:features>").await;
        client.send(format!("{STARTTLS}{injected}")).await;
        assert_eq!(client.rest().await, "", "closed without <proceed/>");
    }
    assert_eq!(server.directory.asked.load(Ordering::SeqCst), 0);
    server.settled().await;
}

#[tokio::test]
async fn attack_c3_nothing_but_starttls_in_clear_text() {
    let server = Server::start();
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let mut client = server.plain().await;
        client.ask(HEADER, "</stream:features>").await;
        client.auth(mechanism, "\0alice\0pencil").await;
        let answer = client.until("</failure>").await;
        assert!(answer.contains("<encryption-required"), "{answer}");
        // The stream goes on: TLS can still be negotiated.
        assert!(client.ask(STARTTLS, "/>").await.contains("<proceed"));
    }
    for stanza in [
        "<message/>",
        "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
    ] {
        let mut client = server.plain().await;
        client.ask(HEADER, "</stream:features>").await;
        client.send(stanza).await;
        assert!(client.rest().await.contains("<not-authorized"), "{stanza}");
    }
    assert_eq!(server.directory.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn attack_c4_tls_in_tls() {
    let server = Server::start();
    let mut client = server.in_tls().await;
    client.send(STARTTLS).await;
    let answer = client.rest().await;
    assert_eq!(
        answer,
        format!("<failure xmlns='{}'/></stream:stream>", ns::TLS)
    );
}

#[tokio::test]
async fn attack_c4_old_versions() {
    let server = Server::start();
    // A hello for an old version: one for 1.2 whose extension supported_versions is renamed, so
    // that the version in the hello itself counts, and that is lowered.
    let mut hello = hello_of(server.client_config(&[&rustls::version::TLS12], &[]));
    assert_eq!(&hello[9..11], [3, 3]);
    let extension = [0, 43, 0, 3, 2, 3, 3];
    let at = hello
        .windows(7)
        .position(|window| window == extension)
        .unwrap();
    hello[at..at + 2].copy_from_slice(&[0xfa, 0xfa]);
    for minor in [0, 1, 2] {
        hello[10] = minor;
        let mut socket = TcpStream::connect(server.listeners.c2s_tls()[0])
            .await
            .unwrap();
        socket.write_all(&hello).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(LIMIT, socket.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.first(), Some(&21), "an alert");
    }
}

#[tokio::test]
async fn attack_c7_a_hello_in_records_of_one_byte() {
    let server = Server::start();
    let hello = client_hello(&server);
    let records: Vec<u8> = hello[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    let close_notify = [21, 3, 3, 0, 2, 1, 0];
    for end in [&[][..], &close_notify] {
        let mut socket = TcpStream::connect(server.listeners.c2s_tls()[0])
            .await
            .unwrap();
        socket.write_all(&records).await.unwrap();
        let _ = socket.write_all(end).await;
        let mut first = [0];
        let read = tokio::time::timeout(LIMIT, socket.read(&mut first))
            .await
            .unwrap();
        assert!(matches!(read, Ok(0 | 1) | Err(_)));
    }
    server.in_tls().await;
    server.settled().await;
}

#[tokio::test]
async fn attack_d10_tries_on_one_stream() {
    let server = Server::start();
    let mut client = server.in_tls().await;
    for _ in 0..3 {
        client.auth("PLAIN", "\0alice\0wrong").await;
        assert!(client.until("</failure>").await.contains("<not-authorized"));
    }
    client.auth("PLAIN", "\0alice\0pencil").await;
    assert!(client.rest().await.contains("<policy-violation"));
    // Two failures do not lock the third try out.
    let mut client = server.in_tls().await;
    for _ in 0..2 {
        client.auth("PLAIN", "\0alice\0wrong").await;
        client.until("</failure>").await;
    }
    client.plain_login().await;
    // The directory's own throttle ends the stream.
    server.directory.refuses.store(true, Ordering::SeqCst);
    let mut client = server.in_tls().await;
    client.auth("PLAIN", "\0alice\0pencil").await;
    assert!(client.rest().await.contains("<policy-violation"));
}

#[tokio::test]
async fn attack_d11_another_domain_after_authentication() {
    let mut server = Server::start();
    for (header, condition) in [
        (
            HEADER.replace("example.test", "second.test"),
            "not-authorized",
        ),
        (
            HEADER.replace("example.test", "unknown.test"),
            "host-unknown",
        ),
        (
            HEADER.replace(" to=", " from='bob@example.test' to="),
            "invalid-from",
        ),
    ] {
        let mut client = server.in_tls().await;
        client.plain_login().await;
        client.send(&header).await;
        assert_error(&client.rest().await, condition);
    }
    assert!(server.seen.try_recv().is_err(), "no session began");
}

#[tokio::test]
async fn attack_d12_and_b17_out_of_turn() {
    let server = Server::start();
    let sm = "<failed xmlns='urn:xmpp:sm:3'><unexpected-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";
    let mut client = server.in_tls().await;
    for request in [
        "<enable xmlns='urn:xmpp:sm:3'/>",
        "<resume xmlns='urn:xmpp:sm:3' h='0' previd='x'/>",
    ] {
        assert_eq!(client.ask(request, "</failed>").await, sm);
    }
    let compress =
        "<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method></compress>";
    assert!(
        client
            .ask(compress, "</failure>")
            .await
            .contains("<unsupported-method/>")
    );
    client.plain_login().await; // all of that changed nothing
    for stanza in [
        "<message/>",
        "<presence/>",
        "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
        "<r xmlns='urn:xmpp:sm:3'/>",
    ] {
        let mut client = server.in_tls().await;
        client.send(stanza).await;
        assert!(client.rest().await.contains("<not-authorized"), "{stanza}");
    }
    let mut client = server.in_tls().await;
    client
        .send("<enable xmlns='urn:xmpp:sm:3'/>".repeat(20))
        .await;
    assert!(
        client.rest().await.contains("<policy-violation"),
        "a bounded number is answered"
    );
}

#[tokio::test]
async fn attack_d15_stream_ids() {
    let server = Server::start();
    let mut ids = std::collections::HashSet::new();
    for _ in 0..50 {
        let mut client = server.plain().await;
        let answer = client.ask(HEADER, "</stream:features>").await;
        let id = answer
            .split(" id='")
            .nth(1)
            .unwrap()
            .split('\'')
            .next()
            .unwrap()
            .to_owned();
        assert_eq!(id.len(), 32);
        assert!(ids.insert(id));
    }
}

fn client_hello(server: &Server) -> Vec<u8> {
    hello_of(server.client_config(rustls::ALL_VERSIONS, &[]))
}

fn hello_of(config: Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("example.test").unwrap();
    let mut connection = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut nothing = [0; 1];
    assert!(connection.reader().read(&mut nothing).is_err());
    hello
}
