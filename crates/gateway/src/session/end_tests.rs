//! Sessions that end while something is under way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chancery_api::archive::{EndReason, EndSession, attach_up};

use super::harness::Server;

/// Whoever takes its place would get again what is not read here, and does not wait for long.
#[tokio::test]
async fn what_is_acknowledged_is_heard_before_what_is_under_way_is_over() {
    let server = Server::start().await;
    let mut bob = server.resumable("bob@a.test", "phone").await;
    let mut alice = server.login("alice@a.test", "desk").await;
    alice
        .send("<message to='bob@a.test' id='m1'><body>x</body></message>")
        .await;
    bob.expect(&["id='m1'"]).await;
    server.archive.state.lock().held = Some(Vec::new());
    bob.send("<message to='nobody@a.test' id='m2'><body>x</body></message>")
        .await;
    server
        .until("submitted", || server.archive.state.lock().items.len() == 2)
        .await;
    let end = EndSession {
        session: 1,
        reason: EndReason::Conflict.into(),
    };
    server.archive.say(attach_up::Item::End(end));
    server.archive.say(attach_up::Item::End(EndSession {
        session: 2,
        reason: EndReason::Conflict.into(),
    }));
    // That the other has ended says that this one has been told too.
    alice.expect(&["stream:error", "<conflict"]).await;
    bob.send("<message to='alice@a.test' id='m3'><body>late</body></message>")
        .await;
    bob.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    server
        .until("heard", || server.archive.state.lock().acknowledged == [1])
        .await;
    {
        let log = server.archive.state.lock();
        assert!(!log.detached.contains(&1));
        assert_eq!(log.items.len(), 2, "what comes late is not taken");
    }
    server.archive.release();
    while !bob.receive().await.contains("stream:error") {}
    server
        .until("over", || server.archive.state.lock().detached.contains(&1))
        .await;
}
